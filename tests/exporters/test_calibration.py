from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from recserve.bundle.v1.manifest_pb2 import Calibration, CalibrationKind
from recserve.exporters.calibration import fit_calibration, model_calibration
from recserve.exporters.errors import ExportError
from recserve.kernels.rerank import calibrate


def relevance_of(calibration: Calibration, margins: NDArray[np.float64]) -> NDArray[np.float64]:
    return calibrate(margins, calibration.kind, np.array(calibration.x), np.array(calibration.y, np.float64))


def sample(
    n: int = 20_000, slope: float = 0.7, intercept: float = -1.2
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    random = np.random.default_rng(1)
    margins = random.normal(scale=3.0, size=n)
    return margins, (random.random(n) < 1 / (1 + np.exp(-(slope * margins + intercept)))).astype(float)


def test_platt_finds_the_sigmoid_that_made_the_labels() -> None:
    calibration = fit_calibration("platt", *sample())
    assert calibration.kind == CalibrationKind.SIGMOID
    np.testing.assert_allclose(calibration.x, [0.7, -1.2], atol=0.05)


def test_platt_equals_logistic_regression_where_smoothing_does_not_matter() -> None:
    margins, labels = sample()
    regression = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(margins[:, np.newaxis], labels)
    expected = [regression.coef_[0, 0], regression.intercept_[0]]
    np.testing.assert_allclose(fit_calibration("platt", margins, labels).x, expected, rtol=1e-3)


def test_platt_does_not_depend_on_the_margins_scale() -> None:
    margins, labels = sample(2000)
    expected = relevance_of(fit_calibration("platt", margins, labels), margins)
    for scale, shift in ((1e-9, 0.0), (1e9, 0.0), (1.0, 1e6)):
        moved = margins * scale + shift
        np.testing.assert_allclose(relevance_of(fit_calibration("platt", moved, labels), moved), expected, rtol=1e-6)


def test_platt_of_separated_classes_is_finite() -> None:
    margins, labels = np.arange(10.0), np.repeat([0.0, 1.0], 5)
    relevance = relevance_of(fit_calibration("platt", margins, labels), margins)
    targets = np.where(labels == 1.0, 6 / 7, 1 / 7)
    assert (np.diff(relevance) > 0).all()
    # Where the log loss is least, its derivatives by intercept and slope are zero.
    np.testing.assert_allclose(
        [np.sum(relevance), margins @ relevance], [np.sum(targets), margins @ targets], rtol=1e-9
    )


def test_isotonic_averages_violators() -> None:
    """Pools of adjacent violators: (0), (1, 0), (1) -> 0, 1/2, 1; the ends held 1/6 away from 0 and 1 by four rows."""
    calibration = fit_calibration("isotonic", np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 0.0, 1.0]))
    assert calibration.kind == CalibrationKind.ISOTONIC
    np.testing.assert_allclose(
        relevance_of(calibration, np.array([-1.0, 0.0, 1.0, 1.5, 2.0, 3.0, 9.0])),
        [1 / 6, 1 / 6, 0.5, 0.5, 0.5, 5 / 6, 5 / 6],
    )


@settings(deadline=None, max_examples=60)
@example([(0.0, False), (3.45e-205, True)], "platt")
@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3), st.booleans()), min_size=2, max_size=40),
    st.sampled_from(["platt", "isotonic"]),
)
def test_what_is_fitted_rises_within_the_open_interval(rows: list[tuple[float, bool]], kind: str) -> None:
    margins = np.array([margin for margin, _ in rows])
    try:
        calibration = fit_calibration(kind, margins, np.array([float(label) for _, label in rows]))
    except ExportError:
        return
    relevance = relevance_of(calibration, np.sort(np.concatenate((margins, [-1e9, 0.0, 1e9]))))
    assert (np.diff(relevance) >= 0).all()
    assert relevance[0] < relevance[-1]
    assert relevance.min() > 0
    assert relevance.max() < 1


REFUSED = {
    "one class": ([0.0, 1.0], [1.0, 1.0], "all 2 labels are 1; both classes"),
    "other labels": ([0.0, 1.0], [0.0, 0.5], r"must be 0 or 1, row 1 has 0\.5"),
    "NaN label": ([0.0, 1.0], [0.0, np.nan], "must be 0 or 1, row 1 has nan"),
    "NaN margin": ([np.nan, 1.0], [0.0, 1.0], "margin of row 0 is not finite"),
    "equal margins": ([2.0, 2.0], [0.0, 1.0], "all 2 margins are 2.0"),
    "almost equal margins": (
        [0.0, 3.45e-205],
        [0.0, 1.0],
        "beyond what a double holds: they run from 0.0 to 3.45e-205",
    ),
    "margins too far apart": ([-1e200, 1e200], [0.0, 1.0], "beyond what a double holds"),
    "margins too large": ([1e308, 1.7e308, 1.6e308], [0.0, 1.0, 1.0], "beyond what a double holds"),
    "no rows": ([], [], "at least one row"),
    "one label short": ([0.0, 1.0], [0.0], "one label a row"),
    "falling": ([0.0, 0.1, 0.9, 1.0], [1.0, 1.0, 0.0, 0.0], "does not rise with the margin"),
}


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
@pytest.mark.parametrize(("margins", "labels", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_data_that_cannot_calibrate_is_refused(
    kind: str, margins: list[float], labels: list[float], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        fit_calibration(kind, np.array(margins, np.float64), np.array(labels, np.float64))


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ExportError, match='expected "model", "platt" or "isotonic", found \'spline\''):
        fit_calibration("spline", *sample(100))


def test_a_binary_models_own_sigmoid() -> None:
    assert list(model_calibration(1.5, "binary sigmoid:1.5").x) == [1.5, 0.0]


@pytest.mark.parametrize("objective", ["lambdarank", "regression", "cross_entropy", "multiclass num_class:3", ""])
def test_other_models_have_none(objective: str) -> None:
    with pytest.raises(ExportError, match='pass calibration "platt" or "isotonic" with calibration_data'):
        model_calibration(None, objective)
