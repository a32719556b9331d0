from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.progress import Progress

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters import indexes
from recserve.exporters.codes import MAX_DIMENSIONS, STEP, CodePlan, build_codes, inverted_lists, kept_dimensions
from recserve.exporters.errors import ExportError
from recserve.exporters.indexes import build_index
from recserve.exporters.spaces import Steps, export_space
from recserve.exporters.spec import IndexSpec, InputSpec, SpaceSpec, TowerSpec
from recserve.exporters.towers import TowerContext
from recserve.exporters.tuning import MIN_QUERIES, least_items, lower_bound
from recserve.exporters.writer import BundleWriter
from recserve.kernels.features import ColumnSpec, ColumnValues, FeatureSchema
from recserve.server.bundle.columns import NumberColumn
from recserve.server.bundle.layout import INDEX_PARTS
from recserve.server.bundle.reader import Space
from recserve.server.bundle.strings import key_of
from recserve.server.pipeline.search import ExactSearcher, open_searcher, recall_at_k
from recserve.server.pipeline.towers import TowerUsers

ITEMS, DIM = 5000, 16


def clustered(seed: int, rows: int) -> np.ndarray:
    centres = np.random.default_rng(7).normal(size=(50, DIM))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, 50, rows)] + 0.5 * rng.normal(size=(rows, DIM))
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


VECTORS = clustered(1, ITEMS)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[BundleWriter]:
    with BundleWriter(tmp_path / "bundle") as opened:
        yield opened


@pytest.fixture
def progress() -> Iterator[Progress]:
    with Progress(console=Console(file=io.StringIO())) as shown:
        yield shown


def make_context(items: int = ITEMS, users: int = 0) -> TowerContext:
    """Items and users with one number each."""
    known = None
    if users:
        columns = ColumnValues.missing(FeatureSchema(user=(ColumnSpec("x", "number"),)).user_layout, users)
        columns.numbers[:, 0] = np.linspace(-3, 3, users)
        offsets, nothing = np.zeros(users + 1, np.int64), np.empty(0, np.int64)
        known = TowerUsers(user=columns, recent_offsets=offsets, recent_rows=nothing, time_us=offsets[1:])
    return TowerContext(
        schema=FeatureSchema(user=(ColumnSpec("x", "number"),)),
        cardinalities={},
        columns={"x": NumberColumn("x", np.linspace(-3, 3, items))},
        items=items,
        users=known,
    )


def network(path: Path, dim: int = DIM) -> TowerSpec:
    """`x` [B, 1] -> cos(frequency * x + phase), normalised."""
    rng = np.random.default_rng(3)
    constants = {
        "frequency": rng.uniform(0.2, 2, (1, dim)).astype(np.float32),
        "phase": rng.uniform(-1, 1, dim).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "frequency"], ["a"]),
        helper.make_node("Add", ["a", "phase"], ["b"]),
        helper.make_node("Cos", ["b"], ["c"]),
        helper.make_node("LpNormalization", ["c"], ["vector"], axis=1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "tower",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, [None, dim])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return TowerSpec(model=path, inputs=[InputSpec(name="x", columns=["x"], missing=0.0)])


def given(**fields: object) -> SpaceSpec:
    values: dict[str, object] = {"name": "als", "normalized": True, "item_vectors": VECTORS}
    return SpaceSpec(**values | fields)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------- spaces


def test_given_vectors_are_written_as_they_are(writer: BundleWriter, progress: Progress) -> None:
    entry = export_space(writer, given(), make_context(), progress)
    assert (entry.name, entry.dim, entry.metric, entry.normalized) == ("als", DIM, manifest_pb2.INNER_PRODUCT, True)
    assert (entry.index.kind, entry.index.recall, entry.user_vectors) == (manifest_pb2.EXACT, 1.0, 0)
    assert not entry.HasField("user_tower")
    np.testing.assert_array_equal(np.load(writer.path("spaces/als/vectors.npy")), VECTORS)
    assert [path.name for path in (writer.root / "spaces/als").iterdir()] == ["vectors.npy"]


def test_vectors_may_be_a_file(tmp_path: Path, writer: BundleWriter, progress: Progress) -> None:
    np.save(tmp_path / "given.npy", VECTORS)
    export_space(writer, given(item_vectors=tmp_path / "given.npy"), make_context(), progress)
    np.testing.assert_array_equal(np.load(writer.path("spaces/als/vectors.npy")), VECTORS)


