"Models exchanged while the service answers: POST reload, canary, shadow, promote; a bad file changes nothing"
import json
import os
import re
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fashion_nbdev.predict import Predictor
from fashion_serve.shadow import NICE

SLOW, FEW = .3, 10 # seconds that a slow candidate takes for a picture, and answers after which it has to be gone


@pytest.fixture(scope='module')
def own(started, make_model, tmp_path_factory):
    "A service with two workers and a folder of its own, which may be changed"
    folder = tmp_path_factory.mktemp('exchange')
    (folder / 'fashion_mnist.onnx').write_bytes(make_model('fashion_mnist', 28, 1, 'fashion_mnist'))
    with started('--port', '0', '--models_dir', str(folder), '--workers', '2', FASHION_DEADLINE='30', FASHION_WATCH='false') as service:
        service.folder = folder
        yield service


def ask(service, path: str, body: bytes | None = b'', method: str = 'POST', **headers) -> tuple[int, dict]:
    request = urllib.request.Request(service.url + path, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer: return answer.status, json.load(answer)
    except urllib.error.HTTPError as e: return e.code, json.load(e)


def versions(service, picture: bytes, n: int = 40) -> list[str]:
    "Which versions answer"
    with ThreadPoolExecutor(4) as pool: found = list(pool.map(lambda _: ask(service, 'v1/predict', picture), range(n)))
    assert {status for status, _ in found} == {200}, [body for status, body in found if status != 200][:2]
    return [body['version'] for _, body in found]


def put(service, data: bytes, name: str = 'fashion_mnist'):
    "A file exchanged as it should be: written beside, renamed"
    (beside := service.folder / '.new').write_bytes(data)
    beside.replace(service.folder / f'{name}.onnx')


def model(make_model, bias: float = 0.0, **more) -> bytes: return make_model('fashion_mnist', 28, 1, 'fashion_mnist', bias, **more)


def test_reload(own, make_model, samples):
    before, = set(versions(own, samples['bag']))
    assert ask(own, 'v1/models/fashion_mnist/reload')[1]['version'] == before # the same file
    put(own, model(make_model, 1.0))
    assert set(versions(own, samples['bag'])) == {before} # not before it is asked for
    status, body = ask(own, 'v1/models/fashion_mnist/reload')
    assert status == 200 and body['version'] != before
    assert set(versions(own, samples['bag'])) == {body['version']} # in all workers, as soon as it was answered


@pytest.mark.parametrize('bad', ['half', 'changed', 'nothing', 'computes otherwise'])
def test_a_bad_file_changes_nothing_and_is_explained(own, make_model, samples, bad):
    before, good = set(versions(own, samples['bag'])), model(make_model, 2.0)
    put(own, {'half': good[:len(good) // 2], 'changed': good.replace(b'Div', b'Mul'), 'nothing': b'', 'computes otherwise': model(make_model, 2.0, golden=((1.0,)*10,))}[bad])
    status, body = ask(own, 'v1/models/fashion_mnist/reload')
    assert (status, body['code']) == (422, 'bad_model') and 'nothing was changed' in body['detail'] and 'fashion_mnist' in body['detail']
    assert set(versions(own, samples['bag'])) == before


def test_unknown_names(own):
    assert ask(own, 'v1/models/nope/reload')[1]['code'] == 'unknown_model'
    assert ask(own, 'v1/models/fashion_mnist/canary')[1]['code'] == 'bad_model' # there is no candidate
    assert ask(own, 'v1/models/fashion_mnist/promote')[1]['code'] == 'no_trial'
    assert ask(own, 'v1/models/fashion_mnist/trial', None, 'DELETE')[1]['code'] == 'no_trial'
    assert ask(own, 'v1/models/fashion_mnist/canary?share=2')[1]['code'] == 'invalid_parameter'


def test_a_canary_answers_its_share_and_is_promoted(own, make_model, samples):
    put(own, model(make_model, 3.0)), ask(own, 'v1/models/fashion_mnist/reload')
    old, = set(versions(own, samples['bag']))
    put(own, model(make_model, 4.0), 'fashion_mnist.next')
    status, body = ask(own, 'v1/models/fashion_mnist/canary?share=0.5')
    assert status == 200 and body['version'] != old and not body['shadow']
    found = versions(own, samples['bag'], 200)
    assert set(found) == {old, body['version']} and 50 <= found.count(old) <= 150
    assert [m['name'] for m in ask(own, 'v1/models', None, 'GET')[1]['models']] == ['fashion_mnist']
    assert ask(own, 'v1/models/fashion_mnist/promote')[1]['version'] == body['version']
    assert set(versions(own, samples['bag'])) == {body['version']}


def test_a_canary_can_be_ended(own, make_model, samples):
    old, = set(versions(own, samples['bag']))
    put(own, model(make_model, 5.0), 'fashion_mnist.next')
    assert ask(own, 'v1/models/fashion_mnist/canary?share=1')[0] == 200
    assert old not in versions(own, samples['bag'])
    assert ask(own, 'v1/models/fashion_mnist/trial', None, 'DELETE')[0] == 200
    assert set(versions(own, samples['bag'])) == {old}


def test_a_failing_canary_costs_no_answer_and_goes_by_itself(own, make_model, samples):
    old, = set(versions(own, samples['bag']))
    put(own, model(make_model, 6.0, fails=True), 'fashion_mnist.next')
    assert ask(own, 'v1/models/fashion_mnist/canary?share=0.5')[0] == 200 # blank pictures, with which it is warmed up, it can do
    assert set(versions(own, samples['bag'])) == {old} # whoever it fails is answered by the other one
    time.sleep(2)
    assert ask(own, 'v1/models/fashion_mnist/promote')[1]['code'] == 'no_trial'
    with urllib.request.urlopen(own.url + 'metrics') as answer: assert b'fashion_rollbacks_total{model="fashion_mnist"} 1.0' in answer.read()


def test_a_shadow_is_compared_and_never_seen(own, make_model, samples):
    old, = set(versions(own, samples['bag']))
    put(own, model(make_model, 7.0), 'fashion_mnist.next')
    assert ask(own, 'v1/models/fashion_mnist/shadow')[1]['shadow'] is True
    assert set(versions(own, samples['bag'])) == {old}
    time.sleep(.5)
    with urllib.request.urlopen(own.url + 'metrics') as answer: assert b'fashion_shadow_answers_total{agrees="true",model="fashion_mnist"}' in answer.read()
    assert ask(own, 'v1/models/fashion_mnist/trial', None, 'DELETE')[0] == 200


def make_slow(make_model, picture: bytes, seconds: float) -> bytes:
    "A candidate that takes so long here, and is quick when it is warmed up"
    tried, begun = Predictor(model(make_model, 7.0, rounds=1000)), time.thread_time()
    tried.predict(picture)
    return model(make_model, 7.0, rounds=int(1000 * seconds / (time.thread_time() - begun)))


@pytest.fixture
def alone(started, make_model, tmp_path):
    "A maker of services with one worker, where one request at a time is answered, and a candidate"
    @contextmanager
    def start(candidate: bytes, **env: str):
        (tmp_path / 'fashion_mnist.onnx').write_bytes(model(make_model))
        (tmp_path / 'fashion_mnist.next.onnx').write_bytes(candidate)
        with started('--port', '0', '--models_dir', str(tmp_path), '--workers', '1', FASHION_DEADLINE='30', FASHION_WATCH='false', **env) as service: yield service
    return start


def seconds_of(service, picture: bytes) -> float:
    time.sleep(.005)
    begun = time.perf_counter()
    assert ask(service, 'v1/predict', picture)[0] == 200
    return time.perf_counter() - begun


def said_of(service) -> list[str]:
    "Why candidates went"
    return [json.loads(line)['event'] for line in service.lines if 'no longer tried' in line]


def nices(service) -> list[int]:
    "How far each thread of the worker stands back"
    tasks = Path(f'/proc/{min(service.workers())}/task')
    return [int((task / 'stat').read_text().rpartition(')')[2].split()[16]) for task in tasks.iterdir()]


def test_a_slow_shadow_delays_nobody_and_goes_by_itself(alone, make_model, samples):
    with alone(make_slow(make_model, samples['bag'], SLOW)) as service:
        without = [seconds_of(service, samples['bag']) for _ in range(100)]
        assert ask(service, 'v1/models/fashion_mnist/shadow')[0] == 200
        beside, end = [], time.monotonic() + 120 # it stands back: where others keep the machine busy, its answers take a while
        while not (said := said_of(service)) and time.monotonic() < end: beside.append(seconds_of(service, samples['bag']))
        behind = nices(service) if sys.platform == 'linux' else [0, NICE]
        with urllib.request.urlopen(service.url + 'metrics') as answer: shown = answer.read().decode()
        assert ask(service, 'v1/models/fashion_mnist/promote')[1]['code'] == 'no_trial'
    print(f'{len(beside)} answers: median {np.median(without):.4f} s without, {np.median(beside):.4f} s beside; 90 % in {np.quantile(without, .9):.4f} s and {np.quantile(beside, .9):.4f} s; {said}')
    assert np.quantile(beside, .9) < np.quantile(without, .9) + SLOW / 3
    assert max(behind) == min(min(behind) + NICE, 19) # 19 is the furthest there is
    assert len(said) == 1 and re.search(r'it takes [0-9.]+ times as long', said[0]) and 'fashion_rollbacks_total{model="fashion_mnist"} 1.0' in shown
    assert sum(map(float, re.findall(r'fashion_shadow_answers_total{.*} (.*)', shown))) <= FEW


def test_a_slow_canary_goes_by_itself(alone, make_model, samples):
    with alone(make_slow(make_model, samples['bag'], SLOW / 3)) as service:
        candidate = ask(service, 'v1/models/fashion_mnist/canary?share=0.5')[1]['version']
        answers, end = [], time.monotonic() + 60
        while not (said := said_of(service)) and time.monotonic() < end: answers.append(ask(service, 'v1/predict', samples['bag'])[1]['version'])
    assert len(said) == 1 and re.search(r'it takes [0-9.]+ times as long', said[0]) and answers.count(candidate) <= FEW


def test_a_shadow_that_does_not_end_keeps_nothing(alone, make_model, samples):
    "Neither is the worker taken for stuck, nor does its end wait"
    with alone(make_slow(make_model, samples['bag'], 1000), FASHION_HANG_TIMEOUT='1') as service:
        worker = service.workers()
        assert ask(service, 'v1/models/fashion_mnist/shadow')[0] == 200
        end = time.monotonic() + 3
        while time.monotonic() < end: seconds_of(service, samples['bag'])
        assert service.workers() == worker and service.stop(seconds=10) == (0, '')


def lose_a_worker(service):
    "Until there are two again"
    os.kill(old := min(service.workers()), signal.SIGKILL)
    end = time.monotonic() + 20
    while old in service.workers() or len(service.workers()) < 2: assert time.monotonic() < end
    time.sleep(2) # it loads


def test_a_new_worker_serves_what_the_others_do(own, make_model, samples):
    put(own, model(make_model, 8.0))
    version = ask(own, 'v1/models/fashion_mnist/reload')[1]['version']
    put(own, b'spoilt since')
    lose_a_worker(own)
    assert set(versions(own, samples['bag'])) == {version}


def test_nor_does_it_take_what_nobody_has_asked_for(started, make_model, samples, tmp_path):
    put_into = lambda data, name: (tmp_path / f'{name}.onnx').write_bytes(data)
    put_into(model(make_model), 'fashion_mnist')
    with started('--port', '0', '--models_dir', str(tmp_path), '--workers', '2', FASHION_DEADLINE='30', FASHION_WATCH='false') as service:
        before = set(versions(service, samples['bag']))
        put_into(model(make_model, 8.0), 'fashion_mnist')
        put_into(model(make_model), 'another')
        lose_a_worker(service)
        assert set(versions(service, samples['bag'])) == before
        assert {ask(service, 'v1/models', None, 'GET')[1]['models'][-1]['name'] for _ in range(20)} == {'fashion_mnist'}


def test_not_for_everybody(own, started, models_dir):
    for header in ({'X-Forwarded-For': '1.2.3.4'}, {'Origin': 'https://evil.example'}):
        assert ask(own, 'v1/models/fashion_mnist/reload', **header)[1]['code'] == 'not_allowed'
    key = 'a key that nobody guesses'
    import hashlib
    with started('--port', '0', '--models_dir', str(models_dir), FASHION_ADMIN_KEY_SHA256=hashlib.sha256(key.encode()).hexdigest()) as service:
        assert ask(service, 'v1/models/fashion_mnist/reload')[0] == 403
        assert ask(service, 'v1/models/fashion_mnist/reload', Authorization='Bearer wrong')[0] == 403
        assert ask(service, 'v1/models/fashion_mnist/reload', Authorization=f'Bearer {key}')[0] == 200


def test_a_file_that_is_exchanged_is_noticed(started, make_model, samples, tmp_path):
    (tmp_path / 'fashion_mnist.onnx').write_bytes(model(make_model))
    with started('--port', '0', '--models_dir', str(tmp_path), FASHION_DEADLINE='30') as service:
        service.folder = tmp_path
        old, = set(versions(service, samples['bag']))
        put(service, model(make_model, 9.0))
        end = time.monotonic() + 15
        while old in versions(service, samples['bag'], 8):
            assert time.monotonic() < end
            time.sleep(.2)


def test_exchanges_under_load_every_fifth_bad(own, make_model, samples, turns):
    "Nobody who asks meanwhile notices anything"
    shutil.rmtree(own.folder / 'spare', ignore_errors=True)
    files, failed, stop = [model(make_model, float(i)) for i in range(4)], [], time.monotonic() + 600
    put(own, files[0]), ask(own, 'v1/models/fashion_mnist/reload')
    with ThreadPoolExecutor(3) as pool:
        asking = True
        def client():
            while asking and time.monotonic() < stop:
                status, body = ask(own, 'v1/predict', samples['bag'])
                if status != 200: failed.append(body)
        clients = [pool.submit(client) for _ in range(3)]
        for i in range(turns(20, 100)):
            bad = i % 5 == 4
            put(own, files[i % 4][:100] if bad else files[i % 4])
            assert ask(own, 'v1/models/fashion_mnist/reload')[0] == (422 if bad else 200)
        asking = False
        for c in clients: c.result()
    assert not failed, failed[:2]
    assert os.path.exists(own.folder / 'fashion_mnist.onnx')
