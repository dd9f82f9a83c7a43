"GET /metrics and the log: what they say of requests, and what they never say"
import json
import re
import subprocess
import sys
import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fashion_serve import metrics
from fashion_serve.metrics import observe
from fashion_serve.record import Record


def read(url: str) -> dict[tuple, float]:
    "(name, label values) -> value"
    with urllib.request.urlopen(url + 'metrics', timeout=10) as answer:
        assert answer.headers['content-type'].startswith('text/plain')
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {(s.name, *(v for k, v in sorted(s.labels.items()) if k != 'pid')): s.value for family in families for s in family.samples}


def ask(url: str, body: bytes, path='v1/predict?model=fashion_mnist', **headers) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, body, headers), timeout=10) as answer: return answer.status, json.load(answer)
    except urllib.error.HTTPError as e: return e.code, json.load(e)


@pytest.fixture(scope='module')
def own(started, models_dir):
    with started('--port', '0', '--models_dir', str(models_dir), FASHION_DEADLINE='30') as service: yield service


def test_requests_of_all_workers_are_counted(own, samples):
    before = read(own.url)
    for _ in range(40): assert ask(own.url, samples['bag'])[0] == 200
    ask(own.url, b'nonsense')
    after = read(own.url)
    grown = {k: v - before.get(k, 0) for k, v in after.items() if v != before.get(k, 0)}
    assert grown['fashion_requests_total', 'POST', '/v1/predict', '200'] == 40
    assert grown['fashion_requests_total', 'POST', '/v1/predict', '415'] == 1
    assert grown['fashion_problems_total', 'unsupported_format'] == 1
    assert grown['fashion_request_seconds_count', '/v1/predict'] == 41
    for stage in ('admit', 'read', 'decode', 'queue', 'infer', 'encode'): assert grown['fashion_stage_seconds_count', stage] >= 40, stage
    labels = {k[1]: v for k, v in grown.items() if k[0] == 'fashion_predictions_total'}
    assert labels == {'bag': 40} and grown['fashion_confidence_count', 'fashion_mnist'] == 40
    assert grown['fashion_picture_bytes_count',] == 40


def test_what_is_refused_at_once_and_what_comes_slowly_is_no_measure_of_our_speed():
    before = dict(count=sample('fashion_request_seconds_count'), slow=sample('fashion_request_seconds_count') - sample('fashion_request_seconds_bucket', le='0.3'))
    observe(Record('a', 'POST', '/v1/predict', 429, code='overloaded'))
    observe(Record('b', 'POST', '/v1/predict', 200, seconds=4.0, stages=dict(read=3.9)))
    assert sample('fashion_request_seconds_count') - before['count'] == 1
    assert sample('fashion_request_seconds_count') - sample('fashion_request_seconds_bucket', le='0.3') == before['slow']


def sample(name: str, **labels) -> float: return metrics._registry.get_sample_value(name, dict(route='/v1/predict', **labels)) or 0


def test_what_prometheus_needs_for_the_sla(own):
    values = read(own.url)
    for bound in ('0.2', '0.3'): assert any(k[0] == 'fashion_request_seconds_bucket' and bound in k for k in values)
    assert values['fashion_workers_ready',] >= 1
    assert {k[1] for k in values if k[0] == 'fashion_model_info'} == {'clothing', 'fashion_mnist'}
    assert values['process_resident_memory_bytes',] > 1e6 and values['process_cpu_seconds_total',] > 0 and values['process_open_fds',] > 3
    assert ('fashion_queue_seconds',) in values and ('fashion_queue_pictures',) in values


def test_an_address_that_nobody_has_makes_no_new_series(own):
    for i in range(20): ask(own.url, b'', f'{i}/nowhere')
    routes = {k[2] for k in read(own.url) if k[0] == 'fashion_requests_total'}
    assert 'other' in routes and not any('nowhere' in route for route in routes)


def lines(service, *wanted: str) -> list[dict]:
    "What was logged, at least the requests with these ids"
    end = time.monotonic() + 5
    while True:
        found = [json.loads(line) for line in service.lines if line.startswith('{')]
        if {line.get('request_id') for line in found} >= {*wanted} or time.monotonic() > end: return found
        time.sleep(.05)


def test_the_log(own, samples):
    ask(own.url, samples['coat'], **{'X-Request-Id': 'find-me', 'User-Agent': 'secret agent'})
    line = next(line for line in reversed(lines(own, 'find-me')) if line['request_id'] == 'find-me')
    assert (line['event'], line['level'], line['method'], line['route'], line['status']) == ('request', 'info', 'POST', '/v1/predict', 200)
    assert line['pictures'][0]['label'] and 0 < line['pictures'][0]['probability'] <= 1 and line['pictures'][0]['bytes'] == len(samples['coat'])
    assert set(line['stages_ms']) == {'read', 'admit', 'queue', 'decode', 'infer', 'encode'} and line['ms'] > 0
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT[\d:.]+Z', line['timestamp'])


def test_nothing_of_a_picture_is_logged(own, samples):
    form = b'--cut\r\nContent-Disposition: form-data; name="file"; filename="holiday-in-rome.png"\r\n\r\n' + samples['bag'] + b'\r\n--cut--\r\n'
    assert ask(own.url, form, **{'Content-Type': 'multipart/form-data; boundary=cut', 'X-Request-Id': 'form'})[0] == 200
    ask(own.url, b'--cut\r\nContent-Disposition: form-data; name="holiday"; filename="holiday-in-rome.png"\r\n\r\nx\r\n--cut--\r\n',
        **{'Content-Type': 'multipart/form-data; boundary=cut', 'X-Request-Id': 'bad-form'})
    found = lines(own, 'form', 'bad-form')
    assert {'form', 'bad-form'} <= {line['request_id'] for line in found}
    assert 'holiday' not in json.dumps(found) and '127.0.0.1' not in json.dumps(found)


def test_fewer_lines_if_asked(started, models_dir, samples):
    with started('--port', '0', '--models_dir', str(models_dir), FASHION_LOG_SHARE='0', FASHION_DEADLINE='30') as service:
        for _ in range(5): ask(service.url, samples['bag'])
        assert read(service.url)['fashion_requests_total', 'POST', '/v1/predict', '200'] == 5 and not lines(service)


def test_warnings_are_lines_of_the_same_kind():
    code = """
import logging
from fashion_serve.logs import log_in_json
log_in_json()
log = logging.getLogger('fashion_serve')
log.warning('%s.onnx was exchanged', 'bag')
try: 1/0
except ZeroDivisionError: log.exception('that failed')
logging.getLogger('uvicorn.error').warning('Invalid HTTP request received.')
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    first, second, third = map(json.loads, done.stdout.splitlines())
    assert (first['event'], first['level']) == ('bag.onnx was exchanged', 'warning') and first['timestamp'].endswith('Z')
    assert second['level'] == 'error' and 'ZeroDivisionError' in second['exception'] and third['event'].startswith('Invalid HTTP')
