"""Forests of XGBoost and scikit-learn against those libraries, bit for bit."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import treelite
import treelite.sklearn
import xgboost
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)

from recserve.exporters.errors import ExportError
from recserve.exporters.forest import compile_forest
from recserve.exporters.forest_decisions import single_threshold
from recserve.exporters.forest_parity import special_values, verification_rows
from recserve.exporters.source_models import (
    SklearnModel,
    SourceModel,
    TreeliteModel,
    XGBoostModel,
    open_model,
    to_treelite,
)
from recserve.kernels import forest as kernel

Rows = NDArray[np.float32]


def numbers(seed: int = 0, rows: int = 900, columns: int = 6, missing: float = 0.1) -> Rows:
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(rows, columns))
    found[rng.random(found.shape) < 0.1] = 0.0
    found[rng.random(found.shape) < missing] = np.nan
    return found.astype(np.float32)


def target(rows: Rows, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed + 100)
    clean = np.nan_to_num(rows.astype(np.float64))
    found = np.sin(3 * clean) @ rng.normal(size=rows.shape[1]) + np.isnan(rows).sum(1) + rng.normal(size=len(rows))
    return np.asarray(found)


ROWS = numbers()
WHOLE = numbers(missing=0.0)
SCORE = target(ROWS)
EVENT = (SCORE > 1).astype(int)
CLASS = np.digitize(SCORE, [-1, 1])


def with_categories(count: int = 40) -> tuple[Rows, NDArray[np.int64]]:
    rng = np.random.default_rng(5)
    rows = ROWS.copy()
    rows[:, 0] = rng.integers(0, count, len(rows))
    rows[:, 1] = rng.integers(0, 4, len(rows))
    rows[rng.random(len(rows)) < 0.05, 0] = np.nan
    liked = np.nan_to_num(rows[:, 0]).astype(int) % 3 == 0
    return rows, ((2 * liked + SCORE) > 1).astype(int)


def boost(labels: Any = SCORE, rounds: int = 10, rows: Rows = ROWS, **parameters: Any) -> Callable[[], xgboost.Booster]:
    data = {name: parameters.pop(name) for name in ("group", "feature_types") if name in parameters}

    def make() -> xgboost.Booster:
        matrix = xgboost.DMatrix(rows, labels, enable_categorical=True, nthread=1, **data)
        return xgboost.train({"nthread": 1, "seed": 3, "max_depth": 5, **parameters}, matrix, rounds)

    return make


def categorical(**parameters: Any) -> Callable[[], xgboost.Booster]:
    rows, labels = with_categories()
    return boost(labels, rows=rows, feature_types=["c", "c", "q", "q", "q", "q"], **parameters)


def stopped_early() -> xgboost.XGBClassifier:
    model = xgboost.XGBClassifier(n_estimators=60, early_stopping_rounds=2, n_jobs=1, learning_rate=0.6)
    return model.fit(ROWS[:600], EVENT[:600], eval_set=[(ROWS[600:], EVENT[600:])], verbose=False)


XGBOOST: dict[str, Callable[[], Any]] = {
    "hist": boost(),
    "exact": boost(tree_method="exact"),
    "approx": boost(tree_method="approx"),
    "logistic": boost(EVENT, objective="binary:logistic"),
    "base score 0.5, whose log-odds are -0.0": boost(EVENT, objective="binary:logistic", base_score=0.5),
    "base score 0.3": boost(EVENT, objective="binary:logistic", base_score=0.3),
    "base score 1e9": boost(base_score=1e9),
    "poisson": boost(np.abs(SCORE), objective="count:poisson"),
    "ranking": boost(CLASS, objective="rank:ndcg", group=[60] * 15),
    "multiclass": boost(CLASS, objective="multi:softprob", num_class=3),
    "two targets": boost(np.stack([SCORE, -2 * SCORE], axis=1)),
    "vector leaves": boost(np.stack([SCORE, -2 * SCORE], axis=1), multi_strategy="multi_output_tree"),
    "quantiles": boost(objective="reg:quantileerror", quantile_alpha=[0.1, 0.9]),
    "random forest": boost(EVENT, 2, objective="binary:logistic", num_parallel_tree=8, subsample=0.6, eta=1),
    "dart": boost(booster="dart", rate_drop=0.5, rounds=20),
    "dart of classes": boost(CLASS, booster="dart", rate_drop=0.5, objective="multi:softprob", num_class=3),
    "300 leaves": boost(grow_policy="lossguide", max_leaves=300, max_depth=0),
    "many thresholds": boost(rows=ROWS[:, :1], max_depth=0, grow_policy="lossguide", max_leaves=400, max_bin=4000),
    "stumps": boost(max_depth=1, rounds=300),
    "single leaves": boost(gamma=1e9),
    "one-hot categories": categorical(max_cat_to_onehot=100),
    "category sets": categorical(max_cat_to_onehot=1),
    "huge": boost(rows=ROWS * np.float32(1e37)),
    "subnormal": boost(rows=ROWS * np.float32(1e-40)),
    "stopped early": stopped_early,
}
SKLEARN: dict[str, Callable[[], Any]] = {
    "random forest": lambda: RandomForestRegressor(12, random_state=1, n_jobs=2).fit(ROWS, SCORE),
    "random forest of two targets": lambda: RandomForestRegressor(8, random_state=1).fit(
        ROWS, np.stack([SCORE, -SCORE], axis=1)
    ),
    "extra trees": lambda: ExtraTreesRegressor(12, random_state=1, min_samples_leaf=5).fit(ROWS, SCORE),
    "random forest of events": lambda: RandomForestClassifier(12, random_state=1).fit(ROWS, EVENT),
    "extra trees of weighted classes": lambda: ExtraTreesClassifier(
        12, random_state=1, min_samples_leaf=7, class_weight="balanced"
    ).fit(ROWS, CLASS),
    "boosting": lambda: GradientBoostingRegressor(n_estimators=20, random_state=1).fit(WHOLE, SCORE),
    "boosting from zero": lambda: GradientBoostingRegressor(init="zero", n_estimators=20, random_state=1).fit(
        WHOLE, SCORE
    ),
    "boosted events": lambda: GradientBoostingClassifier(n_estimators=20, random_state=1).fit(WHOLE, EVENT),
    "exponential loss": lambda: GradientBoostingClassifier(loss="exponential", n_estimators=20, random_state=1).fit(
        WHOLE, EVENT
    ),
    "boosted classes": lambda: GradientBoostingClassifier(n_estimators=20, random_state=1).fit(WHOLE, CLASS),
    "boosting stopped early": lambda: GradientBoostingRegressor(
        n_estimators=300, n_iter_no_change=2, random_state=1
    ).fit(WHOLE, SCORE),
    "histogram boosting": lambda: HistGradientBoostingRegressor(max_iter=20).fit(ROWS, SCORE),
    "histogram poisson": lambda: HistGradientBoostingRegressor(max_iter=20, loss="poisson").fit(ROWS, np.abs(SCORE)),
    "histogram events": lambda: HistGradientBoostingClassifier(max_iter=20).fit(ROWS, EVENT),
    "histogram classes": lambda: HistGradientBoostingClassifier(max_iter=20).fit(ROWS, CLASS),
}
ZOO = {
    **{f"xgboost, {name}": make for name, make in XGBOOST.items()},
    **{f"scikit-learn, {name}": make for name, make in SKLEARN.items()},
}


@pytest.fixture(scope="module", params=list(ZOO))
def model(request: pytest.FixtureRequest) -> TreeliteModel:
    found = open_model(ZOO[request.param]())
    assert isinstance(found, (XGBoostModel, SklearnModel))
    return found


def bits(margins: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.ascontiguousarray(margins, np.float64).view(np.int64)


def mismatches(model: SourceModel, forest: kernel.Forest, rows: NDArray[Any]) -> int:
    expected = model.margins(rows)
    return int((bits(expected) != bits(forest.predict(rows).reshape(expected.shape))).sum())


def doubles(model: SourceModel, rows: int, seed: int) -> NDArray[np.float64]:
    """float64 rows about the values that decisions turn on: rounding to float32 takes some to the other side."""
    rng = np.random.default_rng(seed)
    columns = []
    for known, thresholds in zip(special_values(model.forest), model.forest.special_values()[0], strict=True):
        exact = np.concatenate((known.astype(np.float64), thresholds))
        pool = [exact, np.nextafter(exact, np.inf), np.nextafter(exact, -np.inf), exact * (1 + 1e-9)]
        columns.append(rng.choice(np.concatenate(pool), rows))
    return np.stack(columns, axis=1)


def test_bits_are_the_librarys(model: TreeliteModel) -> None:
    forest = compile_forest(model.treelite.model)
    rows = verification_rows(model.forest)
    rows = np.concatenate((ROWS[:, : rows.shape[1]], rows[:1500], rows[-1500:]))
    expected = model.margins(rows)
    assert bits(model.treelite.margins(rows)).tolist() == bits(expected).tolist()  # where the library answers
    assert mismatches(model, forest, rows) == 0
    assert mismatches(model, forest, doubles(model, 1500, 0)) == 0


def test_the_library_itself_was_asked(model: TreeliteModel) -> None:
    """The oracle above is the library's public answer, for rows that it accepts."""
    rows = WHOLE[:200, : model.forest.features]
    if isinstance(model, XGBoostModel):
        data = xgboost.DMatrix(rows, feature_types=model.booster.feature_types, enable_categorical=True)
        expected = model.booster.predict(data, output_margin=True)
    else:
        assert isinstance(model, SklearnModel)
        source = model.estimator
        if getattr(source, "loss", "") == "poisson":
            np.testing.assert_allclose(np.exp(model.margins(rows)[:, 0]), source.predict(rows), rtol=1e-12)
            return
        names = ("decision_function", "predict_proba", "predict")
        expected = next(getattr(source, name) for name in names if hasattr(source, name))(rows)
    found = model.margins(rows)
    assert bits(found).tolist() == bits(np.asarray(expected, np.float64).reshape(found.shape)).tolist()


