"Photographs: hostile and damaged archives, splits by product, and a cache that nothing can leave half-written"
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
from collections import Counter
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fashion_nbdev.config import DataConfig
from fashion_nbdev.data import DATASETS, find_data, listing, load_dataset, locate, photo_splits
from fashion_nbdev.files import DataError
from fashion_nbdev.formats import OWN_FILES
from fashion_nbdev.image import read_image
from fashion_nbdev.photos import Photo, decode_photos, read_folders
from fashion_nbdev.splits import product_leaks, split_products
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from make_photos import CLOTHING, draw, make_folders
from repository import ROOT, clean_env

FUZZ = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
PICTURES = {f'{split}/{key}/{i}.jpg': draw(k, i, (24, 32)) for split in ('train', 'test') for k, key in enumerate(('hat', 'shoes')) for i in range(3)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('FASHION_CACHE_DIR', str(tmp_path/'cache'))


def zipped(files: dict, compression=zipfile.ZIP_DEFLATED) -> bytes:
    out = BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, 'w', compression) as z:
        warnings.simplefilter('ignore') # two files of one name
        for name, data in files.items(): z.writestr(name, data)
    return out.getvalue()


def tarred(files: dict, mode: str = 'w') -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as t:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, BytesIO(data))
    return out.getvalue()


# Archives

ARCHIVES = {'a.zip': zipped(PICTURES), 'stored.zip': zipped(PICTURES, zipfile.ZIP_STORED), 'lzma.zip': zipped(PICTURES, zipfile.ZIP_LZMA),
            'bz2.zip': zipped(PICTURES, zipfile.ZIP_BZIP2), 'a.tar': tarred(PICTURES), 'a.tgz': tarred(PICTURES, 'w:gz'), 'a.tar.xz': tarred(PICTURES, 'w:xz')}


@pytest.mark.parametrize('name', ARCHIVES)
def test_every_kind_of_archive_gives_the_same_photographs(name, tmp_path):
    (tmp_path/name).write_bytes(ARCHIVES[name])
    splits = read_folders(tmp_path/name)
    assert {p.name: p.read() for photos in splits.values() for p in photos} == PICTURES
    assert {k: dict(Counter(p.label for p in v)) for k, v in splits.items()} == {k: dict(hat=3, shoes=3) for k in ('train', 'test')}


@FUZZ
@given(st.lists(st.text(st.characters(codec='utf-8', exclude_characters='\0'), min_size=1, max_size=12)
                | st.sampled_from(['train/hat/1.jpg', '../x.jpg', 'hat/../../x.jpg', '/hat/x.jpg', 'hat\\..\\x.jpg', 'hat//x.jpg', './hat/x.jpg', 'hat/.x.jpg', 'val/a/b.png']),
                min_size=1, max_size=4), st.sampled_from([zipped, tarred]))
def test_no_name_in_an_archive_leads_out_of_it(tmp_path, names, pack):
    try: data = pack(dict.fromkeys(names, b'x'))
    except (ValueError, OSError, RuntimeError): assume(False) # a name that cannot be stored
    (tmp_path/'any').write_bytes(data)
    try: splits = read_folders(tmp_path/'any')
    except DataError as e: assert '\n' not in str(e)
    else:
        for name in (p.name for photos in splits.values() for p in photos):
            assert not name.startswith('/') and '..' not in name.split('/') and '\\' not in name and len(name.split('/')) in (2, 3)


@FUZZ
@given(st.sampled_from(sorted(ARCHIVES)), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=6), st.floats(0.2, 1))
def test_damaged_archives_end_with_one_line(tmp_path, name, flips, keep):
    data = bytearray(ARCHIVES[name])
    for where, mask in flips: data[int(where*len(data))] ^= mask
    (tmp_path/name).write_bytes(data[:int(len(data)*keep)] if keep < .9 else data)
    try:
        for photos in read_folders(tmp_path/name).values(): decode_photos(photos, 16, 16, progress=False)
    except DataError as e: assert '\n' not in str(e)


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind, tmp_path):
    with tarfile.open(tmp_path/'a.tar', 'w') as t:
        info = tarfile.TarInfo('hat/1.jpg')
        info.type, info.linkname = kind, '/etc/passwd'
        t.addfile(info)
    with pytest.raises(DataError, match='refused, hat/1.jpg is a link or device'): read_folders(tmp_path/'a.tar')


@pytest.mark.parametrize('mode', ['w:gz', 'w:bz2', 'w:xz'])
def test_bombs_are_refused_before_they_fill_the_disk(mode, tmp_path):
    (tmp_path/'bomb').write_bytes(tarred({'hat/1.jpg': bytes(10**7)}, mode))
    with pytest.raises(DataError, match='refused, it unpacks to more than'): read_folders(tmp_path/'bomb')


