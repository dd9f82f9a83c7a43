"Drawn garments in the forms that real photograph data sets have: a folder per class, and DeepFashion's table saved by Hugging Face's own library"
import io
from pathlib import Path

import numpy as np
from fashion_nbdev.core import labels_of
from PIL import Image, ImageDraw

DEEPFASHION = [label.key for label in labels_of('deepfashion')]
CLOTHING = [label.key for label in labels_of('clothing')]


def draw(kind: int, seed: int, size: tuple[int, int] = (96, 128), form: str = 'JPEG') -> bytes:
    "A picture file of a garment: `kind` decides its colour and shape, `seed` all the rest, so that a network can learn the kinds"
    rng = np.random.RandomState([kind, seed])
    (w, h), hue = size, int(255*kind/17 + rng.randint(-4, 5)) % 256
    light = rng.randint(200, 256, 3)
    im = Image.new('RGB', size, tuple(light.tolist()))
    colour = Image.new('HSV', (1, 1), (hue, 200, int(rng.randint(90, 200)))).convert('RGB').getpixel((0, 0))
    left, top = rng.randint(w//12, w//5), rng.randint(h//12, h//5)
    box, pen = (left, top, w - left, h - top - (kind % 3)*h//5), ImageDraw.Draw(im)
    if kind % 2: pen.rectangle(box, fill=colour)
    else: pen.ellipse(box, fill=colour)
    if kind % 4 > 1: pen.line([(w/2, top), (w/2, h - top)], fill=tuple((light//3).tolist()), width=w//12)
    noisy = np.asarray(im, np.int16) + rng.randint(-8, 9, (h, w, 3))
    out = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, form)
    return out.getvalue()


def make_folders(folder: Path, keys: list[str], counts: dict[str, int], seed: int = 0) -> Path:
    "Write SPLIT/CLASS/I.jpg, so many of each class as `counts` says; CLASS/I.jpg for the split ''"
    for s, (split, n) in enumerate(counts.items()):
        for kind, key in enumerate(keys):
            (place := folder/split/key).mkdir(parents=True, exist_ok=True)
            for i in range(n): (place/f'{i:03d}.jpg').write_bytes(draw(kind, 1000*(seed + s) + i, (80 + i % 3*20, 120)))
    return folder


def deepfashion_rows(products: int = 5, seed: int = 0) -> list[dict]:
    "Rows in DeepFashion's schema: 17 classes of so many products, each shown two to four times"
    rng, rows = np.random.RandomState(seed), []
    for kind, cloth_type in enumerate(DEEPFASHION):
        for product in range(products):
            pid, gender = f'id_{100*kind + product:08d}', ('MEN', 'WOMEN')[product % 2]
            for view, pose in enumerate(['front', 'side', 'back', 'additional'][:rng.randint(2, 5)]):
                picture, number = draw(kind, 10*product + view), len(rows)
                rows.append(dict(images=dict(bytes=picture, path=f'{number}.jpg'), gender=gender, pose=pose, cloth_type=cloth_type, pid=pid,
                                 caption=f'a {gender.lower()} model in {cloth_type}', mask=dict(bytes=draw(0, number, (24, 32), 'PNG'), path=f'{number}.png'),
                                 mask_overlay=dict(bytes=draw(1, number, (24, 32)), path=f'{number}.jpg')))
    return [rows[i] for i in rng.permutation(len(rows))]


def _dataset(rows: list[dict]):
    from datasets import Dataset, Features, Image as ImageColumn, Value, disable_progress_bars
    disable_progress_bars()
    pictures = dict.fromkeys(('images', 'mask', 'mask_overlay'), ImageColumn())
    return Dataset.from_list(rows, features=Features({k: pictures.get(k, Value('string')) for k in rows[0]}))


def save_to_disk(rows: list[dict], folder: Path, shards: int = 2) -> Path:
    "As `datasets.Dataset.save_to_disk` does it"
    _dataset(rows).save_to_disk(folder, num_shards=shards)
    return folder


def save_parquet(rows: list[dict], path: Path) -> Path:
    "As `datasets.Dataset.to_parquet` does it"
    path.parent.mkdir(parents=True, exist_ok=True)
    _dataset(rows).to_parquet(path)
    return path
