"""What is wrong with a target is said in words, before any load."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from recserve.loadtest.runs.ending import Ending
from recserve.loadtest.runs.errors import TargetError
from recserve.loadtest.runs.signals import uninterrupted
from recserve.loadtest.runs.target import Target, parse_address, probe, started_server
from recserve.loadtest.runs.watch import check_watchable
from recserve.server.bundle.interrupts import ENDING, handled
from recserve.v1 import recommender_pb2 as pb

MESSAGES = [pb.RecommendRequest(user_id="user-00")]
StartServer = Callable[..., tuple[int, grpc.Server]]


@pytest.mark.parametrize("text", ["", "localhost", ":1", "host:0", "host:65536", "host:x", "host:-1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(TargetError, match="is not HOST:PORT"):
        parse_address(text)


def test_addresses() -> None:
    assert parse_address("shop.example:443") == ("shop.example", 443)
    host, port = parse_address("[::1]:50051")
    assert Target(host, port).address == "[::1]:50051"


def test_nothing_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(TargetError, match=rf"127\.0\.0\.1:{port}.*refused; is the server running"):
            probe(Target("127.0.0.1", port), MESSAGES)


@pytest.fixture(name="listener")
def fixture_listener() -> Iterator[Callable[[Callable[[socket.socket], object]], int]]:
    """Starts servers that do something to each connection; gives the port."""
    listeners = []

    def start(handle: Callable[[socket.socket], object]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                try:
                    handle(connection)
                except (OSError, ssl.SSLError):
                    pass
                finally:
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for each in listeners:
        each.close()


def test_http_1_is_recognised(listener: Callable[..., int]) -> None:
    port = listener(lambda connection: connection.recv(100) and connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    with pytest.raises(TargetError, match=r"does not speak HTTP/2.*but HTTP/1"):
        probe(Target("127.0.0.1", port), MESSAGES)


def test_tls_is_recognised(listener: Callable[..., int], tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed: no certificate")
    command = f"{openssl} req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -subj /CN=localhost -days 2"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    port = listener(lambda connection: context.wrap_socket(connection, server_side=True).close())
    with pytest.raises(TargetError, match="expects TLS, and the load generator speaks clear text only"):
        probe(Target("127.0.0.1", port), MESSAGES)


def test_another_service_is_recognised(grpc_server: StartServer) -> None:
    port, _ = grpc_server(lambda request, _: request, method="Other")
    with pytest.raises(TargetError, match=r"does not offer recserve.v1.RecommenderService/Recommend: it is another"):
        probe(Target("127.0.0.1", port), MESSAGES)


def test_a_refusal_is_shown(grpc_server: StartServer) -> None:
    def refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
        return context.abort(grpc.StatusCode.INVALID_ARGUMENT, "count: 7000 is too many")  # type: ignore[return-value]

    port, _ = grpc_server(refuse)
    with pytest.raises(TargetError, match="does not answer Recommend as it should: INVALID_ARGUMENT: count: 7000"):
        probe(Target("127.0.0.1", port), MESSAGES)


def test_a_server_without_a_bundle_is_not_ready() -> None:
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    loading = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, loading)
    port = loading.add_insecure_port("127.0.0.1:0")
    loading.start()
    try:
        with pytest.raises(TargetError, match="is NOT_SERVING: no bundle is ready yet"):
            probe(Target("127.0.0.1", port), MESSAGES)
    finally:
        loading.stop(0).wait(5)


def test_a_server_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text('[[bundles]]\npath = "nowhere"\n')
    expected = re.compile("did not start; the end of its log.*nowhere", re.DOTALL)
    with pytest.raises(TargetError, match=expected), started_server(config):
        pass


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_very_moment_of_the_start_leaves_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    started = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            signal.raise_signal(sent)  # before anybody else knows of the process

    monkeypatch.setattr(subprocess, "Popen", Popen)
    as_ctrl_c = handled(ENDING, signal.default_int_handler)
    with as_ctrl_c, Ending() as ending, started_server(tmp_path / "server.toml"):
        pass
    assert ending.problem == "interrupted"
    (server,) = started
    assert server.returncode is not None


def test_a_command_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled(ENDING, signal.default_int_handler), Ending() as ending, uninterrupted():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ending.problem == ""


def test_a_process_that_there_is_not(grpc_server: StartServer) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    port, _ = grpc_server(lambda request, _: request)
    with pytest.raises(TargetError, match=f"there is no process {ended.pid} on this machine.*leave out --pid"):
        probe(Target("127.0.0.1", port, ended.pid), MESSAGES)


def test_a_process_of_somebody_else() -> None:
    """Only root can become somebody else; anybody else finds the first process to be root's."""
    root = os.geteuid() == 0
    pid = os.getppid() if root else 1
    check_watchable(os.getpid())
    try:
        if root:
            os.seteuid(65_534)
        with pytest.raises(TargetError, match=f"may not read /proc/.*process {pid}: run as the server's user"):
            check_watchable(pid)
    finally:
        if root:
            os.seteuid(0)


def test_cores_that_there_are_not(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="cannot have cores"), started_server(tmp_path / "server.toml", (4095,)):
        pass
