from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recserve.kernels import bitmaps
from recserve.kernels import filters as kernel

CARDINALITY = 5
FEW = settings(max_examples=100, deadline=None)
# Missing, every code, and codes that no vocabulary of this size has.
CODES = st.one_of(st.integers(-1, CARDINALITY - 1), st.sampled_from([CARDINALITY, 2**31 - 1, -(2**31)]))
NUMBERS = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan]))
MEMBERS = hnp.arrays(np.uint8, CARDINALITY, elements=st.sampled_from([0, 1, 7]))


@st.composite
def targets(draw, size):
    """(mask, rows): for all items, or for a subset in any order with repeats."""
    if draw(st.booleans()):
        rows, length = None, size
    else:
        length = draw(st.integers(0, 20)) if size else 0
        rows = draw(hnp.arrays(np.int64, length, elements=st.integers(0, max(0, size - 1))))
    return draw(hnp.arrays(np.bool_, length)), rows


@st.composite
def columns(draw, dtype, elements):
    """(column, mask, rows)"""
    column = draw(hnp.arrays(dtype, st.integers(0, 40), elements=elements))
    return column, *draw(targets(len(column)))


@st.composite
def list_columns(draw):
    """(offsets, codes, mask, rows)"""
    lists = draw(st.lists(st.lists(CODES, max_size=4), max_size=30))
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    codes = np.array([code for one in lists for code in one], np.int32)
    return offsets, codes, *draw(targets(len(lists)))


def check(apply, before, rows, passes):
    """Apply a filter; what it leaves is the mask where `passes(row)` holds, and nothing elsewhere."""
    everything = range(len(before)) if rows is None else rows.tolist()
    expected = [value and passes(row) for value, row in zip(before.tolist(), everything, strict=True)]
    mask = bitmaps.pack(before)
    apply(mask, rows)
    assert mask.tolist() == bitmaps.pack(np.array(expected, np.bool_)).tolist()


def kept(apply, size):
    """Truth values of what a filter leaves of `size` items."""
    mask = bitmaps.full(size)
    apply(mask)
    return bitmaps.unpack(mask, size).tolist()


@given(case=columns(np.int32, CODES), members=MEMBERS)
@FEW
def test_keep_codes(filters, case, members):
    codes, mask, rows = case
    wanted = set(np.flatnonzero(members))
    check(lambda m, r: filters.keep_codes(m, codes, members, r), mask, rows, lambda row: codes[row] in wanted)


@given(case=columns(np.int32, CODES), members=MEMBERS)
@FEW
def test_drop_codes(filters, case, members):
    codes, mask, rows = case
    unwanted = set(np.flatnonzero(members))
    check(lambda m, r: filters.drop_codes(m, codes, members, r), mask, rows, lambda row: codes[row] not in unwanted)


@given(case=columns(np.float64, NUMBERS), low=st.floats(allow_nan=False), high=st.floats(allow_nan=False))
@FEW
def test_keep_range(filters, case, low, high):
    values, mask, rows = case
    check(lambda m, r: filters.keep_range(m, values, low, high, r), mask, rows, lambda row: low <= values[row] <= high)


def test_range_bounds_are_inclusive_and_nan_fails(filters):
    values = np.array([0.9, 1.0, 2.0, 2.1, np.nan, np.inf])
    assert kept(lambda mask: filters.keep_range(mask, values, 1.0, 2.0), 6) == [False, True, True, False, False, False]
    values = np.array([-np.inf, 0.0, np.inf, np.nan])
    assert kept(lambda mask: filters.keep_range(mask, values, -np.inf, np.inf), 4) == [True, True, True, False]


@given(case=columns(np.uint8, st.sampled_from([0, 1, 255])))
@FEW
def test_keep_flag(filters, case):
    flags, mask, rows = case
    check(lambda m, r: filters.keep_flag(m, flags, r), mask, rows, lambda row: flags[row] != 0)


@given(case=list_columns(), members=MEMBERS)
@FEW
def test_drop_any(filters, case, members):
    offsets, codes, mask, rows = case
    unwanted = set(np.flatnonzero(members))
    check(
        lambda m, r: filters.drop_any(m, offsets, codes, members, r),
        mask,
        rows,
        lambda row: unwanted.isdisjoint(codes[offsets[row] : offsets[row + 1]]),
    )


@given(case=list_columns(), code=st.integers(-1, CARDINALITY))
@FEW
def test_keep_listed(filters, case, code):
    offsets, codes, mask, rows = case

    def passes(row):
        listed = codes[offsets[row] : offsets[row + 1]].tolist()
        return not listed or (code >= 0 and code in listed)

    check(lambda m, r: filters.keep_listed(m, offsets, codes, code, r), mask, rows, passes)


def test_filters_combine(filters):
    def apply(mask):
        filters.keep_flag(mask, np.array([1, 1, 0, 1], np.uint8))
        filters.keep_range(mask, np.array([1.0, 5.0, 1.0, 2.0]), 0.0, 2.0)

    assert kept(apply, 4) == [True, False, False, True]


