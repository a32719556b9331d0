"""Compiled forests against LightGBM, bit for bit."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recserve.exporters.errors import ExportError
from recserve.exporters.forest import compile_forest
from recserve.exporters.forest_parity import special_values, verification_rows
from recserve.exporters.lightgbm_forest import lightgbm_forest
from recserve.exporters.lightgbm_text import parse_forest
from recserve.kernels import forest as kernel

Make = Callable[[], lightgbm.Booster]
TINY = [0.0, -0.0, 1e-35, -1e-35, 1.1e-35, -1.1e-35, 1e-40, 5e-324, 1e-300]
NEAR_CATEGORIES = [-0.5, 0.5, -1.0, -0.99, -1.5, 0.99, 2.0**31 - 1, 2.0**31, -(2.0**31), 2.0**32, 2.0**63]
HUGE = [np.inf, -np.inf, np.nan, 1e300, -1e300, 1e35, 3.4e38]
SPECIAL = np.array(TINY + NEAR_CATEGORIES + HUGE)
QUIET = {"verbose": -1, "num_threads": 1, "seed": 7, "min_data_in_leaf": 3, "deterministic": True}


def numbers(seed: int = 0, rows: int = 1500, columns: int = 8, missing: float = 0.1) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(rows, columns))
    found[rng.random(found.shape) < missing] = np.nan
    found[rng.random(found.shape) < 0.1] = 0.0
    return found


def target(rows: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed + 100)
    clean = np.nan_to_num(rows)
    return np.asarray(
        np.sin(3 * clean) @ rng.normal(size=rows.shape[1]) + np.isnan(rows).sum(1) + rng.normal(size=len(rows))
    )


def train(rows: NDArray[Any], labels: NDArray[Any], rounds: int = 20, **parameters: Any) -> lightgbm.Booster:
    settings_, data = {**QUIET, **parameters}, {}
    for name in ("group", "categorical_feature"):
        if name in settings_:
            data[name] = settings_.pop(name)
    return lightgbm.train(settings_, lightgbm.Dataset(rows, labels, params=settings_, **data), rounds)


def plain(columns: int = 8, missing: float = 0.1, **parameters: Any) -> Make:
    def make() -> lightgbm.Booster:
        rows = numbers(columns=columns, missing=missing)
        return train(rows, target(rows), **parameters)

    return make


def categories(count: int, **parameters: Any) -> Make:
    def make() -> lightgbm.Booster:
        rng = np.random.default_rng(3)
        rows = numbers(3, rows=4000)
        rows[:, 0] = rng.integers(0, count, len(rows))
        rows[:, 1] = rng.integers(0, 5, len(rows)) * 7
        rows[rng.random(len(rows)) < 0.05, 0] = np.nan
        effect = rng.normal(size=count) * 3
        labels = target(rows) + np.where(np.isnan(rows[:, 0]), 1, effect[np.nan_to_num(rows[:, 0]).astype(int)])
        shape = {"min_data_per_group": 1, "cat_smooth": 1, "cat_l2": 0.1, "max_cat_threshold": 256}
        return train(rows, labels, categorical_feature=[0, 1], **{**shape, **parameters})

    return make


def scaled(factor: float) -> Make:
    def make() -> lightgbm.Booster:
        rows = numbers() * factor
        return train(rows, target(numbers()))

    return make


def multiclass() -> lightgbm.Booster:
    rows = numbers()
    labels = np.digitize(target(rows), [-2, 0, 2])
    return train(rows, labels, objective="multiclass", num_class=4)


def ranking() -> lightgbm.Booster:
    rows = numbers()
    labels = np.digitize(target(rows), [0, 2])
    return train(rows, labels, objective="lambdarank", group=[50] * (len(rows) // 50), num_leaves=64)


def binary(**parameters: Any) -> Make:
    def make() -> lightgbm.Booster:
        rows = numbers()
        return train(rows, target(rows) > 1, objective="binary", **parameters)

    return make


def single_leaves() -> lightgbm.Booster:
    rows = numbers()
    return train(rows, target(rows), min_data_in_leaf=2000, rounds=4)


def constant_features() -> lightgbm.Booster:
    rows = numbers()
    rows[:, ::2] = 4.0
    return train(rows, target(rows))


def stopped_early() -> lightgbm.Booster:
    rows = numbers()
    data = lightgbm.Dataset(rows[:1000], target(rows)[:1000])
    valid = lightgbm.Dataset(rows[1000:], target(rows)[1000:], reference=data)
    stop = lightgbm.early_stopping(3, verbose=False)
    return lightgbm.train(
        {**QUIET, "learning_rate": 0.5, "metric": "l2"}, data, 60, valid_sets=[valid], callbacks=[stop]
    )


ZOO: dict[str, Make] = {
    "missing none": plain(use_missing=False),
    "missing nan": plain(),
    "missing zero": plain(zero_as_missing=True),
    "no missing values": plain(missing=0.0),
    "stumps": plain(num_leaves=2, rounds=50),
    "31 leaves": plain(num_leaves=31),
    "64 leaves": plain(num_leaves=64),
    "65 leaves": plain(num_leaves=65),
    "255 leaves": plain(num_leaves=255),
    "1,000 leaves": plain(num_leaves=1000, min_data_in_leaf=1),
    "deep": plain(num_leaves=200, max_depth=-1, min_data_in_leaf=1, columns=2),
    "many thresholds": plain(max_bin=2000, num_leaves=64, columns=2, rounds=60),
    "many thresholds, zeros missing": plain(max_bin=2000, num_leaves=64, columns=2, rounds=60, zero_as_missing=True),
    "1 feature": plain(columns=1),
    "1,000 features": plain(columns=1000, rounds=10, feature_fraction=0.3),
    "thousands of trees": plain(num_leaves=4, rounds=3000, learning_rate=0.01),
    "one-hot": categories(4, max_cat_to_onehot=8),
    "many-vs-many": categories(40),
    "1,000 categories": categories(1000, num_leaves=64),
    "tiny thresholds": scaled(1e-35),
    "subnormal thresholds": scaled(1e-40),
    "huge thresholds": scaled(1e300),
    "dart": plain(boosting="dart", drop_rate=0.5),
    "random forest": plain(boosting="rf", bagging_freq=1, bagging_fraction=0.6),
    "goss": plain(data_sample_strategy="goss"),
    "l1": plain(objective="l1"),
    "binary": binary(),
    "binary without average": binary(boost_from_average=False),
    "multiclass": multiclass,
    "lambdarank": ranking,
    "single leaves": single_leaves,
    "constant features": constant_features,
    "stopped early": stopped_early,
    "extra trees": plain(extra_trees=True, path_smooth=1.0),
    "monotone": plain(monotone_constraints=[1, -1, 0, 0, 0, 0, 0, 0]),
}


@pytest.fixture(scope="module", params=list(ZOO))
def booster(request: pytest.FixtureRequest) -> lightgbm.Booster:
    return ZOO[request.param]()


def probes(booster: lightgbm.Booster, rows: int = 3000, seed: int = 0) -> NDArray[np.float64]:
    """float64 rows: values that decisions turn on, with their neighbours as doubles; what is special; and noise."""
    text = parse_forest(booster.model_to_string())
    rng = np.random.default_rng(seed)
    columns = []
    for feature, known in enumerate(special_values(lightgbm_forest(text))):
        of_feature = [tree.thresholds[(tree.features == feature) & ~tree.categorical] for tree in text.trees]
        exact = np.concatenate([np.zeros(0), *of_feature])
        pool = [known.astype(np.float64), SPECIAL, exact, np.nextafter(exact, np.inf), np.nextafter(exact, -np.inf)]
        pool.append(rng.normal(size=50) * 10.0 ** rng.integers(-3, 4))
        columns.append(rng.choice(np.concatenate(pool), rows))
    return np.stack(columns, axis=1)


def mismatches(booster: lightgbm.Booster, forest: kernel.Forest, rows: NDArray[Any]) -> int:
    expected = np.asarray(booster.predict(rows, raw_score=True), np.float64)
    found = forest.predict(rows)
    assert found.shape == expected.shape
    return int((expected.view(np.int64) != found.view(np.int64)).sum())


def test_bits_are_lightgbms(booster: lightgbm.Booster) -> None:
    forest = compile_forest(booster)
    doubles = probes(booster)
    with np.errstate(over="ignore"):
        singles = doubles.astype(np.float32)
    assert mismatches(booster, forest, doubles) == 0
    assert mismatches(booster, forest, singles) == 0
    assert (
        mismatches(booster, forest, verification_rows(lightgbm_forest(parse_forest(booster.model_to_string())))[:3000])
        == 0
    )


@pytest.mark.parametrize("variant", kernel.CPU_VARIANTS)
def test_every_variant_gives_lightgbms_bits(tmp_path: Path, variant: str) -> None:
    names = ("missing zero", "255 leaves", "1,000 categories", "multiclass", "many thresholds", "single leaves")
    for number, name in enumerate(names):
        booster = ZOO[name]()
        rows = probes(booster, 700)
        compile_forest(booster).save(tmp_path / str(number))
        np.save(tmp_path / f"{number}.rows.npy", rows)
        np.save(tmp_path / f"{number}.expected.npy", booster.predict(rows, raw_score=True))
    script = """
