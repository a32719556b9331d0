"""The front of grpcio."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import grpc
import grpc.aio
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from recserve.server.address import Address
from recserve.server.config import ServerSettings
from recserve.server.rpc.servicer import SERVICE, RecommenderService

GRPC_LOG: Final = logging.getLogger("grpc._cython.cygrpc")

Handler = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[bytes]]


class _CallsThatEnded(logging.Filter):
    """Drops what grpcio reports as an error of ours: a call that ended while its answer or status was on its way.

    A call that ends a moment earlier is a cancellation, of which it says nothing. Under load with short deadlines there
    is a stack trace for every few hundred calls.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not (isinstance(error, grpc.aio.InternalError) and type(error).__name__ == "ExecuteBatchError")


GRPC_LOG.addFilter(_CallsThatEnded())


class GrpcioFront:
    """One grpc.aio server for everything; see `Front`."""

    def __init__(self, service: RecommenderService, settings: ServerSettings) -> None:
        self.others = grpc.aio.server(options=server_options(settings))
        self._shared = settings.workers > 1
        self.others.add_generic_rpc_handlers((_handlers(service),))

    def bind(self, address: Address) -> int:
        """See `Front`."""
        try:
            return self.others.add_insecure_port(address.text)
        except RuntimeError as error:  # gRPC does not tell why
            raise address.refused(address.obstacle(shared=self._shared)) from error

    async def start(self) -> None:
        """See `Front`."""
        await self.others.start()

    async def stop(self, grace: float) -> None:
        """See `Front`."""
        await self.others.stop(grace)


def server_options(settings: ServerSettings) -> list[tuple[str, int]]:
    """Options of a grpc.aio server."""
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),  # what the contract allows is sent; callers set their own limits
        # Workers share a port on purpose. Else a second server must fail, not share its connections silently.
        ("grpc.so_reuseport", int(settings.workers > 1)),
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
