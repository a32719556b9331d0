from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from recserve.kernels.features import ColumnLayout, ColumnValues
from recserve.server.pipeline.errors import BundleLacksError, DeadlineExpiredError, NotReadyError, OverloadedError
from recserve.server.pipeline.types import Query, QueryKind, Result, UserState
from recserve.server.rpc.admission import Admission
from recserve.server.rpc.batcher import Batcher

NO_COLUMNS = ColumnValues.missing(ColumnLayout(()), 1)
USER = UserState(known=True, columns=NO_COLUMNS)


def query(seed: int, *, seconds: float | None = 30.0, candidates: int = 500) -> Query:
    deadline = None if seconds is None else time.monotonic() + seconds
    return Query(
        kind=QueryKind.RECOMMEND,
        user_id=f"u{seed}",
        count=seed % 7,
        time_us=seed,
        context=NO_COLUMNS,
        candidates=candidates,
        deadline=deadline,
    )


@dataclass
class Echo:
    """Answers each query from its own fields alone, as a pipeline does, and remembers its batches."""

    gate: threading.Event = field(default_factory=threading.Event)
    """Closed: compute threads stop at it."""
    batches: list[list[int]] = field(default_factory=list)
    gone: list[list[int]] = field(default_factory=list)
    """By batch, the places of those who had left when it came through the gate."""
    lacking: frozenset[int] = frozenset()
    """Seeds that are answered by a RequestError."""
    poison: frozenset[int] = frozenset()
    """Seeds whose presence raises for the whole batch."""
    jitter: float = 0.0

    def __post_init__(self) -> None:
        self.gate.set()

    def run(
        self, work: Sequence[tuple[Query, UserState]], *, gone: Callable[[int], bool] | None = None
    ) -> list[Result | Exception]:
        seeds = [each.time_us for each, _ in work]
        self.batches.append(seeds)
        assert self.gate.wait(20)
        time.sleep(self.jitter * random.random())
        if self.poison.intersection(seeds):
            raise ZeroDivisionError(f"poison in {seeds}")
        self.gone.append([index for index in range(len(work)) if gone is not None and gone(index)])
        return [self._answer(each) for each, _ in work]

    def _answer(self, asked: Query) -> Result | Exception:
        if asked.expired():
            return DeadlineExpiredError("rank")
        if asked.time_us in self.lacking:
            return BundleLacksError("rerank.mmr", f"query {asked.time_us}")
        rng = np.random.default_rng(asked.time_us)
        rows = rng.integers(0, 1_000_000, asked.count)
        nothing = np.empty((asked.count, 0))
        return Result(
            rows=rows,
            scores=rng.random(asked.count),
            relevance=None,
            sources=(),
            source_scores=nothing.astype(np.float32),
            source_ranks=nothing.astype(np.int32),
        )


@dataclass
class Slow:
    """Takes 8 ms a request after the first few, and learns afterwards who was too late."""

    firsts: list[float]
    """Seconds for each of the first."""

    def run(
        self, work: Sequence[tuple[Query, UserState]], *, gone: Callable[[int], bool] | None = None
    ) -> list[Result | Exception]:
        for _ in work:
            time.sleep(self.firsts.pop() if self.firsts else 0.008)
        return Echo().run(work, gone=gone)


def same(left: Result, right: Result) -> bool:
    return np.array_equal(left.rows, right.rows) and np.array_equal(left.scores, right.scores)


