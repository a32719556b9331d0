"""Charts of a load test, as SVG elements; see recserve.exporters.figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from recserve.exporters.figures import ACCENT, INK, PALETTE, REST, SOFT, STYLE, svg
from recserve.loadtest.runs.figures import GROUPS

Row = Mapping[str, Any]

COLOURS: Final = {"ok": "#2563a8", "rejected": "#d9822b", "missed": "#7a5195", "failed": "#b23a48"}
STAGE_COLOURS: Final = {
    **dict(zip(("queue", "state", "embed", "retrieve", "rank", "rerank"), PALETTE, strict=False)),
    "other": REST,
}
LINES: Final = {"p50_ms": REST, "p90_ms": "#7fa6cc", "p99_ms": ACCENT, "p999_ms": "#7a5195"}
NAMES: Final = {"p50_ms": "p50", "p90_ms": "p90", "p99_ms": "p99", "p999_ms": "p99.9"}
SECONDS: Final = "seconds after the start"
_WIDTH: Final = 5.4


def distribution(rows: Sequence[tuple[str, Row]], budget_ms: float | None) -> str:
    """Latency by percentile: every step to the right is one request in ten times as many."""
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        ends = [1.0]
        for place, (label, row) in enumerate(rows):
            shares = np.array([share for share, _ in row["curve"]])
            odds = 1 / np.maximum(1 - shares / 100, 0.5 / max(row["runs"], 1))
            colour = ACCENT if len(rows) == 1 else PALETTE[place % len(PALETTE)]
            axes.plot(odds, [value for _, value in row["curve"]], color=colour, linewidth=1.8, label=label)
            ends.append(odds.max(initial=1.0))
        _budget(axes, budget_ms)
        _milliseconds(axes)
        nines = [(2, "50"), (10, "90"), (100, "99"), (1e3, "99.9"), (1e4, "99.99"), (1e5, "99.999"), (1e6, "99.9999")]
        shown = [each for each in nines if each[0] <= max(ends)]
        axes.set(xscale="log", xlabel="percentile", ylabel="latency, ms", xlim=(1, max(ends)))
        axes.set_xticks([odds for odds, _ in shown], [text for _, text in shown])
        axes.minorticks_off()
        if len(rows) > 1:
            axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
        return svg(figure)


def by_rate(rows: Sequence[Row], budget_ms: float | None, mark: float | None) -> str:
    """Percentiles against the offered rate."""
    ordered = sorted(rows, key=lambda row: float(row["params"]["rate"]))
    rates = [row["params"]["rate"] for row in ordered]
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        for name, colour in LINES.items():
            axes.plot(rates, [row[name] for row in ordered], "o-", color=colour, markersize=3.5, label=NAMES[name])
        _budget(axes, budget_ms)
        _milliseconds(axes)
        axes.set(xlabel="offered, requests/s", ylabel="latency, ms")
        axes.set_xlim(left=0)
        _mark(axes, mark)
        axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), labelcolor=INK)
        return svg(figure)


def throughput(rows: Sequence[Row], mark: float | None) -> str:
    """Outcomes a second against the offered rate; the diagonal is what was asked for."""
    ordered = sorted(rows, key=lambda row: float(row["params"]["rate"]))
    rates = [row["params"]["rate"] for row in ordered]
    shares = {name: [_share(row, name) * row["offered_per_s"] for row in ordered] for name in GROUPS}
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.plot((0, max(rates)), (0, max(rates)), color=REST, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        for name in GROUPS:
            if name == "ok" or any(shares[name]):
                axes.plot(rates, shares[name], "o-", color=COLOURS[name], markersize=3.5, label=name)
        axes.set(xlabel="offered, requests/s", ylabel="requests/s")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        _mark(axes, mark)
        axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), labelcolor=INK)
        return svg(figure)


def _share(row: Row, group: str) -> float:
    return sum(float(each["share"]) for each in row["outcomes"].values() if each["group"] == group)


def outcomes_over_time(timeline: Mapping[str, Any]) -> str:
    """Requests a second by outcome, by when they were due."""
    step = timeline["step_s"]
    at = _times(timeline)
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 2.6), layout="constrained")
        axes = figure.subplots()
        floor = np.zeros(len(at))
        for name in GROUPS:
            height = np.array(timeline[name]) / step
            if name == "ok" or height.any():
                axes.bar(at, height, 0.92 * step, floor, color=COLOURS[name], linewidth=0, align="edge", label=name)
                floor += height
        axes.set(xlabel=SECONDS, ylabel="requests/s", xlim=(at[0], at[-1] + step))
        axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), labelcolor=INK)
        return svg(figure)


def latency_over_time(timeline: Mapping[str, Any]) -> str:
    """p50 and p99 of each window."""
    step = timeline["step_s"]
    at = _times(timeline) + step / 2
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 2.6), layout="constrained")
        axes = figure.subplots()
        for name, colour in (("p50_ms", SOFT), ("p99_ms", ACCENT)):
            values = [np.nan if value is None else value for value in timeline[name]]
            axes.plot(at, values, "o-", color=colour, markersize=2.5, linewidth=1.3, label=NAMES[name])
        _milliseconds(axes)
        axes.set(xlabel=SECONDS, ylabel="latency, ms", xlim=(at[0] - step / 2, at[-1] + step / 2))
        axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), labelcolor=INK)
        return svg(figure)


def _times(timeline: Mapping[str, Any]) -> np.ndarray:
    return float(timeline["from_s"]) + float(timeline["step_s"]) * np.arange(len(timeline["ok"]))


def stages(found: Mapping[str, Mapping[str, float]], client: Mapping[str, float | None]) -> str:
    """Where the server spends its time: medians of the stages beside the client's median and p99."""
    found = _with_the_rest(found)
    names = [name for name in STAGE_COLOURS if name in found]
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        reach = max(found[name]["p99_ms"] for name in names) or 1.0
        for place, name in enumerate(names):
            each = found[name]
            axes.barh(place, each["p50_ms"], 0.6, color=STAGE_COLOURS[name], linewidth=0)
            axes.plot((each["p50_ms"], each["p99_ms"]), (place, place), color=INK, linewidth=1)
            axes.text(
                each["p99_ms"] + 0.02 * reach, place, f"{each['p50_ms']:.3g}  ({each['p99_ms']:.3g})", va="center"
            )
        axes.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 1.3 * reach))
        total, seen = found["total"]["p50_ms"], client["p50_ms"]
        behind = "" if seen is None else f"; the client sees {seen:.3g}"
        axes.set_xlabel(f"ms: p50 (p99); in the server {total:.3g} in all{behind}")
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        return svg(figure)


