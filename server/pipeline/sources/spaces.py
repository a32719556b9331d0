"""Sources over vector spaces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recserve.server.bundle.layout import SIMILAR
from recserve.server.pipeline.assemble import Subject
from recserve.server.pipeline.search import Searcher
from recserve.server.pipeline.sources.base import Proposal, Request
from recserve.server.pipeline.types import Reason, Rows


class SpaceSource:
    """Nearest items to the user's vector in one vector space; nothing for users without a vector there."""

    def __init__(self, name: str, searcher: Searcher) -> None:
        self.name = name
        self._searcher = searcher

    def propose(self, requests: Sequence[Request], k: int) -> list[Proposal]:
        """One search for all requests that have a vector in this space."""
        able = [request for request in requests if self.name in request.subject.vectors]
        if not able:
            return [Proposal.nothing()] * len(requests)
        queries = np.array([request.subject.vectors[self.name] for request in able])
        found = iter(self._searcher.search(queries, k, [request.mask for request in able]))
        return [
            Proposal(*next(found)) if self.name in request.subject.vectors else Proposal.nothing()
            for request in requests
        ]

    def reason(self, subject: Subject, row: int) -> Reason | None:  # noqa: ARG002  the same for all
        """Near the user's vector."""
        return Reason("near_taste", {"space": self.name})


class SimilarSource:
    """Neighbours of the user's latest items, of the session first, by the cosine to the nearest of them.

    Args:
        space: name of the vector space.
        vectors: its item vectors, of length 1.
        searcher: over it.
        items: how many of the latest items to look around.
    """

    name = SIMILAR

    def __init__(self, space: str, vectors: NDArray[np.float32], searcher: Searcher, items: int) -> None:
        self._space = space
        self._vectors = vectors
        self._searcher = searcher
        self._items = items

    def propose(self, requests: Sequence[Request], k: int) -> list[Proposal]:
        """One search for the seeds of all requests. The seeds themselves are not proposed."""
        seeds = [request.subject.recent_rows[: self._items] for request in requests]
        asked = [request for request, mine in zip(requests, seeds, strict=True) for _ in range(mine.size)]
        if not asked:
            return [Proposal.nothing()] * len(requests)
        queries = np.ascontiguousarray(self._vectors[np.concatenate(seeds)])
        # A seed is its own nearest item, so as many places more are asked for as there are seeds.
        found = iter(self._searcher.search(queries, k + self._items, [request.mask for request in asked]))
        return [_merge([next(found) for _ in mine], mine, k) for mine in seeds]

    def reason(self, subject: Subject, row: int) -> Reason | None:  # noqa: ARG002  the same for all
        """Near one of the latest items."""
        return Reason("similar_to_recent", {"space": self._space})


def _merge(found: Sequence[tuple[Rows, NDArray[np.float32]]], seeds: Rows, k: int) -> Proposal:
    """The best `k` of the seeds' neighbours.

    Whatever is among the best k is among its nearest seed's best k, with that score.
    """
    if not found:
        return Proposal.nothing()
    near = Proposal.merged(found)
    kept = np.flatnonzero(~np.isin(near.rows, seeds))[:k]
    return Proposal(near.rows[kept], near.scores[kept])
