"""The compiled client; client.pyx has the implementation, and loadtest/include the protocol."""

from collections.abc import Sequence
from typing import Final

from recserve.loadtest.generator.record import Record
from recserve.loadtest.generator.wire import Requests

CALLS_PER_CONNECTION: Final[int]
TEXT_BYTES: Final[int]
TIMES_BYTES: Final[int]
OUTCOMES: Final[int]

class Calls:
    """Requests, and the record of what becomes of them.

    Args:
        requests: what is sent.
        record: where to write; it must have room for all of `requests`, and its `due` says when each leaves.

    Raises:
        ValueError: sizes that do not go together, or an index that leads nowhere.
    """

    def __init__(self, requests: Requests, record: Record) -> None: ...
    def run(self, sockets: Sequence[int], *, outstanding: int = 0, end_ns: int = 0) -> tuple[str, str]:
        """Send every request when it is due, until all have an outcome; without the GIL.

        Args:
            sockets: descriptors of connected TCP sockets, all of one target; they are closed. Where a connection is
                lost, another is made to the same address.
            outstanding: 0: open loop. Else a closed loop: `due` is written, not read, and a request leaves as soon as
                fewer than that many are under way.
            end_ns: closed loop: nothing leaves after this moment of CLOCK_MONOTONIC.

        Returns:
            "done", "stopped" (`record.stop` was set), or "gone" (no connection for 3 seconds), and what was wrong with
            the last connection that failed.
        """

class Connection:
    """One connection without a socket: what the client makes of bytes. For tests and tools.

    Args:
        calls: in the order in which `begin` sends them.
    """

    def __init__(self, calls: Calls) -> None: ...
    def begin(self, now: int = 0) -> bool:
        """Begin the next call; False where the peer's limits do not allow it now."""
    def feed(self, data: bytes, now: int = 1) -> None:
        """What the peer says; nothing more is taken once `error` is set."""
    def take_output(self) -> bytes:
        """What is to be written to the peer since the last time."""
    @property
    def error(self) -> str:
        """Why the connection cannot go on; empty: it can."""
    @property
    def open_calls(self) -> int:
        """Calls that have no outcome yet."""
    @property
    def draining(self) -> bool:
        """The peer wants no more calls."""
