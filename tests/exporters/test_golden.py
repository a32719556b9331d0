"""Golden requests: for every stage, an engine or an expectation that was tampered with is found, and where.

Whoever tampers is given the manifest's checksums anew (`resign`): nothing but the golden requests stands in the way.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from recserve.kernels import rerank
from recserve.kernels.features import FeatureSchema
from recserve.server.bundle.errors import BundleCorruptError, BundleError, BundleGoldenError, BundleMismatchError
from recserve.server.bundle.reader import Bundle, open_bundle
from recserve.server.pipeline.golden import RELEVANCE_TOLERANCE, replay
from recserve.server.pipeline.golden_set import GoldenSet
from recserve.server.pipeline.pipeline import Engines, Pipeline, open_engines, open_pipeline

ALL_STAGES = ["embed", "retrieve", "sources", "features", "rank", "rerank", "list"]
Arrays = dict[str, NDArray[Any]]
Opened = Callable[[], Pipeline]


@pytest.fixture
def opened(complete_copy: Path, resign: Callable[[Path], None]) -> Opened:
    """Opens the damaged copy, with checksums that fit."""

    def open_it() -> Pipeline:
        resign(complete_copy)
        return open_pipeline(open_bundle(complete_copy))

    return open_it


@pytest.fixture
def tamper(complete_copy: Path) -> Callable[[Callable[[Arrays], object]], None]:
    """Changes the copy's stored stages."""

    def change(edit: Callable[[Arrays], object]) -> None:
        path = complete_copy / "golden/stages.npz"
        with np.load(path) as archive:
            arrays = {name: archive[name].copy() for name in archive.files}
        edit(arrays)
        np.savez(path, allow_pickle=False, **arrays)

    return change


@pytest.fixture
def edit_manifest(complete_copy: Path) -> Callable[[Callable[[dict[str, Any]], object]], None]:
    """Changes the copy's manifest."""

    def change(edit: Callable[[dict[str, Any]], object]) -> None:
        path = complete_copy / "manifest.json"
        document = json.loads(path.read_text())
        edit(document)
        path.write_text(json.dumps(document))

    return change


def golden_error(opened: Opened, field: str) -> BundleGoldenError:
    """The error on opening, which must name the field, what was expected and what was found."""
    with pytest.raises(BundleGoldenError) as caught:
        opened()
    error = caught.value
    assert error.field == field
    assert error.file
    assert error.expected is not None
    assert error.found is not None
    assert error.expected != error.found
    for told in (error.file, error.field, repr(error.expected), repr(error.found)):
        assert told in str(error)
    return error


def engines_of(bundle: Bundle, **changes: Any) -> Engines:
    return replace(open_engines(bundle, device="cpu"), **changes)


def test_the_untouched_bundle_answers_every_stage(complete_bundle: Path) -> None:
    pipeline = open_pipeline(open_bundle(complete_bundle))
    assert replay(pipeline, same_cpu=True) == ALL_STAGES
    assert replay(pipeline, same_cpu=False) == ALL_STAGES[:-1]


def test_what_is_stored_is_read_back(complete_bundle: Path) -> None:
    golden = GoldenSet.load(open_bundle(complete_bundle))
    with np.load(complete_bundle / "golden/stages.npz") as archive:
        stored = {name: archive[name] for name in archive.files}
    again = golden.to_arrays()
    assert again.keys() == stored.keys()
    for name, values in stored.items():
        assert again[name].dtype == values.dtype
        np.testing.assert_array_equal(again[name], values)
    assert json.loads(golden.to_json()) == json.loads((complete_bundle / "golden/requests.json").read_text())


# ---------------------------------------------------------------------------------------------------------------- embed


def change_network(path: Path, edit: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)


def test_other_tower_weights(complete_copy: Path, opened: Opened) -> None:
    def nudge(model: onnx.ModelProto) -> None:
        weights = next(tensor for tensor in model.graph.initializer if tensor.name == "out")
        values = numpy_helper.to_array(weights).copy()
        values[3, 5] += 1e-3
        weights.CopyFrom(numpy_helper.from_array(values, "out"))

    change_network(complete_copy / "spaces/ann/user.onnx", nudge)
    error = golden_error(opened, "embed.ann")
    assert error.file == "spaces/ann/user.onnx"
    assert "user tower of space 'ann'" in str(error)
    assert isinstance(error.found, float)
    assert error.found > 1e-5


def test_another_tower_expectation(opened: Opened, tamper: Any) -> None:
    tamper(lambda arrays: arrays["embed.ann"].__setitem__((4, 0), arrays["embed.ann"][4, 0] + 2e-5))
    assert "golden request 4" in str(golden_error(opened, "embed.ann"))


