"""Brings requests to the compute threads in micro-batches.

    submit -> waiting (in order) -> a compute thread runs one batch -> each caller gets its own outcome

Nothing waits for a batch to fill: while a thread is idle, whatever is there goes to it. Batches form by themselves
from what queues up while all threads are busy.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from recserve.server.pipeline.errors import DeadlineExpiredError, NotReadyError
from recserve.server.pipeline.types import Query, Result, UserState

logger = logging.getLogger(__name__)

Outcome = Result | Exception
"""An answer, or why there is none."""


class Runnable(Protocol):
    """What the compute threads run; recserve.server.pipeline.pipeline.Pipeline in the server."""

    def run(self, work: Sequence[tuple[Query, UserState]]) -> list[Outcome]:
        """Outcomes in the order of `work`; called from several threads at once."""
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

    Args:
        threads: compute threads.
        max_batch: most requests in one batch.
        observe: told of each batch: seconds that it took, and requests in it.
    """

    def __init__(
        self, threads: int, max_batch: int, observe: Callable[[float, int], None] = lambda _seconds, _requests: None
    ) -> None:
        self._max_batch = max_batch
        self._observe = observe
        self._idle = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="compute")
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[_Entry, None] = {}  # in order of arrival; a caller who leaves is taken out at once
        self._running: set[asyncio.Future[_Computed]] = set()
        self._dispatching = False
        self._open = True

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
        self._wake()
        try:
            outcome = await entry.outcome
        finally:
            self._waiting.pop(entry, None)
            if timer is not None:
                timer.cancel()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome, entry.queue_us()

    async def close(self) -> None:
        """Refuse new requests, finish those that were submitted, end the threads."""
        self._open = False
        while self._waiting or self._running:
            pending: set[asyncio.Future[Any]] = {*(entry.outcome for entry in self._waiting), *self._running}
            await asyncio.wait(pending)
        self._executor.shutdown()

    def _wake(self) -> None:
        """Dispatch once this turn of the loop is over, so that requests which arrived together go together."""
        if self._idle and not self._dispatching:
            self._dispatching = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatching = False
        while self._idle and (batch := self._take()):
            self._idle -= 1
            job = self._loop.run_in_executor(self._executor, _compute, batch)
            self._running.add(job)
            job.add_done_callback(functools.partial(self._finished, batch))

    def _take(self) -> list[_Entry]:
        """The next batch: the oldest request and its fellows, but no more than each idle thread's fair share."""
        most = min(self._max_batch, -(-len(self._waiting) // self._idle))
        batch: list[_Entry] = []
        for entry in self._waiting:
            if len(batch) == most:
                break
            # Who is no longer wanted is taken out by the timer, or by the caller's departure.
            if entry.wanted() and (not batch or entry.pipeline is batch[0].pipeline):
                batch.append(entry)
        for entry in batch:
            del self._waiting[entry]
        return batch

    def _finished(self, batch: list[_Entry], job: asyncio.Future[_Computed]) -> None:
        self._idle += 1
        self._running.discard(job)
        computed = job.result()
        self._observe(computed.seconds, len(batch))
        for entry, outcome in zip(batch, computed.outcomes, strict=True):
            entry.deliver(outcome)
        self._dispatch()


class _Computed(NamedTuple):
    outcomes: list[Outcome]
    seconds: float


def _compute(batch: list[_Entry]) -> _Computed:
    """Run one batch on a compute thread."""
    started = time.monotonic()
    for entry in batch:
        entry.started = started
    try:
        outcomes = _run(batch)
    except Exception as error:
        if len(batch) == 1:
            outcomes = [error]
        else:
            logger.warning("a batch of %d requests failed; each is run alone", len(batch), exc_info=True)
            outcomes = [_run_alone(entry) for entry in batch]
    return _Computed(outcomes, time.monotonic() - started)


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
    outcomes = batch[0].pipeline.run([(entry.query, entry.state) for entry in batch])
    if len(outcomes) != len(batch):
        raise RuntimeError(f"the pipeline gave {len(outcomes)} outcomes for {len(batch)} requests")
    return outcomes
