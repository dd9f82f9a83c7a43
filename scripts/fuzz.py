"""Damage pictures, guided by what the decoder does with them, and see that each is answered or refused: fuzz.py SECONDS [RESULT.json]

A picture may raise `ImageError` and nothing else, within 2 s and 700 MB. What breaks this is written to crash-... by libFuzzer.
"""
import io
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import atheris
import numpy as np
from PIL import Image

with atheris.instrument_imports(include=['fashion_nbdev.formats', 'fashion_nbdev.image']):
    from fashion_nbdev.image import ImageError, ImageLimits, read_image
from fashion_nbdev.results import conditions, write_results

LIMITS = ImageLimits(max_bytes=100_000, max_pixels=1_000_000)
WAYS = {'PNG': [{}, dict(mode='P'), dict(mode='I;16'), dict(mode='LA'), dict(mode='1')], 'JPEG': [{}, dict(mode='CMYK'), dict(progressive=True), dict(mode='L')],
        'WEBP': [{}, dict(lossless=True), dict(mode='RGBA')], 'GIF': [{}], 'BMP': [{}, dict(mode='P')]}
MOST = 700_000_000 # bytes; libFuzzer's own limit counts what the process that started this one had
seen = dict(tried=0, answered=0)


def write_seeds(folder: Path):
    "A small picture of each kind"
    noise = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for fmt, ways in WAYS.items():
        for i, way in enumerate(ways):
            mode, save = way.get('mode', 'RGB'), {k: v for k, v in way.items() if k != 'mode'}
            im = Image.fromarray(noise).convert('L').convert(mode) if mode == 'I;16' else Image.fromarray(noise).convert(mode)
            im.save(out := io.BytesIO(), fmt, **save, **({'exif': exif} if fmt in ('JPEG', 'PNG', 'WEBP') else {}))
            (folder / f'{fmt}-{i}').write_bytes(out.getvalue())


def memory() -> int: return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def one(data: bytes):
    "One damaged picture, for a network that sees colours and one that does not"
    seen['tried'] += 1
    for channels, resize in ((3, 'crop'), (1, 'fashion_mnist')):
        try: img = read_image(data, 28, 28, channels, resize, limits=LIMITS)
        except ImageError: continue
        assert img.shape == (28, 28, channels) and img.dtype == np.uint8
        seen['answered'] += 1


def main(seconds: str, out: str = ''):
    begun, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix='fuzz-'))
    def until_time_is_over(data: bytes): # libFuzzer would end the process without another word
        one(data)
        assert memory() < MOST, f'{memory() / 1e6:.0f} MB'
        if (spent := time.monotonic() - begun) < float(seconds): return
        found = seen | dict(seconds=round(spent, 1), per_second=round(seen['tried'] / spent))
        print('{tried:,} pictures in {seconds} s, {answered:,} answers, no error but ImageError'.format(**found), flush=True)
        if out: write_results(out, found, **conditions(f'python scripts/fuzz.py {seconds} {out}'))
        shutil.rmtree(folder)
        os._exit(0)
    write_seeds(folder)
    atheris.Setup([sys.argv[0], str(folder), '-timeout=2', '-rss_limit_mb=0', '-max_len=20000', '-verbosity=0'], until_time_is_over)
    atheris.Fuzz()


if __name__ == '__main__': main(*sys.argv[1:])
