"""What every kernel demands of its arrays, checked once before the GIL is released."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray


def check_array(
    name: str, array: object, dtype: DTypeLike, shape: tuple[int | None, ...], *, writable: bool = False
) -> None:
    """Refuse an array that a kernel cannot read as it is; kernels never convert or copy silently.

    Args:
        name: of the argument, for the message.
        array: the candidate; read-only and memory-mapped arrays are fine.
        dtype: the exact element type, in native byte order.
        shape: the exact shape; None stands for any length.
        writable: whether the kernel writes to it.

    Raises:
        TypeError: not a NumPy array, or of another dtype.
        ValueError: of another shape, not C-contiguous or aligned, or read-only where it has to be written.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array of {np.dtype(dtype)}, found {type(array).__name__}")
    if array.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {np.dtype(dtype)}, found {array.dtype}; convert it with astype first")
    if array.shape != shape and not _fits(array.shape, shape):
        expected = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name}: expected shape [{expected}], found {list(array.shape)}")
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned):
        raise ValueError(f"{name}: expected a C-contiguous, aligned array; pass np.ascontiguousarray(...) of it")
    if writable and not flags.writeable:
        raise ValueError(f"{name}: is written in place, but the array is read-only")


def _fits(found: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    # map, not a generator, which costs several times as much: a request checks dozens of arrays.
    return len(found) == len(wanted) and all(map(_accepts, wanted, found))


def _accepts(want: int | None, have: int) -> bool:
    return want is None or want == have


def check_rows(name: str, rows: NDArray[np.int64], size: int | None) -> None:
    """Refuse rows outside a table.

    Args:
        name: of the argument, for the message.
        rows: int64 rows, already checked as an array.
        size: rows of the table; None where it is unknown and only negative rows can be told to be wrong.

    Raises:
        ValueError: a row is negative or not less than `size`.
    """
    end = np.iinfo(np.int64).max if size is None else size
    if rows.size and (rows.min() < 0 or rows.max() >= end):
        position = int(np.argmax((rows < 0) | (rows >= end)))
        table = "any table" if size is None else f"a table of {size} rows"
        raise ValueError(f"{name}[{position}] is {rows[position]}, outside {table}")
