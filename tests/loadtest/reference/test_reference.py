"""A tiny workload of the reference workloads' recipe: as it is made, kept, and served."""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from rich.console import Console

from recserve.exporters.errors import ExportError
from recserve.exporters.oracle import oracle_engines
from recserve.kernels.features import ColumnValues
from recserve.loadtest.cli import main
from recserve.loadtest.clusters import CENTRES, Clusters, around, clustered_vectors
from recserve.loadtest.forest.recipe import CROSS_FEATURES, ITEM_FEATURES, USER_FEATURES
from recserve.loadtest.reference import command
from recserve.loadtest.reference.build import Workload, workload
from recserve.loadtest.reference.market import NOW_US, Market
from recserve.loadtest.reference.ranking import standardised
from recserve.loadtest.reference.recipe import RECIPES, Recipe
from recserve.loadtest.reference.schema import reference_schema
from recserve.loadtest.reference.tower import UserTower
from recserve.loadtest.workload.scenario import load_scenario
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.snapshot import open_snapshot
from recserve.server.config import load_settings
from recserve.server.pipeline.pipeline import Pipeline, open_pipeline
from recserve.server.pipeline.types import Cap, History, Query, QueryKind, Quota, RerankOptions, Result, UserState

TINY = Recipe(name="tiny", items=2000, users=300, trees=20, groups=40, held_out=20)


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(name="tiny", scope="module")
def fixture_tiny(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return workload(TINY, tmp_path_factory.mktemp("workloads") / "tiny", console=quiet())


# ---- vectors and users


def test_item_vectors_are_those_of_the_retrieval_benchmark() -> None:
    market = Market(dataclasses.replace(TINY, items=20_000))
    mine = np.concatenate([vectors for vectors, _ in market.item_blocks()])
    items, users = clustered_vectors(20_000, 2000, np.random.default_rng(7))
    clusters = Clusters.draw(np.random.default_rng(8))
    tastes = around(
        clusters.mixtures(np.random.default_rng(9).integers(0, CENTRES, (2000, 2))), np.random.default_rng(9)
    )
    towers = UserTower.draw(clusters, np.random.default_rng(10)).vectors(tastes.astype(np.float32))
    others = clusters.vectors(
        clusters.centres[np.random.default_rng(11).integers(0, CENTRES, 20_000)], np.random.default_rng(12)
    )
    assert np.allclose(np.linalg.norm(mine, axis=1), 1, atol=1e-6)
    for found, expected in ((noise(mine), noise(items)), (noise(towers), noise(users))):
        assert found == pytest.approx(expected, rel=0.1)
    assert np.allclose(nearest(towers, others), nearest(users, items), rtol=0.02)


def noise(vectors: np.ndarray) -> float:
    """The share of the energy that does not lie in the signal's 32 directions."""
    return float(np.linalg.eigvalsh(vectors.T @ vectors / len(vectors))[:-32].sum())


def nearest(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Mean scores at some places of the users' lists."""
    scores: np.ndarray = np.sort(users @ items.T, axis=1)[:, ::-1][:, [0, 10, 100, 500]].mean(axis=0)
    return scores


def test_the_network_is_what_numpy_says(tiny: Workload) -> None:
    tower = Market(TINY).tower
    session = onnxruntime.InferenceSession(tiny.bundle / "spaces" / "ann" / "user.onnx")
    taste = np.random.default_rng(1).normal(size=(50, 32)).astype(np.float32)
    (found,) = session.run(None, {"taste": taste})
    assert np.allclose(found, tower.vectors(taste), atol=1e-6)


def test_users_deal_with_items_of_their_centres() -> None:
    market = Market(dataclasses.replace(TINY, items=50_000))
    blocks = [block for _, block in market.item_blocks()]
    users = market.users(blocks[0])
    vectors, _ = next(market.item_blocks())
    rows = np.array([int(text.removeprefix("item-")) for text in users.history["item_id"].to_pylist()])
    owner = np.repeat(np.arange(TINY.users), np.diff(users.entries))
    towers = market.tower.vectors(users.tastes)
    near = (towers[owner] * vectors[rows]).sum(axis=1).mean()
    far = (np.roll(towers, 1, axis=0)[owner] * vectors[rows]).sum(axis=1).mean()
    assert near > 0.3
    assert far < 0.1


# ---- features and forest


def test_features_lie_where_the_labels_expect_them() -> None:
    scopes = reference_schema().scopes
    for scope, places in (("request", USER_FEATURES), ("item", ITEM_FEATURES), ("cross", CROSS_FEATURES)):
        assert {scopes[place] for place in places} == {scope}


def test_standardised_features_know_no_missing_values_and_no_outliers() -> None:
    rows = np.array([[1, np.nan, 5, 0], [2, 7, 5, 0], [3, 8, 5, 1e9]] + [[2, 7.5, 5, 0]] * 30, np.float32)
    found = standardised(rows)
    assert np.isfinite(found).all()
    assert found[0, 1] == 0
    assert (found[:, 2] == 0).all()
    assert found[2, 3] == 3
    assert abs(found[:, 0].mean()) < 1e-6


def test_the_forest_reads_all_kinds_of_features(tiny: Workload) -> None:
    names = reference_schema().names
    text = (tiny.bundle / "ranker" / "model.purchase.txt").read_text("utf-8")
    lines = [line.split("=")[1].split() for line in text.splitlines() if line.startswith("split_feature=")]
    used = np.bincount([int(place) for line in lines for place in line], minlength=len(names))
    for places in (USER_FEATURES, ITEM_FEATURES, CROSS_FEATURES):
        assert used[places].sum() > 0.03 * used.sum()
    assert used[USER_FEATURES].sum() / used.sum() == pytest.approx(tiny.about["request_split_share"], abs=1e-4)


# ---- the folder


def test_the_same_recipe_makes_the_same_workload(tiny: Workload, tmp_path: Path) -> None:
    again = workload(TINY, tmp_path / "again", console=quiet())
    assert sums(again) == sums(tiny)
    mine, other = (next(Market(dataclasses.replace(TINY, seed=seed)).item_blocks())[0] for seed in (1, 2))
    assert not np.isclose(mine, other).all(axis=1).any()


def sums(made: Workload) -> dict[str, str]:
    """Checksums of what is drawn and trained; golden requests and reports also say when they were made."""
    files = {}
    for manifest in (made.bundle / "manifest.json", made.snapshot / "snapshot.json"):
        listed = json.loads(manifest.read_text("utf-8"))["files"]
        files |= {f"{manifest.parent.name}/{name}": each["sha256"] for name, each in listed.items()}
    return {name: each for name, each in files.items() if "golden" not in name and not name.endswith(".html")}


def test_a_complete_folder_is_used_again(tiny: Workload) -> None:
    before = (tiny.path / "workload.json").stat().st_mtime_ns
    said = Console(file=io.StringIO())
    again = workload(TINY, tiny.path, console=said)
    assert again.about == tiny.about
    assert (tiny.path / "workload.json").stat().st_mtime_ns == before


def test_a_folder_of_another_recipe_is_left_alone(tiny: Workload, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="holds a workload of another recipe"):
        workload(dataclasses.replace(TINY, trees=21), tiny.path, console=quiet())
    (tmp_path / "mine.txt").write_text("not to be lost", "utf-8")
    with pytest.raises(ExportError, match="is there and no workload"):
        workload(TINY, tmp_path, console=quiet())
    assert (tmp_path / "mine.txt").exists()


def test_an_interrupted_build_leaves_nothing_to_be_taken_for_a_workload(tmp_path: Path) -> None:
    out = tmp_path / "workloads" / "tiny"
    process = multiprocessing.get_context("spawn").Process(target=workload, args=(TINY, out))
    process.start()
    while not list(tmp_path.glob("workloads/.tiny.exporting-*")) and process.is_alive():
        time.sleep(0.01)
    time.sleep(0.3)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists()
    made = workload(TINY, out, console=quiet())
    assert sorted(each.name for each in out.parent.iterdir()) == ["tiny"]
    assert sorted(each.name for each in made.path.iterdir()) == [
        "bundle",
        "recserve.toml",
        "scenario.toml",
        "snapshot",
        "workload.json",
    ]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_told_to_end_leaves_no_half_made_workload(tmp_path: Path, sent: signal.Signals) -> None:
    command = (sys.executable, "-m", "recserve.loadtest.cli", "workload", "small", "--out", str(tmp_path / "small"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob(".small.exporting-*")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(sent)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "recserve-loadtest: interrupted; nothing is left of what was not complete"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("field", "value"), [("items", 99), ("users", 59)])
def test_recipes_too_small_to_learn_from(field: str, value: int) -> None:
    with pytest.raises(ValueError, match="fewer than the"):
        dataclasses.replace(TINY, **{field: value})


# ---- served


def test_the_bundle_answers_as_its_models_do(tiny: Workload) -> None:
    bundle, snapshot = open_bundle(tiny.bundle), open_snapshot(tiny.snapshot)
    pipeline, oracle = open_pipeline(bundle), Pipeline(bundle, oracle_engines(bundle))
    work = [(query(bundle), state(snapshot, row)) for row in range(0, TINY.users, 60)]
    for found, expected in zip(pipeline.run(work), oracle.run(work), strict=True):
        assert isinstance(found, Result)
        assert isinstance(expected, Result)
        assert found.rows.tolist() == expected.rows.tolist()
        assert found.scores.tolist() == expected.scores.tolist()
        assert (found.rows.size, found.degraded) == (20, ())


def query(bundle: Any) -> Query:
    caps = (Cap("category", 3),)
    return Query(
        kind=QueryKind.RECOMMEND,
        time_us=NOW_US,
        context=ColumnValues.missing(bundle.schema.context_layout, 1),
        quotas=(Quota("ann", 1.0),),
        rerank=RerankOptions(caps=caps, mmr_weight=0.8, diversity_space="ann"),
    )


def state(snapshot: Any, row: int) -> UserState:
    user = snapshot.state(row)
    history = History(user.keys, user.events, user.counts, user.last_us)
    return UserState(known=True, columns=user.columns, history=history)


def test_configuration_and_scenario_are_ready_to_use(tiny: Workload, tmp_path: Path) -> None:
    settings = load_settings(file=tiny.config)
    assert (settings.bundles[0].path, settings.state.snapshot) == (tiny.bundle, tiny.snapshot)
    assert settings.user_vector_cache.entries == 0
    assert load_scenario(str(tiny.scenario)).requests[0].count == 20
    results = tmp_path / "run.json"
    load = ["--rate", "30", "--seconds", "1", "--warmup", "0", "--no-report", "--out", str(results)]
    assert main(["run", "--config", str(tiny.config), "--scenario", str(tiny.scenario), *load]) == 0
    outcomes = json.loads(results.read_text("utf-8"))["results"][0]["outcomes"]
    assert set(outcomes) == {"OK"}


def test_the_command_makes_the_named_workload(
    tiny: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tuple(RECIPES) == command.NAMES
    monkeypatch.setitem(RECIPES, "small", TINY)  # type: ignore[arg-type]
    assert main(["workload", "small", "--out", str(tiny.path)]) == 0
    assert f"recserve serve --config {tiny.config}" in capsys.readouterr().out
    (tmp_path / "workload.json").write_text("{}", "utf-8")
    assert main(["workload", "small", "--out", str(tmp_path)]) == 1
    assert "another recipe" in capsys.readouterr().err
