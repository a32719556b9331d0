"""Candidate sources: each proposes items for requests, best first, all of them passing the request's filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recserve.server.bundle.catalogue import Catalogue
from recserve.server.bundle.columns import NumberColumn
from recserve.server.pipeline.assemble import Subject
from recserve.server.pipeline.filters import Filters, Mask
from recserve.server.pipeline.search import Searcher
from recserve.server.pipeline.types import Query, Rows, UserState, no_rows

POPULAR = "popular"
AGAIN = "again"


@dataclass(eq=False)
class Request:
    """One request on its way through the stages: the query, the user, and what the stages have found so far."""

    query: Query
    state: UserState
    subject: Subject
    filters: Filters

    @cached_property
    def mask(self) -> Mask | None:
        """The request's filter over all items, None where all pass; made when the first source needs it."""
        return self.filters.mask(self.query.filter, self.subject, self.state)

    def passing(self, rows: Rows) -> NDArray[np.bool_]:
        """Which of `rows` pass the filter, without looking at the rest of the catalogue."""
        return self.filters.passing(self.query.filter, self.subject, self.state, rows)


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


class Source(Protocol):
    """Where candidates come from."""

    @property
    def name(self) -> str:
        """As requests and features name it."""

    def propose(self, requests: Sequence[Request], k: int) -> list[Proposal]:
        """Up to `k` items for each request.

        A source that runs short of `k` has run out: asking it for more would give nothing new.
        """


class SpaceSource:
    """Nearest items to the user's vector in one vector space; nothing for users without a vector there."""

    def __init__(self, name: str, searcher: Searcher) -> None:
        self.name = name
        self._searcher = searcher

    def propose(self, requests: Sequence[Request], k: int) -> list[Proposal]:
        """One search for all requests that have a vector in this space."""
        proposals = [Proposal.nothing()] * len(requests)
        able = [index for index, request in enumerate(requests) if self.name in request.subject.vectors]
        if able:
            queries = np.stack([requests[index].subject.vectors[self.name] for index in able])
            found = self._searcher.search(queries, k, [requests[index].mask for index in able])
            for index, (rows, scores) in zip(able, found, strict=True):
                proposals[index] = Proposal(rows, scores)
        return proposals


class PopularSource:
    """The most popular items; its list covers the whole catalogue, so it never runs short of passing items."""

    name = POPULAR

    def __init__(self, catalogue: Catalogue) -> None:
        self._order = catalogue.popular_rows
        popularity = catalogue.role("popularity")
        if not isinstance(popularity, NumberColumn):
            raise TypeError(f"the role 'popularity' must be a number column; the catalogue has {popularity!r}")
        self._popularity = popularity.values

    def propose(self, requests: Sequence[Request], k: int) -> list[Proposal]:
        """The first `k` passing items of the stored order."""
        return [self._first(request, k) for request in requests]

    def _first(self, request: Request, k: int) -> Proposal:
        """Reads the order in growing pieces: most filters are satisfied near its top."""
        parts: list[Rows] = []
        missing, start, step = k, 0, max(2 * k, 256)
        while missing > 0 and start < self._order.size:
            piece = self._order[start : start + step]
            passing = piece[request.passing(piece)][:missing]
            parts.append(passing)
            missing -= passing.size
            start, step = start + step, 2 * step
        rows = np.concatenate(parts) if parts else no_rows()
        return Proposal(rows, self._popularity[rows].astype(np.float32))


class AgainSource:
    """The user's own past items, most frequent first; among equals the latest."""

    name = AGAIN

    def propose(self, requests: Sequence[Request], k: int) -> list[Proposal]:
        """Up to `k` distinct items of each history."""
        return [self._own(request, k) for request in requests]

    def _own(self, request: Request, k: int) -> Proposal:
        subject = request.subject
        known = subject.history_rows >= 0
        if not known.any():
            return Proposal.nothing()
        rows, entry = np.unique(subject.history_rows[known], return_inverse=True)
        counts = np.bincount(entry, weights=subject.history.counts[known], minlength=rows.size)
        last = np.full(rows.size, np.iinfo(np.int64).min)
        np.maximum.at(last, entry, subject.history.last_us[known])
        passing = request.passing(rows)
        rows, counts, last = rows[passing], counts[passing], last[passing]
        order = np.lexsort((rows, -last, -counts))[:k]
        return Proposal(rows[order], counts[order].astype(np.float32))
