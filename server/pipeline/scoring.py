"""From margins, or from the sources' ranks, to the score that a list is ordered by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recserve.kernels import rerank as kernel
from recserve.server.bundle.catalogue import Catalogue
from recserve.server.bundle.columns import TimeColumn
from recserve.server.pipeline.types import Freshness, Rows

RECIPROCAL_RANK_OFFSET = 60.0
"""The constant of reciprocal rank fusion (Cormack, Clarke & Buettcher, SIGIR 2009)."""

HIGHEST_RELEVANCE: Final = math.nextafter(1.0, 0.0)
"""The end of what `recserve.kernels.rerank.calibrate` gives."""


def combine(relevance: NDArray[np.float64], weights: Sequence[float]) -> NDArray[np.float64]:
    """Weighted mean of the objectives' relevances: in (0, 1) as they are.

    Args:
        relevance: [n, objectives].
        weights: one per objective, >= 0 with a positive sum.
    """
    if len(weights) == 1:
        return relevance[:, 0]
    total = float(sum(weights))
    combined = np.zeros(relevance.shape[0])
    for column, weight in enumerate(weights):  # in a fixed order, so that a batch has the bits of its parts
        combined += relevance[:, column] * (weight / total)
    return np.minimum(combined, HIGHEST_RELEVANCE)  # the sum of the rounded shares may exceed 1


def fuse_ranks(ranks: NDArray[np.int32]) -> NDArray[np.float64]:
    """Reciprocal rank fusion, where no ranker runs: the sum of 1 / (60 + rank) over the sources that proposed an item.

    Args:
        ranks: [n, sources], 1 is best, 0 where a source did not propose the item.
    """
    fused = np.zeros(ranks.shape[0])
    for column in range(ranks.shape[1]):
        proposed = ranks[:, column] > 0
        fused[proposed] += 1.0 / (RECIPROCAL_RANK_OFFSET + ranks[proposed, column])
    return fused


def freshen(
    scores: NDArray[np.float64], catalogue: Catalogue, rows: Rows, now_us: int, freshness: Freshness
) -> NDArray[np.float64]:
    """Scores with the gain of new items (see `Freshness`)."""
    launch = catalogue.role("launch_time")
    if not isinstance(launch, TimeColumn):
        raise TypeError(f"freshness needs a time column in the role 'launch_time'; the catalogue has {launch!r}")
    return kernel.freshness(scores, launch.values[rows], now_us, freshness.boost, freshness.half_life_days)
