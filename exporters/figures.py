"""Figures of the report, as SVG elements that stand in a page by themselves: no scripts, no fonts, no links."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from recserve.bundle.v1.manifest_pb2 import Calibration, CalibrationKind
from recserve.kernels.reference import rerank as reference_rerank

INK: Final = "#1b2430"
ACCENT: Final = "#2563a8"
SOFT: Final = "#5c6b7d"
REST: Final = "#c3ccd6"
PALETTE: Final = ("#2563a8", "#d9822b", "#1c7c4a", "#b23a48", "#7a5195", "#2a9d9d", "#a07c17")
"""For what is told apart; what is left is `REST`."""

STYLE: Final[Any] = {
    "svg.hashsalt": "recserve",  # equal figures give equal files
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": REST,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
"""Matplotlib's settings for all figures."""


def calibration_figure(calibration: Calibration, margins: NDArray[np.float64]) -> str:
    """Relevance by margin, over a histogram of where the margins of real candidates lie.

    Args:
        calibration: of a forest.
        margins: [n], n >= 1.
    """
    x, y = np.array(calibration.x), np.array(calibration.y)
    ends = [*margins, *(x if calibration.kind == CalibrationKind.ISOTONIC else ())]
    room = 0.05 * (max(ends) - min(ends)) or 1.0
    curve = np.linspace(min(ends) - room, max(ends) + room, 400)
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.subplots()
        counts, edges = np.histogram(margins, 40, (curve[0], curve[-1]))
        axes.bar(edges[:-1], 0.35 * counts / counts.max(), np.diff(edges), align="edge", color=REST, linewidth=0)
        axes.plot(curve, reference_rerank.calibrate(curve, calibration.kind, x, y), color=ACCENT, linewidth=1.8)
        axes.set(xlabel="margin", ylabel="relevance", ylim=(0, 1.02), xlim=(curve[0], curve[-1]))
        return svg(figure)


def map_figure(vectors: NDArray[np.float32], groups: Sequence[tuple[str, NDArray[np.bool_]]]) -> str:
    """Directions of item vectors on their first two principal components; the few outermost items are left out.

    Args:
        vectors: [n, dim] of some items, n >= 1.
        groups: a colour, and which of the items [n] have it; later ones lie on top.
    """
    points = _principal_plane(vectors)
    with rc_context(STYLE):
        figure = Figure(figsize=(3.6, 3.0), layout="constrained")
        axes = figure.subplots()
        for colour, mine in groups:
            if mine.any():
                axes.scatter(points[mine, 0], points[mine, 1], s=12, color=colour, linewidths=0, alpha=0.75)
        axes.set(xticks=[], yticks=[], xlim=_middle(points[:, 0]), ylim=_middle(points[:, 1]))
        axes.set_frame_on(False)
        return svg(figure)


def _principal_plane(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """[n, 2]: coordinates in the plane of the largest variance; zeros for dimensions that are not there."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    directions = vectors / np.where(lengths == 0, 1.0, lengths)
    centred = directions - directions.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((len(vectors), 2))
    plane[:, : min(2, len(axes))] = centred @ axes[:2].T
    return plane


def _middle(values: NDArray[np.float64]) -> tuple[float, float]:
    """The range of all but the outermost values, with a margin."""
    low, high = np.percentile(values, [2, 98])
    room = 0.15 * float(high - low) or 1.0
    return float(low) - room, float(high) + room


def svg(figure: Figure) -> str:
    """The figure as an element for a page, which knows SVG's namespaces by itself."""
    buffer = io.StringIO()
    nobody = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nobody, transparent=True)
    text = buffer.getvalue()
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])
