"What the tests share: a small real model, the app made with it, a real process, a browser"
import gzip
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from starlette.testclient import TestClient

from fashion_nbdev.core import LABELS
from fashion_nbdev.model_file import ModelInfo, pack_model
from fashion_serve.main import create_app
from fashion_serve.settings import Settings

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / 'serve/fashion_serve/page/samples'


def pytest_addoption(parser):
    parser.addoption('--screenshot', default='', help='write a picture of the page with a result to this PNG file')
    parser.addoption('--long', action='store_true', help='repeat what is repeated as often as the goals say: several minutes, on a machine that does nothing else')


@pytest.fixture(scope='session')
def turns(request):
    "turns(short, long): how often something is repeated"
    return lambda short, long: long if request.config.getoption('--long') else short


@pytest.fixture(scope='session')
def samples() -> dict[str, bytes]:
    "Label key -> PNG, ten real test images of Fashion-MNIST"
    return {label.key: (SAMPLES / f'{label.key}.png').read_bytes() for label in LABELS['fashion_mnist']}


def class_means() -> np.ndarray: # float32 [10, 784]
    "The mean image of each class in the training part of the slice"
    folder = ROOT / 'samples/fashion-mnist'
    images, classes = (np.frombuffer(gzip.decompress((folder / f'train-{name}-ubyte.gz').read_bytes()), np.uint8, offset=skip)
                       for name, skip in (('images-idx3', 16), ('labels-idx1', 8)))
    images = images.reshape(-1, 784).astype(np.float32)
    return np.stack([images[classes == i].mean(0) for i in range(10)])


