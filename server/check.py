"""`recserve check`: everything that `recserve serve` does before it serves, and of every item, as a table."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from typing import TypeVar

from rich.table import Table
from rich.text import Text

from recserve.server.bundle.errors import RecserveError
from recserve.server.bundle.tables import stdout_console
from recserve.server.config import Settings
from recserve.server.loading import load_pipeline, load_users
from recserve.server.pipeline.pipeline import Pipeline
from recserve.server.rpc.fronts import front_type
from recserve.server.state.embedded import Users
from recserve.server.text import pinned_clock, printable

T = TypeVar("T")

_OK, _FAILED, _SKIPPED = Text("ok", "green"), Text("failed", "bold red"), Text("skipped", "yellow")
_PINNED = Text("pinned", "yellow")


def check(settings: Settings) -> bool:
    """Open everything that is configured, print what was found, and tell whether it could be served.

    Every part is looked at even where another fails.
    """
    report = _Report()
    report.add(
        "configuration", _OK, f"{_count(settings.bundles, 'bundle')}, {_count(settings.placements, 'placement')}"
    )
    if settings.server.clock is not None:
        report.add("clock", _PINNED, pinned_clock(settings.server.clock))
    report.examine("front", lambda: front_type(settings.server.front), lambda _: settings.server.front)
    pipelines: dict[str, Pipeline] = {}
    for source in settings.bundles:
        work = functools.partial(load_pipeline, source, settings, every_item=True)
        pipeline = report.examine(f"bundle {source.name}", work, _of_pipeline)
        if pipeline is not None:
            pipelines[source.name] = pipeline
    if pipelines:
        report.examine("users", lambda: load_users(pipelines, settings), _of_users)
    else:
        report.add("users", _SKIPPED, "there is no bundle to which they could be tied")
    report.print()
    return not report.failed


@dataclass(slots=True)
class _Report:
    """The table, and whether anything failed."""

    failed: bool = False
    rows: list[tuple[str, Text, str]] = field(default_factory=list)

    def add(self, part: str, outcome: Text, found: str) -> None:
        self.rows.append((part, outcome, found))

    def examine(self, part: str, work: Callable[[], T], describe: Callable[[T], str]) -> T | None:
        """Do the work; a row says how it went. None where it failed."""
        started = time.monotonic()
        try:
            result = work()
        except RecserveError as error:
            self.failed = True
            self.add(part, _FAILED, str(error))
            return None
        self.add(part, _OK, f"{describe(result)}, in {time.monotonic() - started:.1f} s")
        return result

    def print(self) -> None:
        """To stdout, with every character: what was found may be two checksums that differ."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("part", "outcome", "found"):
            table.add_column(name, overflow="fold")
        for part, outcome, found in self.rows:
            table.add_row(Text(part), outcome, Text("\n".join(map(printable, found.splitlines()))))
        stdout_console().print(table)


def _count(things: Sized, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _of_pipeline(pipeline: Pipeline) -> str:
    bundle = pipeline.bundle
    ranker = f"objectives {', '.join(pipeline.objectives)}" if pipeline.objectives else "no ranker"
    return (
        f"{bundle.name} {bundle.version} at {bundle.path}: {bundle.catalogue.size} items, "
        f"sources {', '.join(pipeline.sources)}, {ranker}, "
        f"{bundle.manifest.golden.requests} golden requests answered as at export"
    )


def _of_users(users: Users) -> str:
    if users.snapshot is None:
        return "no snapshot: every user is unknown"
    return f"snapshot {users.snapshot.version} at {users.snapshot.path}: {users.snapshot.size} users"
