"""Figures of an evaluation, as SVG elements; see `recserve.exporters.figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from recserve.exporters.evaluation.answers import FULL
from recserve.exporters.evaluation.bootstrap import Estimate
from recserve.exporters.evaluation.metrics import Reliability
from recserve.exporters.evaluation.results import COVERAGE, NDCG, Figures, Segment
from recserve.exporters.figures import ACCENT, INK, PALETTE, REST, SOFT, STYLE, svg

_WIDTH: Final = 5.2
_Z95: Final = 1.959964
_CHANGES: Final = (NDCG, "diversity", "categories", "novelty", COVERAGE)


def bars_figure(figures: Figures, *, winner: str, label: str) -> str:
    """A bar with its interval for each figure, from top to bottom; the winner's has a colour."""
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 0.7 + 0.36 * len(figures)), layout="constrained")
        axes = figure.subplots()
        reach = max(_high(each) for each in figures.values()) or 1.0
        for place, (name, each) in enumerate(figures.items()):
            chosen = name == winner
            axes.barh(place, each.value, 0.62, color=ACCENT if chosen else REST, linewidth=0)
            if each.interval:
                axes.plot(each.interval, (place, place), color=INK, linewidth=1.1, solid_capstyle="butt")
            weight = "bold" if chosen else "normal"
            axes.text(_high(each) + 0.02 * reach, place, f"{each.value:.3f}", va="center", fontweight=weight)
        axes.set(yticks=range(len(figures)), yticklabels=list(figures), xlabel=label, xlim=(0, 1.16 * reach))
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        return svg(figure)


def segments_figure(segments: Mapping[str, Segment]) -> str:
    """NDCG of every system in every segment, as points with intervals."""
    systems = list(next(iter(segments.values())).ndcg)
    colours = dict(zip(systems, (ACCENT, *PALETTE[1:]), strict=False))
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 0.9 + 0.17 * len(systems) * len(segments)), layout="constrained")
        axes = figure.subplots()
        for place, segment in enumerate(segments.values()):
            for index, (system, each) in enumerate(segment.ndcg.items()):
                y = place + 0.72 * ((index + 0.5) / len(systems) - 0.5)
                colour = colours.get(system, REST)
                axes.plot(each.interval or (), [y] * len(each.interval or ()), color=colour, linewidth=1.2, alpha=0.55)
                axes.plot(each.value, y, "o", color=colour, markersize=6 if system == FULL else 4.5)
            if place:
                axes.axhline(place - 0.5, color=REST, linewidth=0.6)
        names = [f"{name}\n{segment.users:,}" for name, segment in segments.items()]
        axes.set(yticks=range(len(segments)), yticklabels=names, xlabel=NDCG.upper(), ylim=(len(segments) - 0.5, -0.5))
        axes.set_xlim(left=0)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        _legend(axes, [(system, colours.get(system, REST)) for system in systems])
        return svg(figure)


def reliability_figure(bins: Reliability) -> str:
    """Observed share by predicted relevance, with 95% intervals, over how many candidates each bin holds."""
    low, high = _wilson(bins)
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.9), layout="constrained")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        shown = bins.observed > 0
        floor = min(bins.predicted.min(), bins.observed[shown].min(initial=1.0)) / 2
        axes.plot((floor, 1), (floor, 1), color=REST, linewidth=1.2, zorder=0)
        axes.set_xlim(bins.predicted.min() / 1.5, min(1.2, bins.predicted.max() * 1.5))
        observed = np.maximum(bins.observed, floor)
        axes.vlines(bins.predicted, np.maximum(low, floor), high, color=ACCENT, linewidth=1.2, alpha=0.5)
        axes.plot(bins.predicted[shown], observed[shown], "o-", color=ACCENT, markersize=5, linewidth=1)
        axes.plot(bins.predicted[~shown], observed[~shown], "v", color=SOFT, markersize=5)
        axes.set(xscale="log", yscale="log", ylabel="share that was taken", ylim=(floor / 1.2, 1.4))
        below.vlines(bins.predicted, 0.5, bins.counts, color=SOFT, linewidth=4)
        below.set(yscale="log", xlabel="predicted relevance", ylabel="candidates", ylim=(0.5, 3 * bins.counts.max()))
        narrow = bins.predicted.max() < 100 * bins.predicted.min()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
        for each in (axes.xaxis, axes.yaxis):
            each.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
        below.minorticks_off()
        return svg(figure)


def diversity_figure(before: Figures, after: Figures) -> str:
    """What diversity changes: two bars for each figure, each figure on a scale of its own."""
    names = [name for name in _CHANGES if name in before and name in after]
    with rc_context(STYLE):
        figure = Figure(figsize=(2 * _WIDTH, 2.3), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            pair = before[name], after[name]
            top = max(map(_high, pair)) or 1.0
            for place, (each, colour) in enumerate(zip(pair, (REST, ACCENT), strict=True)):
                axes.bar(place, each.value, 0.7, color=colour, linewidth=0)
                if each.interval:
                    axes.plot((place, place), each.interval, color=INK, linewidth=1.1)
                axes.text(place, _high(each) + 0.03 * top, shown(each), ha="center", va="bottom")
            axes.set(xticks=(0, 1), xticklabels=("before", "after"), yticks=(), ylim=(0, 1.2 * top), xlim=(-0.7, 1.7))
            axes.set_title("NDCG@10" if name == NDCG else name, fontsize=10, color=INK)
            axes.tick_params(axis="x", length=0)
            axes.spines["left"].set_visible(False)
        return svg(figure)


def shown(each: Estimate) -> str:
    """Three digits behind the point, fewer where the figure is large."""
    return f"{each.value:.3f}" if each.value < 1 else f"{each.value:.2f}"


def _high(each: Estimate) -> float:
    return each.interval[1] if each.interval else each.value


def _wilson(bins: Reliability) -> tuple[np.ndarray, np.ndarray]:
    """95% score interval of each bin's share (Wilson 1927)."""
    n, p, z = bins.counts, bins.observed, _Z95
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def _legend(axes: Axes, entries: Sequence[tuple[str, str]]) -> None:
    for name, colour in entries:
        axes.plot([], [], "o", color=colour, label=name, markersize=5)
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.45, 1.0),
        ncols=min(len(entries), 5),
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.0,
        fontsize=9,
    )
