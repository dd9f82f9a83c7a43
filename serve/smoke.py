"Ask a running service for what it is there for: is it ready, which models answer, does it know an ankle boot? Needs Python alone, so that it runs in the container too"
import argparse
import json
import os
import time
import urllib.error
import urllib.request

BUSY = {429, 503} # not yet, or not now: asked again
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({})) # a proxy's answer says nothing of the service
HEADERS = {'Authorization': f'Bearer {key}'} if (key := os.environ.get('FASHION_SMOKE_KEY')) else {} # where the service asks for keys
NO_KEY = 'status 401: set FASHION_SMOKE_KEY to a key that the service knows by its FASHION_KEYS_FILE'


def ask(url: str, until: float, data: bytes | None = None) -> bytes:
    "The answer, asked again and again until then as long as the service is not there or busy"
    while True:
        try:
            with DIRECT.open(urllib.request.Request(url, data, HEADERS), timeout=10) as answer: return answer.read()
        except urllib.error.HTTPError as e: said, again = NO_KEY if e.code == 401 else f'status {e.code}: {e.read(300).decode("utf-8", "replace")}', e.code in BUSY
        except OSError as e: said, again = str(getattr(e, 'reason', e)), True
        if not again or time.monotonic() > until: raise SystemExit(f'smoke.py: {url} answers with {said}')
        time.sleep(.3)


def smoke(url: str, wait: float) -> str:
    "What was found, in one line; ends with `SystemExit` if it is not as it should be"
    url, until = url.rstrip('/'), time.monotonic() + wait
    ask(f'{url}/readyz', until)
    models = json.loads(ask(f'{url}/v1/models', until))
    versions = {m['name']: m['version'] for m in models['models']}
    picture = ask(f'{url}/page/samples/ankle_boot.png', until)
    best = {name: json.loads(ask(f'{url}/v1/predict?top_k=1&model={name}', until, picture))['predictions'][0] for name in versions} # of most only that they answer
    if (known := best.get('fashion_mnist')) and known['label'] != 'ankle_boot': raise SystemExit(f'smoke.py: {url} takes an ankle boot for {known["label"]}: are its models those that are shipped?')
    return f'{url} is ready: ' + ', '.join(f'{name} {versions[name]} ({b["label"]} {b["probability"]:.1%})' for name, b in best.items())


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('url', nargs='?', default=f'http://127.0.0.1:{os.environ.get("FASHION_PORT", 8000)}', help='where it is (on this machine)')
    parser.add_argument('--wait', type=float, default=60, help='seconds that it may take to become ready (60)')
    args = parser.parse_args()
    print(smoke(args.url, args.wait))
