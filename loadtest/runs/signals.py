"""Signals that must not come between."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM within the block take effect at its end: a process that it starts is not lost to them.

    For the main thread, the only one that signals interrupt.
    """
    came: list[int] = []
    before = {each: signal.signal(each, lambda sent, _: came.append(sent)) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for sent in came:
            signal.raise_signal(sent)
