"""Nearest items of a vector space by inner product: exactly, or through a FAISS index.

An index holds 8-bit codes only. It proposes rows, and the scores and the order of every answer come from the space's
own vectors, by the same kernel as exact search. Filters are applied to what it proposes (an index cannot be searched
selectively without losing items), so a filtered search asks it for more, and where that would cost about as much as
looking at every passing item, or has found too few, the search is exact. Whatever the filter, exactly min(k, passing)
items come back.

An index is given one query at a time: FAISS's coarse quantiser takes another algorithm from 20 queries on, and then an
answer would depend on its batch-mates. Searches may run concurrently; each brings its own search parameters.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.kernels import bitmaps
from recserve.kernels import vectors as kernel
from recserve.server.bundle.errors import BundleCorruptError, BundleMismatchError, BundleUnsupportedError
from recserve.server.bundle.layout import space_file
from recserve.server.bundle.reader import Space

Vectors: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.uint64]
"""The bitmap of the items that may be answered; see `recserve.kernels.bitmaps`."""
Found: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Rows and their scores: score descending, ties by row ascending."""

EXACT_SHARE: Final = 8
"""An index is asked while it has to propose at most one in this many of the items that an exact search would score."""
WIDENINGS: Final = (1, 4)
"""How often as many items, with how often as much effort, are asked for in turn before the search becomes exact."""
NEAR_TIE: Final = 1e-5
"""Scores of vectors of about unit length that differ by less may change places on another CPU or library."""

_INDEX_CLASSES: Final[dict[int, tuple[str, str]]] = {
    manifest_pb2.IVF_SQ8: ("IndexIVFScalarQuantizer", "nprobe"),
    manifest_pb2.HNSW_SQ8: ("IndexHNSWSQ", "efSearch"),
}
"""By kind: the FAISS class of `index.faiss`, and the search parameter that the manifest must give."""

_GPU_MAX_FETCH: Final = 2048  # FAISS's limit for k on a GPU


class Searcher(Protocol):
    """Finds the nearest items of one vector space."""

    def search(self, queries: Vectors, k: int, masks: Sequence[Mask | None]) -> list[Found]:
        """The `k` passing items with the highest inner product, for each query.

        Args:
            queries: [B, dim], finite. All items tie for a zero query.
            k: >= 0.
            masks: one per query, the bitmap of the items that may be answered. None: all may.

        Returns:
            min(k, passing) distinct rows per query with their scores, best first. An answer does not depend on the
            other queries.

        Raises:
            ValueError: a query, k or a mask is not as above.
        """


class ExactSearcher:
    """Scans all vectors, once for all queries.

    Args:
        vectors: float32 [items, dim], finite.
    """

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def search(self, queries: Vectors, k: int, masks: Sequence[Mask | None]) -> list[Found]:
        """See Searcher.search."""
        check_search(self._vectors, queries, k, masks)
        return kernel.search(self._vectors, queries, k, masks)


class CodeIndex(Protocol):
    """Proposes rows that are probably near a query."""

    def propose(self, query: Vectors, fetch: int, effort: float) -> NDArray[np.int64]:
        """Up to `fetch` distinct rows.

        Args:
            query: [dim].
            fetch: how many are wanted.
            effort: how often the tuned search effort to spend, >= 1.
        """


class IvfIndex:
    """Inverted lists of 8-bit codes.

    Args:
        index: a trained faiss.IndexIVFScalarQuantizer.
        nprobe: lists to look into.
    """

    def __init__(self, index: Any, nprobe: int) -> None:
        self._index = index
        self._nprobe = nprobe

    def propose(self, query: Vectors, fetch: int, effort: float) -> NDArray[np.int64]:
        """See CodeIndex.propose; more effort is more lists."""
        nprobe = min(self._index.nlist, math.ceil(self._nprobe * effort))
        return _faiss_search(self._index, query, fetch, _faiss().SearchParametersIVF(nprobe=nprobe))


class HnswIndex:
    """A navigable small-world graph over 8-bit codes.

    Args:
        index: a faiss.IndexHNSWSQ.
        ef_search: size of the search's candidate list.
    """

    def __init__(self, index: Any, ef_search: int) -> None:
        self._index = index
        self._ef_search = ef_search

    def propose(self, query: Vectors, fetch: int, effort: float) -> NDArray[np.int64]:
        """See CodeIndex.propose; more effort is a longer candidate list, never shorter than `fetch`."""
        ef_search = min(self._index.ntotal, max(fetch, math.ceil(self._ef_search * effort)))
        return _faiss_search(self._index, query, fetch, _faiss().SearchParametersHNSW(efSearch=ef_search))


