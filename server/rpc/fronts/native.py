"""The front of pygrpc-native: HTTP/2, framing and deadlines in Rust, outside the interpreter's lock.

    sockets -> Rust -+-> calls -> a thread -> the event loop -> a task for each call -> answer -> Rust
                     `-> calls of other methods (health, reflection) -> a grpc.aio server on a Unix socket

Calls that arrive while the loop is busy come to it together, in one wake-up, and the answers that it gives in one turn
leave together. That a call is over before it is answered, because its caller has left or its deadline has passed,
comes the same way as calls, and cancels its task.

This is the interface beneath pygrpc-native's copy of grpc.aio's server, which loses answers when it stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import grpc.aio
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from pygrpc_native import NativeGrpcFront

from recserve.server.address import Address
from recserve.server.config import ServerSettings
from recserve.server.rpc.errors import FrontError
from recserve.server.rpc.fronts.grpcio import server_options
from recserve.server.rpc.servicer import SERVICE, RecommenderService
from recserve.server.signals import temporary

_METHODS: Final = tuple(method.name for method in SERVICE.methods)
"""By the number that pygrpc-native gives them."""

_EVENTS: Final = 256
"""Most calls that the loop is handed at once."""

_IO_THREADS: Final = 1
"""One sends and receives several times as much as one event loop can answer."""

_STREAMS: Final = 2**31 - 1
"""Calls that a connection may have open: as with grpcio, it is admission that tells callers of too much load."""

Details = tuple[Sequence[tuple[str, str | bytes]], str, float | None]
"""Metadata, peer, and the seconds until the deadline, None without one."""

Event = tuple[int, int, int, bytes | None, bytes | str | None, Details | None]
"""Kind, number of the call, number of the method, payload, peer, details; without the last three the call is over."""


class NativeFront:
    """pygrpc-native for the contract's methods, grpcio behind it for all others; see `Front`."""

    def __init__(self, service: RecommenderService, settings: ServerSettings) -> None:
        self.others = grpc.aio.server(options=server_options(settings))
        self._service = service
        self._shared = settings.workers > 1
        self._max_bytes = settings.max_message_bytes
        self._loop = asyncio.get_running_loop()
        self._receiver = threading.Thread(target=self._receive, name="native-front", daemon=True)
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._replies: list[tuple[int, bytes]] = []
        self._answered = -math.inf
        self._native: NativeGrpcFront
        self._folder: tempfile.TemporaryDirectory[str]

    def bind(self, address: Address) -> int:
        """See `Front`."""
        # Asked first: pygrpc-native would write it to stderr, past the log.
        if reason := address.obstacle(shared=self._shared):
            raise address.refused(reason)
        try:
            self._native = _opened(address, reuse_port=self._shared)
        except OSError as error:
            raise address.refused(error.strerror) from error
        return self._native.bound_port

    async def start(self) -> None:
        """See `Front`."""
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="recserve-")
            temporary.add(self._folder)
            path = Path(self._folder.name) / "others.sock"
            self.others.add_insecure_port(f"unix:{path}")
        except (OSError, RuntimeError) as error:
            raise FrontError(
                f"the native front needs a Unix socket in a temporary folder, and cannot have one ({error}): set "
                "TMPDIR to a folder that can be written and has a short path"
            ) from error
        await self.others.start()
        self._native.set_fallback(str(path))
        self._native.start()
        self._receiver.start()

    async def stop(self, grace: float) -> None:
        """See `Front`."""
        end = self._loop.time() + grace
        others = asyncio.create_task(self.others.stop(grace))
        if self._calls:
            await asyncio.wait(self._calls.values(), timeout=grace)
        for task in self._calls.values():
            task.cancel()
        # Closing drops answers that are still on their way out, and nothing tells when they have left.
        await asyncio.sleep(min(end, self._answered + grace) - self._loop.time())
        await others
        await asyncio.to_thread(self._close)
        self._folder.cleanup()

    def _close(self) -> None:
        self._native.close()
        self._receiver.join()

    def _receive(self) -> None:
        """The receiving thread: hand over what happens until the front is closed."""
        while (events := self._native.recv_batch_details(_EVENTS)) is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody answers
                self._loop.call_soon_threadsafe(self._handle, events, time.monotonic())

    def _handle(self, events: Iterable[Event], received: float) -> None:
        waited = time.monotonic() - received  # the loop may have been busy
        for _, call, method, payload, _, details in events:
            if payload is not None and details is not None:
                time_left = None if details[2] is None else details[2] - waited
                answering = self._answer(call, _METHODS[method], payload, time_left)
                self._calls[call] = self._loop.create_task(answering)
            elif (task := self._calls.pop(call, None)) is not None:
                task.cancel()  # if it has not begun it never will, not even to take itself out of the calls

    async def _answer(self, call: int, method: str, payload: bytes, time_left: float | None) -> None:
        try:
            if len(payload) > self._max_bytes:
                self._native.fail(call, Code.RESOURCE_EXHAUSTED, f"the request is larger than {self._max_bytes} bytes")
            else:
                self._send(call, await self._service.answer(method, payload, time_left))
        except Exception:  # whatever it is, nobody shall wait for an answer that does not come
            self._native.fail(call, Code.INTERNAL, "internal error")
            raise
        finally:
            self._answered = self._loop.time()
            self._calls.pop(call, None)

    def _send(self, call: int, reply: bytes | Status) -> None:
        if isinstance(reply, Status):
            metadata = rpc_status.to_status(reply).trailing_metadata
            self._native.fail(call, reply.code, reply.message, metadata)
        else:
            if not self._replies:
                self._loop.call_soon(self._flush)
            self._replies.append((call, reply))

    def _flush(self) -> None:
        """Let the answers go that this turn of the loop has given.

        Each wakes the I/O thread, which on a core that both share takes it from the loop: those of one micro-batch go
        together.
        """
        replies, self._replies = self._replies, []
        for call, reply in replies:
            self._native.respond(call, reply)


def _opened(address: Address, *, reuse_port: bool) -> NativeGrpcFront:
    return NativeGrpcFront(
        address.text,
        [(f"/{SERVICE.full_name}/{name}", False) for name in _METHODS],
        io_threads=_IO_THREADS,
        call_details=True,
        keepalive_permit_without_calls=False,  # as grpcio
        max_concurrent_streams=_STREAMS,
        reuse_port=reuse_port,
    )
