"""Write the page's ten samples of 28x28 pixels: of each class, the most typical image in the test part of samples/fashion-mnist.

    python serve/page_samples.py

Typical means nearest to the mean of its class; no model has a say. Images: Fashion-MNIST, MIT licence."""
from pathlib import Path

import numpy as np
from PIL import Image

from fashion_nbdev.core import labels_of, write_beside
from fashion_nbdev.data import load_dataset

PAGE = Path(__file__).parent / 'fashion_serve/page/samples'


def most_typical() -> dict[str, np.ndarray]: # label key -> uint8 [28, 28]
    "Of each class, the image nearest to the mean"
    test = load_dataset('fashion_mnist', samples=True)['test']
    found = {}
    for i, label in enumerate(labels_of('fashion_mnist')):
        own = test.images[test.labels == i, :, :, 0].astype(float)
        found[label.key] = own[((own - own.mean(0)) ** 2).sum((1, 2)).argmin()].astype(np.uint8)
    return found


if __name__ == '__main__':
    for key, image in most_typical().items():
        with write_beside(PAGE / f'{key}.png') as tmp: Image.fromarray(image).save(tmp, 'PNG', optimize=True)
