"""Key -> row lookup in plain Python, the oracle of `recserve.kernels.ids`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.ids import DuplicateKeyError

MULTIPLIER = 0x9E3779B97F4A7C15


def build_slots(keys: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """See `recserve.kernels.ids.build_slots`."""
    size = 2
    while size < 2 * len(keys):
        size *= 2
    slots = [0] * size
    values = keys.tolist()
    for row, key in enumerate(values):
        slot = _home(key, size)
        while slots[slot]:
            if values[slots[slot] - 1] == key:
                raise DuplicateKeyError(slots[slot] - 1, row)
            slot = (slot + 1) % size
        slots[slot] = row + 1
    return np.array(slots, np.uint32)


def lookup(keys: NDArray[np.uint64], slots: NDArray[np.uint32], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """See `recserve.kernels.ids.lookup`; assumes that `slots` is a table of `keys`."""
    rows = []
    for key in wanted.tolist():
        slot = _home(key, len(slots))
        while slots[slot] and keys[slots[slot] - 1] != key:
            slot = (slot + 1) % len(slots)
        rows.append(int(slots[slot]) - 1)
    return np.array(rows, np.int64)


def _home(key: int, size: int) -> int:
    """The top bits of the product, as many as `size` has."""
    return (key * MULTIPLIER % 2**64) * size // 2**64
