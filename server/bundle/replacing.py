"""Files that commands write for people, whole or not at all: of whoever exports or measures."""

from __future__ import annotations

import os
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write a file, in a directory that is made if need be; who is interrupted, or finds no room, keeps what was there.

    A link stays one.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_replaceable(path):
        path.write_text(text, "utf-8")
        return
    partial = partial_of(path)
    try:
        partial.write_text(text, "utf-8")
        partial.replace(path.resolve())
    finally:
        partial.unlink(missing_ok=True)


def is_replaceable(path: Path) -> bool:
    """Whether it is a file, or nothing yet, and not what something else is behind, such as /dev/stdout."""
    return path.is_file() or not path.exists()


def partial_of(path: Path) -> Path:
    """Where a file grows before it takes its place; beside the file that a link points to."""
    place = path.resolve()
    return place.with_name(f".{place.name}.{os.getpid()}")
