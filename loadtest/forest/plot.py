"""The result of `recserve-loadtest kernels forest` as a picture: time over rows, a panel for each number of leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recserve.loadtest.forest.tables import OWN, Row, title

COLOURS: Final = "tab20"
PATHS: Final = (None, "predict", "request")
"""Of our engine, those that are drawn; other engines have none."""


def plot_forests(content: Mapping[str, Any], path: Path) -> None:
    """Draw the largest forests of a result file; the same content gives the same file.

    Args:
        content: of the file, workload "forest".
        path: of the picture; its suffix says in which format, .svg or .png.
    """
    timed = [row for row in content["results"] if row["runs"] and row["params"].get("path") in PATHS]
    trees = max(row["params"]["trees"] for row in timed)
    timed = [row for row in timed if row["params"]["trees"] == trees]
    leaves = sorted({row["params"]["leaves"] for row in timed})
    titles = list(dict.fromkeys(title(row) for row in timed))
    colours = {each: mpl.colormaps[COLOURS](number % 20) for number, each in enumerate(titles)}
    figure = Figure(figsize=(4 * len(leaves), 5), layout="constrained")
    panels = figure.subplots(1, len(leaves), sharey=True, squeeze=False)[0]
    for panel, count in zip(panels, leaves, strict=True):
        _draw(panel, [row for row in timed if row["params"]["leaves"] == count], colours)
        panel.set_title(f"{trees:,} trees, up to {count} leaves")
    panels[0].set_ylabel("milliseconds of CPU time a call, median")
    lines = {text: line for panel in panels for line, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, frameon=False)
    with mpl.rc_context({"svg.hashsalt": OWN, "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw(panel: Axes, rows: Sequence[Row], colours: Mapping[str, Any]) -> None:
    for name, colour in colours.items():
        points = sorted((row["params"]["rows"], row["cpu_p50_ms"]) for row in rows if title(row) == name)
        if not points:
            continue
        width = 2.2 if name.startswith(OWN) else 1.0
        panel.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=width, color=colour, label=name)
    ticks = sorted({row["params"]["rows"] for row in rows})
    panel.set(xscale="log", yscale="log", xlabel="rows (candidates)")
    panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    panel.set_xticks([], minor=True)
    panel.grid(visible=True, which="major", alpha=0.3)
