"The models in memory and the threads that work on pictures, both off the event loop"
import asyncio
import io
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from fashion_nbdev.core import ConfigError, FashionError, models_dirs
from fashion_nbdev.predict import Prediction, Predictor
from fashion_serve.errors import Problem, log
from fashion_serve.settings import Settings


def usable_cores() -> int:
    "Cores that this process may use"
    try: return len(os.sched_getaffinity(0))
    except AttributeError: return os.cpu_count() or 1 # not Linux


def find_models(folder: Path | None) -> dict[str, Path]:
    "Name -> file: the .onnx files of `folder`, or of the places where shipped models are; raises `ConfigError`"
    if folder and not folder.is_dir(): raise ConfigError(f'models_dir {folder} is not a folder: give one that holds .onnx files')
    folders = [folder] if folder else models_dirs()
    found = {p.stem: p for d in reversed(folders) for p in sorted(d.glob('*.onnx')) if not p.name.startswith('.')}
    if found: return dict(sorted(found.items()))
    raise ConfigError(f'no .onnx file in {", ".join(map(str, folders)) or "any models folder"}: fashion_export makes one')


def pick_default(names: list[str], wanted: str | None) -> str:
    "The model that answers when none is named: the one wanted, else clothing, else the first"
    if wanted and wanted not in names: raise ConfigError(f'default_model is {wanted!r}: choose one of {", ".join(names)}')
    return wanted or ('clothing' if 'clothing' in names else names[0])


class Engine:
    "Loads the models, says when they are ready, and runs pictures through them in a bounded pool of threads"
    def __init__(self, settings: Settings):
        self.settings = settings
        self.models: dict[str, Predictor] = {}
        self.default = ''
        self.ready = False
        self.error: FashionError | None = None # why the models could not be loaded
        self.settled = asyncio.Event() # loading has ended, well or badly
        self.pool = ThreadPoolExecutor(settings.threads or usable_cores(), thread_name_prefix='picture')

    async def start(self):
        "Load and warm up every model; a bad file leaves the service not ready and `error` names it"
        run = asyncio.get_running_loop().run_in_executor
        try: self.models, self.default = await run(self.pool, self._load)
        except FashionError as e: self.error = e
        except Exception as e: # nobody foresaw it, but the one who starts the service should read it
            log.exception('loading the models failed')
            self.error = FashionError(f'loading the models failed: {e}')
        else: self.ready = True
        finally: self.settled.set()

    def stop(self):
        "Take no more work"
        self.ready = False
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _load(self) -> tuple[dict[str, Predictor], str]:
        files = find_models(self.settings.models_dir)
        default = pick_default(list(files), self.settings.default_model)
        models = {name: Predictor.load(path, limits=self.settings.limits) for name, path in files.items()}
        for predictor in models.values(): _warm(predictor)
        return models, default

    def check_ready(self):
        "Raises the `Problem` that says why there is no answer yet"
        if self.ready: return
        why = str(self.error) if self.error else 'the models are being loaded: please try again in a moment'
        raise Problem('not_ready', why, {'Retry-After': '1'})

    def get(self, name: str | None) -> tuple[str, Predictor]:
        "The model called `name`, or the default one; raises `Problem`"
        self.check_ready()
        name = name or self.default
        if name in self.models: return name, self.models[name]
        raise Problem('unknown_model', f'there is no model {name[:40]!r}: choose one of {", ".join(self.models)}')

    async def predict(self, predictor: Predictor, data: bytes, top_k: int, lang: str) -> tuple[Prediction, float]:
        "Categorise one picture in a thread: what it is, and the milliseconds waited for that thread; raises `ImageError`"
        work = partial(_work, predictor, data, top_k, lang, time.perf_counter())
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)


def _work(predictor: Predictor, data: bytes, top_k: int, lang: str, queued: float) -> tuple[Prediction, float]:
    waited = (time.perf_counter() - queued) * 1000
    return predictor.predict(data, top_k=top_k, lang=lang), waited


def _warm(predictor: Predictor, n: int = 2):
    "First runs are slower, decoding included: have them before the first request"
    picture = io.BytesIO()
    Image.new('RGB', (64, 64), 'white').save(picture, 'PNG')
    for _ in range(n): predictor.predict(picture.getvalue())
