"""Lets in what can be served in time, and refuses the rest at once, when the caller can still do something else."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Final

from recserve.server.pipeline.errors import DeadlineExpiredError, NotReadyError, OverloadedError
from recserve.server.pipeline.types import Size

_SMOOTHING: Final = 0.1
"""Weight of the newest batch in the moving averages: about the last twenty batches count."""

_HEADROOM: Final = 1.25
"""Estimates are means, and an answer has to leave after it is computed: a request that is let in at the very edge is
late more often than not, and late answers are work for nobody."""

_RETRY_BOUNDS_S: Final = (0.01, 10.0)


class Ticket:
    """A place among the admitted requests, perhaps one in the queue as well; given back once."""

    def __init__(self, admission: Admission, deadline: float, size: Size) -> None:
        self._admission: Admission | None = admission
        self._deadline = deadline
        self._size = size
        self._queued = False

    def enqueue(self) -> None:
        """Take a place in the queue, unless the request has one or is over.

        Raises:
            DeadlineExpiredError: the deadline has passed.
            OverloadedError: see `Admission.admit`.
        """
        if self._admission is not None and not self._queued:
            self._admission._enqueue(self._deadline, self._size)
            self._queued = True

    def release(self) -> None:
        """Give the places back; further calls do nothing."""
        if self._admission is not None:
            self._admission._leave(self._size if self._queued else None)
            self._admission = None

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Admission:
    """A bounded number of requests between validation and answer. Used on the event loop only.

    Args:
        max_queue: most requests that need a compute thread, admitted and not yet answered.
        threads: compute threads that serve them side by side.
    """

    def __init__(self, max_queue: int, threads: int) -> None:
        self._max_queue = max_queue
        self._threads = threads
        self._admitted = 0
        self._queued: Counter[Size] = Counter()
        self._seconds: dict[Size, float] = {}
        """That a request of each size takes a compute thread."""
        self._open = True
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def admitted(self) -> int:
        """Requests admitted and not yet answered."""
        return self._admitted

    def admit(self, deadline: float, size: Size, *, queued: bool = True) -> Ticket:
        """A place for a request that must be answered by `deadline` (`time.monotonic()` seconds).

        Args:
            deadline: of the request.
            size: of the request.
            queued: False for a request that probably needs no compute thread, and so no place in the queue: it is let
                in however long that is. If it needs one after all, `Ticket.enqueue` asks for it.

        Raises:
            NotReadyError: the server is draining.
            DeadlineExpiredError: the deadline has passed.
            OverloadedError: no place is free, or the requests ahead will take longer than the deadline allows.
        """
        if not self._open:
            raise NotReadyError("the server is draining; ask another replica")
        ticket = Ticket(self, deadline, size)
        if queued:
            ticket.enqueue()
        else:
            _check_time_left(deadline)
        self._admitted += 1
        self._empty.clear()
        return ticket

    def observe(self, seconds: float, served: Sequence[Size], given_up: Sequence[Size] = ()) -> None:
        """One compute thread had a batch for `seconds`, above 0, of which some requests were served, others given up.

        The time is divided among sizes as they were expected to take it. Who left or was too late cost little: counted,
        they would make requests look cheap just when time runs out. A batch of nothing else tells at least that they
        take no less. Were it passed over, an estimate far too low, as before a slow start, would go on to let everybody
        in too late.
        """
        batch = served or given_up
        expected = [self._seconds.get(size, seconds / len(batch)) for size in batch]
        scale = seconds / sum(expected)
        if not served:
            scale = max(scale, 1.0)
        for size, before in dict(zip(batch, expected, strict=True)).items():
            newest = scale * before
            self._seconds[size] = (1 - _SMOOTHING) * before + _SMOOTHING * newest if size in self._seconds else newest

    def close(self) -> None:
        """Admit nothing more."""
        self._open = False

    async def drained(self) -> None:
        """Return when every admitted request has been answered or has left."""
        await self._empty.wait()

    def _enqueue(self, deadline: float, size: Size) -> None:
        left = _check_time_left(deadline)
        ahead = self._queued.total()
        if ahead >= self._max_queue:
            raise OverloadedError(f"the queue is full with {ahead} requests", self._retry_after())
        # An empty queue always admits. Otherwise one slow start could refuse everybody for ever: the estimate only
        # changes when something is served.
        own = self._seconds.get(size, 0.0)
        wait = max(own, (self._work_ahead() + own) / self._threads)  # a request is not shared between threads
        if ahead and _HEADROOM * wait > left:
            raise OverloadedError(
                f"this and the {ahead} requests ahead will take about {wait * 1000:.0f} ms, perhaps a quarter "
                f"more, and the deadline is in {left * 1000:.0f} ms",
                self._retry_after(),
            )
        self._queued[size] += 1

    def _work_ahead(self) -> float:
        """Seconds of one compute thread that all who are queued take together."""
        return sum(count * self._seconds.get(size, 0.0) for size, count in self._queued.items())

    def _retry_after(self) -> float:
        shortest, longest = _RETRY_BOUNDS_S
        return min(max(self._work_ahead() / self._threads, shortest), longest)

    def _leave(self, queued: Size | None) -> None:
        self._admitted -= 1
        if queued is not None:
            self._queued[queued] -= 1
        if not self._admitted:
            self._empty.set()


def _check_time_left(deadline: float) -> float:
    """Seconds until the deadline."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExpiredError("admission")
    return left
