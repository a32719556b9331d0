"""Inverted lists of 4-bit codes in NumPy, the oracle of `recserve.kernels.ivf`, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recserve.kernels.reference import bitmaps
from recserve.kernels.reference.vectors import dot_rows, top_k

TOP = np.float32(127)
LIMIT = np.float32(1 << 28)
SAMPLED = 4


def rescore(
    vectors: NDArray[np.float32], query: NDArray[np.float32], rows: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """See `recserve.kernels.ivf.rescore`."""
    return top_k(dot_rows(vectors, query, rows), rows, k)


class InvertedLists:
    """See `recserve.kernels.ivf.InvertedLists`."""

    def __init__(
        self,
        items: int,
        projection: NDArray[np.float32],
        centroids: NDArray[np.float32],
        codewords: NDArray[np.float32],
        starts: NDArray[np.int64],
        rows: NDArray[np.int32],
        codes: NDArray[np.uint8],
    ) -> None:
        self.items = items
        self.projection = projection
        self.lists = len(starts) - 1
        self.centroids = centroids.transpose(0, 2, 1).reshape(-1, len(projection))[: self.lists]
        self.codewords = codewords
        self.places = [slice(32 * start, 32 * end) for start, end in itertools.pairwise(starts)]
        self.rows = rows.reshape(-1).astype(np.int64)
        pairs = codes.transpose(0, 2, 1).reshape(-1, codes.shape[1])
        self.codes = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(len(pairs), -1)

    def search(
        self,
        vectors: NDArray[np.float32],
        queries: NDArray[np.float32],
        k: ArrayLike,
        probes: ArrayLike,
        fetch: ArrayLike,
        masks: Sequence[NDArray[np.uint64] | None],
        enough: ArrayLike = 0,
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """See `recserve.kernels.ivf.InvertedLists.search`."""
        plan = np.stack([np.broadcast_to(values, len(queries)) for values in (k, probes, fetch, enough)], axis=1)
        found = []
        for query, (places, lists, most, seen), mask in zip(queries, plan, masks, strict=True):
            rows, scores = self._scan(query, lists, seen, mask)
            if mask is not None:
                passes = bitmaps.contains(mask, rows)
                rows, scores = rows[passes], scores[passes]
            best = np.lexsort((rows, -scores))[:most]
            found.append(rescore(vectors, query, rows[best], places))
        return found

    def _scan(
        self, query: NDArray[np.float32], probes: int, enough: int, mask: NDArray[np.uint64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The items of the best lists with the scores of their codes."""
        largest = np.abs(query).max(initial=np.float32(0))
        scaled = query / (largest if largest > 0 else np.float32(1))
        projected = dot_rows(self.projection, scaled, np.arange(len(self.projection)))
        list_scores = self._products(self.centroids, projected)
        tables, scale = self._tables(projected)
        rows, scores = [], []
        passing = 0
        for turn, number in enumerate(np.argsort(-list_scores, kind="stable")):
            if turn >= probes and (mask is None or passing >= enough):
                break
            place = self.places[number]
            if mask is not None:
                sampled = self.rows[place][::SAMPLED]
                passing += SAMPLED * int(bitmaps.contains(mask, sampled[sampled >= 0]).sum())
            sums = tables[np.arange(len(tables)), self.codes[place]].sum(axis=1)
            with np.errstate(over="ignore"):
                rows.append(self.rows[place])
                scores.append(sums + np.clip(np.rint(scale * list_scores[number]), -LIMIT, LIMIT).astype(np.int64))
        all_rows, all_scores = np.concatenate(rows), np.concatenate(scores)
        return all_rows[all_rows >= 0], all_scores[all_rows >= 0]

    def _tables(self, projected: NDArray[np.float32]) -> tuple[NDArray[np.int64], np.float32]:
        """Entries 0..127 [parts, 16], and their scale."""
        parts = projected.reshape(len(self.codewords), -1)
        scores = np.stack([self._products(words, part) for words, part in zip(self.codewords, parts, strict=True)])
        scores -= scores.min(axis=1, keepdims=True)
        widest = scores.max()
        scale = TOP / widest if widest > 0 else np.float32(1)
        return np.minimum(scale * scores + np.float32(0.5), TOP).astype(np.int64), scale

    @staticmethod
    def _products(table: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Inner products that add up in ascending order of dimensions, every operation rounded to float32."""
        sums = np.zeros(len(table), np.float32)
        for dimension, value in enumerate(query):
            sums += table[:, dimension] * value
        return sums
