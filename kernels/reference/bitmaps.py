"""Bitmaps over item rows in plain NumPy, the oracle of `recserve.kernels.bitmaps`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Bitmap = NDArray[np.uint64]


def words_of(size: int) -> int:
    """See `recserve.kernels.bitmaps.words_of`."""
    return (size + 63) // 64


def full(size: int) -> Bitmap:
    """See `recserve.kernels.bitmaps.full`."""
    return pack(np.ones(size, np.bool_))


def pack(passes: NDArray[np.bool_]) -> Bitmap:
    """See `recserve.kernels.bitmaps.pack`."""
    bitmap = np.zeros(words_of(passes.size), np.uint64)
    for row in np.flatnonzero(passes).tolist():
        bitmap[row >> 6] |= np.uint64(1 << (row & 63))
    return bitmap


def unpack(bitmap: Bitmap, size: int) -> NDArray[np.bool_]:
    """See `recserve.kernels.bitmaps.unpack`."""
    return contains(bitmap, np.arange(size))


def count(bitmap: Bitmap) -> int:
    """See `recserve.kernels.bitmaps.count`."""
    return sum(word.bit_count() for word in bitmap.tolist())


def contains(bitmap: Bitmap, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """See `recserve.kernels.bitmaps.contains`."""
    return np.array([int(bitmap[row >> 6]) >> (row & 63) & 1 for row in rows.tolist()], np.bool_)


def intersect(bitmaps: Sequence[Bitmap], out: Bitmap) -> int:
    """See `recserve.kernels.bitmaps.intersect`."""
    out[:] = np.bitwise_and.reduce(np.stack(list(bitmaps)))
    return count(out)


def between(planes: NDArray[np.uint64], first: int, last: int, out: Bitmap) -> None:
    """See `recserve.kernels.bitmaps.between`."""
    bits = np.stack([unpack(plane, 64 * len(out)) for plane in planes])
    numbers = (1 << np.arange(len(planes))) @ bits.astype(np.int64)
    out[:] = pack((numbers >= first) & (numbers <= last))


def bounds(values: NDArray[np.float64], order: NDArray[np.int32], low: float, high: float) -> tuple[int, int]:
    """See `recserve.kernels.bitmaps.bounds`."""
    start = int(np.searchsorted(values[order], low))
    return start, max(start, int(np.searchsorted(values[order], high, side="right")))


def add_rows(bitmap: Bitmap, rows: NDArray[np.int32]) -> None:
    """See `recserve.kernels.bitmaps.add_rows`."""
    for row in rows.tolist():
        bitmap[row >> 6] |= np.uint64(1 << (row & 63))


def drop_rows(bitmap: Bitmap, rows: NDArray[np.int64]) -> int:
    """See `recserve.kernels.bitmaps.drop_rows`."""
    before = count(bitmap)
    for row in set(rows.tolist()):
        bitmap[row >> 6] &= np.uint64(~(1 << (row & 63)) & 0xFFFFFFFFFFFFFFFF)
    return before - count(bitmap)
