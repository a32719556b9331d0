"""Start, serve, drain, stop, with real processes and signals."""

from __future__ import annotations

import functools
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import TensorProto, helper, numpy_helper

from recserve.server import lifecycle
from recserve.v1 import recommender_pb2 as pb
from recserve.v1.recommender_pb2_grpc import RecommenderServiceStub

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING

REQUESTS = 256
# One request per batch on one thread: a whole BatchRecommend keeps the server busy for a good part of a second.
SLOW = ("--set", "compute.max_batch=1", "--set", "admission.max_queue=10000")

Call = Future[pb.BatchRecommendResponse]
Start = Callable[..., Any]
Run = Callable[..., Any]
Make = Callable[..., Path]


def health_of(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status)


def recommend(address: str) -> pb.RecommendResponse:
    with grpc.insecure_channel(address) as channel:
        request = pb.RecommendRequest(user_id="user-01", count=5)
        return RecommenderServiceStub(channel).Recommend(request, timeout=10)


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(12) as executor:
        yield executor


def calls_in_flight(callers: ThreadPoolExecutor, address: str, calls: int) -> list[Call]:
    """Calls that the server is at work on: another one, sent together with them, has been answered."""
    request = pb.BatchRecommendRequest(
        requests=[pb.RecommendRequest(user_id=f"user-{index % 50:02d}", count=39) for index in range(REQUESTS)]
    )

    def call() -> pb.BatchRecommendResponse:
        with grpc.insecure_channel(address) as channel:
            return RecommenderServiceStub(channel).BatchRecommend(request, timeout=60)

    sent = [callers.submit(call) for _ in range(calls + 1)]
    wait(sent, return_when=FIRST_COMPLETED)
    return [each for each in sent if not each.done()]


@pytest.fixture(name="start_server")
def fixture_start_server(start_server: Start, front: str) -> Start:
    """Starts servers with each front."""
    return functools.partial(start_server, "--set", f"server.front={front}")


# ------------------------------------------------------------------------------------------------------------ start


def test_it_says_when_it_is_ready_and_what_to_try(
    start_server: Start, recserve: Run, tiny_bundle: Make, tiny_snapshot: Make, tmp_path: Path
) -> None:
    bundle, canary = tiny_bundle(), tiny_bundle(target=tmp_path / "canary", version="2")
    server = start_server("--bundle", f"{bundle}", "--bundle", f"canary={canary}", "--snapshot", f"{tiny_snapshot()}")
    address = server.wait_until_ready()
    assert health_of(address) == SERVING
    ready, hint = server.stdout.splitlines()
    assert re.fullmatch(rf"recserve .+ is ready on {address}: default \(tiny 1\), canary \(tiny 2\)", ready)
    command = shlex.split(hint.removeprefix("Try: recserve "))
    answer = recserve(*command)
    assert answer.returncode == 0, answer.stderr
    assert "bundle default 1, known user" in answer.stdout
    assert len(answer.stdout.splitlines()) == 4 + 10
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    assert server.stdout.splitlines() == [ready, hint]


def test_the_log_has_one_line_an_event_in_utc(start_server: Start, tiny_bundle: Make) -> None:
    server = start_server("--bundle", f"{tiny_bundle()}")
    server.wait_until_ready()
    server.send(signal.SIGINT)
    assert server.wait() == 0
    lines = server.log.splitlines()
    line = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO |WARNING) +recserve\.[a-z.]+: .+")
    assert [each for each in lines if not line.fullmatch(each)] == []
    assert any("no user snapshot is configured" in each and "WARNING" in each for each in lines)
    assert [each.partition(": ")[2] for each in lines[-3:]] == ["received SIGINT", "draining for up to 10 s", "stopped"]


def test_it_tells_at_the_end_what_caches_were_good_for(start_server: Start, tiny_bundle: Make) -> None:
    server = start_server("--bundle", f"{tiny_bundle()}", "--set", "answer_cache.entries=10")
    address = server.wait_until_ready()
    answers = [recommend(address) for _ in range(3)]
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    assert [answer.cache_hit for answer in answers] == [False, True, True]
    assert "cache of answers: 2 hits, 1 misses, 1 entries, 0 evicted" in server.log


def test_a_taken_port_is_an_error_at_once(start_server: Start, recserve: Run, tiny_bundle: Make, front: str) -> None:
    bundle = tiny_bundle()
    port = start_server("--bundle", f"{bundle}").wait_until_ready().rpartition(":")[2]
    second = recserve("serve", "--bundle", f"{bundle}", "--port", port, RECSERVE_SERVER__FRONT=front)
    assert second.returncode == 1
    assert second.stdout == ""
    assert second.stderr.startswith(f"recserve: cannot listen on 127.0.0.1:{port}: ")
    assert len(second.stderr.splitlines()) == 1, "the libraries' own logs have no place here"


def test_a_port_that_another_program_holds(recserve: Run, tiny_bundle: Make) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        found = recserve("serve", "--bundle", f"{tiny_bundle()}", "--port", f"{port}")
    assert found.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in found.stderr


