"""The straightforward service behind FastAPI: `python -m recserve.loadtest.baselines.http_server --config FILE`.

uvicorn with uvloop and httptools; requests are answered on the event loop, as in grpc_server. The answer is JSON by
orjson as it stands: FastAPI would otherwise check it against a model first.
"""

from __future__ import annotations

import socket
from typing import Annotated

import orjson
import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel, Field

from recserve.loadtest.baselines.recommender import Recommender
from recserve.loadtest.baselines.start import opened


class Context(BaseModel):
    """The situation."""

    device: str = ""
    country: str = ""


class Request(BaseModel):
    """As in the proto; other fields are ignored."""

    user_id: Annotated[str, Field(min_length=1)]
    count: Annotated[int, Field(ge=1, le=500)] = 20
    context: Context = Context()


def application(recommender: Recommender) -> FastAPI:
    """The service."""
    app = FastAPI()

    @app.post("/v1/Recommend")
    async def recommend(request: Request) -> Response:
        found = recommender.recommend(
            request.user_id, request.count, device=request.context.device, country=request.context.country
        )
        items = [
            {"item_id": item, "rank": place, "score": relevance, "relevance": relevance}
            for place, (item, relevance) in enumerate(found, 1)
        ]
        return Response(orjson.dumps({"items": items}), media_type="application/json")

    return app


def _serve(app: FastAPI) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False, log_level="warning")
    print(f"fastapi is ready on 127.0.0.1:{listener.getsockname()[1]}: ", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    _serve(application(opened()))
