"POST /v1/predict/batch: a line for each picture, in order, the same as alone"
import asyncio
import io
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from PIL import Image

from fashion_serve.admission import Lane
from fashion_serve.answers import NDJSON
from fashion_serve.errors import PROBLEMS
from fashion_serve.settings import Settings


def send(client, files: list[bytes], query: str = '', **more):
    return client.post(f'/v1/predict/batch{query}', files=[('file', (f'{i}.png', data)) for i, data in enumerate(files)], **more)


def lines(answer) -> list[dict]:
    assert answer.status_code == 200 and answer.headers['content-type'] == 'application/x-ndjson'
    return [json.loads(line) for line in answer.text.splitlines()]


def alone(client, data: bytes, query: str = '') -> dict: return client.post(f'/v1/predict{query}', content=data).json()


def test_the_same_as_alone_in_order(client, samples):
    files = [*samples.values()] * 3
    found = lines(send(client, files, '?top_k=10'))
    assert [line['index'] for line in found] == list(range(30))
    for line, data in zip(found, files):
        assert {k: line[k] for k in ('model', 'version', 'predictions')} == {k: alone(client, data, '?top_k=10')[k] for k in ('model', 'version', 'predictions')}
        assert set(line) == {'index', 'model', 'version', 'predictions', 'timing_ms'} and set(line['timing_ms']) == {'queue', 'decode', 'infer'}


def test_a_bad_picture_costs_the_others_nothing(client, samples):
    good = samples['bag']
    found = lines(send(client, [b'', good, b'no picture', good[:80], good]))
    assert [line.get('problem', {}).get('code') for line in found] == ['empty', None, 'unsupported_format', 'corrupt', None]
    for line in found:
        if 'problem' in line: assert set(line) == {'index', 'problem'} and line['problem']['status'] == PROBLEMS[line['problem']['code']].status
        else: assert line['predictions'][0]['label'] == 'bag'


def test_all_of_them_bad(client):
    counted = lambda: sum(float(line.split()[-1]) for line in client.get('/metrics').text.splitlines() if line.startswith('fashion_problems_total{code="unsupported_format"}'))
    before = counted()
    assert [line['problem']['code'] for line in lines(send(client, [b'x'] * 9))] == ['unsupported_format'] * 9
    assert counted() == before + 9


def test_a_large_picture_that_has_to_wait_is_in_nobodys_way(client, samples):
    Image.new('RGB', (5000, 4990), 'white').save(large := io.BytesIO(), 'PNG')
    with ThreadPoolExecutor(1) as pool, client.app.state.board.alone(): # another worker decodes one
        waiting = pool.submit(send, client, [large.getvalue()])
        assert [send(client, [samples['bag']]).status_code, client.post('/v1/predict', content=samples['bag']).status_code] == [200, 200] and not waiting.done()
    assert lines(waiting.result())[0]['predictions']


def test_language_and_model(client, samples, png):
    assert lines(send(client, [samples['bag']], '?lang=ru&top_k=1'))[0]['predictions'][0]['name'] == 'Сумка'
    assert lines(send(client, [png()], '?model=clothing'))[0]['model'] == 'clothing'
    assert send(client, [png()], '?model=nope').json()['code'] == 'unknown_model'
    assert send(client, [png()], '?top_k=99').json()['code'] == 'invalid_parameter'


def test_only_forms(client, samples):
    assert client.post('/v1/predict/batch', content=samples['bag']).json()['code'] == 'bad_multipart'
    assert client.post('/v1/predict/batch', files={'other': b'x'}).json()['code'] == 'missing_file'
    assert 'several fields' in client.post('/v1/predict/batch', files=[('other', b'x'), ('file', samples['bag'])]).json()['detail']


@pytest.mark.parametrize('path', ['predict', 'predict/batch'])
def test_a_form_that_ends_early_loses_nothing_silently(client, samples, path):
    def form(*ends): return b''.join(b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + samples['bag'] + end for end in ends)
    def ask(body): return client.post(f'/v1/{path}', content=body, headers={'Content-Type': 'multipart/form-data; boundary=cut'})
    assert ask(form(b'\r\n--cut--\r\n')).status_code == 200
    for body in (form(b''), form(b'\r\n'), form(b'\r\n--cut'), form(b'\r\n', b'') if 'batch' in path else form(b'\r\n--cu')):
        assert (said := ask(body).json())['code'] == 'bad_multipart' and 'last boundary' in said['detail']


@pytest.fixture(scope='module')
def small(running, models_dir):
    with running(Settings(models_dir=models_dir, default_model='fashion_mnist', max_batch=4, max_batch_bytes=100_000, batch_deadline=.05)) as client: yield client


def test_its_limits(small, samples):
    assert len(lines(send(small, [samples['bag']] * 4))) == 4
    assert send(small, [samples['bag']] * 5).json()['code'] == 'bad_multipart'
    assert send(small, [b'x' * 60_000] * 4).json()['code'] == 'too_large'


def test_what_would_take_too_long_is_refused_as_a_whole(small, png):
    queue = small.app.state.engine.queue
    queue.seconds[Lane.BATCH] = 10.0 # as if another batch were waiting
    try: answer = send(small, [png()])
    finally: queue.seconds[Lane.BATCH] = 0.0
    assert (answer.status_code, answer.json()['code']) == (429, 'overloaded') and int(answer.headers['retry-after']) > 5


def test_nothing_is_kept_for_a_client_that_has_left():
    ended = []
    async def lines(): yield b'{}'
    async def receive(): return dict(type='http.disconnect')
    async def send(message): raise OSError
    for scope in (dict(type='http', asgi=dict(spec_version='2.3')), dict(type='http', asgi=dict(spec_version='2.4'))):
        with suppress(Exception): asyncio.run(NDJSON(lines(), at_end=lambda: ended.append(1))(scope, receive, send))
    assert ended == [1, 1]


def test_people_are_answered_while_batches_run(client, samples):
    with ThreadPoolExecutor(3) as pool:
        batches = [pool.submit(send, client, [*samples.values()] * 6) for _ in range(2)]
        people = [client.post('/v1/predict', content=samples['coat']) for _ in range(20)]
        assert all(len(lines(b.result())) == 60 for b in batches)
    assert {a.status_code for a in people} == {200}
