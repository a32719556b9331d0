from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.bitmaps import Bitmap

CPU_VARIANTS: tuple[str, ...]
"""Instruction sets that this build and CPU have, narrowest first: "portable", then "avx2" and "avx512" on x86-64."""

CPU_VARIANT: str
"""The one in use: the last of CPU_VARIANTS, or what the environment variable RECSERVE_CPU named at import."""

def dot_rows(vectors: NDArray[np.float32], query: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Inner products of some rows with one query, in the order of additions that kernels/include/dot.h defines.

    The bits are those of `search`, and the same on every CPU. Releases the GIL.

    Args:
        vectors: float32 [N, d]; may be read-only and memory-mapped. Best aligned to 64 bytes with d a multiple of 16.
        query: float32 [d]; NaN elements are allowed and make every score NaN.
        rows: int64 [n], each in 0..N-1, in any order, repeats allowed.

    Returns:
        float32 [n].

    Raises:
        TypeError: an array is of another dtype.
        ValueError: shapes do not agree, an array is not contiguous, or a row is outside the table.
    """

def search(
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    mask: Bitmap | Sequence[Bitmap | None] | None = None,
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Exact search: the k rows with the highest inner products, for each query.

    One pass over the vectors serves all queries, even where each has its own mask, and a query's answer does not
    depend on the others. Rows whose score is NaN are never returned. Releases the GIL.

    Args:
        vectors: float32 [N, d]; may be read-only and memory-mapped.
        queries: float32 [B, d]; infinite elements are allowed, NaN is not.
        k: how many to find, >= 0; may exceed N.
        mask: the bitmap of the rows that may be returned (see `recserve.kernels.bitmaps`), for all queries; or a
            sequence of B such bitmaps, None in it where every row may; or None.

    Returns:
        B pairs (rows int64 [m], scores float32 [m]), m = min(k, rows that pass with a score), by score descending and
        row ascending.

    Raises:
        TypeError: an array is of another dtype.
        ValueError: shapes do not agree, an array is not contiguous, a query has NaN elements, or k is negative.
    """

def first_bad_vector(vectors: NDArray[np.float32], tolerance: float) -> int:
    """The first row that has a NaN or infinite element, or whose Euclidean length is not 1; -1: there is none.

    Lengths are computed in double. Releases the GIL.

    Args:
        vectors: float32 [N, d]; may be read-only and memory-mapped.
        tolerance: how far a length may be from 1, >= 0; infinite: vectors may have any length.

    Raises:
        TypeError: the array is of another dtype.
        ValueError: it is not contiguous, or has not two axes.
    """

def top_k(
    scores: NDArray[np.float32], rows: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k best of scored rows, by score descending and row ascending as in `search`. Releases the GIL.

    Args:
        scores: float32 [n]; NaN scores are never returned.
        rows: int64 [n], in any order.
        k: how many to select, >= 0; may exceed n.

    Returns:
        (rows int64 [m], scores float32 [m]), m = min(k, scores that are not NaN), in that order.

    Raises:
        TypeError: an array is of another dtype.
        ValueError: shapes do not agree, an array is not contiguous, or k is negative.
    """
