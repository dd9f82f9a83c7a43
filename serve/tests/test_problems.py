"Everything that goes wrong ends as a problem (RFC 9457) with a stable code, never as a 5xx"
import asyncio
import io
import struct
import time
import zipfile
import zlib

import pytest

from fashion_nbdev.image import IMAGE_ERRORS
from fashion_serve.engine import Engine
from fashion_serve.errors import PROBLEMS
from fashion_serve.main import create_app
from fashion_serve.settings import Settings


def check(answer, code):
    "The answer is this problem, completely"
    body = answer.json()
    assert (answer.status_code, body['code']) == (PROBLEMS[code].status, code), body
    assert answer.headers['content-type'] == 'application/problem+json'
    assert set(body) == {'type', 'title', 'status', 'detail', 'code', 'request_id'}
    assert body['type'] == f'/problems/{code}' and body['title'] == PROBLEMS[code].title and body['status'] == answer.status_code
    assert body['detail'] and '\n' not in body['detail'] and 'Traceback' not in body['detail'] and len(body['detail']) < 300
    assert body['request_id'] == answer.headers['x-request-id']
    return body


def soon(client, path: str, **body):
    "The answer to a small file, which takes no more than two seconds however bad it is"
    begun = time.perf_counter()
    answer = client.post(path, **body)
    assert time.perf_counter() - begun <= 2
    return answer


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png_of(width, height, body=b'\0'):
    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(body)) + chunk(b'IEND', b'')


def zip_file():
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z: z.writestr('a.txt', 'hello')
    return out.getvalue()


VP8L_BOMB = b'RIFF' + struct.pack('<I', 28) + b'WEBPVP8L' + struct.pack('<I', 16) + b'\x2f\xff\xff\xff\x0f' + b'\0' * 11
BAD = { # name -> (bytes, code, or codes of which any will do)
    'empty': (b'', 'empty'),
    'one_byte': (b'\xff', 'unsupported_format'),
    'text': (b'hello, I am no picture' * 20, 'unsupported_format'),
    'html': (b'<!doctype html><p>404', 'unsupported_format'),
    'json': (b'{"image": "aGVsbG8="}', 'unsupported_format'),
    'zeros': (bytes(5000), 'unsupported_format'),
    'svg': (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', 'unsupported_format'),
    'pdf': (b'%PDF-1.7\n%\xe2\xe3\xcf\xd3\n', 'unsupported_format'),
    'eps': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n', 'unsupported_format'),
    'tiff': (b'II*\0\x08\0\0\0' + bytes(100), 'unsupported_format'),
    'psd': (b'8BPS\0\1' + bytes(100), 'unsupported_format'),
    'zip': (zip_file(), 'unsupported_format'),
    'pickle': (b'\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.', 'unsupported_format'),
    'huge_header': (png_of(60_000, 60_000), ('too_many_pixels', 'side_too_long')),
    'many_pixels': (png_of(11_000, 11_000), 'too_many_pixels'),
    'long_side': (png_of(20_000, 1), 'side_too_long'),
    'zero_size': (png_of(0, 0), ('corrupt', 'empty')),
    'few_pixels': (png_of(100, 100), 'corrupt'),
    'webp_bomb': (VP8L_BOMB, ('too_many_pixels', 'side_too_long')),
    'png_magic_only': (b'\x89PNG\r\n\x1a\n', 'corrupt'),
    'jpeg_magic_only': (b'\xff\xd8\xff\xe0', 'corrupt'),
    'gif_magic_only': (b'GIF89a', 'corrupt'),
    'arithmetic_jpeg': (b'\xff\xd8\xff\xca\0\x0b\x08\x13\x88\x13\x88\1\1\x11\0\xff\xda\0\2', 'unsupported_format'),
    'scans_times_pixels': (b'\xff\xd8\xff\xc2\0\x0b\x08\x13\x88\x13\x88\1\1\x11\0' + b'\xff\xda\0\2' * 21, 'too_many_scans'),
    'bmp_magic_only': (b'BM', ('corrupt', 'unsupported_format')),
}


@pytest.mark.parametrize('name', BAD)
@pytest.mark.parametrize('way', ['raw', 'form'])
def test_bad_picture(client, name, way):
    data, codes = BAD[name]
    answer = soon(client, '/v1/predict', **({'content': data} if way == 'raw' else {'files': {'file': ('a.png', data)}}))
    codes = (codes,) if isinstance(codes, str) else codes
    assert answer.json()['code'] in codes, answer.json()
    check(answer, answer.json()['code'])


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP', 'GIF', 'BMP'])
def test_truncated_anywhere(client, png, format):
    whole = png(format=format)
    for part in (.02, .1, .3, .5, .8, .95):
        answer = soon(client, '/v1/predict?model=clothing', content=whole[:int(len(whole) * part)])
        if answer.status_code != 200: check(answer, answer.json()['code'])
        assert answer.status_code < 500
        if part <= .5: assert answer.status_code in (400, 415, 422), part


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP', 'GIF', 'BMP'])
def test_random_damage_never_hurts(client, png, format):
    import random
    rng, whole = random.Random(42), png(format=format)
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 30)): data[rng.randrange(len(data))] = rng.randrange(256)
        answer = soon(client, '/v1/predict?model=clothing', content=bytes(data))
        assert answer.status_code in (200, 413, 415, 422), answer.text


