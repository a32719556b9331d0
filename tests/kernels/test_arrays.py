"""What every kernel demands of its arrays: see the functions of `recserve.kernels._arrays`."""

from __future__ import annotations

import numpy as np
import pytest

from recserve.kernels._arrays import check_array, check_rows


def unaligned(count: int) -> np.ndarray:
    """float64 that start one byte past an address that the CPU could load them from."""
    return np.zeros(8 * count + 1, np.uint8)[1:].view(np.float64)


def test_arrays_that_a_kernel_can_read_as_they_are() -> None:
    frozen = np.arange(6.0).reshape(2, 3)
    frozen.setflags(write=False)
    check_array("x", frozen, np.float64, (2, 3))
    check_array("x", frozen, np.float64, (None, 3))
    check_array("x", np.empty((0, 3)), np.float64, (None, 3), writable=True)


@pytest.mark.parametrize("array", [None, [1.0], np.zeros(3, np.float32), np.zeros(3, ">f8"), np.zeros(3, np.int64)])
def test_other_types_are_refused(array: object) -> None:
    with pytest.raises(TypeError, match=r"^x: expected"):
        check_array("x", array, np.float64, (None,))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(4),
        np.zeros((3, 2)),
        np.zeros((3, 1, 1)),
        np.asfortranarray(np.zeros((2, 3))),
        np.zeros((2, 6))[:, ::2],
        unaligned(6).reshape(2, 3),
    ],
    ids=["1 axis", "other length", "3 axes", "Fortran order", "with gaps", "unaligned"],
)
def test_other_shapes_and_layouts_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^x: expected"):
        check_array("x", array, np.float64, (2, 3))


def test_a_kernel_writes_only_where_it_may() -> None:
    frozen = np.zeros(3)
    frozen.setflags(write=False)
    with pytest.raises(ValueError, match="x: is written in place, but the array is read-only"):
        check_array("x", frozen, np.float64, (3,), writable=True)


@pytest.mark.parametrize(
    ("rows", "size", "message"),
    [
        ([0, 3, 5], 5, r"x\[2\] is 5, outside a table of 5 rows"),
        ([4, -1], 5, r"x\[1\] is -1, outside a table"),
        ([0], 0, r"x\[0\] is 0, outside a table of 0 rows"),
        ([7, -1], None, r"x\[1\] is -1, outside any table"),
    ],
)
def test_rows_outside_their_table_are_refused(rows: list[int], size: int | None, message: str) -> None:
    check_rows("x", np.array([0, 4]), 5)
    check_rows("x", np.empty(0, np.int64), 0)
    with pytest.raises(ValueError, match=message):
        check_rows("x", np.array(rows), size)
