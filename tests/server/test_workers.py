"""Several workers on one port: with each front they answer, share memory, and start and stop as one server."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from recserve.v1 import recommender_pb2 as pb
from recserve.v1.recommender_pb2_grpc import RecommenderServiceStub

Make = Callable[..., Path]
Run = Callable[..., Any]
Start = Callable[..., Any]

OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
CONNECTIONS = 40
"""All of them reach the same one of two workers once in 2 ** 39 times."""


@pytest.fixture
def start(start_server: Start, tiny_bundle: Make) -> Start:
    """Starts two workers over the tiny bundle."""
    return lambda *arguments: start_server("--bundle", f"{tiny_bundle()}", "--workers", "2", *arguments)


def ready(server: Any) -> str:
    """The server's address, once all workers serve."""
    end = time.monotonic() + 60
    while time.monotonic() < end and server.process.poll() is None:
        if found := re.search(r"is ready on (\S+):(?=\s)", server.stdout):
            return found[1]
        time.sleep(0.02)
    raise AssertionError(f"it did not become ready:\n{server.log}")


def workers_of(server: Any) -> list[int]:
    """The workers' process numbers: children that have the bundle mapped."""
    pid = server.process.pid
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split())
    return [each for each in children if "vectors.npy" in Path(f"/proc/{each}/maps").read_text("utf-8")]


def recommend(address: str, user: str = "user-01") -> pb.RecommendResponse:
    """Over a connection of its own."""
    with grpc.insecure_channel(address, OWN_CONNECTION) as channel:
        return RecommenderServiceStub(channel).Recommend(pb.RecommendRequest(user_id=user, count=5), timeout=20)


def test_connections_are_spread_over_the_workers(start: Start, front: str) -> None:
    server = start("--set", f"server.front={front}", "--set", "answer_cache.entries=10")
    address = ready(server)
    answers = [recommend(address) for _ in range(CONNECTIONS)]
    assert len({tuple(item.item_id for item in answer.items) for answer in answers}) == 1
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    assert len(server.stdout.splitlines()) == 2, "one announcement"
    assert server.log.count("remembers for itself") == 1
    found = re.findall(r"worker (\d): .* cache of answers: (\d+) hits, (\d+) misses", server.log)
    assert {worker for worker, _, _ in found} == {"1", "2"}
    assert all(int(misses) == 1 for _, _, misses in found)  # each has a cache of its own
    assert sum(int(hits) for _, hits, _ in found) == CONNECTIONS - 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_draining_finishes_what_is_in_flight_in_all_workers(start: Start, front: str, number: signal.Signals) -> None:
    """Also where the signal reaches the workers, too, as of a terminal or a service manager."""
    server = start(
        "--set", f"server.front={front}", "--set", "compute.max_batch=1", "--set", "server.drain_seconds=60"
    )  # fmt: skip
    address = ready(server)
    requests = [pb.RecommendRequest(user_id=f"user-{index % 50:02d}", count=39) for index in range(256)]

    def batch() -> pb.BatchRecommendResponse:
        with grpc.insecure_channel(address, OWN_CONNECTION) as channel:
            return RecommenderServiceStub(channel).BatchRecommend(
                pb.BatchRecommendRequest(requests=requests), timeout=60
            )

    with ThreadPoolExecutor(8) as callers:
        calls = [callers.submit(batch) for _ in range(8)]
        while not any(call.done() for call in calls):
            time.sleep(0.005)
        for pid in (*workers_of(server), server.process.pid):
            os.kill(pid, number)
        server.wait_for_log("worker 1: .*draining")
        assert not all(call.done() for call in calls), "something has to be in flight for this test to mean anything"
        assert [len(call.result(60).answers) for call in calls] == [256] * 8
    assert server.wait() == 0
    assert server.log.count("recserve.server.lifecycle: stopped") == 2
    assert "instead of draining" not in server.log


def test_the_port_belongs_to_one_server(start: Start, recserve: Run, front: str) -> None:
    server = start("--set", f"server.front={front}")
    port = ready(server).rpartition(":")[2]
    for workers in ("1", "2"):
        second = recserve("serve", "--bundle", "/none", "--port", port, "--workers", workers)
        assert second.returncode == 1
        assert second.stderr == (
            f"recserve: cannot listen on 127.0.0.1:{port}: Address already in use; set server.port or server.host\n"
        )


