"""Whole exports: what they write, that it answers as its models do, and that a failing one leaves nothing."""

from __future__ import annotations

import collections
import io
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnxruntime
import pyarrow.parquet
import pytest
from numpy.typing import NDArray
from rich.console import Console

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters import indexes
from recserve.exporters.catalogue import ItemTable, read_items
from recserve.exporters.errors import ExportError
from recserve.exporters.export import export_all, export_bundle
from recserve.exporters.oracle import oracle_engines
from recserve.exporters.snapshot import export_snapshot
from recserve.exporters.spec import BundleSpec, CatalogueSpec, IndexSpec, RankerSpec, SpaceSpec, TogetherSpec
from recserve.kernels.features import FeatureProgram, FeatureSchema
from recserve.server.bundle.errors import BundleMismatchError
from recserve.server.bundle.files import file_sha256
from recserve.server.bundle.layout import NAME_RULE
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.snapshot import Snapshot, open_snapshot
from recserve.server.pipeline.assemble import Subject, assemble, tower_users
from recserve.server.pipeline.golden import item_arrays, replay
from recserve.server.pipeline.golden_set import GoldenSet
from recserve.server.pipeline.host import this_host
from recserve.server.pipeline.pipeline import Pipeline, open_pipeline
from recserve.server.pipeline.types import Query, Result, UserState

OTHER_SPACES = {"source.ann.score", "space.ann", "space.content"}
Work = Callable[[Pipeline, Snapshot, int, int], tuple[Query, UserState]]


@pytest.fixture(scope="module")
def pipeline(complete_bundle: Path) -> Pipeline:
    return open_pipeline(open_bundle(complete_bundle))


@pytest.fixture(scope="module")
def users(complete: Any) -> Snapshot:
    return open_snapshot(complete.snapshot)


def all_work(pipeline: Pipeline, users: Snapshot, shop_work: Work) -> list[tuple[Query, UserState]]:
    return [shop_work(pipeline, users, row, 1000 + row) for row in range(users.size)]


# ----------------------------------------------------------------------------------------------------- what is written


def test_a_bundle_says_what_it_is_and_what_it_was_made_from(complete: Any) -> None:
    manifest = open_bundle(complete.path).manifest
    assert (manifest.name, manifest.version) == ("shop", "2025-06-01")
    assert manifest.exporter_host == this_host()
    assert manifest.created_by.startswith("recserve ")
    assert [space.name for space in manifest.spaces] == ["ann", "als", "content"]
    assert [(forest.objective, forest.weight, forest.trees) for forest in manifest.forests] == [
        ("click", 1.0, 12),
        ("purchase", 2.0, 12),
    ]
    assert dict(manifest.offline_metrics.items()) == {"click_ndcg@10": 0.4321}
    assert (manifest.golden.requests, manifest.golden.candidates) == (12, 50)
    made_from = {source.role: (source.path, source.sha256) for source in manifest.made_from}
    for role, name in {
        "items": "items.parquet",
        "item tower of ann": "item.onnx",
        "user tower of ann": "user.onnx",
        "item vectors of als": "als_items.npy",
        "user vectors of als": "als_users.npy",
        "item vectors of content": "content.npy",
        "ranker click": "click.txt",
        "ranker purchase": "purchase.txt",
        "baskets": "baskets.parquet",
        "events": "events.parquet",
        "users of the events": "users.parquet",
    }.items():
        assert made_from.pop(role) == (name, file_sha256(complete.shop.root / name))
    assert made_from == {"user snapshot": ("snapshot.json", file_sha256(complete.snapshot / "snapshot.json"))}


def test_a_table_by_a_text_is_the_file_of_that_path(shop: Any, tmp_path: Path, quiet: Console) -> None:
    items = str(shop.root / "items.parquet")
    spec = replace(shop.spec, catalogue=replace(shop.spec.catalogue, items=items), rankers=())
    manifest = export_bundle(spec, tmp_path / "bundle", console=quiet).manifest
    made_from = {source.role: (source.path, source.sha256) for source in manifest.made_from}
    assert made_from["items"] == ("items.parquet", file_sha256(shop.root / "items.parquet"))
    missing = replace(spec, catalogue=replace(shop.spec.catalogue, items=f"{items}.gz"))
    with pytest.raises(ExportError, match=r"items: there is no file .*items\.parquet\.gz"):
        export_bundle(missing, tmp_path / "other", console=quiet)


