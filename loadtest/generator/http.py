"""A client of HTTP/1.1 beside the compiled one of gRPC, for services over HTTP that ours is compared with.

A thread for each connection, and at most one request under way on it. That is enough for some hundred requests a
second of whoever is measured; at more, this client is what is measured. It has the compiled client's schedule and
record, so that all figures are made in one way. It knows no deadlines and gives up at the first connection that is
lost; one that the service closes as it says, with its answer, is made again for the next request, which waits for it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from typing import Final

from recserve.loadtest.generator.record import BLOCKED, OK, OUTCOMES, PENDING, UNSENT, Record
from recserve.loadtest.generator.wire import PREFIX_BYTES, Requests

ANSWER_SECONDS: Final = 60.0
"""Nobody waits longer for an answer, or for a connection to take a request."""
PATIENCE_NS: Final = 50_000_000
"""Of one sleep: a stop is noticed within it."""
ITEM: Final = b'"item_id":'
"""What the JSON of each recommended item begins with."""
HEADERS: Final = {"Content-Type": "application/json"}

_STATUSES: Final = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""gRPC's word for a status of HTTP, as google/rpc/code.proto pairs them."""
_LOST: Final = OUTCOMES.index("connection lost")
_TOO_FEW: Final = OUTCOMES.index("too few items")


class HttpCalls:
    """Requests over HTTP and their record; the counterpart of `client.Calls`.

    Args:
        requests: JSON bodies; the headers of a kind are the path that its requests are posted to.
        record: filled while `run` is at work.
        address: host and port that the sockets are connected to.
    """

    def __init__(self, requests: Requests, record: Record, address: tuple[str, int]) -> None:
        self._requests = requests
        self._record = record
        self._address = address
        self._size = len(requests.message)
        self._lock = threading.Lock()
        self._next = 0
        self._error = ""

    def run(self, sockets: Sequence[int], *, outstanding: int = 0, end_ns: int = 0) -> tuple[str, str]:
        """Send every request when it is due.

        Args:
            sockets: descriptors of connected sockets, which are closed in the end.
            outstanding: as many requests are kept under way, at most one for each socket, until `end_ns`; 0: open loop.
            end_ns: closed loop: nothing leaves after it.

        Returns:
            How it ended, "done", "stopped" or "gone", and why the target is gone.
        """
        taking = sockets[: outstanding or len(sockets)]
        threads = [threading.Thread(target=self._work, args=(each, end_ns if outstanding else 0)) for each in taking]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        if self._error:
            return "gone", self._error
        stopped = self._record.stop[0] and (self._record.outcome == UNSENT).any()
        return ("stopped" if stopped else "done"), ""

    def _work(self, descriptor: int, end_ns: int) -> None:
        """Take the next request, wait until it is due, send it, and read its answer; over and over."""
        connection = _connection(descriptor, self._address)
        while (number := self._take(end_ns)) is not None and self._wait_until_due(number):
            try:
                self._call(connection, number)
            except (OSError, HTTPException) as error:
                self._error = f"{type(error).__name__}: {error}"
                self._end(number, _LOST, self._error)
                self._record.stop[0] = 1
        connection.close()

    def _take(self, end_ns: int) -> int | None:
        with self._lock:
            number = self._next
            now = time.monotonic_ns()
            if self._record.stop[0] or number == self._size or (end_ns and now >= end_ns):
                return None
            self._next += 1
        if end_ns:
            self._record.due[number] = now
        elif self._record.due[number] < now:
            self._record.flags[number] |= BLOCKED  # no connection was free when it was due
        return number

    def _wait_until_due(self, number: int) -> bool:
        """Whether it is to be sent, once it is due."""
        while (left := int(self._record.due[number]) - time.monotonic_ns()) > 0:
            if self._record.stop[0]:
                return False
            time.sleep(min(left, PATIENCE_NS) / 1e9)
        return True

    def _call(self, connection: HTTPConnection, number: int) -> None:
        message = int(self._requests.message[number])
        kind = self._requests.kinds[self._requests.message_kinds[message]]
        start, end = self._requests.offsets[message : message + 2]
        body = self._requests.messages[start + PREFIX_BYTES : end].tobytes()
        self._record.outcome[number] = PENDING
        connection.request("POST", kind.headers.decode(), body, HEADERS)
        self._record.sent[number] = time.monotonic_ns()
        response = connection.getresponse()
        answer = response.read()
        items = answer.count(ITEM)
        self._record.items[number] = items
        if response.status != 200:
            name = _STATUSES.get(response.status, "UNKNOWN")
            self._end(number, OUTCOMES.index(name), f"{response.status}: {answer[:200].decode('utf-8', 'replace')}")
        else:
            self._end(number, OK if items >= kind.min_items else _TOO_FEW, "")

    def _end(self, number: int, outcome: int, text: str) -> None:
        self._record.done[number] = time.monotonic_ns()
        self._record.outcome[number] = outcome
        self._record.keep_text(outcome, text)


def _connection(descriptor: int, address: tuple[str, int]) -> HTTPConnection:
    connection = HTTPConnection(*address, timeout=ANSWER_SECONDS)
    connection.sock = socket.socket(fileno=descriptor)
    connection.sock.settimeout(ANSWER_SECONDS)
    return connection
