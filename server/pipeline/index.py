"""Indexes of a vector space: engines that find near rows among compressed codes.

Every engine answers with exact scores: codes propose, and `vectors.npy` decides. Effort is tuned for `recall_k` answers
among all items. A search for k of a share s of the items has to look as far as the k / s nearest of all, its *reach*;
a search of more than `recall_k` reach spends the square root of the excess more effort. (Measured: with k from 5 to
2,000, and with filters that pass 50% to 1% of the items wherever they lie, recall then stays at what was tuned or
above.) What passes may also lie apart from the query, as a category does that the user never looks at: then lists are
scanned until as many passing items have been seen as if it were spread evenly.

`ListIndex` is our own, of mapped arrays; `FaissIndex` holds whatever FAISS index of codes an export was given. FAISS is
given one query at a time: its coarse quantiser takes another algorithm from 20 queries on, and then an answer would
depend on its batch-mates. Searches may run concurrently; each brings its own parameters.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.kernels import bitmaps, ivf
from recserve.server.bundle.errors import BundleCorruptError, BundleMismatchError, BundleUnsupportedError
from recserve.server.bundle.extras import install_hint
from recserve.server.bundle.layout import index_file, space_file
from recserve.server.bundle.reader import Space

Vectors: TypeAlias = NDArray[np.float32]
Counts: TypeAlias = Sequence[int]
Mask: TypeAlias = NDArray[np.uint64]
"""The bitmap of the items that may be answered; see `recserve.kernels.bitmaps`."""
Found: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Rows and their scores: score descending, ties by row ascending."""

NPROBE: Final = "nprobe"
EF_SEARCH: Final = "efSearch"
RESCORED: Final = "rescored"
"""Parameters of an index in the manifest: lists to look into, length of HNSW's candidate list, and how many items are
scored exactly where `recall_k` are asked for."""

FACTORY_CLASSES: Final[dict[int, tuple[str, ...]]] = {
    manifest_pb2.IVF_SQ8: ("IndexIVFScalarQuantizer",),
    manifest_pb2.HNSW_SQ8: ("IndexHNSWSQ",),
    manifest_pb2.FAISS: (
        "IndexPQ",
        "IndexPQFastScan",
        "IndexScalarQuantizer",
        "IndexIVFPQ",
        "IndexIVFPQFastScan",
        "IndexIVFScalarQuantizer",
        "IndexHNSWSQ",
    ),
}
"""By kind: the FAISS classes of `index.faiss`. All hold codes, and no copy of the vectors."""

GPU_FARTHEST: Final = 2048
"""FAISS finds no more rows on a GPU."""

_SPARE: Final = 16
_APART: Final = 3  # so many times the lists, where what passes may lie apart from the query


class Index(Protocol):
    """Finds rows that are probably the nearest."""

    def rescored(self, k: int, reach: int) -> int:
        """How many items a search scores exactly; see `find`."""

    def find(self, queries: Vectors, k: Counts, reach: Counts, masks: Sequence[Mask | None]) -> list[Found]:
        """Near rows with their exact scores.

        Args:
            queries: [B, dim], finite and not zero.
            k: how many are wanted of each.
            reach: >= k: how far to look, as the number of nearest items of the whole catalogue.
            masks: one per query.

        Returns:
            Up to k distinct passing rows per query, best first.
        """


class Effort:
    """How much of an index a search looks at.

    Args:
        parameters: of the manifest.
        recall_k: for how many answers they are tuned.
    """

    def __init__(self, parameters: Mapping[str, int], recall_k: int) -> None:
        self.recall_k = max(1, recall_k)
        self.nprobe = parameters.get(NPROBE, 1)
        self.ef_search = parameters.get(EF_SEARCH, 1)
        self._rescored = parameters.get(RESCORED, 0) or overfetch(self.recall_k)

    def times(self, reach: int) -> float:
        """How often the tuned effort to spend; at least once."""
        return math.sqrt(max(1.0, reach / self.recall_k))

    def rescored(self, k: int) -> int:
        """How many items to score exactly for k answers: the fewer, the more of them in proportion."""
        ratio = k / self.recall_k
        return max(k + _SPARE, math.ceil(self._rescored * (math.sqrt(ratio) if ratio < 1 else ratio)))


