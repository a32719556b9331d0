"""Measures retrieval on the reference workload's vectors."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recserve.kernels import bitmaps
from recserve.loadtest.clusters import DIM, clustered_vectors
from recserve.loadtest.results import Measurement
from recserve.loadtest.retrieval.engines import Engine, Vectors, others, ours
from recserve.server.pipeline.search import ExactSearcher, recall_at_k

Exact = Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]]

Spread: TypeAlias = Literal["even", "region"]
"""Where the items of a filter lie: anywhere, or on one side, as those of a category that the vectors know."""


class Filter(NamedTuple):
    """Which items pass."""

    share: float
    """Of all; 1.0: no filter."""
    spread: Spread = "even"

    def mask(self, vectors: Vectors, seed: int) -> NDArray[np.uint64] | None:
        """Bitmap of the items that pass; None: all."""
        if self.share == 1.0:
            return None
        random = np.random.default_rng(seed)
        if self.spread == "even":
            return bitmaps.pack(random.random(len(vectors)) < self.share)
        along = vectors @ random.standard_normal(vectors.shape[1], np.float32)
        return bitmaps.pack(along > np.quantile(along, 1 - self.share))


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is measured.

    Attributes:
        items: of the catalogue.
        k: answers a query.
        target: recall that every engine is tuned to.
        batches: queries of a call.
        filters: which items are searched.
        engines: of engines.others.
        runs: timed calls of each size.
        seed: of vectors and filters.
    """

    items: int
    k: int
    target: float
    batches: Sequence[int]
    filters: Sequence[Filter]
    engines: Sequence[str]
    runs: int
    seed: int


TURN, WARM_UP = 25, 5
"""Calls that an engine makes in turn, and those before that do not count."""
TUNING, HELD_OUT = 600, 400
"""Queries that engines are tuned on, and others that tell their recall."""


def measure_retrieval(work: Work, tell: Callable[[str], None]) -> Iterator[Measurement]:
    """Build all engines, tune them, and time them in turns.

    Args:
        work: what to measure.
        tell: is told what happens.
    """
    vectors, queries = clustered_vectors(work.items, TUNING + HELD_OUT, np.random.default_rng(work.seed))
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "vectors.npy", vectors)
        vectors = np.load(Path(folder) / "vectors.npy", mmap_mode="r").view(np.ndarray)  # mapped, as a server's
        engines = list(_engines(work, vectors, queries[:TUNING], Path(folder), tell))
        for which in work.filters:
            mask = which.mask(vectors, work.seed)
            exact = ExactSearcher(vectors).search(queries[TUNING:], work.k, [mask] * HELD_OUT)
            recalls = [_recall(engine, queries[TUNING:], exact, work.k, mask) for engine in engines]
            for batch in work.batches:
                yield from _timed(work, engines, recalls, queries[TUNING:], batch, which, mask)


def _engines(
    work: Work, vectors: Vectors, queries: Vectors, folder: Path, tell: Callable[[str], None]
) -> Iterator[Engine]:
    tell(f"{work.items:,} items: what an export chooses")
    start = time.perf_counter()
    for own in ours(vectors, queries, work.k, work.target, folder):
        tell(f"{own.name}: {own.described()}, {time.perf_counter() - start:.0f} s")
        yield own
    exact = ExactSearcher(vectors).search(queries[:200], work.k, [None] * 200)
    for name, build in zip(work.engines, others(vectors, work.engines), strict=True):
        start = time.perf_counter()
        try:
            engine = build()
        except ImportError as error:
            tell(f"{name} is left out: {error}")
            continue
        for effort in engine.efforts:
            engine.effort = effort
            if _recall(engine, queries[:200], exact, work.k, None) >= work.target:
                break
        tell(f"{engine.name}: {engine.described()}, built and tuned in {time.perf_counter() - start:.0f} s")
        yield engine


def _recall(engine: Engine, queries: Vectors, exact: Exact, k: int, mask: NDArray[np.uint64] | None) -> float:
    found = [rows for query in queries for rows in engine.search(query[np.newaxis], k, mask)]
    return float(np.mean([recall_at_k(rows, *known) for rows, known in zip(found, exact, strict=True)]))


def _timed(
    work: Work,
    engines: Sequence[Engine],
    recalls: Sequence[float],
    queries: Vectors,
    batch: int,
    which: Filter,
    mask: NDArray[np.uint64] | None,
) -> Iterator[Measurement]:
    """Engines take turns, so that the machine's moods meet all of them.

    A turn is a run of calls, the first of which do not count: what is measured has the caches to itself, as a server
    that searches one index has, and not what an exact search has left of them.
    """
    order = np.random.default_rng(work.seed)
    wall: list[list[float]] = [[] for _ in engines]
    processor: list[list[float]] = [[] for _ in engines]
    for turn in range(-(-work.runs // TURN)):
        for number in order.permutation(len(engines)):
            for call in range(-WARM_UP, TURN):
                first = (turn * TURN + call) * batch
                asked = np.ascontiguousarray(queries[(first + np.arange(batch)) % len(queries)])
                start, began = time.perf_counter_ns(), time.thread_time_ns()
                engines[number].search(asked, work.k, mask)
                used, passed = time.thread_time_ns() - began, time.perf_counter_ns() - start
                if call >= 0:
                    processor[number].append(used / 1e6)
                    wall[number].append(passed / 1e6)
    size = {"items": work.items, "dim": DIM, "k": work.k, "batch": batch, "filter": which.share, "spread": which.spread}
    for engine, recall, times, spent in zip(engines, recalls, wall, processor, strict=True):
        yield Measurement(
            name=engine.name,
            params={**size, **engine.described()},
            milliseconds=times,
            extra={"recall": round(recall, 4), "cpu_p50_ms": round(float(np.median(spent)), 4)},
        )
