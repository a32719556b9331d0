"""The page of a result file: a load test that can be read in a minute, in one file without scripts or links."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from recserve.loadtest.report import charts
from recserve.loadtest.runs.document import at_least, milliseconds, problems_of, runs_grid
from recserve.loadtest.runs.errors import ResultError
from recserve.loadtest.runs.search import OK_SHARE

TITLES: Final = {
    "run": "Load test at one rate",
    "sweep": "Latency against rate",
    "capacity": "Capacity",
    "soak": "Soak test",
    "saturate": "Saturation",
}
_OF_A_FILE: Final = ("time", "target", "scenario", "bundle", "config", "command", "host", "versions", "commit")
_OF_A_RUN: Final = (
    *("name", "params", "valid", "problems", "requests_per_s", "ok_share", "outcomes", "messages", "degraded"),
    *("blocked", "p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms", "cpu_ms_per_request", "server", "stages"),
)
_CURVES: Final = 6
"""Distributions in one chart, at most: more cannot be told apart."""


def check_drawable(content: Mapping[str, Any], origin: Path) -> None:
    """That a result file has what its page shows.

    Raises:
        ResultError: it is of another command, has no runs, or lacks parts.
    """
    workload = content.get("workload")
    if workload not in TITLES:
        known = ", ".join(TITLES)
        raise ResultError(f"{origin}: there is no page for results of {workload!r}, only for those of {known}")
    if not content["results"]:
        raise ResultError(f"{origin}: has no runs, so that there is nothing to draw")
    lacking = [name for name in _OF_A_FILE if name not in content]
    lacking += [name for name in _OF_A_RUN if any(name not in row for row in content["results"])]
    if lacking:
        raise ResultError(
            f"{origin}: lacks {', '.join(lacking)}: it is damaged or of another version; measure again, or draw it "
            "with the version that made it"
        )


def render_page(content: Mapping[str, Any]) -> str:
    """The page.

    Args:
        content: of a result file that a load test has written.
    """
    loaders = [PackageLoader("recserve.loadtest"), PackageLoader("recserve.exporters")]
    environment = Environment(
        loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    focus = focus_of(content)
    return environment.get_template("load.html").render(
        title=TITLES.get(content["workload"], content["workload"]),
        content=content,
        headline=headline(content, focus),
        failed=lost_share(content, focus) > 0,
        problems=problems_of(content["results"]),
        focus=focus,
        focus_name=_label(focus),
        cards=list(_cards(focus)),
        figures=list(_figures(content, focus)),
        outcomes=list(_outcomes(focus)),
        runs=runs_grid("", content["results"]),
        trend=content.get("trend", {}).get("words", []),
        bundle=content["bundle"],
        recall=[_space(space) for space in (content["bundle"] or {}).get("spaces", ())],
        parity=_parity(content["bundle"]) if content["bundle"] else "",
        scenario=json.dumps(content["scenario"], indent=1),
        milliseconds=milliseconds,
    )


def focus_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The run that the page is about: the confirmed one, the one at the knee, or the middle one by p99."""
    rows: Sequence[Mapping[str, Any]] = content["results"]
    if (content.get("capacity") or {}).get("confirmed"):
        return rows[-1]
    if content.get("knee") is not None:
        return next(row for row in rows if row["params"]["rate"] == content["knee"])
    timed = sorted((row for row in rows if row["p99_ms"] is not None), key=lambda row: float(row["p99_ms"]))
    return timed[len(timed) // 2] if timed else rows[0]


def lost_share(content: Mapping[str, Any], focus: Mapping[str, Any]) -> float:
    """Of the requests, without a good answer in the worst run, where those are too many to speak of latencies; else 0.

    A search is meant to have runs past the knee: there it is the run in focus that counts.
    """
    rows = [focus] if "budget_ms" in content else content["results"]
    least = min(float(row["ok_share"]) for row in rows)
    return 1 - least if least < OK_SHARE else 0.0


def headline(content: Mapping[str, Any], focus: Mapping[str, Any]) -> str:
    """The result in one sentence, behind one that says what failed: latencies of errors are no result."""
    lost = lost_share(content, focus)
    where = "" if lost <= 1 - focus["ok_share"] else " in the worst run"
    failed = f"Failed: {lost:.2%} of the requests got no good answer{where}. " if lost else ""
    return failed + _result(content, focus)


def _result(content: Mapping[str, Any], focus: Mapping[str, Any]) -> str:
    good = f"{focus['requests_per_s']:,.1f} good answers a second"
    if "rate" not in focus["params"]:
        return f"{good} with {focus['params']['outstanding']} requests under way."
    said = (
        f"At {focus['params']['rate']:g} requests a second, half of them end within {milliseconds(focus['p50_ms'])} ms"
    )
    said += f" and 99% within {milliseconds(focus['p99_ms'])} ms; {focus['ok_share']:.2%} are answered well."
    if capacity := content.get("capacity"):
        rate = f"{at_least(capacity)}{capacity['rate']:g} requests a second"
        return f"Capacity: {rate} within {content['budget_ms']:g} ms (p99). {said}"
    if content.get("knee") is not None:
        return f"The knee is at {content['knee']:g} requests a second. {said}"
    return said


def _label(row: Mapping[str, Any]) -> str:
    params = row["params"]
    if "rate" not in params:
        return f"{params['outstanding']} requests under way for {params['seconds']:g} s"
    return f"{params['rate']:g} requests/s, {params['arrivals']}, for {params['seconds']:g} s"


def _cards(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield f"{row['requests_per_s']:,.1f}", "good answers/s"
    for name, label in (("p50_ms", "p50"), ("p99_ms", "p99"), ("p999_ms", "p99.9"), ("max_ms", "max")):
        if row[name] is not None:
            yield f"{milliseconds(row[name])} ms", label
    yield f"{row['ok_share']:.2%}", "answered well"
    if row["cpu_ms_per_request"] is not None:
        yield f"{milliseconds(row['cpu_ms_per_request'])} ms", "CPU/request"


def _figures(content: Mapping[str, Any], focus: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Title, what it shows, and SVG of each chart that there are data for."""
    rows = [row for row in content["results"] if row.get("curve")]
    budget, mark = content.get("budget_ms"), _mark(content)
    if len({row["params"]["rate"] for row in rows}) > 1:
        yield "Latency against rate", "over all outcomes", charts.by_rate(rows, budget, mark)
        yield "Outcomes against rate", "the dashed line is what was offered", charts.throughput(rows, mark)
    if rows:
        yield (
            "Distribution",
            "latency that so many percent stay within",
            charts.distribution(_curves(rows, focus), budget),
        )
    if focus["stages"]:
        answers = focus["stages"]["total"]["answers"]
        yield "The server's stages", f"its own times, of {answers:,} answers", charts.stages(focus["stages"], focus)
    if focus.get("timeline"):
        yield "Outcomes over time", f"at {_label(focus)}", charts.outcomes_over_time(focus["timeline"])
        yield "Latency over time", "by when requests were due", charts.latency_over_time(focus["timeline"])
    if len(focus["server"]["at_s"]) > 2:
        server, timeline = focus["server"], focus.get("timeline")
        about = "of the server, from /proc" + ("" if timeline else ", with the warm-up")
        yield "Cores in use", about, charts.cores_over_time(server, timeline)
        yield "Memory", about, charts.memory_over_time(server, timeline)


def _mark(content: Mapping[str, Any]) -> float | None:
    capacity = content.get("capacity") or {}
    found: float | None = capacity.get("rate", content.get("knee"))
    return found


def _curves(rows: Sequence[Mapping[str, Any]], focus: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The run in focus and some others, by rate."""
    ordered = sorted(rows, key=lambda row: (float(row["params"]["rate"]), row["params"].get("repeat", 1)))
    step = -(-len(ordered) // _CURVES)
    chosen = [row for place, row in enumerate(ordered) if place % step == 0 or row is focus][-_CURVES:]
    rates = [row["params"]["rate"] for row in chosen]
    labels = (
        f"{rate:g}/s" + (f", no. {row['params'].get('repeat', 1)}" if rates.count(rate) > 1 else "")
        for rate, row in zip(rates, chosen, strict=True)
    )
    return list(zip(labels, chosen, strict=True))


def _outcomes(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, each in sorted(row["outcomes"].items(), key=lambda item: -int(item[1]["requests"])):
        yield {"name": name, **each, "message": row["messages"].get(name, ""), "colour": charts.COLOURS[each["group"]]}


def _space(space: Mapping[str, Any]) -> dict[str, str]:
    parameters = ", ".join(f"{name} {value}" for name, value in space["parameters"].items())
    return {
        "name": space["name"],
        "dim": str(space["dim"]),
        "search": f"{space['search']}{f' ({parameters})' if parameters else ''}",
        "recall": f"{space['recall']:.3f} at {space['recall_k']}",
    }


def _parity(bundle: Mapping[str, Any]) -> str:
    golden = bundle["golden"].get("requests", 0)
    difference = bundle["tower_difference"]
    towers = f"; towers differ from their source by at most {difference:.1e}" if difference else ""
    return (
        f"{golden} golden requests, computed from the source models at export, are replayed whenever the bundle is "
        f"loaded: features and forests bit for bit{towers}."
    )
