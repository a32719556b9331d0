from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters.codes import CodePlan, build_codes
from recserve.exporters.tuning import ExactIndex
from recserve.kernels import bitmaps
from recserve.kernels.ivf import InvertedLists
from recserve.kernels.reference import vectors as reference
from recserve.server.bundle.errors import BundleCorruptError, BundleMismatchError, BundleUnsupportedError
from recserve.server.bundle.reader import Space
from recserve.server.pipeline import index as index_module
from recserve.server.pipeline.index import Effort, FaissIndex, Found, Index, ListIndex, open_index, overfetch
from recserve.server.pipeline.search import ExactSearcher, IndexSearcher, Searcher, Vectors, open_searcher, recall_at_k

faiss = pytest.importorskip("faiss", reason="FAISS is in the extras [cpu] and [gpu]")

ITEMS, DIM, TUNED_K = 6000, 24, 50
FACTORIES = {
    "ivf_sq8": (manifest_pb2.IVF_SQ8, "IVF64,SQ8", {"nprobe": 8}),
    "hnsw_sq8": (manifest_pb2.HNSW_SQ8, "HNSW16,SQ8", {"efSearch": 64}),
    "pq": (manifest_pb2.FAISS, "PQ12x4fs", {"rescored": 200}),
    "ivf_pq": (manifest_pb2.FAISS, "IVF64,PQ24x4fs", {"nprobe": 12, "rescored": 90}),
    "turned": (manifest_pb2.FAISS, "PCAR16,IVF64,PQ8x8", {"nprobe": 12, "rescored": 90}),
}
PLANS = {
    "lists": (CodePlan(64, 24, 1), {"nprobe": 12, "rescored": 90}),
    "one_list": (CodePlan(1, 24, 2), {"nprobe": 1, "rescored": 120}),
}
KINDS = ["exact", *PLANS, *FACTORIES]


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
    """Spaces over the same vectors, or the first of them, searched in every way."""
    folder = tmp_path_factory.mktemp("spaces")
    for name, (_, factory, _) in FACTORIES.items():
        index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        faiss.write_index(index, str(folder / f"{name}.faiss"))
    arrays = {name: build_codes(vectors, np.arange(ITEMS), plan) for name, (plan, _) in PLANS.items()}

    def make(name: str, index_path: Path | None = None) -> Space:
        index = manifest_pb2.Index(kind=manifest_pb2.EXACT, recall_k=TUNED_K)
        if name in FACTORIES:
            index.kind, index.factory, parameters = FACTORIES[name]
            index.parameters.update(parameters)
            index_path = index_path or folder / f"{name}.faiss"
        if name in PLANS:
            index.kind = manifest_pb2.IVF_PQ4
            index.parameters.update(PLANS[name][1])
        spec = manifest_pb2.Space(name="ann", dim=DIM, index=index)
        return Space(spec, vectors, index_path=index_path, index_arrays=arrays.get(name))

    return make


@pytest.fixture(params=KINDS)
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


@pytest.fixture(scope="module", params=["lists", "ivf_sq8"])
def large_searcher(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Searcher, Vectors]:
    """Lists over so many items that a filter of a tenth of them is not searched exactly, and the items."""
    vectors = clustered(np.random.default_rng(1), 40_000)
    index = manifest_pb2.Index(recall_k=TUNED_K, parameters={"nprobe": 12, "rescored": 90})
    space = Space(manifest_pb2.Space(name="ann", dim=DIM, index=index), vectors)
    if request.param == "lists":
        space.spec.index.kind = manifest_pb2.IVF_PQ4
        arrays = build_codes(vectors, np.arange(len(vectors)), CodePlan(128, 24, 1))
        return open_searcher(dataclasses.replace(space, index_arrays=arrays), "cpu"), vectors
    space.spec.index.kind = manifest_pb2.IVF_SQ8
    built = faiss.index_factory(DIM, "IVF128,SQ8", faiss.METRIC_INNER_PRODUCT)
    built.train(vectors)
    built.add(vectors)
    path = tmp_path_factory.mktemp("large") / "index.faiss"
    faiss.write_index(built, str(path))
    return open_searcher(dataclasses.replace(space, index_path=path), "cpu"), vectors