@pytest.mark.parametrize("variant", kernel.CPU_VARIANTS)
def test_every_variant_gives_the_same_bits(tmp_path: Path, variant: str) -> None:
    """Float32 sums from a base score, averages, and LightGBM's sums, in one pass."""
    rows = verification_rows(open_model(ZOO["xgboost, logistic"]()).forest)[:700]
    data = lightgbm.Dataset(ROWS, SCORE)
    models = [open_model(lightgbm.train({"verbose": -1, "num_leaves": 80, "min_data_in_leaf": 2}, data, 5))]
    names = ("xgboost, 300 leaves", "scikit-learn, random forest", "xgboost, multiclass", "scikit-learn, boosting")
    models += [open_model(ZOO[name]()) for name in names]
    sources = [getattr(model, "booster", None) or getattr(model, "estimator", None) for model in models]
    compile_forest(*sources).save(tmp_path / "forest")
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "expected.npy", np.concatenate([model.margins(rows) for model in models], axis=1))
    script = """
import sys, numpy as np
from recserve.kernels.forest import CPU_VARIANT, Forest
folder, variant = sys.argv[1:]
assert CPU_VARIANT == variant
forest = Forest.load(f"{folder}/forest")
rows, expected = (np.load(f"{folder}/{name}.npy") for name in ("rows", "expected"))
for n in (0, 1, 2, 15, 64, 65, 200, 257, 512, 513, 700):
    assert (forest.predict(rows[:n]).view(np.int64) == expected[:n].view(np.int64)).all(), n
"""
    command = [sys.executable, "-c", script, str(tmp_path), variant]
    done = subprocess.run(
        command, env=os.environ | {"RECSERVE_CPU": variant}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@example(1106, "hist", "dart", "binary:logistic", 0.5, 3, 1, True, 0)  # leaves of -0.0 on a margin of -0.0
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    method=st.sampled_from(["hist", "exact", "approx"]),
    booster=st.sampled_from(["gbtree", "dart"]),
    objective=st.sampled_from(["reg:squarederror", "binary:logistic", "count:poisson"]),
    base_score=st.sampled_from([None, 0.5, 0.1, 0.987654321]),
    depth=st.integers(1, 9),
    columns=st.integers(1, 5),
    has_categories=st.booleans(),
    exponent=st.integers(-42, 36),
)
def test_any_small_xgboost_model(
    seed: int,
    method: str,
    booster: str,
    objective: str,
    base_score: float | None,
    depth: int,
    columns: int,
    has_categories: bool,
    exponent: int,
) -> None:
    rows = numbers(seed, 250, columns)
    score = target(rows, seed)
    labels = np.abs(score) if objective == "count:poisson" else (score > 0).astype(int)
    rows = (rows * 10.0**exponent).astype(np.float32)
    parameters: dict[str, Any] = {"tree_method": method, "booster": booster, "objective": objective}
    parameters |= {"max_depth": depth, "min_child_weight": 0.1, "rate_drop": 0.3}
    if base_score is not None:
        parameters["base_score"] = base_score
    if has_categories:
        rows[:, 0] = np.random.default_rng(seed).integers(0, 30, len(rows))
        parameters |= {"feature_types": ["c"] + ["q"] * (columns - 1), "max_cat_to_onehot": 1 + seed % 40}
        parameters["tree_method"] = "hist"
    parameters.pop("rate_drop" if booster == "gbtree" else "", None)
    model = XGBoostModel(boost(labels, 6, rows, **parameters)())
    forest = compile_forest(model.booster)
    assert mismatches(model, forest, np.concatenate((rows, verification_rows(model.forest)[::16]))) == 0
    assert mismatches(model, forest, doubles(model, 300, seed)) == 0


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    kind=st.sampled_from(
        [
            RandomForestRegressor,
            ExtraTreesRegressor,
            RandomForestClassifier,
            GradientBoostingRegressor,
            GradientBoostingClassifier,
            HistGradientBoostingRegressor,
            HistGradientBoostingClassifier,
        ]
    ),
    leaves=st.integers(2, 90),
    columns=st.integers(1, 5),
    exponent=st.integers(-30, 30),
)
def test_any_small_scikit_learn_model(seed: int, kind: type, leaves: int, columns: int, exponent: int) -> None:
    missing = 0.0 if kind.__name__.startswith("Gradient") else 0.1
    rows = (numbers(seed, 250, columns, missing) * 10.0**exponent).astype(np.float32)
    score = target(numbers(seed, 250, columns, missing), seed)
    count = {"max_iter": 6} if kind.__name__.startswith("Hist") else {"n_estimators": 6}
    estimator = kind(random_state=seed, max_leaf_nodes=leaves, **count)
    model = SklearnModel(estimator.fit(rows, (score > 0).astype(int) if hasattr(kind, "predict_proba") else score))
    forest = compile_forest(estimator)
    assert mismatches(model, forest, np.concatenate((rows, verification_rows(model.forest)[::16]))) == 0
    assert mismatches(model, forest, doubles(model, 300, seed)) == 0