class GpuIndex:
    """A copy of the vectors on the GPU, searched exactly there.

    FAISS's GPU resources are not thread-safe, so searches take turns.

    Args:
        vectors: [items, dim].

    Raises:
        BundleUnsupportedError: the installed FAISS has no GPU support, or there is no GPU.
    """

    def __init__(self, vectors: Vectors) -> None:
        faiss = _gpu_faiss()
        self._resources = faiss.StandardGpuResources()
        self._index = faiss.GpuIndexFlatIP(self._resources, vectors.shape[1])
        self._lock = threading.Lock()
        for start in range(0, len(vectors), 1 << 18):
            self._index.add(vectors[start : start + (1 << 18)])

    def propose(self, query: Vectors, fetch: int, effort: float) -> NDArray[np.int64]:  # noqa: ARG002  it is exact
        """See CodeIndex.propose; at most 2,048 rows, FAISS's limit on GPUs."""
        with self._lock:
            return _faiss_search(self._index, query, min(fetch, _GPU_MAX_FETCH), None)


class IndexSearcher:
    """Lets an index propose, scores its proposals from the vectors, and is exact where the index does not pay.

    Args:
        vectors: float32 [items, dim], finite.
        index: over the same items.
    """

    def __init__(self, vectors: Vectors, index: CodeIndex) -> None:
        self._vectors = vectors
        self._index = index

    def search(self, queries: Vectors, k: int, masks: Sequence[Mask | None]) -> list[Found]:
        """See Searcher.search."""
        check_search(self._vectors, queries, k, masks)
        found = [self._ask_index(query, k, mask) for query, mask in zip(queries, masks, strict=True)]
        left = [position for position, answer in enumerate(found) if answer is None]
        exact = iter(kernel.search(self._vectors, queries[left], k, [masks[position] for position in left]))
        return [next(exact) if answer is None else answer for answer in found]

    def _ask_index(self, query: Vectors, k: int, mask: Mask | None) -> Found | None:
        """The answer through the index; None: where exact search is as fast, or the index has found too few."""
        items = len(self._vectors)
        passing = items if mask is None else bitmaps.count(mask)
        wanted = min(k, passing)
        # All items tie for a zero query, and an index breaks ties in its own order.
        for widening in WIDENINGS if query.any() else ():
            effort = widening * items / max(passing, 1)
            fetch = math.ceil(overfetch(wanted) * effort)
            if fetch * EXACT_SHARE > passing:
                break
            rows, scores = self.search_index(query, wanted, fetch, effort, mask)
            if rows.size == wanted:
                return rows, scores
        return None

    def search_index(self, query: Vectors, k: int, fetch: int, effort: float, mask: Mask | None = None) -> Found:
        """The best `k` of what the index proposes, possibly fewer; export measures recall with it.

        Args:
            query: [dim].
            k: how many are wanted.
            fetch: how many the index proposes, see `overfetch`.
            effort: see CodeIndex.propose.
            mask: as for Searcher.search.
        """
        rows = self._index.propose(query, fetch, effort)
        if mask is not None:
            rows = rows[bitmaps.contains(mask, rows)]
        return kernel.top_k(kernel.dot_rows(self._vectors, query, rows), rows, k)


def overfetch(k: int) -> int:
    """How many rows an index proposes for `k` answers: 8-bit codes misplace some around the last place."""
    return k + k // 4 + 16


def open_searcher(space: Space, device: str) -> Searcher:
    """The search engine of a space.

    Args:
        space: of an open bundle.
        device: "cpu": as the manifest says. "cuda": exact on the GPU, whatever the index, which is one for CPUs.

    Raises:
        BundleUnsupportedError: this build has no FAISS, or none with a GPU.
        BundleMismatchError: the index is of another kind, size, dimension or metric than the space.
        BundleCorruptError: FAISS cannot read the index.
    """
    if device == "cuda":
        return IndexSearcher(space.vectors, GpuIndex(space.vectors))
    kind = space.spec.index.kind
    if kind == manifest_pb2.EXACT:
        return ExactSearcher(space.vectors)
    if kind not in _INDEX_CLASSES:
        raise BundleMismatchError(
            f"space {space.name!r} has no kind of search that this build knows: export it again",
            field=f"spaces[{space.name}].index.kind",
            expected=sorted(manifest_pb2.IndexKind.keys()),
            found=kind,
        )
    return IndexSearcher(space.vectors, _open_index(space, kind))


def map_index(path: Path, name: str = "") -> Any:
    """Map an index, so that its codes and graph are the page cache's, not the process's.

    IO_FLAG_MMAP would map inverted lists as well, but read them through FAISS's on-disk lists, which start prefetching
    threads for every search.

    Args:
        path: of the file.
        name: of the file, for messages.

    Raises:
        BundleCorruptError: FAISS cannot read it.
    """
    faiss = _faiss()
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:  # FAISS knows no other class
        raise BundleCorruptError(f"FAISS cannot read the index: {error}", file=name or path.name) from error


