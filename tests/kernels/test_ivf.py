from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.kernels import bitmaps as bitmap_kernel
from recserve.kernels import ivf as kernel
from recserve.kernels import vectors as vector_kernel
from recserve.kernels.reference import ivf as reference


def made_index(seed: int, items: int, lists: int, parts: int = 8, part: int = 1, dim: int = 12) -> dict:
    """Arrays of an index over random items; codes and lists are random as well, which no search has to know."""
    random = np.random.default_rng(seed)
    projected = parts * part
    owner = random.integers(0, lists, items)
    blocks = -(-np.bincount(owner, minlength=lists) // 32)
    starts = np.concatenate([[0], np.cumsum(blocks)]).astype(np.int64)
    rows = np.full((starts[-1], 32), -1, np.int32)
    for number in range(lists):
        mine = np.flatnonzero(owner == number)
        rows[starts[number] : starts[number + 1]].reshape(-1)[: len(mine)] = random.permutation(mine)
    return {
        "items": items,
        "projection": random.normal(size=(projected, dim)).astype(np.float32),
        "centroids": random.normal(size=(-(-lists // 16), projected, 16)).astype(np.float32),
        "codewords": (0.3 * random.normal(size=(parts, 16, part))).astype(np.float32),
        "starts": starts,
        "rows": rows,
        "codes": random.integers(0, 256, (len(rows), parts // 2, 32)).astype(np.uint8),
    }


def made_vectors(seed: int, rows: int, dim: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def assert_same(found: list, expected: list) -> None:
    for (rows, scores), (expected_rows, expected_scores) in zip(found, expected, strict=True):
        assert rows.dtype == np.int64
        assert scores.dtype == np.float32
        assert rows.tolist() == expected_rows.tolist()
        assert scores.tobytes() == expected_scores.tobytes()


@given(
    seed=st.integers(0, 2**32 - 1),
    items=st.integers(1, 900),
    lists=st.integers(1, 40),
    parts=st.sampled_from([4, 8, 20, 32]),
    part=st.integers(1, 3),
    share=st.sampled_from([None, 1.0, 0.3, 0.02, 0.0]),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_the_kernel_finds_what_the_reference_finds(
    seed: int, items: int, lists: int, parts: int, part: int, share: float | None, data: st.DataObject
) -> None:
    arrays = made_index(seed, items, lists, parts, part)
    vectors, queries = made_vectors(seed + 1, items), made_vectors(seed + 2, 3)
    queries[1] *= data.draw(st.sampled_from([0.0, 1e-42, 1e30]))
    random = np.random.default_rng(seed)
    masks = [None if share is None else bitmap_kernel.pack(random.random(items) < share) for _ in queries]
    k = [data.draw(st.integers(0, items + 3)) for _ in queries]
    probes = [data.draw(st.integers(1, lists + 2)) for _ in queries]
    fetch = [data.draw(st.integers(1, items + 3)) for _ in queries]
    enough = [data.draw(st.integers(0, items + 3)) for _ in queries]
    found = kernel.InvertedLists(**arrays).search(vectors, queries, k, probes, fetch, masks, enough)
    assert_same(found, reference.InvertedLists(**arrays).search(vectors, queries, k, probes, fetch, masks, enough))


def test_lists_are_scanned_until_enough_passes(ivf) -> None:
    """What passes is in the worst list alone: the best one does not have it."""
    arrays, vectors, queries = made_index(1, 3000, 70), made_vectors(2, 3000), made_vectors(3, 1)
    index = reference.InvertedLists(**arrays)
    everything, _ = index._scan(queries[0], 70, 0, None)
    worst = everything[-40:]
    passes = np.zeros(3000, np.bool_)
    passes[worst] = True
    mask, lists = bitmap_kernel.pack(passes), ivf.InvertedLists(**arrays)
    ((rows, _),) = lists.search(vectors, queries, 40, 1, 40, [mask])
    assert rows.size == 0
    ((rows, _),) = lists.search(vectors, queries, 40, 1, 40, [mask], 1000)
    assert sorted(rows) == sorted(worst)


@pytest.mark.parametrize("bits", [0x11, 0x01, 0x00])
def test_long_lists_with_many_ties(ivf, bits: int) -> None:
    """Few different scores: the threshold moves within lists, and ties are broken by row throughout."""
    arrays = made_index(4, 20_000, 3)
    arrays["codes"] &= bits
    vectors, queries = made_vectors(5, 20_000), made_vectors(6, 2)
    mask = bitmap_kernel.pack(np.random.default_rng(7).random(20_000) < 0.4)
    found = ivf.InvertedLists(**arrays).search(vectors, queries, 90, 3, 90, [None, mask])
    everything = reference.InvertedLists(**arrays)
    for query, each, (rows, _) in zip(queries, [None, mask], found, strict=True):
        listed, scores = everything._scan(query, 3, 0, None)
        if each is not None:
            keep = bitmap_kernel.contains(each, listed)
            listed, scores = listed[keep], scores[keep]
        assert set(rows) == set(listed[np.lexsort((listed, -scores))[:90]])


def test_all_lists_and_all_items_are_exact_search(ivf) -> None:
    arrays, vectors, queries = made_index(1, 700, 20), made_vectors(2, 700), made_vectors(3, 4)
    mask = bitmap_kernel.pack(np.arange(700) % 3 == 0)
    masks = [None, mask, None, mask]
    found = ivf.InvertedLists(**arrays).search(vectors, queries, 50, 20, 700, masks)
    assert_same(found, vector_kernel.search(vectors, queries, 50, masks))


def test_what_does_not_pass_takes_no_place(ivf) -> None:
    arrays, vectors, queries = made_index(1, 3000, 10), made_vectors(2, 3000), made_vectors(3, 1)
    mask = bitmap_kernel.pack(np.arange(3000) >= 2990)
    ((rows, _),) = ivf.InvertedLists(**arrays).search(vectors, queries, 10, 10, 10, [mask])
    assert sorted(rows) == list(range(2990, 3000))


def test_a_batch_is_its_queries_one_by_one(ivf) -> None:
    index = ivf.InvertedLists(**made_index(1, 2000, 16))
    vectors, queries = made_vectors(2, 2000), made_vectors(3, 9)
    together = index.search(vectors, queries, 20, 4, 40, [None] * 9)
    alone = [index.search(vectors, queries[i : i + 1], 20, 4, 40, [None])[0] for i in range(9)]
    assert_same(together, alone)
    assert index.search(vectors, queries[:0], 20, 4, 40, []) == []


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 300), k=st.integers(0, 320), dim=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_rescoring_is_scoring_and_selecting(seed: int, n: int, k: int, dim: int) -> None:
    vectors = made_vectors(seed, 150, dim).round(1)  # with ties
    vectors[7, 0] = np.nan
    query = made_vectors(seed + 1, 1, dim)[0].round(1)
    rows = np.random.default_rng(seed).integers(0, 150, n)
    assert_same([kernel.rescore(vectors, query, rows, k)], [reference.rescore(vectors, query, rows, k)])


@pytest.mark.parametrize("variant", vector_kernel.CPU_VARIANTS)
def test_every_instruction_set_gives_the_same_bits(variant: str) -> None:
    code = """
import hashlib, sys
sys.path.insert(0, "tests/kernels")
from test_ivf import *
index = kernel.InvertedLists(**made_index(1, 5000, 37, parts=20, part=2, dim=30))
found = index.search(made_vectors(2, 5000, 30), made_vectors(3, 8, 30), 60, 9, 100, [None] * 8)
print(vector_kernel.CPU_VARIANT, hashlib.sha256(b"".join(a.tobytes() for pair in found for a in pair)).hexdigest())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"RECSERVE_CPU": variant}, capture_output=True, check=True
    )
    index = reference.InvertedLists(**made_index(1, 5000, 37, parts=20, part=2, dim=30))
    found = index.search(made_vectors(2, 5000, 30), made_vectors(3, 8, 30), 60, 9, 100, [None] * 8)
    import hashlib  # noqa: PLC0415  as in the other process

    expected = hashlib.sha256(b"".join(array.tobytes() for pair in found for array in pair)).hexdigest()
    assert done.stdout.decode().split() == [variant, expected]


def changed(**changes: object) -> dict:
    return made_index(1, 100, 5) | changes


REPEATED = made_index(1, 100, 5)["rows"]
REPEATED[REPEATED == 3] = 4


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (changed(items=101), "each of 101 items once, found 100"),
        (changed(items=99), "expected -1 to 98"),
        (changed(rows=REPEATED), "found 100, 99 distinct"),
        (changed(starts=np.zeros(6, np.int64)), "ascend from 0 to the 5 blocks"),
        (changed(starts=np.array([0, 3, 2, 4, 5, 5], np.int64)), "ascend"),
        (changed(starts=np.zeros(1, np.int64)), "0 lists"),
        (changed(centroids=np.zeros((2, 8, 16), np.float32)), "5 lists do not go with 2 groups"),
        (changed(codewords=np.zeros((4, 16, 1), np.float32)), "make up the 8 projected dimensions"),
        (changed(codewords=np.zeros((8, 15, 1), np.float32)), "codewords: expected shape"),
        (changed(codes=np.zeros((5, 3, 32), np.uint8)), "codes: expected shape"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel.InvertedLists(**arrays)


def test_bad_arguments_are_refused() -> None:
    index, vectors, queries = kernel.InvertedLists(**made_index(1, 100, 5)), made_vectors(2, 100), made_vectors(3, 2)
    with pytest.raises(ValueError, match=r"vectors: expected shape \[100, 12\]"):
        index.search(vectors[:99], queries, 5, 1, 5, [None, None])
    with pytest.raises(ValueError, match="queries: expected shape"):
        index.search(vectors, queries[:, :5], 5, 1, 5, [None, None])
    with pytest.raises(ValueError, match="queries: expected finite"):
        index.search(vectors, queries * np.float32(np.nan), 5, 1, 5, [None, None])
    for name, plan in (("k", (-1, 1, 5)), ("probes", (5, 0, 5)), ("fetch", (5, 1, 0))):
        with pytest.raises(ValueError, match=f"{name}: expected at least"):
            index.search(vectors, queries, *plan, [None, None])
    with pytest.raises(ValueError, match="one for each of the 2 queries"):
        index.search(vectors, queries, 5, 1, 5, [None])
    with pytest.raises(ValueError, match="mask: expected shape"):
        index.search(vectors, queries, 5, 1, 5, [None, np.zeros(1, np.uint64)])
    with pytest.raises(ValueError, match="rows: expected 0 to 99"):
        kernel.rescore(vectors, queries[0], np.array([100]), 1)
    with pytest.raises(ValueError, match="k: expected at least 0"):
        kernel.rescore(vectors, queries[0], np.array([1]), -1)
