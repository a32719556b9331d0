"""Signals that must not come between."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from recserve.server.bundle.interrupts import ENDING, handled


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and what else ends a command take effect at the end of the block: a process started in it is not lost."""
    came: list[int] = []
    try:
        with handled((signal.SIGINT, *ENDING), lambda sent, _: came.append(sent)):
            yield
    finally:
        for sent in came:
            signal.raise_signal(sent)
