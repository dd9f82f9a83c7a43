"GET /livez and /readyz, the headers, OpenAPI, and the page's files"
import re

import pytest
from starlette.testclient import TestClient

from fashion_serve.errors import PROBLEMS
from fashion_serve.main import create_app
from fashion_serve.routes import PAGE


def test_not_ready_until_models_are_loaded(settings, samples):
    client = TestClient(create_app(settings)) # its lifespan has not begun
    assert client.get('/livez').json() == {'status': 'ok'}
    for answer in (client.get('/readyz'), client.get('/v1/models'), client.post('/v1/predict', content=samples['bag'])):
        assert answer.status_code == 503 and answer.json()['code'] == 'not_ready' and answer.headers['retry-after'] == '1'
    assert client.get('/').status_code == 200


def test_ready_and_no_more_when_stopped(running, settings):
    with running(settings) as client:
        assert client.get('/readyz').json() == {'status': 'ready'}
    assert client.get('/readyz').status_code == 503


def test_head(client):
    for path in '/livez', '/readyz':
        answer = client.head(path)
        assert answer.status_code == 200 and not answer.content


@pytest.mark.parametrize('path', ['/', '/page/page.js'])
@pytest.mark.parametrize('asked', ['bytes=0-3', 'bytes=99999999-', 'bytes=5-1', 'lines=1', 'bytes=' + '0-1,' * 1000, ''])
def test_range_is_ignored(client, path, asked):
    answer = client.get(path, headers={'Range': asked})
    assert answer.status_code == 200 and answer.content == client.get(path).content


@pytest.mark.parametrize('path', ['/', '/page/page.js', '/v1/models', '/livez', '/nope', '/openapi.json'])
def test_security_headers(client, path):
    headers = client.get(path).headers
    policy = headers['content-security-policy']
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and 'unsafe' not in policy and 'http' not in policy
    assert headers['x-content-type-options'] == 'nosniff' and headers['referrer-policy'] == 'no-referrer'
    assert headers['cache-control'] == ('no-store' if path.startswith('/v1/') else 'no-cache') and headers['x-request-id']
    assert not any(name.startswith('access-control') for name in headers)


def test_openapi_is_complete(client):
    doc = client.get('/openapi.json').json()
    predict = doc['paths']['/v1/predict']['post']
    assert set(predict['requestBody']['content']) == {'image/*', 'application/octet-stream', 'multipart/form-data'}
    assert {p['name'] for p in predict['parameters']} == {'model', 'top_k', 'lang'}
    assert {'200', '400', '401', '404', '408', '413', '415', '422', '429', '431', '500', '503'} == set(predict['responses'])
    for path in doc['paths'].values():
        for route in path.values():
            for status, answer in route['responses'].items():
                if status[0] in '45': assert set(answer['content']) == {'application/problem+json'}, route
    schemas = doc['components']['schemas']
    line = doc['paths']['/v1/predict/batch']['post']['responses']['200']['content']['application/x-ndjson']['schema']
    assert line == {'$ref': '#/components/schemas/BatchLine'} and {'index', 'predictions', 'problem'} <= set(schemas['BatchLine']['properties'])
    assert set(schemas['ProblemOut']['properties']['code']['enum']) == set(PROBLEMS) and 'HTTPValidationError' not in schemas
    for ref in re.findall(r'#/components/schemas/(\w+)', client.get('/openapi.json').text): assert ref in schemas


def test_page_needs_nobody_else(client):
    for file in PAGE.rglob('*.*'):
        if file.suffix not in ('.html', '.css', '.js', '.svg'): continue
        text = file.read_text(encoding='utf-8').replace('http://www.w3.org/2000/svg', '')
        assert not re.search(r'https?://|//cdn|@import|url\(', text), file
    html = client.get('/').text
    assert not re.search(r'<script(?![^>]*\bsrc=)|<style|\bstyle=|\son\w+=', html)
    for path in re.findall(r'(?:src|href)="([^"]+)"', html): assert client.get('/' + path).status_code == 200, path
    assert client.head('/').status_code == 200


def test_samples_are_the_slice(samples):
    "The page's pictures can be made again from the data"
    import importlib.util
    import io

    import numpy as np
    from PIL import Image
    spec = importlib.util.spec_from_file_location('page_samples', PAGE.parents[1] / 'page_samples.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for label, image in module.most_typical().items(): assert np.array_equal(np.asarray(Image.open(io.BytesIO(samples[label]))), image), label
    assert 'MIT' in (PAGE / 'samples/LICENSE.txt').read_text()