def test_zip_bombs_are_refused(tmp_path):
    (tmp_path/'bomb').write_bytes(zipped({'hat/1.jpg': bytes(10**7)}))
    with pytest.raises(DataError, match='bytes unpack to 10,000,000'): read_folders(tmp_path/'bomb')


def test_a_large_file_is_read_no_further_than_the_limit(tmp_path):
    (tmp_path/'hat').mkdir()
    with open(tmp_path/'hat/1.jpg', 'wb') as f: f.truncate(10**11) # sparse
    photo, = read_folders(tmp_path)['all']
    assert len(photo.read()) == OWN_FILES.max_bytes + 1
    with pytest.raises(DataError, match='1 of 1 photographs cannot be read'): decode_photos([photo], 16, 16, progress=False)


# Splits

PRODUCTS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), min_size=4, max_size=80)


def photos_of(products: list) -> list[Photo]:
    return [Photo(f'{i}/{j}', f'class{c}', f'id_{i:03d}', bytes) for i, (c, n) in enumerate(products) for j in range(n)]


@FUZZ
@given(PRODUCTS, st.floats(.05, .45), st.floats(.05, .45), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_no_product_is_on_two_sides(products, valid, test, seed, random):
    photos = photos_of(products)
    sizes = dict(valid=max(1, int(valid*len(photos))), test=max(1, int(test*len(photos))))
    splits = split_products(photos, sizes, seed)
    assert not any(product_leaks(splits).values())
    assert sorted(p.name for v in splits.values() for p in v) == sorted(p.name for p in photos)
    shuffled = random.sample(photos, len(photos))
    assert {k: {p.name for p in v} for k, v in split_products(shuffled, sizes, seed).items()} == {k: {p.name for p in v} for k, v in splits.items()}
    for c, n in Counter(c for c, _ in products).items():
        held = [k for k, v in splits.items() if any(p.label == f'class{c}' for p in v)]
        assert 'train' in held and len(held) == min(n, 3), 'every class is in every split where it has the products for it'


def test_product_splits_have_about_the_size_and_shares_asked_for():
    rng = np.random.RandomState(0)
    photos = photos_of([(int(rng.choice(5, p=[.5, .25, .15, .07, .03])), int(rng.randint(1, 8))) for _ in range(3000)])
    splits, shares = split_products(photos, dict(valid=1000, test=2000)), Counter(p.label for p in photos)
    for k, n in (('valid', 1000), ('test', 2000)):
        assert abs(len(splits[k]) - n) <= 10
        for label, count in Counter(p.label for p in splits[k]).items(): assert abs(count - shares[label]*n/len(photos)) <= 4
    assert {p.product for p in split_products(photos, dict(valid=1000), 1)['valid']} != {p.product for p in split_products(photos, dict(valid=1000), 2)['valid']}


def test_folder_of_ones_own(tmp_path):
    labels = ('hat | Hat | Шляпа', 'shoes')
    make_folders(tmp_path/'mine', ['hat', 'shoes'], {'': 20})
    data = DataConfig(dataset='folder', archive=str(tmp_path/'mine'), labels=labels, valid_size=10, test_size=4, height=32, width=24, train_size=40)
    splits = load_dataset(data, progress=False)
    assert {k: (v.images.shape, np.bincount(v.labels).tolist()) for k, v in splits.items()} == {
        'train': ((26, 40, 40, 3), [13, 13]), 'valid': ((10, 32, 24, 3), [5, 5]), 'test': ((4, 32, 24, 3), [2, 2])}
    photos = photo_splits(data)
    names = [{p.name for p in v} for v in photos.values()]
    assert not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])
    for photo, image in zip(photos['test'], splits['test'].images): assert (image == read_image(photo.read(), 32, 24, 3, 'crop', .875)).all()
    make_folders(tmp_path/'split', ['hat', 'shoes'], dict(train=6, val=2)) # a published validation split is kept, a test split made up for nobody
    splits = load_dataset(DataConfig(dataset='folder', archive=str(tmp_path/'split'), labels=labels, height=16, width=16), progress=False)
    assert {k: len(v.labels) for k, v in splits.items()} == dict(train=12, valid=4)


# The public archive

