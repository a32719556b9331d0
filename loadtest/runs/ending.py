"""How a command ends: as it should, or early, with what it has until then."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Final

from recserve.loadtest.runs.once import Row, RunCutShort
from recserve.server.bundle.errors import RecserveError

INTERRUPTED: Final = 130
"""Exit status after Ctrl-C, as of a shell's commands."""


class Ending:
    """Takes what ends a block early: Ctrl-C, a target that goes away, and errors that are told in words.

    Attributes:
        problem: in words; empty: the block has come to its end.
        status: of the command.
        row: of the run that was cut short, if one was.
    """

    def __init__(self) -> None:
        self.problem = ""
        self.status = 0
        self.row: Row | None = None

    def __enter__(self) -> Ending:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        match error:
            case RunCutShort():
                self.problem, self.row = str(error), error.row
                self.status = INTERRUPTED if error.interrupted else 1
            case KeyboardInterrupt():
                self.problem, self.status = "interrupted", INTERRUPTED
            case RecserveError():
                self.problem, self.status = str(error), 1
            case _:
                return False
        return True

    def tell(self) -> None:
        """Print the problem, if there is one."""
        if self.problem:
            print(f"recserve-loadtest: {self.problem}", file=sys.stderr)
