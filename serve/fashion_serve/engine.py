"The threads that work on pictures, off the event loop: what waits is bounded, what nobody waits for is not done"
import asyncio
import time
from contextlib import nullcontext
from dataclasses import replace
from threading import Thread

import numpy as np
from filelock import Timeout

from fashion_nbdev.core import FashionError
from fashion_nbdev.image import ImageError, image_header
from fashion_serve.admission import Batch, Gone, Job, Lane, WorkQueue, fail, never
from fashion_serve.errors import Problem, log
from fashion_serve.metrics import READY, SHED, WAIT, WAITING, series
from fashion_serve.registry import Registry
from fashion_serve.settings import Settings
from fashion_serve.shadow import Shadow
from fashion_serve.upload import Budget
from fashion_serve.work import Answer, Classify, Infer, work

LATER = .002 # seconds after which a thread looks again whether a large picture may be decoded


class Engine:
    "Loads the models, says when they are ready, and runs pictures through them in a bounded number of threads"
    def __init__(self, settings: Settings, registry: Registry):
        self.settings, self.registry = settings, registry
        self.ready = False
        self.draining = False # still answering, but soon no more
        self.error: FashionError | None = None # why the models could not be loaded
        self.settled = asyncio.Event() # loading has ended, well or badly
        self.budget = Budget(settings.max_pending_bytes)
        self.queue = WorkQueue(settings.threads)
        self.usual = 0.0 # seconds that pictures have been estimated to take of late
        self.shadow = Shadow()
        self.begun: list[float | None] = [None] * settings.threads # since when each thread has been at work
        self.threads = [Thread(target=self._work, args=(i,), name=f'picture-{i}', daemon=True) for i in range(settings.threads)]

    async def start(self):
        "Load and warm up every model; a bad file leaves the service not ready and `error` names it"
        try: await asyncio.to_thread(self.registry.load)
        except FashionError as e: self.error = e
        except Exception as e: # nobody foresaw it, but the one who starts the service should read it
            log.exception('loading the models failed')
            self.error = FashionError(f'loading the models failed: {e}')
        else:
            for thread in self.threads: thread.start()
            self._set_ready(True)
        finally: self.settled.set()

    def stop(self):
        "Take no more work; what was taken is still done"
        self._set_ready(False)
        self.queue.close()
        self.shadow.close()

    def _set_ready(self, ready: bool):
        self.ready = ready
        READY.set(int(ready))

    def check_ready(self):
        "Raises the `Problem` that says why there is no answer yet"
        if self.ready: return
        why = str(self.error) if self.error else 'the models are being loaded: please try again in a moment'
        raise Problem('not_ready', why, {'Retry-After': '1'})

    def check_lasting(self):
        "Raises the `Problem` if it is not ready, or will not be much longer"
        self.check_ready()
        if self.draining: raise Problem('not_ready', 'the service is stopping')

    def refusal(self, lane: Lane = Lane.INTERACTIVE) -> Problem | None:
        "What to say if a picture as they usually are would be too late if it came now: before its body is read"
        return self._refusal(self.usual, lane, self.settings.batch_deadline if lane == Lane.BATCH else self.settings.deadline)

    def check_room(self, lane: Lane = Lane.INTERACTIVE):
        "Raises the `refusal`, if there is one"
        if problem := self.refusal(lane): raise problem

    def submit(self, kind: Classify | Infer, data: bytes | np.ndarray, pixels: int, gone: Gone = never) -> asyncio.Future:
        "Take on one job, in people's lane: its `Answer` to come; raises `Problem` if that would be too late"
        begun, allowed, cost = time.perf_counter(), self.settings.deadline, kind.pace.estimate(pixels)
        self._admit(cost, Lane.INTERACTIVE, allowed)
        if isinstance(kind, Classify): self.usual += (cost - self.usual) / 50
        return self._put(Job(kind, data, pixels, cost, begun + allowed, asyncio.get_running_loop().create_future(), Lane.INTERACTIVE, gone))

    async def tried(self, coming: asyncio.Future, kind: Classify, data: bytes, pixels: int, gone: Gone = never) -> Answer:
        "What was submitted, counted if a candidate was asked; where that fails, the model that it would replace answers"
        stable = self.registry.models[kind.model.name]
        trial = self.registry.trials.get(kind.model.name)
        if kind.model is stable:
            answer = await coming
            if not (self.draining or self.queue.wait(Lane.BATCH)) and (trial := self.registry.shadow_of(stable)): self.shadow.ask(trial, kind, data, pixels, answer)
            return answer
        try: answer = await coming
        except (Problem, ImageError): raise # the picture, or the load, not the candidate
        except Exception as e:
            log.error('the candidate for %s failed', stable.name, exc_info=e)
            if trial: trial.failures += 1
            return await self.submit(replace(kind, model=stable), data, pixels, gone)
        if trial: trial.count(answer.seconds, stable.pace.estimate(pixels))
        return answer

    def submit_all(self, kind: Classify, files: list[bytes], gone: Gone = never) -> Batch:
        "Take on many jobs, in the lane of batches: the `Answer` to come of each, in order, until its `end`; raises `Problem` if all would be too late"
        begun, allowed, loop = time.perf_counter(), self.settings.batch_deadline, asyncio.get_running_loop()
        jobs = []
        for data in files:
            pixels, future = self.pixels(data), loop.create_future()
            bad = isinstance(pixels, Exception)
            jobs.append(Job(kind, data, 0 if bad else pixels, 0.0 if bad else kind.pace.estimate(pixels), begun + allowed, future, Lane.BATCH, gone))
            if bad: fail(future, pixels)
        self._admit(sum(job.cost for job in jobs), Lane.BATCH, allowed)
        return Batch(self.queue, jobs, ahead=2 * self.settings.threads)

    def pixels(self, data: bytes) -> int | ImageError:
        "What a picture file says it has"
        try: header = image_header(data, self.settings.limits)
        except ImageError as e: return e
        return header.width * header.height

    def _refusal(self, cost: float, lane: Lane, allowed: float) -> Problem | None:
        if problem := self.queue.refusal(cost, lane, allowed): series(SHED, 'queue').inc()
        return problem

    def _admit(self, cost: float, lane: Lane, allowed: float):
        if problem := self._refusal(cost, lane, allowed): raise problem

    def _put(self, job: Job) -> asyncio.Future:
        self.queue.put(job)
        return job.future

    def show_queue(self):
        "Tell Prometheus how much is waiting; now and then, for it looks every few seconds only"
        WAITING.set(self.queue.waiting())
        WAIT.set(self.queue.wait(Lane.INTERACTIVE))

    def busy_for(self, now: float) -> float:
        "Seconds that the thread which has been at work longest has been at it"
        return max((now - begun for begun in self.begun if begun is not None), default=0.0)

    def _work(self, i: int):
        "What each thread does: take jobs, do them together, hand what came of them to the event loop"
        while jobs := self.queue.take():
            try:
                with self.registry.board.alone() if jobs[0].is_large and jobs[0].is_wanted(time.perf_counter()) else nullcontext():
                    self.begun[i] = time.monotonic()
                    found = work(jobs)
            except Timeout: # another thread has a large one: those that are not go first
                self.queue.put_back(jobs)
                time.sleep(LATER)
                continue
            except Exception as e: found = [(job, e) for job in jobs] # nobody foresaw it; the request ends as our mistake
            self.begun[i] = None
            self.queue.done(jobs)
            try: jobs[0].future.get_loop().call_soon_threadsafe(_deliver, found)
            except RuntimeError: pass # the loop has ended: nobody is there to hear it


def _deliver(found: list[tuple[Job, Answer | Exception]]):
    for job, answer in found:
        if job.future.done(): continue # nobody waits for it
        fail(job.future, answer) if isinstance(answer, Exception) else job.future.set_result(answer)
