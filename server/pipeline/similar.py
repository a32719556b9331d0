"""Items like given items: neighbours in a blend of two spaces."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from recserve.kernels import bitmaps
from recserve.kernels import vectors as kernel
from recserve.server.bundle.reader import Space
from recserve.server.pipeline.assemble import Candidates
from recserve.server.pipeline.candidates import with_origins
from recserve.server.pipeline.filters import Mask
from recserve.server.pipeline.search import Searcher
from recserve.server.pipeline.sources import Proposal
from recserve.server.pipeline.types import Query, Rows


class Similar:
    """Finds neighbours of seeds.

    An item's similarity to a seed is alpha times their cosine in the behaviour space plus (1 - alpha) times that in the
    content space; its score is the similarity to its nearest seed. Both spaces have vectors of length 1: inner
    products of others would follow the vectors' lengths, and one space's could drown the other's.

    Args:
        spaces: by name, all normalised.
        searchers: by name.
    """

    def __init__(self, spaces: Mapping[str, Space], searchers: Mapping[str, Searcher]) -> None:
        self._spaces = spaces
        self._searchers = searchers

    def find(self, query: Query, mask: Mask | None) -> tuple[Candidates, NDArray[np.float64]]:
        """Up to `query.pool` passing items that are not seeds, best first, with their scores.

        Args:
            query: of kind SIMILAR; its `given_rows` are the seeds.
            mask: which items pass the filter; None: all.
        """
        blend = self._blend(query)
        allowed = self._without_seeds(query, mask)
        proposals = [self._neighbours(name, query, allowed) for name in blend]
        rows = np.unique(np.concatenate([each.rows for each in proposals]))
        scores = self._similarity(blend, query.given_rows, rows).max(axis=0)
        order = np.lexsort((rows, -scores))[: query.pool]
        return with_origins(list(blend), proposals, rows[order]), scores[order]

    def _blend(self, query: Query) -> dict[str, float]:
        """Weights by space; a space of weight 0 is left out."""
        behaviour = query.behaviour_space or next(iter(self._spaces))
        if query.content_space == behaviour:
            return {behaviour: 1.0}
        weights = ((behaviour, query.alpha), (query.content_space, 1.0 - query.alpha))
        return {name: weight for name, weight in weights if weight > 0}

    def _without_seeds(self, query: Query, mask: Mask | None) -> Mask:
        items = self._spaces[next(iter(self._spaces))].vectors.shape[0]
        allowed = bitmaps.full(items) if mask is None else mask.copy()
        bitmaps.drop_rows(allowed, query.given_rows)
        return allowed

    def _neighbours(self, name: str, query: Query, allowed: Mask) -> Proposal:
        """The nearest items of every seed in one space, by the cosine to the nearest of them."""
        seeds = self._spaces[name].vectors[query.given_rows]
        return Proposal.merged(self._searchers[name].search(seeds, query.pool, [allowed] * len(seeds)))

    def _similarity(self, blend: Mapping[str, float], seeds: Rows, rows: Rows) -> NDArray[np.float64]:
        """[seeds, rows]."""
        similarity = np.zeros((seeds.size, rows.size))
        for name, weight in blend.items():
            vectors = self._spaces[name].vectors
            cosines = np.stack([kernel.dot_rows(vectors, vectors[seed], rows) for seed in seeds])
            similarity += weight * cosines
        return similarity