@pytest.mark.parametrize("likes", [np.argmin, np.argmax])
def test_a_filter_that_goes_with_the_vectors(
    large_searcher: tuple[Searcher, Vectors], queries: np.ndarray, likes: Callable[..., np.ndarray]
) -> None:
    """Of ten categories in the space, the one that each query likes least lies where an index looks last."""
    searcher, vectors = large_searcher
    directions = np.random.default_rng(5).normal(size=(DIM, 10)).astype(np.float32)
    category, liked = (vectors @ directions).argmax(axis=1), likes(queries @ directions, axis=1)
    masks = [bitmaps.pack(category == each) for each in liked]
    exact = ExactSearcher(vectors).search(queries, 20, masks)
    found = searcher.search(queries, 20, masks)
    assert np.mean([recall_at_k(rows, *best) for (rows, _), best in zip(found, exact, strict=True)]) >= 0.95


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
    """An index that finds too few, and remembers how it was asked."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = np.array(rows, np.int64)
        self.asked: list[tuple[list[int], list[int]]] = []

    def rescored(self, k: int, reach: int) -> int:  # noqa: ARG002
        return k

    def find(self, queries: np.ndarray, k: list, reach: list, masks: list) -> list:  # noqa: ARG002
        self.asked.append((k, reach))
        return [(self.rows, np.zeros(len(self.rows), np.float32)) for _ in queries]


def test_an_index_that_finds_too_few_is_asked_for_more_and_then_replaced(
    vectors: np.ndarray, queries: np.ndarray
) -> None:
    index = Stubborn([5, 9])
    mask = a_mask(0.5)
    found = IndexSearcher(vectors, index).search(queries[:2], 10, [None, mask])
    assert index.asked == [([10, 10], [10, 20]), ([10, 10], [80, 160])]
    exact = ExactSearcher(vectors).search(queries[:2], 10, [None, mask])
    for (rows, scores), (exact_rows, exact_scores) in zip(found, exact, strict=True):
        assert np.array_equal(rows, exact_rows)
        assert np.array_equal(scores, exact_scores)


def test_what_was_found_is_not_asked_for_again(vectors: np.ndarray, queries: np.ndarray) -> None:
    index = Stubborn([5, 9])
    ((rows, _),) = IndexSearcher(vectors, index).search(queries[:1], 2, [None])
    assert rows.tolist() == [5, 9]
    assert len(index.asked) == 1


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
def test_an_unreadable_index_is_corrupt(make_space: Callable[..., Space], tmp_path: Path, kind: str) -> None:
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
        open_searcher(make_space("ivf_sq8", tmp_path / "index.faiss"), "cpu")


@pytest.mark.parametrize("kind", ["ivf_sq8", "hnsw_sq8", "lists", "ivf_pq"])
def test_a_manifest_without_search_parameter_is_refused(make_space: Callable[..., Space], kind: str) -> None:
    space = make_space(kind)
    space.spec.index.parameters.clear()
    with pytest.raises(BundleMismatchError, match="efSearch" if kind == "hnsw_sq8" else "nprobe"):
        open_searcher(space, "cpu")
    space.spec.index.kind = manifest_pb2.INDEX_KIND_UNSPECIFIED
    with pytest.raises(BundleMismatchError, match="no kind of search"):
        open_searcher(space, "cpu")


def test_a_copy_of_the_vectors_is_refused(
    make_space: Callable[..., Space], vectors: np.ndarray, tmp_path: Path
) -> None:
    index = faiss.index_factory(DIM, "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    with pytest.raises(BundleMismatchError, match=r"expected \('codes', 6000.*found \('IndexIVFFlat'"):
        open_searcher(make_space("ivf_pq", tmp_path / "index.faiss"), "cpu")


def test_lists_of_something_else_are_refused(make_space: Callable[..., Space]) -> None:
    whole = make_space("lists").index_arrays
    assert whole is not None
    space = make_space("lists")
    for part, array, error in (
        ("rows", whole["rows"][:-1], BundleCorruptError),
        ("rows", whole["rows"] // 2, BundleCorruptError),
        ("starts", whole["starts"][::-1].copy(), BundleCorruptError),
        ("projection", np.ascontiguousarray(whole["projection"][:, :-1]), BundleMismatchError),
    ):
        damaged = dataclasses.replace(space, index_arrays={**whole, part: array})
        with pytest.raises(error, match="spaces/ann/index"):
            open_searcher(damaged, "cpu")
    with pytest.raises(BundleMismatchError, match="has no index"):
        open_searcher(dataclasses.replace(space, index_arrays=None), "cpu")


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS has GPU support")
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_is_refused_with_what_to_install(make_space: Callable[..., Space], kind: str) -> None:
    with pytest.raises(BundleUnsupportedError, match=r"recserve\[gpu\]"):
        open_searcher(make_space(kind), "cuda")


class OnGpu:
    """FAISS's index on a GPU, with its limit, on the CPU; `fetched` says how many rows each search asked for."""

    def __init__(self, _: object, dim: int) -> None:
        self._index = faiss.IndexFlatIP(dim)
        self.fetched: list[int] = []

    def add(self, vectors: np.ndarray) -> None:
        self._index.add(vectors)

    def search(self, queries: np.ndarray, k: int, params: None) -> tuple[np.ndarray, np.ndarray]:
        assert params is None
        assert k <= 2048, "FAISS would raise"
        self.fetched.append(k)
        return self._index.search(queries, k)


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    """So many items that an index may be asked for 2,048 even where a fifth of them pass."""
    vectors = np.random.default_rng(3).normal(size=(200_000, 4)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("k", "share", "fetched"),
    [
        (500, 1.0, [641]),
        (2000, 1.0, [2048]),
        (2048, 1.0, [2048]),
        (2049, 1.0, []),
        (500, 0.5, [1266]),
        (500, 0.2, []),
        (10, 0.01, []),
    ],
)
def test_a_gpu_is_asked_for_no_more_than_it_can_find(
    many: np.ndarray, monkeypatch: pytest.MonkeyPatch, k: int, share: float, fetched: list[int]
) -> None:
    searcher, gpu = on_gpu(many, monkeypatch)
    masks = [None if share == 1 else bitmaps.pack(np.random.default_rng(4).permutation(len(many)) < share * len(many))]
    assert_same(searcher.search(many[:1], k, masks), ExactSearcher(many).search(many[:1], k, masks))
    assert gpu.fetched == fetched


