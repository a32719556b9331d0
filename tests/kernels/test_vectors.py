import hashlib
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recserve.kernels import bitmaps
from recserve.kernels import vectors as kernel
from recserve.kernels.reference import vectors as reference

# Few distinct values make ties common; the extremes overflow, cancel, and are subnormal.
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.1, 3.4e38, -3.4e38, 1e-40, np.inf, -np.inf, np.nan]
ANY = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32))
NOT_NAN = ANY.filter(lambda value: not math.isnan(value))
DIMS = st.sampled_from([1, 3, 15, 16, 17, 31, 32, 40])
DIMS_TO_COMPARE = [*range(1, 35), 100, 128, 200]


def same(found, expected):
    """Whether two lists of (rows, scores) are the same, bit for bit."""
    return len(found) == len(expected) and all(
        np.array_equal(rows, other_rows) and same_bits(scores, other_scores)
        for (rows, scores), (other_rows, other_scores) in zip(found, expected, strict=True)
    )


def same_bits(found, expected):
    """Whether two arrays of scores are the same, bit for bit; a NaN is a NaN, whatever its payload."""
    nan = np.isnan(found)
    return np.array_equal(nan, np.isnan(expected)) and found[~nan].tobytes() == expected[~nan].tobytes()


@st.composite
def tables(draw):
    rows, dim = draw(st.integers(0, 40)), draw(DIMS)
    return draw(hnp.arrays(np.float32, (rows, dim), elements=ANY))


@st.composite
def searches(draw):
    """(vectors, queries, k, mask) with every kind of mask."""
    table = draw(tables())
    queries = draw(hnp.arrays(np.float32, (draw(st.integers(0, 3)), table.shape[1]), elements=NOT_NAN))
    masks = hnp.arrays(np.bool_, len(table)).map(bitmaps.pack)
    each = st.lists(st.none() | masks, min_size=len(queries), max_size=len(queries))
    return table, queries, draw(st.integers(0, 50)), draw(st.none() | masks | each)


def clustered(rows, dim, seed=0):
    """Vectors without special values, with every row twice: neighbours of the same score."""
    table = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    table[1::2] = table[: rows - rows % 2 : 2]
    return table


def fused_differs(table, query):
    """Whether multiplying and adding with one rounding would give other scores: then equal bits mean something."""
    exact = (table.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    return not same_bits(exact, reference.dot_rows(table, query, np.arange(len(table))))


@given(case=searches())
@settings(max_examples=200, deadline=None)
def test_search_equals_the_reference(case):
    assert same(kernel.search(*case), reference.search(*case))


@given(table=tables(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_dot_rows_equals_the_reference(table, data):
    query = data.draw(hnp.arrays(np.float32, table.shape[1], elements=ANY))
    rows = data.draw(
        hnp.arrays(np.int64, st.integers(0, 20 if len(table) else 0), elements=st.integers(0, max(0, len(table) - 1)))
    )
    assert same_bits(kernel.dot_rows(table, query, rows), reference.dot_rows(table, query, rows))


@given(data=st.data(), n=st.integers(0, 60), k=st.integers(0, 70))
@settings(max_examples=150, deadline=None)
def test_top_k_is_the_head_of_the_sorted_list(vectors, data, n, k):
    scores = data.draw(hnp.arrays(np.float32, n, elements=ANY))
    rows = data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, 2**62), unique=True))
    entries = sorted(
        (-score, row) for score, row in zip(scores.tolist(), rows.tolist(), strict=True) if not math.isnan(score)
    )
    best_rows, best_scores = vectors.top_k(scores, rows, k)
    assert best_rows.tolist() == [row for _, row in entries[:k]]
    assert best_scores.tolist() == [-negated for negated, _ in entries[:k]]
    assert (best_rows.dtype, best_scores.dtype) == (np.int64, np.float32)


LENGTHS = [1.0, 1.0 + 0.9e-4, 1.0 - 0.9e-4, 1.0 + 1.1e-4, 1.0 - 1.1e-4, 0.0, 3.4e38]


@given(rows=st.integers(0, 6), dim=DIMS, data=st.data())
@settings(max_examples=150, deadline=None)
def test_the_first_bad_vector_is_found(vectors, rows, dim, data):
    table = np.zeros((rows, dim), np.float32)
    for row in table:
        row[data.draw(st.integers(0, dim - 1))] = data.draw(st.sampled_from([*LENGTHS, np.nan, np.inf, -np.inf]))
    finite = [bool(np.isfinite(row).all()) for row in table]
    unit = [bool(abs(np.abs(row).max() - 1) < 1e-4) for row in table]
    assert vectors.first_bad_vector(table, 1e-4) == next((i for i in range(rows) if not unit[i]), -1)
    assert vectors.first_bad_vector(table, np.inf) == next((i for i in range(rows) if not finite[i]), -1)


