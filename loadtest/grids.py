"""Tables of results, for the terminal and for the documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: the first column is words, the others are numbers."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def markdown_table(grid: Grid) -> Iterator[str]:
    """Its lines in Markdown, the title above."""
    yield ""
    yield f"{grid.title}:"
    yield ""
    for line in (grid.headings, ("---", *("--:" for _ in grid.headings[1:])), *grid.rows):
        yield f"| {' | '.join(line)} |"


def terminal_table(grid: Grid) -> Table:
    """The table for the terminal."""
    shown = Table(title=grid.title, title_justify="left")
    for number, heading in enumerate(grid.headings):
        shown.add_column(heading, justify="right" if number else "left")
    for row in grid.rows:
        shown.add_row(*row)
    return shown
