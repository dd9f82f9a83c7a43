"Keys of programs: who may ask, and how often"
import hashlib
import math
import time

import numpy as np
import pytest
from fastapi import Request
from limits import parse
from starlette.testclient import TestClient

from fashion_nbdev.core import ConfigError
from fashion_serve.engine import Engine
from fashion_serve.errors import Problem
from fashion_serve.keys import Windows, bearer, key_digest, read_keys
from fashion_serve.main import create_app
from fashion_serve.settings import Settings, load_settings


def digest(key: str) -> str: return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture(scope='module')
def guarded(running, models_dir, tmp_path_factory):
    (path := tmp_path_factory.mktemp('keys') / 'keys.txt').write_text(f'# who may ask\nshop {digest("open sesame")}\nлавка {digest("сезам, откройся")}\nguest {digest("three only")} 3/hour\n' + ''.join(f'ten{i} {digest(f"ten {i}")} 10/hour\n' for i in range(6)))
    with running(Settings(models_dir=models_dir, default_model='fashion_mnist', deadline=60, keys_file=path, workers=1)) as client: yield client


@pytest.mark.parametrize('headers', [{}, {'Authorization': 'Bearer wrong'}, {'X-API-Key': 'wrong'}, {'Authorization': f'Bearer {digest("open sesame")}'}, {'Authorization': 'Bearer '}])
def test_nobody_without_a_key(guarded, samples, headers):
    for path in ('/v1/predict', '/v1/predict/batch', '/v2/models/fashion_mnist/infer'):
        answer = guarded.post(path, content=samples['bag'], headers=headers)
        assert (answer.status_code, answer.json()['code'], answer.headers['www-authenticate']) == (401, 'no_key', 'Bearer'), path


def test_with_a_key(guarded, samples):
    for headers in ({'Authorization': 'Bearer open sesame'}, {'X-API-Key': 'open sesame'}, {'Authorization': 'bearer open sesame'}, {'Authorization': 'Basic cHJveHk6b25seQ==', 'X-API-Key': 'open sesame'}):
        for _ in range(5): assert guarded.post('/v1/predict', content=samples['bag'], headers=headers).status_code == 200


def test_a_key_in_another_alphabet(guarded, samples):
    key = 'сезам, откройся'.encode()
    for headers in ({'X-API-Key': key}, {'Authorization': b'Bearer ' + key}): assert guarded.post('/v1/predict', content=samples['bag'], headers=headers).status_code == 200


@pytest.mark.parametrize('key', ['ключР', 'voilà', 'мех'])
def test_no_byte_of_a_key_is_taken_for_space(key):
    "In Latin-1 the last bytes of these are spaces"
    request = Request(dict(type='http', headers=[(b'authorization', b'Bearer  ' + key.encode() + b' ')]))
    assert key_digest(bearer(request)) == digest(key)


def test_what_needs_none(guarded):
    for path in ('/livez', '/readyz', '/metrics', '/v1/models', '/v2/health/ready', '/'): assert guarded.get(path).status_code == 200, path


def test_a_key_has_its_rate(guarded, samples):
    found = [guarded.post('/v1/predict', content=samples['bag'], headers={'X-API-Key': 'three only'}) for _ in range(5)]
    assert [a.status_code for a in found] == [200] * 3 + [429] * 2
    assert found[-1].json()['code'] == 'rate_limited' and 1 <= int(found[-1].headers['retry-after']) <= 4801 and '3 per 1 hour' in found[-1].json()['detail']
    assert guarded.post('/v1/predict', content=samples['bag'], headers={'X-API-Key': 'open sesame'}).status_code == 200 # not that of another


def together(client, samples, key: str, n: int, way: str):
    "n pictures in one request"
    if way == 'batch': return client.post('/v1/predict/batch', files=[('file', samples['bag'])] * n, headers={'X-API-Key': key})
    images = dict(name='image', datatype='UINT8', shape=[n, 28, 28, 1], data=np.zeros(n * 784, int).tolist())
    return client.post('/v2/models/fashion_mnist/infer', json=dict(inputs=[images]), headers={'X-API-Key': key})


@pytest.mark.parametrize(('way', 'key'), [('batch', 'ten 0'), ('tensor', 'ten 1')])
def test_each_picture_counts(guarded, samples, way, key):
    found = [together(guarded, samples, key, n, way) for n in (4, 5, 2, 1)]
    assert [a.status_code for a in found] == [200, 200, 429, 429] # 4 + 5, and the request that was too large counts as one
    problem = found[2].json()
    assert problem['code'] == 'rate_limited' and '10 per 1 hour' in problem['detail'] and 1 <= int(found[2].headers['retry-after']) <= 7200
    never = together(guarded, samples, 'ten 2' if way == 'batch' else 'ten 3', 11, way)
    assert (never.status_code, never.json()['code']) == (429, 'rate_limited') and 'never 11 at once' in never.json()['detail'] and 'retry-after' not in never.headers


