"""Tables of results, for the terminal and for the documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


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


def terminal_table(grid: Grid) -> RenderableType:
    """The table for the terminal: where it is too narrow, in parts below one another, for a figure is never cut."""
    return _Fitted(grid)


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A grid that finds out how wide it may be when it is printed."""

    grid: Grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        grid = self.grid
        whole = Table(title=grid.title, title_justify="left")
        _fill(whole, grid, range(1, len(grid.headings)))
        if Measurement.get(console, options.update(max_width=_UNLIMITED), whole).maximum <= options.max_width:
            yield whole
            return
        yield Text(grid.title, "italic")
        widths = [_narrowest(grid, number) for number in range(len(grid.headings))]
        for numbers in _parts(widths, options.max_width):
            part = Table(box=None, pad_edge=False, header_style="bold")
            _fill(part, grid, numbers, widths)
            yield Text()
            yield part


_UNLIMITED: Final = 10_000
_GAP: Final = 2
"""Between the columns of a part, which have no lines."""


def _fill(table: Table, grid: Grid, numbers: Sequence[int], widths: Sequence[int] = ()) -> None:
    """The first column and some of the others, of these widths where they are given; the first has what is left."""
    table.add_column(grid.headings[0], overflow="fold")
    for number in numbers:
        table.add_column(grid.headings[number], justify="right", width=widths[number] if widths else None)
    for row in grid.rows:
        table.add_row(row[0], *(row[number] for number in numbers))


def _narrowest(grid: Grid, number: int) -> int:
    """Of a column: its figures are whole, and its heading is broken between words."""
    return max(map(cell_len, (*grid.headings[number].split(), *(row[number] for row in grid.rows))), default=0)


def _parts(widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Which columns stand beside the first: as many as fit, when that has at most a third of the width."""
    room = width - min(widths[0], width // 3)
    part: list[int] = []
    for number in range(1, len(widths)):
        if part and sum(widths[each] + _GAP for each in (*part, number)) > room:
            yield part
            part = []
        part.append(number)
    yield part
