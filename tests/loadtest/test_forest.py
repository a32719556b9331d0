from __future__ import annotations

import argparse
import itertools
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest

from recserve.exporters.forest import compile_forest
from recserve.kernels.forest import CPU_VARIANTS
from recserve.loadtest.cli import main
from recserve.loadtest.figures import renew
from recserve.loadtest.forest import engines, recipe
from recserve.loadtest.forest.command import ENGINES, FOREST
from recserve.loadtest.forest.measure import Work, equality, measure_forests
from recserve.loadtest.forest.plot import plot_forests
from recserve.loadtest.forest.runners import Job, LocalRunner, own_runners
from recserve.loadtest.forest.tables import document_grids
from recserve.loadtest.grids import Grid, markdown_table

DOCS = Path(__file__).parents[2] / "docs"
TINY = recipe.Recipe(leaves=15, groups=20)
INEXACT = {"ONNX Runtime"}
"""Its sums are of float32. lleaves' are of doubles, but by blocks of 34 trees, of which these forests have one."""


@pytest.fixture(name="models", scope="module")
def fixture_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(name="model", scope="module")
def fixture_model(models: Path) -> Path:
    return recipe.train(TINY, (12,), models)[12]


@pytest.fixture(name="request_", scope="module")
def fixture_request() -> recipe.Request:
    return recipe.Marketplace(1).requests(70, 1)[0]


@pytest.fixture(name="result", scope="module")
def fixture_result() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DOCS / "bench" / "forest.json").read_text("utf-8"))
    return content


# ---- the recipe


def test_requests_are_seeded_and_of_one_user() -> None:
    first, again, other = (recipe.Marketplace(seed).requests(30, 2) for seed in (1, 1, 2))
    assert first[1].rows.tobytes() == again[1].rows.tobytes()
    assert first[1].rows.tobytes() != first[0].rows.tobytes() != other[0].rows.tobytes()
    for request in first:
        assert request.rows.shape == (30, recipe.FEATURES)
        assert (request.rows[:, recipe.USER_FEATURES] == request.user).all()
        assert (request.rows[:, recipe.CROSS_FEATURES] == request.crosses).all()
        assert (request.rows == request.rows64).all()


def test_training_rows_come_in_groups_of_one_user() -> None:
    rows, labels = recipe.Marketplace(1).training(30)
    users = rows[:, recipe.USER_FEATURES].reshape(30, recipe.GROUP, -1)
    assert (users == users[:, :1]).all()
    assert np.bincount(labels).tolist() == [1500, 750, 450, 210, 90]


def test_a_forest_is_the_beginning_of_a_larger_one(tmp_path: Path, request_: recipe.Request) -> None:
    paths = recipe.train(TINY, (3, 9), tmp_path)
    small, large = (lightgbm.Booster(model_file=paths[trees]) for trees in (3, 9))
    assert (small.num_trees(), large.num_trees()) == (3, 9)
    assert (small.predict(request_.rows) == large.predict(request_.rows, num_iteration=3)).all()


def test_models_are_trained_once(models: Path, model: Path) -> None:
    before = model.stat().st_mtime_ns
    assert recipe.train(TINY, (12,), models)[12].stat().st_mtime_ns == before


def test_the_share_of_splits_on_user_and_context_features(model: Path) -> None:
    booster = lightgbm.Booster(model_file=model)
    splits = [feature for tree in booster.dump_model()["tree_info"] for feature in _splits(tree["tree_structure"])]
    share = sum(feature in recipe.USER_FEATURES for feature in splits) / len(splits)
    assert recipe.request_split_share(booster) == pytest.approx(share)
    assert 0 < share < 1


def _splits(node: dict[str, Any]) -> list[int]:
    if "split_feature" not in node:
        return []
    return [node["split_feature"], *_splits(node["left_child"]), *_splits(node["right_child"])]


# ---- engines


def test_the_command_names_every_engine() -> None:
    assert set(ENGINES) == set(engines.OTHERS)


@pytest.mark.parametrize("name", ENGINES)
def test_engines_answer_as_lightgbm_does(name: str, model: Path, request_: recipe.Request) -> None:
    try:
        engine = engines.OTHERS[name](model)
    except engines.EngineUnavailableError as error:
        pytest.skip(str(error))
    request = recipe.Marketplace(1).requests(1, 1)[0] if engine.max_rows == 1 else request_
    expected = lightgbm.Booster(model_file=model).predict(request.rows, raw_score=True)
    found = np.array(engine.margins(request), np.float64).reshape(-1)
    if engine.name in INEXACT:
        assert np.allclose(found, expected, atol=1e-5)
    else:
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("way", engines.OWN)
def test_our_engine_is_asked_in_all_ways(way: str, model: Path, request_: recipe.Request) -> None:
    forest = compile_forest(model)
    found = np.array(engines.OWN[way](forest, recipe.Marketplace(1).items)(request_)).reshape(-1)
    expected = lightgbm.Booster(model_file=model).predict(request_.rows, raw_score=True)
    if "float sums" in way:
        assert 0 < np.abs(found - expected).max() <= forest.float_error_bounds[0]
    else:
        assert found.tolist() == expected.tolist()


