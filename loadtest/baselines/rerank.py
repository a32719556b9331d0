"""Caps and diversity in NumPy: a place at a time, all candidates at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def choose(
    scores: NDArray[np.float64],
    categories: NDArray[np.int32],
    vectors: NDArray[np.float32],
    count: int,
    cap: int,
    relevance_weight: float,
) -> list[int]:
    """Positions of the list among the candidates, best first.

    Args:
        scores: [n]; among equals the first one counts as better.
        categories: [n], of which a list takes at most `cap` items each; -1: none, which is not capped. Where caps leave
            too few items, they are lifted.
        vectors: [n, dim], of length 1.
        count: of places.
        cap: see categories.
        relevance_weight: MMR's lambda.
    """
    relevance = relevance_weight * scores
    free = np.ones(len(scores), bool)
    allowed = free.copy()
    taken: dict[int, int] = {}
    similarity = np.zeros(len(scores), np.float32)
    chosen: list[int] = []
    while len(chosen) < min(count, len(scores)):
        if not allowed.any():
            allowed = free
        best = int(np.where(allowed, relevance - (1.0 - relevance_weight) * similarity, -np.inf).argmax())
        to_best = vectors @ vectors[best]
        similarity = np.maximum(similarity, to_best) if chosen else to_best
        chosen.append(best)
        free[best] = allowed[best] = False
        category = int(categories[best])
        taken[category] = taken.get(category, 0) + 1
        if category >= 0 and taken[category] == cap:
            allowed &= categories != category
    return chosen
