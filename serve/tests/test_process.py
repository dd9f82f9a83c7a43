"`fashion_serve` as people start it: a process of its own, real HTTP, real signals"
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from fashion_serve.accept import knock_unheard


def post(url: str, body: bytes, kind: str = 'image/png'):
    "Status and JSON of one prediction"
    request = urllib.request.Request(f'{url}v1/predict?model=fashion_mnist', body, {'Content-Type': kind})
    with urllib.request.urlopen(request, timeout=10) as answer: return answer.status, json.load(answer)


def as_form(body: bytes) -> bytes:
    return b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + body + b'\r\n--cut--\r\n'


def in_env(**more) -> dict:
    return {k: v for k, v in os.environ.items() if not k.startswith('FASHION_')} | more


def fails(*args, **env) -> str:
    "The one line that a `fashion_serve` which cannot start leaves"
    script = Path(sys.executable).with_name('fashion_serve')
    done = subprocess.run([script, *args], capture_output=True, text=True, timeout=60, env=in_env(**env))
    assert done.returncode == 2 and not done.stdout, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith('fashion_serve: ') and done.stderr.count('\n') == 1, done.stderr
    return done.stderr


def test_ten_samples_raw_and_as_form(service, samples):
    raw = {label: post(service.url, png) for label, png in samples.items()}
    form = {label: post(service.url, as_form(png), 'multipart/form-data; boundary=cut') for label, png in samples.items()}
    assert {s for s, _ in [*raw.values(), *form.values()]} == {200}
    assert all(raw[label][1]['predictions'] == form[label][1]['predictions'] for label in samples)
    right = sum(body['predictions'][0]['label'] == label for label, (_, body) in raw.items())
    assert right >= 7, right


def test_cold_start(service):
    print(f'cold start {service.cold_start:.2f} s')
    assert service.cold_start < 10 # the target is 3 s on a machine that does nothing else


def test_no_torch(models_dir, samples):
    "The app that really answers has loaded no training library"
    code = f'''
import sys
from starlette.testclient import TestClient
from fashion_serve.main import create_app
from fashion_serve.settings import Settings
with TestClient(create_app(Settings(models_dir={str(models_dir)!r}))) as client:
    while client.get('/readyz').status_code != 200: pass
    assert client.post('/v1/predict', content=open({str(models_dir / 'x.png')!r}, 'rb').read()).status_code == 200
heavy = {{'torch', 'torchvision', 'fastai', 'timm', 'mlflow', 'onnx', 'pandas', 'sklearn', 'matplotlib', 'scipy', 'IPython', 'pickle5'}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
'''
    (models_dir / 'x.png').write_bytes(samples['bag'])
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_sigterm_ends_well(serve, models_dir, samples):
    service = serve('--port', '0', '--models_dir', str(models_dir))
    post(service.wait(), samples['bag'])
    assert service.stop() == (0, '')


def test_ctrl_c_is_130(serve, models_dir):
    service = serve('--port', '0', '--models_dir', str(models_dir))
    service.wait()
    assert service.stop(signal.SIGINT) == (130, 'fashion_serve: interrupted\n')


def ask_until_refused(where, png: bytes, found: list):
    "Statuses, or what went wrong on a connection that was made"
    while True:
        connection = http.client.HTTPConnection(where.hostname, where.port, timeout=20)
        try: connection.connect()
        except OSError: return # nobody takes requests any more
        try:
            connection.request('POST', '/v1/predict', png)
            found.append(connection.getresponse().status)
        except OSError as e: found.append(repr(e))
        finally: connection.close()


def test_stopped_under_load_nothing_accepted_is_lost(serve, models_dir, samples, turns):
    "A connection is refused, or its request is answered: with a prediction, or with 503 while it drains"
    for _ in range(turns(1, 20)):
        service = serve('--port', '0', '--models_dir', str(models_dir), '--default_model', 'fashion_mnist', env=in_env(FASHION_DEADLINE='30'))
        found, where = [], urllib.parse.urlparse(service.wait())
        clients = [threading.Thread(target=ask_until_refused, args=(where, samples['bag'], found)) for _ in range(4)]
        for c in clients: c.start()
        threading.Timer(.5, service.process.send_signal, [signal.SIGTERM]).start()
        for c in clients: c.join(30)
        assert service.stop()[0] == 0
        assert set(found) <= {200, 503} and found.count(200) > 5, {f: found.count(f) for f in found}


