"""Exact inner products and top k over item vectors; see vectors.pyi for the public API.

    search ─ validate ─ scratch ─┐ nogil
                                 └ for each block of rows, small enough to stay in the first-level cache
                                      for each query
                                         rows of the block that pass the query's mask
                                         scores by dot.h, in the variant chosen for this CPU
                                         scores that beat the query's k-th best so far enter its heap

The heaps' order is total (score descending, row ascending), so blocks, threads and batches do not show in the answer.
"""

import os

import numpy as np

from libc.math cimport INFINITY, fabs, isfinite, sqrt
from libc.stdint cimport int64_t, uint8_t, uint64_t, uintptr_t

from recserve.kernels._arrays import check_array, check_rows
from recserve.kernels._cpu import choose_variant

include "_dot.pxi"

cdef enum:
    BLOCK_ROWS = 16
    # A block is read as a whole when at least one row in DENSE passes: the others cost less than the lost prefetching.
    DENSE = 4

cdef struct Heap:
    # The best `size` of what was offered, as a binary heap with the worst at the root.
    float* scores
    int64_t* rows
    Py_ssize_t size
    Py_ssize_t capacity

CPU_VARIANTS = tuple(name for name in ("portable", "avx2", "avx512") if dot_variant_named(name.encode()) != NULL)

CPU_VARIANT = choose_variant(os.environ.get("RECSERVE_CPU", ""), CPU_VARIANTS)
cdef dot_function dot = dot_variant_named(CPU_VARIANT.encode())


def dot_rows(vectors, query, rows):
    """Score the given rows; see vectors.pyi."""
    check_array("vectors", vectors, np.float32, (None, None))
    check_array("query", query, np.float32, (vectors.shape[1],))
    check_array("rows", rows, np.int64, (None,))
    check_rows("rows", rows, len(vectors))
    scores = np.empty(len(rows), np.float32)
    cdef const float[:, ::1] table = vectors
    cdef const float[:, ::1] padded = pad(query[np.newaxis])
    cdef const int64_t[::1] rows_view = rows
    cdef float[::1] scores_view = scores
    with nogil:
        dot(&table[0, 0], table.shape[1], &rows_view[0], rows_view.shape[0], &padded[0, 0], &scores_view[0])
    return scores


def search(vectors, queries, k, mask=None):
    """Find the best k rows for each query; see vectors.pyi."""
    check_array("vectors", vectors, np.float32, (None, None))
    check_array("queries", queries, np.float32, (None, vectors.shape[1]))
    if np.isnan(queries).any():
        raise ValueError(f"queries[{int(np.argmax(np.isnan(queries).any(axis=1)))}] has NaN elements")
    masks = masks_of(mask, len(queries), len(vectors))
    scores = np.empty((len(queries), bound(k, len(vectors))), np.float32)
    rows = np.empty(scores.shape, np.int64)
    found = scan(vectors, pad(queries), masks, scores, rows)
    return [(rows[i, :count], scores[i, :count]) for i, count in enumerate(found)]


def top_k(scores, rows, k):
    """Select the best k of scored rows; see vectors.pyi."""
    check_array("scores", scores, np.float32, (None,))
    check_array("rows", rows, np.int64, scores.shape)
    best_scores = np.empty((1, bound(k, len(scores))), np.float32)
    best_rows = np.empty(best_scores.shape, np.int64)
    cdef const float[::1] scores_view = scores
    cdef const int64_t[::1] rows_view = rows
    cdef Heap heap = heap_in(best_scores, best_rows, 0)
    with nogil:
        offer(&heap, &scores_view[0], &rows_view[0], scores_view.shape[0])
        sort(&heap)
    return best_rows[0, : heap.size], best_scores[0, : heap.size]


def first_bad_vector(vectors, double tolerance):
    """Find a row that is not finite or of another length than 1; see vectors.pyi."""
    check_array("vectors", vectors, np.float32, (None, None))
    cdef const float[:, ::1] table = vectors
    cdef Py_ssize_t row
    with nogil:
        row = find_bad(table, tolerance)
    return row


cdef Py_ssize_t find_bad(const float[:, ::1] table, double tolerance) noexcept nogil:
    cdef double length
    cdef Py_ssize_t row
    for row in range(table.shape[0]):
        length = length_of(&table[row, 0], table.shape[1])
        if not (isfinite(length) and fabs(length - 1.0) <= tolerance):
            return row
    return -1


cdef double length_of(const float* vector, Py_ssize_t dim) noexcept nogil:
    """Finite where all elements are: the square of no float32 overflows in double."""
    cdef double total = 0
    cdef Py_ssize_t i
    for i in range(dim):
        total += <double>vector[i] * <double>vector[i]
    return sqrt(total)


def bound(k, size):
    """k, at most `size`: what is allocated follows the table, not the caller's number."""
    if k < 0:
        raise ValueError(f"k: expected at least 0, found {k}")
    return min(k, size)


