"""Nearest items of a vector space by inner product: exactly, or through an index of codes.

An index proposes rows, and the scores and the order of every answer come from the space's own vectors, by the same
kernel as exact search. A filtered search looks further; where that would cost about as much as looking at every passing
item, or has found too few, the search is exact. Whatever the filter, exactly min(k, passing) items come back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.kernels import bitmaps
from recserve.kernels import vectors as kernel
from recserve.server.bundle.reader import Space
from recserve.server.pipeline.index import GPU_FARTHEST, Found, GpuIndex, Index, Mask, Vectors, open_index

EXACT_SHARE: Final = 16
"""An index is asked while it scores at most one in this many of the items that an exact search would score."""
WIDENINGS: Final = (1, 8)
"""How far to look in turn, relative to what the filter asks for, before the search becomes exact."""
NEAR_TIE: Final = 1e-5
"""Scores of vectors of about unit length that differ by less may change places on another CPU or library."""


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


class IndexSearcher:
    """Asks an index, further and further, and is exact where that does not pay.

    Args:
        vectors: float32 [items, dim], finite.
        index: over the same items.
        farthest: how far it can look at most, as the number of nearest items; None: as far as there are items.
    """

    def __init__(self, vectors: Vectors, index: Index, farthest: int | None = None) -> None:
        self._vectors = vectors
        self._index = index
        self._farthest = len(vectors) if farthest is None else min(farthest, len(vectors))

    def search(self, queries: Vectors, k: int, masks: Sequence[Mask | None]) -> list[Found]:
        """See Searcher.search."""
        magnitudes = check_search(self._vectors, queries, k, masks)
        items = len(self._vectors)
        passing = [items if mask is None else bitmaps.count(mask) for mask in masks]
        wanted = [min(k, each) for each in passing]
        found: dict[int, Found] = {}
        # All items tie for a zero query, and an index breaks ties in its own order.
        able = [i for i, magnitude in enumerate(magnitudes) if magnitude > 0]
        for widening in WIDENINGS:
            asked, reach = [], []
            for i in able:
                evenly = wanted[i] * items // max(passing[i], 1)  # far enough, if what passes is spread evenly
                far = min(widening * evenly, self._farthest)
                if i not in found and evenly <= far and self._pays(wanted[i], far, passing[i]):
                    asked.append(i)
                    reach.append(far)
            if asked:
                answers = self._index.find(
                    queries if len(asked) == len(queries) else queries[asked],
                    [wanted[i] for i in asked],
                    reach,
                    [masks[i] for i in asked],
                )
                found |= {i: each for i, each in zip(asked, answers, strict=True) if each[0].size == wanted[i]}
            if len(found) == len(queries):
                break
        else:
            left = [i for i in range(len(queries)) if i not in found]
            exact = kernel.search(self._vectors, queries[left], k, [masks[i] for i in left])
            found |= dict(zip(left, exact, strict=True))
        return [found[i] for i in range(len(queries))]

    def _pays(self, wanted: int, reach: int, passing: int) -> bool:
        """Whether the index scores far fewer items than exact search would."""
        return wanted > 0 and EXACT_SHARE * self._index.rescored(wanted, reach) <= passing


def open_searcher(space: Space, device: str) -> Searcher:
    """The search engine of a space.

    Args:
        space: of an open bundle.
        device: "cpu": as the manifest says. "cuda": exact on the GPU, whatever the index, which is one for CPUs; what
            has to look farther than GPU_FARTHEST is exact on the CPU.

    Raises:
        BundleUnsupportedError: this build has no FAISS, or none with a GPU.
        BundleMismatchError: the index is of another kind, size, dimension or metric than the space.
        BundleCorruptError: the index cannot be read.
    """
    if device == "cuda":
        return IndexSearcher(space.vectors, GpuIndex(space.vectors), GPU_FARTHEST)
    if space.spec.index.kind == manifest_pb2.EXACT:
        return ExactSearcher(space.vectors)
    return IndexSearcher(space.vectors, open_index(space))


def check_search(vectors: Vectors, queries: Vectors, k: int, masks: Sequence[Mask | None]) -> list[float]:
    """Refuse what no search can answer; see Searcher.search.

    Returns:
        The largest magnitude among each query's elements.
    """
    items, dim = vectors.shape
    if queries.ndim != 2 or queries.shape[1] != dim or queries.dtype != np.float32:
        raise ValueError(f"queries must be float32 [B, {dim}], found {queries.dtype} {list(queries.shape)}")
    magnitudes: list[float] = np.maximum.reduce(np.abs(queries), axis=1).tolist()  # NaN is the largest
    for position, magnitude in enumerate(magnitudes):
        if not math.isfinite(magnitude):
            raise ValueError(f"query {position} is not finite: a user without a vector has no nearest items")
    if k < 0:
        raise ValueError(f"k must not be negative, found {k}")
    if len(masks) != len(queries):
        raise ValueError(f"expected {len(queries)} masks, one per query, found {len(masks)}")
    words = bitmaps.words_of(items)
    for position, mask in enumerate(masks):
        if mask is not None and (mask.shape != (words,) or mask.dtype != np.uint64):
            raise ValueError(f"mask {position} must be uint64 [{words}], found {mask.dtype} {list(mask.shape)}")
    return magnitudes


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
