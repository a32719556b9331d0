"""The result of `recserve-loadtest kernels retrieval` as a picture: recall over the time of one query."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from recserve.loadtest.retrieval.tables import filter_of


def plot_retrieval(content: Mapping[str, Any], path: Path) -> None:
    """Draw all engines, a panel for each filter; the same content gives the same file.

    Args:
        content: of the file, workload "retrieval".
        path: of the picture; its suffix says in which format, .svg or .png.
    """
    single = [row for row in content["results"] if row["params"]["batch"] == 1]
    filters = list(dict.fromkeys(filter_of(row) for row in single))
    names = list(dict.fromkeys(row["name"] for row in single))
    figure = Figure(figsize=(4.6 * len(filters), 4.2), layout="constrained")
    panels = figure.subplots(1, len(filters), sharey=True, squeeze=False)[0]
    for panel, which in zip(panels, filters, strict=True):
        for row in (row for row in single if filter_of(row) == which):
            own = row["name"].startswith("recserve")
            colour = mpl.colormaps["tab10"](names.index(row["name"]))
            panel.plot(
                row["cpu_p50_ms"], row["recall"], "o", markersize=10 if own else 6, color=colour, label=row["name"]
            )
        panel.set(xscale="log", xlabel="milliseconds of CPU time a query, median")
        panel.set_title(which)
        panel.grid(visible=True, which="both", alpha=0.3)
    panels[0].set_ylabel(f"recall@{single[0]['params']['k']}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    with mpl.rc_context({"svg.hashsalt": "recserve", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