class ListIndex:
    """Inverted lists of 4-bit codes, mapped from the bundle and searched by our own kernel.

    Filters take part in the scan, and the queries of a batch share one call.

    Args:
        vectors: float32 [items, dim].
        lists: over the same items.
        effort: nprobe and rescored.
    """

    def __init__(self, vectors: Vectors, lists: ivf.InvertedLists, effort: Effort) -> None:
        self._vectors = vectors
        self._lists = lists
        self._effort = effort

    def rescored(self, k: int, reach: int) -> int:  # noqa: ARG002  filtered items are never scored
        """See Index.rescored."""
        return self._effort.rescored(k)

    def find(self, queries: Vectors, k: Counts, reach: Counts, masks: Sequence[Mask | None]) -> list[Found]:
        """See Index.find."""
        probes = [math.ceil(self._effort.nprobe * self._effort.times(each)) for each in reach]
        fetch = [self._effort.rescored(each) for each in k]
        # A filter that goes with the vectors, such as a category, may leave little in the lists near the query: as many
        # passing items are looked at as so many lists would hold if what passes were spread evenly.
        each_list = len(self._vectors) / self._lists.lists
        enough = [math.ceil(n * each_list * a / b) if b > a else 0 for n, a, b in zip(probes, k, reach, strict=True)]
        return self._lists.search(self._vectors, queries, k, probes, fetch, masks, enough)


class FaissIndex:
    """A FAISS index of codes.

    Inverted lists honour selectors. Of any other class more is fetched than wanted, and what does not pass is dropped.

    Args:
        vectors: float32 [items, dim].
        index: over the same items; of a class in FACTORY_CLASSES, or a transformation before one.
        effort: nprobe or efSearch where the class has such, and rescored.
    """

    def __init__(self, vectors: Vectors, index: Any, effort: Effort) -> None:
        self._vectors = vectors
        self._index = index
        self._effort = effort
        self._inner = inner_index(index)
        self._selects = hasattr(self._inner, NPROBE)

    def rescored(self, k: int, reach: int) -> int:
        """See Index.rescored."""
        share = 1.0 if self._selects else reach / max(1, k)
        return math.ceil(self._effort.rescored(k) * share)

    def find(self, queries: Vectors, k: Counts, reach: Counts, masks: Sequence[Mask | None]) -> list[Found]:
        """See Index.find."""
        asked = zip(queries, k, reach, masks, strict=True)
        return [self._find(query, wanted, far, mask) for query, wanted, far, mask in asked]

    def _find(self, query: Vectors, k: int, reach: int, mask: Mask | None) -> Found:
        fetch = min(self.rescored(k, reach), len(self._vectors))
        # FAISS keeps a pointer to the selector only: it has to outlive the search.
        selector = _faiss().IDSelectorBitmap(mask.view(np.uint8)) if self._selects and mask is not None else None
        rows = faiss_search(self._index, query, fetch, self._parameters(fetch, reach, selector))
        if mask is not None:
            rows = rows[bitmaps.contains(mask, rows)]
        return ivf.rescore(self._vectors, query, rows, k)

    def _parameters(self, fetch: int, reach: int, selector: Any) -> Any:
        faiss, parameters = _faiss(), None
        if hasattr(self._inner, NPROBE):
            # FAISS does not tell how many passing items it has seen, so a filter that leaves little in the lists near
            # the query is provided for beforehand.
            times = self._effort.times(reach) * (_APART if selector is not None else 1)
            nprobe = math.ceil(self._effort.nprobe * times)
            parameters = faiss.SearchParametersIVF(nprobe=min(self._inner.nlist, nprobe), sel=selector)
        elif hasattr(self._inner, "hnsw"):
            ef_search = max(fetch, math.ceil(self._effort.ef_search * self._effort.times(reach)))
            parameters = faiss.SearchParametersHNSW(efSearch=min(self._inner.ntotal, ef_search))
        if parameters is None or self._inner is self._index:
            return parameters
        return faiss.SearchParametersPreTransform(index_params=parameters)


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
        self._vectors = vectors
        self._resources = faiss.StandardGpuResources()
        self._index = faiss.GpuIndexFlatIP(self._resources, vectors.shape[1])
        self._lock = threading.Lock()
        for start in range(0, len(vectors), 1 << 18):
            self._index.add(vectors[start : start + (1 << 18)])

    def rescored(self, k: int, reach: int) -> int:  # noqa: ARG002  it has no selectors
        """See Index.rescored."""
        return min(overfetch(reach), GPU_FARTHEST)

    def find(self, queries: Vectors, k: Counts, reach: Counts, masks: Sequence[Mask | None]) -> list[Found]:
        """See Index.find."""
        asked = zip(queries, k, reach, masks, strict=True)
        return [self._find(query, wanted, far, mask) for query, wanted, far, mask in asked]

    def _find(self, query: Vectors, k: int, reach: int, mask: Mask | None) -> Found:
        with self._lock:
            rows = faiss_search(self._index, query, self.rescored(k, reach), None)
        if mask is not None:
            rows = rows[bitmaps.contains(mask, rows)]
        return ivf.rescore(self._vectors, query, rows, k)


def overfetch(k: int) -> int:
    """How many rows 8-bit codes propose for `k` answers: they misplace some around the last place."""
    return k + k // 4 + _SPARE