def _open_index(space: Space, kind: int) -> CodeIndex:
    file = space_file(space.name, "index.faiss")
    if space.index_path is None:
        raise BundleMismatchError("the space has no index, but the manifest says so: export it again", file=file)
    index = map_index(space.index_path, file)
    class_name, parameter = _INDEX_CLASSES[kind]
    expected = (class_name, len(space.vectors), space.dim, "inner product")
    metric = "inner product" if index.metric_type == _faiss().METRIC_INNER_PRODUCT else f"type {index.metric_type}"
    found = (type(index).__name__, index.ntotal, index.d, metric)
    if found != expected:
        raise BundleMismatchError(
            "the index is not one of this space's vectors (class, items, dimension, metric): export it again",
            file=file,
            expected=expected,
            found=found,
        )
    value = space.spec.index.parameters.get(parameter, 0)
    if value < 1:
        raise BundleMismatchError(
            "the manifest lacks the index's search parameter: export it again",
            field=f"spaces[{space.name}].index.parameters[{parameter}]",
            expected="at least 1",
            found=value,
        )
    return IvfIndex(index, value) if kind == manifest_pb2.IVF_SQ8 else HnswIndex(index, value)


def check_search(vectors: Vectors, queries: Vectors, k: int, masks: Sequence[Mask | None]) -> None:
    """Refuse what no search can answer; see Searcher.search."""
    items, dim = vectors.shape
    if queries.ndim != 2 or queries.shape[1] != dim or queries.dtype != np.float32:
        raise ValueError(f"queries must be float32 [B, {dim}], found {queries.dtype} {list(queries.shape)}")
    finite = np.isfinite(queries).all(axis=1)
    if not finite.all():
        raise ValueError(f"query {int(np.argmin(finite))} is not finite: a user without a vector has no nearest items")
    if k < 0:
        raise ValueError(f"k must not be negative, found {k}")
    if len(masks) != len(queries):
        raise ValueError(f"expected {len(queries)} masks, one per query, found {len(masks)}")
    words = bitmaps.words_of(items)
    for position, mask in enumerate(masks):
        if mask is not None and (mask.shape != (words,) or mask.dtype != np.uint64):
            raise ValueError(f"mask {position} must be uint64 [{words}], found {mask.dtype} {list(mask.shape)}")


def recall_at_k(
    found_rows: NDArray[np.int64],
    exact_rows: NDArray[np.int64],
    exact_scores: NDArray[np.float32],
    tolerance: float = 0.0,
    *,
    k: int | None = None,
) -> float:
    """The share of the k nearest items that were found; near-ties of the k-th may stand in for one another.

    Args:
        found_rows: distinct rows, best first; only the first k count.
        exact_rows: the nearest items, best first. Where it holds more than k, those behind place k that nearly tie
            with it are as good as it.
        exact_scores: their scores, descending.
        tolerance: by how much scores of near-ties differ at most.
        k: places; None: as many as there are exact rows.

    Returns:
        0 to 1; 1 where there is nothing to find.
    """
    places = min(len(exact_rows) if k is None else k, len(exact_rows))
    if places == 0:
        return 1.0
    good = exact_rows[exact_scores >= exact_scores[places - 1] - tolerance]
    return min(int(np.isin(found_rows[:places], good).sum()), places) / places


def _faiss_search(index: Any, query: Vectors, fetch: int, parameters: Any) -> NDArray[np.int64]:
    """Rows that FAISS finds, without its -1 for places that it could not fill."""
    # OpenMP keeps this setting per thread: requests use the cores, not one request all of them.
    _faiss().omp_set_num_threads(1)
    _, rows = index.search(query[np.newaxis], fetch, params=parameters)
    proposed: NDArray[np.int64] = rows[0][rows[0] >= 0]
    return proposed


def _faiss() -> Any:
    try:
        import faiss  # noqa: PLC0415  optional: bundles with exact search alone do not need it
    except ImportError as error:
        raise BundleUnsupportedError(
            "searching a FAISS index needs faiss: pip install 'recserve[cpu]', or [gpu] for CUDA", found=str(error)
        ) from error
    return faiss


def _gpu_faiss() -> Any:
    faiss = _faiss()
    if not hasattr(faiss, "StandardGpuResources"):
        raise BundleUnsupportedError(
            "device 'cuda' needs a faiss with GPU support: pip uninstall faiss-cpu onnxruntime, then "
            "pip install 'recserve[gpu]'; or serve with device 'cpu'",
            expected="faiss-gpu",
            found=f"faiss {faiss.__version__} without GPU support",
        )
    if faiss.get_num_gpus() == 0:
        raise BundleUnsupportedError("device 'cuda': faiss finds no GPU; serve with device 'cpu'", found="0 GPUs")
    return faiss
