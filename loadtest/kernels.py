"""Times the kernels on seeded data."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from recserve.kernels import ids, rerank, vectors
from recserve.loadtest.arguments import whole
from recserve.loadtest.clusters import DIM, clustered_vectors
from recserve.loadtest.crosses import measure_features
from recserve.loadtest.kernel_sets import KernelSet
from recserve.loadtest.masks import measure_filters
from recserve.loadtest.results import Measurement, time_call

CANDIDATES: Final = 500


def measure_kernels(items: int, runs: int, seed: int = 1) -> Iterator[Measurement]:
    """Measure search, ids, filters, features and re-ranking.

    Args:
        items: rows of the item table.
        runs: timed calls of each.
        seed: of the data.
    """
    random = np.random.default_rng(seed)
    table, queries = clustered_vectors(items, 8, random)
    yield from _search(table, queries, runs)
    yield from _ids(items, runs, random)
    yield from measure_filters(items, runs, random)
    yield from measure_features(table, runs, random)
    yield from _rerank(table, runs, random)


def _search(table: NDArray[np.float32], queries: NDArray[np.float32], runs: int) -> Iterator[Measurement]:
    params = {"items": len(table), "dim": DIM, "k": CANDIDATES}
    one = time_call(lambda: vectors.search(table, queries[:1], CANDIDATES), runs=runs)
    with threadpool_limits(1):  # the kernel has one thread, too
        plain = time_call(lambda: _numpy_search(table, queries[0], CANDIDATES), runs=runs)
    ratio = round(float(np.median(plain) / np.median(one)), 2)
    yield Measurement(
        name="recserve exact search", params={**params, "batch": 1}, milliseconds=one, extra={"times_numpy": ratio}
    )
    yield Measurement(name="NumPy matmul and argpartition", params={**params, "batch": 1}, milliseconds=plain)
    eight = time_call(lambda: vectors.search(table, queries, CANDIDATES), runs=runs)
    yield Measurement(name="recserve exact search", params={**params, "batch": len(queries)}, milliseconds=eight)
    rows = np.random.default_rng(2).integers(0, len(table), 1500)
    some = time_call(lambda: vectors.dot_rows(table, queries[0], rows), runs=10 * runs)
    yield Measurement(name="recserve re-scoring", params={"rows": 1500, "dim": DIM}, milliseconds=some)


def _numpy_search(table: NDArray[np.float32], query: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Exact search as one writes it without a library for it."""
    scores = table @ query
    best = np.argpartition(scores, -min(k, len(scores)))[-k:]
    return best[np.argsort(-scores[best], kind="stable")]


def _ids(items: int, runs: int, random: np.random.Generator) -> Iterator[Measurement]:
    keys = random.permutation(np.arange(1, items + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    slots = ids.build_slots(keys)
    wanted = random.choice(keys, 1000)
    found = time_call(lambda: ids.lookup(keys, slots, wanted), runs=10 * runs)
    yield Measurement(name="recserve key lookup", params={"items": items, "keys": 1000}, milliseconds=found)


def _rerank(table: NDArray[np.float32], runs: int, random: np.random.Generator) -> Iterator[Measurement]:
    rows = random.choice(len(table), CANDIDATES, replace=False).astype(np.int64)
    caps = (
        random.integers(0, 40, (CANDIDATES, 1)).astype(np.int32),
        np.array([4], np.int32),
        np.array([0], np.int32),
        np.array([0], np.uint8),
    )
    scores = random.random(CANDIDATES)
    times = time_call(lambda: rerank.select(scores, rows, 20, *caps, table, 0.7), runs=10 * runs)
    params = {"candidates": CANDIDATES, "k": 20, "dim": DIM}
    yield Measurement(name="recserve caps and MMR", params=params, milliseconds=times)


def _items(text: str) -> int:
    if not text.isdecimal() or int(text) < CANDIDATES:
        expected = f"a whole number from {CANDIDATES}, as so many are searched for and re-ranked"
        raise argparse.ArgumentTypeError(f"expected {expected}; found {text!r}")
    return int(text)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--items", type=_items, default=100_000, help="rows of the item table (default %(default)s)")
    parser.add_argument("--runs", type=whole, default=50, help="timed calls of each kernel (default %(default)s)")


BASICS: Final = KernelSet(
    name="basics",
    help="exact search, id lookup, filters, features and re-ranking",
    workload="kernels",
    add_options=_add_options,
    measure=lambda options: measure_kernels(options.items, options.runs),
)