def open_index(space: Space) -> Index:
    """The index of a space that is not searched exactly.

    Raises:
        BundleUnsupportedError: the index is FAISS's, and this build has no FAISS.
        BundleMismatchError: the index is of another kind, size, dimension or metric than the space.
        BundleCorruptError: the index cannot be read.
    """
    spec = space.spec.index
    if spec.kind == manifest_pb2.IVF_PQ4:
        return ListIndex(space.vectors, _open_lists(space), _effort(space, NPROBE, RESCORED))
    if spec.kind not in FACTORY_CLASSES:
        raise BundleMismatchError(
            f"space {space.name!r} has no kind of search that this build knows: export it again",
            field=f"spaces[{space.name}].index.kind",
            expected=sorted(manifest_pb2.IndexKind.keys()),
            found=spec.kind,
        )
    index = _open_faiss(space)
    return FaissIndex(space.vectors, index, _effort(space, *search_parameters(index)))


def map_index(path: Path, name: str = "") -> Any:
    """Map a FAISS index, so that its codes and graph are the page cache's, not the process's (fast-scan codes are not).

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


def inner_index(index: Any) -> Any:
    """What is behind the transformations of a FAISS index."""
    while isinstance(index, _faiss().IndexPreTransform):
        index = _faiss().downcast_index(index.index)
    return index


def search_parameters(index: Any) -> tuple[str, ...]:
    """The parameter that sets how much of a FAISS index a search looks at, where its class has one."""
    inner = inner_index(index)
    return (NPROBE,) if hasattr(inner, NPROBE) else (EF_SEARCH,) if hasattr(inner, "hnsw") else ()


def faiss_search(index: Any, query: Vectors, fetch: int, parameters: Any) -> NDArray[np.int64]:
    """Rows that FAISS finds for query [dim], without its -1 for places that it could not fill."""
    # OpenMP keeps this setting per thread: requests use the cores, not one request all of them.
    _faiss().omp_set_num_threads(1)
    _, rows = index.search(query[np.newaxis], fetch, params=parameters)
    proposed: NDArray[np.int64] = rows[0][rows[0] >= 0]
    return proposed


def _open_lists(space: Space) -> ivf.InvertedLists:
    if space.index_arrays is None:
        file = index_file(space.name, "codes")
        raise BundleMismatchError("the space has no index, but the manifest says so: export it again", file=file)
    try:
        lists = ivf.InvertedLists(len(space.vectors), **space.index_arrays)
    except ValueError as error:
        file = space_file(space.name, "index")
        raise BundleCorruptError(f"the index does not fit together: {error}", file=file) from error
    if lists.dim != space.dim:
        raise BundleMismatchError(
            "the index is of another dimension than the space: export it again",
            file=index_file(space.name, "projection"),
            expected=space.dim,
            found=lists.dim,
        )
    return lists


def _open_faiss(space: Space) -> Any:
    file = space_file(space.name, "index.faiss")
    if space.index_path is None:
        raise BundleMismatchError("the space has no index, but the manifest says so: export it again", file=file)
    index = map_index(space.index_path, file)
    metric = "inner product" if index.metric_type == _faiss().METRIC_INNER_PRODUCT else f"type {index.metric_type}"
    classes = FACTORY_CLASSES[space.spec.index.kind]
    name = type(inner_index(index)).__name__
    expected = (classes[0] if len(classes) == 1 else "codes", len(space.vectors), space.dim, "inner product")
    found = (expected[0] if name in classes else name, index.ntotal, index.d, metric)
    if found != expected:
        raise BundleMismatchError(
            "the index is not one of this space's vectors (class, items, dimension, metric): export it again",
            file=file,
            expected=expected,
            found=found,
        )
    return index


def _effort(space: Space, *needed: str) -> Effort:
    spec = space.spec.index
    for parameter in needed:
        if spec.parameters.get(parameter, 0) < 1:
            raise BundleMismatchError(
                "the manifest lacks the index's search parameter: export it again",
                field=f"spaces[{space.name}].index.parameters[{parameter}]",
                expected="at least 1",
                found=spec.parameters.get(parameter, 0),
            )
    return Effort(spec.parameters, spec.recall_k)


def _faiss() -> Any:
    try:
        import faiss  # noqa: PLC0415  optional: exact search and our own lists do not need it
    except ImportError as error:
        raise BundleUnsupportedError(
            f"searching a FAISS index needs faiss (for CUDA the extra gpu): {install_hint('cpu')}", found=str(error)
        ) from error
    return faiss


def _gpu_faiss() -> Any:
    faiss = _faiss()
    if not hasattr(faiss, "StandardGpuResources"):
        raise BundleUnsupportedError(
            "device 'cuda' needs a faiss with GPU support: pip uninstall faiss-cpu onnxruntime, then "
            f"{install_hint('gpu')}; or serve with device 'cpu'",
            expected="faiss-gpu",
            found=f"faiss {faiss.__version__} without GPU support",
        )
    if faiss.get_num_gpus() == 0:
        raise BundleUnsupportedError("device 'cuda': faiss finds no GPU; serve with device 'cpu'", found="0 GPUs")
    return faiss
