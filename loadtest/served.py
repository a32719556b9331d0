"""Measures a server on this machine: latency of one request at a time, and requests per second at saturation.

Saturation is measured with a fixed number of outstanding requests, so its latencies would be the generator's own
waiting and are not reported.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np

from recserve.loadtest.results import Measurement
from recserve.v1 import recommender_pb2, recommender_pb2_grpc

OUTSTANDING = 8
START_SECONDS = 60.0
STOP_SECONDS = 15.0


async def measure_server(config: Path, user_ids: Sequence[str], *, requests: int, seconds: float) -> list[Measurement]:
    """Start `recserve serve` on a free loopback port, measure it, and stop it.

    Args:
        config: the server's configuration file.
        user_ids: users to ask for, in a seeded Zipf order.
        requests: how many to send one at a time.
        seconds: how long to keep the server saturated.

    Raises:
        RuntimeError: the server did not start, or answers failed.
    """
    async with _server(config) as (pid, address), grpc.aio.insecure_channel(address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        await asyncio.wait_for(channel.channel_ready(), START_SECONDS)
        order = _zipf_order(user_ids, 50_000)
        await _one_at_a_time(stub, order[:200])
        light = await _one_at_a_time(stub, order[:requests])
        before, start = _cpu_seconds(pid), time.perf_counter()
        answered = await _saturate(stub, order, seconds)
        elapsed = time.perf_counter() - start
        cpu_ms = 1000 * (_cpu_seconds(pid) - before) / answered
    return [
        Measurement(name="recserve, one request at a time", params={"count": 20}, milliseconds=light),
        Measurement(
            name="recserve, saturated",
            params={"count": 20, "outstanding": OUTSTANDING},
            milliseconds=[],
            extra={
                "answers": answered,
                "requests_per_s": round(answered / elapsed, 1),
                "cpu_ms_per_request": round(cpu_ms, 3),
            },
        ),
    ]


@asynccontextmanager
async def _server(config: Path) -> AsyncIterator[tuple[int, str]]:
    """The server as a process of its own, with its id and address; ended with the block whatever happens in it."""
    port = _free_port()
    command = (sys.executable, "-m", "recserve.server.cli", "serve", "--config", str(config), "--port", str(port))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    try:
        yield process.pid, f"127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _zipf_order(user_ids: Sequence[str], length: int) -> list[recommender_pb2.RecommendRequest]:
    """Requests for users by Zipf's law with exponent 1, seeded."""
    weights = 1.0 / np.arange(1, len(user_ids) + 1)
    chosen = np.random.default_rng(3).choice(len(user_ids), length, p=weights / weights.sum())
    return [recommender_pb2.RecommendRequest(user_id=user_ids[index], count=20) for index in chosen]


async def _one_at_a_time(
    stub: recommender_pb2_grpc.RecommenderServiceAsyncStub, requests: Sequence[recommender_pb2.RecommendRequest]
) -> list[float]:
    times = []
    for request in requests:
        start = time.perf_counter_ns()
        _check(await stub.Recommend(request, timeout=10, wait_for_ready=True))
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


async def _saturate(
    stub: recommender_pb2_grpc.RecommenderServiceAsyncStub,
    requests: Sequence[recommender_pb2.RecommendRequest],
    seconds: float,
) -> int:
    """Keep OUTSTANDING requests under way; how many were answered."""
    end, answered, position = time.perf_counter() + seconds, 0, 0

    async def caller() -> None:
        nonlocal answered, position
        while time.perf_counter() < end:
            request = requests[position % len(requests)]
            position += 1
            _check(await stub.Recommend(request, timeout=10))
            answered += 1

    await asyncio.gather(*(caller() for _ in range(OUTSTANDING)))
    return answered


def _check(response: recommender_pb2.RecommendResponse) -> None:
    if len(response.items) != 20 or response.degraded:
        raise RuntimeError(f"an answer is not what was asked for: {len(response.items)} items, {response.degraded}")


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
