"""Requests as bytes, made before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_TIMEOUT_S = 99.0
"""grpc-timeout has eight digits, and the client writes microseconds."""
PREFIX_BYTES = 5
"""Of a message as gRPC frames it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What requests of one kind share.

    Attributes:
        headers: the header block but for grpc-timeout, see `header_block`; over HTTP/1.1 the path.
        min_items: items of a good answer.
        degraded_field, times_field: numbers of the answer's fields `degraded` and `times`; 0: it has none. Its
            items are field 1.
        timeout_ns: deadline, counted from when the request is due; 0: none.
    """

    headers: bytes
    min_items: int
    degraded_field: int
    times_field: int
    timeout_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """Requests in the order in which they leave.

    Attributes:
        kinds: the kinds of messages.
        messages: all distinct messages as gRPC frames them, one behind the other.
        offsets: int64 [messages + 1], where each begins.
        message_kinds: int32 [messages], the kind of each.
        message: int32 [requests], the message of each request.
    """

    kinds: Sequence[Kind]
    messages: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    message_kinds: NDArray[np.int32]
    message: NDArray[np.int32]

    @classmethod
    def of(cls, kinds: Sequence[Kind], messages: Sequence[tuple[int, bytes]], requests: int) -> Requests:
        """Messages, each with its kind, in their order, and over again until there are enough."""
        framed = [frame_message(message) for _, message in messages]
        return cls(
            kinds=kinds,
            messages=np.frombuffer(b"".join(framed), np.uint8),
            offsets=np.cumsum([0, *map(len, framed)], dtype=np.int64),
            message_kinds=np.array([kind for kind, _ in messages], np.int32),
            message=(np.arange(requests) % len(messages)).astype(np.int32),
        )

    def part(self, number: int, parts: int) -> Requests:
        """Every `parts`-th request, from `number` on."""
        message = np.ascontiguousarray(self.message[number::parts])
        return Requests(self.kinds, self.messages, self.offsets, self.message_kinds, message)


def frame_message(message: bytes) -> bytes:
    """A message as gRPC sends it: not compressed, then its size, then itself."""
    return b"\0" + len(message).to_bytes(4) + message


def header_block(path: str, authority: str) -> bytes:
    """Request headers as an HPACK block (RFC 7541): literals without indexing, valid on any connection.

    Args:
        path: such as "/recserve.v1.RecommenderService/Recommend".
        authority: host and port.
    """
    static = {":authority": 1, ":path": 4, "content-type": 31, "user-agent": 58}  # names in HPACK's static table
    headers = (
        (":path", path),
        (":authority", authority),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "recserve-loadtest"),
    )
    block = b"\x83\x86"  # :method POST, :scheme http
    for name, value in headers:
        index = static.get(name, 0)
        block += _integer(index, 4) + (b"" if index else _text(name)) + _text(value)
    return block


def _text(text: str) -> bytes:
    return _integer(len(text.encode()), 7) + text.encode()


def _integer(value: int, bits: int) -> bytes:
    """Section 5.1, with zeros in front of the prefix."""
    most = (1 << bits) - 1
    return bytes([value]) if value < most else bytes([most, *_rest(value - most)])


def _rest(value: int) -> Iterator[int]:
    while value >= 0x80:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value