def test_vectors_of_an_empty_file(tmp_path: Path, writer: BundleWriter, progress: Progress) -> None:
    (tmp_path / "empty.npy").touch()
    with pytest.raises(ExportError, match=r"item vectors of space 'als': cannot be read as a .npy array"):
        export_space(writer, given(item_vectors=tmp_path / "empty.npy"), make_context(), progress)


def test_item_vectors_are_the_item_towers(tmp_path: Path, writer: BundleWriter, progress: Progress) -> None:
    tower = network(tmp_path / "tower.onnx")
    spec = SpaceSpec(name="ann", normalized=True, item_tower=tower, user_tower=tower)
    entry = export_space(writer, spec, make_context(), progress)
    assert entry.dim == DIM
    assert entry.item_tower.file == "spaces/ann/item.onnx"
    assert entry.user_tower.file == "spaces/ann/user.onnx"
    x = np.linspace(-3, 3, ITEMS).astype(np.float32)[:, np.newaxis]
    expected = onnxruntime.InferenceSession(tmp_path / "tower.onnx").run(["vector"], {"x": x})[0]
    np.testing.assert_allclose(np.load(writer.path("spaces/ann/vectors.npy")), expected, atol=1e-6)
    assert all(task.completed == ITEMS for task in progress.tasks if task.visible)


def test_towers_of_different_dimensions_are_refused(tmp_path: Path, writer: BundleWriter, progress: Progress) -> None:
    spec = SpaceSpec(
        name="ann",
        normalized=True,
        item_tower=network(tmp_path / "item.onnx"),
        user_tower=network(tmp_path / "user.onnx", DIM + 1),
    )
    with pytest.raises(ExportError, match="user tower of space 'ann' gives 17 dimensions, the items have 16"):
        export_space(writer, spec, make_context(), progress)


def test_user_vectors_are_found_by_key(writer: BundleWriter, progress: Progress) -> None:
    users = [f"user {number}" for number in range(9000)]  # more than a block
    vectors = clustered(4, 9000)
    entry = export_space(writer, given(user_vectors=vectors, user_ids=users), make_context(), progress)
    assert entry.user_vectors == 9000
    stored = np.load(writer.path("spaces/als/user_vectors.npy"))
    keys = np.load(writer.path("spaces/als/user_keys.npy"))
    assert (np.diff(keys.astype(object)) > 0).all()
    space = Space(entry, VECTORS, stored, keys)
    for number in (0, 1234, 8999):
        np.testing.assert_array_equal(stored[space.user_row(users[number])], vectors[number])
        assert keys[space.user_row(users[number])] == key_of(users[number])
    assert space.user_row("nobody") == -1


def test_user_ids_may_be_an_arrow_array(writer: BundleWriter, progress: Progress) -> None:
    spec = given(user_vectors=VECTORS[:2], user_ids=pa.array(["a", "b"]))
    assert export_space(writer, spec, make_context(), progress).user_vectors == 2
    assert sorted(np.load(writer.path("spaces/als/user_keys.npy"))) == sorted((key_of("a"), key_of("b")))


