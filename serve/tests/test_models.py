"GET /v1/models and what makes a folder of models good or bad"
import shutil

import pytest
from starlette.testclient import TestClient

from fashion_nbdev.core import LABELS, ConfigError
from fashion_nbdev.image import ImageLimits
from fashion_serve.errors import Problem
from fashion_serve.main import create_app
from fashion_serve.models import find_models, pick_default
from fashion_serve.settings import Settings


def test_list(client):
    body = client.get('/v1/models').json()
    assert body['default'] == 'fashion_mnist' and [m['name'] for m in body['models']] == ['clothing', 'fashion_mnist']
    limits = ImageLimits()
    assert body['limits'] == dict(max_bytes=limits.max_bytes, max_pixels=limits.max_pixels, max_webp_pixels=limits.max_webp_pixels, max_side=limits.max_side)


def test_one(client):
    body = client.get('/v1/models/fashion_mnist').json()
    assert body in client.get('/v1/models').json()['models'] and body['default'] is True and body['provider'] == 'cpu'
    assert body['labels'] == [label._asdict() for label in LABELS['fashion_mnist']]
    assert (body['height'], body['width'], body['channels'], body['resize']) == (28, 28, 1, 'fashion_mnist')


def test_what_is_shipped_runs_in_openvino(running, samples):
    pytest.importorskip('openvino', reason='openvino is not installed: pip install "fashion_nbdev[openvino]"')
    with running(Settings(provider='openvino', deadline=60, workers=1)) as client:
        assert {model['provider'] for model in client.get('/v1/models').json()['models']} == {'openvino'}
        found = client.post('/v1/predict?model=fashion_mnist', content=samples['bag']).json()
    assert found['predictions'][0]['label'] == 'bag' and found['predictions'][0]['probability'] > .9


def test_a_provider_that_is_not_there_is_named(running, models_dir):
    app = create_app(Settings(models_dir=models_dir, provider='tensorrt'))
    with TestClient(app) as client:
        client.portal.call(app.state.engine.settled.wait)
        assert "provider 'tensorrt' is not offered by this installation: choose one of cpu" in client.get('/readyz').json()['detail']


def test_a_model_of_two_classes(running, make_model, tmp_path, samples):
    (tmp_path / 'pair.onnx').write_bytes(make_model('pair', 28, 1, 'fashion_mnist'))
    with running(Settings(models_dir=tmp_path, deadline=60, workers=1)) as client:
        assert len(client.post('/v1/predict', content=samples['bag']).json()['predictions']) == 2
        assert client.post('/v1/predict?top_k=3', content=samples['bag']).json()['code'] == 'invalid_parameter'


def test_no_file_for_a_moment(running, models_dir, tmp_path, samples):
    shutil.copytree(models_dir, tmp_path, dirs_exist_ok=True)
    with running(Settings(models_dir=tmp_path, default_model='fashion_mnist', deadline=60, workers=1)) as client:
        for file in tmp_path.iterdir(): file.unlink()
        with pytest.raises(Problem, match='nothing was changed: no .onnx file'): client.portal.call(client.app.state.engine.registry.reload, 'fashion_mnist')
        assert client.post('/v1/predict', content=samples['bag']).status_code == 200


def test_clothing_is_the_default():
    assert pick_default(['a', 'clothing'], None) == 'clothing'
    assert pick_default(['b', 'c'], None) == 'b'
    assert pick_default(['a', 'clothing'], 'a') == 'a'
    with pytest.raises(ConfigError, match="default_model is 'x': choose one of a, b"): pick_default(['a', 'b'], 'x')


def test_which_files(tmp_path, models_dir):
    with pytest.raises(ConfigError, match='no .onnx file in'): find_models(tmp_path)
    with pytest.raises(ConfigError, match='is not a folder'): find_models(tmp_path / 'nope')
    for name in ('b.onnx', 'a.onnx', '.c-half-written.onnx', 'readme.txt'): (tmp_path / name).touch()
    assert list(find_models(tmp_path)) == ['a', 'b']


def test_a_broken_file_is_named_and_nothing_is_served(tmp_path, models_dir, samples):
    shutil.copytree(models_dir, tmp_path, dirs_exist_ok=True)
    good = (tmp_path / 'clothing.onnx').read_bytes()
    (tmp_path / 'broken.onnx').write_bytes(good[:len(good) // 2])
    app = create_app(Settings(models_dir=tmp_path))
    with TestClient(app) as client:
        client.portal.call(app.state.engine.settled.wait)
        for answer in (client.get('/readyz'), client.post('/v1/predict', content=samples['bag'])):
            assert answer.status_code == 503 and 'broken.onnx' in answer.json()['detail']
        assert client.get('/livez').status_code == 200
