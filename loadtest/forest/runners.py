"""Runners let engines take turns.

A turn is a short burst of calls, engine after engine, so that what else the machine does meets all of them. Engines run
in this process, or in one of their own where they need another environment.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.forest import compile_forest
from recserve.loadtest.forest.engines import OWN, Engine
from recserve.loadtest.forest.recipe import Marketplace, Request

SCORES: Final = 500
"""How many are compared for each number of rows, at least."""
MIN_REQUESTS: Final = 8


@dataclass(slots=True)
class Times:
    """Milliseconds of calls: by the clock, and of the processor's time, which other work prolongs less."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, other: Times) -> None:
        """Append the times of further calls."""
        self.wall += other.wall
        self.cpu += other.cpu


class Runner(Protocol):
    """Runs one engine."""

    name: str
    params: Mapping[str, str]
    max_rows: int | None

    def prepare(self, rows: int) -> NDArray[np.float64]:
        """Make the requests of so many rows for the turns to come; the margins of all their candidates."""
        ...

    def turn(self, seconds: float) -> Times:
        """Answer requests for so many seconds of the processor's time, at least one."""
        ...


class LocalRunner:
    """Runs an engine in this process."""

    def __init__(self, engine: Engine, market: Marketplace) -> None:
        self.name, self.params, self.max_rows = engine.name, engine.params, engine.max_rows
        self._margins, self._market = engine.margins, market
        self._requests: Iterator[Request] = iter(())

    def prepare(self, rows: int) -> NDArray[np.float64]:
        """See `Runner`."""
        requests = self._market.requests(rows, max(MIN_REQUESTS, SCORES // rows))
        self._requests = itertools.cycle(requests)
        return np.concatenate([np.array(self._margins(each), np.float64).reshape(-1) for each in requests])

    def turn(self, seconds: float) -> Times:
        """See `Runner`. The first of several calls is not counted: it brings the engine's data back into the caches."""
        times = Times()
        end = time.process_time_ns() + 1e9 * seconds
        while not times.wall or time.process_time_ns() < end:
            request = next(self._requests)
            cpu, wall = time.process_time_ns(), time.perf_counter_ns()
            self._margins(request)
            times.wall.append((time.perf_counter_ns() - wall) / 1e6)
            times.cpu.append((time.process_time_ns() - cpu) / 1e6)
        counted = slice(1 if len(times.wall) > 1 else 0, None)
        return Times(times.wall[counted], times.cpu[counted])


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What runs our engine: a model, the seed of the requests, and the ways to ask (engines.OWN)."""

    model: Path
    seed: int
    ways: Sequence[str]


@contextlib.contextmanager
def own_runners(variant: str, job: Job) -> Iterator[list[Runner]]:
    """Runners of our engine with a CPU variant.

    They live in a process of their own, because the kernel chooses its variant when it is imported.

    Raises:
        RuntimeError: the process failed.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, job), daemon=True)
    with _environment("RECSERVE_CPU", variant):
        process.start()
    there.close()
    try:
        yield [_RemoteRunner(here, job, number, variant) for number in range(len(job.ways))]
    finally:
        here.close()  # the process ends when nobody can ask any more
        process.join()


class _RemoteRunner:
    """Asks a runner in another process."""

    name = "recserve"
    params: Mapping[str, str]
    max_rows: int | None = None

    def __init__(self, connection: Connection[Any, Any], job: Job, number: int, variant: str) -> None:
        self.params = {"path": job.ways[number], "cpu": variant}
        self._connection, self._number = connection, number

    def prepare(self, rows: int) -> NDArray[np.float64]:
        return np.asarray(self._ask("prepare", rows))

    def turn(self, seconds: float) -> Times:
        found: Times = self._ask("turn", seconds)
        return found

    def _ask(self, method: str, argument: float) -> Any:
        try:
            self._connection.send((self._number, method, argument))
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(f"the process for {self.params} has failed; it says why on standard error") from error


def _serve(connection: Connection[Any, Any], job: Job) -> None:
    """Answer what _RemoteRunner asks, until it is gone."""
    market, forest = Marketplace(job.seed), compile_forest(job.model)
    engines = [Engine(name="recserve", margins=OWN[way](forest, market.items)) for way in job.ways]
    runners = [LocalRunner(engine, market) for engine in engines]
    with contextlib.suppress(EOFError):
        while True:
            number, method, argument = connection.recv()
            connection.send(getattr(runners[number], method)(argument))


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """A variable for the processes that are started meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