@pytest.fixture
def public(tmp_path, monkeypatch):
    "A server on this machine with an archive as GitHub makes it, and what the registry would know about it"
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setenv('FASHION_DATA_DIR', str(tmp_path/'none'))
    (tmp_path/'web').mkdir()
    files = {f'small-master/{split}/{key}/{i}.jpg': draw(k, i, (24, 32)) for split in ('train', 'validation', 'test') for k, key in enumerate(CLOTHING) for i in range(2)}
    (tmp_path/'web/master').write_bytes(zipped({**files, 'small-master/README.md': b'# Clothes'}))
    handler = partial(type('Quiet', (SimpleHTTPRequestHandler,), dict(log_message=lambda *args: None)), directory=tmp_path/'web')
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, args=(.01,), daemon=True).start()
    splits = read_folders(tmp_path/'web/master')
    yield replace(DATASETS['clothing'], folder='small', urls=lambda file: [f'http://127.0.0.1:{server.server_port}/master'],
                  files={k: listing(v) for k, v in splits.items()}, counts=dict.fromkeys(splits, [2]*10))
    server.shutdown()
    server.server_close()


def test_the_public_archive_is_fetched_checked_and_found_again(public, tmp_path):
    source = locate(public, progress=False)
    assert source == tmp_path/'cache/data/small.zip' == find_data(public)
    assert {k: len(v) for k, v in public.load(public, source, True).items()} == dict(train=20, valid=20, test=20)


def test_an_archive_that_is_not_the_published_one_is_removed(public, tmp_path):
    with zipfile.ZipFile(tmp_path/'web/master', 'a') as z: z.writestr('small-master/train/hat/new.jpg', draw(1, 9))
    with pytest.raises(DataError, match=r'train: 1 photographs too many \(hat 1\); expected the published ones.*\(the download was removed\)'): locate(public, progress=False)
    (tmp_path/'web/master').write_bytes(b'<html>Sign in</html>')
    with pytest.raises(DataError, match=r'not a folder, zip or tar; .*\(the download was removed\)'): locate(public, progress=False)
    (tmp_path/'web/master').unlink()
    with pytest.raises(DataError, match='HTTP 404.*Or put small into a folder named by FASHION_DATA_DIR'): locate(public, progress=False)
    assert not list((tmp_path/'cache').rglob('*.*'))


# The cache

def decode_in_child(folder: Path, cache: Path, seconds: float = 0) -> subprocess.Popen:
    "Another process that decodes the photographs of `folder`, with a pause at each"
    code = f'''import time; from fashion_nbdev.photos import decode_photos, read_folders
photos = [p._replace(read=lambda p=p: time.sleep({seconds}) or p.read()) for p in read_folders({str(folder)!r})["all"]]
print("start", flush=True)
print(int(decode_photos(photos, 32, 32, progress=False).sum()))'''
    return subprocess.Popen([sys.executable, '-c', code], env=clean_env(FASHION_CACHE_DIR=str(cache)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once(tmp_path):
    folder = make_folders(tmp_path/'mine', ['hat', 'shoes'], {'': 30})
    children = [decode_in_child(folder, tmp_path/'cache', .01) for _ in range(2)]
    ends = [child.communicate(timeout=120) for child in children]
    images = decode_photos(read_folders(folder)['all'], 32, 32, progress=False)
    assert [out.split()[-1] for out, _ in ends] == [str(int(images.sum()))]*2, ends
    assert len(list((tmp_path/'cache/photos').iterdir())) == 1


def test_a_killed_process_leaves_nothing_that_counts(tmp_path):
    folder, cache = make_folders(tmp_path/'mine', ['hat', 'shoes'], {'': 30}), tmp_path/'cache'
    child = decode_in_child(folder, cache, .5)
    assert child.stdout.readline() == 'start\n'
    deadline = time.monotonic() + 60
    while not list(cache.glob('photos/.*.npy')) and time.monotonic() < deadline: time.sleep(.02)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    left, = cache.glob('photos/.*.npy')
    assert not list(cache.glob('photos/[!.]*'))
    os.utime(left, (0, 0)) # a day later
    photos = read_folders(folder)['all']
    images = decode_photos(photos, 32, 32, progress=False)
    assert (images[-1] == read_image(photos[-1].read(), 32, 32, 3, 'crop', .875)).all()
    assert not left.exists()


def test_a_changed_photograph_is_decoded_again(tmp_path):
    folder = make_folders(tmp_path/'mine', ['hat'], {'': 3})
    before = decode_photos(read_folders(folder)['all'], 32, 32, progress=False).copy()
    (folder/'hat/001.jpg').write_bytes(draw(9, 9))
    after = decode_photos(read_folders(folder)['all'], 32, 32, progress=False)
    assert [bool((a == b).all()) for a, b in zip(before, after)] == [True, False, True]


def test_a_full_disk_is_one_line(tmp_path):
    photos = read_folders(make_folders(tmp_path/'mine', ['hat'], {'': 2}))['all']*10_000
    with pytest.raises(DataError, match='GB of decoded photographs do not fit into .* GB; expected room, name another folder in FASHION_CACHE_DIR'):
        decode_photos(photos, 4096, 4096, progress=False)