def test_several_workers_do_not_join_another_server(start_server: Start, recserve: Run, tiny_bundle: Make) -> None:
    port = start_server("--bundle", f"{tiny_bundle()}").wait_until_ready().rpartition(":")[2]
    second = recserve("serve", "--bundle", "/none", "--port", port, "--workers", "2")
    assert second.returncode == 1
    assert "Address already in use" in second.stderr


def test_a_bundle_that_cannot_be_served_is_told_once(recserve: Run) -> None:
    found = recserve("serve", "--bundle", "/none", "--port", "0", "--workers", "3")
    assert found.returncode == 1
    assert found.stderr.count("recserve: bundle") == 1
    assert "instead of draining" not in found.stderr, "who has said why is not accused"
    assert found.stderr.splitlines()[-1].startswith('recserve: bundle "default" at /none: no such directory')


def test_a_worker_that_ends_by_itself_ends_all(start: Start) -> None:
    server = start()
    ready(server)
    os.kill(workers_of(server)[0], signal.SIGKILL)
    assert server.wait() == 1
    assert re.search(r"\nrecserve: worker \d ended by SIGKILL, so the others were stopped", server.log)
    assert server.log.count("recserve.server.lifecycle: stopped") == 1


def test_workers_do_not_outlive_their_parent(start: Start) -> None:
    server = start()
    ready(server)
    workers = workers_of(server)
    server.process.kill()
    end = time.monotonic() + 30
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert server.log.count("recserve.server.lifecycle: stopped") == 2


SLOW_START = """
import sys, time
if "--multiprocessing-fork" in sys.orig_argv:
    time.sleep(1.5)
"""


def test_a_signal_while_workers_start(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of Ctrl-C in a terminal, which reaches all processes, before a worker has imported anything."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_START, "utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}", prepend=os.pathsep)
    server = start()
    server.wait_for_log("remembers for itself")
    pid = server.process.pid
    time.sleep(0.5)
    children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]
    assert len(children) >= 2
    for each in (*children, pid):
        os.kill(each, signal.SIGINT)
    assert server.wait() == 0
    assert "Traceback" not in server.log
    assert "received SIGINT" in server.log


def test_a_second_signal_stops_at_once(start: Start) -> None:
    server = start("--set", "compute.max_batch=1", "--set", "admission.max_queue=10000")
    with grpc.insecure_channel(ready(server)) as channel:
        request = pb.BatchRecommendRequest(requests=[pb.RecommendRequest(user_id="user-01", count=39)] * 256)
        calls = [RecommenderServiceStub(channel).BatchRecommend.future(request, timeout=60) for _ in range(12)]
        calls[0].result()
        server.send(signal.SIGINT)
        server.wait_for_log("draining")
        server.send(signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM
        assert any(isinstance(call.exception(30), grpc.RpcError) for call in calls)
    assert "received SIGTERM again: stopping at once" in server.log


def test_workers_share_the_pages_of_the_bundle(start: Start) -> None:
    server = start()
    address = ready(server)
    for index in range(CONNECTIONS):
        recommend(address, f"user-{index:02d}")
    sizes = [mapped(pid, "vectors.npy") for pid in workers_of(server)]
    assert len(sizes) == 2
    for resident, proportional in sizes:
        assert resident > 0
        assert proportional == pytest.approx(resident / 2, rel=0.1)


def mapped(pid: int, name: str) -> tuple[int, int]:
    """Resident and proportional kilobytes of a process's mappings of files of this name."""
    smaps = Path(f"/proc/{pid}/smaps").read_text("utf-8")
    areas = re.findall(rf"{re.escape(name)}\n(.*?VmFlags)", smaps, re.DOTALL)
    sums = [sum(int(re.search(rf"^{kind}: +(\d+) kB", each, re.M)[1]) for each in areas) for kind in ("Rss", "Pss")]
    return sums[0], sums[1]
