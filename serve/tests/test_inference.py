"The Open Inference Protocol: by hand, and with tritonclient as it is"
import json
import struct

import numpy as np
import pytest

from fashion_nbdev.predict import Predictor

PATH = '/v2/models/fashion_mnist/infer'


@pytest.fixture(scope='module')
def predictor(models_dir) -> Predictor:
    return Predictor.load(models_dir / 'fashion_mnist.onnx')


@pytest.fixture(scope='module')
def images(predictor, samples) -> np.ndarray:
    return np.stack([predictor.prepare(data) for data in samples.values()])


def request_of(images, **more) -> dict:
    return dict(inputs=[dict(name='image', datatype='UINT8', shape=list(images.shape), data=images.ravel().tolist())], **more)


def binary(images, **more) -> tuple[bytes, dict]:
    head = json.dumps(dict(inputs=[dict(name='image', datatype='UINT8', shape=list(images.shape), parameters=dict(binary_data_size=images.size))], **more)).encode()
    return head + images.tobytes(), {'Inference-Header-Content-Length': str(len(head))}


def test_what_there_is(client, predictor):
    assert client.get('/v2').json()['extensions'] == ['binary_tensor_data', 'classification']
    assert client.get('/v2/health/live').json() == {'live': True} and client.get('/v2/health/ready').json() == {'ready': True}
    about = client.get('/v2/models/fashion_mnist').json()
    assert about['inputs'] == [{'name': 'image', 'datatype': 'UINT8', 'shape': [-1, 28, 28, 1]}]
    assert about['outputs'][0] == {'name': 'logits', 'datatype': 'FP32', 'shape': [-1, 10]} and about['versions'] == [predictor.info.version]
    assert client.get(f'/v2/models/fashion_mnist/versions/{predictor.info.version}/ready').status_code == 200
    for path in ('/v2/models/nope', '/v2/models/nope/ready', '/v2/models/fashion_mnist/versions/0'):
        answer = client.get(path)
        assert answer.status_code == 404 and answer.json()['error'] == answer.json()['detail']


def test_json(client, predictor, images):
    body = client.post(PATH, json=request_of(images, id='mine', outputs=[{'name': 'logits'}, {'name': 'probabilities'}])).json()
    assert (body['model_name'], body['model_version'], body['id']) == ('fashion_mnist', predictor.info.version, 'mine')
    found = {o['name']: np.array(o['data'], np.float32).reshape(o['shape']) for o in body['outputs']}
    assert np.array_equal(found['logits'], predictor.logits(images)) and np.allclose(found['probabilities'], predictor.probabilities(images), atol=1e-6)


def test_nested_data(client, images):
    flat = client.post(PATH, json=request_of(images)).json()
    nested = dict(inputs=[dict(name='image', datatype='UINT8', shape=list(images.shape), data=images.tolist())])
    assert client.post(PATH, json=nested).json()['outputs'] == flat['outputs']
    assert client.post(PATH, json=nested | dict(id=None, outputs=None, parameters=None)).json() == flat


def test_all_outputs_that_the_model_has_if_none_is_named(client, images):
    promised = client.get('/v2/models/fashion_mnist').json()['outputs']
    found = client.post(PATH, json=request_of(images)).json()['outputs']
    assert [o['name'] for o in found] == [o['name'] for o in promised] and [o['shape'][1:] for o in found] == [o['shape'][1:] for o in promised]


def test_binary(client, predictor, images):
    body, headers = binary(images, parameters=dict(binary_data_output=True))
    answer = client.post(PATH, content=body, headers=headers)
    size = int(answer.headers['inference-header-content-length'])
    head = json.loads(answer.content[:size])
    assert head['outputs'][0]['parameters'] == {'binary_data_size': images.shape[0] * 40} and answer.headers['content-type'] == 'application/octet-stream'
    logits, probabilities = np.frombuffer(answer.content[size:], np.float32).reshape(2, -1, 10) # all outputs, for none was named
    assert np.array_equal(logits, predictor.logits(images)) and np.allclose(probabilities, predictor.probabilities(images), atol=1e-6)


def test_classification(client, predictor, images):
    outputs = [dict(name='logits', parameters=dict(classification=2))]
    found = client.post(PATH, json=request_of(images, outputs=outputs)).json()['outputs'][0]
    assert (found['datatype'], found['shape']) == ('BYTES', [10, 2])
    top = predictor.predict(images, top_k=2)
    assert [text.split(':')[2] for text in found['data']] == [score.label for p in top for score in p.top]
    outputs[0]['parameters']['binary_data'] = True
    answer = client.post(PATH, json=request_of(images[:1], outputs=outputs))
    tail = answer.content[int(answer.headers['inference-header-content-length']):]
    assert struct.unpack_from('<I', tail)[0] == len(found['data'][0]) and tail[4:4 + len(found['data'][0])].decode() == found['data'][0]