def test_lengths_are_of_the_whole_vector(vectors):
    table = clustered(20, 128)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    assert vectors.first_bad_vector(table, 1e-4) == -1
    table[7] *= np.float32(1.001)
    assert vectors.first_bad_vector(table, 1e-4) == 7
    table[5, 127] = np.nan
    assert vectors.first_bad_vector(table, np.inf) == 5


@pytest.mark.parametrize("dim", DIMS_TO_COMPARE)
def test_scores_are_inner_products(vectors, dim):
    table, query = clustered(50, dim), clustered(1, dim, seed=1)[0]
    scores = vectors.dot_rows(table, query, np.arange(50))
    exact = table.astype(np.float64) @ query.astype(np.float64)
    assert np.allclose(scores, exact, rtol=0, atol=1e-6 * dim)


def test_lanes_by_hand(vectors):
    """2**24 + 1 rounds to 2**24: the sum tells which additions came first."""
    table = np.zeros((1, 32), np.float32)
    table[0, [0, 16, 8]] = [2**24, 1, 1]  # lane 0 loses the 1 of element 16, then that of lane 8
    one = np.ones(32, np.float32)
    assert vectors.dot_rows(table, one, np.array([0])) == 2**24
    table[0, [0, 16, 8, 24]] = [2**24, 0, 1, 1]  # lane 8 keeps its 2, which lane 0 then takes whole
    assert vectors.dot_rows(table, one, np.array([0])) == 2**24 + 2


@pytest.mark.parametrize("variant", kernel.CPU_VARIANTS)
def test_every_cpu_variant_gives_the_same_bits(variant):
    """In a process of its own, because the variant is chosen at import."""
    rng = np.random.default_rng(7)
    expected = hashlib.sha256()
    for dim in DIMS_TO_COMPARE:
        table, query = rng.standard_normal((33, dim), dtype=np.float32), rng.standard_normal(dim, dtype=np.float32)
        assert dim < 16 or fused_differs(table, query)
        expected.update(reference.dot_rows(table, query, np.arange(33)).tobytes())
    script = f"""
import hashlib, numpy as np
from recserve.kernels import vectors
assert vectors.CPU_VARIANT == {variant!r}, vectors.CPU_VARIANT
rng, digest = np.random.default_rng(7), hashlib.sha256()
for dim in {DIMS_TO_COMPARE}:
    table, query = rng.standard_normal((33, dim), dtype=np.float32), rng.standard_normal(dim, dtype=np.float32)
    digest.update(vectors.dot_rows(table, query, np.arange(33)).tobytes())
print(digest.hexdigest())
"""
    done = run(script, variant)
    assert (done.stdout.strip(), done.stderr) == (expected.hexdigest(), "")


def test_a_variant_that_the_cpu_lacks_is_refused():
    done = run("import recserve.kernels.vectors", "avx9000")
    assert done.returncode != 0
    assert f"RECSERVE_CPU=avx9000: expected one of {', '.join(kernel.CPU_VARIANTS)}" in done.stderr


def run(script, variant):
    return subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"RECSERVE_CPU": variant},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 31, 32, 33, 1000])
@pytest.mark.parametrize("k", [0, 1, 16, 999, 1000, 5000])
def test_every_size_and_k(vectors, rows, k):
    table, queries = clustered(rows, 20), clustered(2, 20, seed=2)
    for query, (found, scores) in zip(queries, vectors.search(table, queries, k), strict=True):
        everything = reference.dot_rows(table, query, np.arange(rows))
        assert len(found) == min(k, rows)
        assert found.tolist() == sorted(range(rows), key=lambda row: (-everything[row], row))[:k]
        assert same_bits(scores, everything[found])


@pytest.mark.parametrize("density", [0.0, 0.02, 0.2, 0.5, 1.0])
def test_masks_of_every_density(vectors, density):
    table, queries = clustered(600, 24), clustered(3, 24, seed=4)
    passes = np.random.default_rng(9).random(600) < density
    mask = bitmaps.pack(passes)
    for found, scores in vectors.search(table, queries, 50, mask):
        assert passes[found].all()
        assert len(found) == len(scores) == min(50, passes.sum())


def test_a_batch_answers_as_one_by_one():
    table, queries = clustered(500, 32), np.random.default_rng(3).standard_normal((9, 32)).astype(np.float32)
    masks = [None, *map(bitmaps.pack, np.random.default_rng(4).random((8, 500)) < 0.5)]
    batch = kernel.search(table, queries, 30, masks)
    single = [kernel.search(table, queries[i : i + 1], 30, masks[i])[0] for i in range(9)]
    assert same(batch, single)