@settings(deadline=None)
@given(st.floats(width=32, allow_nan=False))
@example(float(np.finfo(np.float32).max))
def test_thresholds_of_rounded_inputs(threshold: float) -> None:
    limit = single_threshold(np.array([threshold], np.float32))
    for value in np.concatenate((limit, np.nextafter(limit, np.inf), np.nextafter(limit, -np.inf))):
        with np.errstate(over="ignore"):
            assert (np.float32(value) <= np.float32(threshold)) == (value <= limit[0])


# ---------------------------------------------------------------------------------------------------------- conversion


def test_a_model_is_an_object_or_a_file(tmp_path: Path) -> None:
    booster = ZOO["xgboost, logistic"]()
    booster.save_model(tmp_path / "model.json")
    booster.save_model(tmp_path / "model.ubj")
    to_treelite(booster).serialize(tmp_path / "model.treelite")
    files = [tmp_path / f"model.{suffix}" for suffix in ("json", "ubj", "treelite")]
    assert len({compile_forest(each).set_hash for each in (booster, *files)}) == 1
    assert [open_model(file).suffix for file in files] == [".json", ".ubj", ".treelite"]
    assert open_model(files[0]).content == files[0].read_bytes()
    assert [open_model(file).source for file in files] == ["XGBoost"] * 3