def wrong(**changes) -> dict: return dict(inputs=[dict(name='image', datatype='UINT8', shape=[1, 28, 28, 1], data=[0] * 784) | changes])


@pytest.mark.parametrize(('body', 'words'), [
    (b'', 'not as the protocol'), (b'{}', 'not as the protocol'), (b'[' * 100_000, 'not as the protocol'), ({'inputs': []}, 'one input'), ({'inputs': [1]}, 'not as the protocol'),
    (wrong(name='x'), 'one input, image'), (wrong(datatype='FP32'), 'but must be UINT8'), (wrong(shape=[1, 3, 224, 224]), 'but must be UINT8'), (wrong(shape=[0, 28, 28, 1]), 'but must be UINT8'),
    (wrong(shape=[1000, 28, 28, 1]), 'but must be UINT8'), (wrong(shape=[-1, 28, 28, 1]), 'but must be UINT8'), (wrong(data=[0] * 783), '783 values'), (wrong(data=[300] * 784), 'from 0 to 255'),
    (wrong(data=[-1] * 784), 'from 0 to 255'), (wrong(data=[.5] * 784), 'whole numbers'), (wrong(data=['a'] * 784), 'whole numbers'), (wrong(data=[[1], [2, 3]]), 'one shape'), (wrong(data=None), 'needs data'),
    (wrong(data=[10**30] * 784), 'whole numbers'), (wrong(data=['a' * 900_000] + [0] * 783), 'whole numbers'), (wrong(data=[True] * 784), 'whole numbers'), (wrong(data=[[[]]] * 784), '0 values'), (wrong(data=[1, [2]]), 'one shape'),
    (wrong(datatype='x' * 900_000), "but must be UINT8"), (wrong() | {'outputs': [{'name': 'logits'}] * 5500}, 'more than once'), (wrong(parameters={'binary_data_size': 5}), 'binary_data_size must be'),
    (wrong() | {'outputs': [{'name': 'x'}]}, "no output 'x'"), (wrong() | {'outputs': [{'name': 'logits', 'parameters': {'classification': 'many'}}]}, 'whole number of classes')])
def test_what_is_wrong_is_said(client, body, words):
    answer = client.post(PATH, content=body if isinstance(body, bytes) else json.dumps(body))
    assert (answer.status_code, answer.json()['code']) == (400, 'bad_tensor') and words in answer.json()['error'] and len(answer.content) < 1000, answer.json()


@pytest.mark.parametrize('header', ['-1', 'x', '99999999999999999999', '0' * 4301, ''])
def test_a_lying_header(client, images, header):
    answer = client.post(PATH, content=binary(images)[0], headers={'Inference-Header-Content-Length': header})
    assert (answer.status_code, answer.json()['code']) == (400, 'bad_tensor')


def test_much_json_is_refused_before_it_is_read(client, images):
    body = json.dumps(request_of(images[:1])).encode()
    assert client.post(PATH, content=body.ljust(1_000_000)).status_code == 200
    refused = client.post(PATH, content=body.ljust(1_000_001))
    assert (refused.status_code, refused.json()['code']) == (413, 'too_large') and 'as binary data' in refused.json()['detail']


def test_too_large(client): assert client.post(PATH, content=b' ' * 10_000_001).json()['code'] == 'too_large'


def test_tritonclient_works_as_it_is(service, samples):
    http = pytest.importorskip('tritonclient.http', reason='tritonclient[http] is not installed')
    from urllib.parse import urlsplit
    client, own = http.InferenceServerClient(urlsplit(service.url).netloc), Predictor.load('fashion_mnist')
    images = np.stack([own.prepare(data) for data in samples.values()])
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready('fashion_mnist')
    assert client.get_model_metadata('fashion_mnist')['inputs'][0]['name'] == 'image' and client.get_server_metadata()['name'] == 'fashion_nbdev'
    for as_bytes in (True, False):
        given = http.InferInput('image', images.shape, 'UINT8')
        given.set_data_from_numpy(images, binary_data=as_bytes)
        outputs = [http.InferRequestedOutput('logits', binary_data=as_bytes), http.InferRequestedOutput('probabilities', binary_data=as_bytes, class_count=1)]
        found = client.infer('fashion_mnist', [given], outputs=outputs, request_id='7')
        assert np.allclose(found.as_numpy('logits'), own.logits(images)) and found.get_response()['id'] == '7'
        labels = [text.decode().split(':')[2] if isinstance(text, bytes) else text.split(':')[2] for text in found.as_numpy('probabilities').ravel()]
        assert labels == [p.top[0].label for p in own.predict(images)]
    with pytest.raises(Exception, match='there is no model'): client.infer('nope', [given])