def test_tower_differences_below_the_tolerance_are_no_difference(opened: Opened, tamper: Any) -> None:
    tamper(lambda arrays: arrays["embed.ann"].__setitem__((4, 0), arrays["embed.ann"][4, 0] + 5e-6))
    assert opened().bundle.name == "shop"


def test_a_tower_that_gives_no_vector_for_some(complete_copy: Path, opened: Opened) -> None:
    """NaN for users with more than two recent items: the trial when it is opened, on nobody, does not find it."""

    def break_it(model: onnx.ModelProto) -> None:
        graph = model.graph
        graph.initializer.extend(
            [
                numpy_helper.from_array(np.array(2.5, np.float32), "many"),
                numpy_helper.from_array(np.array(np.nan, np.float32), "nan"),
            ]
        )
        final = graph.node[-1]
        final.output[0] = "good"
        graph.node.extend(
            [
                helper.make_node("Greater", ["count", "many"], ["has many"]),
                helper.make_node("Where", ["has many", "nan", "good"], ["vector"]),
            ]
        )

    change_network(complete_copy / "spaces/ann/user.onnx", break_it)
    with pytest.raises(BundleGoldenError, match=r"user tower of space 'ann': row \d+ is not finite.*embed\.ann"):
        opened()


# ------------------------------------------------------------------------------------------------------------- retrieve


@pytest.mark.parametrize("space", ["ann", "als", "content"])
def test_permuted_vectors(complete_copy: Path, opened: Opened, space: str) -> None:
    path = complete_copy / f"spaces/{space}/vectors.npy"
    np.save(path, np.ascontiguousarray(np.load(path)[::-1]))
    assert "item 'item-" in str(golden_error(opened, f"retrieve.{space}.scores"))


def test_one_changed_vector(complete_copy: Path, opened: Opened) -> None:
    path = complete_copy / "spaces/als/vectors.npy"
    vectors = np.load(path)
    with np.load(complete_copy / "golden/stages.npz") as stages:
        row = stages["retrieve.als.rows"][0, 0]
    vectors[row] *= np.float32(1.0001)
    np.save(path, vectors)
    assert f"query 0, item 'item-{row:03d}'" in str(golden_error(opened, "retrieve.als.scores"))


def test_a_search_that_misses_items(complete_bundle: Path) -> None:
    """An index may miss what the manifest's recall allows; exact search nothing."""
    bundle = open_bundle(complete_bundle)
    engines = engines_of(bundle)

    class Forgetful:
        def search(self, queries: Any, k: int, masks: Any) -> Any:
            found = engines.searchers["als"].search(queries, k + 1, masks)
            return [(rows[1:], scores[1:]) for rows, scores in found]

    pipeline = Pipeline(bundle, replace(engines, searchers={**engines.searchers, "als": Forgetful()}))
    with pytest.raises(BundleGoldenError) as caught:
        replay(pipeline, same_cpu=True)
    assert caught.value.field == "retrieve.als.rows"
    assert caught.value.expected == "recall@100 of at least 1.0000"
    assert caught.value.found == pytest.approx(0.99)


def test_other_expected_neighbours(opened: Opened, tamper: Any) -> None:
    def swap(arrays: Arrays) -> None:
        rows = arrays["retrieve.content.rows"]
        rows[2, 7] = np.setdiff1d(np.arange(400), rows[2])[0]

    tamper(swap)
    assert golden_error(opened, "retrieve.content.rows").file == "spaces/content"


# ------------------------------------------------------------------------------------------------------------- features


