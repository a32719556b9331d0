"""The straightforward service behind grpc.aio: `python -m recserve.loadtest.baselines.grpc_server --config FILE`.

Requests are answered on the event loop, one after the other: with one core a thread could only take turns with it.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Final, TypeAlias

import grpc
import uvloop

from recserve.loadtest.baselines.recommender import Recommender
from recserve.loadtest.baselines.start import opened
from recserve.v1 import recommender_pb2 as pb

SERVICE: Final = "recserve.v1.RecommenderService"
DEFAULT_COUNT: Final = 20

Context: TypeAlias = "grpc.aio.ServicerContext[pb.RecommendRequest, pb.RecommendResponse]"


class Servicer:
    """Recommend, and nothing else.

    Args:
        recommender: that answers.
    """

    def __init__(self, recommender: Recommender) -> None:
        self._recommender = recommender

    async def recommend(self, request: pb.RecommendRequest, context: Context) -> pb.RecommendResponse:
        """A user's list."""
        if not request.user_id:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "user_id must not be empty")
        found = self._recommender.recommend(
            request.user_id,
            request.count or DEFAULT_COUNT,
            device=request.context.device,
            country=request.context.country,
        )
        return pb.RecommendResponse(
            items=[
                pb.Recommendation(item_id=item, rank=place, score=relevance, relevance=relevance)
                for place, (item, relevance) in enumerate(found, 1)
            ]
        )

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server is given."""
        method = grpc.unary_unary_rpc_method_handler(
            self.recommend,
            request_deserializer=pb.RecommendRequest.FromString,
            response_serializer=pb.RecommendResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Recommend": method})


async def _serve(recommender: Recommender) -> None:
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    server.add_generic_rpc_handlers((Servicer(recommender).handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    print(f"grpc.aio is ready on 127.0.0.1:{port}: ", flush=True)
    await ended.wait()
    await server.stop(1.0)


if __name__ == "__main__":
    uvloop.run(_serve(opened()))
