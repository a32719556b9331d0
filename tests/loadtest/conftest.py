"""Servers with a will of their own, for the generator to be tried on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from recserve.loadtest.reference.build import Workload, workload
from recserve.loadtest.reference.recipe import Recipe
from recserve.v1 import recommender_pb2 as pb

SERVICE = "recserve.v1.RecommenderService"


class TimedServer:
    """timed_server.py as a process: it answers when it is told to, and logs when it did."""

    def __init__(self, log: Path, **plan: Any) -> None:
        script = Path(__file__).with_name("timed_server.py")
        self._log = log
        self.process = subprocess.Popen(
            [sys.executable, str(script), json.dumps({"log": str(log), **plan})], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def end(self) -> dict[int, int]:
        """End it; when it had answered each request, by CLOCK_MONOTONIC in nanoseconds."""
        self.process.terminate()
        self.process.communicate(timeout=20)
        return {int(number): when for number, when in json.loads(self._log.read_text())} if self._log.exists() else {}


@pytest.fixture
def timed_server(tmp_path: Path) -> Iterator[Callable[..., TimedServer]]:
    """Starts servers; the test ends them, or this does."""
    started: list[TimedServer] = []

    def start(**plan: Any) -> TimedServer:
        started.append(TimedServer(tmp_path / f"log-{len(started)}.json", **plan))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.end()


def answer_of(items: int, *, degraded: bool = False) -> bytes:
    response = pb.RecommendResponse(items=[pb.Recommendation(item_id=f"item-{n}", rank=n) for n in range(items)])
    response.times.rank_us, response.times.total_us = 1234, 5678
    if degraded:
        response.degraded.add(stage="state", reason="deadline")
    return response.SerializeToString()


@pytest.fixture(name="answer_of")
def fixture_answer_of() -> Callable[..., bytes]:
    """The bytes of an answer with so many items."""
    return answer_of


Handler = Callable[[bytes, grpc.ServicerContext], bytes]


@pytest.fixture
def grpc_server() -> Iterator[Callable[..., tuple[int, grpc.Server]]]:
    """Starts grpcio servers whose Recommend is a function of the request's bytes; gives the port and the server."""
    started: list[grpc.Server] = []

    def start(
        recommend: Handler, *, method: str = "Recommend", options: tuple[tuple[str, int], ...] = (), port: int = 0
    ) -> tuple[int, grpc.Server]:
        server = grpc.server(ThreadPoolExecutor(8), options=(("grpc.so_reuseport", 0), *options))
        handlers = {method: grpc.unary_unary_rpc_method_handler(recommend)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        started.append(server)
        return bound, server

    yield start
    for server in started:
        server.stop(0).wait(10)


@pytest.fixture(scope="session")
def tiny_workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """A reference workload of 2,000 items, 300 users and 20 trees, which is searched exactly."""
    recipe = Recipe(name="tiny", items=2000, users=300, trees=20, groups=40, held_out=20)
    return workload(recipe, tmp_path_factory.mktemp("workloads") / "tiny")
