"""Each check against its definition, in blocks of three: what a block's edge could hide lies on one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.kernels.features import MISSING_TIME
from recserve.server.bundle import checks
from recserve.server.bundle.errors import BundleCorruptError, BundleError, BundleMismatchError

INT64 = np.iinfo(np.int64)
BLOCK = 3
modest = settings(deadline=None, max_examples=60)


def passes(check: Callable[..., object], *arguments: Any, **options: Any) -> bool:
    try:
        check(*arguments, "a.npy", **options)
    except BundleError as error:
        return error.file != "a.npy"
    return True


def edited(length: int, index: int, good: Any, bad: Any, dtype: Any = None) -> np.ndarray:
    values = np.full(length, good, dtype)
    values[index] = bad
    return values


LENGTHS = [1, 2, 3, 4, 6, 7]
POSITIONS = [(length, index) for length in LENGTHS for index in range(length)]


def test_blocks_cover_everything_once_and_in_order() -> None:
    for length in range(8):
        parts = list(checks.blocks(length, BLOCK))
        assert [row for part in parts for row in range(part.start, part.stop)] == list(range(length))


# ------------------------------------------------------------------------------------------------------------- offsets


@modest
@given(st.lists(st.sampled_from([INT64.min, -1, 0, 1, 2, 3, INT64.max]), min_size=1, max_size=8))
def test_offsets_never_decrease(offsets: list[int]) -> None:
    array = np.array(offsets, np.int64)
    assert passes(checks.check_monotone, array, block=BLOCK) == (offsets == sorted(offsets))


@pytest.mark.parametrize(("length", "index"), [each for each in POSITIONS if each[1] > 0])
def test_a_decrease_by_one_is_found_at_every_place(length: int, index: int) -> None:
    offsets = np.arange(length) + 5
    offsets[index:] -= 2
    with pytest.raises(BundleCorruptError, match=f"decrease after entry {index - 1} ") as caught:
        checks.check_monotone(offsets, "a.npy", block=BLOCK)
    assert caught.value.found == offsets[index]


def test_offsets_whose_differences_wrap_around_decrease() -> None:
    offsets = np.array([0, 2**63 - 1, -(2**63), -1, 5])
    assert (np.diff(offsets) > 0).all()
    with pytest.raises(BundleCorruptError, match="decrease after entry 1 "):
        checks.check_monotone(offsets, "a.npy")


@pytest.mark.parametrize("offsets", [[1, 5], [0, 4], [0, 6], [0], [-1, 5]])
def test_offsets_span_their_values(offsets: list[int]) -> None:
    checks.check_ends(np.array([0, 2, 5]), 5, "a.npy")
    with pytest.raises(BundleCorruptError, match="do not span"):
        checks.check_ends(np.array(offsets), 5, "a.npy")


# ----------------------------------------------------------------------------------------------------- codes and keys


@pytest.mark.parametrize("bad", [-2, 4, INT64.min, INT64.max])
@pytest.mark.parametrize(("length", "index"), POSITIONS)
def test_a_value_out_of_range_is_found_at_every_place(length: int, index: int, bad: int) -> None:
    assert passes(checks.check_between, np.resize([-1, 3], length), -1, 4, block=BLOCK)
    with pytest.raises(BundleCorruptError, match=f"entry {index} is out of range") as caught:
        checks.check_between(edited(length, index, 3, bad), -1, 4, "a.npy", block=BLOCK)
    assert (caught.value.expected, caught.value.found) == ("-1 to 3", bad)


@modest
@given(st.lists(st.integers(0, 5), max_size=8))
def test_keys_ascend_strictly(keys: list[int]) -> None:
    expected = all(a < b for a, b in itertools.pairwise(keys))
    assert passes(checks.check_ascending, np.array(keys, np.uint64), block=BLOCK) == expected


@modest
@given(st.lists(st.integers(0, 5), max_size=8) | st.permutations(range(7)))
def test_permutations(rows: list[int]) -> None:
    expected = sorted(rows) == list(range(len(rows)))
    assert passes(checks.check_permutation, np.array(rows, np.int64), block=BLOCK) == expected


@modest
@given(st.lists(st.sampled_from([np.nan, -np.inf, 0.0, -0.0, 1.0, 2.0, np.inf]), max_size=9), st.randoms())
def test_an_order_falls_from_the_highest_value(values: list[float], random: Random) -> None:
    order = list(range(len(values)))
    right = sorted(order, key=lambda row: (np.isnan(values[row]), -values[row], row))
    random.shuffle(order)
    for each in (order, right):
        expected = each == right
        assert passes(checks.check_falling, np.array(values), np.array(each, np.int64), block=BLOCK) == expected


@modest
@given(
    st.lists(st.lists(st.integers(-1, 4), max_size=3), max_size=6), st.lists(st.integers(0, 4), min_size=2, max_size=2)
)
def test_list_codes_are_those_of_their_own_column(lists: list[list[int]], sizes: list[int]) -> None:
    lists = lists[: len(lists) // 2 * 2]
    codes = np.array([code for each in lists for code in each], np.int32)
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    expected = all(0 <= code < sizes[number % 2] for number, each in enumerate(lists) for code in each)
    assert passes(checks.check_list_codes, codes, offsets, sizes) == expected


def test_a_list_code_of_another_column_is_named() -> None:
    codes, offsets = np.array([7, 1, 8, 2], np.int32), np.array([0, 1, 2, 2, 4])
    with pytest.raises(BundleCorruptError, match=r"entry 2, of list column 1,.*expected '0 to 2', found 8"):
        checks.check_list_codes(codes, offsets, [9, 3], "a.npy")


# ------------------------------------------------------------------------------------------------------------- strings


def text_arrays(parts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    return np.frombuffer(b"".join(parts), np.uint8), np.cumsum([0, *map(len, parts)], dtype=np.int64)


def is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


@modest
@given(st.lists(st.text(max_size=3).map(str.encode) | st.binary(max_size=3), max_size=6))
def test_every_string_is_utf8(parts: list[bytes]) -> None:
    assert passes(checks.check_utf8, *text_arrays(parts), block=BLOCK) == all(map(is_utf8, parts))


@pytest.mark.parametrize(
    "parts",
    [[b"ab\xc3"], [b"abc\xc3"], [b"ab", b"\xc3"], [b"\xff"], [b"\xc3", b"\xbc"], [b"abc\xc3", b"\xbc"]],
    ids=["cut in a block", "cut at a block", "cut last string", "no UTF-8", "within a character", "at a block's edge"],
)
def test_strings_that_are_no_utf8(parts: list[bytes]) -> None:
    with pytest.raises(BundleCorruptError, match="UTF-8"):
        checks.check_utf8(*text_arrays(parts), "a.npy", block=BLOCK)


# -------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("bad", [INT64.min + 1, -62_135_596_800_000_001, 253_402_300_800_000_000, INT64.max])
@pytest.mark.parametrize(("length", "index"), POSITIONS)
def test_times_lie_in_the_years_1_to_9999(length: int, index: int, bad: int) -> None:
    good = np.resize([-62_135_596_800_000_000, 0, 253_402_300_799_999_999, MISSING_TIME], length)
    assert passes(checks.check_times, good, block=BLOCK)
    assert passes(checks.check_times, good[:, np.newaxis], block=BLOCK)
    with pytest.raises(BundleCorruptError, match=f"entry {index} is no time"):
        checks.check_times(edited(length, index, 0, bad), "a.npy", block=BLOCK)


def test_some_times_may_not_be_missing() -> None:
    with pytest.raises(BundleCorruptError, match="entry 1 is no time"):
        checks.check_times(np.array([0, MISSING_TIME]), "a.npy", missing=False)


@pytest.mark.parametrize("bad", [0.0, 0.999, -1.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("length", "index"), POSITIONS)
def test_counts_are_finite_and_at_least_one(length: int, index: int, bad: float) -> None:
    assert passes(checks.check_counts, np.resize([1.0, 2.5, 1e300], length), block=BLOCK)
    with pytest.raises(BundleCorruptError, match=f"entry {index} counts nothing"):
        checks.check_counts(edited(length, index, 1.0, bad), "a.npy", block=BLOCK)


COLUMNS: dict[str, tuple[Any, Any]] = {
    "numbers": ([0.1, np.nan, -3e38, 0.0, 1e300], np.float32([0.1, np.nan, -3e38, 0.0, np.inf])),
    "codes": (np.int32([3, -1, 0, 2**24 - 1]), np.float32([3, np.nan, 0, 2**24 - 1])),
    "integers": (np.int64([2**60 + 1, -7]), np.float32([2**60, -7])),
    "flags": (np.uint8([0, 1]), np.float32([0, 1])),
    "times": (np.int64([MISSING_TIME, 2**60 + 1]), np.int64([MISSING_TIME, 2**60 + 1])),
}


@pytest.mark.parametrize(("values", "stored"), COLUMNS.values(), ids=COLUMNS.keys())
def test_a_matrix_holds_the_columns_that_it_is_made_of(values: Any, stored: Any) -> None:
    for length in LENGTHS:
        column, matrix = np.resize(values, length), np.resize(stored, (length, 1))
        matrix = np.hstack([np.zeros_like(matrix), matrix])
        assert passes(checks.check_column, matrix, 1, column, block=BLOCK)
        for row in range(length):
            other = matrix.copy()
            other[row, 1] = 5
            with pytest.raises(BundleMismatchError, match=f"column 1 contradicts.*in row {row} "):
                checks.check_column(other, 1, column, "a.npy", block=BLOCK)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("length", "index"), POSITIONS)
def test_a_vector_that_is_not_finite_is_found_in_every_row(
    length: int, index: int, bad: float, normalized: bool
) -> None:
    vectors = np.tile(np.float32([0.6, 0.8]), (length, 1))
    assert passes(checks.check_vectors, vectors, normalized=normalized, block=2 * BLOCK)
    vectors[index, 1] = bad
    with pytest.raises(BundleCorruptError, match=f"vector in row {index} is not finite"):
        checks.check_vectors(vectors, "a.npy", normalized=normalized, block=2 * BLOCK)


@pytest.mark.parametrize(("scale", "fits"), [(1.00009, True), (0.99991, True), (1.00011, False), (0.0, False)])
def test_the_length_of_a_normalised_vector_is_1(scale: float, fits: bool) -> None:
    vectors = np.float32([[0.6, 0.8], [0.6 * scale, 0.8 * scale]])
    assert passes(checks.check_vectors, vectors, normalized=True) == fits
    assert passes(checks.check_vectors, vectors, normalized=False)


def test_vectors_longer_than_a_block_are_checked_one_by_one() -> None:
    vectors = np.full((3, 100), 3e38, np.float32)
    assert passes(checks.check_vectors, vectors, normalized=False, block=BLOCK)
    assert not passes(checks.check_vectors, vectors, normalized=True, block=BLOCK)
