"""LightGBM is the oracle: a forest is either compiled to the same bits or refused with a reason."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
from numpy.typing import NDArray

from recserve.bundle.v1.manifest_pb2 import CalibrationKind
from recserve.exporters.bitsliced import compile_rankers
from recserve.exporters.errors import ExportError
from recserve.exporters.forest_parity import require_parity, verification_rows
from recserve.exporters.ranker import CompiledRanker, compile_ranker
from recserve.exporters.source_models import open_model
from recserve.exporters.spec import CalibrationData, RankerSpec
from recserve.exporters.tl2cgen_library import compile_library
from recserve.kernels.native_forest import NativeForest

NAMES = ("price", "age", "category", "constant", "days_since")
QUIET = {"verbose": -1, "num_threads": 1, "seed": 1, "deterministic": True}


def training_rows(n: int = 1500) -> NDArray[np.float64]:
    random = np.random.default_rng(1)
    rows = random.normal(size=(n, len(NAMES)))
    rows[:, 2] = random.integers(0, 20, n)
    rows[:, 3] = 5.0
    rows[random.random((n, len(NAMES))) < 0.1] = np.nan
    rows[:, 0] = np.where(random.random(n) < 0.3, 0.0, random.normal(size=n))
    return rows


def labels_of(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    signal = rows[:, 0] + np.nan_to_num(rows[:, 1], nan=1.0) + (rows[:, 2] % 7 == 0)
    return (signal + np.random.default_rng(2).normal(size=len(rows)) > 0.5).astype(float)


def train(rounds: int = 6, dataset: Mapping[str, Any] | None = None, **parameters: Any) -> lightgbm.Booster:
    rows = training_rows()
    settings = {"objective": "binary", "num_leaves": 15, **QUIET, **parameters}
    options = {"categorical_feature": [2], **(dataset or {})}
    data = lightgbm.Dataset(rows, labels_of(rows), params=settings, **options)
    return lightgbm.train(settings, data, rounds)


def squared_error(
    predictions: NDArray[np.float64], data: lightgbm.Dataset
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A custom objective: gradient and Hessian."""
    return predictions - data.get_label(), np.ones_like(predictions)


def missing_only_later() -> lightgbm.Booster:
    """Trained on data without missing values, then on data with them: features have nodes of two missing types."""
    rows = training_rows()
    labels = labels_of(rows)
    settings = {"objective": "binary", "num_leaves": 15, **QUIET}
    first = lightgbm.train(settings, lightgbm.Dataset(np.nan_to_num(rows, nan=-9.0), labels), 3)
    return lightgbm.train(settings, lightgbm.Dataset(rows, labels), 3, init_model=first)


MODELS: dict[str, Callable[[], lightgbm.Booster]] = {
    "binary": train,
    "numbers only": lambda: train(dataset={"categorical_feature": []}),
    "named features": lambda: train(dataset={"feature_name": list(NAMES)}),
    "boosted from the average": lambda: train(objective="regression", boost_from_average=True),
    "not boosted from the average": lambda: train(boost_from_average=False),
    "lambdarank": lambda: train(objective="lambdarank", dataset={"group": [50] * 30}),
    "poisson": lambda: train(objective="poisson"),
    "square root": lambda: train(objective="regression", reg_sqrt=True),
    "custom objective": lambda: train(objective=squared_error),
    "dart": lambda: train(boosting="dart", drop_rate=0.5),
    "goss": lambda: train(data_sample_strategy="goss"),
    "more than 64 leaves": lambda: train(num_leaves=200, min_data_in_leaf=2),
    "stumps": lambda: train(num_leaves=2),
    "a single leaf": lambda: train(objective="regression", min_data_in_leaf=5000),
    "missing is not special": lambda: train(use_missing=False),
    "categories one against the rest": lambda: train(max_cat_to_onehot=200),
    "forced to bins of one value": lambda: train(min_data_in_bin=1, max_bin=1000),
    "missing in some trees only": missing_only_later,
    "more than one unit of trees": lambda: train(rounds=20, num_leaves=4),
}


def spec_of(model: lightgbm.Booster | Path, **changes: Any) -> RankerSpec:
    """A spec whose calibration suits any objective."""
    rows = training_rows()
    data = CalibrationData(features=rows.astype(np.float32), labels=labels_of(rows))
    spec = RankerSpec(objective="click", model=model, calibration="platt", calibration_data=data, tl2cgen=True)
    return replace(spec, **changes)


def binary_spec(model: lightgbm.Booster | Path, **changes: Any) -> RankerSpec:
    return spec_of(model, **{"calibration": "model", "calibration_data": None, **changes})