def test_compilations_are_kept_with_what_they_took(tmp_path: Path) -> None:
    runs: list[int] = []

    def make(path: Path) -> None:
        runs.append(sum(range(3_000_000)))
        path.touch()

    first, second = (engines.make_once(tmp_path / "library", make) for _ in range(2))
    assert first == second
    assert len(runs) == 1
    assert first.cpu_s > 0


def test_too_large_a_forest_is_not_compiled(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "MAX_COMPILED_LEAVES", 100)
    with pytest.raises(engines.EngineUnavailableError, match="180 leaves"):
        engines.OTHERS["tl2cgen"](model)


# ---- turns


def test_a_variant_runs_in_a_process_of_its_own(model: Path) -> None:
    expected = lightgbm.Booster(model_file=model).predict(
        np.concatenate([request.rows for request in recipe.Marketplace(1).requests(60, 8)]), raw_score=True
    )
    for variant in CPU_VARIANTS:
        with own_runners(variant, Job(model=model, seed=1, ways=("predict", "request"))) as runners:
            for runner in runners:
                assert runner.params["cpu"] == variant
                assert runner.prepare(60).tolist() == expected.tolist()
                turn = runner.turn(0.002)
                assert len(turn.wall) == len(turn.cpu) > 0
                assert min(*turn.wall, *turn.cpu, 1.0) > 0