def _with_the_rest(found: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """The stages, and with them "other" where they do not add up to the total.

    Older result files do not have it. Means add up, so theirs stands for the percentiles that nobody knows.
    """
    if "other" in found:
        return {name: each for name, each in found.items() if name != "other" or each["p99_ms"] > 0}
    rest = found["total"]["mean_ms"] - sum(each["mean_ms"] for name, each in found.items() if name != "total")
    return {**found, "other": {"p50_ms": rest, "p99_ms": rest}} if rest > 0 else dict(found)


def cores_over_time(server: Mapping[str, Any], timeline: Mapping[str, Any] | None) -> str:
    """Cores in use of the server, over the time of the other charts."""
    at = _moments(server, timeline)
    cpu = np.interp(at, server["at_s"], server["cpu_s"])
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.plot((at[1:] + at[:-1]) / 2, np.diff(cpu) / np.diff(at), color=ACCENT, linewidth=1.4)
        axes.set(xlabel=SECONDS, ylabel="cores", xlim=_span(server, timeline))
        axes.set_ylim(bottom=0)
        return svg(figure)


def memory_over_time(server: Mapping[str, Any], timeline: Mapping[str, Any] | None) -> str:
    """Memory of the server, over the time of the other charts."""
    at = _moments(server, timeline)
    rss = np.interp(at, server["at_s"], server["rss_mib"])
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(at, rss, color=SOFT, linewidth=1.4, label="resident")
        axes.plot(server["pss_at_s"], server["pss_mib"], "o-", color=ACCENT, markersize=3, label="proportional")
        axes.set(xlabel=SECONDS, ylabel="MiB", xlim=_span(server, timeline))
        axes.set_ylim(0, 1.15 * max(*rss, *server["pss_mib"]))
        axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), labelcolor=INK)
        return svg(figure)


def _moments(server: Mapping[str, Any], timeline: Mapping[str, Any] | None) -> NDArray[np.float64]:
    """When something is shown of the server, as far as it was read.

    /proc counts CPU time in hundredths of a second: over shorter steps the cores in use would be mostly rounding.
    """
    start, end = _span(server, timeline)
    end = max(min(end, server["at_s"][-1]), start + 1e-3)
    step = max(min(1.0, (end - start) / 8), (end - start) / 120)
    return np.linspace(start, end, round((end - start) / step) + 1)


def _span(server: Mapping[str, Any], timeline: Mapping[str, Any] | None) -> tuple[float, float]:
    """The time that charts show: behind the warm-up, or, of a closed loop, all of it."""
    if timeline is None:
        return 0.0, float(server["at_s"][-1])
    at = _times(timeline)
    return float(at[0]), float(at[-1] + timeline["step_s"])


def _milliseconds(axes: Axes) -> None:
    """A logarithmic axis of milliseconds, in plain numbers; for when everything has been drawn."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    few = LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)) if high < 10 * low else few)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.minorticks_off()
    axes.grid(axis="y", color="#eef1f5", linewidth=0.8)
    axes.set_axisbelow(True)


def _budget(axes: Axes, budget_ms: float | None) -> None:
    if budget_ms is not None:
        axes.axhline(budget_ms, color=COLOURS["failed"], linewidth=1, linestyle=(0, (4, 3)))
        place = axes.get_yaxis_transform()
        text = f"budget {budget_ms:g} ms"
        axes.text(0.01, 1.04 * budget_ms, text, color=COLOURS["failed"], fontsize=8.5, transform=place)


def _mark(axes: Axes, rate: float | None) -> None:
    if rate is not None:
        axes.axvline(rate, color=SOFT, linewidth=1, linestyle=(0, (1, 2)))
        place = axes.get_xaxis_transform()
        axes.text(rate, 0.97, f" {rate:g}/s", color=SOFT, fontsize=8.5, va="top", transform=place)
