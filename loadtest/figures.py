"""Result files as Markdown: the figures in the documents are written by this, never by hand.

`python -m recserve.loadtest.figures docs/forest.md docs/bench/forest.json` renews docs/forest.md.

A document with figures in several places names the file of each there, relative to itself, and if it does not want all
of its tables, the number of the one that it wants:

    <!-- figures of bench/forest.json, table 1: written by python -m recserve.loadtest.figures -->
    <!-- end of figures -->

`python -m recserve.loadtest.figures docs/performance.md` renews all of them, and so it does with README.md.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from recserve.loadtest.forest.tables import document_grids
from recserve.loadtest.grids import Grid, markdown_table
from recserve.loadtest.retrieval.tables import all_grids
from recserve.loadtest.runs.document import load_grids, problems_of
from recserve.loadtest.runs.summary import summary_grids
from recserve.loadtest.versus.tables import all_grids as versus_grids
from recserve.server.text import between_marks

LOADS: Final = ("run", "sweep", "capacity", "soak", "saturate")
GRIDS: Final[Mapping[str, Callable[[Mapping[str, Any]], Iterable[Grid]]]] = {
    "forest": document_grids,
    "retrieval": all_grids,
    "summary": summary_grids,
    "versus": versus_grids,
    **dict.fromkeys(LOADS, load_grids),
}
"""Workloads with tables of their own."""
BEGIN = "<!-- figures: written by python -m recserve.loadtest.figures -->"
END = "<!-- end of figures -->"
NAMED: Final = re.compile(
    r"(?P<begin><!-- figures of (?P<file>\S+?)(?:, table (?P<table>\d+))?: written by .+? -->\n).*?(?P<end>"
    rf"{re.escape(END)})",
    re.DOTALL,
)
"""A place with figures of a file of its own."""


def render(results: Sequence[Mapping[str, Any]]) -> str:
    """Tables of several result files, with the machine that each was measured on."""
    return "\n".join(line for each in results for line in (*_origin(each), *_tables(each)))


def renew(document: str, results: Sequence[Mapping[str, Any]]) -> str:
    """The document with new tables between its marks.

    Raises:
        ValueError: a mark is missing.
    """
    return between_marks(document, BEGIN, END, render(results))


def renew_named(document: str, folder: Path) -> str:
    """The document with new tables in every place that names a file.

    Args:
        document: its text.
        folder: that files are relative to.

    Raises:
        ValueError: it has no such place, or a file has no table of that number.
        OSError: a file cannot be read.
    """

    def tables(place: re.Match[str]) -> str:
        result = json.loads((folder / place["file"]).read_text("utf-8"))
        number = int(place["table"]) if place["table"] else None
        lines = (*_origin(result), *_measured(result), *_tables(result, number))
        return place["begin"] + "\n".join((*lines, place["end"]))

    found, places = NAMED.subn(tables, document)
    if not places:
        raise ValueError("no place in the document names a file, as in <!-- figures of FILE: written by … -->")
    return found


def _origin(result: Mapping[str, Any]) -> Iterator[str]:
    host, versions = result["host"], result["versions"]
    flags = ", ".join(host["flags"])
    yield ""
    yield (
        f"*{result['workload']}* on {host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB ({flags}); "
        f"Python {versions['python']}, NumPy {versions['numpy']}, grpcio {versions['grpcio']}:"
    )


def _measured(result: Mapping[str, Any]) -> Iterator[str]:
    """Of which commit, how, and what was wrong with it."""
    command = f", by `{result['command']}`" if "command" in result else ""
    load = f"; the machine's load before was {result['load_before']:.1f}" if "load_before" in result else ""
    yield f"commit `{result['commit']}`{command}{load}."
    runs = result["results"]
    problems = result.get("problems") or (problems_of(runs) if all("valid" in row for row in runs) else [])
    if problems:
        yield ""
        yield from (f"- {text}" for text in problems)


def _tables(result: Mapping[str, Any], number: int | None = None) -> Iterator[str]:
    """All tables, or the one of that number, from 1."""
    if grids := GRIDS.get(result["workload"]):
        chosen = list(grids(result))
        if number is not None and not 0 < number <= len(chosen):
            raise ValueError(f"{result['workload']} has tables 1 to {len(chosen)}, and no table {number}")
        for grid in chosen if number is None else chosen[number - 1 : number]:
            yield from markdown_table(grid)
        return
    yield ""
    yield "| what | size | p50 ms | p99 ms | runs | further |"
    yield "|---|---|--:|--:|--:|---|"
    for row in result["results"]:
        size = ", ".join(f"{name} {value:,}" for name, value in row["params"].items())
        known = ("name", "params", "p50_ms", "p99_ms", "runs")
        further = ", ".join(f"{name} {value:,}" for name, value in row.items() if name not in known)
        yield f"| {row['name']} | {size} | {_ms(row['p50_ms'])} | {_ms(row['p99_ms'])} | {row['runs']:,} | {further} |"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def main(arguments: Sequence[str]) -> None:
    """Renew the document named first from the result files named after it, or from those that it names itself."""
    document, *files = (Path(argument) for argument in arguments)
    text = document.read_text("utf-8")
    results = [json.loads(file.read_text("utf-8")) for file in files]
    document.write_text(renew(text, results) if files else renew_named(text, document.parent), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