def test_a_variant_that_does_not_exist_is_an_error(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (
        own_runners("abacus", Job(model=model, seed=1, ways=("predict",))) as runners,
        pytest.raises(RuntimeError, match=r"'cpu': 'abacus'.*has failed"),
    ):
        runners[0].prepare(1)
    assert "RECSERVE_CPU=abacus: expected one of" in capfd.readouterr().err


def test_the_first_of_several_calls_of_a_turn_is_not_counted() -> None:
    calls: list[recipe.Request] = []

    def margins(request: recipe.Request) -> list[float]:
        calls.append(request)
        return [0.0]

    runner = LocalRunner(engines.Engine(name="x", margins=margins), recipe.Marketplace(1))
    before = len(runner.prepare(100))
    assert len(runner.turn(0.0).wall) == 1
    assert len(calls) == before + 1
    times = runner.turn(0.001)
    assert len(times.wall) == len(times.cpu) == len(calls) - before - 2 > 1
    assert calls[-1] is not calls[-2]


def test_bits_are_compared_not_values() -> None:
    expected = np.array([1.0, 0.0, 3.0])
    assert equality(expected.copy(), expected)["mismatches"] == 0
    found = equality(np.array([np.nextafter(1.0, 2), -0.0, 3.0]), expected)
    assert found == {"scores": 3, "mismatches": 2, "max_difference": 2.2e-16}


# ---- the command


def test_forests_from_the_command_line(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxmltools", None)  # as where it is not installed
    out = tmp_path / "bench" / "forest.json"
    command = ["kernels", "forest", "--trees", "12", "--leaves", "15", "--rows", "1", "30", "--groups", "20"]
    chosen = ["--engines", "treelite", "onnxruntime", "lightgbm-single-row", "--seconds", "0.01"]
    assert main([*command, *chosen, "--models", str(models), "--out", str(out)]) == 0
    content = json.loads(out.read_text("utf-8"))
    assert content["workload"] == "forest"
    assert {"host", "commit", "versions", "results"} < set(content)
    made, skipped, *timed = content["results"]
    assert made["name"] == "recserve, compilation"
    assert made["compile_cpu_s"] >= 0  # a forest so small takes less than is counted
    assert 0 < made["operations"] < made["operations_by_reach"]
    assert skipped["name"] == "onnxruntime"
    assert "pip install 'recserve[bench]'" in skipped["skipped"]
    ours = 2 * len(CPU_VARIANTS) + 3
    assert len(timed) == (ours + 3) + (ours + 2)  # LightGBM's call for single rows is for single rows
    for row in timed:
        assert {"trees": 12, "leaves": 15}.items() <= row["params"].items()
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert 0 <= row["cpu_min_ms"] <= row["cpu_p50_ms"]  # a virtual machine's clock may stand still for a call
        assert row["cpu_p50_ms"] > 0
        assert row["runs"] >= 3
        assert row["scores"] == 500 if row["params"]["rows"] == 1 else 480
        assert (row["mismatches"] == 0) == ("float" not in row["params"].get("path", ""))
    lightgbm_rows = [row for row in timed if row["name"] == "LightGBM"]
    assert [row["ratio_to_lightgbm"] for row in lightgbm_rows] == [1.0, 1.0]
    assert out.with_suffix(".svg").read_text("utf-8").startswith("<?xml")
    printed = capsys.readouterr().out
    assert "12 trees of up to 15 leaves, 30 rows" in printed
    assert "Left out" in printed


@pytest.mark.parametrize(
    ("options", "slow_leaves"),
    [
        ([], []),
        (["--quick"], []),
        (["--slow-engines", "64"], [64]),
        (["--slow-engines"], [31, 64, 255]),
        (["--quick", "--slow-engines"], [64]),
        (["--engines", "lleaves", "treelite"], [31, 64, 255]),
        (["--engines", "treelite"], []),
    ],
)
def test_slow_compilers_run_where_they_are_asked_for(
    options: list[str], slow_leaves: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    works: list[Work] = []
    monkeypatch.setattr("recserve.loadtest.forest.measure.measure_forests", lambda work, _tell: works.append(work))
    parser = argparse.ArgumentParser()
    FOREST.add_options(parser)
    FOREST.measure(parser.parse_args(options))
    assert list(works[0].slow_leaves) == slow_leaves
    assert options == ["--engines", "treelite"] or "lleaves" in works[0].engines


def test_slow_compilers_are_listed_where_they_are_left_out(models: Path) -> None:
    work = Work(
        trees=[12],
        leaves=[15],
        rows=[1],
        engines=["lleaves"],
        slow_leaves=[31],
        seconds=0,
        groups=20,
        seed=1,
        models=models,
    )
    _, skipped = itertools.islice(measure_forests(work, lambda _text: None), 2)
    assert skipped.row()["runs"] == 0
    assert "--slow-engines 15 asks for it" in str(skipped.extra["skipped"])


@pytest.mark.parametrize("option", [["--rows", "0"], ["--trees", "-1"], ["--engines", "oracle"]])
def test_options_that_make_no_sense_are_refused(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["kernels", "forest", *option])
    assert option[0] in capsys.readouterr().err


# ---- tables and pictures


def test_a_grid_as_markdown() -> None:
    lines = list(markdown_table(Grid("Things", ("what", "n"), [("a", "1"), ("b", "2")])))
    assert lines == ["", "Things:", "", "| what | n |", "| --- | --: |", "| a | 1 |", "| b | 2 |"]


def test_the_documents_tables_are_those_of_the_stored_result(result: dict[str, Any]) -> None:
    document = (DOCS / "forest.md").read_text("utf-8")
    assert renew(document, [result]) == document


def test_the_stored_result_is_complete_and_exact(result: dict[str, Any]) -> None:
    timed = [row for row in result["results"] if row["runs"]]
    sizes = {tuple(row["params"][name] for name in ("trees", "leaves", "rows")) for row in timed}
    assert sizes == {(t, n, r) for t in (300, 1000) for n in (31, 64, 255) for r in (1, 20, 100, 500, 2000)}
    exact = [row for row in timed if row["name"] == "recserve" and "float" not in row["params"]["path"]]
    assert sum(row["mismatches"] for row in exact) == 0
    assert {row["name"] for row in timed} >= {"LightGBM", "TL2cgen", "Treelite GTIL", "lleaves", "ONNX Runtime"}
    assert {row["params"]["cpu"] for row in exact} == {"portable", "avx2", "avx512"}


def test_steps_compare_what_they_say(result: dict[str, Any]) -> None:
    grid = next(grid for grid in document_grids(result) if grid.title.startswith("What the steps give"))
    median = {
        tuple(row["params"][name] for name in ("path", "cpu")): row["cpu_p50_ms"]
        for row in result["results"]
        if row["name"] == "recserve" and row["params"].items() >= {"trees": 1000, "leaves": 64, "rows": 500}.items()
    }
    step = next(row for row in grid.rows if row[0] == "items binned at export")
    gain = median["predict", "avx512"] / median["items binned", "avx512"]
    assert step[3] == f"{gain:.2f}"


def test_the_same_result_is_the_same_picture(result: dict[str, Any], tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plot_forests(result, tmp_path / name)
    drawn = (tmp_path / "a.svg").read_text("utf-8")
    assert drawn == (tmp_path / "b.svg").read_text("utf-8")
    assert "1,000 trees, up to 64 leaves" in drawn


def test_the_examples_picture_is_what_its_script_draws() -> None:
    script = runpy.run_path(str(DOCS / "forest_picture.py"))
    assert script["draw"]() == (DOCS / "forest.svg").read_text("utf-8")
