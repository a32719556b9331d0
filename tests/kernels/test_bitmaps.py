from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recserve.kernels import bitmaps as kernel

FEW = settings(max_examples=60, deadline=None)
SIZES = st.integers(0, 200)
TRUTHS = SIZES.flatmap(lambda size: hnp.arrays(np.bool_, size))


def some_rows(size):
    return st.lists(st.integers(0, max(0, size - 1)), max_size=30 if size else 0).map(lambda r: np.array(r, np.int64))


@given(TRUTHS)
@FEW
def test_pack_and_unpack(bitmaps, passes):
    packed = bitmaps.pack(passes)
    assert packed.dtype == np.uint64
    assert packed.size == bitmaps.words_of(passes.size)
    assert [int(word) for word in packed] == [
        sum(1 << bit for bit, value in enumerate(passes[first : first + 64].tolist()) if value)
        for first in range(0, passes.size, 64)
    ]
    assert np.array_equal(bitmaps.unpack(packed, passes.size), passes)
    assert bitmaps.count(packed) == passes.sum()


@given(SIZES)
@FEW
def test_full_has_no_bits_behind_the_last_row(bitmaps, size):
    assert bitmaps.full(size).tolist() == bitmaps.pack(np.ones(size, np.bool_)).tolist()


@given(st.data())
@FEW
def test_contains_and_drop_rows(bitmaps, data):
    passes = data.draw(TRUTHS)
    rows = data.draw(some_rows(passes.size))
    bitmap = bitmaps.pack(passes)
    assert bitmaps.contains(bitmap, rows).tolist() == passes[rows].tolist()
    dropped = bitmaps.drop_rows(bitmap, rows)
    assert dropped == passes[np.unique(rows)].sum()
    passes[rows] = False
    assert np.array_equal(bitmap, kernel.pack(passes))


@given(st.data(), st.integers(1, 7), st.booleans())
@FEW
def test_intersect(bitmaps, data, number, in_place):
    size = data.draw(st.sampled_from([0, 1, 63, 64, 65, 1000, 40_000]))  # more than one piece of 512 words
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    truths = [rng.random(size) < 0.8 for _ in range(number)]
    terms = [kernel.pack(each) for each in truths]
    out = terms[-1] if in_place else np.full(kernel.words_of(size), 7, np.uint64)
    expected = np.logical_and.reduce(truths)
    assert bitmaps.intersect(terms, out) == expected.sum()
    assert np.array_equal(out, kernel.pack(expected))


@given(st.integers(0, 150), st.data())
@FEW
def test_between(bitmaps, size, data):
    numbers = np.array(data.draw(st.lists(st.integers(0, 255), min_size=size, max_size=size)), np.uint8)
    first = data.draw(st.integers(0, 255))
    last = data.draw(st.integers(first, 255))
    planes = np.stack([kernel.pack(numbers >> bit & 1 != 0) for bit in range(8)])
    out = np.full(planes.shape[1], 7, np.uint64)
    bitmaps.between(planes, first, last, out)
    passes = (numbers >= first) & (numbers <= last)
    behind = np.full(64 * len(out) - size, first == 0)
    assert np.array_equal(out, kernel.pack(np.concatenate([passes, behind])))


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(-1, 10), st.integers(-1, 10))
@FEW
def test_bounds(bitmaps, numbers, low, high):
    values = np.array(numbers, np.float64)
    order = np.argsort(values, kind="stable").astype(np.int32)
    start, stop = bitmaps.bounds(values, order, low, high)
    assert sorted(order[start:stop]) == [row for row, number in enumerate(numbers) if low <= number <= high]
    assert bitmaps.bounds(values, order, -np.inf, np.inf) == (0, len(numbers))


@given(st.data())
@FEW
def test_add_rows(bitmaps, data):
    passes = data.draw(TRUTHS)
    rows = data.draw(some_rows(passes.size))
    bitmap = bitmaps.pack(passes)
    bitmaps.add_rows(bitmap, rows.astype(np.int32))
    passes[rows] = True
    assert np.array_equal(bitmap, kernel.pack(passes))


def test_as_bytes_it_is_a_faiss_selector():
    faiss = pytest.importorskip("faiss", reason="FAISS is in the extras [cpu] and [gpu]")
    passes = np.random.default_rng(0).random(300) < 0.3
    octets = kernel.pack(passes).view(np.uint8)
    selector = faiss.IDSelectorBitmap(300, faiss.swig_ptr(octets))
    assert [selector.is_member(row) for row in range(300)] == passes.tolist()


def test_threads_agree():
    rng = np.random.default_rng(1)
    terms = [kernel.pack(rng.random(100_000) < 0.7) for _ in range(5)]
    expected = np.bitwise_and.reduce(terms)

    def intersected(_):
        out = np.empty_like(terms[0])
        return kernel.intersect(terms, out), out

    with ThreadPoolExecutor(4) as pool:
        for found, out in pool.map(intersected, range(16)):
            assert np.array_equal(out, expected)
            assert found == kernel.count(expected)


READ_ONLY = np.zeros(2, np.uint64)
READ_ONLY.flags.writeable = False
WORDS = np.zeros(2, np.uint64)


@pytest.mark.parametrize(
    ("apply", "error", "message"),
    [
        (lambda: kernel.pack(np.zeros(3, np.uint8)), TypeError, "passes: expected dtype bool"),
        (lambda: kernel.unpack(WORDS, 64), ValueError, r"bitmap: expected shape \[1\]"),
        (lambda: kernel.contains(WORDS, np.array([128])), ValueError, r"rows\[0\] is 128, outside a table of 128"),
        (lambda: kernel.contains(WORDS, np.array([-1])), ValueError, r"rows\[0\] is -1"),
        (lambda: kernel.drop_rows(READ_ONLY, np.array([1])), ValueError, "bitmap: is written in place"),
        (lambda: kernel.drop_rows(WORDS, np.array([0, 128])), ValueError, r"rows\[1\] is 128"),
        (lambda: kernel.add_rows(WORDS, np.array([128], np.int32)), ValueError, r"rows\[0\] is 128"),
        (lambda: kernel.add_rows(WORDS, np.array([1])), TypeError, "rows: expected dtype int32"),
        (lambda: kernel.between(np.zeros((7, 2), np.uint64), 0, 1, WORDS), ValueError, r"planes: expected shape"),
        (lambda: kernel.between(np.zeros((8, 2), np.uint64), 2, 1, WORDS), ValueError, "first, last: expected ascend"),
        (lambda: kernel.between(np.zeros((8, 2), np.uint64), 0, 256, WORDS), ValueError, "first, last: expected"),
        (lambda: kernel.intersect([], WORDS), ValueError, "bitmaps: expected at least one"),
        (lambda: kernel.intersect([WORDS, WORDS[:1]], WORDS), ValueError, r"bitmaps: expected shape \[2\]"),
        (lambda: kernel.intersect([WORDS], READ_ONLY), ValueError, "out: is written in place"),
        (lambda: kernel.intersect([WORDS.view(np.int64)], WORDS), TypeError, "bitmaps: expected dtype uint64"),
    ],
)
def test_bad_arguments_are_refused(apply, error, message):
    with pytest.raises(error, match=message):
        apply()
