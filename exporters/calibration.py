"""Calibration: the monotone map from a forest's margins to relevance in (0, 1).

Margins have no scale of their own: only after it are objectives comparable, and freshness and diversity meaningful.
`recserve.kernels.rerank.calibrate` applies the map.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1.manifest_pb2 import Calibration, CalibrationKind
from recserve.exporters.errors import ExportError
from recserve.kernels.rerank import calibrate

MAX_NEWTON_STEPS = 100
CONVERGED = 1e-12
"""Of the gradient, relative to the number of rows."""


def model_calibration(sigmoid: float | None, objective: str) -> Calibration:
    """The sigmoid of a binary model: relevance is then the probability that the model predicts.

    Args:
        sigmoid: its slope; None: the model has none.
        objective: what the model was trained for, empty where that is unknown.

    Raises:
        ExportError: the model is not binary, or its slope is not positive.
    """
    if sigmoid is None:
        raise ExportError(
            f'calibration "model" needs a binary model, whose sigmoid it takes; this one has objective '
            f'{objective or "none (custom)"!r}: pass calibration "platt" or "isotonic" with calibration_data'
        )
    return _checked(Calibration(kind=CalibrationKind.SIGMOID, x=[sigmoid, 0.0]))


def fit_calibration(kind: str, margins: NDArray[np.float64], labels: NDArray[np.float64]) -> Calibration:
    """Fit a map to what happened.

    Args:
        kind: "platt", a sigmoid after Platt (1999); or "isotonic", piecewise linear after Zadrozny & Elkan (KDD 2002),
            which follows any monotone curve, but wants thousands of rows and ties the margins of a flat piece.
        margins: float64 [n], raw.
        labels: float64 [n], 0 or 1.

    Raises:
        ExportError: the data cannot calibrate (NaN margins, other labels, one class only, margins that are equal or
            almost so, or beyond measure), or the fitted map does not rise.
    """
    _check_data(margins, labels)
    if kind == "platt":
        slope, intercept = _fit_platt(margins, labels)
        return _checked(Calibration(kind=CalibrationKind.SIGMOID, x=[slope, intercept]))
    if kind == "isotonic":
        x, y = _fit_isotonic(margins, labels)
        return _checked(Calibration(kind=CalibrationKind.ISOTONIC, x=x, y=y))
    raise ExportError(f'calibration: expected "model", "platt" or "isotonic", found {kind!r}')


def _check_data(margins: NDArray[np.float64], labels: NDArray[np.float64]) -> None:
    if margins.ndim != 1 or margins.shape != labels.shape or margins.size == 0:
        raise ExportError(
            f"calibration data: expected one label a row and at least one row, found {list(margins.shape)} margins and "
            f"{list(labels.shape)} labels"
        )
    if not np.isfinite(margins).all():
        raise ExportError(f"calibration data: the margin of row {int(np.argmin(np.isfinite(margins)))} is not finite")
    odd = ~np.isin(labels, (0.0, 1.0))
    if odd.any():
        row = int(np.argmax(odd))
        raise ExportError(f"calibration data: labels must be 0 or 1, row {row} has {labels[row]}")
    if labels.min() == labels.max():
        raise ExportError(f"calibration data: all {labels.size} labels are {labels[0]:g}; both classes are needed")
    if margins.min() == margins.max():
        raise ExportError(f"calibration data: all {margins.size} margins are {margins[0]}; there is nothing to fit")
    with np.errstate(all="ignore"):
        spread = float(margins.std())
    if not 0 < spread < np.inf:
        raise ExportError(
            f"calibration data: the margins' standard deviation is beyond what a double holds: they run from "
            f"{margins.min()} to {margins.max()}"
        )


def _fit_platt(margins: NDArray[np.float64], labels: NDArray[np.float64]) -> tuple[float, float]:
    """(slope, intercept) by Newton's method with halved steps, after Lin, Lin & Weng (Machine Learning 68, 2007).

    The targets are Platt's: (N+ + 1) / (N+ + 2) and 1 / (N- + 2) instead of 1 and 0, which keeps the optimum finite
    where a margin separates the classes. Margins are standardised while fitting, for the Hessian's condition.
    """
    positives = float(labels.sum())
    targets = np.where(labels == 1.0, (positives + 1) / (positives + 2), 1 / (labels.size - positives + 2))
    centre, scale = float(margins.mean()), float(margins.std())
    design = np.stack(((margins - centre) / scale, np.ones_like(margins)), axis=1)
    weights = np.array([0.0, np.log((positives + 1) / (labels.size - positives + 1))])
    for _ in range(MAX_NEWTON_STEPS):
        probability = 0.5 + 0.5 * np.tanh(design @ weights / 2)  # the sigmoid, without overflow
        gradient = design.T @ (probability - targets)
        if np.abs(gradient).max() <= CONVERGED * labels.size:
            break
        hessian = design.T @ (design * (probability * (1.0 - probability))[:, np.newaxis])
        weights = _descend(design, targets, weights, np.linalg.solve(hessian + 1e-12 * np.eye(2), gradient))
    slope = float(weights[0]) / scale
    return slope, float(weights[1]) - slope * centre


def _descend(
    design: NDArray[np.float64], targets: NDArray[np.float64], weights: NDArray[np.float64], step: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The weights after the largest halving of the step that does not raise the log loss."""

    def loss(candidate: NDArray[np.float64]) -> float:
        value = design @ candidate
        return float(np.sum(np.logaddexp(0.0, value) - targets * value))

    before = loss(weights)
    for halvings in range(60):
        candidate: NDArray[np.float64] = weights - step * 0.5**halvings
        if loss(candidate) <= before:
            return candidate
    return weights


def _fit_isotonic(margins: NDArray[np.float64], labels: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Knots (x, y) of the best monotone fit; y stays 1 / (n + 2) away from 0 and 1, which n rows cannot establish."""
    from sklearn.isotonic import IsotonicRegression  # noqa: PLC0415  slow to import, and few exports need it

    least = 1.0 / (labels.size + 2)
    fitted = IsotonicRegression(y_min=least, y_max=1.0 - least, out_of_bounds="clip").fit(margins, labels)
    return [float(x) for x in fitted.X_thresholds_], [float(y) for y in fitted.y_thresholds_]


def _checked(calibration: Calibration) -> Calibration:
    """The calibration, once it is seen to rise and never to fall."""
    x, y = np.array(calibration.x), np.array(calibration.y)
    if calibration.kind == CalibrationKind.SIGMOID:
        rises = bool(np.isfinite(x).all() and x[0] > 0)
    else:
        probes = np.sort(np.concatenate((x, (x[:-1] + x[1:]) / 2, [x[0] - 1, x[-1] + 1])))
        relevance = calibrate(probes, CalibrationKind.ISOTONIC, x, y)
        rises = bool((np.diff(x) > 0).all() and (np.diff(relevance) >= 0).all() and relevance[-1] > relevance[0])
    if not rises:
        raise ExportError(
            "the fitted calibration does not rise with the margin: higher margins went with fewer events in the "
            "calibration data; check its labels and that its features are the model's"
        )
    return calibration
