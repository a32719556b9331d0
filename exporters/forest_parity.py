"""Whether a compiled forest answers as its source model does, bit for bit, where answers are likely to part.

Each verification row draws every feature from that feature's own special values: its thresholds as float32 with the
neighbours to both sides, the categories of its sets with their neighbours, and what decisions treat specially
(missing, infinite, zero of either sign, next to LightGBM's zero threshold, fractions and negatives as categories).
Further rows are drawn at random from the range of the thresholds and categories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.errors import ExportError
from recserve.exporters.forest_source import SourceForest
from recserve.exporters.source_models import SourceModel
from recserve.kernels.limits import LARGEST_EXACT_INTEGER

MIN_ROWS, MAX_ROWS = 8192, 65536
RANDOM_ROWS = 2048
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


def verification_rows(forest: SourceForest) -> NDArray[np.float32]:
    """Rows that put decisions to the test: float32 [n, features], the same for the same forest."""
    specials = special_values(forest)
    count = min(max(MIN_ROWS, REPEATS * max(map(len, specials))), MAX_ROWS)
    random = np.random.default_rng(SEED)
    columns = [random.permutation(np.resize(random.permutation(values), count)) for values in specials]
    return np.concatenate((np.stack(columns, axis=1), _random_rows(forest, random)))


def special_values(forest: SourceForest) -> list[NDArray[np.float32]]:
    """The values that each feature's decisions turn on, without duplicates; equal zeros of either sign are two."""
    categorical = forest.categorical_features()
    found = []
    for feature, (thresholds, categories) in enumerate(zip(*forest.special_values(), strict=True)):
        known = _CATEGORIES if feature in categorical else _NUMBERS
        values = np.concatenate((known, _around(thresholds), _beside(categories)))
        found.append(np.unique(values.view(np.int32)).view(np.float32))
    return found


def require_parity(
    model: SourceModel,
    margins: Callable[[NDArray[np.float32]], NDArray[np.float64]],
    rows: NDArray[np.float32],
    *,
    engine: str,
) -> None:
    """Compare the margins that rank bit for bit.

    Args:
        model: the oracle.
        margins: of the forest under test: [n, features] -> [n].
        rows: float32 [n, features].
        engine: what is under test, as the message names it.

    Raises:
        ExportError: margins differ; the message shows the first row that does.
    """
    for start in range(0, len(rows), BLOCK):
        block = np.ascontiguousarray(rows[start : start + BLOCK])
        expected, found = model.ranking_margins(block), np.ascontiguousarray(margins(block))
        differs = np.flatnonzero(expected.view(np.int64) != found.view(np.int64)).tolist()
        if differs:
            raise ExportError(f"{engine} {_difference(model.source, block, expected, found, differs)}")


def _around(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """The thresholds as float32, and the next values to either side."""
    with np.errstate(over="ignore"):
        nearest = thresholds.astype(np.float32)
        up, down = np.nextafter(nearest, np.float32(np.inf)), np.nextafter(nearest, np.float32(-np.inf))
    return np.concatenate((down, nearest, up))


def _beside(categories: NDArray[np.int64]) -> NDArray[np.float32]:
    """The categories, the next to either side, and a fraction that truncates to each."""
    return np.concatenate((categories - 1, categories, categories + 1, categories + 0.75)).astype(np.float32)


def _random_rows(forest: SourceForest, random: np.random.Generator) -> NDArray[np.float32]:
    """Numbers from somewhat beyond the range of each feature's thresholds and categories, one in ten missing."""
    columns = []
    for thresholds, categories in zip(*forest.special_values(), strict=True):
        turning = np.concatenate((thresholds, categories))
        turning = np.clip(turning, -1e30, 1e30)
        low, high = (turning.min(), turning.max()) if turning.size else (-1.0, 1.0)
        margin = 0.1 * (high - low) + 0.5
        values = random.uniform(low - margin, high + margin, RANDOM_ROWS)
        columns.append(np.floor(values) if categories.size and random.random() < 0.5 else values)
    rows = np.stack(columns, axis=1).astype(np.float32)
    rows[random.random(rows.shape) < 0.1] = np.nan
    return rows


def _difference(
    source: str,
    rows: NDArray[np.float32],
    expected: NDArray[np.float64],
    found: NDArray[np.float64],
    differing: Sequence[int],
) -> str:
    first = differing[0]
    return (
        f"does not answer as {source} does: {len(differing)} of {len(rows)} verification rows differ, for the first "
        f"{source}'s raw score is {expected[first]} and the forest's {found[first]}, features {rows[first].tolist()}"
    )
