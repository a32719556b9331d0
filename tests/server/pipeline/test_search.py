from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.bundle.v1 import manifest_pb2
from recserve.kernels import bitmaps
from recserve.kernels.reference import vectors as reference
from recserve.server.bundle.errors import BundleCorruptError, BundleMismatchError, BundleUnsupportedError
from recserve.server.bundle.reader import Space
from recserve.server.pipeline.search import (
    ExactSearcher,
    HnswIndex,
    IndexSearcher,
    IvfIndex,
    Searcher,
    open_searcher,
    overfetch,
    recall_at_k,
)

faiss = pytest.importorskip("faiss", reason="FAISS is in the extras [cpu] and [gpu]")

ITEMS, DIM = 6000, 24
FACTORIES = {
    manifest_pb2.IVF_SQ8: ("IVF64,SQ8", "nprobe", 8),
    manifest_pb2.HNSW_SQ8: ("HNSW16,SQ8", "efSearch", 64),
}


def clustered(rng: np.random.Generator, rows: int) -> np.ndarray:
    centres = np.random.default_rng(7).normal(size=(60, DIM))
    vectors = centres[rng.integers(0, 60, rows)] + 0.6 * rng.normal(size=(rows, DIM))
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(np.random.default_rng(1), ITEMS)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return clustered(np.random.default_rng(2), 20)


@pytest.fixture(scope="module")
def make_space(vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Space]:
    """Spaces over the same vectors, searched in every way."""
    folder = tmp_path_factory.mktemp("spaces")
    for kind, (factory, _, _) in FACTORIES.items():
        index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        faiss.write_index(index, str(folder / f"{kind}.faiss"))

    def make(kind: int, index_path: Path | None = None) -> Space:
        index = manifest_pb2.Index(kind=kind)
        if kind in FACTORIES:
            index.parameters[FACTORIES[kind][1]] = FACTORIES[kind][2]
            index_path = index_path or folder / f"{kind}.faiss"
        spec = manifest_pb2.Space(name="ann", dim=DIM, index=index)
        return Space(spec, vectors, index_path=index_path)

    return make


@pytest.fixture(params=[manifest_pb2.EXACT, *FACTORIES], ids=["exact", "ivf", "hnsw"])
def searcher(request: pytest.FixtureRequest, make_space: Callable[..., Space]) -> Searcher:
    return open_searcher(make_space(request.param), "cpu")


def a_mask(share: float, seed: int = 3) -> np.ndarray:
    passes = np.zeros(ITEMS, np.bool_)
    passes[np.random.default_rng(seed).choice(ITEMS, round(share * ITEMS), replace=False)] = True
    return bitmaps.pack(passes)


def assert_ordered(rows: np.ndarray, scores: np.ndarray) -> None:
    assert rows.dtype == np.int64
    assert scores.dtype == np.float32
    assert rows.size == scores.size == np.unique(rows).size
    assert list(np.lexsort((rows, -scores))) == list(range(rows.size))


@pytest.mark.parametrize("k", [1, 20, 700, ITEMS, ITEMS + 5])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.01, 1 / ITEMS, 0.0])
def test_exactly_as_many_as_pass(searcher: Searcher, queries: np.ndarray, k: int, share: float) -> None:
    mask = a_mask(share)
    for rows, scores in searcher.search(queries[:4], k, [mask] * 4):
        assert rows.size == min(k, bitmaps.count(mask))
        assert bitmaps.contains(mask, rows).all()
        assert_ordered(rows, scores)


def test_no_mask_is_a_mask_that_passes_all(searcher: Searcher, queries: np.ndarray) -> None:
    everything = bitmaps.full(ITEMS)
    without, with_mask = searcher.search(queries[[0, 0]], 50, [None, everything])
    assert np.array_equal(without[0], with_mask[0])
    assert np.array_equal(without[1], with_mask[1])


def test_exact_search_is_the_reference(vectors: np.ndarray, queries: np.ndarray) -> None:
    masks = [None, a_mask(0.3), a_mask(0.01)]
    found = ExactSearcher(vectors).search(queries[:3], 40, masks)
    for query, mask, (rows, scores) in zip(queries, masks, found, strict=False):
        expected_rows, expected_scores = reference.search(vectors, query[np.newaxis], 40, mask)[0]
        assert np.array_equal(rows, expected_rows)
        assert np.array_equal(scores, expected_scores)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_an_index_scores_like_exact_search_and_misses_little(
    searcher: Searcher, vectors: np.ndarray, queries: np.ndarray, share: float
) -> None:
    masks = [a_mask(share, seed) for seed in range(len(queries))]
    exact = ExactSearcher(vectors).search(queries, 20, masks)
    recalls = []
    for (rows, scores), (exact_rows, exact_scores) in zip(searcher.search(queries, 20, masks), exact, strict=True):
        known = dict(zip(exact_rows, exact_scores, strict=True))
        assert all(score == known[row] for row, score in zip(rows, scores, strict=True) if row in known)
        recalls.append(recall_at_k(rows, exact_rows, exact_scores))
    assert np.mean(recalls) >= 0.85


