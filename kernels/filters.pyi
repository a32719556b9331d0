"""Filters over item rows: conditions on columns as bitmaps (see `recserve.kernels.bitmaps`).

Every filter clears the mask's bits that fail its condition and leaves the rest as it is. Each takes `rows`:

- None: the mask is a bitmap over all N items, bit r for row r;
- int64 [n], each in 0..N-1: the mask is a bitmap over n places, bit i for rows[i].

Columns may be read-only and memory-mapped. All filters release the GIL and allocate nothing. Every one raises
TypeError for an array of another dtype, and ValueError for shapes that do not agree, arrays that are not contiguous, a
read-only mask, or rows outside the columns.
"""

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.bitmaps import Bitmap

def keep_codes(
    mask: Bitmap,
    codes: NDArray[np.int32],
    allowed: NDArray[np.uint8],
    rows: NDArray[np.int64] | None = None,
) -> None:
    """Keep items whose code is allowed.

    Args:
        mask: of N or n bits, written in place.
        codes: int32 [N]; -1 is missing, as is any code outside the vocabulary: the item fails.
        allowed: uint8 [cardinality], nonzero where a code passes.
        rows: see the module.
    """

def drop_codes(
    mask: Bitmap,
    codes: NDArray[np.int32],
    forbidden: NDArray[np.uint8],
    rows: NDArray[np.int64] | None = None,
) -> None:
    """Drop items whose code is forbidden.

    Args:
        mask: of N or n bits, written in place.
        codes: int32 [N]; -1 is missing, as is any code outside the vocabulary: the item passes.
        forbidden: uint8 [cardinality], nonzero where a code fails.
        rows: see the module.
    """

def keep_range(
    mask: Bitmap,
    values: NDArray[np.float64],
    low: float,
    high: float,
    rows: NDArray[np.int64] | None = None,
) -> None:
    """Keep items with low <= value <= high.

    Args:
        mask: of N or n bits, written in place.
        values: float64 [N]; NaN is missing and fails, whatever the bounds.
        low: least value that passes; -inf for no bound.
        high: greatest value that passes; inf for no bound. Below `low` nothing passes.
        rows: see the module.

    Raises:
        ValueError: also where a bound is NaN.
    """

def keep_flag(mask: Bitmap, flags: NDArray[np.uint8], rows: NDArray[np.int64] | None = None) -> None:
    """Keep items whose flag is set.

    Args:
        mask: of N or n bits, written in place.
        flags: uint8 [N], nonzero where the item passes.
        rows: see the module.
    """

def drop_any(
    mask: Bitmap,
    list_offsets: NDArray[np.int64],
    list_codes: NDArray[np.int32],
    forbidden: NDArray[np.uint8],
    rows: NDArray[np.int64] | None = None,
) -> None:
    """Drop items whose list has any forbidden code; an empty list passes.

    Args:
        mask: of N or n bits, written in place.
        list_offsets: int64 [N + 1], from 0 to len(list_codes), never descending (trusted: a bundle's are checked when
            it is opened); the list of a row is list_codes[offsets[row] : offsets[row + 1]].
        list_codes: int32, all lists one after another; codes outside the vocabulary are never forbidden.
        forbidden: uint8 [cardinality], nonzero where a code makes the item fail.
        rows: see the module.
    """

def keep_listed(
    mask: Bitmap,
    list_offsets: NDArray[np.int64],
    list_codes: NDArray[np.int32],
    code: int,
    rows: NDArray[np.int64] | None = None,
) -> None:
    """Keep items whose list has the code, or is empty: an item that lists no regions is sold everywhere.

    Args:
        mask: of N or n bits, written in place.
        list_offsets: int64 [N + 1], as for `drop_any`.
        list_codes: int32, all lists one after another.
        code: what to look for; a negative code (a value that no item names) is in no list.
        rows: see the module.
    """
