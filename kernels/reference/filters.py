"""Filters over item rows in plain Python and NumPy, the oracle of `recserve.kernels.filters`."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]
Rows = NDArray[np.int64]
Element = TypeVar("Element", bound=np.generic)


def keep_codes(mask: Mask, codes: NDArray[np.int32], allowed: NDArray[np.uint8], rows: Rows | None = None) -> None:
    """See `recserve.kernels.filters.keep_codes`."""
    mask[~np.isin(_of(codes, rows), np.flatnonzero(allowed))] = 0


def drop_codes(mask: Mask, codes: NDArray[np.int32], forbidden: NDArray[np.uint8], rows: Rows | None = None) -> None:
    """See `recserve.kernels.filters.drop_codes`."""
    mask[np.isin(_of(codes, rows), np.flatnonzero(forbidden))] = 0


def keep_range(mask: Mask, values: NDArray[np.float64], low: float, high: float, rows: Rows | None = None) -> None:
    """See `recserve.kernels.filters.keep_range`."""
    chosen = _of(values, rows)
    mask[~((chosen >= low) & (chosen <= high))] = 0


def keep_flag(mask: Mask, flags: NDArray[np.uint8], rows: Rows | None = None) -> None:
    """See `recserve.kernels.filters.keep_flag`."""
    mask[_of(flags, rows) == 0] = 0


def drop_any(
    mask: Mask,
    list_offsets: NDArray[np.int64],
    list_codes: NDArray[np.int32],
    forbidden: NDArray[np.uint8],
    rows: Rows | None = None,
) -> None:
    """See `recserve.kernels.filters.drop_any`."""
    unwanted = set(np.flatnonzero(forbidden).tolist())
    for i, codes in enumerate(_lists(list_offsets, list_codes, rows)):
        if codes & unwanted:
            mask[i] = 0


def keep_listed(
    mask: Mask, list_offsets: NDArray[np.int64], list_codes: NDArray[np.int32], code: int, rows: Rows | None = None
) -> None:
    """See `recserve.kernels.filters.keep_listed`."""
    for i, codes in enumerate(_lists(list_offsets, list_codes, rows)):
        if codes and (code < 0 or code not in codes):
            mask[i] = 0


def drop_rows(mask: Mask, sorted_rows: Rows, rows: Rows | None = None) -> None:
    """See `recserve.kernels.filters.drop_rows`."""
    mask[np.isin(np.arange(len(mask)) if rows is None else rows, sorted_rows)] = 0


def _of(column: NDArray[Element], rows: Rows | None) -> NDArray[Element]:
    """The column's values that the mask stands for."""
    return column if rows is None else column[rows]


def _lists(offsets: NDArray[np.int64], codes: NDArray[np.int32], rows: Rows | None) -> list[set[int]]:
    """The lists that the mask stands for, as sets."""
    everything = range(len(offsets) - 1) if rows is None else rows.tolist()
    return [set(codes[offsets[row] : offsets[row + 1]].tolist()) for row in everything]