@pytest.mark.parametrize(('way', 'key'), [('batch', 'ten 4'), ('tensor', 'ten 5')])
def test_what_is_not_taken_on_counts_as_one(guarded, samples, way, key, monkeypatch):
    def busy(*_): raise Problem('overloaded', 'busy')
    with monkeypatch.context() as patched:
        for name in ('submit', 'submit_all'): patched.setattr(Engine, name, busy)
        assert together(guarded, samples, key, 8, way).json()['code'] == 'overloaded'
    assert [together(guarded, samples, key, 9, way).status_code, together(guarded, samples, key, 1, way).status_code] == [200, 429]


def test_many_fit_together_or_not_at_all(tmp_path, monkeypatch):
    now, windows, rate = 1e6, Windows(tmp_path / 'asked'), parse('10/minute')
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    assert [windows.hit(0, rate, n) == 0 for n in (6, 5, 4, 1)] == [True, False, True, False]
    assert windows.hit(0, rate, 11) == windows.hit(0, rate, 10, again=1) == math.inf
    assert windows.hit(0, rate, -4) == 0 and windows.hit(0, rate, 4) == 0 and windows.hit(0, rate) > 0 # given back and taken again
    wait = windows.hit(0, rate, 7, again=1)
    now += wait + .01
    assert [windows.hit(0, rate), windows.hit(0, rate, 7)] == [0, 0] and windows.hit(0, rate) > 0 # whoever waited so long, and no longer


def test_all_workers_count_together(tmp_path):
    first, second, rate = Windows(tmp_path / 'asked'), Windows(tmp_path / 'asked'), parse('100/hour')
    assert sum(first.hit(0, rate) == 0 for _ in range(150)) == 100 # on one connection, which has one worker
    assert second.hit(0, rate) > 0 and second.hit(1, rate) == 0 # and the others know; another key is not concerned


def test_a_rate_comes_back_as_the_window_slides(tmp_path, monkeypatch):
    now, windows, rate = 1e6, Windows(tmp_path / 'asked'), parse('10/minute')
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    assert [windows.hit(0, rate) for _ in range(10)] == [0] * 10
    let_in = 10
    for _ in range(3): # whoever waits as long as is said is let in, once
        wait = windows.hit(0, rate)
        now += wait - .01
        assert 0 < windows.hit(0, rate) < .02
        now += .02
        assert windows.hit(0, rate) == 0 and windows.hit(0, rate) > 0
        let_in += 1
    assert now > 1e6 + 60 and let_in == 13
    now += 120
    assert [windows.hit(0, rate) for _ in range(10)] == [0] * 10 and windows.hit(0, rate) > 0


@pytest.mark.parametrize(('text', 'words'), [('', 'holds no key'), ('# nobody yet\n', 'holds no key'), ('shop secret', 'line 1: a name and the SHA-256'), ('shop', 'line 1: a name'),
                                             (f'a {"0" * 64}\nb {"1" * 64} often', "line 2: the rate is 'often'"),
                                             *((f'a {"0" * 64} {rate}', f"line 1: the rate is '{rate}'") for rate in ('0/second', '1/second;2/minute', '1/second daily'))])
def test_a_mistake_in_the_file_is_one_line(tmp_path, models_dir, text, words):
    (path := tmp_path / 'keys.txt').write_text(text)
    with pytest.raises(ConfigError, match=words) as e: create_app(Settings(models_dir=models_dir, keys_file=path))
    assert 'secret' not in str(e.value)
    with pytest.raises(ConfigError, match='cannot be read'): read_keys(tmp_path / 'nowhere')


def test_a_key_given_for_its_hash_is_not_shown():
    with pytest.raises(ConfigError, match='--admin_key_sha256 cannot be that') as e: load_settings(admin_key_sha256='open sesame')
    assert 'sesame' not in str(e.value)


def test_everybody_where_no_keys_are_set(settings, samples, running):
    with running(settings) as client: assert client.post('/v1/predict', content=samples['bag']).status_code == 200
    assert TestClient(create_app(settings)).get('/livez').status_code == 200


def test_an_empty_variable_is_as_good_as_none(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path) # which '' would name as a folder of models
    for name in ('MODELS_DIR', 'KEYS_FILE', 'WORKERS', 'DEFAULT_MODEL'): monkeypatch.setenv(f'FASHION_{name}', '')
    assert load_settings() == load_settings(models_dir=None) and load_settings().models_dir is None and load_settings().workers >= 1
