"""One table of many short runs of several servers, made in turns: on a busy machine the only fair comparison.

`python -m recserve.loadtest.runs.summary OUT.json RUN.json …` puts the CPU time a request, the rates and the
servers' memory of the runs together, by scenario and by the name that each run was given (`--name`).
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recserve.loadtest.grids import Grid
from recserve.loadtest.results import write
from recserve.loadtest.runs.compare import read_results
from recserve.loadtest.runs.document import milliseconds

FIGURES = ("cpu_ms_per_request", "requests_per_s")
MEMORY = "pss_mib"
"""At the end of a run, all processes of the server together; what several map counts once."""


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A result file of result files, which were all made on the first one's machine.

    Args:
        runs: contents of result files, in the order in which the table shall have them.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        scenario = Path(run["scenario"]["name"]).stem
        for result in run["results"]:
            params = {
                "scenario": scenario,
                **{key: value for key, value in result["params"].items() if key != "repeat"},
            }
            row = rows.setdefault(
                (scenario, result["name"]), {"name": result["name"], "params": params, **{name: [] for name in FIGURES}}
            )
            for name in FIGURES:
                row[name].append(result[name])
            if memory := result.get("server", {}).get("pss_mib"):
                row.setdefault(MEMORY, []).append(memory[-1])
    first = runs[0]
    about = {name: first[name] for name in ("host", "commit", "versions", "bundle", "config")}
    return {"workload": "summary", **about, "results": list(rows.values())}


def summary_grids(content: Mapping[str, Any]) -> Iterable[Grid]:
    """Its table: of each figure the median of the runs, and the best; memory where all runs have it."""
    rows = content["results"]
    memory = all(MEMORY in row for row in rows)
    yield Grid(
        title="Medians of runs that took turns, and the best run",
        headings=(
            *("scenario, server", "runs", "CPU ms/request", "best", "answers/s", "best"),
            *(("memory MiB",) if memory else ()),
        ),
        rows=[_line(row, memory=memory) for row in rows],
    )


def _line(row: Mapping[str, Any], *, memory: bool) -> tuple[str, ...]:
    cpu, rate = (row[name] for name in FIGURES)
    return (
        f"{row['params']['scenario']}, {row['name']}",
        f"{len(cpu)}",
        milliseconds(statistics.median(cpu)),
        milliseconds(min(cpu)),
        f"{statistics.median(rate):,.0f}",
        f"{max(rate):,.0f}",
        *((f"{statistics.median(row[MEMORY]):,.0f}",) if memory else ()),
    )


def main(arguments: Sequence[str]) -> None:
    """Write the file named first from the result files named after it."""
    out, *files = (Path(argument) for argument in arguments)
    write(out, summary([read_results(file) for file in files]))


if __name__ == "__main__":
    main(sys.argv[1:])
