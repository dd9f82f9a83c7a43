"Candidates asked in the shadow: in a thread of their own, behind all that people wait for, one picture at a time"
import os
import sys
import time
from dataclasses import replace
from queue import SimpleQueue
from threading import Thread

from fashion_nbdev.image import ImageError
from fashion_serve.admission import is_large
from fashion_serve.errors import Problem
from fashion_serve.metrics import SHADOWS
from fashion_serve.registry import Trial
from fashion_serve.work import Answer, Classify

NICE = 5 # how far the thread stands back: further, and where others keep the cores busy it would hold the interpreter's lock while it waits for its turn


class Shadow(Thread):
    "Compares a candidate's answers with those that were given; what comes while it is at work is left out"
    def __init__(self):
        super().__init__(name='shadow', daemon=True) # nobody waits for it, not even at the end
        self.given, self.busy, self.closed = SimpleQueue(), False, False

    def ask(self, trial: Trial, kind: Classify, data: bytes, pixels: int, answer: Answer):
        "Ask the candidate what the model has answered, if there is time for it; a large picture takes memory that others may need"
        if self.busy or self.closed or is_large(data, pixels): return
        self.busy = True
        if not self.is_alive(): self.start()
        self.given.put((trial, kind, data, answer))

    def close(self):
        "Ask no more"
        self.closed = True
        self.given.put(None)

    def run(self):
        if sys.platform == 'linux': os.nice(NICE) # there of this thread alone
        for given in iter(self.given.get, None):
            compare(*given)
            del given # or the candidate would stay in memory until the next one is asked
            self.busy = False


def compare(trial: Trial, kind: Classify, data: bytes, answer: Answer):
    "Ask, and note in the trial how it went"
    clock = time.thread_time if trial.model.predictor.provider == 'cpu' else time.perf_counter # waiting is no fault of the candidate, but others compute in threads of their own
    begun = clock()
    try: [found] = replace(kind, model=trial.model).run([data])
    except Exception as e: found = e # nobody foresaw it: it counts, and the next one is asked
    if isinstance(found, Exception):
        trial.failures += not isinstance(found, Problem | ImageError)
        return
    trial.count(clock() - begun, answer.seconds)
    agrees = found.top[0].label == answer.value.top[0].label
    trial.agreed += agrees
    SHADOWS.labels(kind.model.name, str(agrees).lower()).inc()