def test_answers_do_not_depend_on_batch_mates_or_threads(searcher: Searcher, queries: np.ndarray) -> None:
    many = np.concatenate([queries, queries[::-1]])  # from 20 queries on, FAISS would take another algorithm
    masks = [a_mask(0.4, seed) if seed % 2 else None for seed in range(len(many))]
    together = searcher.search(many, 30, masks)

    def alone(position: int) -> tuple[np.ndarray, np.ndarray]:
        return searcher.search(many[position : position + 1], 30, masks[position : position + 1])[0]

    with ThreadPoolExecutor(4) as pool:
        one_by_one = list(pool.map(alone, range(len(many))))
    for (rows, scores), (own_rows, own_scores) in zip(together, one_by_one, strict=True):
        assert np.array_equal(rows, own_rows)
        assert np.array_equal(scores, own_scores)


def test_a_zero_query_is_answered_in_row_order(searcher: Searcher) -> None:
    mask = a_mask(0.5)
    (rows, scores), (all_rows, _) = searcher.search(np.zeros((2, DIM), np.float32), 25, [mask, None])
    assert rows.tolist() == np.flatnonzero(bitmaps.unpack(mask, ITEMS))[:25].tolist()
    assert all_rows.tolist() == list(range(25))
    assert not scores.any()


def test_nothing_asked(searcher: Searcher, queries: np.ndarray) -> None:
    assert searcher.search(queries[:0], 5, []) == []
    rows, scores = searcher.search(queries[:1], 0, [None])[0]
    assert rows.size == scores.size == 0


