"Pictures at the edge of what is allowed: answered or refused, soon, in little memory, and the same whichever way up"
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from PIL import Image

from fashion_nbdev.load import closed_loop, http_request, summary
from fashion_nbdev.timing import product_photo

TURNED = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
          6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270} # what undoes the orientation of EXIF


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP'])
def test_one_photograph_eight_orientations(client, format):
    upright, answers = Image.open(io.BytesIO(product_photo(320, 240, seed=3))), []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = upright.transpose(TURNED[orientation]) if orientation > 1 else upright
        lossless = dict(lossless=True) if format == 'WEBP' else dict(quality=95, subsampling=0) if format == 'JPEG' else {}
        stored.save(out := io.BytesIO(), format, exif=exif, **lossless)
        answers.append(client.post('/v1/predict?model=clothing&top_k=2', content=out.getvalue()).json()['predictions'])
    assert {tuple(p['label'] for p in a) for a in answers} == {tuple(p['label'] for p in answers[0])}
    assert max(abs(a[0]['probability'] - answers[0][0]['probability']) for a in answers) < (.02 if format == 'JPEG' else 1e-6)


def largest(kind: str) -> bytes:
    "A picture as large as is allowed, and as hard to decode as it comes"
    side = 4000 if kind == 'webp' else 5000
    y, x = np.mgrid[:side, :side].astype(np.uint16)
    image = Image.fromarray(np.stack([(x ^ y) & 255, (x + y) >> 6 & 255, x * 7 & 255], 2).astype(np.uint8))
    ways = dict(png=dict(format='PNG', compress_level=1), jpeg=dict(format='JPEG', quality=30), progressive=dict(format='JPEG', quality=30, progressive=True),
                webp=dict(format='WEBP', quality=10, method=0), grey=dict(format='PNG', compress_level=1), gif=dict(format='GIF'))
    if kind in ('grey', 'gif'): image = Image.fromarray((x >> 5 & 255).astype(np.uint8))
    image.save(out := io.BytesIO(), **ways[kind])
    return out.getvalue()


@pytest.fixture(scope='module')
def large() -> dict[str, bytes]: return {kind: data for kind in ('png', 'jpeg', 'progressive', 'webp', 'grey', 'gif') if len(data := largest(kind)) <= 10_000_000}


@pytest.fixture(scope='module')
def own(started, models_dir):
    with started('--port', '0', '--models_dir', str(models_dir), FASHION_DEADLINE='30') as service: yield service


@pytest.mark.parametrize(('share', 'status'), [(1, '200'), (.99, '422'), (.5, '422')], ids=['whole', 'damaged', 'half'])
def test_the_largest_pictures_are_answered_soon(own, large, turns, share, status):
    assert len(large) >= 4, {k: len(v) for k, v in large.items()}
    for kind, data in large.items():
        begun = time.monotonic()
        answers = summary(closed_loop(own.url, [http_request('/v1/predict?model=clothing', data[:int(share * len(data))])], 1, .01, timeout=30))
        assert set(answers['outcomes']) == {status}, (kind, answers) # one that is refused at once is asked again
        assert time.monotonic() - begun < turns(20, 2), kind # on a machine that does nothing else 2 s


def memory(pid: int) -> float: # MB of the service and all its workers, shared pages counted once
    service = psutil.Process(pid)
    return sum(p.memory_full_info().pss for p in [service, *service.children(recursive=True)]) / 1e6


def test_many_of_them_at_once_need_little_memory(own, large):
    peak, done = [memory(own.pid)], threading.Event()
    def watch():
        while not done.wait(.02): peak.append(memory(own.pid))
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        found = summary(closed_loop(own.url, [http_request('/v1/predict?model=clothing', data) for data in large.values()], 16, 5, timeout=60))
    finally:
        done.set()
        watcher.join()
    assert set(found['outcomes']) <= {'200', '429'} and '200' in found['outcomes'], found
    assert max(peak) < 700, max(peak)


def test_nobody_gets_the_answer_of_another(own, samples):
    "Many callers, each with pictures of its own: alone, in a batch, in any order, the same answer"
    import json
    import urllib.request
    rng = np.random.default_rng(0)
    def ask(label):
        with urllib.request.urlopen(f'{own.url}v1/predict?model=fashion_mnist&top_k=10', samples[label], timeout=60) as answer: return json.load(answer)['predictions']
    alone = {label: ask(label) for label in samples}
    order = rng.choice(list(samples), 300)
    with ThreadPoolExecutor(12) as pool: together = list(pool.map(ask, order))
    assert len({json.dumps(a) for a in alone.values()}) == len(alone) # they can be told apart
    assert all(answer == alone[label] for label, answer in zip(order, together))
