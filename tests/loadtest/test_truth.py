"""The generator tells the truth: its percentiles are those of what the server did, by the server's own log.

Delays are large against what a busy machine adds, and the expectation comes from when answers really left, so these
tests hold on a noisy machine, too.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recserve.loadtest.generator.pacing import Pattern, arrivals
from recserve.loadtest.generator.process import Generators, Load
from recserve.loadtest.generator.wire import Kind, Requests, header_block
from recserve.loadtest.runs.figures import Happened, figures
from recserve.v1 import recommender_pb2 as pb

PATH = "/recserve.v1.RecommenderService/Recommend"
WARMUP_S = 0.5


def requests_of(port: int, count: int, timeout_s: float = 20.0) -> Requests:
    """Requests that carry their number, for the server's log."""
    kind = Kind(header_block(PATH, f"127.0.0.1:{port}"), 1, 5, 6, int(timeout_s * 1e9))
    numbers = (pb.RecommendRequest(user_id=f"{number:06}") for number in range(count))
    return Requests.of([kind], [(0, each.SerializeToString()) for each in numbers], count)


def load(port: int, due: NDArray[np.int64], seconds: float, **options: Any) -> tuple[dict[str, Any], int]:
    """The figures of a run, and when it started."""
    requests = requests_of(port, len(due), options.pop("timeout_s", 20.0))
    with Generators(Load(host="127.0.0.1", port=port, requests=requests, **options), due) as generators:
        generators.start()
        while generators.running:
            time.sleep(0.05)
        generators.ended()
        happened = Happened.of(generators.records, generators.start_ns, WARMUP_S, seconds)
        return figures(happened), generators.start_ns


def of_log(log: dict[int, int], due: NDArray[np.int64], start_ns: int) -> NDArray[np.float64]:
    """Milliseconds from when each request was due until its answer left."""
    numbers = np.flatnonzero(due >= WARMUP_S * 1e9)
    return np.array([(log[number] - start_ns - due[number]) / 1e6 for number in numbers.tolist()])


@pytest.mark.parametrize(("pattern", "processes"), [("poisson", 1), ("constant", 2)])
def test_percentiles_are_those_of_programmed_delays(
    timed_server: Callable[..., Any], pattern: Pattern, processes: int
) -> None:
    delays = [0.6] * 16 + [1.0] * 3 + [1.5]
    server = timed_server(delays_s=delays)
    due = arrivals(pattern, 100, 4, seed=3)
    found, start_ns = load(server.port, due, 4 - WARMUP_S, processes=processes)
    logged = of_log(server.end(), due, start_ns)
    assert found["ok_share"] == 1.0
    assert found["runs"] == len(logged)
    for name, percent, programmed in (("p50_ms", 50, 600), ("p90_ms", 90, 1000), ("p99_ms", 99, 1500)):
        assert found[name] == pytest.approx(np.percentile(logged, percent, method="higher"), rel=0.02), name
        assert found[name] == pytest.approx(programmed, rel=0.1), name


def test_a_stall_is_seen_by_the_open_loop_and_missed_by_a_closed_one(timed_server: Callable[..., Any]) -> None:
    """For a second the server does nothing. Requests go on being due, and each waits for the rest of that second.

    A closed loop sends none meanwhile: the few that it had under way are all that tell of the stall.
    """
    stall = {"stall_at_s": 1.5, "stall_s": 1.0, "delays_s": [0.001]}
    server = timed_server(**stall)
    due = arrivals("constant", 200, 4)
    found, start_ns = load(server.port, due, 4 - WARMUP_S)
    logged = of_log(server.end(), due, start_ns)
    assert found["ok_share"] == 1.0
    for name, percent in (("p90_ms", 90), ("p99_ms", 99), ("p999_ms", 99.9)):
        assert found[name] == pytest.approx(np.percentile(logged, percent, method="higher"), rel=0.02), name
    # 200 of 700 requests are due in the stall, and wait from 1 s down to 0: 10% wait longer than 0.65 s.
    assert found["p90_ms"] == pytest.approx(650, rel=0.1)
    assert found["p99_ms"] == pytest.approx(965, rel=0.1)

    server = timed_server(**stall)
    closed = closed_loop_latencies(server.port, seconds=4)
    server.end()
    assert len(closed) > 400
    assert np.percentile(closed, 99) < 200  # a second without any answer, and the p99 does not show it
    assert closed.max() > 900


def closed_loop_latencies(port: int, seconds: float) -> NDArray[np.float64]:
    """What a tool reports that waits for an answer before it sends again, in milliseconds."""
    count = 20_000
    job = Load(host="127.0.0.1", port=port, requests=requests_of(port, count, 0), outstanding=2, seconds=seconds)
    with Generators(job, np.zeros(count, np.int64)) as generators:
        generators.start()
        while generators.running:
            time.sleep(0.05)
        generators.ended()
        record = generators.records[0]
        ended = record.outcome >= 0
        return (record.done - record.due)[ended] / 1e6


