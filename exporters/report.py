"""What an export did: a table for the terminal. `recserve.exporters.report_page` makes the bundle's page of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from rich.table import Table
from rich.text import Text

from recserve.bundle.v1.manifest_pb2 import Manifest
from recserve.exporters.evaluation.results import Evaluation
from recserve.exporters.inspect import human_bytes

Tell: TypeAlias = Callable[[str, str, str], None]
"""Takes a `Check`: its part, what it was checked against, and the result."""


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison that the export made, and what came out."""

    part: str
    against: str
    result: str


@dataclass(slots=True, kw_only=True)
class ExportReport:
    """What an export did.

    Attributes:
        path: the bundle's directory.
        manifest: as written.
        checks: the comparisons made, in order.
        seconds: time by step.
        evaluation: what it was measured to be worth; None where the specification does not ask.
    """

    path: Path
    manifest: Manifest = field(default_factory=Manifest)
    checks: list[Check] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    evaluation: Evaluation | None = None

    def table(self) -> Table:
        """For the terminal."""
        manifest = self.manifest
        size = human_bytes(sum(file.bytes for file in manifest.files.values()))
        title = f"{manifest.name} {manifest.version}: {manifest.catalogue.items:,} items, {size}"
        table = Table(title=Text(title), title_justify="left")
        table.add_column("part", overflow="fold")
        table.add_column("checked against", overflow="fold")
        table.add_column("result", overflow="fold", style="green")
        for check in self.checks:
            table.add_row(*map(Text, (check.part, check.against, check.result)))
        return table