async def until(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError("the condition did not come true")


@pytest.mark.parametrize("threads", [1, 3])
def test_64_callers_get_what_they_would_get_alone(run, threads):
    """Cancellations, expired and short deadlines, refusals and poison are mixed in."""
    rng = random.Random(7)
    pipelines = [
        Echo(jitter=0.002, lacking=frozenset(range(0, 10_000, 11)), poison=frozenset(range(0, 10_000, 97)))
        for _ in range(2)
    ]
    alone = Echo(lacking=pipelines[0].lacking)
    kinds = {"answered": 0, "cancelled": 0, "expired": 0, "lacking": 0, "poison": 0}
    told: dict[int, str] = {}
    impatient: list[bool] = []

    async def ask(batcher: Batcher, seed: int) -> None:
        how = rng.random()
        asked = query(seed, seconds=-1.0 if how < 0.1 else 0.002 if how < 0.2 else 30.0)
        task = asyncio.create_task(batcher.submit(rng.choice(pipelines), asked, USER))
        if 0.2 <= how < 0.4:
            await asyncio.sleep(rng.random() * 0.005)
            task.cancel()
        try:
            result, queue_us = await task
        except asyncio.CancelledError:
            kinds["cancelled"] += 1
        except DeadlineExpiredError:
            kinds["expired"] += 1
            impatient.append(how < 0.2)
        except (BundleLacksError, ZeroDivisionError) as error:
            kinds["lacking" if isinstance(error, BundleLacksError) else "poison"] += 1
            told[seed] = str(error)
        else:
            assert same(result, alone.run([(query(seed), USER)])[0])
            assert queue_us >= 0
            kinds["answered"] += 1

    async def caller(batcher: Batcher, first: int) -> None:
        for seed in range(first, first + 10):
            await ask(batcher, seed)

    async def scenario() -> None:
        batcher = Batcher(threads, max_batch=8)
        await asyncio.gather(*(caller(batcher, 10 * index) for index in range(64)))
        await batcher.close()

    run(scenario())
    assert sum(kinds.values()) == 640
    assert all(kinds.values()), kinds
    assert all(impatient)
    assert all(text in (f"poison in [{seed}]", f"rerank.mmr: query {seed}") for seed, text in told.items())
    sizes = [len(batch) for pipeline in pipelines for batch in pipeline.batches]
    assert max(sizes) > 1
    assert max(sizes) <= 8


def test_an_idle_thread_is_used_at_once(run):
    pipeline = Echo()

    async def scenario() -> None:
        batcher = Batcher(threads=2, max_batch=32)
        pipeline.gate.clear()
        first = asyncio.create_task(batcher.submit(pipeline, query(1), USER))
        await until(lambda: len(pipeline.batches) == 1)
        second = asyncio.create_task(batcher.submit(pipeline, query(2), USER))
        await until(lambda: len(pipeline.batches) == 2)  # while the first is still being computed
        pipeline.gate.set()
        await asyncio.gather(first, second)
        await batcher.close()

    run(scenario())


def test_what_queues_up_goes_together_up_to_the_limit(run):
    pipeline = Echo()

    async def scenario() -> None:
        batcher = Batcher(threads=1, max_batch=4)
        pipeline.gate.clear()
        tasks = [asyncio.create_task(batcher.submit(pipeline, query(0), USER))]
        await until(lambda: pipeline.batches)
        tasks += [asyncio.create_task(batcher.submit(pipeline, query(seed), USER)) for seed in range(1, 7)]
        await asyncio.sleep(0.01)
        pipeline.gate.set()
        await asyncio.gather(*tasks)
        await batcher.close()

    run(scenario())
    assert pipeline.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_a_batch_is_limited_by_its_candidates_too(run):
    """Heavy requests do not wait for one another; the heaviest goes alone."""
    pipeline = Echo()
    candidates = [5_000, 5_000, 5_000, 5_000, 20_000, 1_384, 5_000, 5_000, 5_000, 1]

    async def scenario() -> None:
        batcher = Batcher(threads=1, max_batch=32)
        pipeline.gate.clear()
        tasks = [asyncio.create_task(batcher.submit(pipeline, query(100), USER))]
        await until(lambda: pipeline.batches)
        for seed, size in enumerate(candidates):
            tasks.append(asyncio.create_task(batcher.submit(pipeline, query(seed, candidates=size), USER)))
        await asyncio.sleep(0.01)
        pipeline.gate.set()
        await asyncio.gather(*tasks)
        await batcher.close()

    run(scenario())
    assert pipeline.batches == [[100], [0, 1, 2], [3], [4], [5, 6, 7, 8], [9]]


def test_idle_threads_share_what_arrives_together(run):
    pipeline = Echo()

    async def scenario() -> None:
        batcher = Batcher(threads=3, max_batch=32)
        await asyncio.gather(*(batcher.submit(pipeline, query(seed), USER) for seed in range(9)))
        await batcher.close()

    run(scenario())
    assert sorted(pipeline.batches) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_pipelines_do_not_share_a_batch_and_keep_their_order(run):
    left, right = Echo(), Echo()

    async def scenario() -> None:
        batcher = Batcher(threads=1, max_batch=32)
        left.gate.clear()
        first = asyncio.create_task(batcher.submit(left, query(0), USER))
        await until(lambda: left.batches)
        later = [batcher.submit(right if seed % 2 else left, query(seed), USER) for seed in range(1, 7)]
        tasks = [asyncio.create_task(each) for each in later]
        await asyncio.sleep(0.01)
        left.gate.set()
        await asyncio.gather(first, *tasks)
        await batcher.close()

    run(scenario())
    assert left.batches == [[0], [2, 4, 6]]
    assert right.batches == [[1, 3, 5]]


def test_who_leaves_is_not_computed_and_disturbs_nobody(run):
    pipeline = Echo()

    async def scenario() -> None:
        batcher = Batcher(threads=1, max_batch=8)
        pipeline.gate.clear()
        first = asyncio.create_task(batcher.submit(pipeline, query(0), USER))
        await until(lambda: pipeline.batches)
        tasks = [asyncio.create_task(batcher.submit(pipeline, query(seed), USER)) for seed in range(1, 5)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        first.cancel()  # in the middle of being computed
        await asyncio.sleep(0.01)
        pipeline.gate.set()
        outcomes = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert [type(each) for each in outcomes] == [
            asyncio.CancelledError,
            tuple,
            asyncio.CancelledError,
            tuple,
            tuple,
        ]
        # The same batcher goes on as if nothing had happened.
        result, _ = await batcher.submit(pipeline, query(9), USER)
        assert same(result, Echo().run([(query(9), USER)])[0])
        await batcher.close()

    run(scenario())
    assert pipeline.batches == [[0], [1, 3, 4], [9]]
    assert pipeline.gone == [[0], [], []]


def test_a_deadline_is_kept_by_the_one_who_waits(run):
    pipeline = Echo()

    async def scenario() -> None:
        batcher = Batcher(threads=1, max_batch=8)
        pipeline.gate.clear()
        computing = asyncio.create_task(batcher.submit(pipeline, query(0, seconds=0.05), USER))
        await until(lambda: pipeline.batches)
        queued = asyncio.create_task(batcher.submit(pipeline, query(1, seconds=0.02), USER))
        with pytest.raises(DeadlineExpiredError, match="stage queue"):
            await queued
        with pytest.raises(DeadlineExpiredError, match="stage compute"):
            await computing  # although its thread is still busy
        with pytest.raises(DeadlineExpiredError, match="stage queue"):
            await batcher.submit(pipeline, query(2, seconds=-1), USER)
        pipeline.gate.set()
        await batcher.submit(pipeline, query(3, seconds=None), USER)
        with pytest.raises(DeadlineExpiredError, match="stage queue"):
            await batcher.submit(pipeline, query(4, seconds=-1), USER)  # although a thread is idle
        await batcher.close()

    run(scenario())
    assert pipeline.batches == [[0], [3]]


def test_an_exception_of_one_request_is_its_callers_alone(run):
    pipeline = Echo(lacking=frozenset({1}), poison=frozenset({2}))

    async def scenario() -> list[object]:
        batcher = Batcher(threads=1, max_batch=8)
        tasks = [batcher.submit(pipeline, query(seed), USER) for seed in range(4)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.close()
        return outcomes

    outcomes = run(scenario())
    assert [type(each) for each in outcomes] == [tuple, BundleLacksError, ZeroDivisionError, tuple]
    assert pipeline.batches == [[0, 1, 2, 3], [0], [1], [2], [3]]


def test_a_pipeline_that_loses_an_answer_is_an_error(run):
    class Forgetful(Echo):
        def run(self, work, *, gone=None):
            return super().run(work, gone=gone)[1:]

    async def scenario() -> None:
        batcher = Batcher(threads=1, max_batch=8)
        with pytest.raises(RuntimeError, match="0 outcomes for 1 requests"):
            await batcher.submit(Forgetful(), query(0), USER)
        await batcher.close()

    run(scenario())


def test_close_finishes_what_was_submitted_and_refuses_the_rest(run):
    pipeline = Echo()

    async def scenario() -> None:
        batcher = Batcher(threads=1, max_batch=2)
        pipeline.gate.clear()
        tasks = [asyncio.create_task(batcher.submit(pipeline, query(seed), USER)) for seed in range(5)]
        await until(lambda: pipeline.batches)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.01)
        with pytest.raises(NotReadyError, match="draining"):
            await batcher.submit(pipeline, query(9), USER)
        assert not closing.done()
        pipeline.gate.set()
        await closing
        assert all(task.done() for task in tasks)
        await asyncio.gather(*tasks)

    run(scenario())


def test_a_close_that_is_cancelled_leaves_a_busy_thread_to_end_by_itself(run):
    pipeline = Echo()

    async def scenario() -> None:
        batcher = Batcher(threads=2, max_batch=2)
        pipeline.gate.clear()
        task = asyncio.create_task(batcher.submit(pipeline, query(0), USER))
        await until(lambda: pipeline.batches)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.close(), 0.05)
        threads = batcher._threads
        await until(lambda: sum(thread.is_alive() for thread in threads) == 1)  # the idle one ends at once
        assert all(thread.daemon for thread in threads)
        pipeline.gate.set()
        await task
        await until(lambda: not any(thread.is_alive() for thread in threads))

    run(scenario())


def test_a_thread_outlives_its_loop_in_silence(run):
    pipeline = Echo()
    threads: list[threading.Thread] = []

    async def scenario() -> None:
        batcher = Batcher(threads=1, max_batch=2)
        threads.extend(batcher._threads)
        pipeline.gate.clear()
        task = asyncio.create_task(batcher.submit(pipeline, query(0), USER))
        await until(lambda: pipeline.batches)
        task.cancel()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.close(), 0.01)

    run(scenario())
    pipeline.gate.set()
    threads[0].join(10)
    assert not threads[0].is_alive()