def last_line(text: str) -> str:
    return text.splitlines()[-1]


def test_no_bundle_there(recserve: Run, tmp_path: Path) -> None:
    found = recserve("serve", "--bundle", f"x={tmp_path / 'none'}", "--port", "0")
    assert found.returncode == 1
    assert last_line(found.stderr).startswith(f'recserve: bundle "x" at {tmp_path / "none"}: no such directory')


def test_a_damaged_bundle_is_refused(recserve: Run, tiny_bundle: Make) -> None:
    bundle = tiny_bundle()
    vectors = bundle / "spaces" / "als" / "vectors.npy"
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.chmod(0o644)
    vectors.write_bytes(content)
    found = recserve("serve", "--bundle", f"{bundle}", "--port", "0")
    assert found.returncode == 1
    assert "spaces/als/vectors.npy" in last_line(found.stderr)


def test_a_snapshot_of_other_users_is_refused(
    recserve: Run, tiny_bundle: Make, tiny_snapshot: Make, other_schema: dict[str, Any]
) -> None:
    bundle, snapshot = tiny_bundle(), tiny_snapshot(schema=other_schema)
    found = recserve("serve", "--bundle", f"{bundle}", "--snapshot", f"{snapshot}", "--port", "0")
    assert found.returncode == 1
    message = last_line(found.stderr)
    assert f'user snapshot 1 ({snapshot}) does not fit bundle "default" (tiny 1)' in message


def test_a_placement_that_no_bundle_can_serve(recserve: Run, tiny_bundle: Make) -> None:
    placement = 'placements.home={sources = [{name = "trending", weight = 1}], caps = [{attribute = "price", max = 1}]}'
    found = recserve("serve", "--bundle", f"{tiny_bundle()}", "--port", "0", "--set", placement)
    assert found.returncode == 1
    assert "placements.home.sources[0].name" in found.stderr
    assert "placements.home.caps[0].attribute" in found.stderr


@pytest.mark.parametrize(
    ("listening", "reachable"),
    [
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("0.0.0.0:1", "127.0.0.1:1"),
        ("[::]:1", "[::1]:1"),
        ("[fe80::1]:1", "[fe80::1]:1"),
        ("localhost:1", "localhost:1"),
    ],
)
def test_the_address_in_the_hint_can_be_connected_to(listening: str, reachable: str) -> None:
    assert lifecycle._reachable(listening) == reachable


def test_a_host_that_does_not_exist(recserve: Run, tiny_bundle: Make) -> None:
    found = recserve("serve", "--bundle", f"{tiny_bundle()}", "--host", "no-such-host.invalid")
    assert found.returncode == 1
    assert found.stderr.startswith("recserve: cannot listen on no-such-host.invalid:50051: the host is unknown (")
    assert found.stderr.endswith("set server.host\n")


