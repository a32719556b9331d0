"""The union of what the sources propose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recserve.server.pipeline.assemble import Candidates
from recserve.server.pipeline.sources import Proposal
from recserve.server.pipeline.types import Rows


def shares(weights: Sequence[float], total: int) -> list[int]:
    """Divide `total` places by weight: largest remainders, earlier sources first among equals.

    Args:
        weights: >= 0 with a positive sum.
        total: places to divide.
    """
    exact = np.asarray(weights, np.float64) / sum(weights) * total
    places = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(-(exact - places), kind="stable")
    places[by_remainder[: total - int(places.sum())]] += 1
    return [int(each) for each in places]


def union(sources: Sequence[str], proposals: Sequence[Proposal], weights: Sequence[float], total: int) -> Candidates:
    """Merge proposals into at most `total` distinct candidates.

    Every source first gets its share of the places with its best items; an item that several propose counts for each
    of them and takes one place. Places left over are filled with the sources' next best, rank by rank, but never from
    a source of weight 0. All sources that proposed a chosen item are remembered, also where it missed their share.

    Args:
        sources: names, in the order of the proposals.
        proposals: one per source.
        weights: one per source, >= 0 with a positive sum.
        total: the most candidates wanted.
    """
    if len(sources) == 1:
        return _alone(sources[0], proposals[0], total)
    quotas = shares(weights, total)
    chosen = _distinct([each.rows[:quota] for each, quota in zip(proposals, quotas, strict=True)])[:total]
    if chosen.size < total:
        rest = [each.rows for each, weight in zip(proposals, weights, strict=True) if weight > 0]
        chosen = _distinct([chosen, _rank_by_rank(rest)])[:total]
    return with_origins(sources, proposals, chosen)


def fuse(
    sources: Sequence[str], proposals: Sequence[Proposal], weights: Sequence[float], total: int, constant: float
) -> Candidates:
    """Merge proposals into at most `total` distinct candidates, those that the sources together rank best.

    Weighted reciprocal rank fusion (Cormack, Clarke & Buettcher, SIGIR 2009): an item's merit is the sum of
    weight / (constant + rank) over the sources that propose it. Candidates are ordered by merit, then by row.

    Args:
        sources: names, in the order of the proposals.
        proposals: one per source.
        weights: one per source, > 0.
        total: the most candidates wanted.
        constant: > 0; the larger, the less does a source's order count against being proposed by many.
    """
    sizes = [each.rows.size for each in proposals]
    source = np.repeat(np.arange(len(sizes)), sizes)
    rank = np.concatenate([np.arange(1, size + 1) for size in sizes])
    rows, item = np.unique(np.concatenate([each.rows for each in proposals]), return_inverse=True)
    merit = np.bincount(item, np.asarray(weights)[source] / (constant + rank), rows.size).astype(np.float64)
    best = _largest(merit, total)
    place = np.full(rows.size, -1)
    place[best] = np.arange(best.size)
    chosen = np.flatnonzero(place[item] >= 0)
    origin = place[item[chosen]], source[chosen]
    scores = np.full((best.size, len(sizes)), np.nan, np.float32)
    ranks = np.zeros(scores.shape, np.int32)
    scores[origin] = np.concatenate([each.scores for each in proposals])[chosen]
    ranks[origin] = rank[chosen]
    return Candidates(rows[best], tuple(sources), scores, ranks)


def extend(candidates: Candidates, source: str, proposal: Proposal, total: int) -> Candidates:
    """Add a further source's items behind the candidates, up to `total`."""
    rows = _distinct([candidates.rows, proposal.rows])[:total]
    added = with_origins((source,), (proposal,), rows)
    missing = rows.size - candidates.rows.size
    scores = np.pad(candidates.scores, ((0, missing), (0, 0)), constant_values=np.nan)
    ranks = np.pad(candidates.ranks, ((0, missing), (0, 0)))
    return Candidates(
        rows,
        (*candidates.sources, source),
        np.concatenate([scores, added.scores], axis=1),
        np.concatenate([ranks, added.ranks], axis=1),
    )


def _alone(source: str, proposal: Proposal, total: int) -> Candidates:
    """The best of one source."""
    rows, scores = proposal.rows[:total], proposal.scores[:total]
    ranks = np.arange(1, rows.size + 1, dtype=np.int32)
    return Candidates(rows, (source,), scores[:, np.newaxis], ranks[:, np.newaxis])


def _distinct(parts: Sequence[Rows]) -> Rows:
    """The concatenation without repetitions, first occurrences in their order."""
    rows = np.concatenate(parts)
    _, first = np.unique(rows, return_index=True)
    return rows[np.sort(first)]


def _rank_by_rank(lists: Sequence[Rows]) -> Rows:
    """All lists' first items, then their second ones, and so on."""
    rows = np.concatenate(lists)
    ranks = np.concatenate([np.arange(each.size) for each in lists])
    return rows[np.argsort(ranks, kind="stable")]


def _largest(values: NDArray[np.float64], most: int) -> Rows:
    """Where the `most` largest values are, largest first, the first among equals first."""
    among = np.arange(values.size)
    if most < values.size:
        among = np.flatnonzero(values >= np.partition(values, -most)[-most])
    return among[np.argsort(-values[among], kind="stable")[:most]]


def with_origins(sources: Sequence[str], proposals: Sequence[Proposal], rows: Rows) -> Candidates:
    """Candidates with what every proposal says of them.

    Args:
        sources: names, in the order of the proposals.
        proposals: one per source.
        rows: the candidates, distinct.
    """
    scores = np.full((rows.size, len(proposals)), np.nan, np.float32)
    ranks = np.zeros((rows.size, len(proposals)), np.int32)
    order = np.argsort(rows)
    ascending = rows[order]
    for column, proposal in enumerate(proposals):
        places = np.searchsorted(ascending, proposal.rows)
        inside = places < rows.size
        inside[inside] = ascending[places[inside]] == proposal.rows[inside]
        target = order[places[inside]]
        scores[target, column] = proposal.scores[inside]
        ranks[target, column] = np.flatnonzero(inside) + 1
    return Candidates(rows, tuple(sources), scores, ranks)
