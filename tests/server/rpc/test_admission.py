from __future__ import annotations

import asyncio
import time

import pytest

from recserve.server.pipeline.errors import DeadlineExpiredError, NotReadyError, OverloadedError
from recserve.server.pipeline.types import QueryKind, Size
from recserve.server.rpc.admission import Admission

SIZE = Size(QueryKind.RECOMMEND, candidates=9, chosen=5)


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def test_full_queue_refuses_at_once_and_says_when_to_come_back():
    admission = Admission(max_queue=2, threads=1)
    admission.observe(seconds=0.4, served=[SIZE] * 2)
    tickets = [admission.admit(soon(), SIZE) for _ in range(2)]
    with pytest.raises(OverloadedError, match="queue is full with 2") as refused:
        admission.admit(soon(), SIZE)
    assert refused.value.retry_after_s == pytest.approx(0.4)
    tickets[0].release()
    admission.admit(soon(), SIZE)
    assert admission.admitted == 2


def test_retry_is_bounded_before_anything_was_measured_and_after_slow_work():
    admission = Admission(max_queue=1, threads=1)
    admission.admit(soon(), SIZE)
    with pytest.raises(OverloadedError) as unmeasured:
        admission.admit(soon(), SIZE)
    assert unmeasured.value.retry_after_s == 0.01
    admission.observe(seconds=1000, served=[SIZE])
    with pytest.raises(OverloadedError) as slow:
        admission.admit(soon(), SIZE)
    assert slow.value.retry_after_s == 10.0


def test_a_deadline_that_the_queue_cannot_meet_is_refused():
    admission = Admission(max_queue=100, threads=2)
    admission.observe(seconds=0.1, served=[SIZE])
    for _ in range(9):
        admission.admit(soon(), SIZE)
    with pytest.raises(OverloadedError, match="this and the 9 requests ahead will take about 500 ms"):
        admission.admit(soon(0.6), SIZE)  # enough on the average, which means late every second time
    admission.admit(soon(0.65), SIZE)


def test_an_empty_queue_always_admits():
    """Otherwise one slow start would refuse everybody for ever."""
    admission = Admission(max_queue=100, threads=1)
    admission.observe(seconds=60, served=[SIZE])
    admission.admit(soon(0.5), SIZE).release()
    for _ in range(100):
        admission.observe(seconds=0.001, served=[SIZE])
    admission.admit(soon(0.5), SIZE)
    admission.admit(soon(0.5), SIZE)


def test_dear_requests_do_not_make_others_dear():
    """Six of them, one after another, and then a hundred cheap ones at once."""
    dear = Size(QueryKind.RANK, candidates=13, chosen=13)
    admission = Admission(max_queue=200, threads=1)
    for _ in range(50):
        admission.observe(seconds=0.002, served=[SIZE])
    for _ in range(6):
        admission.observe(seconds=0.5, served=[dear])
    tickets = [admission.admit(soon(1.0), SIZE) for _ in range(100)]
    with pytest.raises(OverloadedError, match="the 100 requests ahead will take about 700 ms"):
        admission.admit(soon(0.8), dear)
    admission.admit(soon(1.0), dear)
    with pytest.raises(OverloadedError, match="the 101 requests ahead will take about 702 ms"):
        admission.admit(soon(0.8), SIZE)
    for ticket in tickets:
        ticket.release()
    with pytest.raises(OverloadedError, match="the 1 requests ahead will take about 502 ms"):
        admission.admit(soon(0.6), SIZE)


def test_a_batch_of_several_sizes_is_divided_as_they_were_expected_to_take_it():
    dear = Size(QueryKind.RANK, candidates=13, chosen=13)
    admission = Admission(max_queue=100, threads=1)
    admission.observe(seconds=0.1, served=[SIZE])
    admission.observe(seconds=0.3, served=[dear])
    for _ in range(200):
        admission.observe(seconds=1.0, served=[SIZE, dear, SIZE])  # twice the 0.5 that was expected
    admission.admit(soon(), SIZE)
    with pytest.raises(OverloadedError, match="will take about 800 ms"):
        admission.admit(soon(0.5), dear)
    with pytest.raises(OverloadedError, match="will take about 400 ms"):
        admission.admit(soon(0.3), SIZE)


def test_a_batch_of_which_all_were_late_can_raise_the_estimate_and_never_lower_it():
    admission = Admission(max_queue=100, threads=1)
    admission.observe(seconds=0.4, served=[], given_up=[SIZE])  # the first ever
    admission.admit(soon(), SIZE)
    with pytest.raises(OverloadedError, match="will take about 800 ms"):
        admission.admit(soon(0.5), SIZE)
    admission.observe(seconds=0.01, served=[], given_up=[SIZE] * 30)
    with pytest.raises(OverloadedError, match="will take about 800 ms"):
        admission.admit(soon(0.5), SIZE)


def test_a_passed_deadline_is_not_admitted():
    with pytest.raises(DeadlineExpiredError, match="admission"):
        Admission(max_queue=1, threads=1).admit(time.monotonic() - 0.001, SIZE)


def test_a_ticket_is_given_back_once():
    admission = Admission(max_queue=5, threads=1)
    with admission.admit(soon(), SIZE) as ticket:
        other = admission.admit(soon(), SIZE)
        ticket.release()
        ticket.release()
        assert admission.admitted == 1
    assert admission.admitted == 1
    other.release()
    assert admission.admitted == 0


def test_draining_refuses_and_waits_for_those_inside(run):
    async def scenario() -> None:
        admission = Admission(max_queue=5, threads=1)
        ticket = admission.admit(soon(), SIZE)
        admission.close()
        with pytest.raises(NotReadyError, match="draining"):
            admission.admit(soon(), SIZE)
        drained = asyncio.create_task(admission.drained())
        await asyncio.sleep(0.01)
        assert not drained.done()
        ticket.release()
        await drained

    run(scenario())


def test_who_needs_no_compute_thread_takes_no_place_in_the_queue():
    """Until it turns out to need one; draining waits for it either way."""
    admission = Admission(max_queue=1, threads=1)
    queued = admission.admit(soon(), SIZE)
    passing = admission.admit(soon(), SIZE, queued=False)
    with pytest.raises(OverloadedError):
        passing.enqueue()
    queued.release()
    passing.enqueue()
    passing.enqueue()  # it has a place
    with pytest.raises(OverloadedError):
        admission.admit(soon(), SIZE)
    assert admission.admitted == 1
    passing.release()
    passing.enqueue()  # it is over: nothing is taken that nobody would give back
    admission.admit(soon(), SIZE).release()

    async def drain():
        other = admission.admit(soon(), SIZE, queued=False)
        admission.close()
        with pytest.raises(NotReadyError):
            admission.admit(soon(), SIZE, queued=False)
        asyncio.get_running_loop().call_later(0.01, other.release)
        await asyncio.wait_for(admission.drained(), 5)

    asyncio.run(drain())
    with pytest.raises(DeadlineExpiredError):
        Admission(max_queue=1, threads=1).admit(time.monotonic() - 0.001, SIZE, queued=False)
