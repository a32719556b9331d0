"""The result of `recserve-loadtest versus` as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recserve.loadtest.grids import Grid
from recserve.loadtest.runs.document import milliseconds


def all_grids(content: Mapping[str, Any]) -> Iterator[Grid]:
    """One line for each service."""
    rows = content["results"]
    params, reference = rows[0]["params"], content["reference"]
    yield Grid(
        f"{reference['name']}, {reference['items']:,} items and {reference['trees']:,} trees, on one core, "
        f"{params['rounds']} rounds: saturated with {params['outstanding']} requests outstanding, and at "
        f"{params['light_rate']:g} requests a second",
        (
            "service",
            "answers/s",
            "recserve's, times as many",
            "CPU ms/request",
            "times recserve's",
            "p50 ms at light load",
            "p99 ms",
            "memory MiB",
            f"recall@{content['candidates']}",
            f"overlap@{content['count']}",
        ),
        [_line(row, rows[0]) for row in rows],
    )


def verdict(own: Mapping[str, Any]) -> str:
    """What it comes to, in a sentence.

    Args:
        own: the row of recserve.
    """
    low, high = own["ratio_range"]
    by_cpu = own["cpu_ratio_to_better"]
    return (
        f"{own['ratio_to_better']:.1f} times the answers of the better baseline ({low:.1f} to {high:.1f} over the "
        f"rounds), {'unknown' if by_cpu is None else f'{by_cpu:.1f} times'} by CPU time a request"
    )


def _line(row: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[str, ...]:
    ratio = own.get("ratio_to", {}).get(row["name"])
    cpu, own_cpu = row["cpu_ms_per_request"], own["cpu_ms_per_request"]
    return (
        row["name"],
        f"{row['requests_per_s']:,.1f}",
        "-" if ratio is None else f"{ratio:.1f}",
        milliseconds(cpu),
        "-" if ratio is None or not cpu or not own_cpu else f"{cpu / own_cpu:.1f}",
        *(milliseconds(row[name]) for name in ("p50_ms", "p99_ms")),
        f"{row['memory_mib']:,.0f}",
        f"{row['recall']:.3f}",
        f"{row['overlap']:.3f}",
    )
