"""What is measured: a server that runs already, or one that is started from its configuration."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from recserve.loadtest.generator.process import Protocol
from recserve.loadtest.runs.errors import TargetError
from recserve.loadtest.runs.signals import uninterrupted
from recserve.loadtest.runs.watch import check_watchable
from recserve.loadtest.workload.requests import Message
from recserve.server.address import host_and_port, joined
from recserve.server.client import CallError, call

START_SECONDS: Final = 600.0
"""A large bundle is verified before it is served."""
STOP_SECONDS: Final = 15.0
PROBE_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 30.0
"""For the first answers of a server that has just been started."""

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and empty SETTINGS
_TLS_ALERT: Final = 0x15


@dataclass(frozen=True, slots=True)
class Target:
    """Where the server listens, what it speaks, and its process; 0: unknown, so that its CPU time is not measured."""

    host: str
    port: int
    pid: int = 0
    protocol: Protocol = "grpc"

    @property
    def address(self) -> str:
        """As gRPC writes it."""
        return joined(self.host, self.port)


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "host:port".

    Raises:
        TargetError: it is not of that form.
    """
    try:
        return host_and_port(text)
    except ValueError as error:
        raise TargetError(str(error)) from error


@contextlib.contextmanager
def started_server(config: Path, cores: Sequence[int] = ()) -> Iterator[Target]:
    """`recserve serve` on a free port of this machine while the block runs.

    Args:
        config: its configuration file.
        cores: that it may use; empty: all.

    Raises:
        TargetError: it does not start; the message has the end of its log.
    """
    module = ("recserve.server.cli", "serve", "--config", str(config), "--host", "127.0.0.1", "--port", "0")
    with started(module, cores) as target:
        yield target


@contextlib.contextmanager
def started(module: Sequence[str], cores: Sequence[int] = (), protocol: Protocol = "grpc") -> Iterator[Target]:
    """A server in a process of its own while the block runs.

    Args:
        module: to run with Python, and its arguments; it says on standard output where it "is ready on HOST:PORT: ".
        cores: that it may use; empty: all.
        protocol: that it speaks.

    Raises:
        TargetError: it does not start; the message has the end of its log.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "out", Path(folder) / "log"
        with contextlib.ExitStack() as ending:
            with uninterrupted(), _on_cores(cores), out.open("wb") as stdout, log.open("wb") as stderr:
                # A session of its own: Ctrl-C ends the load, and we end the server.
                process = subprocess.Popen(
                    (sys.executable, "-m", *module),
                    stdout=stdout,
                    stderr=stderr,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
                ending.callback(_end, process)
            host, port = parse_address(_wait_until_ready(process, out, log))
            yield Target(host, port, process.pid, protocol)


def _wait_until_ready(process: subprocess.Popen[bytes], out: Path, log: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if found := re.search(r"is ready on (\S+):(?=\s)", out.read_text("utf-8")):
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    lines = log.read_text("utf-8", "replace").splitlines()[-5:]
    raise TargetError("\n  ".join(("the server did not start; the end of its log:", *lines)))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Processes that are started in the block keep to these cores."""
    allowed = os.sched_getaffinity(0)
    if not set(cores) <= allowed:
        raise TargetError(f"the server cannot have cores {sorted(cores)}: this process may use {sorted(allowed)}")
    os.sched_setaffinity(0, cores or allowed)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


# ------------------------------------------------------------------------------------------------------------ probe


def probe(target: Target, messages: Iterable[Message]) -> None:
    """Ask everything once, so that what is wrong with a target is said before the load and in words.

    Args:
        target: to be measured.
        messages: one of each kind that will be sent.

    Raises:
        TargetError: nothing listens, it does not speak HTTP/2 in clear text, it is not ready, it does not answer a
            request as it should, or its process cannot be watched.
    """
    _speaks_http2(target)
    _is_serving(target)
    for message in messages:
        try:
            call(target.address, message, ANSWER_SECONDS)
        except CallError as error:
            raise TargetError(_refused(target, message, str(error))) from error
    if target.pid:
        check_watchable(target.pid)


def _refused(target: Target, message: Message, answer: str) -> str:
    name = type(message).__name__.removesuffix("Request")
    if answer.startswith("UNIMPLEMENTED"):
        return (
            f"{target.address} does not offer recserve.v1.RecommenderService/{name}: it is another service, or another "
            f"version of the proto\n  {answer}"
        )
    return f"{target.address} does not answer {name} as it should: {answer}"


def _speaks_http2(target: Target) -> None:
    try:
        with socket.create_connection((target.host, target.port), PROBE_SECONDS) as connection:
            connection.settimeout(PROBE_SECONDS)
            connection.sendall(_PREFACE)
            said = connection.recv(9)
    except TimeoutError:
        raise TargetError(f"{target.address} does not accept or says nothing for {PROBE_SECONDS:g} s") from None
    except ConnectionResetError:
        said = b""
    except OSError as error:
        reason = error.strerror or error
        raise TargetError(f"nothing can be reached at {target.address}: {reason}; is the server running?") from error
    if len(said) == 9 and said[3] == 4:  # a frame of SETTINGS
        return
    if said[:1] == bytes([_TLS_ALERT]) or _speaks_tls(target):
        raise TargetError(
            f"{target.address} expects TLS, and the load generator speaks clear text only: measure the server's own "
            "port, behind whatever adds TLS"
        )
    what = "HTTP/1" if said.startswith(b"HTTP/1") else "something else"
    raise TargetError(f"{target.address} does not speak HTTP/2, which gRPC is made of, but {what}: {said!r}")


def _speaks_tls(target: Target) -> bool:
    """Whether it shakes hands; whose certificate it has does not matter."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((target.host, target.port), PROBE_SECONDS) as connection,
            context.wrap_socket(connection),
        ):
            return True
    except ssl.SSLError as error:
        return "CERTIFICATE" in (error.reason or "")  # it demands one of ours: TLS all the same
    except OSError:
        return False


def _is_serving(target: Target) -> None:
    with grpc.insecure_channel(target.address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PROBE_SECONDS)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # it says nothing of its health
                return
            reason = f"{error.code().name}, {error.details()}"
            raise TargetError(f"{target.address} does not tell its health: {reason}") from error
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        found = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise TargetError(f"{target.address} is {found}: no bundle is ready yet, or the server is draining")