def test_an_idle_thread_does_not_keep_a_pipeline(run):
    async def scenario() -> None:
        batcher = Batcher(threads=1, max_batch=8)
        pipeline = Echo()
        gone = weakref.ref(pipeline)
        await batcher.submit(pipeline, query(0), USER)
        del pipeline
        await until(lambda: gone() is None)
        await batcher.close()

    run(scenario())


def test_batches_are_observed(run):
    observed: list[tuple[float, int]] = []

    async def scenario() -> None:
        batcher = Batcher(1, 8, lambda seconds, served, _given_up: observed.append((seconds, len(served))))
        await asyncio.gather(*(batcher.submit(Echo(jitter=0.001), query(seed), USER) for seed in range(3)))
        await batcher.close()

    run(scenario())
    assert sum(requests for _, requests in observed) == 3
    assert all(seconds > 0 for seconds, _ in observed)


def test_who_was_too_late_is_observed_apart(run):
    observed: list[tuple[int, int]] = []
    pipeline = Echo()

    async def scenario() -> None:
        batcher = Batcher(1, 8, lambda _seconds, *sizes: observed.append((len(sizes[0]), len(sizes[1]))))
        pipeline.gate.clear()
        asked = [query(0), *(query(seed, seconds=0.2) for seed in range(1, 5))]
        calls = [asyncio.create_task(batcher.submit(pipeline, each, USER)) for each in asked]
        await until(lambda: pipeline.batches)
        await asyncio.sleep(0.3)
        pipeline.gate.set()
        await asyncio.gather(*calls, return_exceptions=True)
        late = batcher.submit(pipeline, query(5, seconds=-1.0), USER)
        await asyncio.gather(late, return_exceptions=True)
        await batcher.close()

    run(scenario())
    assert pipeline.batches[0] == [0, 1, 2, 3, 4]
    assert observed == [(1, 4)]


