"""A service on the network: a front, health, reflection, and the way to stop without hurting anybody."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from recserve.server.address import look_up
from recserve.server.config import ServerSettings
from recserve.server.rpc.fronts import front_type
from recserve.server.rpc.servicer import SERVICE, RecommenderService

logger = logging.getLogger(__name__)

_FLUSH_SECONDS: Final = 0.5
"""How long answers that are ready may take to leave; streams that never end (health watches) are cut off then."""

_REST_SECONDS: Final = 0.5
"""How long compute threads may take to notice that the callers whom they work for have been cut off."""


class RpcServer:
    """Serves a RecommenderService over gRPC. Made and used on one event loop.

    Args:
        service: what answers.
        settings: address, front, limits, and whether reflection is offered.

    Raises:
        FrontError: the configured front cannot be had.
    """

    def __init__(self, service: RecommenderService, settings: ServerSettings) -> None:
        self._service = service
        self._settings = settings
        self._front = front_type(settings.front)(service, settings)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._front.others)
        if settings.reflection:
            names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._front.others)

    async def listen(self) -> int:
        """Bind the address and start answering; health is NOT_SERVING until `set_serving`.

        Returns:
            The port, which the system chooses where the configured one is 0.

        Raises:
            ListenError: the host is unknown or not this machine's, or the port is taken or not permitted.
            FrontError: the front lacks what it needs.
        """
        bound = self._front.bind(await asyncio.to_thread(look_up, self._settings.host, self._settings.port))
        await self.set_serving(False)
        await self._front.start()
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
        await self._front.stop(_FLUSH_SECONDS)
        try:
            async with asyncio.timeout(_REST_SECONDS):
                await self._service.close()
        except TimeoutError:
            logger.warning("a compute thread is still at work for callers who have been cut off; it is left behind")
            return False
        return True
