"""Bundles whose rankers come from XGBoost, scikit-learn and Treelite beside LightGBM: the libraries are the oracles."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost
from numpy.typing import NDArray
from rich.console import Console
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

from recserve.bundle.v1.manifest_pb2 import CalibrationKind, ModelKind
from recserve.exporters.errors import ExportError
from recserve.exporters.export import export_bundle
from recserve.exporters.inspect import diff_bundles, inspect_bundle, verify_bundle
from recserve.exporters.report import ExportReport
from recserve.exporters.source_models import to_treelite
from recserve.exporters.spec import CalibrationData, RankerSpec
from recserve.server.bundle.errors import BundleUnsupportedError
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.snapshot import Snapshot, open_snapshot
from recserve.server.pipeline.golden import replay
from recserve.server.pipeline.pipeline import Pipeline, open_pipeline
from recserve.server.pipeline.ranker import has_engine
from recserve.server.pipeline.types import Query, UserState

Rows = NDArray[np.float32]
Work = Callable[[Pipeline, Snapshot, int, int], tuple[Query, UserState]]


@dataclass(frozen=True, slots=True)
class Mixed:
    """An export, and the models that it was made of."""

    path: Path
    report: ExportReport
    boosted: xgboost.XGBClassifier
    forest: RandomForestClassifier
    histogram: HistGradientBoostingClassifier


@pytest.fixture(name="mixed", scope="module")
def fixture_mixed(shop: Any, complete: Any, tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    root = tmp_path_factory.mktemp("mixed")
    rows: Rows = np.load(shop.root / "calibration_features.npy")
    labels = np.load(shop.root / "calibration_labels.npy")
    data = CalibrationData(features=rows, labels=labels)
    boosted = xgboost.XGBClassifier(n_estimators=12, max_depth=4, n_jobs=1).fit(rows, labels)
    forest = RandomForestClassifier(10, max_depth=7, random_state=0).fit(rows, labels)
    histogram = HistGradientBoostingClassifier(max_iter=8).fit(rows, labels)
    boosted.save_model(root / "boosted.json")
    to_treelite(histogram).serialize(root / "histogram.treelite")
    click = next(ranker for ranker in shop.spec.rankers if ranker.objective == "click")
    rankers = [
        click,
        RankerSpec(objective="boosted", model=root / "boosted.json", tl2cgen=True),
        RankerSpec(objective="forest", model=forest, calibration="isotonic", calibration_data=data),
        RankerSpec(objective="histogram", model=root / "histogram.treelite"),
    ]
    console = Console(quiet=True)
    spec = replace(shop.spec, rankers=rankers)
    report = export_bundle(spec, root / "bundle", snapshot=complete.snapshot, console=console)
    return Mixed(root / "bundle", report, boosted, forest, histogram)


def test_margins_are_those_of_the_libraries(complete: Any, mixed: Mixed, shop_work: Work) -> None:
    pipeline, users = open_pipeline(open_bundle(mixed.path)), open_snapshot(complete.snapshot)
    work = [shop_work(pipeline, users, row, 3000 + row) for row in range(0, users.size, 5)]
    subjects, candidates = map(list, zip(*pipeline.retrieve(work), strict=True))
    inputs = pipeline.ranking_inputs(subjects, candidates)
    matrix = inputs.matrix()
    assert np.isfinite(matrix).any()
    ranker = pipeline.engines.ranker
    assert ranker is not None
    assert ranker.objectives == ("click", "boosted", "forest", "histogram")
    expected = [
        mixed.boosted.predict(matrix, output_margin=True),
        mixed.forest.predict_proba(matrix)[:, 1],
        mixed.histogram.decision_function(matrix),
    ]
    for column, margins in enumerate(expected, start=1):
        assert ranker.score(inputs)[:, column].tobytes() == np.asarray(margins, np.float64).tobytes()
        assert ranker.margins(matrix)[:, column].tobytes() == np.asarray(margins, np.float64).tobytes()
    probability = ranker.relevance(ranker.margins(matrix))[:, 1]
    np.testing.assert_allclose(probability, mixed.boosted.predict_proba(matrix)[:, 1], rtol=1e-5)


def test_the_manifest_says_what_trained_them(mixed: Mixed) -> None:
    manifest = mixed.report.manifest
    assert [(forest.model, forest.kind, forest.source) for forest in manifest.forests] == [
        ("ranker/model.click.txt", ModelKind.LIGHTGBM, "LightGBM"),
        ("ranker/model.boosted.json", ModelKind.XGBOOST, "XGBoost"),
        ("ranker/model.forest.treelite", ModelKind.TREELITE, "scikit-learn RandomForestClassifier"),
        ("ranker/model.histogram.treelite", ModelKind.TREELITE, "scikit-learn HistGradientBoostingClassifier"),
    ]
    kinds = [forest.calibration.kind for forest in manifest.forests]
    assert kinds == [
        CalibrationKind.SIGMOID,
        CalibrationKind.SIGMOID,
        CalibrationKind.ISOTONIC,
        CalibrationKind.SIGMOID,
    ]
    assert [len(forest.native) for forest in manifest.forests] == [1, 0, 0, 0]


def test_the_report_says_that_there_is_no_library(mixed: Mixed) -> None:
    found = {check.part: (check.against, check.result) for check in mixed.report.checks}
    assert found["tl2cgen click"][1] == "equal bit for bit"
    reason = "the engine follows LightGBM, and this model is XGBoost's"
    assert found["tl2cgen boosted"] == (reason, "no library, bitsliced only")
    assert "tl2cgen forest" not in found  # it was not asked for
    assert "scikit-learn RandomForestClassifier" in (mixed.path / "report.html").read_text()


def test_the_engine_that_it_lacks_is_an_error(mixed: Mixed) -> None:
    bundle = open_bundle(mixed.path)
    assert has_engine(bundle.manifest, "bitsliced")
    assert not has_engine(bundle.manifest, "tl2cgen")
    with pytest.raises(BundleUnsupportedError, match=r"no library of objective 'boosted' \(XGBoost\).*\"tl2cgen\""):
        open_pipeline(bundle, ranker_engine="tl2cgen", allow_native_code=True)


def text_of(shown: Any) -> str:
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(shown)
    return console.export_text()


def test_inspect_verify_and_diff(complete: Any, mixed: Mixed) -> None:
    assert "scikit-learn RandomForestClassifier" in text_of(inspect_bundle(mixed.path))
    verified = text_of(verify_bundle(mixed.path, allow_native_code=True))
    assert "golden requests answered by bitsliced in" in verified
    assert "XGBoost, 12 trees, 19 features" in text_of(diff_bundles(complete.path, mixed.path))
    assert replay(open_pipeline(open_bundle(mixed.path)), same_cpu=True)


def test_a_bundle_is_served_without_the_libraries_that_trained_it(mixed: Mixed) -> None:
    """What the server reads are arrays."""
    script = """
