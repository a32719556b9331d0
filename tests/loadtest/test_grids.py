"""Tables of results: as Markdown, and in terminals of any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from recserve.loadtest.grids import Grid, terminal_table

HEADINGS = (
    *("run", "good answers/s", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms"),
    *("rejected", "missed", "failed", "CPU ms/request", "late p99 ms", ""),
)
ROWS = [
    (f"recserve, {rate}/s, 30 s", f"{rate}.7", "6.81", "8.92", "14.3", "84.25", "1,234", "12.34%", "0", "0.07%",
     "2.08", "0.912", "INVALID")
    for rate in (1841, 23_962)
]  # fmt: skip
GRID = Grid("run, recserve serve --config recserve.toml", HEADINGS, ROWS)


def printed(width: int, grid: Grid = GRID) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(terminal_table(grid))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [200, 120, 80, 60, 40])
def test_every_figure_is_there_whole_and_no_line_too_long(width: int) -> None:
    text = printed(width)
    words = text.replace("│", " ").split()
    for row in ROWS:
        assert set(row[1:]) <= set(words)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_a_table_that_fits_is_whole() -> None:
    assert printed(200).count("│") > 0
    assert printed(200).count("recserve, 1841/s, 30 s") == 1


def test_each_part_says_of_which_run_it_is() -> None:
    assert printed(80).count("recserve, 1841/s, 30 s") == 2


def test_a_table_may_have_no_rows() -> None:
    for width in (30, 8):
        text = printed(width, Grid("title", ("run", "figure"), []))
        assert "title" in text
        assert "figure" in text
