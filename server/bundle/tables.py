"""Tables for standard output, whole in terminals of any width: of whoever serves, exports or measures."""

from __future__ import annotations

import sys
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


_UNLIMITED: Final = 10_000
"""Characters in a line."""


def stdout_console() -> Console:
    """For tables: as wide as the terminal; in a file or a pipe nothing limits the width of a line."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=_UNLIMITED)


def fits(table: Table, console: Console, options: ConsoleOptions) -> bool:
    """Whether every cell has its lines as they are."""
    return Measurement.get(console, options.update(max_width=_UNLIMITED), table).maximum <= options.max_width


def terminal_table(grid: Grid) -> RenderableType:
    """The table for the terminal: where it is too narrow, in parts below one another, for a figure is never cut."""
    return _Fitted(grid)


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A grid that finds out how wide it may be when it is printed."""

    grid: Grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        grid = self.grid
        whole = Table(title=Text(grid.title), title_justify="left")
        _fill(whole, grid, range(1, len(grid.headings)))
        if fits(whole, console, options):
            yield whole
            return
        yield Text(grid.title, "italic")
        widths = [_narrowest(grid, number) for number in range(len(grid.headings))]
        for numbers in _parts(widths, options.max_width):
            part = Table(box=None, pad_edge=False, header_style="bold")
            _fill(part, grid, numbers, widths)
            yield Text()
            yield part


_GAP: Final = 2
"""Between the columns of a part, which have no lines."""


def _fill(table: Table, grid: Grid, numbers: Sequence[int], widths: Sequence[int] = ()) -> None:
    """The first column and some of the others, of these widths where they are given; the first has what is left."""
    table.add_column(Text(grid.headings[0]), overflow="fold")
    for number in numbers:
        table.add_column(Text(grid.headings[number]), justify="right", width=widths[number] if widths else None)
    for row in grid.rows:
        table.add_row(*(Text(row[number]) for number in (0, *numbers)))  # no markup: names may hold brackets


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