def test_another_feature_definition(
    complete_copy: Path, opened: Opened, edit_manifest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hashes in the manifest are those of the changed definition."""
    path = complete_copy / "features.json"
    path.write_text(path.read_text().replace('"op": "log1p"', '"op": "value"'))
    vocabularies = {file.stem: json.loads(file.read_text()) for file in (complete_copy / "vocab").iterdir()}
    schema_hash = FeatureSchema.from_json(path.read_text()).schema_hash(vocabularies)
    edit_manifest(lambda document: document["features"].update(schema_hash=schema_hash))
    with pytest.raises(BundleMismatchError, match="the items' bins are not those of the catalogue's features"):
        opened()
    monkeypatch.setattr("recserve.server.pipeline.bitsliced.check_item_bins", lambda *_, **__: None)
    error = golden_error(opened, "features.matrix")
    assert "column 'log_popularity'" in str(error)
    assert "golden request 0, item 'item-" in str(error)


def test_another_item_value(complete_copy: Path, opened: Opened) -> None:
    """The features' price and the attribute are changed alike."""
    path, attribute = complete_copy / "items/features.npy", complete_copy / "items/columns/price.npy"
    values, prices = np.load(path), np.load(attribute)
    with np.load(complete_copy / "golden/stages.npz") as stages:
        priced = [row for row in stages["features.rows"] if not np.isnan(values[row, 0])]
    prices[priced[0]] = values[priced[0], 0] = np.nextafter(values[priced[0], 0], np.float32(np.inf))
    np.save(path, values)
    np.save(attribute, prices)
    assert f"item 'item-{priced[0]:03d}', column 'price'" in str(golden_error(opened, "features.matrix"))


def test_another_expected_feature(opened: Opened, tamper: Any) -> None:
    """A missing value is not zero."""

    def fill(arrays: Arrays) -> None:
        matrix = arrays["features.matrix"]
        matrix[np.isnan(matrix[:, 7]).argmax(), 7] = 0.0

    tamper(fill)
    error = golden_error(opened, "features.matrix")
    assert "column 'category_rank'" in str(error)
    assert error.expected == 0.0
    assert np.isnan(error.found)  # type: ignore[arg-type]


def test_another_context(opened: Opened, tamper: Any) -> None:
    tamper(lambda arrays: arrays["context.numbers"].__setitem__((0, 0), 1e6))
    assert "golden request 0, item" in str(golden_error(opened, "features.matrix"))


def test_another_history(opened: Opened, tamper: Any) -> None:
    tamper(lambda arrays: arrays["history.counts"].__iadd__(1.0))
    assert golden_error(opened, "sources.again.rows").file == "golden/stages.npz"


# ----------------------------------------------------------------------------------------------------------------- rank


def test_the_library_of_another_forest(complete_copy: Path, resign: Callable[[Path], None]) -> None:
    click, purchase = (next(complete_copy.glob(f"ranker/tl2cgen.{name}.*.so")) for name in ("click", "purchase"))
    shutil.copy(purchase, click)
    resign(complete_copy)
    bundle = open_bundle(complete_copy)
    error = golden_error(lambda: open_pipeline(bundle, ranker_engine="tl2cgen", allow_native_code=True), "rank.margins")
    assert "column 'click'" in str(error)


def test_another_expected_margin(opened: Opened, tamper: Any) -> None:
    def nudge(arrays: Arrays) -> None:
        margins = arrays["rank.margins"]
        margins[5, 1] = np.nextafter(margins[5, 1], np.inf)

    tamper(nudge)
    assert "column 'purchase'" in str(golden_error(opened, "rank.margins"))


def test_another_calibration(opened: Opened, edit_manifest: Any) -> None:
    edit_manifest(lambda document: document["forests"][0]["calibration"].update(x=[1.0, 0.001]))
    assert "column 'click'" in str(golden_error(opened, "rank.relevance"))


def test_relevance_may_differ_in_the_last_bits_on_another_machine(
    opened: Opened, tamper: Any, edit_manifest: Any
) -> None:
    tamper(lambda arrays: arrays["rank.relevance"].__imul__(1 + RELEVANCE_TOLERANCE / 10))
    golden_error(opened, "rank.relevance")
    edit_manifest(lambda document: document["exporter_host"].update(cpu="Z80"))
    opened()
    tamper(lambda arrays: arrays["rank.relevance"].__imul__(1 + RELEVANCE_TOLERANCE * 10))
    golden_error(opened, "rank.relevance")


# --------------------------------------------------------------------------------------------------------------- rerank


def test_other_expected_positions(opened: Opened, tamper: Any) -> None:
    def swap(arrays: Arrays) -> None:
        arrays["rerank.positions"][[3, 4]] = arrays["rerank.positions"][[4, 3]]

    tamper(swap)
    assert "golden request 0, place 4" in str(golden_error(opened, "rerank.positions"))


def test_a_reranker_that_ignores_caps(complete_bundle: Path) -> None:
    def select(scores: Any, rows: Any, k: int, codes: Any, cap_max: Any, *rest: Any, deadline: float) -> Any:
        return rerank.select(scores, rows, k, codes, np.full_like(cap_max, k), *rest, deadline=deadline)

    bundle = open_bundle(complete_bundle)
    with pytest.raises(BundleGoldenError) as caught:
        replay(Pipeline(bundle, engines_of(bundle, select=select)), same_cpu=True)
    assert caught.value.field == "rerank.positions"


# ----------------------------------------------------------------------------------------------------------------- list


def test_another_order_of_popularity(opened: Opened, tamper: Any) -> None:
    tamper(lambda arrays: arrays.update({"sources.popular.rows": np.roll(arrays["sources.popular.rows"], 1)}))
    assert golden_error(opened, "sources.popular.rows").file == "golden/stages.npz"


@pytest.mark.parametrize("name", ["list.rows", "list.scores"])
def test_another_expected_list_on_this_machine_and_on_another(
    opened: Opened, tamper: Any, edit_manifest: Any, name: str
) -> None:
    tamper(lambda arrays: arrays[name].__setitem__(12, np.roll(arrays[name], 1)[12]))
    assert "golden request 1, place 3" in str(golden_error(opened, name))
    edit_manifest(lambda document: document["exporter_host"].update(cpu="Z80"))
    opened()


def test_another_version_of_a_library_is_another_machine(opened: Opened, tamper: Any, edit_manifest: Any) -> None:
    tamper(lambda arrays: arrays["list.scores"].__imul__(0.5))
    golden_error(opened, "list.scores")
    edit_manifest(lambda document: document["exporter_host"]["libraries"].append("glibc 1.0"))
    opened()


# ------------------------------------------------------------------------------------------------------ malformed files


def drop(name: str) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.pop(name)


def cast(name: str, dtype: type) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.update({name: arrays[name].astype(dtype)})


def cut(name: str) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.update({name: arrays[name][:-1]})


def put(name: str, at: Any, value: Any) -> Callable[[Arrays], object]:
    return lambda arrays: arrays[name].__setitem__(at, value)


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (drop("known"), "known"),
        (drop("context.numbers"), "context.numbers"),
        (drop("embed.ann"), "embed.ann"),
        (drop("retrieve.als.recall"), "retrieve.als.recall"),
        (drop("features.sources"), "features.sources"),
        (drop("rank.margins"), "rank.margins"),
        (drop("rerank.scores"), "rerank.scores"),
        (drop("list.scores"), "list.scores"),
        (cast("history.keys", np.int64), "history.keys"),
        (cast("embed.ann", np.float64), "embed.ann"),
        (cast("features.matrix", np.float64), "features.matrix"),
        (cut("user.numbers"), "user.numbers"),
        (cut("history.events"), "history.events"),
        (cut("retrieve.ann.scores"), "retrieve.ann.scores"),
        (cut("features.scores"), "features.scores"),
        (cut("features.matrix"), "features.matrix"),
        (cut("rank.relevance"), "rank.relevance"),
        (cut("list.offsets"), "list.offsets"),
        (put("history.offsets", -1, 10**9), ""),
        (put("features.offsets", 1, 10**9), ""),
        (put("user.codes", (0, 0), 77), ""),
        (put("features.rows", 0, 10**6), "features"),
        (put("retrieve.als.queries", (0, 0), np.nan), "retrieve"),
    ],
)
def test_malformed_stages(opened: Opened, tamper: Any, edit: Callable[[Arrays], object], field: str) -> None:
    tamper(edit)
    with pytest.raises(BundleCorruptError) as caught:
        opened()
    assert caught.value.field == field
    assert caught.value.file.startswith("golden/stages.npz")


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "one array"])
def test_an_archive_that_is_none(complete_copy: Path, opened: Opened, damage: str) -> None:
    path = complete_copy / "golden/stages.npz"
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": content[:5000], "text": b"golden", "one array": b""}[damage])
    if damage == "one array":
        np.save(path.with_suffix(".npy"), np.arange(3))
        path.with_suffix(".npy").rename(path)
    with pytest.raises(BundleCorruptError, match="golden stages are malformed"):
        opened()


