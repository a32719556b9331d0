"""Sources that follow what users do: alone, together, lately."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from recserve.server.bundle.layout import AGAIN
from recserve.server.bundle.lists import ItemLists
from recserve.server.pipeline.assemble import Subject
from recserve.server.pipeline.sources.base import Proposal, Request, first_passing
from recserve.server.pipeline.types import Reason, Rows

_BASKET: Final = 20
"""The latest items that count as the basket where the request has no session."""


class AgainSource:
    """The user's own past items, most frequent first; among equals the latest."""

    name = AGAIN

    def propose(self, requests: Sequence[Request], k: int) -> list[Proposal]:
        """Up to `k` distinct items of each history."""
        return [self._own(request, k) for request in requests]

    def reason(self, subject: Subject, row: int) -> Reason | None:  # noqa: ARG002
        """The history says whether it was bought or seen."""
        return None

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


class TogetherSource:
    """What is bought together with the items of the session, or without one with the user's latest items.

    An item's score is the sum of its scores in the lists of those items.

    Args:
        lists: of kind TOGETHER, one per item.
    """

    def __init__(self, lists: ItemLists) -> None:
        self.name = lists.name
        self._lists = lists

    def propose(self, requests: Sequence[Request], k: int) -> list[Proposal]:
        """Up to `k` items for each basket, none of them in it."""
        return [self._of(request, k) for request in requests]

    def reason(self, subject: Subject, row: int) -> Reason | None:  # noqa: ARG002  the same for all
        """Bought together with the basket's items."""
        return Reason("bought_together")

    def _of(self, request: Request, k: int) -> Proposal:
        basket = _basket(request)
        if not basket.size:
            return Proposal.nothing()
        listed, scores = zip(*(self._lists.at(row) for row in basket.tolist()), strict=True)
        rows, entry = np.unique(np.concatenate(listed), return_inverse=True)
        total = np.bincount(entry, weights=np.concatenate(scores), minlength=rows.size).astype(np.float32)
        kept = request.passing(rows) & ~np.isin(rows, basket)
        return Proposal.best(rows[kept], total[kept], k)


class TrendingSource:
    """Items that lately have more than their usual share of what happens.

    Args:
        lists: of kind TRENDING: one list.
    """

    def __init__(self, lists: ItemLists) -> None:
        self.name = lists.name
        self._rows, self._scores = lists.at(0)

    def propose(self, requests: Sequence[Request], k: int) -> list[Proposal]:
        """The first `k` passing items of the list."""
        chosen = [first_passing(request, self._rows, k) for request in requests]
        return [Proposal(self._rows[each], self._scores[each]) for each in chosen]

    def reason(self, subject: Subject, row: int) -> Reason | None:  # noqa: ARG002  the same for all
        """Trending."""
        return Reason("trending")


def _basket(request: Request) -> Rows:
    session = request.query.session_rows
    return session if session.size else request.subject.recent_rows[:_BASKET]