def test_checkpoints_remember_what_treelite_drops(tmp_path: Path) -> None:
    """Balanced events give histogram boosting no baseline, so that its checkpoint looks like LightGBM's."""
    rows, labels = WHOLE[:400], np.arange(400) % 2
    for estimator in (
        HistGradientBoostingClassifier(max_iter=3).fit(rows, labels),
        RandomForestClassifier(5, random_state=0, class_weight="balanced").fit(rows, CLASS[:400]),
        GradientBoostingClassifier(n_estimators=5).fit(rows, labels),
    ):
        to_treelite(estimator).serialize(tmp_path / "model.treelite")
        model = open_model(tmp_path / "model.treelite")
        assert model.source == f"scikit-learn {type(estimator).__name__}"
        assert compile_forest(tmp_path / "model.treelite").set_hash == compile_forest(estimator).set_hash
        tried = verification_rows(model.forest)[::8]
        assert bits(model.margins(tried)).tolist() == bits(SklearnModel(estimator).margins(tried)).tolist()


def test_early_stopped_estimators_count_as_far_as_they_predict() -> None:
    model = stopped_early()
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    expected = model.predict(ROWS, output_margin=True).astype(np.float64)
    assert bits(compile_forest(model).predict(ROWS)).tolist() == bits(expected).tolist()
    whole = model.get_booster()
    expected = whole.predict(xgboost.DMatrix(ROWS), output_margin=True).astype(np.float64)
    assert bits(compile_forest(whole).predict(ROWS)).tolist() == bits(expected).tolist()


