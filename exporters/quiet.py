"""Libraries that talk to the terminal on their own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def notes_discarded() -> Iterator[None]:
    """Keep the remarks of Treelite and TL2cgen off the terminal: they print, and write to file descriptor 2.

    What goes wrong in them comes as an exception.
    """
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("w") as sink, contextlib.redirect_stdout(sink):
            os.dup2(sink.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