@pytest.mark.skipif(sys.platform != 'linux', reason='the filter is of Linux')
def test_at_the_end_who_is_there_is_served_and_nobody_else_comes_in():
    with socket.create_server(('127.0.0.1', 0)) as listening, socket.create_connection(listening.getsockname()) as there:
        knock_unheard(listening)
        with pytest.raises(TimeoutError): socket.create_connection(listening.getsockname(), timeout=.2)
        with listening.accept()[0] as taken:
            there.sendall(b'hello')
            assert taken.recv(5) == b'hello'


def test_sigterm_answers_what_it_has_accepted(serve, models_dir, samples):
    service = serve('--port', '0', '--models_dir', str(models_dir), '--default_model', 'fashion_mnist')
    where = urllib.parse.urlparse(service.wait())
    png = samples['bag']
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=10)
    connection.putrequest('POST', '/v1/predict')
    connection.putheader('Content-Length', str(len(png)))
    connection.endheaders(png[:50])
    threading.Timer(.3, service.process.send_signal, [signal.SIGTERM]).start()
    threading.Timer(.8, connection.send, [png[50:]]).start()
    answer = connection.getresponse()
    assert answer.status == 200 and json.load(answer)['predictions'][0]['label'] == 'bag'
    assert service.stop()[0] == 0


def test_too_large_is_answered_while_it_is_sent(service):
    where = urllib.parse.urlparse(service.url)
    for chunked in (False, True):
        connection = http.client.HTTPConnection(where.hostname, where.port, timeout=10)
        body = (b'x' * 100_000 for _ in range(120))
        connection.request('POST', '/v1/predict', body, {} if chunked else {'Content-Length': '12000000'}, encode_chunked=chunked)
        answer = connection.getresponse()
        assert answer.status == 413 and json.load(answer)['code'] == 'too_large'


def test_a_client_that_leaves_hurts_nobody(service, samples):
    where = urllib.parse.urlparse(service.url)
    for _ in range(5):
        with socket.create_connection((where.hostname, where.port)) as sock:
            sock.sendall(b'POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc')
    assert post(service.url, samples['bag'])[0] == 200


def test_port_in_use(models_dir):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        said = fails('--port', str(port), '--models_dir', str(models_dir))
    assert f'cannot listen on 127.0.0.1 port {port}' in said and 'in use' in said


def test_broken_model_is_named(tmp_path, models_dir):
    (tmp_path / 'good.onnx').write_bytes((models_dir / 'fashion_mnist.onnx').read_bytes())
    (tmp_path / 'broken.onnx').write_bytes(b'no model')
    assert 'broken.onnx' in fails('--port', '0', '--models_dir', str(tmp_path))


@pytest.mark.parametrize('args, env, words', [
    (['--models_dir', '/nowhere'], {}, '/nowhere is not a folder'),
    (['--port', 'many'], {}, 'port'), (['--port', '70000'], {}, '--port is 70000'), ([], {'FASHION_PORT': 'x'}, "FASHION_PORT is 'x'"),
    (['--threads', '0'], {}, '--threads is 0'),
    (['--host', 'no.such.host.invalid'], {}, 'cannot listen on no.such.host.invalid'), (['--colour', 'red'], {}, '--colour'),
])
def test_a_mistake_is_one_line(args, env, words): assert words in fails(*args, **env)


def test_unknown_default_model(models_dir):
    assert "default_model is 'nope': choose one of clothing, fashion_mnist" in fails('--default_model', 'nope', '--port', '0', '--models_dir', str(models_dir))


def test_environment_sets_the_same(serve, models_dir):
    service = serve(env=in_env(FASHION_PORT='0', FASHION_MODELS_DIR=str(models_dir), FASHION_DEFAULT_MODEL='clothing', FASHION_HOST='localhost'))
    with urllib.request.urlopen(service.wait() + 'v1/models') as answer: assert json.load(answer)['default'] == 'clothing'


def test_dockerfile_copies_what_is_there():
    "The image is not built here; at least every file it names exists and is let into the build"
    serve_folder = Path(__file__).parents[1]
    copied = {source for line in (serve_folder / 'Dockerfile').read_text().splitlines() if line.startswith('COPY ') and '--from' not in line
              for source in line.split()[1:-1]}
    let_in = {line[1:] for line in (serve_folder / 'Dockerfile.dockerignore').read_text().splitlines() if line.startswith('!')}
    assert copied == let_in and all((serve_folder.parent / source).exists() for source in copied)
