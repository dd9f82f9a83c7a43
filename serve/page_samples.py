"""Write the page's ten samples: of each class, the most typical image in the test part of samples/fashion-mnist.

    python serve/page_samples.py

Typical means nearest to the mean of its class; no model has a say. Images: Fashion-MNIST, MIT licence."""
import gzip
from pathlib import Path

import numpy as np
from PIL import Image

from fashion_nbdev.core import labels_of, write_beside

HERE = Path(__file__).parent
SLICE = HERE.parent / 'samples/fashion-mnist'
PAGE = HERE / 'fashion_serve/page/samples'


def idx(path: Path, header: int) -> np.ndarray: # uint8, flat
    "The values of a gzipped IDX file"
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def most_typical() -> dict[str, np.ndarray]: # label key -> uint8 [28, 28]
    "Of each class, the image nearest to the mean"
    images = idx(SLICE / 't10k-images-idx3-ubyte.gz', 16).reshape(-1, 28, 28)
    classes = idx(SLICE / 't10k-labels-idx1-ubyte.gz', 8)
    found = {}
    for i, label in enumerate(labels_of('fashion_mnist')):
        own = images[classes == i].astype(float)
        found[label.key] = own[((own - own.mean(0)) ** 2).sum((1, 2)).argmin()].astype(np.uint8)
    return found


if __name__ == '__main__':
    for key, image in most_typical().items():
        with write_beside(PAGE / f'{key}.png') as tmp: Image.fromarray(image).save(tmp, 'PNG', optimize=True)