def test_models_are_left_as_they_were() -> None:
    estimator = RandomForestRegressor(5, n_jobs=3, random_state=0).fit(ROWS, SCORE)
    before = estimator.get_params()
    compile_forest(estimator)
    assert estimator.get_params() == before
    booster = ZOO["xgboost, dart"]()
    raw = booster.save_raw("json")
    compile_forest(booster)
    assert booster.save_raw("json") == raw


def test_gains_and_names() -> None:
    names = [f"f {number}" for number in range(6)]
    data = xgboost.DMatrix(ROWS, SCORE, feature_names=names)
    booster = xgboost.train({"max_depth": 3, "nthread": 1}, data, 5)
    model = open_model(booster)
    score = booster.get_score(importance_type="total_gain")
    np.testing.assert_allclose(model.gains(), [score.get(name, 0.0) for name in names], rtol=1e-5)
    assert model.feature_names == tuple(names)
    assert open_model(to_treelite(booster)).feature_names == tuple(names)


@pytest.mark.parametrize(
    ("name", "slope"),
    [
        ("xgboost, logistic", 1.0),
        ("xgboost, hist", None),
        ("scikit-learn, boosted events", 1.0),
        ("scikit-learn, exponential loss", 2.0),
        ("scikit-learn, histogram events", 1.0),
        ("scikit-learn, random forest of events", None),
    ],
)
def test_binary_models_have_a_sigmoid(name: str, slope: float | None) -> None:
    source = ZOO[name]()
    model = open_model(source)
    assert model.sigmoid == slope
    if slope is not None and hasattr(source, "predict_proba"):
        expected = source.predict_proba(WHOLE)[:, 1]
        np.testing.assert_allclose(1 / (1 + np.exp(-slope * model.margins(WHOLE)[:, 0])), expected, rtol=1e-12)


def test_what_ranks() -> None:
    assert open_model(ZOO["xgboost, ranking"]()).ranking_output == 0
    events = ZOO["scikit-learn, random forest of events"]()
    expected = events.predict_proba(ROWS)[:, 1]
    assert bits(open_model(events).ranking_margins(ROWS)).tolist() == bits(expected).tolist()
    for name, count in (("xgboost, multiclass", 3), ("xgboost, two targets", 2)):
        with pytest.raises(ExportError, match=f"the model has {count} outputs, a ranker has one per objective"):
            _ = open_model(ZOO[name]()).ranking_output


# ------------------------------------------------------------------------------------------------------------- refusals


def edited_threshold() -> treelite.Model:
    found = treelite.frontend.from_xgboost(ZOO["xgboost, hist"]())
    found.get_tree_accessor(0).set_field("threshold", found.get_tree_accessor(0).get_field("threshold") * np.nan)
    return found


def other_operator() -> treelite.Model:
    found = treelite.frontend.from_xgboost(ZOO["xgboost, hist"]())
    cmp = found.get_tree_accessor(1).get_field("cmp")
    found.get_tree_accessor(1).set_field("cmp", np.where(cmp == 2, 4, cmp).astype(np.int8))
    return found


