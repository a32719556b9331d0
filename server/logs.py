"""Logging of the server: to stderr, one line an event, times in UTC."""

from __future__ import annotations

import logging
import sys
import time

from recserve.server.text import printable

_FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)-7s {who}%(name)s: %(message)s"
_TIME = "%Y-%m-%dT%H:%M:%S"


class LineFormatter(logging.Formatter):
    """One line an event; only a stack trace, which follows its event, has lines of its own.

    Callers' ids end up in messages, so control characters are escaped: nobody writes a line in our name.
    """

    converter = staticmethod(time.gmtime)

    def __init__(self, who: str = "") -> None:
        super().__init__(_FORMAT.format(who=who), _TIME)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the base class's name
        """The line without its stack trace."""
        return printable(super().formatMessage(record))


def configure_logging(level: str, who: str = "") -> None:
    """Log to stderr from `level` on: "debug", "info", "warning" or "error"; `who` stands before each event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(who))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
