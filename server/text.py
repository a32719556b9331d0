"""Texts on their way to a terminal, a log or a document."""

from __future__ import annotations

import datetime
import os
import shlex
import shutil
import sys
from pathlib import Path


def printable(text: str) -> str:
    """The text with control characters escaped: ids are any UTF-8, and a terminal obeys what it is sent."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def own_command() -> str:
    """How a person at this terminal runs the command `recserve`: by its name, or by its path where PATH lacks it."""
    name = "recserve"
    found, running = shutil.which(name), Path(sys.argv[0])
    if running.name != name or (found is not None and running.exists() and running.samefile(found)):
        return name
    return shlex.quote(os.path.relpath(running))


def announce(text: str) -> None:
    """Tell whoever watches a server; it does not stop because nobody does."""
    try:
        print(text, flush=True)
    except OSError:  # such as a pipe that nobody reads any more
        discard_output()


def discard_output() -> None:
    """Nobody reads standard output any more; what is left in its buffer would fail again when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def pinned_clock(clock: datetime.datetime) -> str:
    """What a pinned clock means, for whoever starts the server."""
    moment = clock.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")
    return f"the clock is pinned: requests without a time are answered as of {moment} (server.clock)"


def between_marks(document: str, begin: str, end: str, text: str) -> str:
    """The document with `text` in place of what stands between two marks.

    Raises:
        ValueError: a mark is missing.
    """
    before, found, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the document needs a line {begin} and, after it, a line {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"
