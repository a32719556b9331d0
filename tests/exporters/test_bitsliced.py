"""The bit-sliced forests of a bundle: the other engine and LightGBM are the oracles, a damaged set is refused."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest

from recserve.exporters.bitsliced import require_same_margins
from recserve.exporters.errors import ExportError
from recserve.exporters.forest import compile_forest
from recserve.exporters.source_models import open_model
from recserve.kernels.forest import Forest
from recserve.server.bundle.errors import (
    BundleCorruptError,
    BundleError,
    BundleGoldenError,
    BundleMismatchError,
    BundleUnsupportedError,
)
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.snapshot import Snapshot, open_snapshot
from recserve.server.pipeline.assemble import Candidates, Subject
from recserve.server.pipeline.bitsliced import BitslicedRanker
from recserve.server.pipeline.item_bins import check_item_bins, features_read, item_bins
from recserve.server.pipeline.pipeline import Pipeline, open_pipeline
from recserve.server.pipeline.ranker import ENGINES, Ranker
from recserve.server.pipeline.types import Query, Result, UserState

Work = Callable[[Pipeline, Snapshot, int, int], tuple[Query, UserState]]
Requests = tuple[list[Subject], list[Candidates]]
Damage = Callable[[dict[str, Any]], object]


@pytest.fixture(name="pipelines", scope="module")
def fixture_pipelines(complete_bundle: Path) -> dict[str, Pipeline]:
    bundle = open_bundle(complete_bundle)
    return {engine: open_pipeline(bundle, ranker_engine=engine, allow_native_code=True) for engine in ENGINES}


@pytest.fixture(name="work", scope="module")
def fixture_work(complete: Any, pipelines: dict[str, Pipeline], shop_work: Work) -> list[tuple[Query, UserState]]:
    users = open_snapshot(complete.snapshot)
    return [shop_work(pipelines["bitsliced"], users, row, 2000 + row) for row in range(users.size)]


@pytest.fixture(name="requests", scope="module")
def fixture_requests(pipelines: dict[str, Pipeline], work: list[tuple[Query, UserState]]) -> Requests:
    """Subjects with their candidates; some have none."""
    subjects, candidates = map(list, zip(*pipelines["bitsliced"].retrieve(work), strict=True))
    candidates[0] = candidates[3] = candidates[-1] = Candidates.given(np.empty(0, np.int64))
    return subjects, candidates


def ranker_of(pipeline: Pipeline) -> Ranker:
    assert pipeline.engines.ranker is not None
    return pipeline.engines.ranker


@pytest.mark.parametrize("engine", ENGINES)
def test_both_engines_give_lightgbms_margins(
    complete: Any, pipelines: dict[str, Pipeline], requests: Requests, engine: str
) -> None:
    ranker, inputs = ranker_of(pipelines[engine]), pipelines[engine].ranking_inputs(*requests)
    matrix = inputs.matrix()
    scored = ranker.score(inputs)
    assert scored.tobytes() == ranker.margins(matrix).tobytes()
    for column, objective in enumerate(ranker.objectives):
        booster = lightgbm.Booster(model_file=complete.shop.root / f"{objective}.txt")
        expected = booster.predict(matrix, raw_score=True, num_threads=1)
        assert scored[:, column].tobytes() == np.asarray(expected).tobytes()


@pytest.mark.parametrize("engine", ENGINES)
def test_margins_do_not_depend_on_who_shares_the_batch(
    pipelines: dict[str, Pipeline], requests: Requests, engine: str
) -> None:
    pipeline = pipelines[engine]
    ranker = ranker_of(pipeline)
    together = ranker.score(pipeline.ranking_inputs(*requests))
    alone = [ranker.score(pipeline.ranking_inputs([who], [what])) for who, what in zip(*requests, strict=True)]
    assert np.concatenate(alone).tobytes() == together.tobytes()


def test_lists_do_not_depend_on_the_engine(pipelines: dict[str, Pipeline], work: list[tuple[Query, UserState]]) -> None:
    lists = [pipelines[engine].run(work) for engine in ENGINES]
    for one, other in zip(*lists, strict=True):
        assert isinstance(one, Result)
        assert isinstance(other, Result)
        assert one.rows.tobytes() == other.rows.tobytes()
        assert one.scores.tobytes() == other.scores.tobytes()


def test_every_scope_is_read(complete_bundle: Path) -> None:
    """The tests above compare all three parts of a request."""
    bundle = open_bundle(complete_bundle)
    forest = Forest.load(bundle.path / "ranker/forest")
    parts = [features_read(forest, bundle.schema, scope) for scope in ("item", "request", "cross")]
    assert all(parts)
    assert sorted(itertools.chain(*parts)) == sorted(set(forest.column_features.tolist()))
    assert bundle.item_bins is not None
    assert bundle.item_bins.shape == (bundle.catalogue.size, len(forest.bin_columns(parts[0])))


@pytest.mark.parametrize("scopes", [("item",), ("request",), ("cross",), ("item", "cross"), ("request", "cross"), ()])
def test_a_forest_may_read_any_part_of_a_request(
    pipelines: dict[str, Pipeline], requests: Requests, scopes: tuple[str, ...]
) -> None:
    bundle, inputs = pipelines["bitsliced"].bundle, pipelines["bitsliced"].ranking_inputs(*requests)
    matrix = inputs.matrix()
    read = np.array([scope in scopes for scope in bundle.schema.scopes])
    values = np.nan_to_num(matrix[:, read])
    labels = (values / (1 + values.std(axis=0))).sum(axis=1) + np.random.default_rng(4).normal(size=len(matrix))
    settings = {"num_leaves": 15, "verbose": -1, "num_threads": 1, "min_data_in_leaf": 2}
    booster = lightgbm.train(settings, lightgbm.Dataset(np.where(read, matrix, 0), labels), 8)
    forest = compile_forest(booster)
    assert {bundle.schema.scopes[feature] for feature in forest.column_features} == set(scopes)
    bins = np.concatenate(list(item_bins(forest, bundle.schema, bundle.cardinalities, inputs.items)))
    ranker = BitslicedRanker(bundle.manifest.forests[:1], forest, bins, bundle.schema, bundle.cardinalities)
    expected = booster.predict(matrix, raw_score=True, num_threads=1)
    assert ranker.score(inputs)[:, 0].tobytes() == np.asarray(expected).tobytes()


def test_export_refuses_other_margins_than_lightgbms(
    complete: Any, pipelines: dict[str, Pipeline], requests: Requests
) -> None:
    click, purchase = (
        lightgbm.Booster(model_file=complete.shop.root / f"{objective}.txt") for objective in ("click", "purchase")
    )
    matrix = pipelines["bitsliced"].ranking_inputs(*requests).matrix()
    models = {"click": open_model(click), "purchase": open_model(purchase)}
    require_same_margins(models, compile_forest(click, purchase), matrix)
    with pytest.raises(ExportError, match=r"'purchase': .*does not answer as LightGBM does: .* of 4096 "):
        require_same_margins(models, compile_forest(click, click), matrix)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture(name="damaged")
def fixture_damaged(complete_copy: Path, resign: Callable[[Path], None]) -> Callable[..., Pipeline]:
    """Opens the copy after its manifest was changed, with checksums that fit."""

    def change(damage: Damage = lambda _document: None) -> Pipeline:
        path = complete_copy / "manifest.json"
        document = json.loads(path.read_text())
        damage(document)
        path.write_text(json.dumps(document))
        resign(complete_copy)
        return open_pipeline(open_bundle(complete_copy))

    return change


def test_native_code_is_neither_needed_nor_looked_at(complete_copy: Path, damaged: Callable[..., Pipeline]) -> None:
    def without_libraries(document: dict[str, Any]) -> None:
        for forest in document["forests"]:
            del forest["native"]
        for library in complete_copy.glob("ranker/*.so"):
            library.unlink()

    assert damaged(without_libraries).objectives == ("click", "purchase")


def test_a_bundle_without_the_set_says_what_to_do(complete_copy: Path, damaged: Callable[..., Pipeline]) -> None:
    def remove(document: dict[str, Any]) -> None:
        del document["forest_set"]
        shutil.rmtree(complete_copy / "ranker/forest")
        (complete_copy / "items/bins.npy").unlink()

    with pytest.raises(BundleUnsupportedError, match=r'"bitsliced": export it again, or set ranker_engine = "tl2cgen"'):
        damaged(remove)
    opened = open_pipeline(open_bundle(complete_copy), ranker_engine="tl2cgen", allow_native_code=True)
    assert opened.objectives == ("click", "purchase")


@pytest.mark.parametrize(
    ("change", "error", "field"),
    [
        ({"set_hash": "0" * 64}, BundleMismatchError, "forest_set.set_hash"),
        ({"set_hash": ""}, BundleMismatchError, "forest_set.set_hash"),
        ({"item_features": [0]}, BundleMismatchError, "forest_set.item_features"),
        ({"item_features": [3, 1]}, BundleMismatchError, "forest_set.item_features"),
        ({"item_features": [1000]}, BundleMismatchError, "forest_set.item_features"),
        ({"columns": 1}, BundleMismatchError, "shape"),
        ({"folder": "ranker/forests"}, BundleMismatchError, "forest_set.folder"),
        ({"folder": "../copy/ranker/forest"}, BundleMismatchError, "forest_set.folder"),
    ],
)
def test_a_set_that_the_manifest_does_not_describe(
    damaged: Callable[..., Pipeline], change: dict[str, Any], error: type[BundleError], field: str
) -> None:
    with pytest.raises(error) as caught:
        damaged(lambda document: document["forest_set"].update(change))
    assert caught.value.field == field


def test_bins_of_another_width(complete_copy: Path, damaged: Callable[..., Pipeline]) -> None:
    path = complete_copy / "items/bins.npy"
    bins = np.load(path)
    np.save(path, bins[:, 1:])
    with pytest.raises(BundleMismatchError, match=r"items/bins\.npy"):
        damaged()
    with pytest.raises(BundleMismatchError) as caught:
        damaged(lambda document: document["forest_set"].update(columns=bins.shape[1] - 1))
    assert caught.value.field == "forest_set.columns"


@pytest.mark.parametrize("name", ["ops", "leaves", "thresholds"])
def test_a_missing_array(complete_copy: Path, damaged: Callable[..., Pipeline], name: str) -> None:
    (complete_copy / f"ranker/forest/{name}.npy").unlink()
    with pytest.raises(BundleCorruptError, match=f"missing.*{name}"):
        damaged()


def test_an_array_that_is_none(complete_copy: Path, damaged: Callable[..., Pipeline]) -> None:
    (complete_copy / "ranker/forest/ops.npy").write_bytes(b"operations")
    with pytest.raises(BundleCorruptError, match=r"ops\.npy"):
        damaged()


def test_fewer_objectives_than_forests(damaged: Callable[..., Pipeline]) -> None:
    with pytest.raises(BundleMismatchError) as caught:
        damaged(lambda document: document["forests"].pop())
    assert caught.value.field == "forests"


def test_other_leaves_with_their_own_hash(complete_copy: Path, damaged: Callable[..., Pipeline]) -> None:
    """Everything fits but the answers: the golden requests tell."""
    path = complete_copy / "ranker/forest/leaves.npy"
    np.save(path, np.load(path) * 1.001)
    found = Forest.load(complete_copy / "ranker/forest").set_hash
    with pytest.raises(BundleGoldenError) as caught:
        damaged(lambda document: document["forest_set"].update(set_hash=found))
    assert caught.value.field == "rank.margins"


def test_bins_of_other_items(complete_copy: Path, damaged: Callable[..., Pipeline]) -> None:
    path = complete_copy / "items/bins.npy"
    np.save(path, np.roll(np.load(path), 1, axis=0))
    with pytest.raises(BundleMismatchError, match=r"items' bins are not those of the catalogue.*items/bins\.npy"):
        damaged()


def test_bins_of_one_other_item(
    complete_copy: Path, damaged: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample may miss it, the check of every item does not."""
    path = complete_copy / "items/bins.npy"
    bins = np.load(path)
    bins[7] ^= 1
    np.save(path, bins)
    with pytest.raises(BundleMismatchError) as caught:
        damaged()
    assert caught.value.field == "row 7"
    bundle, forest = open_bundle(complete_copy), Forest.load(complete_copy / "ranker/forest")
    monkeypatch.setattr("recserve.server.pipeline.item_bins.SAMPLE", 3)
    check_item_bins(bundle, forest, complete=False)
    monkeypatch.setattr("recserve.server.pipeline.item_bins.BLOCK", 5)
    with pytest.raises(BundleMismatchError, match="row 7"):
        check_item_bins(bundle, forest, complete=True)


def test_the_served_path_is_replayed(complete_copy: Path, damaged: Callable[..., Pipeline], monkeypatch: Any) -> None:
    """Only the request path reads bins; the golden requests take it, too."""
    path = complete_copy / "items/bins.npy"
    np.save(path, np.roll(np.load(path), 1, axis=0))
    monkeypatch.setattr("recserve.server.pipeline.bitsliced.check_item_bins", lambda *_, **__: None)
    with pytest.raises(BundleGoldenError, match=r"^as served, golden request 0, ") as caught:
        damaged()
    assert caught.value.field == "rank.margins"
