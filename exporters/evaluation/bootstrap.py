"""Means over users with bootstrap confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

LEVEL: Final = 0.95
_BLOCK: Final = 4_000_000
"""Resampling weights held at once."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, with its interval where it is a mean over users."""

    value: float
    interval: tuple[float, float] | None = None


def estimates(values: NDArray[np.float64], *, resamples: int, seed: int) -> list[Estimate]:
    """The mean of each column with its percentile interval (Efron & Tibshirani 1993, chapter 13).

    Users are drawn with replacement, the same draws for all columns: intervals of paired differences come from giving
    the differences as a column.

    Args:
        values: [users, columns], users >= 1; NaN leaves a user out of a column. A column of NaN has NaN as its mean.
        resamples: how many, >= 1.
        seed: of the draws; equal arguments give equal intervals.
    """
    present = ~np.isnan(values)
    filled = np.where(present, values, 0.0)
    whole = np.ones((1, len(values)))
    point = _means(whole, filled, present)[0]
    spread = _resampled(filled, present, resamples, seed)
    tail = 100 * (1 - LEVEL) / 2
    some = present.any(axis=0)
    low, high = np.full(point.shape, np.nan), np.full(point.shape, np.nan)
    if some.any():
        low[some], high[some] = np.nanpercentile(spread[:, some], [tail, 100 - tail], axis=0)
    return [Estimate(float(v), (float(a), float(b))) for v, a, b in zip(point, low, high, strict=True)]


def _resampled(
    values: NDArray[np.float64], present: NDArray[np.bool_], resamples: int, seed: int
) -> NDArray[np.float64]:
    """[resamples, columns]: means over users drawn with replacement."""
    users = len(values)
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // users)
    parts = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(0, users, (size, users)) + users * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users)
        parts.append(_means(times.astype(np.float64), values, present))
    return np.concatenate(parts)


def _means(
    weights: NDArray[np.float64], values: NDArray[np.float64], present: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """[resamples, columns]: weighted means of the values that are present, NaN where none is."""
    below = weights @ present
    means = np.full(below.shape, np.nan)
    np.divide(weights @ values, below, out=means, where=below > 0)
    return means
