"""FAISS indexes of 8-bit codes, tuned to a recall target."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters.errors import ExportError
from recserve.exporters.spec import IndexSpec
from recserve.server.pipeline.search import (
    EXACT_SHARE,
    NEAR_TIE,
    ExactSearcher,
    HnswIndex,
    IndexSearcher,
    IvfIndex,
    map_index,
    overfetch,
    recall_at_k,
)

Vectors = NDArray[np.float32]

QUERIES: Final = 256
"""How many held-out queries measure the recall."""

_TRAINING_PER_LIST: Final = 64  # FAISS wants 39 to 256 vectors per centroid
_MIN_PER_LIST: Final = 39
_HNSW_LINKS: Final = 32
_HNSW_TRAINING: Final = 100_000  # 8-bit codes need no more than the range of each dimension
_BLOCK: Final = 1 << 16


def build_index(
    spec: IndexSpec,
    vectors: Vectors,
    queries: Vectors | None,
    path: Path,
    advance: Callable[[int], None] = lambda _: None,
) -> manifest_pb2.Index:
    """Build, tune and write an index, or describe exact search, which needs none.

    The search parameter (nprobe, efSearch) is the smallest of a rising series whose mean recall at `spec.recall_k` on
    held-out queries, against exact search, reaches `spec.recall_target`.

    Args:
        spec: what is wanted.
        vectors: float32 [items, dim]; may be mapped.
        queries: float32 [n, dim], vectors of users; None: items that do not train the index stand in for them.
        path: of the index file; written unless the search is exact.
        advance: called with the number of vectors that were added since the last call.

    Returns:
        The manifest's entry.

    Raises:
        ExportError: the catalogue is too small, FAISS is not installed, or no parameter reaches the target.
    """
    if spec.kind == "exact":
        return manifest_pb2.Index(kind=manifest_pb2.EXACT, recall=1.0, recall_k=spec.recall_k)
    _check_spec(spec, len(vectors))
    held_out = _spread(len(vectors), min(QUERIES, len(vectors) // 4))
    trainable = np.setdiff1d(np.arange(len(vectors)), held_out)
    factory, training = _plan(spec.kind, len(trainable))
    faiss = _faiss()
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(np.ascontiguousarray(vectors[trainable[_spread(len(trainable), training)]]))
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        index.add(block)
        advance(len(block))
    faiss.write_index(index, str(path))
    del index  # its file is what is served, so that is what is tuned
    chosen = vectors[held_out] if queries is None else queries[_spread(len(queries), QUERIES)]
    return _tune(spec, vectors, np.ascontiguousarray(chosen), path, factory)


def _check_spec(spec: IndexSpec, items: int) -> None:
    if not 0.0 < spec.recall_target <= 1.0:
        raise ExportError(f"recall_target must be above 0 and at most 1, found {spec.recall_target}")
    if spec.recall_k < 1:
        raise ExportError(f"recall_k must be at least 1, found {spec.recall_k}")
    needed = EXACT_SHARE * overfetch(spec.recall_k)
    if items < needed:
        raise ExportError(
            f"{items:,} items are too few for an index of kind {spec.kind} at recall_k = {spec.recall_k}, which pays "
            f"from {needed:,} on; use kind 'exact', which is fast at this size, or a smaller recall_k"
        )


def _plan(kind: str, items: int) -> tuple[str, int]:
    """FAISS's factory string, and how many vectors train it; `items` can."""
    if kind == "hnsw_sq8":
        return f"HNSW{_HNSW_LINKS},SQ8", min(items, _HNSW_TRAINING)
    lists = inverted_lists(items)
    return f"IVF{lists},SQ8", min(items, _TRAINING_PER_LIST * lists)


def inverted_lists(items: int) -> int:
    """How many lists: the power of two next to 4 sqrt(items), but at least 39 items a list, as FAISS's k-means wants.

    Then looking into a list and choosing it cost about as much: a search that reads a few per cent of the lists
    compares its query with as many centroids as items.
    """
    balanced = round(math.log2(4 * math.sqrt(items)))
    most = math.floor(math.log2(items / _MIN_PER_LIST))
    return 1 << max(0, min(balanced, most))


def _tune(spec: IndexSpec, vectors: Vectors, queries: Vectors, path: Path, factory: str) -> manifest_pb2.Index:
    k, index = spec.recall_k, map_index(path)
    # A few more than k, so that near-ties of the last place are known.
    exact = ExactSearcher(vectors).search(queries, k + 16, [None] * len(queries))
    best, tried = 0.0, 0
    for value in _values(spec, index):
        searcher = IndexSearcher(vectors, IvfIndex(index, value) if spec.kind == "ivf_sq8" else HnswIndex(index, value))
        found = [searcher.search_index(query, k, overfetch(k), 1.0)[0] for query in queries]
        recall = float(
            np.mean([recall_at_k(rows, *known, NEAR_TIE, k=k) for rows, known in zip(found, exact, strict=True)])
        )
        if recall >= spec.recall_target:
            kind = manifest_pb2.IVF_SQ8 if spec.kind == "ivf_sq8" else manifest_pb2.HNSW_SQ8
            return manifest_pb2.Index(
                kind=kind, factory=factory, parameters={_parameter(spec): value}, recall=recall, recall_k=k
            )
        best, tried = max(best, recall), value
    raise ExportError(
        f"no {_parameter(spec)} up to {tried} reaches recall@{k} of {spec.recall_target:g} with {factory}; the best "
        f"was {best:.4f}: lower recall_target, or use kind 'exact'"
    )


def _parameter(spec: IndexSpec) -> str:
    return "nprobe" if spec.kind == "ivf_sq8" else "efSearch"


def _values(spec: IndexSpec, index: Any) -> Iterator[int]:
    """Rising values to try: every half power of two. For HNSW from what `recall_k` fetches anyway, to 64 times that."""
    low, high = (1, index.nlist) if spec.kind == "ivf_sq8" else (overfetch(spec.recall_k), index.ntotal)
    if spec.kind == "hnsw_sq8":
        high = min(high, 64 * low)
    last = 0
    for step in range(2 * math.ceil(math.log2(max(high / low, 1))) + 1):
        value = min(high, round(low * 2 ** (step / 2)))
        if value > last:
            yield value
        last = value


def _spread(length: int, count: int) -> NDArray[np.int64]:
    """Up to `count` distinct positions below `length`, evenly spread, ascending."""
    return np.linspace(0, length - 1, min(count, length)).astype(np.int64)


def _faiss() -> Any:
    try:
        import faiss  # noqa: PLC0415  in the extras [cpu] and [gpu]; exact search does not need it
    except ImportError as error:
        raise ExportError(f"an index needs faiss: pip install 'recserve[cpu]' ({error})") from error
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    return faiss
