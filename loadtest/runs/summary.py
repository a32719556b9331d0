"""One table of many short runs of several servers, made in turns: on a busy machine the only fair comparison.

`python -m recserve.loadtest.runs.summary OUT.json RUN.json …` puts the CPU time a request, the rates and the
servers' memory of the runs together, by scenario, load, and the name that each run was given (`--name`).
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from recserve.loadtest.grids import Grid
from recserve.loadtest.results import write
from recserve.loadtest.runs.compare import invalid_runs, read_results
from recserve.loadtest.runs.document import milliseconds
from recserve.loadtest.runs.errors import ResultError

FIGURES = ("cpu_ms_per_request", "requests_per_s")
MEMORY = "pss_mib"
"""At the end of a run, all processes of the server together; what several map counts once."""

SAME: Final = ("host", "bundle")
"""What all runs have to be of, where they say it: nobody could tell whose doing a difference is."""


def summary(runs: Mapping[Path, Mapping[str, Any]]) -> dict[str, Any]:
    """A result file of result files.

    Args:
        runs: contents of result files, in the order in which the table shall have them.

    Raises:
        ResultError: they were made on several machines, or with several bundles.
    """
    _check_same(runs)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs.values():
        scenario = Path(run["scenario"]["name"]).stem
        for result in run["results"]:
            params = {
                "scenario": scenario,
                **{key: value for key, value in result["params"].items() if key != "repeat"},
            }
            row = rows.setdefault(
                (result["name"], json.dumps(params, sort_keys=True)),
                {"name": result["name"], "params": params, **{name: [] for name in FIGURES}},
            )
            for name in FIGURES:
                if result[name] is not None:  # CPU time, of a server that was not to be watched
                    row[name].append(result[name])
            if memory := result.get("server", {}).get("pss_mib"):
                row.setdefault(MEMORY, []).append(memory[-1])
    first = next(iter(runs.values()))
    about = {name: first[name] for name in ("host", "commit", "versions", "bundle", "config")}
    problems = [f"invalid: {text}" for run in runs.values() for text in invalid_runs(run)]
    return {"workload": "summary", **about, "problems": problems, "results": list(rows.values())}


def _check_same(runs: Mapping[Path, Mapping[str, Any]]) -> None:
    for name in SAME:
        known = {path: run[name] for path, run in runs.items() if run[name]}
        for path, found in known.items():
            first, expected = next(iter(known.items()))
            if found != expected:
                raise ResultError(
                    f"{path}: is of another {name} than {first}: found {json.dumps(found)}, expected "
                    f"{json.dumps(expected)}; summarise them one by one"
                )


def summary_grids(content: Mapping[str, Any]) -> Iterable[Grid]:
    """Its table: of each figure the median of the runs, and the best; memory where all runs have it."""
    rows = content["results"]
    loads = _differing(rows)
    memory = all(MEMORY in row for row in rows)
    yield Grid(
        title="Medians of runs that took turns, and the best run",
        headings=(
            *("scenario, server", "runs", "CPU ms/request", "best", "answers/s", "best"),
            *(("memory MiB",) if memory else ()),
        ),
        rows=[_line(row, loads, memory=memory) for row in rows],
    )


def _differing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The parameters that tell lines of a scenario apart, such as the rate."""
    names = dict.fromkeys(name for row in rows for name in row["params"] if name != "scenario")
    return [name for name in names if len({row["params"].get(name) for row in rows}) > 1]


def _line(row: Mapping[str, Any], loads: Sequence[str], *, memory: bool) -> tuple[str, ...]:
    params = row["params"]
    cpu, rate = (row[name] for name in FIGURES)
    return (
        ", ".join(
            (params["scenario"], row["name"], *(f"{name} {_plain(params[name])}" for name in loads if name in params))
        ),
        f"{len(rate)}",
        milliseconds(statistics.median(cpu) if cpu else None),
        milliseconds(min(cpu, default=None)),
        f"{statistics.median(rate):,.0f}",
        f"{max(rate):,.0f}",
        *((f"{statistics.median(row[MEMORY]):,.0f}",) if memory else ()),
    )


def _plain(value: object) -> str:
    """A rate of 1000.0 as it was asked for."""
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def main(arguments: Sequence[str]) -> None:
    """Write the file named first from the result files named after it."""
    out, *files = (Path(argument) for argument in arguments)
    write(out, summary({file: read_results(file) for file in files}))


if __name__ == "__main__":
    main(sys.argv[1:])