def open_library(compiled: CompiledRanker) -> NativeForest:
    (native,) = compiled.forest.native
    assert compiled.library is not None
    return NativeForest(compiled.library, compiled.forest.features, native.nan_to_zero, native.categorical)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "a single leaf"])
def test_margins_equal_lightgbm(name: str, tmp_path: Path) -> None:
    booster = MODELS[name]()
    compiled = compile_ranker(spec_of(booster), NAMES, tmp_path)
    rows = training_rows().astype(np.float32)
    expected = booster.predict(rows, raw_score=True)
    np.testing.assert_array_equal(open_library(compiled).margins(rows).view(np.int64), expected.view(np.int64))
    assert compiled.forest.trees == booster.num_trees()


def test_a_single_leaf_is_constant(tmp_path: Path) -> None:
    """It has nothing to calibrate, but a binary model of the kind keeps its sigmoid."""
    booster = train(min_data_in_leaf=5000)
    compiled = compile_ranker(binary_spec(booster), NAMES, tmp_path)
    rows = np.zeros((2, len(NAMES)), np.float32)
    assert open_library(compiled).margins(rows).tolist() == booster.predict(rows, raw_score=True).tolist()
    with pytest.raises(ExportError, match=r"all 1500 margins are .*nothing to fit"):
        compile_ranker(spec_of(booster), NAMES, tmp_path)


def test_what_is_written_and_returned(tmp_path: Path) -> None:
    booster = train()
    booster.save_model(tmp_path / "given.txt")
    steps: list[tuple[int, int]] = []
    compiled = compile_ranker(
        binary_spec(tmp_path / "given.txt", weight=2.0),
        NAMES,
        tmp_path / "ranker",
        on_progress=lambda done, total: steps.append((done, total)),
    )
    machine = platform.machine()
    assert sorted(path.name for path in (tmp_path / "ranker").iterdir()) == [
        "model.click.txt",
        f"tl2cgen.click.{machine}.so",
    ]
    assert compiled.model.read_bytes() == (tmp_path / "given.txt").read_bytes()
    forest = compiled.forest
    assert (forest.objective, forest.weight, forest.features, forest.trees) == ("click", 2.0, 5, 6)
    assert forest.model == "ranker/model.click.txt"
    (native,) = forest.native
    assert native.file == f"ranker/tl2cgen.click.{machine}.so"
    assert (native.machine, native.compiler) == (machine, "tl2cgen 1.0.0")
    assert list(native.nan_to_zero) == [0]  # the one feature that was never missing in training
    assert list(native.categorical) == [2]
    assert forest.calibration.kind == CalibrationKind.SIGMOID
    assert list(forest.calibration.x) == [1.0, 0.0]
    assert compiled.rows_verified >= 8192
    assert steps[-1] == (steps[-1][1], steps[-1][1])
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))


def test_the_same_model_gives_the_same_library(tmp_path: Path) -> None:
    booster = train(rounds=2)
    first = compile_ranker(binary_spec(booster), NAMES, tmp_path / "a")
    second = compile_ranker(binary_spec(booster), NAMES, tmp_path / "b")
    assert first.library is not None
    assert second.library is not None
    assert first.library.read_bytes() == second.library.read_bytes()


def test_early_stopping_keeps_the_iterations_that_predict_uses(tmp_path: Path) -> None:
    booster = train(rounds=8)
    booster.best_iteration = 3
    compiled = compile_ranker(binary_spec(booster), NAMES, tmp_path)
    rows = training_rows(100).astype(np.float32)
    assert compiled.forest.trees == 3
    assert open_library(compiled).margins(rows).tolist() == booster.predict(rows, raw_score=True).tolist()


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    compile_ranker(binary_spec(train(rounds=2)), NAMES, tmp_path)
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------------- refusals


def untrained() -> lightgbm.Booster:
    rows = training_rows()
    return lightgbm.Booster(QUIET, lightgbm.Dataset(rows, labels_of(rows)))


def number_and_category() -> lightgbm.Booster:
    rows = training_rows()
    settings = {"objective": "binary", "num_leaves": 15, **QUIET}
    first = lightgbm.train(settings, lightgbm.Dataset(rows, labels_of(rows)), 3)
    data = lightgbm.Dataset(rows, labels_of(rows), categorical_feature=[2])
    return lightgbm.train(settings, data, 3, init_model=first)


