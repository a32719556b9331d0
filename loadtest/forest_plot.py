"""The forest benchmark as a picture: time over rows, one panel for each forest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recserve.loadtest.figures import engine_title

OURS = "recserve"


def plot_forests(result: Mapping[str, Any], path: Path) -> None:
    """Draw a result file of the workload "forest" as SVG or PNG, by the path's suffix.

    Args:
        result: as read from JSON or made by results.document.
        path: the file to write.
    """
    import matplotlib as mpl  # noqa: PLC0415  slow to import, and only this picture needs it
    from matplotlib.figure import Figure  # noqa: PLC0415

    timed = [row for row in result["results"] if "rows" in row["params"]]
    forests = sorted({(row["params"]["leaves"], row["params"]["trees"]) for row in timed})
    names = list(dict.fromkeys(engine_title(row) for row in timed))
    colours = {name: mpl.colormaps["tab10"](number % 10) for number, name in enumerate(names)}
    figure = Figure(figsize=(5.2 * len(forests), 5.4), layout="constrained")
    panels = figure.subplots(1, len(forests), sharey=True, squeeze=False)[0]
    for panel, (leaves, trees) in zip(panels, forests, strict=True):
        of_forest = [row for row in timed if (row["params"]["leaves"], row["params"]["trees"]) == (leaves, trees)]
        _draw(panel, of_forest, colours)
        panel.set_title(f"{trees:,} trees, up to {leaves} leaves")
    panels[0].set_ylabel("milliseconds a call, median, one thread")
    handles = {text: line for panel in panels for line, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    with mpl.rc_context({"svg.hashsalt": "recserve", "svg.fonttype": "none"}):  # the same figures, the same file
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw(panel: Any, rows: Sequence[Mapping[str, Any]], colours: Mapping[str, Any]) -> None:
    for name, colour in colours.items():
        points = sorted((row["params"]["rows"], row["p50_ms"]) for row in rows if engine_title(row) == name)
        if points:
            width = 2.4 if name.startswith(OURS) else 1.2
            panel.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=width, color=colour, label=name)
    ticks = sorted({row["params"]["rows"] for row in rows})
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    panel.set_xticks([], minor=True)
    panel.set_xlabel("rows (candidates)")
    panel.grid(visible=True, which="major", alpha=0.3)
