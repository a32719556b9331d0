"""Re-ranking in plain Python and NumPy, the oracle of `recserve.kernels.rerank`: every place starts from scratch."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.reference.vectors import dot_rows

SIGMOID = 1
ISOTONIC = 2
MISSING_TIME = -(2**63)
DAY_US = 86400e6


def calibrate(
    margins: NDArray[np.float64], kind: int, x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """See `recserve.kernels.rerank.calibrate`."""
    if kind == SIGMOID:
        relevance = np.array([_sigmoid(x[0] * margin + x[1]) for margin in margins])
    else:
        relevance = np.array([_interpolate(float(margin), x, y) for margin in margins])
    clipped: NDArray[np.float64] = np.clip(relevance, sys.float_info.min, math.nextafter(1.0, 0.0))
    return clipped


def _sigmoid(value: float) -> float:
    """The logistic function with the C library's exp; NumPy's own may differ in the last bit."""
    if math.isnan(value):
        return value
    return 1.0 / (1.0 + math.exp(-value)) if value > -709.0 else 0.0


def _interpolate(margin: float, x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The piecewise linear function through the knots, constant outside them, never above the knot to the right."""
    if math.isnan(margin):
        return margin
    right = int(np.searchsorted(x, margin, side="right"))
    if right == 0 or right == len(x):
        return float(y[max(0, right - 1)])
    left = right - 1
    if margin == x[left]:
        return float(y[left])
    # Between knots that nearly coincide the slope is infinite, and the right one stands.
    with np.errstate(over="ignore"):
        value = y[left] + (margin - x[left]) * ((y[right] - y[left]) / (x[right] - x[left]))
    return float(min(value, y[right]))


def freshness(
    scores: NDArray[np.float64], launch_us: NDArray[np.int64], now_us: int, boost: float, half_life_days: float
) -> NDArray[np.float64]:
    """See `recserve.kernels.rerank.freshness`."""

    def factor(launch: int) -> float:
        if launch == MISSING_TIME:
            return 1.0
        age = max(0.0, (float(now_us) - float(launch)) / DAY_US)
        return 1.0 + boost * math.exp2(-age / half_life_days)

    return np.array([score * factor(int(launch)) for score, launch in zip(scores, launch_us, strict=True)], np.float64)


def select(
    scores: NDArray[np.float64],
    rows: NDArray[np.int64],
    k: int,
    cap_codes: NDArray[np.int32],
    cap_max: NDArray[np.int32],
    cap_window: NDArray[np.int32],
    cap_sliding: NDArray[np.uint8],
    vectors: NDArray[np.float32] | None = None,
    relevance_weight: float = 1.0,
    lowest_similarity: float = -np.inf,  # noqa: ARG001  spares work only
    deadline: float = np.inf,
) -> tuple[NDArray[np.int64], bool]:
    """See `recserve.kernels.rerank.select`."""

    def admitted(candidate: int) -> bool:
        return all(
            _cap_admits([int(cap_codes[c, cap]) for c in chosen], int(cap_codes[candidate, cap]), *rule)
            for cap, rule in enumerate(zip(cap_max, cap_window, cap_sliding, strict=True))
        )

    def preference(candidate: int) -> tuple[float, float, int]:
        value = scores[candidate]
        if vectors is not None:
            similarity = _highest_similarity(vectors, int(rows[candidate]), [int(rows[c]) for c in chosen])
            value = relevance_weight * scores[candidate] - (1.0 - relevance_weight) * similarity
        return -value, -scores[candidate], int(rows[candidate])

    chosen: list[int] = []
    relaxed = False
    while len(chosen) < min(k, len(scores)):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"the deadline passed when {len(chosen)} of {min(k, len(scores))} places were filled")
        remaining = [candidate for candidate in range(len(scores)) if candidate not in chosen]
        allowed = [candidate for candidate in remaining if admitted(candidate)]
        relaxed |= not allowed
        chosen.append(min(allowed or remaining, key=preference))
    return np.array(chosen, np.int64), relaxed


def _cap_admits(listed: Sequence[int], code: int, most: int, window: int, sliding: int) -> bool:
    """Whether the next place of a list with these codes may hold `code`."""
    if code == -1 or (window and not sliding and len(listed) >= window):
        return True
    if window and sliding:
        listed = listed[len(listed) - min(len(listed), window - 1) :]
    return listed.count(code) < most


def _highest_similarity(vectors: NDArray[np.float32], row: int, chosen: Sequence[int]) -> float:
    """The highest inner product of a row's vector with the chosen rows', 0 where nothing is chosen."""
    if not chosen:
        return 0.0
    return float(dot_rows(vectors, vectors[row], np.array(chosen, np.int64)).max())