class Stubborn:
    """An index that proposes too few, and remembers how often it was asked."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = np.array(rows, np.int64)
        self.asked: list[tuple[int, float]] = []

    def propose(self, query: np.ndarray, fetch: int, effort: float) -> np.ndarray:  # noqa: ARG002
        self.asked.append((fetch, effort))
        return self.rows


def test_an_index_that_proposes_too_few_is_asked_for_more_and_then_replaced(
    vectors: np.ndarray, queries: np.ndarray
) -> None:
    index = Stubborn([5, 9])
    rows, scores = IndexSearcher(vectors, index).search(queries[:1], 10, [None])[0]
    exact_rows, exact_scores = ExactSearcher(vectors).search(queries[:1], 10, [None])[0]
    assert [fetch for fetch, _ in index.asked] == [overfetch(10), 4 * overfetch(10)]
    assert np.array_equal(rows, exact_rows)
    assert np.array_equal(scores, exact_scores)


def test_an_index_is_not_asked_where_few_pass(vectors: np.ndarray, queries: np.ndarray) -> None:
    index = Stubborn([])
    IndexSearcher(vectors, index).search(queries[:1], 10, [a_mask(0.01)])
    assert index.asked == []


def test_bad_arguments_are_refused(searcher: Searcher, queries: np.ndarray) -> None:
    bad = queries[:2].copy()
    bad[1, 3] = np.nan
    with pytest.raises(ValueError, match="query 1 is not finite"):
        searcher.search(bad, 5, [None, None])
    with pytest.raises(ValueError, match=r"queries must be float32 \[B, 24\]"):
        searcher.search(queries[:1, :5], 5, [None])
    with pytest.raises(ValueError, match="queries must be float32"):
        searcher.search(queries[:1].astype(np.float64), 5, [None])
    with pytest.raises(ValueError, match="k must not be negative"):
        searcher.search(queries[:1], -1, [None])
    with pytest.raises(ValueError, match="expected 1 masks"):
        searcher.search(queries[:1], 5, [])
    with pytest.raises(ValueError, match=r"mask 0 must be uint64 \[94\], found uint64 \[93\]"):
        searcher.search(queries[:1], 5, [bitmaps.full(ITEMS - 64)])


@pytest.mark.parametrize("kind", FACTORIES)
def test_an_unreadable_index_is_corrupt(make_space: Callable[..., Space], tmp_path: Path, kind: int) -> None:
    whole = make_space(kind).index_path
    assert whole is not None
    for name, content in {"cut": whole.read_bytes()[:2000], "text": b"not an index", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BundleCorruptError, match=r"spaces/ann/index\.faiss"):
            open_searcher(make_space(kind, tmp_path / name), "cpu")


@pytest.mark.parametrize(
    "made",
    [
        ("IVF4,SQ8", DIM + 1, ITEMS, faiss.METRIC_INNER_PRODUCT),
        ("IVF4,SQ8", DIM, ITEMS - 1, faiss.METRIC_INNER_PRODUCT),
        ("IVF4,SQ8", DIM, ITEMS, faiss.METRIC_L2),
        ("HNSW8,SQ8", DIM, ITEMS, faiss.METRIC_INNER_PRODUCT),
    ],
    ids=["dimension", "items", "metric", "class"],
)
def test_an_index_of_something_else_is_refused(
    make_space: Callable[..., Space], tmp_path: Path, made: tuple[str, int, int, int]
) -> None:
    factory, dim, rows, metric = made
    index = faiss.index_factory(dim, factory, metric)
    data = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
    index.train(data)
    index.add(data)
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    with pytest.raises(BundleMismatchError, match=r"expected \('IndexIVFScalarQuantizer', 6000, 24, 'inner product'\)"):
        open_searcher(make_space(manifest_pb2.IVF_SQ8, tmp_path / "index.faiss"), "cpu")


def test_a_manifest_without_search_parameter_is_refused(make_space: Callable[..., Space]) -> None:
    space = make_space(manifest_pb2.IVF_SQ8)
    space.spec.index.parameters.clear()
    with pytest.raises(BundleMismatchError, match="nprobe"):
        open_searcher(space, "cpu")
    space.spec.index.kind = manifest_pb2.INDEX_KIND_UNSPECIFIED
    with pytest.raises(BundleMismatchError, match="no kind of search"):
        open_searcher(space, "cpu")


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS has GPU support")
@pytest.mark.parametrize("kind", [manifest_pb2.EXACT, *FACTORIES])
def test_cuda_is_refused_with_what_to_install(make_space: Callable[..., Space], kind: int) -> None:
    with pytest.raises(BundleUnsupportedError, match=r"recserve\[gpu\]"):
        open_searcher(make_space(kind), "cuda")


@pytest.mark.parametrize("kind", FACTORIES)
def test_indexes_are_mapped(make_space: Callable[..., Space], kind: int) -> None:
    path = make_space(kind).index_path
    opened = open_searcher(make_space(kind), "cpu")
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    assert mapped, "index.faiss should be mapped, not read"
    assert opened is not None


@pytest.mark.parametrize("fetch", [1, 100])
def test_more_effort_finds_no_less(
    vectors: np.ndarray, queries: np.ndarray, make_space: Callable[..., Space], fetch: int
) -> None:
    paths = {kind: make_space(kind).index_path for kind in FACTORIES}
    ivf = IvfIndex(faiss.read_index(str(paths[manifest_pb2.IVF_SQ8])), 1)
    hnsw = HnswIndex(faiss.read_index(str(paths[manifest_pb2.HNSW_SQ8])), 1)
    for index in (ivf, hnsw):
        scores = [
            np.sort(vectors[index.propose(queries[0], fetch, effort)] @ queries[0])[::-1] for effort in (1.0, 64.0)
        ]
        assert scores[1].size >= scores[0].size
        assert scores[1][: scores[0].size].sum() >= scores[0].sum() - 1e-2


def test_places_that_an_index_cannot_fill_are_left_out(queries: np.ndarray, make_space: Callable[..., Space]) -> None:
    ivf = faiss.read_index(str(make_space(manifest_pb2.IVF_SQ8).index_path))
    rows = IvfIndex(ivf, 1).propose(queries[0], ITEMS, 1.0)  # one list does not hold all items
    assert 0 < rows.size < ITEMS
    assert rows.min() >= 0
    assert np.unique(rows).size == rows.size


# ----------------------------------------------------------------------------------------------------- recall_at_k


def test_recall_counts_what_was_found() -> None:
    exact = np.arange(10), np.linspace(1, 0.1, 10, dtype=np.float32)
    assert recall_at_k(np.arange(10), *exact) == 1.0
    assert recall_at_k(np.arange(10)[::-1], *exact) == 1.0
    assert recall_at_k(np.array([0, 1, 77, 2, 99]), *exact) == 0.3
    assert recall_at_k(np.empty(0, np.int64), *exact) == 0.0
    assert recall_at_k(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)) == 1.0


def test_recall_counts_places_not_finds() -> None:
    exact = np.arange(10), np.linspace(1, 0.1, 10, dtype=np.float32)
    assert recall_at_k(np.arange(10), *exact, k=4) == 1.0
    assert recall_at_k(np.array([8, 9, 0, 1, 2, 3]), *exact, k=4) == 0.5  # 2 and 3 stand behind the fourth place


def test_near_ties_of_the_last_place_stand_in_for_one_another() -> None:
    rows, scores = np.arange(5), np.array([0.9, 0.8, 0.5, 0.5 - 1e-7, 0.3], np.float32)
    swapped = np.array([0, 1, 3])
    assert recall_at_k(swapped, rows, scores, 1e-6, k=3) == 1.0
    assert recall_at_k(swapped, rows, scores, 0.0, k=3) == pytest.approx(2 / 3)
    assert recall_at_k(np.array([0, 1, 4]), rows, scores, 1e-6, k=3) == pytest.approx(2 / 3)
    assert recall_at_k(np.array([2, 3, 4]), rows, scores, 1e-6, k=3) == pytest.approx(2 / 3)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.floats(0, 0.2))
def test_recall_is_a_share_and_grows_with_tolerance(seed: int, k: int, tolerance: float) -> None:
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.random(40).astype(np.float32))[::-1]
    rows = rng.permutation(40)
    found = rng.permutation(40)[: rng.integers(0, 41)]
    strict, tolerant = (recall_at_k(found, rows, scores, each, k=k) for each in (0.0, tolerance))
    assert 0.0 <= strict <= tolerant <= 1.0
    assert strict == np.isin(found[:k], rows[:k]).sum() / k
