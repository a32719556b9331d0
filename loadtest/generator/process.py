"""Generators are processes of their own, so that nothing else holds their interpreter or their core's caches.

The parent writes the schedule into memory that both share, and reads the record there: it has all that happened so far
whatever becomes of the child. `python -m recserve.loadtest.generator.process` is the child.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import pickle
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Literal

import numpy as np
from numpy.typing import NDArray

from recserve.loadtest.generator.client import Calls
from recserve.loadtest.generator.http import HttpCalls
from recserve.loadtest.generator.record import Record
from recserve.loadtest.generator.wire import Requests
from recserve.server.bundle.errors import RecserveError

_LEAD_NS: Final = 100_000_000
"""From the word to start until the first request is due: the processes have to hear it."""
_START_SECONDS: Final = 30.0


Protocol = Literal["grpc", "http"]
"""What a target speaks: gRPC over HTTP/2, or JSON over HTTP/1.1."""


class GeneratorError(RecserveError):
    """A generator could not start, or broke down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What generators have to know.

    Attributes:
        host, port, protocol: of the target.
        requests: what is sent, in the order of the schedule.
        connections: of each process.
        processes: each sends every processes-th request.
        cores: processes keep to these cores, in turns; empty: wherever the system puts them.
        realtime: processes go before all others on their cores (SCHED_FIFO), for machines that are shared. It takes
            privileges, and a core that the target does not need.
        times_every: see Record.
        outstanding: of each process; 0: open loop. See Calls.run.
        seconds: closed loop: how long requests leave.
    """

    host: str
    port: int
    requests: Requests
    connections: int = 4
    processes: int = 1
    cores: Sequence[int] = ()
    realtime: bool = False
    times_every: int = 10
    outstanding: int = 0
    seconds: float = 0.0
    protocol: Protocol = "grpc"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a generator ended: as Calls.run says, or "broken" where it could say nothing; and the CPU time it took."""

    end: str
    error: str
    cpu_s: float


class Generators:
    """The processes of one run. Leaving the block ends them.

    Args:
        load: what to send where.
        due_ns: when each request leaves, counted from the start; closed loop: ignored.
    """

    def __init__(self, load: Load, due_ns: NDArray[np.int64]) -> None:
        self._load = load
        self._due_ns = due_ns
        self._children: list[_Child] = []
        self.start_ns = 0

    def __enter__(self) -> Generators:
        try:
            for number in range(self._load.processes):
                self._children.append(_Child(self._load, number))
            for child in self._children:
                child.wait_until_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        for child in self._children:
            child.kill()

    @property
    def records(self) -> list[Record]:
        """What has happened so far, by process."""
        return [child.record for child in self._children]

    def start(self) -> None:
        """Begin the schedule."""
        self.start_ns = time.monotonic_ns() + _LEAD_NS
        for number, child in enumerate(self._children):
            child.record.due[:] = self.start_ns + self._due_ns[number :: self._load.processes]
            child.go(self.start_ns + int(self._load.seconds * 1e9))

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start of the schedule."""
        return (time.monotonic_ns() - self.start_ns) / 1e9

    def stop(self) -> None:
        """Send nothing more; what is under way still gets its outcome."""
        for child in self._children:
            child.record.stop[0] = 1

    @property
    def running(self) -> bool:
        """Whether a process is still at work."""
        return any(child.running for child in self._children)

    def ended(self) -> list[Ended]:
        """How each ended. What one that broke down had recorded until then is in its record."""
        return [child.ended() for child in self._children]


class _Child:
    """One process, with the memory that it shares."""

    def __init__(self, load: Load, number: int) -> None:
        requests = load.requests.part(number, load.processes)
        size = Record.size_of(len(requests.message), load.times_every)
        descriptor = os.memfd_create("recserve-loadtest")
        try:
            os.ftruncate(descriptor, size)
            self.record = Record.new(len(requests.message), load.times_every, mmap.mmap(descriptor, size))
            job = {
                "memory": descriptor,
                "host": load.host,
                "port": load.port,
                "protocol": load.protocol,
                "connections": load.connections,
                "core": load.cores[number % len(load.cores)] if load.cores else None,
                "realtime": load.realtime,
                "times_every": load.times_every,
                "outstanding": load.outstanding,
                "requests": requests,
            }
            self._process = subprocess.Popen(
                (sys.executable, "-m", __name__),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(descriptor,),
                start_new_session=True,  # Ctrl-C is for the parent, which stops the run and keeps what there is
            )
        finally:
            os.close(descriptor)
        self._say(pickle.dumps(job))

    def _say(self, message: bytes) -> None:
        if self._process.stdin is None:
            raise GeneratorError("a generator has no standard input")
        with contextlib.suppress(BrokenPipeError):  # it has ended: what it said tells why
            self._process.stdin.write(len(message).to_bytes(8) + message)
            self._process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise GeneratorError("a generator has no standard output")
        line = self._process.stdout.readline()
        if not line:
            raise GeneratorError(f"a generator broke down (exit status {self._process.wait(_START_SECONDS)})")
        said: dict[str, Any] = json.loads(line)
        if "failed" in said:
            raise GeneratorError(said["failed"])
        return said

    def wait_until_ready(self) -> None:
        self._hear()

    def go(self, end_ns: int) -> None:
        self._say(str(end_ns).encode())

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def ended(self) -> Ended:
        try:
            return Ended(**self._hear())
        except GeneratorError as error:
            return Ended("broken", str(error), cpu_s=0.0)

    def kill(self) -> None:
        if self.running:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


# ------------------------------------------------------------------------------------------------------- the child


def _read(source: BinaryIO) -> bytes:
    """What the parent says. If it ended before or in the middle of it, nobody wants anything any more."""
    head = source.read(8)
    message = source.read(int.from_bytes(head))
    if len(head) < 8 or len(message) < int.from_bytes(head):
        raise SystemExit(1)
    return message


def _stop_with_parent(record: Record) -> None:
    """Standard input ends when the parent does, and then nobody wants the rest."""
    while os.read(sys.stdin.fileno(), 1):  # not through its buffer, whose lock the interpreter wants when it ends
        pass
    record.stop[0] = 1


def _tell(**said: object) -> None:
    print(json.dumps(said), flush=True)


def _generate() -> None:
    job = pickle.loads(_read(sys.stdin.buffer))
    if job["core"] is not None:
        os.sched_setaffinity(0, {job["core"]})
    if job["realtime"]:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        except PermissionError:
            _tell(failed="this user may not schedule in real time: it takes CAP_SYS_NICE; or leave out --realtime")
            return
    requests: Requests = job["requests"]
    count, every = len(requests.message), job["times_every"]
    record = Record.within(mmap.mmap(job["memory"], Record.size_of(count, every)), count, every)
    address = job["host"], job["port"]
    calls = Calls(requests, record) if job["protocol"] == "grpc" else HttpCalls(requests, record, address)
    try:
        sockets = [socket.create_connection(address, timeout=5) for _ in range(job["connections"])]
    except OSError as error:
        _tell(failed=f"cannot connect to {address[0]}:{address[1]}: {error.strerror or error}")
        return
    for each in sockets:
        each.setblocking(False)
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _tell(ready=True)
    end_ns = int(_read(sys.stdin.buffer))
    threading.Thread(target=_stop_with_parent, args=(record,), daemon=True).start()
    before = _cpu_seconds()
    end, reason = calls.run([each.detach() for each in sockets], outstanding=job["outstanding"], end_ns=end_ns)
    _tell(end=end, error=reason, cpu_s=_cpu_seconds() - before)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    _generate()
