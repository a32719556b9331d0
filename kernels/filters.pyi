"""Filters over item rows as byte masks.

A mask is uint8, 0 where an item fails; every filter clears what fails its condition and leaves the rest as it is, so
filters are combined by applying one after another. Each takes `rows`:

- None: the mask is [N] and stands for all items, mask[row] for row;
- int64 [n], each in 0..N-1: the mask is [n], mask[i] stands for rows[i].

Columns may be read-only and memory-mapped. All filters release the GIL and allocate nothing. Every one raises
TypeError for an array of another dtype, and ValueError for shapes that do not agree, arrays that are not contiguous, a
read-only mask, or rows outside the columns.
"""

import numpy as np
from numpy.typing import NDArray

def keep_codes(
    mask: NDArray[np.uint8],
    codes: NDArray[np.int32],
    allowed: NDArray[np.uint8],
    rows: NDArray[np.int64] | None = None,
) -> None:
    """Keep items whose code is allowed.

    Args:
        mask: uint8 [N] or [n], written in place.
        codes: int32 [N]; -1 is missing, as is any code outside the vocabulary: the item fails.
        allowed: uint8 [cardinality], nonzero where a code passes.
        rows: see the module.
    """

def drop_codes(
    mask: NDArray[np.uint8],
    codes: NDArray[np.int32],
    forbidden: NDArray[np.uint8],
    rows: NDArray[np.int64] | None = None,
) -> None:
    """Drop items whose code is forbidden.

    Args:
        mask: uint8 [N] or [n], written in place.
        codes: int32 [N]; -1 is missing, as is any code outside the vocabulary: the item passes.
        forbidden: uint8 [cardinality], nonzero where a code fails.
        rows: see the module.
    """

def keep_range(
    mask: NDArray[np.uint8],
    values: NDArray[np.float64],
    low: float,
    high: float,
    rows: NDArray[np.int64] | None = None,
) -> None:
    """Keep items with low <= value <= high.

    Args:
        mask: uint8 [N] or [n], written in place.
        values: float64 [N]; NaN is missing and fails, whatever the bounds.
        low: least value that passes; -inf for no bound.
        high: greatest value that passes; inf for no bound. Below `low` nothing passes.
        rows: see the module.

    Raises:
        ValueError: also where a bound is NaN.
    """

def keep_flag(mask: NDArray[np.uint8], flags: NDArray[np.uint8], rows: NDArray[np.int64] | None = None) -> None:
    """Keep items whose flag is set.

    Args:
        mask: uint8 [N] or [n], written in place.
        flags: uint8 [N], nonzero where the item passes.
        rows: see the module.
    """

def drop_any(
    mask: NDArray[np.uint8],
    list_offsets: NDArray[np.int64],
    list_codes: NDArray[np.int32],
    forbidden: NDArray[np.uint8],
    rows: NDArray[np.int64] | None = None,
) -> None:
    """Drop items whose list has any forbidden code; an empty list passes.

    Args:
        mask: uint8 [N] or [n], written in place.
        list_offsets: int64 [N + 1], from 0 to len(list_codes), never descending (trusted: a bundle's are checked when
            it is opened); the list of a row is list_codes[offsets[row] : offsets[row + 1]].
        list_codes: int32, all lists one after another; codes outside the vocabulary are never forbidden.
        forbidden: uint8 [cardinality], nonzero where a code makes the item fail.
        rows: see the module.
    """

def keep_listed(
    mask: NDArray[np.uint8],
    list_offsets: NDArray[np.int64],
    list_codes: NDArray[np.int32],
    code: int,
    rows: NDArray[np.int64] | None = None,
) -> None:
    """Keep items whose list has the code, or is empty: an item that lists no regions is sold everywhere.

    Args:
        mask: uint8 [N] or [n], written in place.
        list_offsets: int64 [N + 1], as for `drop_any`.
        list_codes: int32, all lists one after another.
        code: what to look for; a negative code (a value that no item names) is in no list.
        rows: see the module.
    """

def drop_rows(mask: NDArray[np.uint8], sorted_rows: NDArray[np.int64], rows: NDArray[np.int64] | None = None) -> None:
    """Drop given items.

    Args:
        mask: uint8 [N] or [n], written in place.
        sorted_rows: int64 [m] >= 0, ascending, repeats allowed; less than N where `rows` is None.
        rows: see the module.

    Raises:
        ValueError: also where `sorted_rows` does not ascend.
    """