# ---- size
@pytest.fixture(scope='module')
def small(running, models_dir):
    "An app that takes at most 20,000 bytes"
    with running(Settings(models_dir=models_dir, max_bytes=20_000)) as client: yield client


def test_size_is_declared(small): check(small.post('/v1/predict', content=b'x' * 20_001), 'too_large')
def test_size_of_form(small): check(small.post('/v1/predict', files={'file': b'x' * 200_000}), 'too_large')
def test_size_of_file_in_form(small): check(small.post('/v1/predict', files={'file': b'x' * 20_001}), 'too_large')


@pytest.mark.parametrize('head', ['image/png', 'multipart/form-data; boundary=a'])
def test_reading_stops_at_the_limit(settings, head):
    "A body without a length that never ends"
    chunks = []
    async def receive():
        chunks.append(FORM.removesuffix(b'x\r\n--a--\r\n') if not chunks else b'x' * 1000)
        return {'type': 'http.request', 'body': chunks[-1], 'more_body': True}
    sent = by_hand(Settings(models_dir=settings.models_dir, max_bytes=20_000), receive, [(b'content-type', head.encode())])
    assert sent[0]['status'] == PROBLEMS['too_large'].status and b'"too_large"' in sent[1]['body']
    assert 20 < len(chunks) < 100


@pytest.mark.parametrize('length', ['-1', '1e3', 'ten', '٣', '+5', ''])
def test_bad_length(client, length):
    check(client.post('/v1/predict', content=b'x', headers={'Content-Length': length.encode()}), 'bad_length')


# ---- forms
def test_form_without_file(client):
    check(client.post('/v1/predict', files={'picture': b'x'}), 'missing_file')
    check(client.post('/v1/predict', files={'file': (None, b'just text')}), 'missing_file')


def test_form_with_two_files(client, samples):
    png = samples['bag']
    check(client.post('/v1/predict', files=[('file', png), ('file', png)]), 'bad_multipart')


def test_form_with_many_fields(client, samples):
    fields = [(f'f{i}', (None, b'x')) for i in range(50)]
    check(client.post('/v1/predict', files=[*fields, ('file', samples['bag'])]), 'bad_multipart')


FORM = b'--a\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\nx\r\n--a--\r\n'


@pytest.mark.parametrize('head, body', [
    ('multipart/form-data', b'x'), ('multipart/form-data; boundary=', b'x'), ('multipart/form-data; boundary=a', b'x'),
    ('multipart/form-data; boundary=a', b'--a\r\n\r\nx\r\n--a--\r\n'), ('multipart/form-data; boundary=a', b'--a\r\nContent-Disposition: form-data\r\n\r\nx\r\n--a--\r\n'),
    ('multipart/form-data; boundary=a; charset=undefined', FORM),
    ('multipart/form-data; boundary=' + 'a' * 1000, b'--a\r\n'), ('multipart/form-data; boundary=a', b''),
])
def test_broken_form(client, head, body):
    answer = client.post('/v1/predict', content=body, headers={'Content-Type': head})
    assert answer.json()['code'] in ('bad_multipart', 'missing_file')
    check(answer, answer.json()['code'])


