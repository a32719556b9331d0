"""Items like given items: neighbours in a blend of two spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from recserve.kernels import vectors as kernel
from recserve.server.bundle.reader import Space
from recserve.server.pipeline.assemble import Candidates
from recserve.server.pipeline.filters import Mask
from recserve.server.pipeline.search import Searcher
from recserve.server.pipeline.types import Query, Rows


class Similar:
    """Finds neighbours of seeds.

    An item's similarity to a seed is alpha times their inner product in the behaviour space plus (1 - alpha) times that
    in the content space; its score is the similarity to its nearest seed.

    Args:
        spaces: by name; the first is the behaviour space of queries that name none.
        searchers: by name.
    """

    def __init__(self, spaces: Mapping[str, Space], searchers: Mapping[str, Searcher]) -> None:
        self._spaces = spaces
        self._searchers = searchers

    def find(self, query: Query, mask: Mask) -> tuple[Candidates, NDArray[np.float64]]:
        """Up to `query.pool` passing items that are not seeds, best first, with their scores.

        Args:
            query: of kind SIMILAR; its `given_rows` are the seeds.
            mask: which items pass the filter.
        """
        blend = self._blend(query)
        allowed = mask.copy()
        allowed[query.given_rows] = 0
        rows = self._neighbours(list(blend), query, allowed)
        products = {name: self._products(name, query.given_rows, rows) for name in blend}
        blended = [weight * products[name].astype(np.float64) for name, weight in blend.items()]
        scores = np.sum(blended, axis=0).max(axis=0)
        order = np.lexsort((rows, -scores))[: query.pool]
        nearest = np.stack([products[name].max(axis=0)[order] for name in blend], axis=1)
        ranks = np.stack([_ranks(column) for column in nearest.T], axis=1)
        return Candidates(rows[order], tuple(blend), nearest, ranks), scores[order]

    def _blend(self, query: Query) -> dict[str, float]:
        """Weights by space; a space of weight 0 is left out."""
        behaviour = query.behaviour_space or next(iter(self._spaces))
        weights = ((behaviour, query.alpha), (query.content_space, 1.0 - query.alpha))
        return {name: weight for name, weight in weights if weight > 0}

    def _neighbours(self, names: Sequence[str], query: Query, allowed: Mask) -> Rows:
        """The nearest items of every seed in every space, ascending."""
        found = [
            rows
            for name in names
            for rows, _ in self._searchers[name].search(
                self._spaces[name].vectors[query.given_rows], query.pool, [allowed] * query.given_rows.size
            )
        ]
        return np.unique(np.concatenate(found))

    def _products(self, name: str, seeds: Rows, rows: Rows) -> NDArray[np.float32]:
        """Inner products [seeds, rows]."""
        vectors = self._spaces[name].vectors
        return np.stack([kernel.dot_rows(vectors, vectors[seed], rows) for seed in seeds])


def _ranks(scores: NDArray[np.float32]) -> NDArray[np.int32]:
    """1 for the highest score, ties in the order given."""
    ranks = np.empty(scores.size, np.int32)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, scores.size + 1)
    return ranks
