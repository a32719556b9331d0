"""Forests from the same arrays as kernels/forest, row by row where the kernel goes bit by bit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recserve.kernels._forest_arrays import NAN_BIN, Arrays


class Forest:
    """See kernels/forest.pyi; checks nothing."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self.column_features = arrays["column_features"]

    def predict(self, rows: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Margins: [n], or [n, outputs] where there are several."""
        columns = range(len(self.column_features))
        bins = [self._bin(column, rows[:, self.column_features[column]]) for column in columns]
        margins = self._margins(np.array(bins, np.uint8).reshape(len(columns), len(rows)).T)
        return margins if margins.shape[1] > 1 else margins[:, 0]

    def bin_columns(self, features: Sequence[int]) -> NDArray[np.int32]:
        """Columns of these features, ascending."""
        return np.flatnonzero(np.isin(self.column_features, features)).astype(np.int32)

    def bin_matrix(self, values: NDArray[np.float32], features: Sequence[int]) -> NDArray[np.uint8]:
        """Bins [n, columns of the features] of values [n, features]."""
        columns = self.bin_columns(features)
        places = [list(features).index(self.column_features[column]) for column in columns]
        bins = [self._bin(column, values[:, place]) for column, place in zip(columns, places, strict=True)]
        return np.array(bins, np.uint8).reshape(len(columns), len(values)).T

    def _bin(self, column: int, values: NDArray[np.floating]) -> NDArray[np.uint8]:
        """How many thresholds are below each value."""
        start, end = self.arrays["threshold_bounds"][column : column + 2]
        below = np.searchsorted(self.arrays["thresholds"][start:end], values.astype(np.float64), side="left")
        return np.where(np.isnan(values), NAN_BIN, below).astype(np.uint8)

    def _conditions(self, bins: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Slots 0, 1 and the conditions: bool [slots, n]."""
        slots = [np.zeros(len(bins), bool), np.ones(len(bins), bool)]
        ranges = np.repeat(np.arange(len(self.column_features)), np.diff(self.arrays["range_bounds"]))
        for column, low, width in zip(ranges, self.arrays["range_lows"], self.arrays["range_widths"], strict=True):
            slots.append(bins[:, column] - low <= width)
        sets = np.repeat(np.arange(len(self.column_features)), np.diff(self.arrays["set_bounds"]))
        for column, bits in zip(sets, self.arrays["set_bits"], strict=True):
            slots.append(np.unpackbits(bits, bitorder="little").astype(bool)[bins[:, column]])
        return np.array(slots)

    def _margins(self, bins: NDArray[np.uint8]) -> NDArray[np.float64]:
        conditions = self._conditions(bins)
        bounds = self.arrays["output_bounds"]
        margins = np.empty((len(bins), len(bounds) - 1))
        for output, (start, end) in enumerate(itertools.pairwise(bounds)):
            dtype = np.float32 if self.arrays["singles"][output] else np.float64
            sums: NDArray[np.floating] = np.full(len(bins), self.arrays["initials"][output], dtype)
            for piece in range(start, end):
                sums = sums + self.arrays["leaves"][piece, self._numbers(conditions, piece)].astype(dtype)
            margins[:, output] = sums.astype(np.float64) / self.arrays["divisors"][output]
        return margins

    def _numbers(self, conditions: NDArray[np.bool_], piece: int) -> NDArray[np.int64]:
        """Leaf numbers [n] of a piece."""
        start, end = self.arrays["op_bounds"][piece : piece + 2]
        slots = list(conditions)
        for c, a, b in self.arrays["ops"][start:end]:
            slots.append(np.where(slots[c], slots[a], slots[b]))
        planes = [slots[slot].astype(np.int64) << bit for bit, slot in enumerate(self.arrays["planes"][piece])]
        numbers: NDArray[np.int64] = np.sum(planes, axis=0)
        return numbers
