"""Filters over item rows in plain Python and NumPy, the oracle of `recserve.kernels.filters`."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recserve.kernels.reference.bitmaps import pack

Mask = NDArray[np.uint64]
Rows = NDArray[np.int64]
Element = TypeVar("Element", bound=np.generic)


def keep_codes(mask: Mask, codes: NDArray[np.int32], allowed: NDArray[np.uint8], rows: Rows | None = None) -> None:
    """See `recserve.kernels.filters.keep_codes`."""
    _keep(mask, np.isin(_of(codes, rows), np.flatnonzero(allowed)))


def drop_codes(mask: Mask, codes: NDArray[np.int32], forbidden: NDArray[np.uint8], rows: Rows | None = None) -> None:
    """See `recserve.kernels.filters.drop_codes`."""
    _keep(mask, ~np.isin(_of(codes, rows), np.flatnonzero(forbidden)))


def keep_range(mask: Mask, values: NDArray[np.float64], low: float, high: float, rows: Rows | None = None) -> None:
    """See `recserve.kernels.filters.keep_range`."""
    chosen = _of(values, rows)
    _keep(mask, (chosen >= low) & (chosen <= high))


def keep_flag(mask: Mask, flags: NDArray[np.uint8], rows: Rows | None = None) -> None:
    """See `recserve.kernels.filters.keep_flag`."""
    _keep(mask, _of(flags, rows) != 0)


def drop_any(
    mask: Mask,
    list_offsets: NDArray[np.int64],
    list_codes: NDArray[np.int32],
    forbidden: NDArray[np.uint8],
    rows: Rows | None = None,
) -> None:
    """See `recserve.kernels.filters.drop_any`."""
    unwanted = set(np.flatnonzero(forbidden).tolist())
    _keep(mask, [not codes & unwanted for codes in _lists(list_offsets, list_codes, rows)])


def keep_listed(
    mask: Mask, list_offsets: NDArray[np.int64], list_codes: NDArray[np.int32], code: int, rows: Rows | None = None
) -> None:
    """See `recserve.kernels.filters.keep_listed`."""
    lists = _lists(list_offsets, list_codes, rows)
    _keep(mask, [not codes or (code >= 0 and code in codes) for codes in lists])


def _keep(mask: Mask, passes: ArrayLike) -> None:
    """Clear the bits of the places that do not pass."""
    mask &= pack(np.asarray(passes, np.bool_))


def _of(column: NDArray[Element], rows: Rows | None) -> NDArray[Element]:
    """The column's values that the mask stands for."""
    return column if rows is None else column[rows]


def _lists(offsets: NDArray[np.int64], codes: NDArray[np.int32], rows: Rows | None) -> list[set[int]]:
    """The lists that the mask stands for, as sets."""
    everything = range(len(offsets) - 1) if rows is None else rows.tolist()
    return [set(codes[offsets[row] : offsets[row + 1]].tolist()) for row in everything]