def pad(queries):
    """A copy of the queries, zero-padded to the multiple of 16 elements that dot.h reads."""
    dim = queries.shape[1]
    padded = np.zeros((len(queries), max(1, -(-dim // DOT_LANES)) * DOT_LANES), np.float32)
    padded[:, :dim] = queries
    return padded


def masks_of(mask, queries, size):
    """The bitmap of each query, None where every row passes."""
    shared = mask is None or isinstance(mask, np.ndarray)
    masks = [mask] * queries if shared else list(mask)
    if len(masks) != queries:
        raise ValueError(f"mask: expected one for each of the {queries} queries, found {len(masks)}")
    for one in masks[:1] if shared else masks:
        if one is not None:
            check_array("mask", one, np.uint64, ((size + 63) // 64,))
    return masks


cdef scan(vectors, queries, masks, scores, rows):
    """Fill each query's row of `scores` and `rows`, best first; return how many each got."""
    cdef const float[:, ::1] table = vectors
    cdef const float[:, ::1] padded = queries
    cdef Py_ssize_t batch = padded.shape[0], size = table.shape[0]
    # Addresses and heaps live in NumPy memory: nothing is left to free when an allocation fails.
    addresses = np.array([0 if mask is None else mask.ctypes.data for mask in masks], np.uintp)
    heap_bytes = np.empty(batch * sizeof(Heap), np.uint8)
    cdef const uintptr_t[::1] mask_of = addresses
    cdef uint8_t[::1] heap_view = heap_bytes
    cdef Heap* heaps = <Heap*>&heap_view[0]
    cdef Py_ssize_t block, i
    for i in range(batch):
        heaps[i] = heap_in(scores, rows, i)
    with nogil:
        for block in range((size + BLOCK_ROWS - 1) // BLOCK_ROWS):
            scan_block(table, block, padded, mask_of, heaps)
        for i in range(batch):
            sort(&heaps[i])
    return [heaps[i].size for i in range(batch)]


cdef void scan_block(
    const float[:, ::1] table, Py_ssize_t block, const float[:, ::1] queries, const uintptr_t[::1] masks, Heap* heaps
) noexcept nogil:
    """Offer the block's rows to the heaps of the queries whose masks they pass."""
    cdef int64_t[BLOCK_ROWS] rows
    cdef float[BLOCK_ROWS] scores
    cdef Py_ssize_t i, passing, first = block * BLOCK_ROWS, end = min(first + BLOCK_ROWS, table.shape[0])
    cdef bint fetched = False
    for i in range(queries.shape[0]):
        passing = list_passing(<const uint64_t*>masks[i], first, end, rows)
        if passing * DENSE >= end - first and not fetched:
            dot_fetch(&table[first, 0], (end - first) * table.shape[1])
            fetched = True
        dot(&table[0, 0], table.shape[1], rows, passing, &queries[i, 0], scores)
        offer(&heaps[i], scores, rows, passing)


cdef inline Py_ssize_t list_passing(
    const uint64_t* mask, Py_ssize_t first, Py_ssize_t end, int64_t* rows
) noexcept nogil:
    """Write the rows first..end-1 that pass; return how many. The count advances without a branch to mispredict."""
    cdef Py_ssize_t row, passing = 0
    # BLOCK_ROWS divides 64, so the rows of a block have their bits in one word.
    cdef uint64_t bits = ~<uint64_t>0 if mask == NULL else mask[first >> 6] >> (first & 63)
    for row in range(first, end):
        rows[passing] = row
        passing += bits & 1
        bits >>= 1
    return passing


cdef Heap heap_in(scores, rows, Py_ssize_t i):
    """An empty heap in row i of two arrays, which must outlive it."""
    cdef float[:, ::1] scores_view = scores
    cdef int64_t[:, ::1] rows_view = rows
    return Heap(scores=&scores_view[i, 0], rows=&rows_view[i, 0], size=0, capacity=scores_view.shape[1])


cdef inline bint worse(const Heap* heap, Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    """Whether entry a stands behind entry b: a lower score, or the same with a higher row."""
    if heap.scores[a] != heap.scores[b]:
        return heap.scores[a] < heap.scores[b]
    return heap.rows[a] > heap.rows[b]


cdef inline void swap(Heap* heap, Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    heap.scores[a], heap.scores[b] = heap.scores[b], heap.scores[a]
    heap.rows[a], heap.rows[b] = heap.rows[b], heap.rows[a]


cdef void sift_down(Heap* heap, Py_ssize_t size) noexcept nogil:
    """Move the root down to its place among the first `size` entries."""
    cdef Py_ssize_t parent = 0, child = 1
    while child < size:
        if child + 1 < size and worse(heap, child + 1, child):
            child += 1
        if not worse(heap, child, parent):
            return
        swap(heap, parent, child)
        parent, child = child, 2 * child + 1


cdef void sift_up(Heap* heap, Py_ssize_t child) noexcept nogil:
    """Move the entry up to its place."""
    while child > 0 and worse(heap, child, (child - 1) // 2):
        swap(heap, child, (child - 1) // 2)
        child = (child - 1) // 2


cdef void push(Heap* heap, float score, int64_t row) noexcept nogil:
    """Add an entry while there is room; then, with a score of at least the worst one's, replace it if better."""
    if heap.size < heap.capacity:
        heap.scores[heap.size] = score
        heap.rows[heap.size] = row
        sift_up(heap, heap.size)
        heap.size += 1
    elif score > heap.scores[0] or row < heap.rows[0]:
        heap.scores[0] = score
        heap.rows[0] = row
        sift_down(heap, heap.size)


cdef inline void offer(Heap* heap, const float* scores, const int64_t* rows, Py_ssize_t n) noexcept nogil:
    """Push what may enter. A NaN score compares false with any threshold, so it never enters."""
    cdef Py_ssize_t i
    if heap.capacity == 0:
        return
    for i in range(n):
        if scores[i] >= (heap.scores[0] if heap.size == heap.capacity else -INFINITY):
            push(heap, scores[i], rows[i])


cdef void sort(Heap* heap) noexcept nogil:
    """Turn the heap into a list, best first: the worst goes to the end of what remains (heapsort)."""
    cdef Py_ssize_t last
    for last in range(heap.size - 1, 0, -1):
        swap(heap, 0, last)
        sift_down(heap, last)
