"""What becomes of each request, in memory that the processes of a run share."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from recserve.loadtest.generator.client import TEXT_BYTES, TIMES_BYTES

OUTCOMES: Final = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
    *("too few items", "connection lost", "not gRPC"),
)
"""How a request ended, by its number in `Record.outcome`: gRPC's codes, then what only a client sees."""
OK: Final = 0
PENDING: Final = -1
UNSENT: Final = -2
BLOCKED: Final = 1
DEGRADED: Final = 2


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """Arrays by request, in the order of the schedule.

    Attributes:
        due: when it is to leave: CLOCK_MONOTONIC, in nanoseconds; likewise the next two.
        sent: when it had been handed to the system; 0: not yet.
        done: when it had its outcome; 0: not yet.
        outcome: index into OUTCOMES, PENDING or UNSENT.
        items: in the answer.
        flags: BLOCKED: the target's limits (streams, windows) delayed it. DEGRADED: its answer says that it is.
        times: StageTimes of the answer to every `times_every`-th request: the size of the message, then its bytes.
        times_every: see there.
        texts: by outcome, grpc-message of the first request that ended so, percent-encoded as gRPC sends it, and
            filled up with zeros.
        stop: one number; once it is not 0, nothing more is sent.
    """

    due: NDArray[np.int64]
    sent: NDArray[np.int64]
    done: NDArray[np.int64]
    outcome: NDArray[np.int16]
    items: NDArray[np.int32]
    flags: NDArray[np.uint8]
    times: NDArray[np.uint8]
    times_every: int
    texts: NDArray[np.uint8]
    stop: NDArray[np.int32]

    @classmethod
    def within(cls, buffer: bytearray | mmap.mmap, requests: int, times_every: int) -> Record:
        """The record of that many requests within memory of `size_of` bytes; what it holds stays."""
        arrays, at = {}, 0
        for name, dtype, shape in _layout(requests, times_every):
            count = int(np.prod(shape))
            arrays[name] = np.frombuffer(buffer, dtype, count, at).reshape(shape)
            at += -(-count * dtype.itemsize // 8) * 8
        return cls(**arrays, times_every=times_every)

    @classmethod
    def new(cls, requests: int, times_every: int = 1, memory: mmap.mmap | None = None) -> Record:
        """An empty record, in memory of `size_of` bytes that are all 0, or in its own."""
        record = cls.within(memory or bytearray(cls.size_of(requests, times_every)), requests, times_every)
        record.outcome[:] = UNSENT
        return record

    @staticmethod
    def size_of(requests: int, times_every: int) -> int:
        """Bytes that a record needs."""
        sizes = (int(np.prod(shape)) * dtype.itemsize for _, dtype, shape in _layout(requests, times_every))
        return sum(-(-size // 8) * 8 for size in sizes)

    def messages(self) -> dict[str, str]:
        """What the first request of each outcome was told, by the outcome's name."""
        texts = (bytes(text).partition(b"\0")[0].decode("utf-8", "replace") for text in self.texts)
        return {name: unquote(text) for name, text in zip(OUTCOMES, texts, strict=True) if text}

    def keep_text(self, outcome: int, text: str) -> None:
        """What a request of that outcome was told, unless it is known of another one."""
        if text and not self.texts[outcome, 0]:
            encoded = text.replace("%", "%25").encode()  # nothing else would be decoded as something else
            cut = np.frombuffer(encoded[: TEXT_BYTES - 1], np.uint8)
            self.texts[outcome, : len(cut)] = cut


def _layout(requests: int, times_every: int) -> Iterator[tuple[str, np.dtype[np.generic], tuple[int, ...]]]:
    """Name, type and shape of every array, each at a multiple of 8 bytes."""
    for name in ("due", "sent", "done"):
        yield name, np.dtype(np.int64), (requests,)
    yield "outcome", np.dtype(np.int16), (requests,)
    yield "items", np.dtype(np.int32), (requests,)
    yield "flags", np.dtype(np.uint8), (requests,)
    yield "times", np.dtype(np.uint8), (-(-requests // times_every), TIMES_BYTES + 1)
    yield "texts", np.dtype(np.uint8), (len(OUTCOMES), TEXT_BYTES)
    yield "stop", np.dtype(np.int32), (1,)
