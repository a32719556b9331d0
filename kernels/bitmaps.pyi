"""Bitmaps over item rows: 64 items in a word.

A bitmap over n rows is uint64 [(n + 63) // 64]; row r is bit r & 63 of word r >> 6, and bits behind the last row are
zero. Seen as bytes on a little-endian machine it is what FAISS's IDSelectorBitmap takes. All functions release the GIL
where they loop. Every one raises TypeError for an array of another dtype, and ValueError for shapes that do not agree,
arrays that are not contiguous, read-only arrays that are written to, or rows outside the bitmap.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Bitmap: TypeAlias = NDArray[np.uint64]

def words_of(size: int) -> int:
    """How many words a bitmap over `size` rows has."""

def full(size: int) -> Bitmap:
    """A bitmap with the bits of all `size` rows set."""

def pack(passes: NDArray[np.bool_]) -> Bitmap:
    """The bitmap of bool [n]: bit i is set where passes[i]."""

def unpack(bitmap: Bitmap, size: int) -> NDArray[np.bool_]:
    """Bool [size]: whether each row's bit is set."""

def count(bitmap: Bitmap) -> int:
    """How many bits are set."""

def contains(bitmap: Bitmap, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Bool [n]: whether the bit of each of `rows` int64 [n] is set."""

def intersect(bitmaps: Sequence[Bitmap], out: Bitmap) -> int:
    """Write the rows that are in all of some bitmaps.

    Args:
        bitmaps: at least one, all of one length; they may be read-only.
        out: of the same length, written; may be one of them.

    Returns:
        How many bits are set in `out`.
    """

def between(planes: NDArray[np.uint64], first: int, last: int, out: Bitmap) -> None:
    """Write the rows whose number lies in first..last.

    Args:
        planes: uint64 [8, words]: bit b of the number of row r is row r's bit in planes[b].
        first: 0 to 255.
        last: `first` to 255.
        out: of `words` words, written. Rows behind the last have the number that their bits in `planes` say.
    """

def bounds(values: NDArray[np.float64], order: NDArray[np.int32], low: float, high: float) -> tuple[int, int]:
    """Where the values low <= value <= high lie in their order: order[start:stop] has their rows.

    Args:
        values: float64 [N].
        order: int32 [n], rows by ascending value, each in 0..N-1 (trusted, as is the order).
        low: the least value.
        high: the greatest.

    Returns:
        (start, stop), start <= stop.
    """

def add_rows(bitmap: Bitmap, rows: NDArray[np.int32]) -> None:
    """Set the bits of `rows` int32 [n], in any order, repeats allowed."""

def drop_rows(bitmap: Bitmap, rows: NDArray[np.int64]) -> int:
    """Clear the bits of `rows` int64 [n], in any order, repeats allowed; return how many of them were set."""
