"The queue before the threads: what is refused, who is first, and that estimates learn"
import asyncio
import threading
import time
from dataclasses import dataclass

import pytest

from fashion_serve.admission import LARGE, Batch, Job, Lane, Pace, WorkQueue, fail
from fashion_serve.errors import Problem


@dataclass(frozen=True)
class Kind:
    name: str
    batch: int = 1


@pytest.fixture
def job():
    "A maker of jobs"
    loop = asyncio.new_event_loop()
    def make(cost=.01, kind=Kind('a'), lane=Lane.INTERACTIVE, deadline=60.0, **more) -> Job:
        return Job(kind, b'', 1, cost, time.perf_counter() + deadline, loop.create_future(), lane, **more)
    yield make
    loop.close()


def test_an_empty_queue_takes_everything(job):
    assert WorkQueue(1).refusal(100.0, Lane.INTERACTIVE, .2) is None # a large picture, and nobody is in its way


def test_what_would_come_too_late_is_refused_with_a_time_to_come_back(job):
    queue = WorkQueue(2)
    for _ in range(30): queue.put(job(.02))
    assert queue.wait(Lane.INTERACTIVE) == pytest.approx(.3)
    assert queue.refusal(.01, Lane.INTERACTIVE, .35) is None
    refusal = queue.refusal(.01, Lane.INTERACTIVE, .3)
    assert refusal.code == 'overloaded' and refusal.headers == {'Retry-After': '1'} and '300 ms' in refusal.detail
    assert int(queue.refusal(10, Lane.INTERACTIVE, .3).headers['Retry-After']) > 10


def test_people_before_batches(job):
    queue = WorkQueue(1)
    slow, quick = job(1.0, lane=Lane.BATCH), job(.01)
    queue.put(slow)
    assert queue.wait(Lane.INTERACTIVE) == 0 and queue.wait(Lane.BATCH) == 1 # a batch keeps nobody out
    queue.put(quick)
    assert queue.take() == [quick] and queue.take() == [slow]


def test_neighbours_of_one_kind_are_taken_together(job):
    queue = WorkQueue(1)
    jobs = [job(kind=Kind(name, batch=2 if name == 'a' else 8)) for name in 'aaabba']
    for j in jobs: queue.put(j)
    assert [queue.take() for _ in range(4)] == [jobs[:2], jobs[2:3], jobs[3:5], jobs[5:]]


def test_large_pictures_are_taken_one_by_one(job):
    queue, kind = WorkQueue(1), Kind('a', batch=8)
    jobs = [job(kind=kind) for _ in range(4)]
    jobs[1].pixels = LARGE + 1
    for j in jobs: queue.put(j)
    assert [queue.take() for _ in range(3)] == [jobs[:1], jobs[1:2], jobs[2:]]


def test_what_cannot_be_worked_on_yet_goes_behind_the_others(job):
    queue = WorkQueue(1)
    large, small = job(1.0), job(.01)
    for j in (large, small): queue.put(j)
    queue.put_back(queue.take())
    assert queue.wait(Lane.INTERACTIVE) == pytest.approx(1.01) and queue.take() == [small] and queue.take() == [large]
    for j in (small, large): queue.done([j])
    assert queue.idle() and queue.wait(Lane.INTERACTIVE) == 0


def test_an_empty_lane_waits_for_nothing_while_another_is_at_work(job):
    queue = WorkQueue(1)
    queue.put(job(1.0, lane=Lane.BATCH))
    queue.take()
    for cost in (.1, .2, .3): queue.put(job(cost))
    for _ in range(3): queue.done(queue.take())
    assert queue.refusal(100.0, Lane.INTERACTIVE, .25) is None # sums of floats drift


def test_all_of_a_batch_counts_at_once(job):
    queue = WorkQueue(1)
    batch = Batch(queue, [job(1.0, lane=Lane.BATCH) for _ in range(5)], ahead=2)
    assert queue.wait(Lane.BATCH) == 5 and queue.wait(Lane.INTERACTIVE) == queue.waiting() == 0
    coming = iter(batch)
    assert next(coming) is batch.jobs[0].future and queue.waiting() == 2 and queue.wait(Lane.BATCH) == 5
    batch.jobs[0].future.set_result(None)
    next(coming)
    assert queue.waiting() == 3 and queue.wait(Lane.BATCH) == 5
    batch.end() # its client has left
    assert queue.wait(Lane.BATCH) == 3


def test_a_batch_that_cannot_go_on_says_so_for_each_picture(job):
    queue = WorkQueue(1)
    batch = Batch(queue, [job(1.0, lane=Lane.BATCH) for _ in range(3)], ahead=1)
    coming = iter(batch)
    next(coming).set_result('done')
    queue.close()
    assert [future.exception().code for future in coming] == ['not_ready'] * 2 and batch.promised == 0


def test_nothing_is_left_of_batches_that_have_ended(job):
    queue = WorkQueue(1)
    batches = [Batch(queue, [job(.1 * i, lane=Lane.BATCH) for i in range(1, 8)], ahead=1) for _ in range(3)]
    for coming in zip(*batches, strict=True): # in turn: such sums never come out at nothing
        assert all(not future.done() for future in coming)
        queue.done(queue.take())
    for batch in batches: batch.end()
    while queue.waiting(): queue.done(queue.take())
    assert queue.wait(Lane.BATCH) == 0


def test_a_batch_goes_on_after_pictures_that_fail(job):
    queue = WorkQueue(1)
    batch = Batch(queue, [job(1.0, lane=Lane.BATCH) for _ in range(5)], ahead=2)
    for future in batch:
        while queue.waiting(): fail(queue.take()[0].future, ValueError('not a picture'))
        assert future.done()


def test_time_is_given_back_only_when_work_is_done(job):
    queue = WorkQueue(1)
    queue.put(job(.1))
    taken = queue.take()
    assert queue.wait(Lane.INTERACTIVE) == pytest.approx(.1) and not queue.idle()
    queue.done(taken)
    assert queue.wait(Lane.INTERACTIVE) == 0 and queue.idle()


def test_a_closed_queue_hands_out_what_it_has_and_takes_no_more(job):
    queue, last, found = WorkQueue(2), job(), []
    queue.put(last)
    queue.close()
    with pytest.raises(Problem, match='stopping'): queue.put(job())
    threads = [threading.Thread(target=lambda: [found.append(jobs) for jobs in iter(queue.take, [])]) for _ in range(2)]
    for t in threads: t.start()
    for t in threads: t.join(5)
    assert found == [[last]] and not any(t.is_alive() for t in threads)


def test_nobody_waits_for_some_jobs(job):
    now = time.perf_counter()
    assert job().is_wanted(now) and not job(deadline=-1).is_wanted(now) and not job(gone=lambda: True).is_wanted(now)
    cancelled = job()
    cancelled.future.cancel()
    assert not cancelled.is_wanted(now)


@pytest.mark.parametrize(('picture', 'megapixel'), [(.001, .005), (.02, .1)])
def test_estimates_come_near_the_truth(picture, megapixel):
    pace = Pace()
    for i in range(2000):
        pixels = (50_000, 200_000, 12_000_000)[i % 3]
        pace.learn(pixels, picture + megapixel * pixels / 1e6)
    for pixels in (50_000, 200_000, 12_000_000):
        assert pace.estimate(pixels) == pytest.approx(picture + megapixel * pixels / 1e6, rel=.25)


def test_one_odd_measurement_moves_an_estimate_little():
    pace = Pace()
    before = pace.estimate(200_000)
    pace.learn(200_000, 100.0)
    assert before < pace.estimate(200_000) < 1.2 * before
