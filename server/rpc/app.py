"""The grpc.aio front: sockets, health, reflection; every decision about a request is the service's."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import grpc
import grpc.aio
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from recserve.server.config import ServerSettings
from recserve.server.rpc.errors import ListenError
from recserve.server.rpc.servicer import SERVICE, RecommenderService

logger = logging.getLogger(__name__)

_FLUSH_SECONDS: Final = 0.5
"""How long answers that are ready may take to leave; streams that never end (health watches) are cut off then."""

_REST_SECONDS: Final = 0.5
"""How long compute threads may take to notice that the callers whom they work for have been cut off."""

SocketAddress = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]
"""An element of what getaddrinfo gives."""

Handler = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[bytes]]


class RpcServer:
    """Serves a RecommenderService over gRPC. Made and used on one event loop.

    Args:
        service: what answers.
        settings: address, limits, and whether reflection is offered.
    """

    def __init__(self, service: RecommenderService, settings: ServerSettings) -> None:
        self._service = service
        self._settings = settings
        self._server = grpc.aio.server(options=_options(settings))
        self._health = health.aio.HealthServicer()
        self._server.add_generic_rpc_handlers((_handlers(service),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.reflection:
            names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)

    async def listen(self) -> int:
        """Bind the address and start answering; health is NOT_SERVING until `set_serving`.

        Returns:
            The port, which the system chooses where the configured one is 0.

        Raises:
            ListenError: the host is unknown or not this machine's, or the port is taken or not permitted.
        """
        host, port = self._settings.host, self._settings.port
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            sockets = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # UnicodeError: it cannot be a name at all
            reason = error.strerror if isinstance(error, OSError) else error
            raise ListenError(f"cannot listen on {address}: the host is unknown ({reason}); set server.host") from error
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError as error:
            reason = _why_not(sockets)
            raise ListenError(f"cannot listen on {address}: {reason}; set server.port or server.host") from error
        await self.set_serving(False)
        await self._server.start()
        return bound

    async def set_serving(self, serving: bool) -> None:
        """What grpc.health.v1 answers, for the server as a whole and for the service."""
        kind = health_pb2.HealthCheckResponse
        for name in ("", SERVICE.full_name):
            await self._health.set(name, kind.SERVING if serving else kind.NOT_SERVING)

    async def drain(self, seconds: float) -> bool:
        """Stop without hurting anybody: say NOT_SERVING, refuse new requests, finish admitted ones, then close.

        Args:
            seconds: how long admitted requests may take; those that take longer are cut off. It returns a second later
                at most.

        Returns:
            Whether the compute threads have come to rest. A kernel cannot be interrupted: one that still runs is left
            to end with the process.
        """
        await self._health.enter_graceful_shutdown()
        try:
            async with asyncio.timeout(seconds):
                await self._service.drain()
        except TimeoutError:
            logger.warning("requests were still in flight after %g s of draining and are cut off", seconds)
        await self._server.stop(_FLUSH_SECONDS)
        try:
            async with asyncio.timeout(_REST_SECONDS):
                await self._service.close()
        except TimeoutError:
            logger.warning("a compute thread is still at work for callers who have been cut off; it is left behind")
            return False
        return True

    async def wait_closed(self) -> None:
        """Return when the server has stopped."""
        await self._server.wait_for_termination()


def _why_not(sockets: Sequence[SocketAddress]) -> str:
    """Why the system refuses to bind one of the addresses; gRPC does not tell."""
    for family, kind, protocol, _, address in sockets:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
        except OSError as error:
            return error.strerror or str(error)
    return "the port is taken, or the address is not this machine's"


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),  # what the contract allows is sent; callers set their own limits
        # A second server on the same port must fail, not share its connections silently.
        ("grpc.so_reuseport", 0),
    ]


def _handlers(service: RecommenderService) -> grpc.GenericRpcHandler:
    """Every method of the contract, with bytes in and bytes out."""
    return grpc.method_handlers_generic_handler(
        SERVICE.full_name,
        {
            method.name: grpc.unary_unary_rpc_method_handler(_handler(service, method.name))
            for method in SERVICE.methods
        },
    )


def _handler(service: RecommenderService, method: str) -> Handler:
    async def handle(payload: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        reply = await service.answer(method, payload, context.time_remaining())
        if isinstance(reply, Status):
            status = rpc_status.to_status(reply)
            await context.abort(status.code, status.details, status.trailing_metadata)
        return reply

    return handle
