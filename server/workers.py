"""Several processes that serve on one port, and the one that starts and stops them.

    this process --starts, stops--> worker 1 .. N: each a server of its own, as in `lifecycle`

The workers share the port, over which the system spreads connections, and the pages of the mapped bundles. Each loads,
admits, caches and remembers by itself. A worker that ends by itself ends all: whoever runs the server starts it anew,
and learns that something was wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from recserve.server.address import look_up
from recserve.server.bundle.errors import RecserveError
from recserve.server.config import Settings
from recserve.server.logs import configure_logging
from recserve.server.signals import ENDING, heeded, hurries
from recserve.server.text import announce

logger = logging.getLogger(__name__)


class WorkerError(RecserveError):
    """A worker could not start, or ended by itself."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """A worker serves."""

    announcement: str


@dataclass(frozen=True, slots=True)
class _Failed:
    """A worker ends because of an error that a person can do something about."""

    error: str


def serve(settings: Settings) -> None:
    """Serve with `server.workers` processes until SIGTERM, SIGINT or SIGHUP; a second signal ends them at once.

    Raises:
        ListenError: the address cannot be listened on.
        WorkerError: this system cannot spread connections, or a worker could not start or ended by itself.
    """
    if sys.platform != "linux":
        raise WorkerError("only Linux spreads connections over processes: leave server.workers at 1")
    configured = settings.server
    with look_up(configured.host, configured.port).reserved() as port:
        logger.warning(
            "each of the %d workers remembers for itself what users were shown: exclude_shown knows only the answers "
            "that came from the worker whom a request reaches",
            configured.workers,
        )
        shared = settings.model_copy(update={"server": configured.model_copy(update={"port": port})})
        with _signals() as signals:
            _Workers(shared).run(signals)
    logger.info("all workers have stopped")


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket from which the numbers of received signals are read."""
    reading, writing = socket.socketpair()
    with reading, writing:
        writing.setblocking(False)
        signal.set_wakeup_fd(writing.fileno())
        for number in heeded():
            signal.signal(number, lambda *_: None)
        try:
            yield reading
        finally:
            signal.set_wakeup_fd(-1)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Signals wait, in processes that are started meanwhile as well.

    A worker that has not come as far as to ignore them would end of itself, and say so with a traceback.
    """
    resource_tracker.ensure_running()  # a process of multiprocessing's own; starting it lets signals through again
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


class _Workers:
    """The processes, by the connection to each."""

    def __init__(self, settings: Settings) -> None:
        self._running: dict[Connection, SpawnProcess] = {}
        self._failed: set[Connection] = set()  # they have said why they end
        self._announcements: list[str] = []
        self._count = settings.server.workers
        self._stopping = False
        self._problem = ""
        context = multiprocessing.get_context("spawn")
        for number in range(1, self._count + 1):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(settings, number, there), name=f"worker {number}")
            with _signals_held_back():
                process.start()
            there.close()  # so that its end is noticed here
            self._running[here] = process

    def run(self, signals: socket.socket) -> None:
        """Return when all have ended.

        Raises:
            WorkerError: not all of them because they were told to.
        """
        while self._running:
            for ready in wait([signals, *self._running]):
                if isinstance(ready, Connection):
                    self._hear(ready)
                else:
                    for number in signals.recv(16):
                        self._received(signal.Signals(number))
        if self._problem:
            raise WorkerError(self._problem)

    def _hear(self, worker: Connection) -> None:
        try:
            message = worker.recv()
        except (EOFError, ConnectionResetError):
            self._ended(worker)
            return
        if isinstance(message, _Failed):
            self._failed.add(worker)
            self._stop(message.error)
        elif isinstance(message, _Ready):
            self._announcements.append(message.announcement)
            if len(self._announcements) == self._count:
                announce(message.announcement)

    def _ended(self, worker: Connection) -> None:
        process = self._running.pop(worker)
        process.join()
        code = process.exitcode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        if not self._stopping:
            self._stop(f"{process.name} ended {how}, so the others were stopped; the log may say more")
        elif code and worker not in self._failed:
            logger.warning("%s ended %s instead of draining", process.name, how)

    def _received(self, number: signal.Signals) -> None:
        if not self._stopping:
            logger.info("received %s", number.name)
            self._stop()
        elif hurries(number):
            logger.warning("received %s again: stopping at once, requests in flight are cut off", number.name)
            for process in self._running.values():
                process.kill()
            os._exit(128 + number)

    def _stop(self, problem: str = "") -> None:
        """Tell all to drain; what is told first is why."""
        if not self._stopping:
            self._stopping, self._problem = True, problem
            for worker in self._running:
                with contextlib.suppress(OSError):  # it has ended
                    worker.send(None)


# --------------------------------------------------------------------------------------------------- in a worker


def _work(settings: Settings, number: int, parent: Connection) -> None:
    """The main function of a worker."""
    for each in ENDING:  # a terminal and service managers send them to all processes: the first one decides
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)  # held back since it was started: see _signals_held_back
    configure_logging(settings.log.level, f"worker {number}: ")
    from recserve.server.lifecycle import serve as serve_alone  # noqa: PLC0415  gRPC starts here, not in the parent

    try:
        serve_alone(settings, functools.partial(_Parent, parent))
    except RecserveError as error:
        parent.send(_Failed(str(error)))
        raise SystemExit(1) from None


class _Parent:
    """Who runs a worker: see `lifecycle.Owner`. A parent that has ended wants it to stop, too."""

    def __init__(self, connection: Connection) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self.stop: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(connection.fileno(), self._told)

    def announce(self, text: str) -> None:
        """See `lifecycle.Owner`."""
        with contextlib.suppress(OSError):  # nobody is left to be told
            self._connection.send(_Ready(text))

    def _told(self) -> None:
        self._loop.remove_reader(self._connection.fileno())
        self.stop.set_result(None)
