"""Signals that end a command: of whoever exports or measures."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, Final

ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
"""Besides Ctrl-C: being told to end, and a terminal that is closed."""

Handler = Callable[[int, FrameType | None], object]


@contextlib.contextmanager
def handled(signals: Iterable[signal.Signals], handler: Handler) -> Iterator[None]:
    """Signals within the block are the handler's, but for those that are ignored: after `nohup`, SIGHUP stays so.

    For the main thread, the only one that signals interrupt.
    """
    before: dict[signal.Signals, Any] = {}
    for each in signals:
        if signal.getsignal(each) is not signal.SIG_IGN:
            before[each] = signal.signal(each, handler)
    try:
        yield
    finally:
        for each, found in before.items():
            signal.signal(each, found)
