"""A whole evaluation of the shop, against the pipeline asked by hand; and what is refused."""

from __future__ import annotations

import datetime
import errno
import io
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from rich.console import Console

from recserve.exporters.cli import main
from recserve.exporters.errors import ExportError
from recserve.exporters.evaluate import evaluate
from recserve.exporters.evaluation import metrics
from recserve.exporters.evaluation.answers import BATCH, TOP, Answers, answer
from recserve.exporters.evaluation.placement import read_placement
from recserve.exporters.evaluation.requests import make_requests
from recserve.exporters.evaluation.results import Evaluation, figure_names
from recserve.exporters.evaluation.times import parse_time
from recserve.exporters.evaluation.truth import read_truth
from recserve.exporters.evaluation.users import SEGMENTS, open_users, purchase_code, segment
from recserve.exporters.export import export_bundle
from recserve.exporters.golden import latest_event, user_state
from recserve.exporters.spec import BundleSpec, EvaluationSpec, SegmentSpec
from recserve.exporters.specfile import read_spec
from recserve.kernels.features import ColumnValues, FeatureSchema
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.registry import BundleRegistry
from recserve.server.bundle.snapshot import Snapshot, open_snapshot
from recserve.server.config import load_settings
from recserve.server.pipeline.pipeline import Pipeline, open_pipeline
from recserve.server.pipeline.settings import (
    CapSettings,
    FreshnessSettings,
    PlacementSettings,
    SourceSettings,
)
from recserve.server.pipeline.types import History, Result, UserState
from recserve.server.rpc.convert import Converter
from recserve.v1 import recommender_pb2 as pb