def test_a_gpu_that_finds_too_few_is_asked_for_all_that_it_can_find(
    many: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher, gpu = on_gpu(many, monkeypatch)
    query, masks = np.array([[-1, 0, 0, 0]], np.float32), [bitmaps.pack(many[:, 0] > 0)]
    assert_same(searcher.search(query, 500, masks), ExactSearcher(many).search(query, 500, masks))
    assert len(gpu.fetched) == 2
    assert gpu.fetched[1] == 2048


def on_gpu(vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> tuple[Searcher, OnGpu]:
    """Search with the device "cuda", and the stand-in for what is there."""
    made: list[OnGpu] = []

    def make(resources: object, dim: int) -> OnGpu:
        made.append(OnGpu(resources, dim))
        return made[0]

    monkeypatch.setattr(
        index_module, "_gpu_faiss", lambda: SimpleNamespace(StandardGpuResources=object, GpuIndexFlatIP=make)
    )
    searcher = open_searcher(Space(manifest_pb2.Space(name="ann", dim=vectors.shape[1]), vectors), "cuda")
    return searcher, made[0]


def assert_same(found: list[Found], expected: list[Found]) -> None:
    for (rows, scores), (expected_rows, expected_scores) in zip(found, expected, strict=True):
        assert np.array_equal(rows, expected_rows)
        assert np.array_equal(scores, expected_scores)


@pytest.mark.parametrize("kind", ["ivf_sq8", "hnsw_sq8"])
def test_indexes_are_mapped(make_space: Callable[..., Space], kind: str) -> None:
    path = make_space(kind).index_path
    opened = open_searcher(make_space(kind), "cpu")
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    assert mapped, "index.faiss should be mapped, not read"
    assert opened is not None


@pytest.mark.parametrize("kind", [*PLANS, *FACTORIES])
def test_a_farther_reach_finds_no_less(make_space: Callable[..., Space], queries: np.ndarray, kind: str) -> None:
    engine = open_index(make_space(kind))
    k = [40] * len(queries)
    near, far = (engine.find(queries, k, [reach] * len(k), [None] * len(queries)) for reach in (40, 4000))
    assert np.mean([scores.sum() for _, scores in far]) >= np.mean([scores.sum() for _, scores in near]) - 1e-3
    for (rows, scores), (far_rows, far_scores) in zip(near, far, strict=True):
        assert_ordered(rows, scores)
        assert_ordered(far_rows, far_scores)


@pytest.mark.parametrize("kind", ["lists", "ivf_sq8", "ivf_pq", "turned"])
def test_inverted_lists_honour_filters_within_the_search(
    make_space: Callable[..., Space], queries: np.ndarray, kind: str
) -> None:
    """Were items dropped afterwards, as many as are fetched would seldom hold so many that pass."""
    mask = a_mask(0.1)
    count = len(queries)
    for rows, _ in open_index(make_space(kind)).find(queries, [40] * count, [400] * count, [mask] * count):
        assert rows.size == 40
        assert bitmaps.contains(mask, rows).all()


def test_places_that_an_index_cannot_fill_are_left_out(queries: np.ndarray, make_space: Callable[..., Space]) -> None:
    space = make_space("ivf_sq8")
    space.spec.index.parameters["nprobe"] = 1
    ((rows, _),) = open_index(space).find(
        queries[:1], [ITEMS], [ITEMS // 100], [None]
    )  # one list does not hold all items
    assert 0 < rows.size < ITEMS
    assert rows.min() >= 0
    assert np.unique(rows).size == rows.size


def test_effort_grows_with_the_root_of_the_reach() -> None:
    effort = Effort({"nprobe": 10, "rescored": 800}, 500)
    assert [effort.times(reach) for reach in (1, 500, 2000, 50_000)] == [1.0, 1.0, 2.0, 10.0]
    assert [effort.rescored(k) for k in (1, 20, 500, 2000)] == [36, 160, 800, 3200]
    assert Effort({}, 500).rescored(500) == overfetch(500)


@pytest.mark.parametrize("kind", [None, *PLANS, *FACTORIES])
def test_one_item_is_found(vectors: np.ndarray, queries: np.ndarray, kind: str | None) -> None:
    one = vectors[:1]
    engine: Index = ExactIndex(one)
    if kind in PLANS:
        lists = InvertedLists(1, **build_codes(one, np.arange(1), CodePlan(1, 24, 1)))
        engine = ListIndex(one, lists, Effort({"nprobe": 1, "rescored": 10}, 5))
    elif kind is not None:
        index = faiss.index_factory(DIM, FACTORIES[kind][1], faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(one)
        engine = FaissIndex(one, index, Effort({"nprobe": 64, "efSearch": 16}, 5))
    found = IndexSearcher(one, engine).search(queries[:2], 5, [None, bitmaps.pack(np.zeros(1, bool))])
    alone = engine.find(queries[:1], [1], [1], [None])
    assert [rows.tolist() for rows, _ in [*found, *alone]] == [[0], [], [0]]
    assert found[0][1] == alone[0][1] == reference.dot_rows(one, queries[0], np.array([0]))


def test_nothing_is_found_in_an_empty_catalogue(queries: np.ndarray) -> None:
    ((rows, scores),) = ExactSearcher(np.empty((0, DIM), np.float32)).search(queries[:1], 5, [None])
    assert rows.size == scores.size == 0


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


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_items_cost_little_private_memory(tmp_path: Path) -> None:
    """Vectors and codes are mapped; what a process holds for itself stays below 100 MB."""
    items, dim = 1_000_000, 128
    stored = np.lib.format.open_memmap(tmp_path / "vectors.npy", "w+", np.float32, (items, dim))
    for start in range(0, items, 100_000):
        stored[start : start + 100_000] = np.random.default_rng(start).normal(size=(100_000, dim))
    for part, array in build_codes(stored, np.arange(items), CodePlan(256, 32, 1)).items():
        np.save(tmp_path / f"{part}.npy", array)
    done = subprocess.run([sys.executable, "-c", _MEMORY, str(tmp_path)], capture_output=True, check=True, text=True)
    private, mapped = map(float, done.stdout.split())
    assert private < 100, done.stdout
    assert mapped > 100, "the vectors should have been read from the mapped file"


_MEMORY = """
import sys
from pathlib import Path
import numpy as np
from recserve.bundle.v1 import manifest_pb2
from recserve.server.bundle.layout import INDEX_PARTS
from recserve.server.bundle.reader import Space
from recserve.server.pipeline.search import open_searcher

def memory():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(rest.split()[0]) / 1000 for name, rest in (line.split(":", 1) for line in lines)}
    return np.array([sizes["Anonymous"], sizes["Rss"] - sizes["Anonymous"]])

folder = Path(sys.argv[1])
index = manifest_pb2.Index(kind=manifest_pb2.IVF_PQ4, recall_k=500, parameters={"nprobe": 32, "rescored": 1000})
before = memory()
space = Space(
    manifest_pb2.Space(name="ann", dim=128, index=index),
    np.load(folder / "vectors.npy", mmap_mode="r").view(np.ndarray),
    index_arrays={part: np.load(folder / f"{part}.npy", mmap_mode="r").view(np.ndarray) for part in INDEX_PARTS},
)
searcher = open_searcher(space, "cpu")
for number in range(300):
    queries = np.random.default_rng(number).normal(size=(8, 128)).astype(np.float32)
    assert all(rows.size == 500 for rows, _ in searcher.search(queries, 500, [None] * 8))
print(*(memory() - before))
"""
