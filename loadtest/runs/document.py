"""What a load test writes down beside its runs: what was measured, with what, and where."""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from recserve.bundle.v1 import manifest_pb2
from recserve.loadtest.grids import Grid
from recserve.loadtest.results import document_of_rows
from recserve.loadtest.runs.once import Row
from recserve.loadtest.workload.scenario import Scenario
from recserve.server.bundle.reader import Bundle


def load_document(
    workload: str,
    rows: Sequence[Row],
    *,
    scenario: Scenario,
    scenario_name: str,
    target: str,
    bundle: Bundle | None,
    config: Path | None,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """A result file's content.

    Args:
        workload: the command, such as "run".
        rows: of the runs.
        scenario: what was asked.
        scenario_name: its name or file.
        target: what was measured, in words.
        bundle: that it served, as far as is known.
        config: of the server, where it was started from one.
        more: what the command found besides.
    """
    return {
        **document_of_rows(workload, rows),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join((Path(sys.argv[0]).name, *sys.argv[1:])),
        "target": target,
        "scenario": {"name": scenario_name, **scenario.model_dump(mode="json", exclude_defaults=True)},
        "bundle": bundle_summary(bundle.manifest) if bundle else None,
        "config": config.read_text("utf-8") if config else None,
        **more,
    }


def bundle_summary(manifest: manifest_pb2.Manifest) -> dict[str, Any]:
    """Of what latencies are worth nothing without: sizes, recall, and what proves that answers are the models'."""
    towers = [tower for space in manifest.spaces for tower in (space.user_tower, space.item_tower) if tower.file]
    return {
        "name": manifest.name,
        "version": manifest.version,
        "items": manifest.catalogue.items,
        "features": manifest.features.count,
        "forests": [{"objective": each.objective, "trees": each.trees} for each in manifest.forests],
        "spaces": [
            {
                "name": each.name,
                "dim": each.dim,
                "search": manifest_pb2.IndexKind.Name(each.index.kind),
                "parameters": dict(each.index.parameters),
                "recall": round(each.index.recall, 4),
                "recall_k": each.index.recall_k,
            }
            for each in manifest.spaces
        ],
        "golden": MessageToDict(manifest.golden),
        "tower_difference": max((tower.max_abs_difference for tower in towers), default=0.0),
        "exported_on": manifest.exporter_host.cpu,
    }


def problems_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why runs do not count: how many of them, and what is wrong with the first."""
    invalid = [row for row in rows if not row["valid"]]
    if not invalid:
        return []
    count = f"{len(invalid)} of {len(rows)} runs are invalid, the first: " if len(rows) > 1 else "invalid: "
    first, *others = invalid[0]["problems"]
    return [f"{count}{first}", *others]


def load_grids(content: Mapping[str, Any]) -> Iterator[Grid]:
    """The tables of a result file, for documents."""
    yield runs_grid(f"{content['workload'].capitalize()}, scenario {content['scenario']['name']}", content["results"])


def runs_grid(title: str, rows: Sequence[Row]) -> Grid:
    """Every run as a line, for the terminal and for documents."""
    return Grid(
        title=title,
        headings=(
            *("run", "good answers/s", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms"),
            *("rejected", "missed", "failed", "CPU ms/request", "late p99 ms", ""),
        ),
        rows=[_line(row) for row in rows],
    )


def _line(row: Row) -> tuple[str, ...]:
    params = row["params"]
    what = f"{params['rate']:g}/s" if "rate" in params else f"{params['outstanding']} outstanding"
    repeat = f", no. {params['repeat']}" if params.get("repeat", 1) > 1 else ""
    groups = dict.fromkeys(("rejected", "missed", "failed"), 0.0)
    for outcome in row["outcomes"].values():
        if outcome["group"] in groups:
            groups[outcome["group"]] += outcome["share"]
    late = row.get("lateness", {}).get("p99_ms")
    return (
        f"{row['name']}, {what}, {params['seconds']:g} s{repeat}",
        f"{row['requests_per_s']:,.1f}",
        *(milliseconds(row[name]) for name in ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")),
        *(f"{share:.2%}" if share else "0" for share in groups.values()),
        milliseconds(row["cpu_ms_per_request"]),
        milliseconds(late),
        "" if row["valid"] else "INVALID",
    )


def at_least(capacity: Mapping[str, Any]) -> str:
    """What stands before a capacity where the search ended at the highest rate that it was to try (--most)."""
    return "at least " if capacity.get("at_least") else ""


def milliseconds(value: float | None) -> str:
    """Three digits, a dash for nothing."""
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
