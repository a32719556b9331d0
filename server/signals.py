"""Signals that end a server, also at once."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import weakref
from typing import Final, NoReturn

ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Being told to end, Ctrl-C, and a terminal that is closed or a connection that is lost."""


def heeded() -> tuple[signal.Signals, ...]:
    """Those that this process shall end by: where SIGHUP is ignored from the start, as after `nohup`, it stays so."""
    hangup_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(each for each in ENDING if not (each is signal.SIGHUP and hangup_ignored))


def hurries(number: signal.Signals) -> bool:
    """Whether it cuts short the draining of a server that was told to end before.

    SIGHUP does not: a terminal that is closed sends it twice, once by its shell and once by the system.
    """
    return number is not signal.SIGHUP


temporary: Final = weakref.WeakSet[tempfile.TemporaryDirectory[str]]()
"""Folders that `end_at_once` removes, as the interpreter does where it is let."""


def end_at_once(number: signal.Signals) -> NoReturn:
    """End this process as if by the signal.

    Not by sys.exit: a compute thread in the middle of a kernel would keep the interpreter waiting.
    """
    for folder in temporary:
        with contextlib.suppress(OSError):  # whatever it is, the process ends
            folder.cleanup()
    os._exit(128 + number)