import sys, numpy as np
from recserve.kernels.forest import CPU_VARIANT, Forest
folder, count, variant = sys.argv[1], int(sys.argv[2]), sys.argv[3]
assert CPU_VARIANT == variant
for number in range(count):
    forest, rows = Forest.load(f"{folder}/{number}"), np.load(f"{folder}/{number}.rows.npy")
    expected = np.load(f"{folder}/{number}.expected.npy")
    for n in (0, 1, 15, 64, 65, 200, 256, 257, 512, 513, 700):
        found = forest.predict(rows[:n])
        assert found.shape == expected[:n].shape
        assert (found.view(np.int64) == expected[:n].view(np.int64)).all(), (number, n)
"""
    environment = os.environ | {"RECSERVE_CPU": variant}
    command = [sys.executable, "-c", script, str(tmp_path), str(len(names)), variant]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_models_in_one_pass_answer_as_alone() -> None:
    models = [ZOO[name]() for name in ("missing zero", "multiclass", "65 leaves", "missing none")]
    together = compile_forest(*models)
    rows = probes(models[0])
    expected = np.concatenate([model.predict(rows, raw_score=True).reshape(len(rows), -1) for model in models], axis=1)
    assert (together.predict(rows).view(np.int64) == expected.view(np.int64)).all()
    assert together.forest_bounds.tolist() == [0, 1, 5, 6, 7]


def test_a_model_is_a_booster_a_file_or_its_text(tmp_path: Path) -> None:
    booster = ZOO["missing nan"]()
    path = tmp_path / "model.txt"
    booster.save_model(path)
    compiled = [compile_forest(booster), compile_forest(path), compile_forest(booster.model_to_string())]
    assert len({forest.set_hash for forest in compiled}) == 1


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    leaves=st.integers(2, 90),
    columns=st.integers(1, 6),
    missing=st.sampled_from([{}, {"use_missing": False}, {"zero_as_missing": True}]),
    categorical=st.booleans(),
    exponent=st.integers(-40, 30),
)
def test_any_small_model(
    seed: int, leaves: int, columns: int, missing: dict[str, bool], categorical: bool, exponent: int
) -> None:
    rows = numbers(seed, rows=300, columns=columns) * 10.0**exponent
    labels = target(numbers(seed, rows=300, columns=columns), seed)
    parameters: dict[str, Any] = {"num_leaves": leaves, "min_data_in_leaf": 1, "rounds": 5, **missing}
    if categorical:
        rows[:, 0] = np.random.default_rng(seed).integers(0, 30, len(rows))
        parameters |= {"categorical_feature": [0], "min_data_per_group": 1, "cat_smooth": 0.1}
    booster = train(rows, labels, **parameters)
    assert mismatches(booster, compile_forest(booster), probes(booster, 600, seed)) == 0


def test_linear_leaves_are_refused() -> None:
    rows = numbers(missing=0)
    booster = train(rows, target(rows), linear_tree=True)
    with pytest.raises(ExportError, match=r"model 0: tree \d+ has linear leaves.*linear_tree=false"):
        compile_forest(booster)


def test_models_of_different_features_are_refused() -> None:
    with pytest.raises(ExportError, match=r"the models have \[1, 8\] features"):
        compile_forest(ZOO["1 feature"](), ZOO["missing nan"]())


def test_no_model_is_refused() -> None:
    with pytest.raises(ExportError, match="expected at least one"):
        compile_forest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("left_child=", "left_child=0 "),
        ("left_child=1", "left_child=0"),
        ("right_child=", "right_child=9"),
        ("threshold=", "threshold=nan "),
    ],
)
def test_edited_texts_are_refused(old: str, new: str) -> None:
    text = ZOO["missing nan"]().model_to_string()
    header, block = text.split("\n\n", 1)
    sizes = header.split("tree_sizes=")[1].split("\n")[0].split(" ")
    changed = block.replace(old, new, 1)
    longer = str(int(sizes[0]) + len(changed) - len(block))
    with pytest.raises(ExportError, match="truncated or edited"):
        compile_forest(header.replace(f"tree_sizes={sizes[0]}", f"tree_sizes={longer}") + "\n\n" + changed)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # LightGBM's own predictions of thousands of trees take minutes on a busy machine
def test_ten_million_scores(booster: lightgbm.Booster) -> None:
    forest = compile_forest(booster)
    outputs = forest.outputs
    wanted = 10_500_000 // len(ZOO)
    trees = max(booster.num_trees(), 1)
    size = min(20_000, max(2000, 4_000_000 // trees))
    scores = 0
    for seed in itertools.count(1):
        assert mismatches(booster, forest, probes(booster, min(size, wanted), seed)) == 0
        scores += size * outputs
        if scores >= wanted:
            break
