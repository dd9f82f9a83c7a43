"What a thread does with jobs: pictures to answers, tensors to logits"
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from fashion_nbdev.image import ImageError
from fashion_nbdev.predict import Failure, Prediction
from fashion_serve.admission import Job, Pace
from fashion_serve.errors import PROBLEMS, Problem
from fashion_serve.metrics import BATCH, SHED
from fashion_serve.models import Model


@dataclass(frozen=True)
class Classify:
    "Answer picture files; those asked for in the same way go through the network together"
    model: Model
    top_k: int
    lang: str

    @property
    def batch(self) -> int: return self.model.batch
    @property
    def pace(self) -> Pace: return self.model.pace

    def run(self, files: list[bytes]) -> list[Prediction | Exception]:
        found = self.model.predictor.classify(files, self.top_k, self.lang)
        return [_error(r) if isinstance(r, Failure) else r for r in found]


@dataclass(frozen=True)
class Infer:
    "Logits of a tensor, which is a batch already"
    model: Model
    batch = 1

    @property
    def pace(self) -> Pace: return self.model.tensor_pace

    def run(self, tensors: list[np.ndarray]) -> list[np.ndarray]:
        return [self.model.predictor.logits(x) for x in tensors]


def _error(failure: Failure) -> Exception: # a code that no picture has is a mistake of ours
    return ImageError(failure.code, failure.message) if failure.code in PROBLEMS else RuntimeError(failure.message)


@dataclass(frozen=True, slots=True)
class Answer:
    "What came of a job, from which model, and how long it waited for a thread"
    model: Model
    value: Any # what its kind's `run` gives
    waited: float # seconds
    seconds: float # that it took then


def work(jobs: list[Job]) -> list[tuple[Job, Answer | Exception]]:
    "What each of some jobs of one kind gets; those that nobody waits for any more cost nothing"
    begun = time.perf_counter()
    wanted = [job for job in jobs if job.is_wanted(begun)]
    found = {job: _unwanted(job) for job in jobs if job not in wanted}
    if not wanted: return list(found.items())
    kind = wanted[0].kind
    BATCH.labels(kind.model.name).observe(len(wanted))
    values = kind.run([job.data for job in wanted])
    spent = (time.perf_counter() - begun) / len(wanted)
    for job, value in zip(wanted, values):
        found[job] = value if isinstance(value, Exception) else Answer(kind.model, value, begun - job.queued, spent)
        if isinstance(found[job], Answer): kind.pace.learn(job.pixels, spent) # what could not be decoded says nothing of what can
    return list(found.items())


def _unwanted(job: Job) -> Problem:
    "Why a job that was taken on is not done"
    reason = 'left' if job.gone() else 'deadline'
    SHED.labels(reason).inc()
    if reason == 'left': return Problem('client_left', 'the connection was closed before the answer')
    return Problem('overloaded', 'its turn came too late: please try again', {'Retry-After': '1'})
