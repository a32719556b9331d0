from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recserve.kernels.bitmaps import Bitmap

BLOCK: int
"""Items of a block of codes."""
WORDS: int
"""Codewords of a part: what 4 bits tell apart."""
GROUP: int
"""Centroids that lie interleaved, so that a register holds one dimension of several."""
MAX_PAIRS: int
"""Most pairs of parts that an item can have."""

def rescore(
    vectors: NDArray[np.float32], query: NDArray[np.float32], rows: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k best of some rows by their exact inner products: `vectors.top_k` of `vectors.dot_rows`, in one call.

    The vectors of the next rows are fetched while these are scored. Releases the GIL.

    Args:
        vectors: float32 [N, d], N < 2**31; may be read-only and memory-mapped.
        query: float32 [d].
        rows: int64 [n], each in 0..N-1, in any order, repeats allowed.
        k: how many to select, >= 0; may exceed n.

    Returns:
        (rows int64 [m], scores float32 [m]), m = min(k, scores that are not NaN), by score descending and row
        ascending.

    Raises:
        TypeError: an array is of another dtype.
        ValueError: shapes do not agree, an array is not contiguous, a row is outside the table, or k is negative.
    """

class InvertedLists:
    """Items in lists around centroids, each with 4-bit codes of what its centroid leaves of it.

    An item's vector x is projected to p = P x. Its list is that of a centroid c near p, and p - c is cut into parts of
    equal length, each stored as the number of one of 16 codewords (product quantisation; Jegou et al., 2011). A query q
    scores a list by c . Pq, and an item by that plus the inner products of its codewords with the parts of Pq, these
    in 8-bit tables on one scale (Andre et al., 2017). With a single list this is a scan of all codes.

    Immutable; searches may run concurrently. The arrays may be read-only and memory-mapped, and are not copied.

    Args:
        items: N, how many items there are.
        projection: float32 [p, d].
        centroids: float32 [ceil(lists / 16), p, 16]: element [g, i, j] is dimension i of the centroid of list 16 g + j.
        codewords: float32 [parts, 16, p / parts]; parts is a multiple of 4, at most 256.
        starts: int64 [lists + 1], ascending from 0: list l has the blocks starts[l] .. starts[l + 1] - 1.
        rows: int32 [blocks, 32]: the item in each place, -1 where there is none; every item once.
        codes: uint8 [blocks, parts / 2, 32]: byte [b, i, j] holds the codes of parts 2 i (low half) and 2 i + 1 of
            the item in place j.

    Raises:
        TypeError: an array is of another dtype.
        ValueError: shapes do not agree, an array is not contiguous, or `starts` or `rows` is not as above.
    """

    items: int
    dim: int

    def __init__(
        self,
        items: int,
        projection: NDArray[np.float32],
        centroids: NDArray[np.float32],
        codewords: NDArray[np.float32],
        starts: NDArray[np.int64],
        rows: NDArray[np.int32],
        codes: NDArray[np.uint8],
    ) -> None: ...
    @property
    def lists(self) -> int:
        """How many lists there are."""

    def search(
        self,
        vectors: NDArray[np.float32],
        queries: NDArray[np.float32],
        k: ArrayLike,
        probes: ArrayLike,
        fetch: ArrayLike,
        masks: Sequence[Bitmap | None],
        enough: ArrayLike = 0,
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """The best k rows for each query, among those that the codes propose.

        Scans the `probes` best lists for the `fetch` passing items whose codes score best (ties by row), scores these
        from the vectors, and keeps the best k. Filters take part in the scan: an item that does not pass takes no
        one's place. Where what passes lies apart from the query, the best lists hold little of it: further ones are
        scanned, best first, until `enough` passing items have been seen. Releases the GIL; a query's answer does not
        depend on the others, nor on the CPU.

        Args:
            vectors: float32 [N, d], the items'.
            queries: float32 [B, d], finite.
            k: integers >= 0, one for all queries or [B].
            probes: integers >= 1, likewise; more than there are lists are all of them.
            fetch: integers >= 1, likewise; at least k, or else fewer come back.
            masks: per query the bitmap of the rows that may be returned, or None: all may.
            enough: integers >= 0, likewise; of no matter where there is no mask. Every fourth place of a list is
                looked at, and counts for four.

        Returns:
            B pairs (rows int64 [m], scores float32 [m]), by score descending and row ascending; m is below k where the
            lists hold too few that pass, or scores are NaN. Scores are those of `vectors.dot_rows`, bit by bit.

        Raises:
            TypeError: an array is of another dtype.
            ValueError: an argument is not as above.
        """