import pathlib, sys
for name in ("lightgbm", "xgboost", "sklearn", "treelite", "tl2cgen"):
    sys.modules[name] = None
from recserve.server.bundle.reader import open_bundle
from recserve.server.pipeline.pipeline import open_pipeline
print(open_pipeline(open_bundle(pathlib.Path(sys.argv[1]))).objectives)
"""
    command = [sys.executable, "-c", script, str(mixed.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "'boosted'" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda rows, labels: xgboost.XGBClassifier(n_estimators=2, n_jobs=1).fit(rows, labels + (rows[:, 0] > 0)),
            "ranker 'click': the model has 3 outputs, a ranker has one per objective",
        ),
        (
            lambda rows, labels: xgboost.XGBClassifier(n_estimators=2, n_jobs=1).fit(rows[:, 1:], labels),
            r"ranker 'click': the model was trained on 18 features, features\.json defines 19",
        ),
        (
            lambda rows, labels: xgboost.train(
                {"nthread": 1}, xgboost.DMatrix(rows, labels, feature_names=[f"f{i}" for i in range(19)]), 2
            ),
            "ranker 'click': the model was trained with other features: column 0 is 'f0' there",
        ),
        (
            lambda rows, labels: xgboost.XGBRanker(n_estimators=2, n_jobs=1).fit(rows, labels, group=[len(rows)]),
            "ranker 'click': calibration \"model\" needs a binary model, .*'rank:ndcg'",
        ),
    ],
)
def test_what_cannot_rank_is_refused(
    shop: Any, complete: Any, tmp_path: Path, quiet: Console, make: Callable[..., Any], message: str
) -> None:
    rows = np.nan_to_num(np.load(shop.root / "calibration_features.npy"))
    labels = np.load(shop.root / "calibration_labels.npy").astype(int)
    spec = replace(shop.spec, rankers=[RankerSpec(objective="click", model=make(rows, labels))])
    with pytest.raises(ExportError, match=message):
        export_bundle(spec, tmp_path / "bundle", snapshot=complete.snapshot, console=quiet)
