"""What a candidate source is: the request that it is asked for, what it proposes, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from recserve.kernels import bitmaps
from recserve.server.pipeline.assemble import Subject
from recserve.server.pipeline.filters import Filters, Mask
from recserve.server.pipeline.types import Query, Reason, Rows, UserState, no_rows

_FIRST_PIECE: Final = 256


@dataclass(slots=True, eq=False)
class Request:
    """One request on its way through the stages: the query, the user, and what the stages have found so far."""

    query: Query
    state: UserState
    subject: Subject
    filters: Filters
    weights: dict[str, float] = field(init=False)
    """By source, of those that are asked; a weight of 0 is the same as not asking."""
    # Not a cached_property: those of Python 3.11 take a lock that all requests share.
    _mask: Mask | None = field(init=False, default=None)
    _has_mask: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.weights = {quota.source: quota.weight for quota in self.query.quotas if quota.weight > 0}

    @property
    def mask(self) -> Mask | None:
        """The request's filter over all items, None where all pass; made when the first source needs it."""
        if not self._has_mask:
            self._mask, self._has_mask = self.filters.mask(self.query.filter, self.subject, self.state), True
        return self._mask

    def passing(self, rows: Rows) -> NDArray[np.bool_]:
        """Which of `rows` pass the filter, without looking at the rest of the catalogue unless that is done already."""
        if self._has_mask:
            return self.passing_by_mask(rows)
        return self.filters.passing(self.query.filter, self.subject, self.state, rows)

    def passing_by_mask(self, rows: Rows) -> NDArray[np.bool_]:
        """Which of `rows` pass the filter, by the mask: for many rows."""
        return np.ones(rows.size, np.bool_) if self.mask is None else bitmaps.contains(self.mask, rows)

    def release(self) -> None:
        """Give the mask back; nothing may hold it any longer."""
        self.filters.release(self._mask)
        self._mask, self._has_mask = None, False


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """What one source proposes for one request.

    Attributes:
        rows: distinct, best first, all passing the request's filter.
        scores: float32, in the source's own unit, descending.
    """

    rows: Rows
    scores: NDArray[np.float32]

    @staticmethod
    def nothing() -> Proposal:
        """A source that has nothing to say of this user."""
        return Proposal(no_rows(), np.empty(0, np.float32))

    @staticmethod
    def best(rows: Rows, scores: NDArray[np.float32], k: int) -> Proposal:
        """The `k` best of scored rows, by score descending and row ascending."""
        order = np.lexsort((rows, -scores))[:k]
        return Proposal(rows[order], scores[order])

    @staticmethod
    def merged(found: Sequence[tuple[Rows, NDArray[np.float32]]]) -> Proposal:
        """What several searches found, at least one: every row once, with its best score."""
        rows, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        best_first = np.lexsort((rows, -scores))
        _, first = np.unique(rows[best_first], return_index=True)
        kept = best_first[np.sort(first)]
        return Proposal(rows[kept], scores[kept])


class Source(Protocol):
    """Where candidates come from."""

    @property
    def name(self) -> str:
        """As requests and features name it."""

    def propose(self, requests: Sequence[Request], k: int) -> list[Proposal]:
        """Up to `k` items for each request.

        A source that runs short of `k` has run out: asking it for more would give nothing new.
        """

    def reason(self, subject: Subject, row: int) -> Reason | None:
        """Why the source proposes the item in `row` to the user; None where other reasons say it better."""


def first_passing(request: Request, order: NDArray[np.int32] | Rows, k: int) -> NDArray[np.int64]:
    """Where the first `k` passing rows stand in an order.

    It is read in growing pieces: most filters are satisfied near its top.

    Args:
        request: whose filter is asked.
        order: distinct rows, best first.
        k: how many are wanted.

    Returns:
        Ascending positions in `order`, fewer than `k` where no more pass.
    """
    parts: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    missing, start, step = k, 0, max(2 * k, _FIRST_PIECE)
    passing = request.passing
    while missing > 0 and start < order.size:
        piece = order[start : start + step].astype(np.int64)
        found = np.flatnonzero(passing(piece))[:missing]
        parts.append(start + found)
        missing -= found.size
        start, step, passing = start + step, 2 * step, request.passing_by_mask
    return np.concatenate(parts)