def test_mapped_read_only_columns(filters, tmp_path):
    rng = np.random.default_rng(0)
    columns = {
        "codes": rng.integers(-1, CARDINALITY, 200).astype(np.int32),
        "values": rng.random(200),
        "flags": rng.integers(0, 2, 200).astype(np.uint8),
        "offsets": np.arange(0, 402, 2),
        "list_codes": rng.integers(0, CARDINALITY, 400).astype(np.int32),
        "members": np.array([1, 0, 1, 1, 1], np.uint8),
        "rows": np.arange(0, 200, 3),
    }
    mapped = {}
    for name, column in columns.items():
        np.save(tmp_path / f"{name}.npy", column)
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    for rows in (None, "rows"):
        expected, found = (apply_all(filters, c, None if rows is None else c[rows]) for c in (columns, mapped))
        assert 0 < bitmaps.count(expected) < 60
        assert np.array_equal(found, expected)


def apply_all(module, column, rows):
    """One filter of each kind over random columns."""
    mask = bitmaps.full(len(column["codes"]) if rows is None else len(rows))
    module.keep_codes(mask, column["codes"], column["members"], rows)
    module.drop_codes(mask, column["codes"], 1 - column["members"], rows)
    module.keep_range(mask, column["values"], 0.1, 0.95, rows)
    module.keep_flag(mask, column["flags"], rows)
    module.drop_any(mask, column["offsets"], column["list_codes"], 1 - column["members"], rows)
    module.keep_listed(mask, column["offsets"], column["list_codes"], 2, rows)
    return mask


def test_threads_agree():
    rng = np.random.default_rng(1)
    codes = rng.integers(-1, 50, 200_000).astype(np.int32)
    allowed = rng.integers(0, 2, 50).astype(np.uint8)

    def allowed_rows(_):
        mask = bitmaps.full(len(codes))
        kernel.keep_codes(mask, codes, allowed)
        return bitmaps.unpack(mask, len(codes))

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(allowed_rows, range(16)))
    assert all(np.array_equal(answer, np.append(allowed, 0)[codes]) for answer in answers)


def read_only(array):
    array.flags.writeable = False
    return array


CODES_4 = np.zeros(4, np.int32)
ONE = np.ones(1, np.uint8)
MASK_4 = bitmaps.full(4)


@pytest.mark.parametrize(
    ("apply", "error", "message"),
    [
        (lambda: kernel.keep_codes(bitmaps.full(65), CODES_4, ONE), ValueError, r"mask: expected shape \[1\]"),
        (lambda: kernel.keep_codes(np.ones(4, bool), CODES_4, ONE), TypeError, "mask: expected dtype uint64"),
        (lambda: kernel.keep_codes(read_only(MASK_4.copy()), CODES_4, ONE), ValueError, "mask: is written in place"),
        (lambda: kernel.keep_codes(MASK_4, CODES_4.astype(np.int64), ONE), TypeError, "codes: expected dtype int32"),
        (lambda: kernel.keep_codes(MASK_4, None, ONE), TypeError, "codes: expected a NumPy array"),
        (lambda: kernel.drop_codes(MASK_4, CODES_4, ONE.astype(bool)), TypeError, "forbidden: expected dtype uint8"),
        (lambda: kernel.keep_codes(MASK_4, CODES_4, ONE, np.array([4])), ValueError, r"rows\[0\] is 4, outside"),
        (lambda: kernel.keep_codes(MASK_4, CODES_4, ONE, np.array([-1])), ValueError, r"rows\[0\] is -1, outside"),
        (lambda: kernel.keep_codes(MASK_4[:0], CODES_4, ONE, np.array([1])), ValueError, r"mask: expected shape \[1\]"),
        (lambda: kernel.keep_range(MASK_4, np.zeros(4), np.nan, 1.0), ValueError, "low, high: expected numbers"),
        (lambda: kernel.keep_range(MASK_4, np.zeros(4), 0.0, np.nan), ValueError, "low, high: expected numbers"),
        (lambda: kernel.keep_flag(MASK_4, np.zeros(65, np.uint8)), ValueError, r"mask: expected shape \[2\]"),
        (lambda: kernel.drop_any(MASK_4, np.arange(5), CODES_4[:3], ONE), ValueError, "end with 3"),
        (
            lambda: kernel.drop_any(MASK_4[:0], np.arange(4), CODES_4[:3], ONE),
            ValueError,
            r"mask: expected shape \[1\]",
        ),
        (lambda: kernel.keep_listed(MASK_4, np.arange(0), CODES_4, 0), ValueError, "list_offsets: expected to begin"),
        (
            lambda: kernel.keep_listed(MASK_4, np.arange(1, 6), CODES_4, 0),
            ValueError,
            "list_offsets: expected to begin",
        ),
    ],
)
def test_bad_arguments_are_refused(apply, error, message):
    with pytest.raises(error, match=message):
        apply()
