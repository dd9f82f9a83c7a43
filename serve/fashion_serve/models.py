"Model files on their way into memory: found, verified, warmed up, and measured before they answer"
import io
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from fashion_nbdev.core import ConfigError, models_dirs
from fashion_nbdev.golden import check_golden
from fashion_nbdev.predict import ModelInfo, Predictor
from fashion_serve.admission import Pace
from fashion_serve.settings import Settings

BATCHES = (2, 4, 8) # pictures that may go through a network together
GAIN = 1.1 # how many times faster that must be
CANDIDATE = '.next' # at the end of the name of a file that may replace a model


def find_models(folder: Path | None) -> dict[str, Path]:
    "Name -> file: the .onnx files of `folder`, or of the places where shipped models are; raises `ConfigError`"
    if folder and not folder.is_dir(): raise ConfigError(f'models_dir {folder} is not a folder: give one that holds .onnx files')
    folders = [folder] if folder else models_dirs()
    found = {p.stem: p for d in reversed(folders) for p in sorted(d.glob('*.onnx')) if not p.name.startswith('.') and not p.stem.endswith(CANDIDATE)}
    if found: return dict(sorted(found.items()))
    raise ConfigError(f'no .onnx file in {", ".join(map(str, folders)) or "any models folder"}: fashion_export makes one')


def candidate_file(folder: Path | None, name: str) -> Path | None:
    "NAME.next.onnx, if it is there"
    folders = [folder] if folder else models_dirs()
    return next((p for d in folders if (p := d / f'{name}{CANDIDATE}.onnx').is_file()), None)


def pick_default(names: list[str], wanted: str | None) -> str:
    "The model that answers when none is named: the one wanted, else clothing, else the first"
    if wanted and wanted not in names: raise ConfigError(f'default_model is {wanted!r}: choose one of {", ".join(names)}')
    return wanted or ('clothing' if 'clothing' in names else names[0])


@dataclass(frozen=True, eq=False)
class Model:
    "A model that can answer"
    name: str # under which it answers
    predictor: Predictor
    batch: int # pictures that gain from going through the network together
    pace: Pace = field(repr=False) # how long answers to picture files take
    tensor_pace: Pace = field(repr=False) # likewise to tensors

    @property
    def version(self) -> str: return self.predictor.info.version


def open_model(name: str, data: bytes, settings: Settings) -> Model:
    "Verify, warm up and measure a model, and see that it gives the answers it is known for; raises `ModelError`"
    predictor = Predictor(data, settings.provider, limits=settings.limits, callers=settings.threads)
    check_golden(predictor)
    i, batch = predictor.info, _best_batch(predictor)
    one = _seconds(predictor.logits, _blank(i, 1))
    return Model(name, predictor, batch, Pace(_first_answers(predictor)), Pace(one / 10, one / (i.height * i.width / 1e6)))


def _first_answers(predictor: Predictor, n: int = 3) -> float:
    "Seconds that a picture takes, decoding included; the first ones are slower, and are had here"
    picture = io.BytesIO()
    Image.new('RGB', (64, 64), 'white').save(picture, 'PNG')
    return min(_seconds(predictor.predict, picture.getvalue()) for _ in range(n))


def _best_batch(predictor: Predictor) -> int:
    "The smallest batch that is nearly as fast, for each picture, as the fastest; 1 where batches gain nothing"
    times = {n: min(_seconds(predictor.logits, _blank(predictor.info, n)) for _ in range(3)) / n for n in (1, *BATCHES)}
    if times[1] < GAIN * min(times.values()): return 1
    return next(n for n, t in times.items() if t <= 1.05 * min(times.values()))


def _blank(i: ModelInfo, n: int) -> np.ndarray:
    return np.zeros((n, i.height, i.width, i.channels), np.uint8)


def _seconds(call, *args) -> float:
    begun = time.perf_counter()
    call(*args)
    return time.perf_counter() - begun