@contextmanager
def serving(program: str, *arguments: str, stdout: int) -> Iterator[subprocess.Popen[str]]:
    """`recserve serve` on a free port, by a program that may prepare something before it calls `main`."""
    command = [sys.executable, "-c", program, "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line_with(process: subprocess.Popen[str], text: str) -> str:
    """The next line of the process's log that holds the text."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return line
    raise AssertionError(f"the log ended without {text!r}")


MAIN = "from recserve.server.cli import main; raise SystemExit(main())"


LOADING = f"""
import time
from recserve.server import lifecycle

lifecycle.load = lambda settings: time.sleep(300)
{MAIN}
"""


def test_while_it_loads_it_is_alive_but_not_serving(tmp_path: Path, front: str) -> None:
    arguments = ("--bundle", f"{tmp_path}", "--set", f"server.front={front}")
    with serving(LOADING, *arguments, stdout=subprocess.PIPE) as server:
        address = line_with(server, "listening on").split()[-1]
        assert health_of(address) == NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            recommend(address)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        server.send_signal(signal.SIGTERM)
        out, _ = server.communicate(timeout=30)
    assert (server.returncode, out) == (0, "")


NETWORK = f"""
import os
import numpy as np
import onnxruntime
from recserve.server import lifecycle

def load(settings):
    session = onnxruntime.InferenceSession(os.environ["NETWORK"])
    print("loading", flush=True)
    while True:
        session.run(None, {{"x": np.zeros((256, 256), np.float32)}})

lifecycle.load = load
{MAIN}
"""


def test_sigterm_while_a_network_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C++ aborts a process that ends one of its threads."""
    weights = numpy_helper.from_array(np.zeros((256, 256), np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [256, 256]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "net", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    monkeypatch.setenv("NETWORK", f"{tmp_path / 'net.onnx'}")
    with serving(NETWORK, "--bundle", f"{tmp_path}", stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "loading\n"
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=30)
    assert server.returncode == 0
    assert last_line(log).endswith("stopped")


def test_nobody_reads_its_announcement(tiny_bundle: Make) -> None:
    read, write = os.pipe()
    os.close(read)
    with serving(MAIN, "--bundle", f"{tiny_bundle()}", stdout=write) as server:
        os.close(write)
        address = line_with(server, "serving on").split()[-1]
        assert health_of(address) == SERVING
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=30)
    assert server.returncode == 0
    assert "Error" not in log


# ------------------------------------------------------------------------------------------------------------ drain


def test_sigterm_finishes_what_is_in_flight(
    start_server: Start, callers: ThreadPoolExecutor, tiny_bundle: Make
) -> None:
    server = start_server("--bundle", f"{tiny_bundle()}", *SLOW, "--set", "server.drain_seconds=60")
    address = server.wait_until_ready()
    with grpc.insecure_channel(address) as channel:
        health, service = health_pb2_grpc.HealthStub(channel), RecommenderServiceStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == SERVING
        calls = calls_in_flight(callers, address, 4)
        server.send(signal.SIGTERM)
        server.wait_for_log("draining")
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            service.Recommend(pb.RecommendRequest(user_id="late"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not all(call.done() for call in calls), "something has to be in flight for this test to mean anything"
    for call in calls:
        answers = call.result(60).answers
        assert len(answers) == REQUESTS
        assert all(len(each.response.items) == 39 for each in answers)
    assert server.wait() == 0
    assert last_line(server.log).endswith("stopped")


def test_what_takes_longer_than_the_drain_is_cut_off(
    start_server: Start, callers: ThreadPoolExecutor, tiny_bundle: Make
) -> None:
    server = start_server("--bundle", f"{tiny_bundle()}", *SLOW, "--set", "server.drain_seconds=0")
    calls = calls_in_flight(callers, server.wait_until_ready(), 11)
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    assert "cut off" in server.log
    assert any(isinstance(call.exception(60), grpc.RpcError) for call in calls)


STUCK = f"""
import time
from recserve.server.pipeline.pipeline import Pipeline

def run(*_, **__):
    print("stuck", flush=True)
    time.sleep(300)

Pipeline.run = run
{MAIN}
"""


def test_a_kernel_that_does_not_return_does_not_keep_the_process(
    tiny_bundle: Make, callers: ThreadPoolExecutor, front: str
) -> None:
    arguments = (
        "--bundle", f"{tiny_bundle()}", "--set", "server.drain_seconds=1", "--set", f"server.front={front}"
    )  # fmt: skip
    with serving(STUCK, *arguments, stdout=subprocess.PIPE) as server:
        address = line_with(server, "serving on").split()[-1]
        call = callers.submit(recommend, address)
        assert server.stdout is not None
        assert any(line == "stuck\n" for line in server.stdout)
        server.send_signal(signal.SIGTERM)
        started = time.monotonic()
        _, log = server.communicate(timeout=30)
        seconds = time.monotonic() - started
    assert server.returncode == 0
    assert 0.9 < seconds < 5
    assert "still at work" in log
    assert isinstance(call.exception(30), grpc.RpcError)


def test_a_closed_terminal_finishes_what_is_in_flight(
    start_server: Start, callers: ThreadPoolExecutor, tiny_bundle: Make
) -> None:
    """SIGHUP comes twice then, by the shell and by the system."""
    server = start_server("--bundle", f"{tiny_bundle()}", *SLOW, "--set", "server.drain_seconds=60")
    calls = calls_in_flight(callers, server.wait_until_ready(), 4)
    server.send(signal.SIGHUP)
    server.wait_for_log("draining")
    server.send(signal.SIGHUP)
    assert not all(call.done() for call in calls), "something has to be in flight for this test to mean anything"
    assert [len(call.result(60).answers) for call in calls] == [REQUESTS] * len(calls)
    assert server.wait() == 0
    assert "received SIGHUP" in server.log


@pytest.mark.parametrize("workers", ["1", "2"])
def test_after_nohup_a_closed_terminal_is_nothing(tiny_bundle: Make, workers: str) -> None:
    ignoring = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); {MAIN}"
    arguments = ("--bundle", f"{tiny_bundle()}", "--workers", workers)
    with serving(ignoring, *arguments, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split(" is ready on ")[1].split(": ")[0]
        server.send_signal(signal.SIGHUP)
        server.send_signal(signal.SIGHUP)
        assert health_of(address) == SERVING
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=30)
    assert server.returncode == 0
    assert "SIGHUP" not in log


def test_a_second_signal_stops_at_once(
    start_server: Start,
    callers: ThreadPoolExecutor,
    tiny_bundle: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", f"{temporary}")
    server = start_server("--bundle", f"{tiny_bundle()}", *SLOW)
    calls = calls_in_flight(callers, server.wait_until_ready(), 4)
    server.send(signal.SIGINT)
    server.wait_for_log("draining")
    server.send(signal.SIGTERM)
    assert server.wait() == 128 + signal.SIGTERM
    assert "received SIGTERM again: stopping at once" in server.log
    assert any(isinstance(call.exception(60), grpc.RpcError) for call in calls)
    assert list(temporary.iterdir()) == []