@pytest.mark.parametrize(
    "firsts", [[0.4], [0.001] * 600], ids=["after a slow start", "after requests that grew dearer"]
)
def test_a_server_that_was_taken_for_fast_serves_again(run, firsts):
    """Under several times the load that it can bear."""
    pipeline = Slow(list(firsts))
    answered: list[float] = []

    async def ask(admission: Admission, batcher: Batcher) -> None:
        asked = query(0, seconds=0.05)
        assert asked.deadline is not None
        with contextlib.suppress(DeadlineExpiredError, OverloadedError), admission.admit(asked.deadline, asked.size):
            await batcher.submit(pipeline, asked, USER)
            answered.append(time.monotonic())

    async def scenario() -> None:
        admission = Admission(1024, 1)
        batcher = Batcher(1, 32, admission.observe)
        start = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for call in range(2400):
                await asyncio.sleep(start + call / 800 - time.monotonic())
                group.create_task(ask(admission, batcher))
        await batcher.close()
        assert sum(when > start + 2.0 for when in answered) > 40  # of the 125 that a second has time for

    run(scenario())


def test_given_items_count_as_often_as_they_are_searched_for(run):
    pipeline = Echo()

    async def scenario() -> None:
        batcher = Batcher(1, 8)
        seeds = np.arange(20)
        asked = [replace(query(each), kind=QueryKind.SIMILAR, given_rows=seeds) for each in range(4)]
        await asyncio.gather(*(batcher.submit(pipeline, each, USER) for each in asked))
        await batcher.close()

    run(scenario())
    assert pipeline.batches == [[0], [1], [2], [3]]
