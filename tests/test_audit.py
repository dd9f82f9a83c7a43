"The audit: what was recorded about the clothing photographs, and the search for copies at the size of DeepFashion"
import json
import tracemalloc
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from repository import ROOT

from fashion_nbdev.audit import MAX_DISTANCE, audit, audit_figure, fashion_audit, look_hash, near_duplicates, without
from fashion_nbdev.core import FashionError, labels_of
from fashion_nbdev.data import DATASETS, find_data, photo_splits
from fashion_nbdev.photos import Photo

CLOTHING = DATASETS['clothing']
REPORT = json.loads((ROOT/'results/audit_clothing.json').read_text(encoding='utf-8'))


def picture(i: int) -> Image.Image:
    rng = np.random.RandomState(i)
    return Image.fromarray(rng.randint(0, 256, (24, 18, 3)).astype(np.uint8)).resize((240, 320), Image.Resampling.BICUBIC)


def jpeg(im: Image.Image, quality: int = 90) -> bytes:
    im.save(out := BytesIO(), 'JPEG', quality=quality)
    return out.getvalue()


def bits(a, b) -> int:
    return int(np.bitwise_count(look_hash(np.asarray(a)) ^ look_hash(np.asarray(b))).sum())


# The recorded report

def test_recorded_counts_are_the_published_ones():
    keys = [label.key for label in labels_of('clothing')]
    for split, counts in CLOTHING.counts.items():
        assert REPORT['splits'][split]['per_class'] == dict(zip(keys, counts, strict=True))
        assert REPORT['splits'][split]['corrupt'] == []
    assert REPORT['n'] == sum(map(sum, CLOTHING.counts.values())) == sum(n for *_, n in REPORT['sizes'])
    assert {'date', 'command', 'commit', 'cpu', 'versions'} <= REPORT.keys()


def test_recorded_distances_are_all_pairs_and_leave_a_gap_below_chance():
    n = REPORT['n']
    plain, chance = REPORT['distances']['plain'], REPORT['distances']['mirrored']
    assert sum(plain) == sum(chance) == n*(n - 1)//2
    assert REPORT['max_distance'] == MAX_DISTANCE
    assert not any(chance[:MAX_DISTANCE + 1]), 'mirrored pairs reach below the threshold: by chance, or as mirrored copies'
    assert len(REPORT['near']) == sum(plain[:MAX_DISTANCE + 1])
    for kind in ('half size, JPEG 30', '25 % brighter'): assert REPORT['copies'][kind]['found'] == 1


def test_recorded_leaks_follow_from_the_pairs():
    leaks = {p[side] for p in REPORT['near'] for side, split in zip('ab', p['splits']) if split == 'test' and 'train' in p['splits']}
    assert set(REPORT['leaked_test_names']) == leaks
    assert REPORT['conflicts'] == sum(len(set(p['labels'])) > 1 for p in REPORT['near'])


def test_picture_is_recorded_and_drawn_again():
    assert Image.open(ROOT/'nbs/images/audit_clothing.png').width > 1000
    assert len(audit_figure(REPORT).axes) == 3


@pytest.mark.skipif(find_data(CLOTHING) is None, reason='the clothing photographs are not on this machine')
def test_recorded_pairs_are_found_again_in_the_photographs():
    photos = photo_splits('clothing', progress=False)
    named = {p.name: p for split in photos.values() for p in split}
    few = dict(train=[named[p[side]] for p in REPORT['near'] for side in 'ab'], valid=[], test=photos['test'][:20])
    report = audit(few, progress=False)
    assert {frozenset((p['a'], p['b'])) for p in report['near']} >= {frozenset((p['a'], p['b'])) for p in REPORT['near']}
    assert without(photos['test'], REPORT['leaked_test_names']).sum() == len(photos['test']) - len(REPORT['leaked_test_names'])


# What counts as a copy

@pytest.mark.parametrize('i', range(6))
def test_copies_are_near_and_others_far(i):
    im = picture(i)
    for copy in (Image.open(BytesIO(jpeg(im.reduce(2), 40))), ImageEnhance.Brightness(im).enhance(.8), im.convert('L').convert('RGB')):
        assert bits(im, copy) <= MAX_DISTANCE
    assert bits(im, picture(i + 100)) > MAX_DISTANCE < bits(im, ImageOps.mirror(im))


def test_mirrored_and_turned_copies():
    "A mirrored copy is found; EXIF orientation is undone before anything is compared"
    im, exif = picture(3), Image.Exif()
    exif[0x0112] = 6
    im.transpose(Image.Transpose.ROTATE_90).save(turned := BytesIO(), 'JPEG', exif=exif, quality=90)
    files = dict(plain=jpeg(im), mirrored=jpeg(ImageOps.mirror(im)), turned=turned.getvalue(), other=jpeg(picture(4)))
    report = audit(dict(train=[Photo(k, 'hat', '', lambda v=v: v) for k, v in files.items()]), progress=False)
    assert {(p['a'], p['b'], p['mirrored']) for p in report['near']} == {('plain', 'turned', False), ('plain', 'mirrored', True), ('mirrored', 'turned', True)}


def test_leaks_name_only_the_split_that_is_asked_for():
    photo = lambda name, i: Photo(name, 'hat', '', lambda: jpeg(picture(i)))
    report = audit(dict(train=[photo('a', 1), photo('b', 2)], valid=[photo('c', 1), photo('d', 5)], test=[photo('e', 2), photo('f', 5), photo('g', 9)]), progress=False)
    assert (report['leaked_test_names'], report['leaked_valid_names']) == (['e'], ['c'])
    assert report['near_counts'] == {'test/train': 1, 'test/valid': 1, 'train/valid': 1}
    assert len(report['exact']) == 3


# Size

def test_many_photographs_need_little_memory():
    "Rows go through in blocks: at 40,000 photographs all pairs at once would be 3 GB"
    hashes = np.random.default_rng(0).integers(0, 2**64, (6000, 4), np.uint64)
    hashes[5999] = hashes[7] ^ np.uint64(1)
    tracemalloc.start()
    found = near_duplicates(hashes, 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.tolist() == [[7, 5999, 4, 0]] # one bit in each of four words
    assert peak < 50_000_000 # 72 MB would be all pairs in 16 bits


def test_command_refuses_what_holds_no_photographs(tmp_path):
    with pytest.raises(FashionError, match='fashion_mnist holds no photographs'): fashion_audit(dataset='fashion_mnist', out=str(tmp_path/'x.json'))
    with pytest.raises(FashionError, match='must end in .json'): fashion_audit(out=str(tmp_path/'x.txt'))
    assert not list(tmp_path.iterdir())