def averaged() -> treelite.Model:
    found = treelite.frontend.from_xgboost(ZOO["xgboost, hist"]())
    found.get_header_accessor().set_field("average_tree_output", np.array([1], np.uint8))
    return found


def from_lightgbm() -> treelite.Model:
    data = lightgbm.Dataset(ROWS, EVENT)
    return treelite.frontend.from_lightgbm(lightgbm.train({"objective": "binary", "verbose": -1}, data, 3))


def with_sets() -> HistGradientBoostingClassifier:
    rows, labels = with_categories()
    return HistGradientBoostingClassifier(max_iter=3, categorical_features=[0]).fit(rows, labels)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "linear boosting": (boost(booster="gblinear", max_depth=None), r"is linear \(booster=gblinear\), not a forest"),
    "untrained booster": (xgboost.Booster, "has no features: train it"),
    "unfitted": (RandomForestRegressor, "the scikit-learn model cannot be used: .*not fitted"),
    "isolation forest": (lambda: IsolationForest(n_estimators=3).fit(WHOLE), "is an isolation forest"),
    "categories of scikit-learn": (with_sets, "takes unseen categories for missing, which Treelite does not hold"),
    "initial estimator": (
        lambda: GradientBoostingRegressor(init=RandomForestRegressor(2), n_estimators=2).fit(WHOLE, SCORE),
        "Custom init estimator not supported",
    ),
    "LightGBM through Treelite": (from_lightgbm, "may come from LightGBM.*give the LightGBM model itself"),
    "unnumbered threshold": (edited_threshold, "tree 0 has a threshold that no number is below"),
    "operator": (other_operator, 'tree 1 compares otherwise than by "<" or "<="'),
    "float32 averages": (averaged, "averages trees of float32 leaves"),
    "something else": (dict, "expected a model of LightGBM, XGBoost, scikit-learn or Treelite, found a builtins.dict"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.filterwarnings("ignore:.*Parameters.*are not used:UserWarning")
def test_what_cannot_be_followed_is_refused(make: Callable[[], Any], message: str) -> None:
    source = make()
    with pytest.raises(ExportError, match=f"model 0: .*{message}"):
        compile_forest(source)


def test_a_tree_that_is_none_is_refused() -> None:
    for field, value in (("cleft", 0), ("cright", 10_000), ("split_index", 99)):
        found = treelite.frontend.from_xgboost(ZOO["xgboost, hist"]())
        tree = found.get_tree_accessor(2)
        changed = np.array(tree.get_field(field))
        changed[0] = value
        tree.set_field(field, changed)
        with pytest.raises(ExportError, match="tree 2 is no tree, or refers to what does not exist"):
            compile_forest(found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"learner": 1}', "XGBoost cannot load the model"),
        (b"{L\x00\x00", "XGBoost cannot load the model"),
        (b"\x80\x05\x95pickle", "is a pickle, which runs code when it is read"),
        (b"\x04\x00\x00\x00\x08\x00", "Treelite cannot load the model"),
        (b"PAR1", "not a LightGBM model text"),
        (b"\xff\xfe", "the model file cannot be read"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(ExportError, match=message):
        compile_forest(tmp_path / "model")


def test_a_base_score_that_treelite_reads_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recserve.exporters.source_models._base_margins", lambda _booster: np.array([7.0]))
    with pytest.raises(ExportError, match=r"XGBoost begins its sums with \[7.0\], Treelite with \["):
        compile_forest(ZOO["xgboost, hist"]())


def test_notes_are_plain_json() -> None:
    found = to_treelite(ZOO["scikit-learn, random forest"]())
    note = json.loads(found.get_header_accessor().get_field("attributes"))["recserve"]
    assert note == {"source": "scikit-learn RandomForestRegressor", "single_inputs": True, "names": []}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_million_scores(model: TreeliteModel) -> None:
    forest = compile_forest(model.treelite.model)
    wanted, scores = 5_000_000 // len(ZOO), 0
    trees = max(len(model.forest.trees), 1)
    size = min(20_000, max(2000, 2_000_000 // trees))
    for seed in itertools.count(1):
        singles = doubles(model, size, seed)
        with np.errstate(over="ignore"):
            assert mismatches(model, forest, singles.astype(np.float32)) == 0
        scores += size * forest.outputs
        if scores >= wanted:
            break
