"What is taken on: work is estimated in seconds before it is done, and what would come too late is refused at once"
import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import zip_longest
from threading import Condition
from typing import Any

from fashion_serve.errors import Problem

LARGE, JPEG = 6_000_000, b'\xff\xd8' # pixels, at four bytes each and some copies
WARY = 1.5 # a refusal names a wait that is longer than estimated by this factor


class Lane(IntEnum):
    "Who is served first"
    INTERACTIVE = 0
    BATCH = 1


class Pace:
    "How long work takes here and now: seconds for a picture, and for each million pixels of its file; learnt while serving"
    def __init__(self, picture: float = .005, megapixel: float = .02, memory: float = .05):
        self.picture, self.megapixel, self.memory = picture, megapixel, memory

    def estimate(self, pixels: int) -> float:
        return self.picture + self.megapixel * pixels / 1e6

    def learn(self, pixels: int, seconds: float):
        "Move the estimate towards what was measured, each part by its share of it"
        estimate = self.estimate(pixels)
        ratio = min(4.0, max(.25, seconds / estimate)) # one odd measurement counts for no more
        share = self.picture / estimate
        self.picture *= 1 + self.memory * share * (ratio - 1)
        self.megapixel *= 1 + self.memory * (1 - share) * (ratio - 1)


Gone = Callable[[], bool] # whether the client has left; asked from any thread


def never() -> bool: return False


def is_large(data: Any, pixels: int) -> bool:
    "Whether a picture is decoded to so many pixels that this should happen to one at a time; a JPEG is decoded smaller"
    return pixels > LARGE and isinstance(data, bytes) and not data.startswith(JPEG)


@dataclass(slots=True, eq=False)
class Job:
    "One picture on its way through the service"
    kind: Any # what is asked of whom, see work.py; equal ones can be done together
    data: Any # what its kind takes: a picture file, a tensor
    pixels: int # width times height of the picture, or of all in a tensor
    cost: float # estimated seconds of one thread
    deadline: float # `time.perf_counter()` after which nobody waits for it
    future: asyncio.Future
    lane: Lane = Lane.INTERACTIVE
    gone: Gone = never
    queued: float = field(default_factory=time.perf_counter)

    def is_wanted(self, now: float) -> bool:
        return now <= self.deadline and not self.future.done() and not self.gone()

    @property
    def is_large(self) -> bool: return is_large(self.data, self.pixels)


class WorkQueue:
    "Jobs that wait for a thread, those of people first; its length is counted in seconds of work"
    def __init__(self, threads: int):
        self.threads = threads
        self.lanes = [deque() for _ in Lane]
        self.seconds = [0.0 for _ in Lane] # of work that waits, or has been taken and is not done
        self.open = [0 for _ in Lane] # jobs likewise
        self.batches = set() # taken on, and not all of their work waits here yet
        self.working = 0 # jobs taken and not done
        self.changed = Condition()
        self.closed = False

    def wait(self, lane: Lane) -> float:
        "Estimated seconds until a job that came now would begin"
        promised = sum(batch.promised for batch in self.batches) if lane == Lane.BATCH else 0
        return (sum(self.seconds[:lane + 1]) + promised) / self.threads

    def refusal(self, cost: float, lane: Lane, allowed: float) -> Problem | None:
        "What to say if all that waits would not leave a job of this cost enough of its `allowed` seconds"
        wait = self.wait(lane)
        if wait == 0 or wait + cost <= allowed: return None
        retry = math.ceil(max(1.0, WARY * (wait + cost - allowed)))
        return Problem('overloaded', f'{wait * 1000:.0f} ms of work are waiting: please try again in {retry} s', {'Retry-After': str(retry)})

    def put(self, job: Job):
        with self.changed:
            if self.closed: raise Problem('not_ready', 'the service is stopping: please send it again', {'Retry-After': '1'})
            self.lanes[job.lane].append(job)
            self.seconds[job.lane] += job.cost
            self.open[job.lane] += 1
            self.changed.notify()

    def take(self) -> list[Job]:
        "Wait for the next job, and take those of the same kind that wait behind it, up to its `batch`, large ones one by one; [] once closed and empty"
        with self.changed:
            while not (lane := next(filter(None, self.lanes), None)):
                if self.closed: return []
                self.changed.wait()
            jobs = [lane.popleft()]
            while lane and lane[0].kind == jobs[0].kind and len(jobs) < jobs[0].kind.batch and not (jobs[0].is_large or lane[0].is_large): jobs.append(lane.popleft())
            self.working += len(jobs)
            return jobs

    def done(self, jobs: list[Job]):
        "Their work no longer counts"
        with self.changed:
            for job in jobs:
                self.open[job.lane] -= 1
                self.seconds[job.lane] = self.seconds[job.lane] - job.cost if self.open[job.lane] else 0.0 # sums of many floats drift
            self.working -= len(jobs)

    def put_back(self, jobs: list[Job]):
        "They cannot be worked on yet: behind all others of their lane"
        with self.changed:
            self.lanes[jobs[0].lane].extend(jobs)
            self.working -= len(jobs)
            self.changed.notify()

    def waiting(self) -> int:
        "Jobs that nobody works on yet"
        return sum(map(len, self.lanes))

    def idle(self) -> bool:
        "Whether nothing waits and nothing is being worked on"
        return not self.working and not self.waiting()

    def close(self):
        "Take no more; what waits is still handed out"
        with self.changed:
            self.closed = True
            self.changed.notify_all()


def fail(future: asyncio.Future, e: Exception):
    "End a job badly"
    future.set_exception(e)
    future.exception() # marks it as seen: whoever should have waited may have left


class Batch:
    "Jobs that were taken on together: all of their work counts from now on, though few of them wait for a thread at a time"
    def __init__(self, queue: WorkQueue, jobs: list[Job], ahead: int):
        self.queue, self.jobs, self.ahead = queue, jobs, ahead
        self.promised = sum(job.cost for job in jobs) # seconds of work that does not wait in the queue yet
        queue.batches.add(self)

    def __iter__(self) -> Iterator[asyncio.Future]: # what becomes of each, in order
        for job in self.jobs[:self.ahead]: self._put(job)
        for job, later in zip_longest(self.jobs, self.jobs[self.ahead:]):
            yield job.future
            if later: self._put(later)

    def _put(self, job: Job):
        if job.future.done(): return # it is known to be bad
        self.promised -= job.cost
        try: self.queue.put(job)
        except Problem as e: fail(job.future, e) # its own line says so, and those that are done are still sent

    def end(self):
        "What was not begun never will be"
        self.queue.batches.discard(self)
