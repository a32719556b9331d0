"""Exact inner products and top k in NumPy, the oracle of `recserve.kernels.vectors`, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.reference.bitmaps import Bitmap, unpack

LANES = 16


def dot_rows(vectors: NDArray[np.float32], query: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """See `recserve.kernels.vectors.dot_rows`.

    Element i goes to lane i mod 16, lanes add their products in ascending order, then fold in halves; every operation
    is rounded to float32.
    """
    lanes = np.zeros((len(rows), LANES), np.float32)
    with np.errstate(all="ignore"):
        for start in range(0, vectors.shape[1], LANES):
            products = vectors[rows, start : start + LANES] * query[start : start + LANES]
            lanes[:, : products.shape[1]] += products
        while lanes.shape[1] > 1:
            half = lanes.shape[1] // 2
            lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def search(
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    mask: Bitmap | Sequence[Bitmap | None] | None = None,
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """See `recserve.kernels.vectors.search`."""
    masks = [mask] * len(queries) if mask is None or isinstance(mask, np.ndarray) else mask
    found = []
    for query, one in zip(queries, masks, strict=True):
        rows = np.arange(len(vectors)) if one is None else np.flatnonzero(unpack(one, len(vectors)))
        found.append(top_k(dot_rows(vectors, query, rows), rows, k))
    return found


def top_k(
    scores: NDArray[np.float32], rows: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """See `recserve.kernels.vectors.top_k`."""
    order = np.lexsort((rows, -scores))
    order = order[~np.isnan(scores[order])][:k]
    return rows[order], scores[order]


def first_bad_vector(vectors: NDArray[np.float32], tolerance: float) -> int:
    """See `recserve.kernels.vectors.first_bad_vector`."""
    with np.errstate(invalid="ignore"):  # from signalling NaN
        lengths = np.sqrt(np.sum(np.square(vectors.astype(np.float64)), axis=1))
    good = np.isfinite(lengths) & (np.abs(lengths - 1.0) <= tolerance)
    return -1 if good.all() else int(good.argmin())
