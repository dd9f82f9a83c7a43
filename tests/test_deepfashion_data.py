"DeepFashion from both saved forms, written by Hugging Face's own library with drawn garments in the real schema"
import json
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from fashion_nbdev.config import DataConfig
from fashion_nbdev.core import ConfigError
from fashion_nbdev.data import load_dataset, photo_splits
from fashion_nbdev.files import DataError
from fashion_nbdev.image import read_image
from fashion_nbdev.photos import read_table
from fashion_nbdev.report import fashion_data, validate
from fashion_nbdev.splits import product_leaks
from make_photos import DEEPFASHION, deepfashion_rows, save_parquet, save_to_disk
from PIL import Image
from repository import ROOT, clean_env

SIZES = dict(dataset='deepfashion', verify=False, valid_size=40, test_size=40)


@pytest.fixture(scope='module')
def rows() -> list[dict]:
    return deepfashion_rows()


@pytest.fixture(scope='module')
def sources(rows, tmp_path_factory) -> dict:
    "The same rows in every form that is read"
    from datasets import Dataset, DatasetDict, load_from_disk
    tmp = tmp_path_factory.mktemp('deepfashion')
    saved = save_to_disk(rows, tmp/'saved')
    DatasetDict(train=load_from_disk(saved)).save_to_disk(tmp/'dict')
    save_parquet(rows[:100], tmp/'parts/data/train-00000-of-00002.parquet')
    save_parquet(rows[100:], tmp/'parts/data/train-00001-of-00002.parquet')
    lists = [dict(images=[r['images']], cloth_type=r['cloth_type'], pid=r['pid']) for r in rows]
    Dataset.from_list(lists).save_to_disk(tmp/'lists')
    return dict(saved=saved, dict=tmp/'dict', parquet=save_parquet(rows, tmp/'one.parquet'), parts=tmp/'parts', lists=tmp/'lists')


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('FASHION_CACHE_DIR', str(tmp_path/'cache'))


def test_the_generated_set_is_like_the_real_one(rows, sources):
    from datasets import load_from_disk
    assert len(rows) == 244 and {r['cloth_type'] for r in rows} == set(DEEPFASHION) and len(DEEPFASHION) == 17
    assert min(Counter(r['pid'] for r in rows).values()) >= 2
    real = load_from_disk(sources['saved'])
    assert real.column_names == ['images', 'gender', 'pose', 'cloth_type', 'pid', 'caption', 'mask', 'mask_overlay']
    assert real[0]['images'].size == (96, 128) and real.features['images'].dtype == 'PIL.Image.Image'


@pytest.mark.parametrize('form', ['saved', 'dict', 'parquet', 'parts', 'lists'])
def test_every_form_gives_the_same_photographs(form, rows, sources):
    photos = read_table(sources[form], progress=False)['all']
    assert [(p.label, p.product) for p in photos] == [(r['cloth_type'], r['pid']) for r in rows]
    assert [p.read() for p in photos] == [r['images']['bytes'] for r in rows]
    assert len({p.name for p in photos}) == len(rows)


@pytest.mark.parametrize('form', ['saved', 'parquet'])
def test_photographs_stay_on_disk(form, rows, sources):
    import pyarrow as pa
    read_table(sources[form], progress=False) # Parquet becomes an Arrow file here
    before = pa.total_allocated_bytes()
    photos = read_table(sources[form], progress=False)['all']
    assert pa.total_allocated_bytes() - before < sum(len(r['images']['bytes']) for r in rows)/10
    assert photos[-1].read() == rows[-1]['images']['bytes']


