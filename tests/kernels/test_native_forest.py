"""LightGBM is the oracle; libraries come from the exporter's compiler, or by hand where they must be wrong."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recserve.exporters.lightgbm_text import input_rules, parse_forest
from recserve.exporters.tl2cgen_library import compile_library
from recserve.kernels.native_forest import NativeForest

FEATURES = 4
NEVER_MISSING, WITH_MISSING, CATEGORY, CONSTANT = range(FEATURES)


@pytest.fixture(scope="module")
def booster() -> lightgbm.Booster:
    random = np.random.default_rng(1)
    rows = random.normal(size=(3000, FEATURES)).astype(np.float32)
    rows[random.random(3000) < 0.2, WITH_MISSING] = np.nan
    rows[:, CATEGORY] = random.integers(0, 70, 3000)
    rows[:, CONSTANT] = 5.0
    signal = rows[:, NEVER_MISSING] + np.nan_to_num(rows[:, WITH_MISSING], nan=1.5) + (rows[:, CATEGORY] % 5 == 0)
    labels = (signal + random.normal(size=3000) > 0.5).astype(float)
    data = lightgbm.Dataset(rows, labels, categorical_feature=[CATEGORY])
    parameters = {"objective": "binary", "num_leaves": 31, "verbose": -1, "num_threads": 1, "seed": 1}
    return lightgbm.train(parameters, data, 12)


@pytest.fixture(scope="module")
def library(booster: lightgbm.Booster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forest") / "forest.so"
    compile_library(booster, path)
    return path


@pytest.fixture(scope="module")
def forest(booster: lightgbm.Booster, library: Path) -> NativeForest:
    rules = input_rules(parse_forest(booster.model_to_string()))
    assert rules.nan_to_zero == (NEVER_MISSING,)
    assert rules.categorical == (CATEGORY,)
    return NativeForest(library, FEATURES, rules.nan_to_zero, rules.categorical)


def require_equal(forest: NativeForest, booster: lightgbm.Booster, rows: NDArray[np.float32]) -> None:
    expected = booster.predict(rows, raw_score=True)
    np.testing.assert_array_equal(forest.margins(rows).view(np.int64), expected.view(np.int64))


def test_margins_equal_lightgbm(forest: NativeForest, booster: lightgbm.Booster) -> None:
    rows = np.random.default_rng(2).normal(size=(2000, FEATURES)).astype(np.float32)
    rows[:, CATEGORY] = np.random.default_rng(3).integers(-2, 75, 2000)
    require_equal(forest, booster, rows)


NUMBERS = [0.0, -0.0, 1e-35, -1e-35, 1.1e-35, -1.1e-35, 1e-45, 3e38, -3e38, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("feature", [NEVER_MISSING, WITH_MISSING, CONSTANT])
def test_special_numbers(forest: NativeForest, booster: lightgbm.Booster, feature: int, number: float) -> None:
    rows = np.random.default_rng(4).normal(size=(200, FEATURES)).astype(np.float32)
    rows[:, CATEGORY] = np.arange(200) % 70
    rows[:, feature] = number
    require_equal(forest, booster, rows)


CATEGORIES = [-0.5, -1.0, -1.5, 0.9, 5.99, 69.0, 70.0, 2.0**24, 2.0**24 + 2, 2.0**31, 2.0**32, 1e30, -1e30]


@pytest.mark.parametrize("category", [*CATEGORIES, np.inf, -np.inf, np.nan])
def test_odd_categories(forest: NativeForest, booster: lightgbm.Booster, category: float) -> None:
    rows = np.random.default_rng(5).normal(size=(200, FEATURES)).astype(np.float32)
    rows[:, CATEGORY] = category
    require_equal(forest, booster, rows)


any_float32 = st.floats(width=32) | st.integers(-2, 75).map(float)


@settings(deadline=None, max_examples=200)
@given(values=st.lists(any_float32, min_size=FEATURES, max_size=FEATURES))
def test_any_float32(forest: NativeForest, booster: lightgbm.Booster, values: list[float]) -> None:
    require_equal(forest, booster, np.array([values], np.float32))


def test_rows_do_not_depend_on_one_another(forest: NativeForest) -> None:
    rows = np.random.default_rng(6).normal(size=(50, FEATURES)).astype(np.float32)
    rows[::3, WITH_MISSING] = np.nan  # what an entry held for the last row must not show in the next
    together = forest.margins(rows)
    assert together.tolist() == [forest.margins(rows[i : i + 1])[0] for i in range(50)]
    assert forest.margins(rows[:0]).shape == (0,)


def test_threads_do_not_disturb_one_another(forest: NativeForest, booster: lightgbm.Booster) -> None:
    blocks = np.random.default_rng(7).normal(size=(8, 400, FEATURES)).astype(np.float32)
    expected = [booster.predict(block, raw_score=True).tolist() for block in blocks]
    found: list[list[float]] = [[] for _ in blocks]

    def work(job: int) -> None:
        for _ in range(20):
            found[job] = forest.margins(blocks[job]).tolist()

    threads = [threading.Thread(target=work, args=(job,)) for job in range(len(blocks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_several_libraries_at_once(forest: NativeForest, booster: lightgbm.Booster, tmp_path: Path) -> None:
    rows = np.random.default_rng(8).normal(size=(100, FEATURES)).astype(np.float32)
    shorter = lightgbm.Booster(model_str=booster.model_to_string(num_iteration=3))
    compile_library(shorter, tmp_path / "shorter.so")
    require_equal(NativeForest(tmp_path / "shorter.so", FEATURES, [NEVER_MISSING], [CATEGORY]), shorter, rows)
    require_equal(forest, booster, rows)


def test_a_replaced_file_is_loaded_anew(booster: lightgbm.Booster, library: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(9).normal(size=(100, FEATURES)).astype(np.float32)
    path = tmp_path / "forest.so"
    shutil.copy(library, path)
    old = NativeForest(path, FEATURES, [NEVER_MISSING], [CATEGORY])
    path.unlink()
    shorter = lightgbm.Booster(model_str=booster.model_to_string(num_iteration=3))
    compile_library(shorter, path)
    require_equal(NativeForest(path, FEATURES, [NEVER_MISSING], [CATEGORY]), shorter, rows)
    require_equal(old, booster, rows)


def test_rejects_matrices_that_it_cannot_read(forest: NativeForest) -> None:
    with pytest.raises(TypeError, match="expected dtype float32, found float64"):
        forest.margins(np.zeros((1, FEATURES)))
    with pytest.raises(ValueError, match=r"expected shape \[any, 4\], found \[1, 5\]"):
        forest.margins(np.zeros((1, FEATURES + 1), np.float32))
    with pytest.raises(ValueError, match="C-contiguous"):
        forest.margins(np.zeros((FEATURES, 2), np.float32).T)


@pytest.mark.parametrize(
    ("nan_to_zero", "categorical", "message"),
    [
        ([FEATURES], [], "nan_to_zero: 4 is not one of the 4 features"),
        ([], [-1], "categorical: -1 is not one"),
        ([1], [1], "feature 1 is listed twice"),
    ],
)
def test_rejects_rules_that_do_not_fit(
    library: Path, nan_to_zero: list[int], categorical: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        NativeForest(library, FEATURES, nan_to_zero, categorical)


def test_rejects_another_number_of_features(library: Path) -> None:
    with pytest.raises(ValueError, match="features: expected 5, found 4"):
        NativeForest(library, FEATURES + 1)


def test_rejects_what_is_no_library(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        NativeForest(tmp_path / "missing.so", 1)
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(OSError, match=r"text\.so cannot be loaded"):
        NativeForest(tmp_path / "text.so", 1)


def compiled(folder: Path, **replacements: str) -> Path:
    """A hand-written library like TL2cgen's, but for what is replaced; empty text leaves a function out."""
    functions = {
        "get_num_target": "int get_num_target(void) { return 1; }",
        "get_num_class": "void get_num_class(int *out) { *out = 1; }",
        "get_num_feature": "int get_num_feature(void) { return 1; }",
        "get_threshold_type": 'const char *get_threshold_type(void) { return "float64"; }',
        "get_leaf_output_type": 'const char *get_leaf_output_type(void) { return "float64"; }',
        "predict": "void predict(double *row, int pred_margin, double *result) { *result += *row; }",
    }
    source, library = folder / "forest.c", folder / "forest.so"
    source.write_text("\n".join({**functions, **replacements}.values()))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def test_hand_written_library_is_the_contract(tmp_path: Path) -> None:
    assert NativeForest(compiled(tmp_path), 1).margins(np.array([[2.5]], np.float32)).tolist() == [2.5]


