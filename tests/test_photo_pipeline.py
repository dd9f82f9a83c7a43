"Photographs from a table or a folder to a served answer: every step as a user runs it, on drawn garments"
from pathlib import Path

import pytest
import yaml
from fashion_nbdev.export import fashion_evaluate, fashion_export
from fashion_nbdev.improvements import fashion_train
from fashion_nbdev.predict import Predictor
from fashion_nbdev.results import read_results
from make_photos import DEEPFASHION, deepfashion_rows, draw, make_folders, save_parquet, save_to_disk

KEYS = ['apron', 'boot', 'cape']


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('FASHION_CACHE_DIR', str(tmp_path/'cache'))
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)


def table(save) -> dict:
    rows = deepfashion_rows()
    assert len(rows) >= 200
    return dict(dataset='deepfashion', archive=str(save(rows)), verify=False, valid_size=40, test_size=40)


def folders() -> dict:
    return dict(dataset='folder', archive=str(make_folders(Path('own'), KEYS, {'': 60})), labels=KEYS, valid_size=30, test_size=30)


SOURCES = {
    'saved to disk': (lambda: table(lambda rows: save_to_disk(rows, Path('saved'))), DEEPFASHION, 0.3),
    'Parquet': (lambda: table(lambda rows: save_parquet(rows, Path('rows.parquet'))), DEEPFASHION, 0.3),
    'a folder per class': (folders, KEYS, 0.6),
}


@pytest.mark.parametrize('source', SOURCES)
def test_from_photographs_to_answers(source, tmp_path):
    make, keys, least = SOURCES[source]
    config = dict(name='drawn', data=dict(make(), height=48, width=48, train_size=64), model=dict(arch='simple_cnn'), augment=dict(flip=True, min_area=0.7),
        train=dict(epochs=12, batch_size=16, optimizer='adamw', lr=0.01), export=dict(calibration_images=48, max_loss=0.1))
    Path('drawn.yaml').write_text(yaml.safe_dump(config))
    run = fashion_train('drawn.yaml', run='one', verbose=True)
    model = tmp_path/'drawn.onnx'
    fashion_export(str(run), out=str(model), results='export.json')
    predictor = Predictor.load(model)
    assert [label.key for label in predictor.info.labels] == keys
    right = sum(predictor.predict(draw(i, 7_000_000 + i)).top[0].label == key for i, key in enumerate(keys))
    assert right >= least*len(keys)/2, f'{right} of {len(keys)} pictures it never saw'
    scores = fashion_evaluate(str(model), config='drawn.yaml', out='scores.json', quick=True)
    assert scores['accuracy'] > least and read_results('scores.json')[0]['accuracy'] == pytest.approx(scores['accuracy'], abs=1e-5)
    assert read_results(run/'metrics.json')[0]['valid_accuracy'] > least
