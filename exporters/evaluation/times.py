"""Times as people write them."""

from __future__ import annotations

import datetime

from recserve.exporters.errors import ExportError

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def shown_time(time_us: int) -> str:
    """ISO 8601 in UTC, to the second."""
    return (_EPOCH + datetime.timedelta(microseconds=time_us)).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> int:
    """Microseconds since 1970 UTC of an ISO 8601 date or time; without a zone it is UTC.

    Raises:
        ExportError: it is none.
    """
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ExportError(f"{text!r} is no time: expected ISO 8601, such as 2025-06-01T00:00:00Z") from error
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.UTC)
    return (time - _EPOCH) // datetime.timedelta(microseconds=1)