UNFOLLOWED: dict[str, tuple[Callable[[], lightgbm.Booster], str]] = {
    "linear leaves": (lambda: train(linear_tree=True, objective="regression"), "tree 0 has linear leaves"),
    "several outputs": (lambda: train(objective="multiclass", num_class=2), "the model has 2 outputs"),
    "no trees": (untrained, "the model has no trees"),
}
NOT_BY_TL2CGEN: dict[str, tuple[Callable[[], lightgbm.Booster], str]] = {
    "zero as missing": (
        lambda: train(zero_as_missing=True),
        r"feature \d \(Column_\d\) takes zeros for missing.*zero_as_missing=false",
    ),
    "random forest": (
        lambda: train(boosting="rf", bagging_freq=1, bagging_fraction=0.5),
        "averages its trees",
    ),
    "number and category": (number_and_category, r"feature 2 \(Column_2\) is a number in some trees"),
}


@pytest.mark.parametrize(("make", "message"), UNFOLLOWED.values(), ids=UNFOLLOWED.keys())
def test_refuses_what_cannot_be_followed(make: Callable[[], lightgbm.Booster], message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"ranker 'click': .*{message}"):
        compile_ranker(spec_of(make()), NAMES, tmp_path / "ranker")
    assert not (tmp_path / "ranker").exists()


@pytest.mark.parametrize(("make", "message"), NOT_BY_TL2CGEN.values(), ids=NOT_BY_TL2CGEN.keys())
def test_says_why_there_is_no_library(make: Callable[[], lightgbm.Booster], message: str, tmp_path: Path) -> None:
    booster = make()
    compiled = compile_ranker(spec_of(booster), NAMES, tmp_path)
    assert compiled.library is None
    assert not compiled.forest.native
    assert re.search(message, compiled.no_library)
    rows = verification_rows(compiled.source.forest)
    require_parity(compiled.source, compile_rankers([compiled.source]).predict, rows, engine="the forest")
    assert compiled.source.ranking_margins(rows).tolist() == booster.predict(rows, raw_score=True).tolist()


def test_no_compiler_is_needed_where_no_library_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    compiled = compile_ranker(binary_spec(train(rounds=1), tl2cgen=False), NAMES, tmp_path / "ranker")
    assert (compiled.library, compiled.no_library) == (None, "")
    assert [path.name for path in (tmp_path / "ranker").iterdir()] == ["model.click.txt"]


def test_refuses_another_number_of_features(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"trained on 5 features, features\.json defines 4"):
        compile_ranker(binary_spec(train(rounds=1)), NAMES[:4], tmp_path)


def test_refuses_features_in_another_order(tmp_path: Path) -> None:
    booster = train(rounds=1, dataset={"feature_name": ["age", "price", *NAMES[2:]]})
    with pytest.raises(ExportError, match="column 0 is 'age' there and 'price' in"):
        compile_ranker(binary_spec(booster), NAMES, tmp_path)


SPECS = {
    "objective that is a path": ({"objective": "../click"}, "an objective's name has a letter or _, then"),
    "objective that is no name": ({"objective": "2nd_click"}, "an objective's name has a letter or _, then"),
    "negative weight": ({"weight": -1.0}, "weight must be a number from 0 to 1e.06, not"),
    "NaN weight": ({"weight": float("nan")}, "weight must be a number from 0 to 1e.06, not"),
    "fit without data": ({"calibration": "platt"}, "calibration 'platt' needs calibration_data"),
    "data without fit": (
        {"calibration_data": CalibrationData(features=np.zeros((1, 5), np.float32), labels=np.zeros(1))},
        "calibration 'model' takes no calibration_data",
    ),
    "data of other width": (
        {
            "calibration": "platt",
            "calibration_data": CalibrationData(features=np.zeros((1, 4), np.float32), labels=np.zeros(1)),
        },
        r"calibration data: expected \[n, 5\] features, found \[1, 4\]",
    ),
}


@pytest.mark.parametrize(("changes", "message"), SPECS.values(), ids=SPECS.keys())
def test_refuses_specs(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        compile_ranker(binary_spec(train(rounds=1), **changes), NAMES, tmp_path)


def test_refuses_a_lambdarank_models_own_calibration(tmp_path: Path) -> None:
    booster = train(objective="lambdarank", dataset={"group": [50] * 30})
    with pytest.raises(ExportError, match=r"needs a binary model.*'lambdarank'.*\"platt\" or \"isotonic\""):
        compile_ranker(binary_spec(booster), NAMES, tmp_path)


def test_refuses_a_model_file_that_is_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="model file cannot be read"):
        compile_ranker(binary_spec(tmp_path / "missing.txt"), NAMES, tmp_path)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ExportError, match="model file cannot be read"):
        compile_ranker(binary_spec(tmp_path / "bytes.txt"), NAMES, tmp_path)


