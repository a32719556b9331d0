"""Result files as Markdown: the figures in the documents are written by this, never by hand.

`python -m recserve.loadtest.figures README.md docs/bench/kernels.json docs/bench/demo.json` renews README.md, and
`python -m recserve.loadtest.figures docs/forest.md docs/bench/forest.json` docs/forest.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from recserve.loadtest.forest.tables import document_grids
from recserve.loadtest.grids import Grid, markdown_table
from recserve.loadtest.retrieval.tables import all_grids
from recserve.loadtest.runs.document import load_grids
from recserve.loadtest.runs.summary import summary_grids
from recserve.server.text import between_marks

LOADS: Final = ("run", "sweep", "capacity", "soak", "saturate")
GRIDS: Final[Mapping[str, Callable[[Mapping[str, Any]], Iterable[Grid]]]] = {
    "forest": document_grids,
    "retrieval": all_grids,
    "summary": summary_grids,
    **dict.fromkeys(LOADS, load_grids),
}
"""Workloads with tables of their own."""
BEGIN = "<!-- figures: written by python -m recserve.loadtest.figures -->"
END = "<!-- end of figures -->"


def render(results: Sequence[Mapping[str, Any]]) -> str:
    """Tables of several result files, with the machine that each was measured on."""
    return "\n".join(line for each in results for line in (*_origin(each), *_tables(each)))


def renew(document: str, results: Sequence[Mapping[str, Any]]) -> str:
    """The document with new tables between its marks.

    Raises:
        ValueError: a mark is missing.
    """
    return between_marks(document, BEGIN, END, render(results))


def _origin(result: Mapping[str, Any]) -> Iterator[str]:
    host, versions = result["host"], result["versions"]
    flags = ", ".join(host["flags"])
    yield ""
    yield (
        f"*{result['workload']}* on {host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB ({flags}); "
        f"Python {versions['python']}, NumPy {versions['numpy']}, grpcio {versions['grpcio']}:"
    )


def _tables(result: Mapping[str, Any]) -> Iterator[str]:
    if grids := GRIDS.get(result["workload"]):
        for grid in grids(result):
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
    """Renew the document named first from the result files named after it."""
    document, *files = (Path(argument) for argument in arguments)
    results = [json.loads(file.read_text("utf-8")) for file in files]
    document.write_text(renew(document.read_text("utf-8"), results), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
