"""What speaks gRPC to the network. Two of them, one interface; every decision about a request is the service's.

grpcio   grpc.aio, the default
native   pygrpc-native: HTTP/2 and gRPC in Rust, outside the interpreter's lock; the extra `[native]`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import grpc.aio

from recserve.server.address import Address
from recserve.server.bundle.extras import install_hint
from recserve.server.config import ServerSettings
from recserve.server.rpc.errors import FrontError
from recserve.server.rpc.fronts.grpcio import GrpcioFront
from recserve.server.rpc.servicer import RecommenderService

__all__ = ["Front", "front_type"]


class Front(Protocol):
    """Answers calls of the contract's methods with what the service says. Made and used on one event loop."""

    @property
    def others(self) -> grpc.aio.Server:
        """What answers all other methods; services are added to it before `start`."""
        ...

    def bind(self, address: Address) -> int:
        """Take the address; the port, which the system chooses where it is 0.

        Raises:
            ListenError: it is not this machine's, or the port is taken or not permitted.
        """
        ...

    async def start(self) -> None:
        """Answer from now on.

        Raises:
            FrontError: the front lacks what it needs.
        """
        ...

    async def stop(self, grace: float) -> None:
        """Let answers that are ready leave for up to `grace` seconds, then cut off whatever is open."""
        ...


def front_type(name: Literal["grpc", "native"]) -> Callable[[RecommenderService, ServerSettings], Front]:
    """What makes the front that is configured by this name.

    Raises:
        FrontError: it is not installed.
    """
    if name == "grpc":
        return GrpcioFront
    try:
        from recserve.server.rpc.fronts.native import NativeFront  # noqa: PLC0415  an extra
    except ImportError as error:
        raise FrontError(
            f'server.front is "native", and its package cannot be loaded ({error}): '
            f"{install_hint('native')}; or leave server.front out"
        ) from error
    return NativeFront
