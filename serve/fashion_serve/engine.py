"The threads that work on pictures, off the event loop: what waits is bounded, what nobody waits for is not done"
import asyncio
import time
from dataclasses import dataclass
from threading import Thread

from fashion_nbdev.core import FashionError
from fashion_nbdev.image import ImageError, image_header
from fashion_nbdev.predict import Failure, Prediction
from fashion_serve.admission import Job, Lane, WorkQueue
from fashion_serve.errors import PROBLEMS, Problem, log
from fashion_serve.metrics import BATCH, MODEL, READY, SHED, WAIT, WAITING
from fashion_serve.models import Model, find_models, open_model, pick_default
from fashion_serve.record import Picture, Record
from fashion_serve.settings import Settings


@dataclass(frozen=True, slots=True)
class Answer:
    "A prediction, and how long it waited for a thread"
    prediction: Prediction
    waited: float # seconds


class Engine:
    "Loads the models, says when they are ready, and runs pictures through them in a bounded number of threads"
    def __init__(self, settings: Settings):
        self.settings = settings
        self.models: dict[str, Model] = {}
        self.default = ''
        self.ready = False
        self.draining = False # still answering, but soon no more
        self.error: FashionError | None = None # why the models could not be loaded
        self.settled = asyncio.Event() # loading has ended, well or badly
        self.queue = WorkQueue(settings.threads)
        self.begun: list[float | None] = [None] * settings.threads # since when each thread has been at work
        self.threads = [Thread(target=self._work, args=(i,), name=f'picture-{i}', daemon=True) for i in range(settings.threads)]

    async def start(self):
        "Load and warm up every model; a bad file leaves the service not ready and `error` names it"
        try: self.models, self.default = await asyncio.to_thread(self._load)
        except FashionError as e: self.error = e
        except Exception as e: # nobody foresaw it, but the one who starts the service should read it
            log.exception('loading the models failed')
            self.error = FashionError(f'loading the models failed: {e}')
        else:
            for thread in self.threads: thread.start()
            for model in self.models.values(): MODEL.labels(model.name, model.predictor.info.version).set(1)
            self._set_ready(True)
        finally: self.settled.set()

    def stop(self):
        "Take no more work; what was taken is still done"
        self._set_ready(False)
        self.queue.close()

    def _set_ready(self, ready: bool):
        self.ready = ready
        READY.set(int(ready))

    def _load(self) -> tuple[dict[str, Model], str]:
        files = find_models(self.settings.models_dir)
        default = pick_default(list(files), self.settings.default_model)
        return {name: open_model(path, self.settings.limits) for name, path in files.items()}, default

    def check_ready(self):
        "Raises the `Problem` that says why there is no answer yet"
        if self.ready: return
        why = str(self.error) if self.error else 'the models are being loaded: please try again in a moment'
        raise Problem('not_ready', why, {'Retry-After': '1'})

    def get(self, name: str | None) -> Model:
        "The model called `name`, or the default one; raises `Problem`"
        self.check_ready()
        if model := self.models.get(name or self.default): return model
        raise Problem('unknown_model', f'there is no model {name[:40]!r}: choose one of {", ".join(self.models)}')

    async def predict(self, model: Model, data: bytes, top_k: int, lang: str, record: Record, gone=lambda: False, lane: Lane = Lane.INTERACTIVE) -> Answer:
        "Categorise one picture in a thread, and note it in `record`; raises `ImageError`, and `Problem` if it would come too late"
        begun = time.perf_counter()
        header = image_header(data, self.settings.limits)
        pixels, allowed = header.width * header.height, self.settings.deadline
        cost = model.pace.estimate(pixels)
        try: self.queue.admit(cost, lane, allowed)
        except Problem:
            SHED.labels('queue').inc()
            raise
        job = Job((model, top_k, lang), data, pixels, cost, begun + allowed, asyncio.get_running_loop().create_future(), lane, gone)
        self.queue.put(job)
        self._show_queue()
        record.add('admit', job.queued - begun)
        answer = await job.future
        _note(record, model, data, answer)
        return answer

    def _show_queue(self):
        WAITING.set(self.queue.waiting())
        WAIT.set(self.queue.wait(Lane.INTERACTIVE))

    def busy_for(self, now: float) -> float:
        "Seconds that the thread which has been at work longest has been at it"
        return max((now - begun for begun in self.begun if begun is not None), default=0.0)

    def _work(self, i: int):
        "What each thread does: take jobs, answer them together, hand the answers to the event loop"
        while jobs := self.queue.take(lambda kind: kind[0].batch):
            self.begun[i] = time.monotonic()
            try: answers = _answers(jobs)
            except Exception as e: answers = [(job, e) for job in jobs] # nobody foresaw it; the request ends as our mistake
            self.begun[i] = None
            self.queue.done(jobs)
            self._show_queue()
            try: jobs[0].future.get_loop().call_soon_threadsafe(_deliver, answers)
            except RuntimeError: pass # the loop has ended: nobody is there to hear it


def _note(record: Record, model: Model, data: bytes, answer: Answer):
    "What the log and the metrics want to know of an answer"
    best, spent = answer.prediction.top[0], answer.prediction.timing_ms
    for stage, seconds in (('queue', answer.waited), ('decode', spent.decode / 1000), ('infer', spent.infer / 1000)): record.add(stage, seconds)
    record.pictures.append(Picture(model.name, model.predictor.info.version, best.label, best.probability, len(data)))


def _answers(jobs: list[Job]) -> list[tuple[Job, Answer | Exception]]:
    "What each of some jobs of one kind gets"
    begun = time.perf_counter()
    wanted = [job for job in jobs if job.is_wanted(begun)]
    found = {job: _unwanted(job) for job in jobs if job not in wanted}
    if not wanted: return list(found.items())
    model, top_k, lang = wanted[0].kind
    BATCH.labels(model.name).observe(len(wanted))
    for job, r in zip(wanted, model.predictor.classify([job.data for job in wanted], top_k, lang)): found[job] = _outcome(r, begun - job.queued)
    spent = (time.perf_counter() - begun) / len(wanted)
    for job in wanted: model.pace.learn(job.pixels, spent)
    return list(found.items())


def _unwanted(job: Job) -> Problem:
    "Why a job that was taken on is not done"
    reason = 'left' if job.gone() else 'deadline'
    SHED.labels(reason).inc()
    if reason == 'left': return Problem('client_left', 'the connection was closed before the answer')
    return Problem('overloaded', 'its turn came too late: please try again', {'Retry-After': '1'})


def _outcome(r: Prediction | Failure, waited: float) -> Answer | Exception:
    if isinstance(r, Prediction): return Answer(r, waited)
    return ImageError(r.code, r.message) if r.code in PROBLEMS else RuntimeError(r.message)


def _deliver(answers: list[tuple[Job, Answer | Exception]]):
    for job, answer in answers:
        if job.future.done(): continue # its client has left
        job.future.set_exception(answer) if isinstance(answer, Exception) else job.future.set_result(answer)