def by_hand(settings, receive, headers) -> list[dict]:
    "What the app answers to messages one by one: the client in this process always sends whole bodies"
    sent = []
    async def send(message): sent.append(message)
    async def ask():
        app = create_app(settings)
        await app.state.engine.start()
        await app(dict(type='http', method='POST', path='/v1/predict', raw_path=b'/v1/predict', query_string=b'', http_version='1.1', scheme='http', headers=headers), receive, send)
        app.state.engine.stop()
    asyncio.run(asyncio.wait_for(ask(), 30))
    return sent


# ---- time
@pytest.mark.parametrize('head', ['image/png', 'multipart/form-data; boundary=a'])
def test_stalled_body(settings, head):
    "A body of which the rest never comes"
    chunks = [{'type': 'http.request', 'body': FORM[:60], 'more_body': True}]
    async def receive(): return chunks.pop() if chunks else await asyncio.Event().wait()
    sent = by_hand(Settings(models_dir=settings.models_dir, read_timeout=.05), receive, [(b'content-type', head.encode()), (b'content-length', b'5000')])
    assert sent[0]['status'] == PROBLEMS['incomplete_body'].status and (b'connection', b'close') in sent[0]['headers']
    assert b'"incomplete_body"' in sent[1]['body'] and b'0.05 seconds' in sent[1]['body']


# ---- parameters
@pytest.mark.parametrize('query, words', [
    ('top_k=0', 'top_k'), ('top_k=-1', 'top_k'), ('top_k=11', '1 to 10'), ('top_k=many', 'top_k'), ('top_k=1.5', 'top_k'),
    ('top_k=', 'top_k'), ('top_k=999999999999999999999', 'top_k'), ('lang=de', "'en' or 'ru'"), ('lang=', 'lang'), ('topk=3', 'topk'),
])
def test_bad_parameter(client, samples, query, words):
    body = check(client.post(f'/v1/predict?{query}', content=samples['bag']), 'invalid_parameter')
    assert words in body['detail']


@pytest.mark.parametrize('name', ['nope', '../models', 'x' * 5000, 'ё', '%00'])
def test_unknown_model(client, samples, name):
    for answer in (client.post(f'/v1/predict?model={name}', content=samples['bag']), client.get(f'/v1/models/{name.replace("/", "%2F")}')):
        if answer.json()['code'] == 'not_found': continue # the address itself does not exist
        assert 'clothing, fashion_mnist' in check(answer, 'unknown_model')['detail']


def test_long_parameter_is_shortened(client, samples):
    check(client.post(f'/v1/predict?{"x" * 5000}=1', content=samples['bag']), 'invalid_parameter')


# ---- addresses
@pytest.mark.parametrize('path', ['/nope', '/v1', '/v1/predict/', '/page/', '/page/../main.py', '/page/%2e%2e/main.py', '/docs', '/problems/nope'])
def test_not_found(client, path): check(client.get(path), 'not_found')


@pytest.mark.parametrize('method, path', [('GET', '/v1/predict'), ('PUT', '/v1/predict'), ('DELETE', '/v1/models'), ('POST', '/'), ('POST', '/page/page.js')])
def test_method_not_allowed(client, method, path):
    answer = client.request(method, path)
    check(answer, 'method_not_allowed')


def test_every_kind_is_described(client):
    for kind in client.get('/problems').json():
        assert client.get(f'/problems/{kind["code"]}').json() == kind
        assert 400 <= kind['status'] < 600 and kind['title']


def test_every_image_error_has_its_kind():
    assert set(IMAGE_ERRORS) - {'not_bytes', 'bad_array'} <= set(PROBLEMS) # those two are about Python objects, not files


# ---- our own mistakes
def test_a_mistake_of_ours_shows_nothing(client, samples, monkeypatch):
    def fail(*args): raise RuntimeError('secret words')
    monkeypatch.setattr(Engine, 'submit', fail)
    answer = client.post('/v1/predict', content=samples['bag'])
    assert 'secret' not in answer.text and 'nosniff' in answer.headers['x-content-type-options']
    check(answer, 'internal_error')