def test_progress_and_report_name_every_part(complete: Any) -> None:
    steps = re.findall(r"^(\S.*?) +[\d.]+ s$", complete.log, re.MULTILINE)
    assert steps == ["items", "vector spaces", "candidate sources", "rankers", "golden requests", "verification"]
    assert list(complete.report.seconds) == steps
    assert [check.part for check in complete.report.checks] == [
        "items",
        "user tower of ann",
        "item tower of ann",
        "users of als",
        "given vectors of als",
        "given vectors of content",
        "baskets",
        "events",
        "users of the events",
        "source together",
        "source trending",
        "source popular_in_country",
        "source popular_with_peers",
        "tl2cgen click",
        "tl2cgen purchase",
        "bit-sliced forests",
        "whole bundle",
    ]
    assert complete.report.path == complete.path
    assert sorted(path.name for path in complete.path.parent.iterdir()) == ["bundle", "snapshot"]


def test_users_with_vectors_are_counted_and_ids_of_nobody_refused(shop: Any, complete: Any, tmp_path: Path) -> None:
    (check,) = (check for check in complete.report.checks if check.part == "users of als")
    assert check.result == "100 of 120 have a vector"
    ann, als, content = shop.spec.spaces
    strangers = replace(als, user_ids=[f"{each}\r" for each in als.user_ids])
    spec = replace(shop.spec, spaces=[ann, strangers, content])
    told = r"'als': no user of the snapshot has a vector: the first ids are 'user-000\\r', .*of the snapshot 'user-000'"
    with pytest.raises(ExportError, match=told):
        export_bundle(spec, tmp_path / "bundle", snapshot=complete.snapshot, console=Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


def test_golden_requests_use_every_stage(complete_bundle: Path) -> None:
    golden = GoldenSet.load(open_bundle(complete_bundle))
    assert [each.user_id for each in golden.requests[:2]] == ["user-000", "user-001"]
    assert golden.requests[-1].user_id == "golden-stranger"
    assert [state.known for state in golden.states] == [True] * 11 + [False]
    for used in ("session_item_ids", "price_max", "cap_attribute", "mmr_weight", "freshness_boost"):
        values = [bool(getattr(each, used)) for each in golden.requests]
        assert any(values), used
        assert not all(values), used
    matrix = golden.array("features.matrix", np.float32, -1, -1)
    missing = np.isnan(matrix).all(axis=0)
    assert not missing.any(), f"never computed: {np.flatnonzero(missing)}"


def test_the_golden_time_is_that_of_the_specification(complete_bundle: Path) -> None:
    assert {each.time_us for each in GoldenSet.load(open_bundle(complete_bundle)).requests} == {1_748_779_200_000_000}


# --------------------------------------------------------------------------------------------------------------- parity


def test_lists_are_those_of_the_source_models(pipeline: Pipeline, users: Snapshot, shop_work: Work) -> None:
    """The road over the fast engines, and over LightGBM, onnxruntime, exact search and plain NumPy."""
    oracle = Pipeline(pipeline.bundle, oracle_engines(pipeline.bundle))
    work = all_work(pipeline, users, shop_work)
    for found, expected in zip(pipeline.run(work), oracle.run(work), strict=True):
        assert isinstance(found, Result)
        assert isinstance(expected, Result)
        assert found.rows.tobytes() == expected.rows.tobytes()
        assert found.scores.tobytes() == expected.scores.tobytes()
        assert found.relevance is not None
        assert expected.relevance is not None
        assert found.relevance.tobytes() == expected.relevance.tobytes()
        assert found.source_scores.tobytes() == expected.source_scores.tobytes()
        assert found.source_ranks.tobytes() == expected.source_ranks.tobytes()
        assert found.degraded == expected.degraded


def test_margins_are_those_of_lightgbm(complete: Any, pipeline: Pipeline, users: Snapshot, shop_work: Work) -> None:
    bundle = pipeline.bundle
    subjects, candidates = zip(*pipeline.retrieve(all_work(pipeline, users, shop_work)), strict=True)
    batch = assemble(bundle.schema, subjects, candidates, {name: space.dim for name, space in bundle.spaces.items()})
    matrix = FeatureProgram(bundle.schema, bundle.cardinalities).compute(item_arrays(bundle), batch)
    assert pipeline.engines.ranker is not None
    margins = pipeline.engines.ranker.margins(matrix)
    for column, objective in enumerate(("click", "purchase")):
        booster = lightgbm.Booster(model_file=complete.shop.root / f"{objective}.txt")
        assert margins[:, column].tobytes() == booster.predict(matrix, raw_score=True, num_threads=1).tobytes()


def test_user_vectors_are_those_of_onnxruntime(
    complete: Any, pipeline: Pipeline, users: Snapshot, shop_work: Work
) -> None:
    """The network's inputs are filled here from the source tables, by hand."""
    work = all_work(pipeline, users, shop_work)
    subjects: list[Subject] = [who for who, _ in pipeline.retrieve(work)]
    found = pipeline.engines.towers["ann"].embed(tower_users(subjects))
    session = onnxruntime.InferenceSession(complete.shop.root / "user.onnx", providers=["CPUExecutionProvider"])
    tables = {
        name: pyarrow.parquet.read_table(complete.shop.root / f"{name}.parquet")
        for name in ("items", "users", "history")
    }
    items = tables["items"].to_pylist()
    categories = {item["item_id"]: item["category"] for item in items}
    for (query, _), vector in zip(work, found, strict=True):
        feed = tower_inputs(query, tables, categories, [items[row]["item_id"] for row in query.session_rows])
        np.testing.assert_array_equal(session.run(["vector"], feed)[0][0], vector)


def tower_inputs(
    query: Query, tables: Mapping[str, Any], categories: Mapping[str, str | None], session: list[str]
) -> dict[str, NDArray[Any]]:
    codes = {name: code for code, name in enumerate(sorted(set(categories.values()) - {None}))}  # type: ignore[type-var]
    (user,) = (each for each in tables["users"].to_pylist() if each["user_id"] == query.user_id)
    history = [each for each in tables["history"].to_pylist() if each["user_id"] == query.user_id]
    history.sort(key=lambda each: each["last_time"], reverse=True)
    own = [each["item_id"] for each in history if each["item_id"] in categories]
    recent = list(dict.fromkeys([*session, *own]))[:5]
    signup = (query.time_us - user["signup"].timestamp() * 1e6) / 86_400e6 if user["signup"] else 0.0
    padding = 5 - len(recent)
    numbers = [0.0 if value is None else value for value in (user["age"], user["mean_price"], signup)]
    return {
        "numbers": np.array([numbers], np.float32),
        "gender": np.array([0 if user["gender"] is None else 1 + "fmx".index(user["gender"])]),
        "recent": np.array([[1 + codes[c] if (c := categories[item]) else 0 for item in recent] + [0] * padding]),
        "mask": np.array([[1.0] * len(recent) + [0.0] * padding], np.float32),
    }


def test_a_batch_answers_as_its_requests_would_alone(pipeline: Pipeline, users: Snapshot, shop_work: Work) -> None:
    work = all_work(pipeline, users, shop_work)
    for asked, together in zip(work, pipeline.run(work), strict=True):
        (alone,) = pipeline.run([asked])
        assert isinstance(alone, Result)
        assert isinstance(together, Result)
        assert alone.rows.tobytes() == together.rows.tobytes()
        assert alone.scores.tobytes() == together.scores.tobytes()


# ------------------------------------------------------------------------------------------------------ other exports


def test_without_a_snapshot_golden_requests_are_those_of_strangers(shop: Any, tmp_path: Path, quiet: Console) -> None:
    spec = replace(shop.spec, golden_time_us=0, golden_requests=5)
    before = time.time_ns() // 1000
    export_bundle(spec, tmp_path / "bundle", console=quiet)
    bundle = open_bundle(tmp_path / "bundle")
    golden = GoldenSet.load(bundle)
    assert [each.user_id for each in golden.requests] == ["golden-stranger"] * 5
    assert not any(state.known for state in golden.states)
    assert all(before <= each.time_us <= time.time_ns() // 1000 for each in golden.requests)
    opened = open_pipeline(bundle)
    assert replay(opened, same_cpu=True) == ["embed", "retrieve", "sources", "features", "rank", "rerank", "list"]


def test_without_a_ranker(shop: Any, complete: Any, tmp_path: Path, quiet: Console) -> None:
    spec = replace(shop.spec, rankers=())
    export_bundle(spec, tmp_path / "bundle", snapshot=complete.snapshot, console=quiet)
    opened = open_pipeline(open_bundle(tmp_path / "bundle"))
    assert replay(opened, same_cpu=True) == ["embed", "retrieve", "sources", "rerank", "list"]


def test_with_the_golden_users_that_are_named(shop: Any, complete: Any, tmp_path: Path, quiet: Console) -> None:
    spec = replace(shop.spec, rankers=(), golden_user_ids=["user-077", "user-003"], golden_requests=4)
    export_bundle(spec, tmp_path / "bundle", snapshot=complete.snapshot, console=quiet)
    golden = GoldenSet.load(open_bundle(tmp_path / "bundle"))
    assert [each.user_id for each in golden.requests] == ["user-077", "user-003", "user-077", "golden-stranger"]


def test_a_catalogue_with_popularity_alone(shop: Any, tmp_path: Path, quiet: Console) -> None:
    """No category, price or launch time: golden requests do without caps, bounds and freshness."""
    catalogue = shop.spec.catalogue
    bare = replace(catalogue, roles=replace(catalogue.roles, category="", price="", launch_time=""))
    spec = replace(shop.spec, catalogue=bare, rankers=())
    export_bundle(spec, tmp_path / "bundle", console=quiet)
    golden = GoldenSet.load(open_bundle(tmp_path / "bundle"))
    assert not any(each.cap_attribute or each.price_max or each.freshness_boost for each in golden.requests)


def test_with_factors_alone(shop: Any, complete: Any, tmp_path: Path, quiet: Console) -> None:
    """No space of length 1: golden requests do without diversity."""
    features = [each for each in shop.spec.features.features if {*each.inputs}.isdisjoint(OTHER_SPACES)]
    schema = replace(shop.spec.features, features=tuple(features))
    sources = replace(shop.spec.sources, similar_space="")
    spec = replace(shop.spec, features=schema, spaces=[shop.spec.spaces[1]], rankers=(), sources=sources)
    export_bundle(spec, tmp_path / "bundle", snapshot=complete.snapshot, console=quiet)
    bundle = open_bundle(tmp_path / "bundle")
    assert {each.mmr_weight for each in GoldenSet.load(bundle).requests} == {None}
    lists = ("together", "trending", "popular_in_country", "popular_with_peers")
    assert open_pipeline(bundle).sources == ("als", "popular", "again", "popular_in_category", "new", *lists)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["auto", "ivf_pq4", "ivf_sq8", "hnsw_sq8"])
def test_with_an_index(
    shop: Any,
    complete: Any,
    shop_work: Work,
    tmp_path: Path,
    quiet: Console,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """6,000 items: the shop's, each fifteen times with other ids and vectors around its own."""
    monkeypatch.setattr(indexes, "QUICK", 0)
    table, rng = pyarrow.parquet.read_table(shop.root / "items.parquet"), np.random.default_rng(8)
    many = pyarrow.concat_tables([table] * 15)
    ids = [f"{item}-{copy}" if copy else item for copy in range(15) for item in table["item_id"].to_pylist()]
    many = many.set_column(0, "item_id", pyarrow.array(ids))
    vectors = np.tile(np.load(shop.root / "als_items.npy"), (15, 1)) + rng.normal(size=(6000, 8)) / 3
    als = SpaceSpec(
        name="als",
        normalized=False,
        item_vectors=vectors.astype(np.float32),
        user_vectors=shop.spec.spaces[1].user_vectors,
        user_ids=shop.spec.spaces[1].user_ids,
        index=IndexSpec(kind=kind, recall_target=0.9, recall_k=100),  # type: ignore[arg-type]
    )
    content = replace(shop.spec.spaces[2], item_vectors=np.tile(np.load(shop.root / "content.npy"), (15, 1)))
    spec = replace(
        shop.spec,
        catalogue=replace(shop.spec.catalogue, items=many),
        spaces=[shop.spec.spaces[0], als, content],
    )
    report = export_bundle(spec, tmp_path / "bundle", snapshot=complete.snapshot, console=quiet)
    index = report.manifest.spaces[1].index
    if kind == "auto":
        assert "recall and time of what was tried" in (tmp_path / "bundle" / "report.html").read_text()
        assert len({trial.kind for trial in index.trials}) == 4
    else:
        assert index.kind == manifest_pb2.IndexKind.Value(kind.upper())
    assert index.recall_low >= 0.9 or index.kind == manifest_pb2.EXACT
    if index.kind != manifest_pb2.EXACT:
        assert "index of als" in [check.part for check in report.checks]
    pipeline = open_pipeline(open_bundle(tmp_path / "bundle"))
    oracle = Pipeline(pipeline.bundle, oracle_engines(pipeline.bundle))
    work = all_work(pipeline, open_snapshot(complete.snapshot), shop_work)[:30]
    for found, expected in zip(pipeline.run(work), oracle.run(work), strict=True):
        assert isinstance(found, Result)
        assert isinstance(expected, Result)
        assert found.rows.tobytes() == expected.rows.tobytes()
        assert found.scores.tobytes() == expected.scores.tobytes()


def test_a_bundle_with_its_users_in_one_go(shop: Any, tmp_path: Path, quiet: Console) -> None:
    report = export_all(shop.spec, shop.users, tmp_path / "shop", console=quiet)
    assert report.path == tmp_path / "shop/bundle"
    assert [*report.seconds][:2] == ["user snapshot", "items"]
    open_snapshot(tmp_path / "shop/snapshot").check_fits(open_bundle(report.path))
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]
    with pytest.raises(ExportError, match="exists"):
        export_all(shop.spec, shop.users, tmp_path / "shop", console=quiet)


def test_inputs_are_read_and_summed_once(
    shop: Any, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large catalogue takes minutes to read, and so do the checksums of a large bundle."""
    read: list[object] = []
    summed: list[Path] = []
    events = shop.root / "events.parquet"
    assert shop.spec.sources.events.table == events

    def reading(spec: CatalogueSpec, *others: Any) -> ItemTable:
        read.append(spec.items)
        return read_items(spec, *others)

    def summing(path: Path) -> str:
        summed.append(path)
        return file_sha256(path)

    monkeypatch.setattr("recserve.exporters.export.read_items", reading)
    for module in ("export", "writer"):
        monkeypatch.setattr(f"recserve.exporters.{module}.file_sha256", summing)
    together = TogetherSpec(table=events, basket_column="user_id")
    sources = replace(shop.spec.sources, together=together)
    export_all(replace(shop.spec, sources=sources, rankers=()), shop.users, tmp_path / "out", console=quiet)
    assert read == [shop.spec.catalogue.items]
    assert [path for path, times in collections.Counter(summed).items() if times > 1] == []
    assert events in summed
    made_from = {each.role: each.sha256 for each in open_bundle(tmp_path / "out/bundle").manifest.made_from}
    assert made_from["events"] == made_from["baskets"] == file_sha256(events)


# ------------------------------------------------------------------------------------------------------ what is refused


def refused(
    tmp_path: Path, spec: BundleSpec, match: str, *, snapshot: Path | None = None, error: type[Exception] = ExportError
) -> str:
    """Export into a directory of its own, which stays empty; what was printed until then."""
    directory, log = tmp_path / "refused", io.StringIO()
    directory.mkdir()
    with pytest.raises(error, match=match):
        export_bundle(spec, directory / "bundle", snapshot=snapshot, console=Console(file=log))
    assert list(directory.iterdir()) == []
    return log.getvalue()


def test_a_snapshot_for_other_definitions_is_refused_before_anything_is_written(shop: Any, tmp_path: Path) -> None:
    document = shop.spec.features.to_json().replace("mean_price", "average_price")
    table = pyarrow.parquet.read_table(shop.root / "users.parquet")
    names = ["average_price" if name == "mean_price" else name for name in table.column_names]
    other = replace(shop.users, users=table.rename_columns(names))
    vocabularies = {name: list(values) for name, values in shop.spec.catalogue.vocabularies.items()}
    snapshot = export_snapshot(other, FeatureSchema.from_json(document), vocabularies, tmp_path / "snapshot")
    log = refused(
        tmp_path, shop.spec, "made for other feature definitions", snapshot=snapshot, error=BundleMismatchError
    )
    assert "items" not in log


def test_an_unknown_golden_user(shop: Any, complete: Any, tmp_path: Path) -> None:
    spec = replace(shop.spec, rankers=(), golden_user_ids=["user-001", "nobody", "no one"])
    refused(tmp_path, spec, "2 users are not in the snapshot: 'nobody', 'no one'", snapshot=complete.snapshot)


def test_a_ranker_of_another_number_of_features(shop: Any, complete: Any, tmp_path: Path) -> None:
    fewer = replace(shop.spec.features, features=shop.spec.features.features[:-1])
    spec = replace(shop.spec, features=fewer)
    refused(tmp_path, spec, r"ranker 'click': .*19 features.*defines 18", snapshot=complete.snapshot)


def test_a_ranker_with_features_in_another_order(shop: Any, complete: Any, tmp_path: Path) -> None:
    features = shop.spec.features.features
    spec = replace(shop.spec, features=replace(shop.spec.features, features=(features[1], features[0], *features[2:])))
    refused(tmp_path, spec, "column 0 is 'price' there and 'category' in", snapshot=complete.snapshot)


def test_a_failing_export_leaves_nothing(shop: Any, complete: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.txt").write_text((shop.root / "click.txt").read_text()[:2000])
    broken = RankerSpec(objective="purchase", model=tmp_path / "broken.txt")
    spec = replace(shop.spec, rankers=[shop.spec.rankers[0], broken])
    assert "vector spaces" in refused(tmp_path, spec, "ranker 'purchase'", snapshot=complete.snapshot)


def test_an_existing_directory_is_refused_at_once(shop: Any, complete: Any, quiet: Console) -> None:
    spec = replace(shop.spec, catalogue=replace(shop.spec.catalogue, items=shop.root / "features.json"))
    with pytest.raises(ExportError, match="exists: bundles are immutable"):
        export_bundle(spec, complete.path, console=quiet)
    open_bundle(complete.path)


def test_every_contradiction_of_a_specification_at_once(shop: Any, tmp_path: Path) -> None:
    features = replace(
        shop.spec.features,
        features=tuple(
            replace(each, inputs=tuple(name.replace("source.als", "source.asl") for name in each.inputs))
            for each in shop.spec.features.features
        ),
    )
    ann, als, content = shop.spec.spaces
    click, purchase = shop.spec.rankers
    spec = replace(
        shop.spec,
        name="",
        features=features,
        spaces=[ann, als, replace(content, name="again"), replace(content, name="no name")],
        rankers=[replace(click, weight=0.0), replace(purchase, objective="click", weight=0.0, model=Path("/x/y.txt"))],
        golden_requests=0,
        golden_user_ids=["user-001"],
        offline_metrics={"auc": float("nan")},
    )
    with pytest.raises(ExportError) as caught:
        export_bundle(spec, tmp_path / "bundle", console=Console(quiet=True))
    assert str(caught.value).split("\n  ") == [
        "the bundle cannot be exported:",
        "name: a bundle needs one",
        "offline_metrics: auc is nan, which is no finite number",
        "spaces: 'again' is the name of a candidate source of another kind: choose another",
        f"spaces: 'no name' cannot be part of a file name: expected {NAME_RULE}",
        "sources: similar_space 'content' is no normalised space; valid: ann, again, no name",
        'features: there is no space "content"; valid: ann, als, again, no name',
        'features: there is no candidate source "asl"; did you mean "als"?',
        "rankers: 2 have the objective 'click'",
        "rankers: at least one objective needs a weight above 0",
        "golden_requests: expected 1 to 1000, found 0",
        "golden_user_ids: names users of a user snapshot, and there is none: export with one, or leave them out",
        "ranker click: there is no file /x/y.txt",
    ]


def test_a_refused_specification_makes_no_directories(shop: Any, tmp_path: Path, quiet: Console) -> None:
    out, nameless = tmp_path / "new" / "shop", replace(shop.spec, name="")
    with pytest.raises(ExportError, match="name: a bundle needs one"):
        export_bundle(nameless, out, console=quiet)
    with pytest.raises(ExportError, match="name: a bundle needs one"):
        export_all(nameless, shop.users, out, console=quiet)
    with pytest.raises(ExportError, match="the snapshot needs a version"):
        export_all(shop.spec, replace(shop.users, version=""), out, console=quiet)
    assert list(tmp_path.iterdir()) == []


def test_a_feature_of_a_space_that_proposes_nothing(shop: Any, tmp_path: Path) -> None:
    features = shop.spec.features.features
    changed = replace(features[11], inputs=("source.content.rank",))
    schema = replace(shop.spec.features, features=(*features[:11], changed, *features[12:]))
    refused(tmp_path, replace(shop.spec, features=schema), 'space "content" has no users, so it proposes no candidates')


def test_a_killed_export_is_no_obstacle(shop: Any, tmp_path: Path, quiet: Console) -> None:
    out = tmp_path / "shop"
    command = [sys.executable, "-m", "recserve.exporters.cli", "build", str(shop.root / "shop.toml"), "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("vector spaces"):
                process.send_signal(signal.SIGKILL)
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1
    assert re.fullmatch(r"\.shop\.exporting-[0-9a-f]{8}", left[0])
    spec = replace(shop.spec, rankers=())
    export_all(spec, shop.users, out, console=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]
    shutil.rmtree(out)
