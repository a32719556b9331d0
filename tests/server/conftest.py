"""`recserve serve` as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

COMMAND = (sys.executable, "-m", "recserve.server.cli")
SECONDS = 60
"""No step of a small server takes as long."""


def environment(**more: str) -> dict[str, str]:
    """This process's, without settings of recserve."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RECSERVE_")} | more


class ServerProcess:
    """`recserve serve` on a free port of 127.0.0.1."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self._out = directory / f"{time.monotonic_ns()}.out"
        self._err = self._out.with_suffix(".err")
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [*COMMAND, "serve", "--port", "0", *arguments], stdout=out, stderr=err, env=environment()
            )

    @property
    def stdout(self) -> str:
        return self._out.read_text(encoding="utf-8")

    @property
    def log(self) -> str:
        return self._err.read_text(encoding="utf-8")

    @property
    def address(self) -> str:
        """Waits until it listens."""
        return self.wait_for_log(r"listening on (\S+)")[1]

    def wait_until_ready(self) -> str:
        """Its address, once it serves."""
        self.wait_for_log("serving on")
        return self.address

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            found = re.search(pattern, self.log)
            if found:
                return found
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"no {pattern!r} in the log of a server that {self.process.poll()=}:\n{self.log}")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(SECONDS)


@pytest.fixture(scope="module", params=["grpc", "native"])
def front(request: pytest.FixtureRequest) -> str:
    """Each front; what servers do must not depend on which it is."""
    if request.param == "native":
        pytest.importorskip("pygrpc_native", reason="pygrpc-native is in the extra [native]")
    return str(request.param)


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers; what still runs at the end of the test is killed."""
    started: list[ServerProcess] = []

    def start(*arguments: str) -> ServerProcess:
        started.append(ServerProcess(tmp_path, *arguments))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.wait(SECONDS)


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ServerProcess]:
    """Starts a server that lives as long as its caller's fixture: whoever launches it ends it."""
    return lambda *arguments: ServerProcess(tmp_path_factory.mktemp("server"), *arguments)


@pytest.fixture(scope="module")
def address(tiny_originals: Path, tmp_path_factory: pytest.TempPathFactory, front: str) -> Iterator[str]:
    """A server over the tiny bundle and snapshot, for tests that only ask."""
    directory = tmp_path_factory.mktemp("server")
    config = directory / "server.toml"
    config.write_text(
        f"""
        [server]
        front = "{front}"
        [[bundles]]
        path = "{tiny_originals / "bundle"}"
        [state]
        snapshot = "{tiny_originals / "snapshot"}"
        [placements.default]
        sources = [{{name = "als", weight = 0.7}}, {{name = "popular", weight = 0.2}}, {{name = "again", weight = 0.1}}]
        """,
        encoding="utf-8",
    )
    server = ServerProcess(directory, "--config", str(config))
    yield server.wait_until_ready()
    server.send(signal.SIGTERM)
    server.wait()


@pytest.fixture
def recserve() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command of `recserve` to its end."""

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            env=environment(**more),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    return run


@pytest.fixture
def other_schema() -> dict[str, Any]:
    """Feature definitions that want other user columns than the tiny bundle's."""
    return {
        "schema_version": 1,
        "user": [{"name": "age", "type": "number"}],
        "context": [],
        "item": [{"name": "price", "type": "number"}],
        "event_types": ["view", "cart", "purchase"],
        "features": [{"name": "price", "op": "value", "inputs": ["item.price"]}],
    }
