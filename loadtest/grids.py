"""Tables of results, for the terminal and for the documents."""

from __future__ import annotations

from collections.abc import Iterator

from recserve.server.bundle.tables import Grid, terminal_table

__all__ = ["Grid", "markdown_table", "terminal_table"]


def markdown_table(grid: Grid) -> Iterator[str]:
    """Its lines in Markdown, the title above."""
    yield ""
    yield f"{grid.title}:"
    yield ""
    for line in (grid.headings, ("---", *("--:" for _ in grid.headings[1:])), *grid.rows):
        yield f"| {' | '.join(line)} |"
