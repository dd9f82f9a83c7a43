"Pretrained weights as a user gets them: from pip without a network, from the hub, from its cache, and one line where there are none"
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import timm
from repository import BIN, ROOT, clean_env
from safetensors.torch import save_file

TINY = 'test_resnet' # timm's own network for tests
NOBODY = 'http://127.0.0.1:9' # nobody listens there


def python(code: str, **env: str) -> subprocess.CompletedProcess:
    "Run code in a process of its own, which reads the environment at its start"
    head = 'from fashion_nbdev.config import Config\nfrom fashion_nbdev.networks import build_model\n' \
           "def build(arch):\n    cfg = Config(); cfg.model.arch, cfg.model.pretrained = arch, 'imagenet'\n    return build_model(cfg, 3, 10)\n"
    return subprocess.run([sys.executable, '-c', head + code], cwd=ROOT, env=clean_env(**env), capture_output=True, text=True, timeout=300)


@pytest.fixture
def places(tmp_path) -> dict[str, str]:
    "Empty caches, so that nothing of this machine's helps"
    return dict(FASHION_CACHE_DIR=str(tmp_path/'ours'), HF_HOME=str(tmp_path/'theirs'), HF_HUB_DISABLE_TELEMETRY='1', HF_HUB_DISABLE_XET='1')


@pytest.fixture
def hub(tmp_path):
    "A server that speaks as much of the Hugging Face hub as fetching a file takes; it has the weights of `TINY` alone"
    save_file(timm.create_model(TINY).state_dict(), tmp_path/'w')
    body, asked = (tmp_path/'w').read_bytes(), []

    class Hub(BaseHTTPRequestHandler):
        def answer(self, send: bool):
            asked.append(self.path)
            found = self.path == '/' or self.path.endswith(f'timm/{TINY}.r160_in1k/resolve/main/model.safetensors')
            data = body if found and self.path != '/' else b''
            self.send_response(200 if found else 404)
            for name, value in {'ETag': '"abc"', 'X-Repo-Commit': '0'*40, 'Content-Length': str(len(data))}.items(): self.send_header(name, value)
            self.end_headers()
            if send: self.wfile.write(data)
        def do_HEAD(self): self.answer(False)
        def do_GET(self): self.answer(True)
        def log_message(self, *args): pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    server.asked, server.address = asked, f'http://127.0.0.1:{server.server_port}'
    yield server
    server.shutdown()
    server.server_close()


def test_lite_networks_come_with_pip_and_ask_nobody(places):
    code = '''
import socket
def refuse(*args, **kwargs): raise AssertionError('a network connection was asked for')
socket.socket.connect = socket.getaddrinfo = refuse
for i in range(3):
    model = build(f'tf_efficientnet_lite{i}')
    print(round(float(model.bn1.running_var.mean()), 6) != 1.0, model.classifier.out_features)
'''
    done = python(code, **places)
    assert (done.returncode, done.stdout.split('\n')[:3]) == (0, ['True 10']*3), done.stderr


def test_weights_come_from_the_hub_once(places, hub):
    code = f"print(float(build('{TINY}').layer1[0].conv1.weight.sum()), flush=True)\nbuild('resnet18')"
    first = python(code, HF_ENDPOINT=hub.address, **places)
    assert first.stdout and any('model.safetensors' in path for path in hub.asked), first.stderr
    assert 'WeightsError: the weights of resnet18 cannot be fetched (' in first.stderr.splitlines()[-1], 'which this hub does not have'
    again = python(code, HF_ENDPOINT=NOBODY, **places)
    assert again.stdout == first.stdout, again.stderr


def test_training_without_a_network_says_what_to_do(places, tmp_path):
    command = [BIN/'fashion_train', '--config', ROOT/'configs/fashion_mnist.yaml', '--runs', tmp_path/'runs',
               '--set', 'data.samples=true', 'model.arch=resnet18', 'model.pretrained=imagenet']
    done = subprocess.run(command, cwd=ROOT, env=clean_env(HF_ENDPOINT=NOBODY, **places), capture_output=True, text=True, timeout=300)
    [line] = done.stderr.splitlines()
    assert done.returncode == 2
    for part in ('fashion_train: the weights of resnet18 cannot be fetched', 'connect once', str(tmp_path/'ours'/'weights'/'resnet18.a1_in1k.safetensors'),
                 'tf_efficientnet_lite0', "model.pretrained: ''"): assert part in line
