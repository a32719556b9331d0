"""Freshly launched items."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.features import MISSING_TIME
from recserve.server.bundle.layout import NEW
from recserve.server.pipeline.assemble import Subject
from recserve.server.pipeline.sources.base import Proposal, Request, first_passing
from recserve.server.pipeline.types import Reason

_DAY_US: Final = 86_400_000_000


class NewSource:
    """Items launched in the days before the request's time, the latest first; not those launched after it.

    Args:
        launches: int64 [items], microseconds UTC, MISSING_TIME where unknown.
        days: how old an item may be.
    """

    name = NEW

    def __init__(self, launches: NDArray[np.int64], days: float) -> None:
        self._launches = launches
        self._span_us = round(days * _DAY_US)
        order = np.argsort(-np.where(launches == MISSING_TIME, MISSING_TIME + 1, launches), kind="stable")
        known = int(np.count_nonzero(launches != MISSING_TIME))
        self._order = order[:known].astype(np.int32)

    def propose(self, requests: Sequence[Request], k: int) -> list[Proposal]:
        """The latest `k` passing items; a score is minus the item's age in days."""
        return [self._of(request, k) for request in requests]

    def reason(self, subject: Subject, row: int) -> Reason | None:  # noqa: ARG002  the same for all
        """New."""
        return Reason("new")

    def _of(self, request: Request, k: int) -> Proposal:
        now = request.subject.time_us
        start = bisect_left(self._order, -now, key=self._negated)
        stop = bisect_right(self._order, self._span_us - now, key=self._negated)
        window = self._order[start:stop]
        rows = window[first_passing(request, window, k)].astype(np.int64)
        return Proposal.best(rows, ((self._launches[rows] - now) / _DAY_US).astype(np.float32), k)

    def _negated(self, row: np.int32) -> int:
        return -int(self._launches[row])