def nearest_mean_model(label_set: str, side: int, channels: int, resize: str, bias: float = 0.0, fails: bool = False, rounds: int = 0, golden: tuple = ()) -> bytes:
    "A contract model of few operators: logits say how near the picture is to the mean of each class; where anything is seen, one that `fails` does so, and one with `rounds` computes them in vain"
    labels = LABELS.get(label_set, LABELS['fashion_mnist'][:2])
    from onnx import TensorProto, helper, numpy_helper
    means = class_means().reshape(10, 28, 28, 1).repeat(side // 28, 1).repeat(side // 28, 2).repeat(channels, 3).reshape(10, -1)
    means = means[:len(labels)] / (255 * (side // 28) * channels ** .5)
    weights = dict(shape=np.array([-1, means.shape[1]]), scale=np.float32(255 * (side // 28) * channels ** .5),
                   weight=means.T.copy(), bias=-(means ** 2).sum(1) / 2 + np.float32(bias), few=np.float32(1e-6), zero=np.float32(0))
    more = _not_a_number() if fails else _in_vain(rounds) if rounds else []
    graph = helper.make_graph(
        [helper.make_node('Cast', ['image'], ['pixels'], to=TensorProto.FLOAT),
         helper.make_node('Reshape', ['pixels', 'shape'], ['flat']), helper.make_node('Div', ['flat', 'scale'], ['x']),
         helper.make_node('MatMul', ['x', 'weight'], ['xw']), helper.make_node('Add', ['xw', 'bias'], ['sum' if more else 'logits']), *more], 'nearest_mean',
        [helper.make_tensor_value_info('image', TensorProto.UINT8, ['n', side, side, channels])],
        [helper.make_tensor_value_info('logits', TensorProto.FLOAT, ['n', len(labels)])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 20)], ir_version=10)
    info = ModelInfo(name=label_set, labels=labels, height=side, width=side, channels=channels, resize=resize,
                     temperature=.05, golden=golden, metrics={'accuracy': .7}, created='2026-01-31T12:00:00+00:00', licences={'data': 'MIT'})
    return pack_model(made.SerializeToString(), info)


def _not_a_number() -> list:
    "Adds 0 times the logarithm of a number that is negative as soon as a picture is not blank"
    from onnx import helper
    return [helper.make_node('ReduceMean', ['x'], ['seen'], keepdims=1), helper.make_node('Sub', ['few', 'seen'], ['left']), helper.make_node('Log', ['left'], ['log']),
            helper.make_node('Mul', ['log', 'zero'], ['nan']), helper.make_node('Add', ['sum', 'nan'], ['logits'])]


def _in_vain(rounds: int) -> list:
    "Multiplies a matrix with itself as often as that"
    from onnx import TensorProto, helper, numpy_helper
    value = lambda name, kind=TensorProto.FLOAT, shape=(128, 128): helper.make_tensor_value_info(name, kind, shape)
    constant = lambda name, x: helper.make_node('Constant', [], [name], value=numpy_helper.from_array(x))
    body = helper.make_graph([helper.make_node('Identity', ['on'], ['still on']), helper.make_node('MatMul', ['before', 'matrix'], ['after'])], 'round',
                             [value('round', TensorProto.INT64, ()), value('on', TensorProto.BOOL, ()), value('before')], [value('still on', TensorProto.BOOL, ()), value('after')])
    return [constant('matrix', np.full((128, 128), 1 / 128, np.float32)), constant('all rounds', np.int64(rounds)), constant('yes', np.bool_(True)),
            helper.make_node('ReduceMean', ['x'], ['seen'], keepdims=0), helper.make_node('Greater', ['seen', 'few'], ['anything']), helper.make_node('Cast', ['anything'], ['one'], to=TensorProto.INT64),
            helper.make_node('Mul', ['one', 'all rounds'], ['rounds']), helper.make_node('Loop', ['rounds', 'yes', 'matrix'], ['last'], body=body), helper.make_node('ReduceMean', ['last'], ['mean'], keepdims=0),
            helper.make_node('Mul', ['mean', 'zero'], ['nothing']), helper.make_node('Add', ['sum', 'nothing'], ['logits'])]


@pytest.fixture(scope='session')
def make_model():
    return nearest_mean_model


@pytest.fixture(scope='session')
def models_dir(tmp_path_factory) -> Path:
    "A folder with two models, one grey and one for colour photographs"
    folder = tmp_path_factory.mktemp('models')
    (folder / 'fashion_mnist.onnx').write_bytes(nearest_mean_model('fashion_mnist', 28, 1, 'fashion_mnist'))
    (folder / 'clothing.onnx').write_bytes(nearest_mean_model('clothing', 224, 3, 'crop'))
    return folder


@pytest.fixture(scope='session')
def settings(models_dir) -> Settings:
    return Settings(models_dir=models_dir, default_model='fashion_mnist', threads=2, deadline=60)


def wait_ready(client: TestClient, seconds: float = 30):
    end = time.monotonic() + seconds
    while client.get('/readyz').status_code != 200:
        assert time.monotonic() < end, client.get('/readyz').text
        time.sleep(.02)


@contextmanager
def _running(settings: Settings):
    with TestClient(create_app(settings)) as client:
        wait_ready(client)
        yield client


@pytest.fixture(scope='session')
def running():
    "`with running(settings) as client`: the app in this process, ready"
    return _running


@pytest.fixture(scope='session')
def client(settings):
    "The app in this process, ready"
    with _running(settings) as client: yield client


@pytest.fixture(scope='session')
def png():
    "A maker of encoded pictures: png(width, height, mode, format)"
    def make(width=60, height=80, mode='RGB', format='PNG', **save) -> bytes:
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(noise).convert(mode).save(out, format, **save)
        return out.getvalue()
    return make


class Service:
    "A running `fashion_serve`, started through its console script"
    def __init__(self, *args: str, env: dict | None = None, files: int = 0, stdin: int | None = None): # `files` that each process may open
        script = Path(sys.executable).with_name('fashion_serve')
        self.started = time.perf_counter()
        limit = (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))) if files else None
        self.process = subprocess.Popen([script, *args], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=limit)
        self.lines: list[str] = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True)

    @property
    def pid(self) -> int: return self.process.pid

    def wait(self, seconds: float = 30) -> str:
        "Its address, once it has said that it is ready"
        line = self.process.stdout.readline()
        self.reader.start()
        assert 'ready at ' in line, f'{line!r} {self.process.stderr.read()[-2000:]}'
        self.url = line.rsplit(' ', 1)[1].strip()
        while True:
            try:
                with urllib.request.urlopen(self.url + 'readyz', timeout=5): break
            except urllib.error.HTTPError:
                assert time.perf_counter() - self.started < seconds
                time.sleep(.01)
        self.cold_start = time.perf_counter() - self.started
        return self.url

    def workers(self) -> set[int]:
        "Their process ids"
        found = set()
        for p in psutil.Process(self.pid).children():
            with suppress(psutil.Error): # it has just ended
                if 'resource_tracker' not in ' '.join(p.cmdline()): found.add(p.pid)
        return found

    def stop(self, how=signal.SIGTERM, seconds: float = 30) -> tuple[int, str]:
        "Its exit code and what it wrote to standard error"
        if self.process.poll() is None: self.process.send_signal(how)
        try: code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return code, self.process.stderr.read()


@pytest.fixture
def serve():
    "A maker of services, stopped afterwards"
    running = []
    def start(*args, **kwargs) -> Service:
        running.append(Service(*args, **kwargs))
        return running[-1]
    yield start
    for service in running: service.stop(signal.SIGKILL)


@contextmanager
def _started(*args: str, **env: str):
    service = Service(*args, env={k: v for k, v in os.environ.items() if not k.startswith('FASHION_')} | env)
    try:
        service.wait()
        yield service
    finally: assert service.stop()[0] == 0


@pytest.fixture(scope='session')
def started():
    "`with started(*arguments, FASHION_...=...) as service`: a process with these settings, ready"
    return _started


@pytest.fixture(scope='session')
def service():
    "One service with the shipped models, for tests that only read"
    service = Service('--port', '0')
    service.wait()
    yield service
    assert service.stop() == (0, '') # and nothing that happened was worth a line on standard error


@pytest.fixture(scope='session')
def chromium_paths() -> tuple[str, str]:
    found = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome'), shutil.which('chromedriver')
    if not all(found): pytest.skip('chromium or chromedriver is not installed: apt-get install chromium chromium-driver')
    return found
