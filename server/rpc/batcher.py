"""Brings requests to the compute threads in micro-batches.

    submit -> waiting (in order) -> a compute thread runs one batch -> each caller gets its own outcome

Nothing waits for a batch to fill: while a thread is idle, whatever is there goes to it. Batches form by themselves
from what queues up while all threads are busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from recserve.server.pipeline.errors import CallerGoneError, DeadlineExpiredError, NotReadyError
from recserve.server.pipeline.types import Query, Result, Size, UserState

logger = logging.getLogger(__name__)

_MAX_CANDIDATES: Final = 16_384
"""Most candidates of all requests in one batch (`Query.work`). What a batch shares, a call of each kernel, is nothing
beside the work of a few hundred candidates, but each request waits for the work of all: beyond this, sharing only adds
to latency."""

Outcome = Result | Exception
"""An answer, or why there is none."""


class Runnable(Protocol):
    """What the compute threads run; recserve.server.pipeline.pipeline.Pipeline in the server."""

    def run(
        self, work: Sequence[tuple[Query, UserState]], *, gone: Callable[[int], bool] | None = None
    ) -> list[Outcome]:
        """Outcomes in the order of `work`; called from several threads at once.

        Args:
            work: queries with their users' states.
            gone: tells whether nobody waits for work[i] any more, so that no further work is put into it.
        """
        ...


class _Entry:
    """One caller's request, from submit to its outcome."""

    __slots__ = ("enqueued", "outcome", "pipeline", "query", "started", "state")

    def __init__(self, pipeline: Runnable, query: Query, state: UserState) -> None:
        self.pipeline = pipeline
        self.query = query
        self.state = state
        self.enqueued = time.monotonic()
        self.started: float | None = None
        # The outcome is a result even where it is an exception: a future's exception that nobody fetches, because
        # the caller has left, would be reported as an error of the loop.
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def deliver(self, outcome: Outcome) -> None:
        """Hand the outcome over, unless the caller has left."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def expire(self) -> None:
        """The deadline has passed."""
        self.deliver(DeadlineExpiredError("queue" if self.started is None else "compute"))

    def wanted(self) -> bool:
        """Whether anybody waits. Compute threads may ask: a stale yes only costs work."""
        return not self.outcome.done() and not self.query.expired()

    def queue_us(self) -> int:
        """Microseconds between submit and the start of its batch."""
        return round(((self.started or time.monotonic()) - self.enqueued) * 1e6)


class Batcher:
    """Micro-batches for `threads` compute threads. Used on one event loop, which must run when it is made.

    The threads are daemons: a kernel cannot be interrupted, and a process that has to end does not wait for one.

    Args:
        threads: compute threads.
        max_batch: most requests in one batch.
        observe: told of each batch: seconds from its dispatch until its answers were back on the loop, and the sizes
            of requests in it that were seen through and of those that were given up. Where the loop and the threads
            share a core, the loop's work is most of what a busy server adds.
    """

    def __init__(
        self, threads: int, max_batch: int, observe: Callable[[float, list[Size], list[Size]], None] = lambda *_: None
    ) -> None:
        self._max_batch = max_batch
        self._observe = observe
        self._idle = threads
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[_Entry, None] = {}  # in order of arrival; a caller who leaves is taken out at once
        self._batches: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"compute-{index}", daemon=True) for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        self._dispatching = False
        self._open = True
        self._at_rest = asyncio.Event()
        self._at_rest.set()

    async def submit(self, pipeline: Runnable, query: Query, state: UserState) -> tuple[Result, int]:
        """Answer one request. Cancelling the call takes it out of the queue and disturbs no other.

        Args:
            pipeline: what to run; only requests of the same object share a batch.
            query: the request; after its deadline nobody waits for it, here or in a compute thread.
            state: of its user.

        Returns:
            The answer, and the microseconds that the request waited for a compute thread.

        Raises:
            DeadlineExpiredError: the deadline passed before the answer was there.
            NotReadyError: the batcher is closed.
            Exception: what the pipeline said of this request.
        """
        if not self._open:
            raise NotReadyError("the server is draining; ask another replica")
        entry = _Entry(pipeline, query, state)
        timer = None
        if query.deadline is not None:
            timer = self._loop.call_later(query.deadline - entry.enqueued, entry.expire)
        self._waiting[entry] = None
        self._at_rest.clear()
        self._wake()
        try:
            outcome = await entry.outcome
        finally:
            self._waiting.pop(entry, None)
            self._note_rest()
            if timer is not None:
                timer.cancel()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome, entry.queue_us()

    async def close(self) -> None:
        """Refuse new requests, finish those that were submitted, end the threads.

        Cancelling it stops the waiting: each thread then ends by itself with the batch that it is at.
        """
        self._open = False
        try:
            await self._at_rest.wait()
        finally:
            for _ in self._threads:
                self._batches.put(None)

    def _wake(self) -> None:
        """Dispatch once this turn of the loop is over, so that requests which arrived together go together."""
        if self._idle and not self._dispatching:
            self._dispatching = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatching = False
        while self._idle and self._waiting and (batch := self._take()):
            self._idle -= 1
            self._batches.put(_Batch(batch, time.monotonic()))

    def _take(self) -> list[_Entry]:
        """The next batch: the oldest request and its fellows, but no more than each idle thread's fair share."""
        most = min(self._max_batch, -(-len(self._waiting) // self._idle))
        batch: list[_Entry] = []
        candidates = 0
        for entry in self._waiting:
            # Who is no longer wanted is taken out by the timer, or by the caller's departure.
            if not entry.wanted() or (batch and entry.pipeline is not batch[0].pipeline):
                continue
            candidates += entry.query.work
            if batch and (len(batch) == most or candidates > _MAX_CANDIDATES):
                break
            batch.append(entry)
        for entry in batch:
            del self._waiting[entry]
        return batch

    def _work(self) -> None:
        """A compute thread: run batches until there is None."""
        _compute_in_the_background()
        while (batch := self._batches.get()) is not None:
            outcomes = _compute(batch.entries)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._finished, batch, outcomes)
            del batch, outcomes  # an idle thread must not keep the bundle of its last batch

    def _finished(self, batch: _Batch, outcomes: list[Outcome]) -> None:
        self._idle += 1
        served: list[Size] = []
        given_up: list[Size] = []
        for entry, outcome in zip(batch.entries, outcomes, strict=True):
            late = isinstance(outcome, CallerGoneError | DeadlineExpiredError)
            (given_up if late else served).append(entry.query.size)
            entry.deliver(outcome)
        self._observe(time.monotonic() - batch.dispatched, served, given_up)
        self._dispatch()
        self._note_rest()

    def _note_rest(self) -> None:
        if not self._waiting and self._idle == len(self._threads):
            self._at_rest.set()


def _compute_in_the_background() -> None:
    """Tell the scheduler that this thread is busy rather than urgent.

    Each time it wakes, with the interpreter's lock back in hand, it would otherwise interrupt the event loop where the
    two share a core, and the loop would have to wait for that lock at once.
    """
    if sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_OTHER:
        try:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        except OSError as error:
            logger.info("compute threads keep the loop's scheduling policy, which costs some CPU: %s", error)


class _Batch(NamedTuple):
    entries: list[_Entry]
    dispatched: float


def _compute(batch: list[_Entry]) -> list[Outcome]:
    """Run one batch on a compute thread."""
    started = time.monotonic()
    for entry in batch:
        entry.started = started
    try:
        return _run(batch)
    except Exception as error:
        if len(batch) == 1:
            return [error]
        logger.warning("a batch of %d requests failed; each is run alone", len(batch), exc_info=True)
        return [_run_alone(entry) for entry in batch]


def _run_alone(entry: _Entry) -> Outcome:
    """The guilty one of a batch fails by itself; the others are served."""
    if not entry.wanted():
        return DeadlineExpiredError("compute")
    try:
        return _run([entry])[0]
    except Exception as error:  # whatever it is, it is this caller's alone
        return error


def _run(batch: list[_Entry]) -> list[Outcome]:
    """One call of the pipeline that all entries share."""
    outcomes = batch[0].pipeline.run(
        [(entry.query, entry.state) for entry in batch], gone=lambda index: batch[index].outcome.done()
    )
    if len(outcomes) != len(batch):
        raise RuntimeError(f"the pipeline gave {len(outcomes)} outcomes for {len(batch)} requests")
    return outcomes
