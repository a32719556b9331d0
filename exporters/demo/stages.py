"""Telling how far a build is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Stage:
    """A running stage. Its methods may be called from several threads."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self.note = ""
        """What the stage's last line says."""

    def advance(self, steps: int = 1) -> None:
        """Some more steps are done."""
        self._progress.advance(self._task, steps)


@contextmanager
def stage(console: Console, name: str, steps: int | None = None) -> Iterator[Stage]:
    """A bar while the stage runs, and one line with its time when it is done.

    Args:
        console: where to.
        name: of the stage.
        steps: how many `advance` will count; None where that is not known.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    start = time.perf_counter()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        running = Stage(progress, progress.add_task(name, total=steps))
        yield running
    console.print(f"{name:<34} {time.perf_counter() - start:6.1f} s   {running.note}", highlight=False)