def changed(row: int, value: object) -> np.ndarray:
    vectors = VECTORS.copy()
    vectors[row] = value
    return vectors


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"item_vectors": changed(4321, np.nan)}, "item vectors of space 'als': row 4321 is not finite"),
        ({"item_vectors": changed(0, np.inf)}, "row 0 is not finite"),
        ({"item_vectors": changed(4999, 0.0)}, "row 4999 has length 0, .*declared normalised"),
        ({"item_vectors": VECTORS[1:]}, "4999 rows, but the catalogue has 5000 items"),
        ({"item_vectors": VECTORS.astype(np.float64)}, r"expected float32 .* found float64 \[5000, 16\]"),
        ({"item_vectors": VECTORS[0]}, r"found float32 \[16\]"),
        ({"item_vectors": VECTORS[:, :0]}, r"found float32 \[5000, 0\]"),
        ({"item_vectors": Path("missing.npy")}, "cannot be read as a .npy array"),
        ({"item_vectors": None}, "give either item_tower or item_vectors"),
        ({"name": "../als"}, "a space's name has"),
        ({"metric": "l2"}, "metric 'l2' is not supported"),
        ({"user_vectors": VECTORS[:2]}, "user_vectors and user_ids belong together"),
        ({"user_vectors": VECTORS[:2], "user_ids": ["a"]}, r"expected \[1 user ids, 16 dimensions\], found \[2, 16\]"),
        ({"user_vectors": VECTORS[:2, :5], "user_ids": ["a", "b"]}, r"found \[2, 5\]"),
        ({"user_vectors": 2 * VECTORS[:2], "user_ids": ["a", "b"]}, "user vectors of space 'als': row 0 has length 2"),
        (
            {"user_vectors": VECTORS[:3], "user_ids": ["a", "b", "a"]},
            "user ids of space 'als': 1 are there again: 'a' in row 0 and 'a' in row 2",
        ),
        ({"user_vectors": VECTORS[:2], "user_ids": ["a", ""]}, "user ids of space 'als': 1 are empty, row 1"),
        ({"user_vectors": VECTORS[:2], "user_ids": ["a" * 400, "b"]}, "1 are longer than 256 bytes, row 0"),
        ({"user_vectors": VECTORS[:2], "user_ids": ["a", None]}, "1 are null, row 1"),
        ({"user_vectors": VECTORS[:2], "user_ids": ["a", "\ud800"]}, "expected strings of valid Unicode"),
        ({"user_vectors": VECTORS[:2], "user_ids": [1, 2]}, "user ids of space 'als': expected strings"),
        ({"user_vectors": VECTORS[:2], "user_ids": np.array([1, 2])}, "user ids of space 'als': expected strings"),
        ({"user_vectors": VECTORS[:2], "user_ids": pa.array([1, 2])}, "expected strings, found int64"),
    ],
)
def test_vectors_that_cannot_be_used(
    writer: BundleWriter, progress: Progress, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        export_space(writer, given(**fields), make_context(), progress)


def test_lengths_are_free_in_a_space_that_is_not_normalised(writer: BundleWriter, progress: Progress) -> None:
    entry = export_space(writer, given(item_vectors=3 * VECTORS, normalized=False), make_context(), progress)
    assert not entry.normalized


@pytest.mark.parametrize(
    ("item", "user", "told"),
    [
        (1e20, 1e20, "item vector has length 1.0e+20, the longest user's 1.0e+20"),
        (1e10, 1e29, "item vector has length 1.0e+10, the longest user's 1.0e+29"),
        (1e20, 1.0, "item vector has length 1.0e+20, the longest user's 1.0e+00"),
        (1e20, 0.0, "item vector has length 1.0e+20, and the product"),
    ],
)
def test_inner_products_beyond_float32(
    writer: BundleWriter, progress: Progress, item: float, user: float, told: str
) -> None:
    """Items are searched for, too: the mean of a session's stands in for a user's vector."""
    fields = {"user_vectors": np.float32(user) * VECTORS[:1], "user_ids": ["a"]} if user else {}
    spec = given(item_vectors=changed(3, np.float32(item) * VECTORS[3]), normalized=False, **fields)
    with pytest.raises(ExportError) as caught:
        export_space(writer, spec, make_context(), progress)
    assert "space 'als': inner products may be beyond float32" in str(caught.value)
    assert told in str(caught.value)


def test_inner_products_just_within_float32(writer: BundleWriter, progress: Progress) -> None:
    users = np.float32(1e20) * VECTORS[:1]
    items = changed(0, np.float32(1e18) * VECTORS[0])
    spec = given(item_vectors=items, normalized=False, user_vectors=users, user_ids=["a"])
    assert export_space(writer, spec, make_context(), progress).user_vectors == 1
    ((_, scores),) = ExactSearcher(items).search(users, 1, [None])
    assert scores == pytest.approx([1e38])


# -------------------------------------------------------------------------------------------------------------- indexes


@pytest.mark.parametrize("kind", ["ivf_pq4", "ivf_sq8", "hnsw_sq8", "faiss"])
def test_an_index_keeps_its_promise(writer: BundleWriter, progress: Progress, kind: str) -> None:
    users = clustered(9, 500)
    factory = "IVF32,PQ8x4fs" if kind == "faiss" else ""
    spec = given(
        user_vectors=users,
        user_ids=[f"u{number}" for number in range(500)],
        index=IndexSpec(kind=kind, recall_target=0.9, recall_k=50, factory=factory),  # type: ignore[arg-type]
    )
    entry = export_space(writer, spec, make_context(), progress)
    assert manifest_pb2.IndexKind.Name(entry.index.kind).lower() == kind
    if kind != "ivf_pq4":
        expected = {"ivf_sq8": "IVF64,SQ8", "hnsw_sq8": "HNSW32,SQ8", "faiss": factory}
        assert entry.index.factory == expected[kind]
    assert 0.9 <= entry.index.recall_low <= entry.index.recall <= 1.0
    assert (entry.index.recall_k, entry.index.queries, entry.index.recall_target) == (50, 500, 0.9)
    assert entry.index.bytes > 0
    searcher = open_searcher(written(entry, writer), "cpu")
    fresh = clustered(10, 200)
    nothing = [None] * len(fresh)
    exact = ExactSearcher(VECTORS).search(fresh, 50, nothing)
    found = searcher.search(fresh, 50, nothing)
    recall = np.mean([recall_at_k(rows, *known) for (rows, _), known in zip(found, exact, strict=True)])
    assert recall >= 0.9  # of other queries than it was tuned on


def written(entry: manifest_pb2.Space, writer: BundleWriter) -> Space:
    """The space as a bundle would open it."""
    path = writer.path("spaces/als/index.faiss")
    arrays = {part: writer.path(f"spaces/als/index/{part}.npy") for part in INDEX_PARTS}
    return Space(
        entry,
        VECTORS,
        index_path=path if path.exists() else None,
        index_arrays={part: np.load(file, mmap_mode="r") for part, file in arrays.items() if file.exists()} or None,
    )


def test_auto_chooses_and_writes_down_what_it_measured(
    writer: BundleWriter, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "QUICK", 0)
    spec = given(index=IndexSpec(recall_target=0.9, recall_k=10))
    index = export_space(writer, spec, make_context(), progress).index
    kinds = [manifest_pb2.EXACT, manifest_pb2.IVF_PQ4, manifest_pb2.IVF_SQ8, manifest_pb2.HNSW_SQ8]
    assert list(dict.fromkeys(trial.kind for trial in index.trials))[:4] == kinds
    assert all(trial.items == ITEMS and trial.p50_ms > 0 for trial in index.trials)
    chosen = [
        trial
        for trial in index.trials
        if (trial.kind, trial.factory, trial.parameters) == (index.kind, index.factory, index.parameters)
    ]
    assert (chosen[0].recall, chosen[0].recall_low, chosen[0].p50_ms) == (index.recall, index.recall_low, index.p50_ms)
    good = [trial.p50_ms for trial in index.trials if trial.recall_low >= 0.9]
    assert index.p50_ms <= 3 * min(good)  # a busy machine may measure otherwise the second time


def test_a_small_catalogue_is_searched_exactly_without_trials(writer: BundleWriter, progress: Progress) -> None:
    tower = given(index=IndexSpec())
    index = export_space(writer, tower, make_context(), progress).index
    assert (index.kind, index.recall, len(index.trials)) == (manifest_pb2.EXACT, 1.0, 0)


def build(spec: IndexSpec, vectors: np.ndarray, queries: np.ndarray | None, writer: BundleWriter) -> manifest_pb2.Index:
    with Progress(disable=True) as progress:
        return build_index(spec, vectors, queries, writer, "als", Steps(progress, "als"))


@pytest.mark.slow
def test_large_catalogues_race_on_a_sample_first(writer: BundleWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "QUICK", 0)
    monkeypatch.setattr(indexes, "RACES", ((1000, 3.0), (2400, 1.5)))
    index = build(IndexSpec(recall_target=0.8, recall_k=10), VECTORS, clustered(3, 100), writer)
    assert {trial.items for trial in index.trials} == {1000, 2400, ITEMS}
    in_full = {trial.factory for trial in index.trials if trial.items == ITEMS}
    assert index.factory in in_full


@pytest.mark.parametrize("kind", ["auto", "ivf_pq4"])
def test_samples_that_are_too_small_for_k_are_no_race(
    kind: str, writer: BundleWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among 12,500 items, the 1,000 nearest are found by exact search: no index could enter."""
    families = indexes._families
    monkeypatch.setattr(indexes, "_families", lambda *given: list(families(*given))[:2])  # two are a race
    monkeypatch.setattr(indexes, "QUICK", 0)
    spec = IndexSpec(kind=kind, recall_target=0.8, recall_k=1000)  # type: ignore[arg-type]
    index = build(spec, clustered(1, 25_200), clustered(3, 80), writer)
    assert {trial.items for trial in index.trials} == {25_200}
    assert manifest_pb2.IVF_PQ4 in {trial.kind for trial in index.trials}


def test_the_same_export_gives_the_same_codes() -> None:
    one, two = (build_codes(VECTORS, np.arange(0, ITEMS, 2), CodePlan(16, 8, 1)) for _ in range(2))
    assert {part: array.tobytes() for part, array in one.items()} == {
        part: array.tobytes() for part, array in two.items()
    }


def test_codes_have_the_types_that_bundles_promise() -> None:
    arrays = build_codes(VECTORS, np.arange(ITEMS), CodePlan(16, 8, 2))
    assert {part: (array.dtype, array.ndim) for part, array in arrays.items()} == INDEX_PARTS


def test_dimensions_are_kept_by_their_energy() -> None:
    random = np.random.default_rng(3)
    flat = random.normal(size=(4000, 8)) @ random.normal(size=(8, 64))
    assert kept_dimensions(flat.astype(np.float32)) == 8
    assert kept_dimensions(random.normal(size=(4000, 64)).astype(np.float32)) == 64
    assert kept_dimensions(random.normal(size=(50, 300)).astype(np.float32)) <= MAX_DIMENSIONS
    assert kept_dimensions(np.zeros((5, 3), np.float32)) == STEP


def test_the_lower_bound_is_the_normal_one() -> None:
    recalls = np.random.default_rng(0).uniform(0.8, 1.0, 200)
    assert lower_bound(recalls.tolist()) == pytest.approx(
        statistics.NormalDist(recalls.mean(), recalls.std(ddof=1) / np.sqrt(200)).inv_cdf(0.05), abs=1e-5
    )
    assert lower_bound([1.0, 1.0]) == 1.0
    assert lower_bound([0.5]) == 0.5


def test_a_higher_target_costs_more(writer: BundleWriter) -> None:
    vectors, queries = np.random.default_rng(2).normal(size=(2, ITEMS, DIM)).astype(np.float32)  # no clusters to find
    probes = []
    for target in (0.3, 0.8, 0.99):
        entry = build(IndexSpec(kind="ivf_sq8", recall_target=target, recall_k=50), vectors, queries[:200], writer)
        assert entry.recall_low >= target
        probes.append(entry.parameters["nprobe"])
    assert probes == sorted(set(probes))


def test_without_users_items_are_the_queries_and_join_users_who_are_few(writer: BundleWriter) -> None:
    spec = IndexSpec(kind="ivf_sq8", recall_target=0.9, recall_k=50)
    assert build(spec, VECTORS, None, writer).queries == 1000
    assert build(spec, VECTORS, clustered(3, 10), writer).queries == MIN_QUERIES


def test_zero_vectors_are_no_queries(writer: BundleWriter, progress: Progress) -> None:
    """Users without events: the server answers them exactly, so they say nothing of an index."""
    users = clustered(9, 500)
    fields = {"user_ids": [f"u{number}" for number in range(500)], "normalized": False}
    index = IndexSpec(kind="ivf_sq8", recall_target=0.9, recall_k=50)
    users[::10] = 0.0
    told: list[tuple[str, ...]] = []
    spec = given(user_vectors=users, index=index, **fields)
    entry = export_space(writer, spec, make_context(), progress, lambda *check: told.append(check))
    assert entry.index.queries == 450
    assert entry.index.parameters["nprobe"] < 32  # of 64 lists: with zero queries no setting suffices
    ((part, _, found),) = told
    assert (part, found) == ("index of als", "50 of 500 are zero, and left out")


def test_items_join_where_nearly_all_users_are_zero(writer: BundleWriter) -> None:
    spec = IndexSpec(kind="ivf_sq8", recall_target=0.9, recall_k=50)
    users = np.zeros((500, DIM), np.float32)
    users[7] = VECTORS[7]
    assert build(spec, VECTORS, users, writer).queries == MIN_QUERIES
    with pytest.raises(ExportError, match=r"cannot be tuned: .* are all zero"):
        build(spec, np.zeros_like(VECTORS), users[:7], writer)


def test_a_tower_with_an_index_needs_users(tmp_path: Path, writer: BundleWriter, progress: Progress) -> None:
    tower = network(tmp_path / "tower.onnx")
    index = IndexSpec(kind="ivf_sq8", recall_target=0.8, recall_k=20)
    spec = SpaceSpec(name="ann", normalized=True, item_tower=tower, user_tower=tower, index=index)
    with pytest.raises(ExportError, match="export with a user snapshot"):
        export_space(writer, spec, make_context(), progress)
    assert export_space(writer, spec, make_context(users=60), progress).index.recall >= 0.8


def test_a_target_out_of_reach_is_refused_with_the_best(writer: BundleWriter) -> None:
    # Vectors that differ by less than 8-bit codes can tell: no search over the codes finds the right ones.
    vectors = np.ones((ITEMS, DIM), np.float32)
    vectors[:, 0] += np.random.default_rng(0).normal(size=ITEMS).astype(np.float32) * 1e-3
    vectors[0, 0], vectors[1, 0] = 100.0, -100.0
    queries = np.tile(np.eye(DIM, dtype=np.float32)[:1], (MIN_QUERIES, 1))
    spec = IndexSpec(kind="hnsw_sq8", recall_target=0.999, recall_k=50)
    with pytest.raises(
        ExportError, match=r"no setting of HNSW32,SQ8 reaches recall@50 of 0\.999 .*best was 0\.\d+, bound 0\.\d+"
    ):
        build(spec, vectors, queries, writer)


@pytest.mark.parametrize("kind", ["ivf_pq4", "ivf_sq8", "hnsw_sq8"])
def test_a_small_catalogue_is_told_to_search_exactly(writer: BundleWriter, kind: str) -> None:
    spec = IndexSpec(kind=kind)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"5,000 items are too few .*use kind 'auto' or 'exact'"):
        build(spec, VECTORS, None, writer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IndexSpec(kind="ivf_sq8", recall_target=1.5), "recall_target"),
        (lambda: IndexSpec(kind="ivf_sq8", recall_target=0.0), "recall_target"),
        (lambda: IndexSpec(kind="ivf_sq8", recall_k=0), "recall_k"),
        (lambda: IndexSpec(kind="faiss"), "factory goes with kind 'faiss'"),
        (lambda: IndexSpec(kind="auto", factory="PQ8"), "factory goes with kind 'faiss'"),
        (lambda: IndexSpec(kind="faiss", factory="nonsense", recall_k=10), "FAISS does not know the index 'nonsense'"),
        (
            lambda: IndexSpec(kind="faiss", factory="IVF9000,SQ8", recall_k=10),
            "FAISS cannot train 'IVF9000,SQ8' on",
        ),
        (lambda: IndexSpec(kind="faiss", factory="IVF8,Flat", recall_k=10), "IndexIVFFlat, which is not one of codes"),
        (lambda: IndexSpec(kind="faiss", factory="Flat", recall_k=10), "IndexFlat\\w*, which is not one of codes"),
        (lambda: IndexSpec(kind="faiss", factory="HNSW16", recall_k=10), "IndexHNSWFlat, which is not one of codes"),
        (
            lambda: IndexSpec(kind="faiss", factory="HNSW16,PQ8", recall_k=10),
            r"'HNSW16,PQ8' for Euclidean distance only(?!.*IndexHNSWPQ)",
        ),
        (lambda: IndexSpec(kind="faiss", factory="PCA8,HNSW16,PQ8", recall_k=10), "for Euclidean distance only"),
        (lambda: IndexSpec(kind="faiss", factory="PQ8x4fs,RFlat", recall_k=10), "IndexRefineFlat, which is not one of"),
    ],
)
def test_wishes_that_make_no_sense(writer: BundleWriter, make: Callable[[], IndexSpec], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        build(make(), VECTORS, None, writer)


def test_the_smallest_catalogue_that_can_be_indexed(writer: BundleWriter, capfd: pytest.CaptureFixture[str]) -> None:
    vectors = VECTORS[: least_items(1)]
    for kind in ("ivf_pq4", "ivf_sq8", "hnsw_sq8"):
        spec = IndexSpec(kind=kind, recall_target=0.9, recall_k=1)  # type: ignore[arg-type]
        assert build(spec, vectors, None, writer).recall >= 0.9
    assert "WARNING" not in capfd.readouterr().err  # FAISS warns of too little training data


@pytest.mark.parametrize(
    ("items", "lists"), [(1, 1), (100, 2), (5_000, 128), (20_000, 512), (1_000_000, 4096), (10_000_000, 16384)]
)
def test_lists_grow_with_the_root_of_the_catalogue(items: int, lists: int) -> None:
    assert inverted_lists(items) == lists