def test_ties_go_to_the_lower_row(vectors):
    table = np.ones((100, 16), np.float32)
    ((rows, scores),) = vectors.search(table, np.ones((1, 16), np.float32), 40)
    assert rows.tolist() == list(range(40))
    assert (scores == 16).all()


def test_signed_zeros_tie(vectors):
    rows, _ = vectors.top_k(np.array([-0.0, 0.0, -0.0, 0.0], np.float32), np.array([3, 2, 1, 0]), 3)
    assert rows.tolist() == [0, 1, 2]
    table = np.array([[-0.0], [0.0], [-0.0]], np.float32)
    assert vectors.dot_rows(table, np.ones(1, np.float32), np.arange(3)).tobytes() == bytes(12)  # +0 throughout


def test_nan_vectors_are_never_returned(vectors):
    table = clustered(100, 16)
    table[::3, 5] = np.nan
    table[1, :2] = [np.inf, -np.inf]
    ((rows, scores),) = vectors.search(table, np.ones((1, 16), np.float32), 100)
    assert sorted(rows.tolist()) == [row for row in range(100) if row % 3 and row != 1]
    assert not np.isnan(scores).any()


def test_infinite_scores_have_their_place(vectors):
    table = np.array([[1], [-np.inf], [np.inf], [-1]], np.float32)
    ((rows, scores),) = vectors.search(table, np.ones((1, 1), np.float32), 4)
    assert rows.tolist() == [2, 0, 3, 1]
    assert scores.tolist() == [np.inf, 1, -1, -np.inf]


def test_mapped_read_only_vectors(vectors, tmp_path):
    table, queries = clustered(300, 48), clustered(2, 48, seed=5)
    np.save(tmp_path / "vectors.npy", table)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    mask = bitmaps.full(300)
    mask.flags.writeable = False
    queries.flags.writeable = False
    assert same(vectors.search(mapped, queries, 20, mask), reference.search(table, queries, 20))
    rows = np.arange(0, 300, 7)
    assert same_bits(vectors.dot_rows(mapped, queries[0], rows), reference.dot_rows(table, queries[0], rows))


def test_threads_agree():
    table, queries = clustered(20_000, 32), clustered(8, 32, seed=6)
    expected = kernel.search(table, queries, 100)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: kernel.search(table, queries, 100), range(16)))
    assert all(same(answer, expected) for answer in answers)


TABLE = clustered(10, 4)
QUERIES = clustered(2, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((TABLE, np.full((1, 4), np.nan, np.float32), 3), ValueError, r"queries\[0\] has NaN"),
        ((TABLE, clustered(2, 5), 3), ValueError, r"queries: expected shape \[any, 4\], found \[2, 5\]"),
        ((TABLE, QUERIES[0], 3), ValueError, r"queries: expected shape \[any, 4\], found \[4\]"),
        ((TABLE, QUERIES.astype(np.float64), 3), TypeError, "queries: expected dtype float32, found float64"),
        ((TABLE.astype(np.float16), QUERIES, 3), TypeError, "vectors: expected dtype float32, found float16"),
        ((np.asfortranarray(TABLE), QUERIES, 3), ValueError, "vectors: expected a C-contiguous"),
        ((TABLE.tolist(), QUERIES, 3), TypeError, "vectors: expected a NumPy array"),
        ((TABLE, QUERIES, -1), ValueError, "k: expected at least 0, found -1"),
        ((TABLE, QUERIES, 3, bitmaps.full(65)), ValueError, r"mask: expected shape \[1\], found \[2\]"),
        ((TABLE, QUERIES, 3, np.ones(10, bool)), TypeError, "mask: expected dtype uint64, found bool"),
        ((TABLE, QUERIES, 3, [None]), ValueError, "mask: expected one for each of the 2 queries, found 1"),
        ((TABLE, QUERIES, 3, [None, bitmaps.full(0)]), ValueError, r"mask: expected shape \[1\], found \[0\]"),
    ],
)
def test_search_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        kernel.search(*arguments)


@pytest.mark.parametrize("row", [-1, 10, 2**40])
def test_rows_outside_the_table_are_refused(row):
    with pytest.raises(ValueError, match=rf"rows\[1\] is {row}, outside a table of 10 rows"):
        kernel.dot_rows(TABLE, QUERIES[0], np.array([0, row]))


def test_top_k_refuses():
    with pytest.raises(ValueError, match=r"rows: expected shape \[3\], found \[2\]"):
        kernel.top_k(np.zeros(3, np.float32), np.zeros(2, np.int64), 1)
    with pytest.raises(ValueError, match="k: expected at least 0"):
        kernel.top_k(np.zeros(3, np.float32), np.zeros(3, np.int64), -1)
