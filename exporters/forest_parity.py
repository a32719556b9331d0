"""Whether a compiled forest answers as LightGBM does, bit for bit, where answers are likely to part.

Each verification row draws every feature from that feature's own special values: its thresholds as float32 with the
neighbours to both sides, the categories of its sets with their neighbours, and what both kinds of decision treat
specially (missing, infinite, zero, next to LightGBM's zero threshold, fractions and negatives as categories).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.errors import ExportError
from recserve.exporters.lightgbm_text import ForestText
from recserve.kernels.limits import LARGEST_EXACT_INTEGER

if TYPE_CHECKING:
    import lightgbm

    from recserve.kernels.native_forest import NativeForest

MIN_ROWS, MAX_ROWS = 8192, 65536
REPEATS = 4
"""How often a special value occurs, at least where the feature with most of them leaves room for it."""
BLOCK = 4096
SEED = 20_250_101

_ZERO = np.float32(1e-35)  # LightGBM's kZeroThreshold
_BEYOND_ZERO = np.nextafter(_ZERO, np.float32(1))
_HUGE = np.finfo(np.float32).max
_TINY = np.finfo(np.float32).smallest_subnormal
_NUMBERS = np.array([0, 1, _TINY, _ZERO, _BEYOND_ZERO, _HUGE, np.inf], np.float32)
_NUMBERS = np.concatenate((_NUMBERS, -_NUMBERS, [np.float32(np.nan)]))
_LARGEST = LARGEST_EXACT_INTEGER
_CATEGORIES = np.array([0, 0.5, 1, _LARGEST, _LARGEST + 2, 2**31, 2**32, _HUGE, np.inf], np.float32)
_CATEGORIES = np.concatenate((_CATEGORIES, -_CATEGORIES, [np.float32(np.nan)]))


def verification_rows(forest: ForestText) -> NDArray[np.float32]:
    """Rows that put decisions to the test: float32 [n, features], the same for the same forest."""
    specials = special_values(forest)
    count = min(max(MIN_ROWS, REPEATS * max(map(len, specials))), MAX_ROWS)
    random = np.random.default_rng(SEED)
    columns = [np.resize(random.permutation(values), count) for values in specials]
    return np.stack([random.permutation(column) for column in columns], axis=1)


def special_values(forest: ForestText) -> list[NDArray[np.float32]]:
    """The values that each feature's decisions turn on, without duplicates."""
    values: list[list[NDArray[np.float32]]] = [[] for _ in range(forest.features)]
    for tree in forest.trees:
        for feature, threshold in zip(
            tree.features[~tree.categorical], tree.thresholds[~tree.categorical], strict=True
        ):
            values[feature].append(_around(threshold))
        for feature, categories in tree.category_sets():
            values[feature].append(_beside(categories))
    categorical = {feature for tree in forest.trees for feature, _ in tree.category_sets()}
    return [
        np.unique(np.concatenate([_CATEGORIES if feature in categorical else _NUMBERS, *found]))
        for feature, found in enumerate(values)
    ]


def require_parity(booster: lightgbm.Booster, compiled: NativeForest, rows: NDArray[np.float32]) -> None:
    """Compare margins bit for bit.

    Args:
        booster: the oracle.
        compiled: the forest under test.
        rows: float32 [n, features].

    Raises:
        ExportError: margins differ; the message shows the first row that does.
    """
    for start in range(0, len(rows), BLOCK):
        block = np.ascontiguousarray(rows[start : start + BLOCK])
        expected = np.asarray(booster.predict(block, raw_score=True), np.float64)
        found = compiled.margins(block)
        differs = expected.view(np.int64) != found.view(np.int64)
        if differs.any():
            raise ExportError(_difference(block, expected, found, np.flatnonzero(differs).tolist()))


def _around(threshold: float) -> NDArray[np.float32]:
    """The threshold as float32, and the next value to either side."""
    with np.errstate(over="ignore"):
        nearest = np.float32(threshold)
        up, down = np.nextafter(nearest, np.float32(np.inf)), np.nextafter(nearest, np.float32(-np.inf))
    return np.array([down, nearest, up], np.float32)


def _beside(categories: NDArray[np.int64]) -> NDArray[np.float32]:
    """The categories, the next to either side, and a fraction that truncates to each."""
    return np.concatenate((categories - 1, categories, categories + 1, categories + 0.75)).astype(np.float32)


def _difference(
    rows: NDArray[np.float32], expected: NDArray[np.float64], found: NDArray[np.float64], differing: Sequence[int]
) -> str:
    first = differing[0]
    return (
        f"the compiled forest does not answer as LightGBM does: {len(differing)} of {len(rows)} verification rows "
        f"differ, for the first LightGBM's raw score is {expected[first]} and the library's {found[first]}, "
        f"features {rows[first].tolist()}"
    )