NOW = datetime.datetime(2025, 6, 1, 12, tzinfo=datetime.UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
DAY_US = 86_400_000_000
USERS = 50
"""Of the shop's, and two whom nobody knows; the shop's last two users have no history."""
PLACEMENT = PlacementSettings(
    candidates=100,
    sources=(
        SourceSettings(name="ann", weight=0.4),
        SourceSettings(name="als", weight=0.4),
        SourceSettings(name="popular", weight=0.1),
        SourceSettings(name="again", weight=0.1),
    ),
    caps=(CapSettings(attribute="category", max=3),),
    mmr_weight=0.7,
    diversity_space="content",
    freshness=FreshnessSettings(boost=0.2, half_life_days=14.0),
)


def truth_rows(pipeline: Pipeline, snapshot: Snapshot) -> list[tuple[str, str]]:
    """Some of what users had, some of what is new to them, and an item that nobody sells."""
    rng = np.random.default_rng(11)
    rows = []
    for row in (*range(USERS - 2), 118, 119):
        (user,) = snapshot.user_ids(np.array([row]))
        keys = snapshot.state(row).keys
        mine = pipeline.bundle.catalogue.rows_of_keys(keys[:3])
        items = np.concatenate([mine[mine >= 0], rng.choice(400, 3)])
        rows += [(user, item) for item in pipeline.bundle.catalogue.ids_of_rows(items)]
    rows += [("stranger-1", "item-005"), ("stranger-2", "item-006"), ("stranger-2", "item-sold-out")]
    return [*rows, rows[0], ("nobody", "item-sold-out")]


@pytest.fixture(name="pipeline", scope="module")
def fixture_pipeline(complete_bundle: Path) -> Pipeline:
    return open_pipeline(open_bundle(complete_bundle))


@pytest.fixture(name="snapshot", scope="module")
def fixture_snapshot(complete: Any) -> Snapshot:
    return open_snapshot(complete.snapshot)


@pytest.fixture(name="truth", scope="module")
def fixture_truth(pipeline: Pipeline, snapshot: Snapshot) -> pa.Table:
    users, items = zip(*truth_rows(pipeline, snapshot), strict=True)
    times = [NOW + datetime.timedelta(minutes=minute) for minute in range(len(users))]
    return pa.table({"user_id": users, "item_id": items, "time": pa.array(times, pa.timestamp("us", "UTC"))})


@pytest.fixture(name="spec", scope="module")
def fixture_spec(truth: pa.Table) -> EvaluationSpec:
    return EvaluationSpec(truth=truth, time_us=NOW_US, placement=PLACEMENT, resamples=50)


@pytest.fixture(name="found", scope="module")
def fixture_found(pipeline: Pipeline, snapshot: Snapshot, spec: EvaluationSpec) -> Evaluation:
    return evaluate(pipeline, snapshot, spec)


def answers_of(pipeline: Pipeline, snapshot: Snapshot, spec: EvaluationSpec, mode: Any) -> tuple[list[str], Answers]:
    users = open_users(read_truth(spec, pipeline.bundle.catalogue), snapshot, pipeline.bundle, spec)
    purchase = purchase_code(pipeline.bundle)
    users = users.in_mode(mode, pipeline.bundle.catalogue, purchase)
    requests = make_requests(pipeline, spec.placement, mode, spec.time_us)
    return users.ids, answer(pipeline, requests, users, purchase, lambda _: None)


def state(pipeline: Pipeline, snapshot: Snapshot, user: str) -> UserState:
    row = snapshot.row_of(user)
    nobody = UserState(known=False, columns=ColumnValues.missing(pipeline.bundle.schema.user_layout, 1))
    return user_state(snapshot, row) if row >= 0 else nobody


# ---------------------------------------------------------------------------------------------------- what is evaluated


@pytest.mark.parametrize("mode", ["all", "first"])
@pytest.mark.parametrize(
    "placement",
    [
        PLACEMENT,
        PlacementSettings(candidates=60),
        # Sources that run short: popular items stand in, as many as are served.
        PlacementSettings(
            sources=(SourceSettings(name="again", weight=1.0),), caps=(CapSettings(attribute="category", max=1),)
        ),
    ],
)
def test_full_is_what_the_pipeline_answers_one_by_one(
    pipeline: Pipeline, snapshot: Snapshot, spec: EvaluationSpec, placement: PlacementSettings, mode: Any
) -> None:
    spec = replace(spec, placement=placement)
    ids, answers = answers_of(pipeline, snapshot, spec, mode)
    assert len(ids) > BATCH
    requests = make_requests(pipeline, placement, mode, NOW_US)
    for user, mine in zip(ids, answers.lists["full"], strict=True):
        (result,) = pipeline.run([(requests.served(user), state(pipeline, snapshot, user))])
        assert isinstance(result, Result)
        np.testing.assert_array_equal(mine[mine >= 0], result.rows[:TOP])


def test_the_placement_as_served_is_the_placement_as_evaluated(
    pipeline: Pipeline, tmp_path: Path, complete: Any
) -> None:
    """A request without options, in a server's own reading, is the query that is evaluated."""
    config = tmp_path / "recserve.toml"
    config.write_text(
        f"""
        [[bundles]]
        path = "{complete.path}"
        [placements.home]
        candidates = 100
        sources = [{{ name = "als", weight = 0.7 }}, {{ name = "popular", weight = 0.3 }}]
        fusion = {{ depth = 300 }}
        caps = [{{ attribute = "category", max = 2, window = 5 }}]
        mmr_weight = 0.8
        diversity_space = "content"
        freshness = {{ boost = 0.2, half_life_days = 14 }}
        objective_weights = {{ purchase = 1.0 }}
        exclude_purchased = true
        record_shown = true
        """
    )
    registry: BundleRegistry[Pipeline] = BundleRegistry()
    registry.add("default", pipeline)
    converter = Converter(registry, load_settings(file=config, environment={}, flags=[]))
    for name in ("default", "home"):
        request = pb.RecommendRequest(user_id="user-001", context=pb.Context(placement=name))
        request.context.time.FromDatetime(NOW)
        served = converter.recommend(request, "id", 1e9).query
        ours = make_requests(pipeline, read_placement(config, name), "all", NOW_US).served("user-001")
        for field in (
            "kind",
            "user_id",
            "count",
            "time_us",
            "candidates",
            "quotas",
            "fusion",
            "rerank",
            "user_overrides",
        ):
            assert getattr(ours, field) == getattr(served, field), field
        for field in ("in_stock", "exclude_purchased", "region", "price_min", "price_max", "include_categories"):
            assert getattr(ours.filter, field) == getattr(served.filter, field), field
        for field in ("numbers", "codes", "times", "list_codes"):
            np.testing.assert_array_equal(getattr(ours.context, field), getattr(served.context, field))


def test_baselines_are_the_sources_alone(pipeline: Pipeline, snapshot: Snapshot, spec: EvaluationSpec) -> None:
    ids, answers = answers_of(pipeline, snapshot, spec, "all")
    assert list(answers.lists) == ["full", "ann", "als", "popular", "own"]
    assert list(answers.found) == [*pipeline.sources, "union", "any"]
    stock = np.array(pipeline.bundle.catalogue.columns["in_stock"].values) == 1
    als = pipeline.bundle.spaces["als"]
    popular = [row for row in pipeline.bundle.catalogue.popular_rows if stock[row]][:TOP]
    for user, lists in zip(ids, zip(*answers.lists.values(), strict=True), strict=True):
        mine = dict(zip(answers.lists, lists, strict=True))
        assert mine["popular"].tolist() == popular
        row = als.user_row(user)
        if row < 0:
            assert (mine["als"] == -1).all()
        else:
            scores = np.where(stock, als.vectors @ als.user_vectors[row], -np.inf)
            np.testing.assert_allclose(scores[mine["als"]], np.sort(scores)[::-1][:TOP], rtol=1e-5)
        assert mine["own"].tolist() == most_bought(pipeline, state(pipeline, snapshot, user).history, stock)


def most_bought(pipeline: Pipeline, history: History, stock: np.ndarray) -> list[int]:
    rows = pipeline.bundle.catalogue.rows_of_keys(history.keys)
    bought = [
        (-count, -last, row)
        for row, event, count, last in zip(rows, history.events, history.counts, history.last_us, strict=True)
        if event == 2 and row >= 0 and stock[row]
    ]
    found = [row for _, _, row in sorted(bought)][:TOP]
    return [*found, *[-1] * (TOP - len(found))]


def test_recall_is_of_the_candidates(pipeline: Pipeline, snapshot: Snapshot, spec: EvaluationSpec) -> None:
    ids, answers = answers_of(pipeline, snapshot, spec, "all")
    truth = read_truth(spec, pipeline.bundle.catalogue)
    wanted = {user: set(truth.relevant.of(index).tolist()) for index, user in enumerate(truth.user_ids)}
    requests = make_requests(pipeline, spec.placement, "all", NOW_US)
    positives = 0
    for index, user in enumerate(ids):
        ((_, candidates),) = pipeline.retrieve([(requests.served(user), state(pipeline, snapshot, user))])
        hit = wanted[user] & set(candidates.rows.tolist())
        positives += len(hit)
        assert answers.found["union"][index] == pytest.approx(len(hit) / len(wanted[user]))
        among_als = set(candidates.rows[candidates.ranks[:, candidates.sources.index("als")] > 0].tolist())
        assert answers.found["any"][index] >= max(each[index] for each in answers.found.values())
        assert answers.found["als"][index] >= len(wanted[user] & among_als) / len(wanted[user]) - 1e-12
    assert answers.labels.sum() == positives
    assert answers.relevance is not None
    assert answers.relevance.shape == answers.labels.shape
    assert ((answers.relevance > 0) & (answers.relevance < 1)).all()


def test_mode_first_forgets_what_users_had_bought(pipeline: Pipeline, snapshot: Snapshot, spec: EvaluationSpec) -> None:
    ids, answers = answers_of(pipeline, snapshot, spec, "first")
    assert "own" not in answers.lists
    for user, mine in zip(ids, answers.lists["full"], strict=True):
        history = state(pipeline, snapshot, user).history
        bought = pipeline.bundle.catalogue.rows_of_keys(history.keys[history.events == 2])
        assert not np.isin(mine[mine >= 0], bought).any()


def test_users_whom_the_first_mode_leaves_nothing_are_left_out(
    pipeline: Pipeline, snapshot: Snapshot, spec: EvaluationSpec
) -> None:
    history = user_state(snapshot, 0).history
    rows = pipeline.bundle.catalogue.rows_of_keys(history.keys[history.events == 2])
    (again,) = pipeline.bundle.catalogue.ids_of_rows(rows[rows >= 0][:1])
    truth = pa.table({"user_id": ["user-000", "user-001"], "item_id": [again, "item-399"]})
    found = evaluate(pipeline, snapshot, replace(spec, truth=truth))
    assert {name: mode.users for name, mode in found.modes.items()} == {"all": 2, "first": 1}


# ---------------------------------------------------------------------------------------------------------- the figures


def test_figures_are_means_over_users_with_a_history(
    pipeline: Pipeline, snapshot: Snapshot, spec: EvaluationSpec, found: Evaluation
) -> None:
    ids, answers = answers_of(pipeline, snapshot, spec, "all")
    truth = read_truth(spec, pipeline.bundle.catalogue)
    counting = np.array([state(pipeline, snapshot, user).history.keys.size > 0 for user in ids])
    assert (~counting).sum() == found.new_users == 4
    ndcg = metrics.ndcg(metrics.hits(answers.lists["full"], truth.relevant), truth.relevant.counts)
    document = found.to_json()
    assert document["modes"]["all"]["full"]["ndcg@10"] == pytest.approx(ndcg[counting].mean())
    assert document["segments"]["all"]["new"]["full"]["ndcg@10"] == pytest.approx(ndcg[~counting].mean())
    assert document["users"] == document["mode_users"]["all"] == counting.sum() == USERS - 2
    everybody = evaluate(pipeline, snapshot, replace(spec, new_users=True, modes=("all",)))
    assert everybody.to_json()["modes"]["all"]["full"]["ndcg@10"] == pytest.approx(ndcg.mean())


def test_the_document_has_the_promised_form(found: Evaluation) -> None:
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert list(document["modes"]) == ["all", "first"]
    assert list(document["modes"]["all"]) == ["full", "ann", "als", "popular", "own"]
    for mode, systems in document["modes"].items():
        for system, figures in systems.items():
            low, high = figures["ci95"]
            assert low <= figures["ndcg@10"] <= high
            assert {"precision@10", "recall@10", "map@10", "coverage", "novelty"} <= figures.keys()
            if system != "full":
                difference = document["differences"][mode][system]
                expected = systems["full"]["ndcg@10"] - figures["ndcg@10"]
                assert difference["ndcg@10"] == pytest.approx(expected)
    assert {"ann", "als", "popular", "again", "union", "any"} <= document["sources"].keys()
    assert 0 < document["sources"]["union"]["recall@100"] <= 1
    assert 0 < document["sources"]["union"]["first"]["recall@100"] <= 1
    assert document["truth"] == {
        "users": USERS + 2,
        "events": found.truth.events,
        "unknown_events": 2,
        "unknown_items": 1,
        "users_of_unknown_items": 1,
        "new_users": 4,
        "sampled": None,
        "times_checked": True,
    }
    bins = document["calibration"]["all"]["reliability"]
    assert sum(bins["counts"]) == document["calibration"]["all"]["candidates"]
    assert document["diversity"]["all"]["after"]["diversity"] > document["diversity"]["all"]["before"]["diversity"]
    assert not document["diversity"]["trial"]


def test_equal_runs_give_equal_documents(
    pipeline: Pipeline, snapshot: Snapshot, spec: EvaluationSpec, found: Evaluation, truth: pa.Table
) -> None:
    """Also where the table's rows and columns come in another order, with a further column."""
    order = np.random.default_rng(3).permutation(len(truth))
    shuffled = truth.take(order).select(["time", "item_id", "user_id"]).append_column("quantity", pa.array(order))
    again = evaluate(pipeline, snapshot, replace(spec, truth=shuffled))
    assert again.to_json() == found.to_json()


def test_a_sample_of_users_is_drawn_by_its_seed(pipeline: Pipeline, snapshot: Snapshot, spec: EvaluationSpec) -> None:
    small = replace(spec, max_users=20, modes=("all",), new_users=True)
    first, second = (evaluate(pipeline, snapshot, small).to_json() for _ in range(2))
    assert first == second
    assert (first["users"], first["truth"]["sampled"]) == (20, 20)
    assert evaluate(pipeline, snapshot, replace(small, seed=8)).to_json() != first


def test_a_placement_without_diversity_is_shown_a_trial(
    pipeline: Pipeline, snapshot: Snapshot, spec: EvaluationSpec
) -> None:
    found = evaluate(pipeline, snapshot, replace(spec, placement=PlacementSettings(candidates=60), modes=("all",)))
    document = found.to_json()
    assert document["diversity"]["trial"]
    assert document["diversity"]["all"]["before"] == document["modes"]["all"]["full"]
    assert document["diversity"]["all"]["after"]["diversity"] > document["diversity"]["all"]["before"]["diversity"]


def test_a_bundle_without_ranker_has_no_calibration(tiny_originals: Path) -> None:
    truth = pa.table({"user_id": [f"user-{row:02d}" for row in range(40)], "item_id": ["item-000", "item-001"] * 20})
    found = evaluate(
        open_pipeline(open_bundle(tiny_originals / "bundle")),
        open_snapshot(tiny_originals / "snapshot"),
        EvaluationSpec(truth=truth, time_us=NOW_US, resamples=20),
    )
    assert found.to_json()["calibration"] == {}
    assert list(found.to_json()["modes"]["first"]) == ["full", "als", "content", "popular"]


# ------------------------------------------------------------------------------------------------------------- segments


NO_COLUMNS = ColumnValues(
    np.empty((1, 0)),
    np.empty((1, 0), np.int32),
    np.empty((1, 0), np.int64),
    np.empty(0, np.int32),
    np.zeros(1, np.int64),
)


def history(count: float, days: float) -> UserState:
    last = np.array([NOW_US - int(days * DAY_US)])
    entries = History(np.array([1], np.uint64), np.zeros(1, np.int32), np.array([count]), last)
    return UserState(known=True, columns=NO_COLUMNS, history=entries)


def test_segments_by_recency_and_number_of_events() -> None:
    states = [history(count, 10) for count in range(1, 11)]
    states += [history(500, 90.01), history(500, 90), UserState(known=False, columns=NO_COLUMNS)]
    found, power_from = segment(states, NOW_US, SegmentSpec(inactive_days=90, power_quantile=0.8))
    names = [SEGMENTS[code] for code in found]
    assert power_from == pytest.approx(np.quantile([*range(1, 11), 500], 0.8))
    assert names == [*["active"] * 8, *["power"] * 2, "inactive", "power", "new"]


# ------------------------------------------------------------------------------------------------------ what is refused


def test_leaks_are_refused(pipeline: Pipeline, snapshot: Snapshot, spec: EvaluationSpec, truth: pa.Table) -> None:
    early = truth.set_column(2, "time", pa.array([NOW - datetime.timedelta(seconds=1)] * len(truth)))
    with pytest.raises(ExportError, match=r"column 'time': \d+ of \d+ events lie before the cut-off 2025-06-01T12"):
        evaluate(pipeline, snapshot, replace(spec, truth=early))
    with pytest.raises(ExportError, match=r"holds events up to .* before the cut-off 2025-05-01.*knows the test"):
        evaluate(pipeline, snapshot, replace(spec, time_us=parse_time("2025-05-01")))


def test_the_moment_of_the_cut_off_is_on_one_side_only(
    pipeline: Pipeline, snapshot: Snapshot, spec: EvaluationSpec, truth: pa.Table
) -> None:
    latest = latest_event(snapshot)
    then = truth.set_column(2, "time", pa.array([latest] * len(truth), pa.timestamp("us", "UTC")))
    with pytest.raises(ExportError, match="it knows the test"):
        evaluate(pipeline, snapshot, replace(spec, time_us=latest, truth=then))
    evaluate(pipeline, snapshot, replace(spec, time_us=latest + 1, modes=("all",)))


def test_sources_that_know_the_test_are_refused(
    complete: Any, flat: BundleSpec, tmp_path: Path, quiet: Console
) -> None:
    assert flat.sources.events is not None
    table = pyarrow.parquet.read_table(flat.sources.events.table)
    times = [NOW - datetime.timedelta(hours=1)] * len(table)

    def export(late: int) -> None:
        when = pa.array([*times[late:], *[NOW] * late], pa.timestamp("us", "UTC"))
        events = replace(flat.sources.events, table=table.set_column(table.column_names.index("time"), "time", when))
        spec = replace(flat, sources=replace(flat.sources, events=events))
        export_bundle(spec, tmp_path / "bundle", snapshot=complete.snapshot, console=quiet)

    with pytest.raises(
        ExportError, match=r"column 'time': 2 of 3,000 events do not lie before the evaluation's cut-off 2025-06-01T12"
    ):
        export(2)
    export(0)


@pytest.mark.parametrize("name", ["any", "full", "own", "union", "users"])
def test_a_source_with_the_name_of_a_figure_is_refused(snapshot: Snapshot, spec: EvaluationSpec, name: str) -> None:
    """Its figures would stand where the other's do, such as those of a segment beside its number of users."""
    pipeline: Any = SimpleNamespace(sources=("als", name))
    with pytest.raises(ExportError, match=f"the source '{name}' has the name of a figure: rename it"):
        evaluate(pipeline, snapshot, spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.slice(0, 0), "truth: the table is empty"),
        (lambda table: table.drop_columns(["item_id"]), "there is no column 'item_id'; the columns are user_id, time"),
        (lambda table: table.set_column(1, "item_id", pa.array(range(len(table)))), "expected strings, found int64"),
        (lambda table: table.set_column(0, "user_id", pa.array([None] * len(table), pa.string())), "are null"),
        (lambda table: table.set_column(2, "time", pa.array(["today"] * len(table))), "expected timestamps or dates"),
        (lambda table: table.set_column(1, "item_id", pa.array(["x"] * len(table))), "has none of the 1 items"),
        (lambda table: table.set_column(0, "user_id", pa.array(["x"] * len(table))), "none of 1 users has a history"),
    ],
)
def test_a_truth_that_cannot_be_used_is_refused(
    pipeline: Pipeline, snapshot: Snapshot, spec: EvaluationSpec, truth: pa.Table, change: Any, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        evaluate(pipeline, snapshot, replace(spec, truth=change(truth)))


def test_a_named_time_column_must_be_there(
    pipeline: Pipeline, snapshot: Snapshot, spec: EvaluationSpec, truth: pa.Table
) -> None:
    undated = truth.drop_columns(["time"])
    with pytest.raises(ExportError, match="there is no column 'when'"):
        evaluate(pipeline, snapshot, replace(spec, truth=undated, time_column="when"))
    found = evaluate(pipeline, snapshot, replace(spec, truth=undated, modes=("all",)))
    assert not found.truth.dated


def test_everything_that_a_bundle_cannot_serve_is_told_at_once(
    pipeline: Pipeline, snapshot: Snapshot, spec: EvaluationSpec
) -> None:
    wrong = PlacementSettings(
        sources=(SourceSettings(name="populer", weight=1.0),),
        caps=(CapSettings(attribute="price", max=1),),
        diversity_space="als",
        objective_weights={"revenue": 1.0},
        in_region=True,
    )
    with pytest.raises(ExportError) as caught:
        evaluate(pipeline, snapshot, replace(spec, placement=wrong))
    for part in (
        "sources[0].name: the bundle has no source 'populer'; did you mean \"popular\"?",
        "caps[0].attribute: the bundle has no category attribute 'price'; valid: category",
        "diversity_space: the bundle has no vector space of length 1 'als'; valid: ",
        "objective_weights.revenue: the bundle has no objective 'revenue'; valid: ",
        "in_region: it answers items of the request's country only",
    ):
        assert f"  placement.{part}" in str(caught.value)
    with pytest.raises(ExportError, match="modes: expected"):
        evaluate(pipeline, snapshot, replace(spec, modes=()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[placements.home]\ncandidatse = 5", r"placements\.home\.candidatse: "),
        ("[placements.home]\ncandidates = 6000", r"placements\.home\.candidates: .*less than or equal to 5000"),
        ("placements = 3", "placements: "),
        ("[placements.hme]", "there is no placement 'home'; there are default, hme"),
        ("not toml", "cannot be read"),
    ],
)
def test_placements_that_cannot_be_read_are_refused(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "recserve.toml"
    config.write_text(text)
    with pytest.raises(ExportError, match=message):
        read_placement(config, "home")


def test_a_minimum_is_held_against_the_figures(found: Evaluation) -> None:
    value = found.figures()["all.full.ndcg@10"]
    found.check({"all.full.ndcg@10": value, "all.union.recall@100": 0.01})
    with pytest.raises(ExportError, match=r"all.full.ndcg@10 is 0.\d+, the minimum 0.99"):
        found.check({"all.full.ndcg@10": 0.99})
    with pytest.raises(ExportError, match=r"there is no figure 'all.ful.ndcg@10'; did you mean \"all.full.ndcg@10\"?"):
        found.check({"all.ful.ndcg@10": 0.1})


def test_the_names_of_the_figures_are_known_beforehand(
    pipeline: Pipeline, spec: EvaluationSpec, found: Evaluation
) -> None:
    spaces = [name for name in pipeline.sources if name in pipeline.bundle.spaces]
    assert sorted(figure_names(spec, spaces, pipeline.sources, ranked=True)) == sorted(found.figures())
    assert not any(".relevance." in name for name in figure_names(spec, spaces, pipeline.sources, ranked=False))


# ------------------------------------------------------------------------------------------------------ export, command


@pytest.fixture(name="flat")
def fixture_flat(complete: Any, spec: EvaluationSpec) -> BundleSpec:
    """The shop without towers and rankers, which is quick to export."""
    schema = json.loads(complete.shop.spec.features.to_json())
    schema["features"] = [each for each in schema["features"] if "ann" not in " ".join(each["inputs"])]
    return replace(
        complete.shop.spec,
        features=FeatureSchema.from_json(json.dumps(schema)),
        spaces=[space for space in complete.shop.spec.spaces if space.name != "ann"],
        rankers=(),
        evaluation=replace(spec, placement=PlacementSettings(candidates=60)),
    )


def test_an_export_is_evaluated_before_it_is_sealed(
    complete: Any, flat: BundleSpec, tmp_path: Path, quiet: Console
) -> None:
    report = export_bundle(flat, tmp_path / "bundle", snapshot=complete.snapshot, console=quiet)
    assert report.evaluation is not None
    bundle = open_bundle(tmp_path / "bundle")
    assert flat.evaluation is not None
    afterwards = evaluate(open_pipeline(bundle), open_snapshot(complete.snapshot), flat.evaluation)
    assert report.evaluation.to_json() == afterwards.to_json()
    kept = dict(bundle.manifest.offline_metrics.items())
    assert kept["all.full.ndcg@10"] == afterwards.figures()["all.full.ndcg@10"]
    assert kept["first.union.recall@60"] == afterwards.figures()["first.union.recall@60"]
    assert "truth" in [each.role for each in bundle.manifest.made_from]
    page = (tmp_path / "bundle" / "report.html").read_text("utf-8")
    assert "How well it recommends" in page
    assert "click_ndcg@10" in page


def test_a_bundle_below_the_minimum_is_not_written(
    complete: Any, flat: BundleSpec, tmp_path: Path, quiet: Console
) -> None:
    assert flat.evaluation is not None
    high = replace(flat, evaluation=replace(flat.evaluation, minimum={"all.full.ndcg@10": 0.9}))
    with pytest.raises(ExportError, match="falls short of `minimum`"):
        export_bundle(high, tmp_path / "bundle", snapshot=complete.snapshot, console=quiet)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ExportError, match="evaluation: needs the user snapshot of the cut-off"):
        export_bundle(flat, tmp_path / "bundle", console=quiet)


def test_a_minimum_of_no_figure_is_refused_before_anything_is_read(
    complete: Any, flat: BundleSpec, tmp_path: Path
) -> None:
    assert flat.evaluation is not None
    names = ("all.full.ndgc@10", "first.own.map@10", "all.union.recall@500", "?")
    misspelt = replace(flat.evaluation, minimum={"all.full.ndcg@10": 0.1, **dict.fromkeys(names, 0.1)})
    log = io.StringIO()
    with pytest.raises(ExportError) as caught:
        export_bundle(
            replace(flat, evaluation=misspelt),
            tmp_path / "bundle",
            snapshot=complete.snapshot,
            console=Console(file=log),
        )
    _, *told, every = str(caught.value).splitlines()
    assert told == [
        "  evaluation: minimum: there is no figure 'all.full.ndgc@10'; did you mean \"all.full.ndcg@10\"?",
        "  evaluation: minimum: there is no figure 'first.own.map@10'; did you mean \"first.als.map@10\"?",
        "  evaluation: minimum: there is no figure 'all.union.recall@500'; did you mean \"all.union.recall@60\"?",
    ]
    assert "figure '?'; valid: all.full.ndcg@10, all.full.precision@10, " in every
    assert log.getvalue() == ""


def test_a_specification_file_says_how_to_evaluate(complete: Any, truth: pa.Table, tmp_path: Path) -> None:
    root = shutil.copytree(complete.shop.root, tmp_path / "shop")
    pyarrow.parquet.write_table(truth, root / "truth.parquet")
    path = root / "shop.toml"
    given = path.read_text()
    path.write_text(
        given
        + """
[evaluation]
truth = "truth.parquet"
time = 2025-06-01T12:00:00Z
modes = ["all"]
segments = { inactive_days = 30 }
minimum = { "all.full.ndcg@10" = 0.01 }
placement = { candidates = 60, caps = [{ attribute = "category", max = 2 }], mmr_weight = 0.5 }
"""
    )
    found = read_spec(path)[0].evaluation
    assert found is not None
    assert (found.time_us, found.modes, found.minimum) == (NOW_US, ["all"], {"all.full.ndcg@10": 0.01})
    assert found.placement == PlacementSettings(
        candidates=60, caps=(CapSettings(attribute="category", max=2),), mmr_weight=0.5
    )
    assert found.segments == SegmentSpec(inactive_days=30)
    path.write_text(given + '\n[evaluation]\ntruth = "truth.parquet"\nplacement = { candidats = 60 }\n')
    with pytest.raises(ExportError) as caught:
        read_spec(path)
    assert "evaluation.time: missing" in str(caught.value)
    assert "evaluation.placement.candidats: unknown key" in str(caught.value)


def test_the_command_writes_figures_and_a_page(
    complete: Any, truth: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str], found: Evaluation
) -> None:
    pyarrow.parquet.write_table(truth, tmp_path / "truth.parquet")
    arguments: Sequence[str] = (
        "evaluate",
        str(complete.path),
        *("--snapshot", str(complete.snapshot)),
        *("--truth", str(tmp_path / "truth.parquet")),
        *("--time", "2025-06-01T12:00:00Z"),
        *("--out", str(tmp_path / "metrics.json")),
        *("--report", str(tmp_path / "report.html")),
    )
    assert main(arguments) == 0
    document = json.loads((tmp_path / "metrics.json").read_text())
    assert document["users"] == found.modes["all"].users
    printed = capsys.readouterr()
    assert "recall@500 of the sources" in printed.out
    assert "users without history" in printed.err
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "report.html", "truth.parquet"]
    assert main([*arguments[:-6], "--time", "yesterday"]) == 1
    assert "'yesterday' is no time: expected ISO 8601" in capsys.readouterr().err


class FullDisk(io.StringIO):
    """A standard output that takes nothing."""

    def write(self, _text: str, /) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_figures_that_cannot_be_printed_are_in_the_file(
    complete: Any,
    truth: pa.Table,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pyarrow.parquet.write_table(truth, tmp_path / "truth.parquet")
    arguments: Sequence[str] = (
        "evaluate",
        str(complete.path),
        *("--snapshot", str(complete.snapshot)),
        *("--truth", str(tmp_path / "truth.parquet")),
        *("--time", "2025-06-01T12:00:00Z", "--mode", "all"),
    )
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", FullDisk())
        assert main([*arguments, "--out", str(tmp_path / "metrics.json")]) == 1
    assert "No space left" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "metrics.json").read_text())["modes"]) == ["all"]
    assert main([*arguments, "--out", "/dev/full"]) == 1
    printed = capsys.readouterr()
    assert "recall@500 of the sources" in printed.out
    assert "No space left" in printed.err