WRONG = {
    "predict": ("", "no symbol 'predict'"),
    "get_num_feature": ("", "no symbol 'get_num_feature'"),
    "get_num_target": ("int get_num_target(void) { return 2; }", "targets: expected 1, found 2"),
    "get_num_class": ("void get_num_class(int *out) { *out = 3; }", "outputs: expected 1, found 3"),
    "get_threshold_type": (
        'const char *get_threshold_type(void) { return "float32"; }',
        "threshold type: expected float64, found float32",
    ),
    "get_leaf_output_type": (
        'const char *get_leaf_output_type(void) { return "float32"; }',
        "leaf type: expected float64, found float32",
    ),
}


@pytest.mark.parametrize("function", WRONG)
def test_rejects_libraries_of_another_kind(tmp_path: Path, function: str) -> None:
    source, message = WRONG[function]
    with pytest.raises(ValueError, match=message):
        NativeForest(compiled(tmp_path, **{function: source}), 1)


@pytest.fixture
def open_descriptors() -> Iterator[None]:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    yield
    assert count() == before


@pytest.mark.usefixtures("open_descriptors")
def test_refused_and_dropped_forests_leave_nothing_open(library: Path) -> None:
    for _ in range(3):
        NativeForest(library, FEATURES)
        with pytest.raises(ValueError, match="features"):
            NativeForest(library, FEATURES + 1)
