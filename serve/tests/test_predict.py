"POST /v1/predict"
import gzip
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from fashion_nbdev.core import LABELS
from fashion_nbdev.predict import Predictor


def labels_of(answer): return [p['label'] for p in answer.json()['predictions']]


def test_answer_is_the_contract(client, samples):
    answer = client.post('/v1/predict', content=samples['trouser'], headers={'Content-Type': 'image/png'})
    assert answer.status_code == 200 and answer.headers['content-type'] == 'application/json'
    body = answer.json()
    assert set(body) == {'request_id', 'model', 'version', 'predictions', 'timing_ms'}
    assert body['model'] == 'fashion_mnist' and re.fullmatch('[0-9a-f]{12}', body['version'])
    assert [set(p) for p in body['predictions']] == [{'label', 'name', 'probability'}] * 3
    chances = [p['probability'] for p in body['predictions']]
    assert chances == sorted(chances, reverse=True) and 0 < sum(chances) <= 1
    assert body['predictions'][0]['name'] == 'Trouser'
    times = body['timing_ms']
    assert set(times) == {'read', 'queue', 'decode', 'infer', 'total'} and all(t >= 0 for t in times.values())
    assert times['total'] >= times['decode'] + times['infer'] - .01


def test_same_as_predictor(client, samples, models_dir):
    predictor = Predictor.load(models_dir / 'fashion_mnist.onnx')
    for png in samples.values():
        expected = predictor.predict(png, top_k=10).top
        body = client.post('/v1/predict?top_k=10', content=png).json()
        assert [(p['label'], p['name'], p['probability']) for p in body['predictions']] == [tuple(s) for s in expected]


def test_samples_are_recognised(client, samples):
    right = sum(labels_of(client.post('/v1/predict', content=png))[0] == label for label, png in samples.items())
    assert right >= 7, right


@pytest.mark.parametrize('kind', ['image/png', 'image/jpeg', 'image/anything', 'application/octet-stream', 'text/plain',
                                  'application/x-www-form-urlencoded', 'nonsense', ''])
def test_content_decides_not_the_header(client, samples, kind):
    answer = client.post('/v1/predict', content=samples['bag'], headers={'Content-Type': kind})
    assert answer.status_code == 200 and labels_of(answer)[0] == 'bag'


def test_multipart_is_the_same(client, samples):
    raw = client.post('/v1/predict', content=samples['bag']).json()
    form = client.post('/v1/predict', files={'file': ('любой name.txt', samples['bag'], 'text/plain')}, data={'note': 'x'}).json()
    assert form['predictions'] == raw['predictions']


def test_chunked_body(client, samples):
    png = samples['bag']
    answer = client.post('/v1/predict', content=(png[i:i + 7] for i in range(0, len(png), 7)))
    assert labels_of(answer)[0] == 'bag'


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP', 'GIF', 'BMP'])
@pytest.mark.parametrize('model', ['fashion_mnist', 'clothing'])
def test_every_format(client, png, format, model):
    answer = client.post(f'/v1/predict?model={model}', content=png(format=format))
    assert answer.status_code == 200 and answer.json()['model'] == model


@pytest.mark.parametrize('mode, format', [('L', 'PNG'), ('P', 'PNG'), ('RGBA', 'PNG'), ('I;16', 'PNG'), ('1', 'PNG'), ('CMYK', 'JPEG'), ('L', 'JPEG')])
def test_every_mode(client, png, mode, format):
    assert client.post('/v1/predict?model=clothing', content=png(mode=mode, format=format)).status_code == 200


def test_top_k(client, samples):
    for k in (1, 5, 10): assert len(labels_of(client.post(f'/v1/predict?top_k={k}', content=samples['bag']))) == k


def test_russian_names(client, samples):
    ru = client.post('/v1/predict?lang=ru&top_k=10', content=samples['bag']).json()['predictions']
    assert {(p['label'], p['name']) for p in ru} == {(label.key, label.ru) for label in LABELS['fashion_mnist']}


def test_concurrent_answers_are_those_given_alone(client, samples, png):
    pictures = [*samples.values(), *(png(40 + i, 90 - i) for i in range(10))]
    ask = lambda data: client.post('/v1/predict?top_k=10', content=data).json()['predictions']
    alone = [ask(p) for p in pictures]
    with ThreadPoolExecutor(16) as pool: together = list(pool.map(ask, pictures * 5))
    assert together == alone * 5


@pytest.mark.parametrize('given, kept', [('abc-1.2:3_Z', True), ('x' * 64, True), ('x' * 65, False), ('a b', False), ('<b>', False), ('', False)])
def test_request_id(client, samples, given, kept):
    answer = client.post('/v1/predict', content=samples['bag'], headers={'X-Request-ID': given})
    found = answer.headers['x-request-id']
    assert answer.json()['request_id'] == found and (found == given) is kept
    if not kept: assert re.fullmatch('[0-9a-f]{32}', found)


@pytest.mark.parametrize('field', ['model', 'top_k', 'lang'])
def test_what_belongs_into_the_address_is_not_lost_in_a_form(client, samples, field):
    for path in ('predict', 'predict/batch'):
        said = client.post(f'/v1/{path}', files={'file': samples['bag']}, data={field: 'ru'}).json()
        assert said['code'] == 'bad_multipart' and f'?{field}=' in said['detail'], said


def test_usual_mistakes_of_curl_are_named(client, samples, png):
    said = client.post('/v1/predict', content=png(100, 100, format='JPEG').replace(b'\n', b'')[:300], headers={'Content-Type': 'application/x-www-form-urlencoded'}).json()
    assert said['code'] == 'corrupt' and '--data-binary' in said['detail'], said
    said = client.post('/v1/predict', content=gzip.compress(samples['bag']), headers={'Content-Encoding': 'gzip'}).json()
    assert said['code'] == 'unsupported_format' and 'gzip' in said['detail'], said
