"Candidates beside the model that they may replace: asked one picture at a time, and judged by their answers"
import math
import threading
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from fashion_nbdev.image import ImageError
from fashion_serve.admission import LARGE
from fashion_serve.registry import ENOUGH, LATELY, Trial
from fashion_serve.shadow import Shadow, compare
from fashion_serve.work import Answer


def prediction(label: str = 'bag'): return SimpleNamespace(top=[SimpleNamespace(label=label)])


@dataclass(frozen=True)
class Kind:
    "What is asked of a model, which here is a function of a file"
    model: SimpleNamespace
    def run(self, files: list[bytes]) -> list: return [self.model.answer(file) for file in files]


def trial_of(answer, provider: str = 'cpu') -> Trial:
    return Trial(SimpleNamespace(answer=answer, predictor=SimpleNamespace(provider=provider)), 1.0, True)


KIND = Kind(SimpleNamespace(name='stable'))
GIVEN = Answer(KIND.model, prediction(), 0.0, .001)


@pytest.fixture
def shadow():
    yield (made := Shadow())
    made.close()


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(.001)


def test_one_picture_at_a_time_and_none_waits(shadow):
    go_on, asked = threading.Event(), []
    def answer(file):
        asked.append(file)
        assert go_on.wait(10)
        return prediction()
    trial = trial_of(answer)
    for file in (b'first', b'second', b'third'): shadow.ask(trial, KIND, file, 1, GIVEN)
    go_on.set()
    until(lambda: not shadow.busy)
    shadow.ask(trial, KIND, b'fourth', 1, GIVEN)
    until(lambda: trial.answers == 2)
    assert asked == [b'first', b'fourth'] and trial.agreed == 2


def test_large_pictures_are_left_out(shadow):
    asked = []
    trial = trial_of(lambda file: asked.append(file) or prediction())
    shadow.ask(trial, KIND, b'a large PNG', LARGE + 1, GIVEN)
    shadow.ask(trial, KIND, b'\xff\xd8 a JPEG', LARGE + 1, GIVEN) # decoded smaller
    until(lambda: trial.answers)
    assert asked == [b'\xff\xd8 a JPEG']


def test_nothing_is_asked_once_it_is_closed(shadow):
    shadow.close()
    shadow.ask(trial_of(lambda file: prediction()), KIND, b'', 1, GIVEN)
    assert not shadow.is_alive()


@pytest.mark.parametrize(('found', 'failures', 'agreed'), [(prediction(), 0, 1), (prediction('coat'), 0, 0), (RuntimeError('not a number'), 1, 0), (ImageError('corrupt', 'half a file'), 0, 0)])
def test_what_counts(found, failures, agreed):
    compare(trial := trial_of(lambda file: found), KIND, b'', GIVEN)
    assert (trial.failures, trial.agreed) == (failures, agreed)


def test_a_candidate_that_raises_is_counted():
    compare(trial := trial_of(lambda file: 1 / 0), KIND, b'', GIVEN)
    assert trial.failures == 1 and '1 of its 1 answers failed' in trial.verdict()


def test_waiting_for_a_core_is_no_fault_of_the_candidate():
    "Where it computes in this thread: what has threads of its own is known by the clock alone"
    def answer(file):
        time.sleep(.1)
        return prediction()
    for provider, slow in (('cpu', False), ('openvino', True)):
        trial = trial_of(answer, provider)
        for _ in range(ENOUGH): compare(trial, KIND, b'', replace(GIVEN, seconds=.02))
        assert bool(trial.verdict()) == slow, provider


def test_slow_after_a_few_answers_but_not_for_an_odd_one():
    trial = trial_of(None)
    for _ in range(ENOUGH - 1): trial.count(.3, .1)
    assert not trial.verdict()
    trial.count(.3, .1)
    assert trial.verdict() == 'it takes 3.0 times as long'
    for _ in range(math.ceil(LATELY / 2)): trial.count(.1, .1)
    trial.count(30.0, .1)
    assert not trial.verdict()
    for _ in range(LATELY): trial.count(.3, .1) # what was long ago does not excuse it
    assert trial.verdict() and trial.answers > LATELY == len(trial.times)