def first(document: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    return [{**document[0], **changes}, *document[1:]]


@pytest.mark.parametrize(
    ("edit", "field", "message"),
    [
        (lambda document: document[:-1], "golden.requests", "expected 12, found 11"),
        (lambda document: {"requests": document}, "", "valid array|valid list"),
        (lambda document: first(document, count=0), "0.count", "greater than or equal to 1"),
        (lambda document: first(document, time_us="noon"), "0.time_us", "valid integer"),
        (lambda document: first(document, time_us=10**30), "0.time_us", "less than"),
        (lambda document: first(document, colour="red"), "0.colour", "nexpected"),
        (lambda document: first(document, quotas={"anm": 1.0}), "quotas", r"expected .*'als', 'ann'.*found \['anm'\]"),
        (lambda document: first(document, cap_attribute="price"), "cap_attribute", r"'category'.*found \['price'\]"),
    ],
)
def test_malformed_requests(
    complete_copy: Path, opened: Opened, edit: Callable[[Any], Any], field: str, message: str
) -> None:
    path = complete_copy / "golden/requests.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(BundleCorruptError, match=message) as caught:
        opened()
    assert (caught.value.file, caught.value.field) == ("golden/requests.json", field)


def test_requests_that_are_not_json(complete_copy: Path, opened: Opened) -> None:
    (complete_copy / "golden/requests.json").write_text('[{"user_id": ')
    with pytest.raises(BundleCorruptError, match="Invalid JSON"):
        opened()


def test_a_missing_file(complete_copy: Path, opened: Opened) -> None:
    (complete_copy / "golden/stages.npz").unlink()
    with pytest.raises(BundleError, match=r"golden/stages\.npz"):
        opened()