@pytest.mark.parametrize('form', ['saved', 'parts'])
def test_splits_by_product(form, rows, sources):
    data = DataConfig(**SIZES, archive=str(sources[form]), height=48, width=48, train_size=56)
    photos, splits = photo_splits(data, progress=False), load_dataset(data, progress=False)
    assert not any(product_leaks(photos).values())
    assert sum(len(v) for v in photos.values()) == len(rows)
    assert {k: v.images.shape[1:] for k, v in splits.items()} == dict(train=(56, 56, 3), valid=(48, 48, 3), test=(48, 48, 3))
    assert all(set(s.labels.tolist()) == set(range(17)) for s in splits.values())
    for photo, image, label in zip(photos['test'], splits['test'].images, splits['test'].labels):
        assert (image == read_image(photo.read(), 48, 48, 3, 'crop', .875)).all() and DEEPFASHION[label] == photo.label
    report = validate(splits, data, max_imbalance=None)
    assert sum(r['n'] for r in report['splits'].values()) == len(rows)
    again = load_dataset(data, progress=False)
    assert all((again[k].labels == splits[k].labels).all() and (again[k].images == splits[k].images).all() for k in splits)


def test_both_forms_are_split_alike(sources):
    def names(form, seed=42): return {k: [p.name for p in v] for k, v in photo_splits(DataConfig(**SIZES, archive=str(sources[form])), seed, progress=False).items()}
    assert names('saved') == names('parquet') != names('saved', seed=1)


def test_by_image_is_a_leak_and_says_so(sources):
    data = DataConfig(**SIZES, archive=str(sources['saved']), split_by='image')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        leaks = product_leaks(photo_splits(data, progress=False))
    said = [str(w.message) for w in caught if 'training: a leak' in str(w.message)]
    assert said == [f'{leaks[f"train/{k}"]} of 40 {k} photographs show a product that is also in training: a leak, scores on them will be too good' for k in ('valid', 'test')]
    assert min(leaks['train/valid'], leaks['train/test']) > 20
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        photo_splits(replace(data, split_by='product'), progress=False)


def changed(rows, **columns) -> list[dict]:
    "The rows with some cells replaced: column -> {row: value}"
    return [row | {c: cells[i] for c, cells in columns.items() if i in cells} for i, row in enumerate(rows)]


def picture(data: bytes) -> dict: return dict(bytes=data, path='x.jpg')


def wide() -> dict:
    out = BytesIO()
    Image.new('1', (30_001, 1)).save(out, 'PNG')
    return picture(out.getvalue())


@pytest.mark.parametrize('save', [save_to_disk, save_parquet], ids=['saved', 'parquet'])
@pytest.mark.parametrize('cells, words', [
    (dict(cloth_type={0: 'Skrits', 1: 'Skrits', 2: ''}), r'3 of 244 photographs have an unknown class \("Skrits" 2, "" 1\); expected one of Blouses_Shirts, '),
    (dict(cloth_type={7: None}), r'1 of 244 photographs have an unknown class \("" 1\)'),
    (dict(pid={3: None, 5: ''}), r'2 of 244 photographs name no product \(pid\); expected one in each, or data.split_by=image, which is a leak'),
    (dict(images={4: None, 9: None}), '2 of 244 rows have no picture in images'),
    (dict(images={4: picture(b'no picture'), 9: picture(b''), 11: wide()}), r'3 of 244 photographs cannot be read \(000.*; expected whole JPEG'),
], ids=['class', 'no class', 'product', 'empty', 'unreadable'])
def test_what_is_wrong_is_one_line_with_counts(save, cells, words, rows, tmp_path):
    source = save(changed(rows, **cells), tmp_path/'bad.parquet')
    data = DataConfig(**SIZES | dict(valid_size=10, test_size=0), archive=str(source), height=32, width=32)
    with pytest.raises(DataError, match=words) as e:
        splits = photo_splits(data, progress=False)
        from fashion_nbdev.photos import decode_photos
        decode_photos([p for v in splits.values() for p in v], 32, 32, progress=False)
    assert '\n' not in str(e.value)


def test_missing_columns_and_classes(rows, tmp_path):
    for save in (save_to_disk, save_parquet):
        source = save([{k: v for k, v in r.items() if k not in ('pid', 'cloth_type')} for r in rows], tmp_path/save.__name__/'x.parquet')
        with pytest.raises(DataError, match='has no column cloth_type, pid; expected images, cloth_type, pid and found images, gender'):
            photo_splits(DataConfig(**SIZES, archive=str(source)), progress=False)
    source = save_to_disk([r for r in rows if r['cloth_type'] not in ('Suiting', 'Denim')], tmp_path/'fewer')
    with pytest.raises(DataError, match=r'2 of 17 classes have no photograph \(Denim, Suiting\); expected at least one of each'):
        photo_splits(DataConfig(**SIZES, archive=str(source)), progress=False)


