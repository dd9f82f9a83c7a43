"""What our own code adds to a prediction, in figures that a busy machine does not change; tests/test_guard.py compares them with those recorded.

    python benchmarks/guard.py        measures and writes results/guard.json

Two figures a case: how many functions are called (the same on every machine), and how long a prediction takes as a multiple of
the bare work, which is Pillow and ONNX Runtime called directly on the same file and the same model, in turns with it."""
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

from fashion_nbdev.core import model_path
from fashion_nbdev.load import pictures
from fashion_nbdev.predict import Predictor
from fashion_nbdev.results import conditions, write_results
from fashion_nbdev.timing import time_calls

RECORD = Path(__file__).resolve().parents[1] / 'results/guard.json'
CASES = {'one 28x28 PNG': ('fashion_mnist', 1), 'one photograph': ('clothing', 1), 'sixteen 28x28 PNG': ('fashion_mnist', 16)}


def bare(model: str) -> Callable: # takes the bytes of files, gives logits
    "The least that could answer: open, bring to size, run"
    info = Predictor.load(model_path(model)).info
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session, mode = ort.InferenceSession(model_path(model), options, providers=['CPUExecutionProvider']), 'RGB' if info.channels == 3 else 'L'

    def array(data: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as image:
            image.draft(mode, (2*info.width, 2*info.height))
            return np.asarray(image.convert(mode).resize((info.width, info.height), Image.Resampling.BILINEAR)).reshape(info.height, info.width, info.channels)
    return lambda files: session.run(None, {session.get_inputs()[0].name: np.stack([array(data) for data in files])})


def ours(model: str) -> Callable: # takes the bytes of files, gives predictions
    predictor = Predictor.load(model_path(model))
    return lambda files: predictor.predict(files[0]) if len(files) == 1 else predictor.predict(files)


def calls(func: Callable) -> int:
    "Functions of Python and of C that are called by one call"
    n = 0
    def count(frame, event, arg):
        nonlocal n
        n += event in ('call', 'c_call')
    sys.setprofile(count)
    try: func()
    finally: sys.setprofile(None)
    return n


def ratio(func: Callable, control: Callable, rounds: int = 15, seconds: float = .02) -> float:
    "How many times as long as the control, from the fastest turn of each"
    best = {func: float('inf'), control: float('inf')}
    n = max(1, int(1000*seconds/time_calls(control, 1, warmup=0).mean()))
    for i in range(rounds):
        for f in (func, control)[::1 if i % 2 else -1]: best[f] = min(best[f], time_calls(f, n, warmup=0).mean())
    return float(best[func]/best[control])


def measure(case: str, slowed: Callable = lambda f: f) -> dict: # case, calls, ratio
    "Both figures of a case; `slowed` may wrap the function, to see whether the guard notices"
    model, n = CASES[case]
    files, classify, control = pictures(model)[:n], slowed(ours(model)), bare(model)
    func, least = lambda: classify(files), lambda: control(files)
    for f in (func, least): f(), f()
    return dict(case=case, calls=calls(func), ratio=ratio(func, least))


if __name__ == '__main__':
    rows = [measure(case) for case in CASES]
    for r in rows: print('{case}: {calls} calls, {ratio:.3f} times the bare work'.format(**r))
    print(f'  -> {write_results(RECORD, rows, **conditions("python benchmarks/guard.py"))}')
