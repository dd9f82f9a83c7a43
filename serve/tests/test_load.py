"The promises under load, in a short form that a slow machine can keep, too; `make sla` measures the real ones (results/load_*.json)"
import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from fashion_nbdev.load import closed_loop, http_request, open_loop, pictures, summary, usage
from fashion_nbdev.stress import overload


@pytest.fixture(scope='module')
def own(started):
    with started('--port', '0', FASHION_LOG_SHARE='0') as service: yield service.url.rstrip('/')


@pytest.fixture(scope='module')
def requests(): return [http_request('/v1/predict?model=clothing', data) for data in pictures('clothing')]


def test_what_it_can_do_it_does(own, requests):
    capacity = summary(closed_loop(own, requests, 4, 2))['answered_per_s']
    found = summary(open_loop(own, requests, capacity / 4, 3))
    assert found['failed'] == 0 and found['shed'] <= .05, found


def test_too_much_is_refused_soon_and_the_rest_answered_in_time(own, requests):
    found = overload(own, requests, 3)
    assert found['failed'] == 0 and found['shed'] > .3, found # nobody waits in vain
    assert found['p95_ms'] <= 1000 and found['probes_failed'] == 0 and found['recovery_s'] < 5, found # 300 ms on a machine that does nothing else


def test_a_thousand_at_once(own, requests):
    found = summary(open_loop(own, requests, 1e6, 1e-3))
    assert found['n'] == 1000 and found['failed'] == 0 and found['outcomes'].get('200', 0) > 0, found


def test_memory_and_files_come_back(own, requests):
    open_loop(own, requests, 1e6, 3e-4)
    before = usage(own)
    for _ in range(3): open_loop(own, requests, 1e6, 3e-4)
    after = usage(own)
    assert after['mb'] < before['mb'] * 1.1 + 20 and after['open_files'] <= before['open_files'] + 20, (before, after)
    assert after['mb'] < 700


def test_what_is_turned_away_is_told_when_to_come_back(own, requests):
    "Over a connection that can be used again, with the caller's id"
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(open_loop, own, requests, 2000, 2)
        connection, found = http.client.HTTPConnection(urlsplit(own).hostname, urlsplit(own).port, timeout=10), []
        while not busy.done() and len(found) < 5:
            connection.request('POST', '/v1/predict', b'x' * 50_000, {'X-Request-Id': 'mine'})
            answer = connection.getresponse()
            body = json.load(answer)
            if answer.status == 429: found.append((body['code'], body['request_id'], answer.headers['X-Request-Id'], int(answer.headers['Retry-After']) >= 1, answer.headers['Content-Type']))
    assert set(found) == {('overloaded', 'mine', 'mine', True, 'application/problem+json')}