def test_a_part_of_the_published_set_is_not_taken_for_it(sources):
    with pytest.raises(DataError, match=r'244 photographs; expected the 40,658 published ones; data.verify=false'):
        photo_splits(DataConfig(dataset='deepfashion', archive=str(sources['saved'])), progress=False)


def test_a_cut_off_file_is_one_line(sources, tmp_path):
    for form, name in (('parquet', 'cut.parquet'), ('saved', 'cut.arrow')):
        source = sources[form] if form == 'parquet' else next(sources[form].glob('*.arrow'))
        (tmp_path/name).write_bytes(source.read_bytes()[:60_000])
        with pytest.raises(DataError, match='cannot be read .*expected a complete Arrow or Parquet file'): read_table(tmp_path/name, progress=False)


# The command

def test_the_command_reports_products(sources, tmp_path, capsys):
    arguments = dict(dataset='deepfashion', archive=str(sources['saved']), unverified=True, valid_size=40, test_size=40)
    report = fashion_data(**arguments, out=str(tmp_path/'report'))
    assert report['products'] == {'train/valid': 0, 'train/test': 0, 'valid/test': 0}
    out = capsys.readouterr().out
    assert '0 photographs of test show a product of train' in out and 'SaffalPoosh/deepFashion-with-masks' in out
    assert sorted(p.name for p in (tmp_path/'report').iterdir()) == ['balance.png', 'report.json'], 'photographs are not copied into a report'
    assert json.loads((tmp_path/'report/report.json').read_text()) == report
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        report = fashion_data(**arguments, split_by='image')
    assert f'{report["products"]["train/test"]} photographs of test show a product of train (a leak)' in capsys.readouterr().out
    with pytest.raises(ConfigError, match="unknown split_by 'pid': choose one of product, image"): fashion_data(**arguments, split_by='pid')


def test_without_the_network_one_line_says_what_to_do(tmp_path):
    env = clean_env(HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path/'hf'), FASHION_DATA_DIR=str(tmp_path), FASHION_CACHE_DIR=str(tmp_path/'cache'))
    code = "import sys; sys.argv = ['fashion_data', '--dataset', 'deepfashion']; from fashion_nbdev.report import fashion_data; fashion_data()"
    script = tmp_path/'fashion_data.py'
    script.write_text(code.replace('; ', '\n'))
    done = subprocess.run([sys.executable, script], env=env | dict(PYTHONPATH=str(ROOT)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == '', done.stderr
    line, = done.stderr.splitlines()
    assert line.startswith('fashion_data: SaffalPoosh/deepFashion-with-masks: cannot be fetched from the Hugging Face hub (')
    assert line.endswith('Or put deepFashion-with-masks into a folder named by FASHION_DATA_DIR, or name where it is in data.archive (--archive)')


def test_it_is_found_in_a_data_folder(rows, tmp_path, monkeypatch):
    save_to_disk(rows, tmp_path/'deepFashion-with-masks')
    monkeypatch.setenv('FASHION_DATA_DIR', str(tmp_path))
    assert sum(map(len, photo_splits(DataConfig(**SIZES), progress=False).values())) == len(rows)


def test_the_labels_of_the_generated_pictures_can_be_learnt(rows):
    "Or else an end-to-end test of training would show nothing: the nearest class mean is far better than chance, which is 1 in 17"
    x = np.stack([read_image(r['images']['bytes'], 16, 16, 3, 'crop', .875) for r in rows]).reshape(len(rows), -1)/255
    y = np.array([DEEPFASHION.index(r['cloth_type']) for r in rows])
    held = np.array([int(r['pid'][-2:]) % 5 == 0 for r in rows])
    means = np.stack([x[~held & (y == c)].mean(0) for c in range(17)])
    assert (((x[held][:, None] - means)**2).sum(2).argmin(1) == y[held]).mean() > .6