def test_missed_deadlines_are_part_of_the_percentiles(timed_server: Callable[..., Any]) -> None:
    """A third of the answers would come too late: they count with their deadline, and stand beside."""
    server = timed_server(delays_s=[0.3, 0.3, 3.0])
    due = arrivals("constant", 60, 3)
    found, _ = load(server.port, due, 3 - WARMUP_S, timeout_s=1.0)
    assert found["outcomes"]["DEADLINE_EXCEEDED"]["share"] == pytest.approx(1 / 3, abs=0.02)
    assert found["outcomes"]["OK"]["p99_ms"] == pytest.approx(300, rel=0.2)
    assert found["outcomes"]["DEADLINE_EXCEEDED"]["p50_ms"] == pytest.approx(1000, rel=0.05)
    assert found["p50_ms"] == pytest.approx(300, rel=0.2)
    assert found["p90_ms"] == pytest.approx(1000, rel=0.05)


def test_a_generator_that_is_held_up_says_so(timed_server: Callable[..., Any]) -> None:
    """Its process is stopped for half a second: latencies of those requests are not the server's."""
    server = timed_server()
    due = arrivals("constant", 100, 3)
    job = Load(host="127.0.0.1", port=server.port, requests=requests_of(server.port, len(due)))
    with Generators(job, due) as generators:
        generators.start()
        time.sleep(1)
        child = generators._children[0]._process.pid
        os.kill(child, signal.SIGSTOP)
        time.sleep(0.5)
        os.kill(child, signal.SIGCONT)
        while generators.running:
            time.sleep(0.05)
        found = figures(Happened.of(generators.records, generators.start_ns, 0, 3))
    assert not found["valid"]
    assert "could not keep up" in found["problems"][0]
    assert "--server-cores" not in found["problems"][0]  # which is refused beside --target
    assert found["lateness"]["max_ms"] > 300
    assert found["max_ms"] >= found["lateness"]["max_ms"]


def test_waiting_for_the_targets_streams_is_not_the_generators_lateness(timed_server: Callable[..., Any]) -> None:
    """For 0.8 s the server does nothing. When it goes on, all of its 10 streams come free at once, time and again."""
    server = timed_server(delays_s=[0.1], streams=10, stall_at_s=1.0, stall_s=0.8)
    due = arrivals("constant", 80, 4)
    found, start_ns = load(server.port, due, 4 - WARMUP_S, connections=1)
    logged = of_log(server.end(), due, start_ns)
    assert found["ok_share"] == 1.0
    assert found["p99_ms"] == pytest.approx(np.percentile(logged, 99, method="higher"), rel=0.02)
    assert found["p99_ms"] > 800
    assert 60 < found["blocked"] < found["runs"]
    assert found["lateness"]["max_ms"] < 100


def test_h2load_agrees_on_throughput(timed_server: Callable[..., Any], tmp_path: Path) -> None:
    """An independent tool on the same target, both with 8 requests under way. The server's delays set the rate."""
    h2load = shutil.which("h2load")
    if h2load is None:
        pytest.skip("h2load is not installed (Debian's nghttp2-client)")
    server = timed_server(delays_s=[0.04])
    body = tmp_path / "body"
    message = pb.RecommendRequest(user_id="000000").SerializeToString()
    body.write_bytes(b"\0" + len(message).to_bytes(4) + message)
    url = f"http://127.0.0.1:{server.port}{PATH}"
    headers = ("-H", "content-type: application/grpc", "-H", "te: trailers")
    command = (h2load, "-c", "4", "-m", "2", "-n", "400", "-d", str(body), *headers, url)
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "400 succeeded" in said
    found = re.search(r"finished in .+?, ([\d.]+) req/s", said)
    assert found is not None, said
    theirs = float(found[1])
    sent, done = closed_loop_of_eight(server.port)
    ours = len(done) / ((done.max() - sent.min()) / 1e9)
    assert ours == pytest.approx(theirs, rel=0.1)
    assert ours == pytest.approx(8 / 0.04, rel=0.1)


def closed_loop_of_eight(port: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """When each request left and when its answer came, in nanoseconds."""
    count = 5000
    job = Load(host="127.0.0.1", port=port, requests=requests_of(port, count, 0), outstanding=8, seconds=2)
    with Generators(job, np.zeros(count, np.int64)) as generators:
        generators.start()
        while generators.running:
            time.sleep(0.05)
        generators.ended()
        record = generators.records[0]
        answered = record.outcome >= 0
        return record.due[answered], record.done[answered]