def test_refuses_where_there_is_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExportError, match="needs a C compiler, and none of cc, gcc, clang is on PATH"):
        compile_ranker(binary_spec(train(rounds=1)), NAMES, tmp_path)


def test_reports_what_the_compiler_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cc").write_text("#!/bin/sh\necho no space left >&2\nexit 7\n")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExportError, match="failed with status 7: no space left"):
        compile_ranker(binary_spec(train(rounds=1)), NAMES, tmp_path / "ranker")


# --------------------------------------------------------------------------------------------------------- parity


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> CompiledRanker:
    return compile_ranker(binary_spec(train()), NAMES, tmp_path_factory.mktemp("ranker"))


def nudged(booster: lightgbm.Booster, key: str, change: Callable[[float], float]) -> lightgbm.Booster:
    """The model with the first number of its last tree's `key` changed."""
    text = booster.model_to_string()
    *_, line = re.finditer(rf"^{key}=(\S+)", text, re.MULTILINE)
    number = repr(change(float(line[1]))).ljust(len(line[1]))[: len(line[1])]  # tree_sizes must stay true
    return lightgbm.Booster(model_str=text[: line.start(1)] + number + text[line.end(1) :])


NUDGES = {
    "a leaf by its last digits": ("leaf_value", lambda value: value * (1 + 1e-15)),
    "a threshold by 1e-6": ("threshold", lambda value: value + 1e-6),
}


@pytest.mark.parametrize(("key", "change"), NUDGES.values(), ids=NUDGES.keys())
def test_parity_notices(compiled: CompiledRanker, key: str, change: Callable[[float], float]) -> None:
    model = open_model(compiled.model)
    other = open_model(nudged(lightgbm.Booster(model_file=str(compiled.model)), key, change))
    rows = verification_rows(model.forest)
    require_parity(model, open_library(compiled).margins, rows, engine="the library")
    with pytest.raises(
        ExportError, match=r"the library does not answer as LightGBM does: \d+ of \d+ verification rows"
    ):
        require_parity(other, open_library(compiled).margins, rows, engine="the library")


def test_parity_notices_categories_that_are_not_truncated(compiled: CompiledRanker) -> None:
    model = open_model(compiled.model)
    assert compiled.library is not None
    wrong = NativeForest(compiled.library, compiled.forest.features, nan_to_zero=[0], categorical=[])
    with pytest.raises(ExportError, match="does not answer as LightGBM does"):
        require_parity(model, wrong.margins, verification_rows(model.forest), engine="the library")


def test_verification_rows_reach_every_leaf(compiled: CompiledRanker) -> None:
    booster = lightgbm.Booster(model_file=str(compiled.model))
    rows = verification_rows(open_model(compiled.model).forest)
    leaves = booster.predict(rows, pred_leaf=True)
    reached = sum(len(np.unique(column)) for column in leaves.T)
    assert reached >= 0.95 * sum(tree["num_leaves"] for tree in booster.dump_model()["tree_info"])


def test_the_models_sigmoid_is_its_probability(compiled: CompiledRanker) -> None:
    from recserve.kernels.rerank import calibrate  # noqa: PLC0415

    booster = lightgbm.Booster(model_file=str(compiled.model))
    rows = training_rows().astype(np.float32)
    relevance = calibrate(
        booster.predict(rows, raw_score=True),
        compiled.forest.calibration.kind,
        np.array(compiled.forest.calibration.x),
        np.array(compiled.forest.calibration.y),
    )
    np.testing.assert_array_max_ulp(relevance, booster.predict(rows), maxulp=1)


@pytest.mark.slow
def test_two_hundred_trees_compile_in_reasonable_time(tmp_path: Path) -> None:
    booster = train(rounds=200, num_leaves=31, min_data_in_leaf=5)
    compiled = compile_ranker(binary_spec(booster), NAMES, tmp_path)
    rows = training_rows().astype(np.float32)
    assert open_library(compiled).margins(rows).tolist() == booster.predict(rows, raw_score=True).tolist()


@pytest.mark.parametrize("broken", [True, False], ids=["failure", "Ctrl-C"])
def test_the_compiler_is_started_no_more_after(broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, compiler = tmp_path / "runs", tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\necho run >> {runs}\nsleep 0.1\nexit {int(broken)}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    rows = training_rows()
    booster = lightgbm.train({**QUIET, "num_leaves": 4}, lightgbm.Dataset(rows, rows[:, 1]), num_boost_round=320)

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(ExportError if broken else KeyboardInterrupt):
        compile_library(booster, tmp_path / "forest.so", on_progress=interrupt)
    assert len(runs.read_text().split()) <= 6  # of 40
