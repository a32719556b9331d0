"""The result of `recserve-loadtest kernels retrieval` as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recserve.loadtest.grids import Grid

Row = Mapping[str, Any]
SIZE = ("items", "dim", "k", "batch", "filter", "spread")


def all_grids(content: Mapping[str, Any]) -> Iterator[Grid]:
    """A table for each filter: recall, and the time of a call by number of queries."""
    results = content["results"]
    for which in dict.fromkeys(filter_of(row) for row in results):
        yield _grid([row for row in results if filter_of(row) == which], which)


def filter_of(row: Row) -> str:
    """In words, as headings say it."""
    params = row["params"]
    if params["filter"] == 1.0:
        return "no filter"
    where = " in one region" if params["spread"] == "region" else ""
    return f"{params['filter']:.0%} of the items{where}"


def settings(row: Row) -> str:
    """How an engine was set."""
    own = {name: value for name, value in row["params"].items() if name not in SIZE}
    return ", ".join(f"{value}" if name == "factory" else f"{name} {value}" for name, value in own.items())


def _grid(rows: list[Row], which: str) -> Grid:
    params = rows[0]["params"]
    batches = list(dict.fromkeys(row["params"]["batch"] for row in rows))
    headings = ["engine", f"recall@{params['k']}"]
    for batch in batches:
        queries = "1 query" if batch == 1 else f"{batch} queries"
        headings += [f"{queries}: p50 ms", "CPU", "p99 ms"]
    return Grid(
        f"{params['items']:,} x {params['dim']}, k = {params['k']}, one thread, {which}",
        headings,
        [_line([row for row in rows if row["name"] == name]) for name in dict.fromkeys(row["name"] for row in rows)],
    )


def _line(rows: list[Row]) -> list[str]:
    first = rows[0]
    cells = [", ".join(filter(None, (first["name"], settings(first)))), f"{first['recall']:.3f}"]
    for row in rows:
        cells += [f"{row['p50_ms']:.3g}", f"{row['cpu_p50_ms']:.3g}", f"{row['p99_ms']:.3g}"]
    return cells
