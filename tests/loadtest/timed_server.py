"""A server that answers when it is told to and logs when it did: an oracle for latencies. One thread, no libraries.

Its argument is a plan as JSON: `delays_s`, which requests have in turns by their number; `stall_at_s` and `stall_s`: so
long after the first request it does nothing for so long; `streams`: it takes so many requests at a time on a
connection, and says so in its SETTINGS; `log`: the file for [number, CLOCK_MONOTONIC] of each answer.
The number of a request are the last six bytes of its body. Its port stands on standard output.
"""

from __future__ import annotations

import heapq
import json
import select
import signal
import socket
import sys
import time
from pathlib import Path

DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def answer(stream: int) -> bytes:
    """One item and OK; the first header is 200 of the static table, the last grpc-status: 0."""
    message = b"\x0a\x00"
    body = b"\0" + len(message).to_bytes(4) + message
    trailers = b"\x00\x0bgrpc-status\x010"
    return frame(HEADERS, 4, stream, b"\x88") + frame(DATA, 0, stream, body) + frame(HEADERS, 5, stream, trailers)


class Peer:
    def __init__(self, connection: socket.socket, streams: int | None) -> None:
        self.connection = connection
        self.data = b""
        self.greeted = False
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        limit = b"" if streams is None else b"\0\3" + streams.to_bytes(4)
        connection.sendall(frame(SETTINGS, 0, 0, limit))

    def read(self) -> list[tuple[int, int]] | None:
        """Stream and number of each request that is whole; None: the connection has ended."""
        try:
            got = self.connection.recv(1 << 16)
        except ConnectionError:
            return None
        if not got:
            return None
        self.data += got
        if not self.greeted:
            if len(self.data) < 24:
                return []
            self.data, self.greeted = self.data[24:], True
        found = []
        while len(self.data) >= 9:
            size = int.from_bytes(self.data[:3])
            if len(self.data) < 9 + size:
                break
            kind, flags, stream = self.data[3], self.data[4], int.from_bytes(self.data[5:9])
            payload, self.data = self.data[9 : 9 + size], self.data[9 + size :]
            if kind == DATA and flags & 1:
                found.append((stream, int(payload[-6:])))
            elif kind in (SETTINGS, PING) and not flags & 1:
                self.connection.sendall(frame(kind, 1, 0, payload if kind == PING else b""))
        return found


def serve(plan: dict) -> None:
    log, peers, pending, first = [], {}, [], 0.0
    stall_at, delays = plan.get("stall_at_s"), plan.get("delays_s", [0])

    def stop(*_: object) -> None:
        Path(plan["log"]).write_text(json.dumps(log))
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        wait = max(0.0, pending[0][0] - time.monotonic()) if pending else 0.5
        readable, _, _ = select.select([listener, *peers], [], [], wait)
        if first and stall_at is not None and time.monotonic() >= first + stall_at:
            stall_at = None
            time.sleep(plan["stall_s"])
        for each in readable:
            if each is listener:
                connection, _ = listener.accept()
                peers[connection] = Peer(connection, plan.get("streams"))
                continue
            requests = peers[each].read()
            if requests is None:
                del peers[each]
                each.close()
            for stream, number in requests or ():
                first = first or time.monotonic()
                due = time.monotonic() + delays[number % len(delays)]
                heapq.heappush(pending, (due, stream, number, each.fileno(), each))
        while pending and pending[0][0] <= time.monotonic():
            _, stream, number, _, connection = heapq.heappop(pending)
            if connection in peers:
                connection.sendall(answer(stream))
                log.append((number, time.monotonic_ns()))


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
