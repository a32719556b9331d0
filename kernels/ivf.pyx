"""Nearest rows through inverted lists of 4-bit codes; see ivf.pyi for the public API and include/ivf.h for the method.

    InvertedLists        arrays checked once, so that no search can leave them
      search ─ validate ─ scratch ─┐ nogil
                                   └ for each query
                                        project, probe, scan: the `fetch` best passing rows by their codes
                                        re-score them from the vectors, keep the best k in order

Where the codes lie in a bundle they are read from its mapped files: a search owns nothing but its scratch.
"""

import numpy as np

from libc.math cimport fabsf, isfinite
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t

from recserve.kernels._arrays import check_array
from recserve.kernels.vectors import CPU_VARIANT, masks_of, pad

include "_dot.pxi"

cdef extern from "rescore.h" nogil:
    uint32_t key_row(uint64_t key)
    float score_of_rank(uint32_t rank)
    uint32_t key_rank(uint64_t key)
    ptrdiff_t rescore_rows "rescore"(
        dot_function dot, const float* table, ptrdiff_t dim, const float* query, const int64_t* rows, ptrdiff_t n,
        ptrdiff_t k, uint64_t* keys, uint64_t* spare
    )

cdef extern from "ivf.h" nogil:
    enum:
        IVF_BLOCK
        IVF_WORDS
        IVF_GROUP
        IVF_CHUNK
    ctypedef struct ivf_index:
        ptrdiff_t lists, dim, pairs, part
        const float* centroids
        const float* codewords
        const int64_t* starts
        const int32_t* rows
        const uint8_t* codes
    ctypedef struct ivf_variant:
        pass
    ctypedef struct ivf_scratch:
        float* list_scores
        uint64_t* lists
        uint64_t* spare
        float* table_scores
        uint8_t* tables
        uint64_t* found
    ivf_variant ivf_variant_named(const char* name)
    ptrdiff_t ivf_search(
        const ivf_index* index, const ivf_variant* variant, const float* query, ptrdiff_t probes, ptrdiff_t enough,
        ptrdiff_t fetch, const uint64_t* bitmap, ivf_scratch* scratch
    )

BLOCK = IVF_BLOCK
WORDS = IVF_WORDS
GROUP = IVF_GROUP
MAX_PAIRS = 128  # twice as many parts, each of at most 127: a sum stays below 2 ** 16

cdef dot_function dot = dot_variant_named(CPU_VARIANT.encode())
cdef ivf_variant variant = ivf_variant_named(CPU_VARIANT.encode())


def rescore(vectors, query, rows, k):
    """The best k of some rows; see ivf.pyi."""
    check_table(vectors)
    check_array("query", query, np.float32, (vectors.shape[1],))
    check_array("rows", rows, np.int64, (None,))
    if rows.size and (rows.min() < 0 or rows.max() >= len(vectors)):
        raise ValueError(f"rows: expected 0 to {len(vectors) - 1}, found {rows.min()} to {rows.max()}")
    if k < 0:
        raise ValueError(f"k: expected at least 0, found {k}")
    keys = np.empty((2, max(1, len(rows))), np.uint64)
    found_rows, scores = np.empty(min(k, len(rows)), np.int64), np.empty(min(k, len(rows)), np.float32)
    cdef const float[:, ::1] table = vectors, padded = pad(query[np.newaxis])
    cdef const int64_t[::1] rows_view = rows
    cdef uint64_t[:, ::1] keys_view = keys
    cdef int64_t[::1] found_view = found_rows
    cdef float[::1] scores_view = scores
    cdef Py_ssize_t wanted = found_rows.size, count
    with nogil:
        count = rescore_rows(
            dot, &table[0, 0], table.shape[1], &padded[0, 0], &rows_view[0], rows_view.shape[0], wanted,
            &keys_view[0, 0], &keys_view[1, 0],
        )
        unpack(&keys_view[0, 0], count, &found_view[0], &scores_view[0])
    return found_rows[:count], scores[:count]


cdef class InvertedLists:
    """See ivf.pyi."""

    cdef readonly object arrays
    cdef readonly Py_ssize_t items
    cdef readonly Py_ssize_t dim
    cdef ivf_index index
    cdef const float[:, ::1] projection
    cdef const float[:, :, ::1] centroids, codewords
    cdef const int64_t[::1] starts
    cdef const int32_t[:, ::1] rows
    cdef const uint8_t[:, :, ::1] codes

    def __init__(self, items, projection, centroids, codewords, starts, rows, codes):
        check_array("projection", projection, np.float32, (None, None))
        projected, dim = projection.shape
        check_array("centroids", centroids, np.float32, (None, projected, GROUP))
        check_array("codewords", codewords, np.float32, (None, WORDS, None))
        parts, _, part = codewords.shape
        if parts == 0 or parts % 4 or parts > 2 * MAX_PAIRS or parts * part != projected or dim == 0:
            raise ValueError(
                f"codewords: expected a multiple of 4 parts, at most {2 * MAX_PAIRS}, that make up the {projected} "
                f"projected dimensions, found {parts} of {part}"
            )
        check_array("starts", starts, np.int64, (None,))
        check_array("rows", rows, np.int32, (None, BLOCK))
        check_array("codes", codes, np.uint8, (len(rows), parts // 2, BLOCK))
        lists = len(starts) - 1
        if lists < 1 or -(-lists // GROUP) != len(centroids):
            raise ValueError(f"starts: {lists} lists do not go with {len(centroids)} groups of {GROUP} centroids")
        if starts[0] != 0 or starts[lists] != len(rows) or (np.diff(starts) < 0).any():
            raise ValueError(f"starts: expected to ascend from 0 to the {len(rows)} blocks")
        check_listed(rows, items)
        self.items = items
        self.dim = dim
        self.projection = projection
        self.centroids = centroids
        self.codewords = codewords
        self.starts = starts
        self.rows = rows
        self.codes = codes
        self.index = ivf_index(
            lists=lists, dim=projected, pairs=parts // 2, part=part, centroids=&self.centroids[0, 0, 0],
            codewords=&self.codewords[0, 0, 0], starts=&self.starts[0], rows=&self.rows[0, 0],
            codes=&self.codes[0, 0, 0],
        )

    @property
    def lists(self):
        """How many lists there are."""
        return self.index.lists

    def search(self, vectors, queries, k, probes, fetch, masks, enough=0):
        """The best k rows for each query; see ivf.pyi."""
        check_table(vectors)
        check_array("vectors", vectors, np.float32, (self.items, self.dim))
        check_array("queries", queries, np.float32, (None, self.dim))
        batch = len(queries)
        plan = np.empty((batch, 4), np.int64)
        arguments = (("k", k, 0), ("probes", probes, 1), ("fetch", fetch, 1), ("enough", enough, 0))
        for column, (name, values, least) in enumerate(arguments):
            plan[:, column] = values
            check_at_least(name, plan, column, least)
        return self.run(vectors, queries, masks_of(masks, batch, self.items), plan)

    cdef run(self, vectors, queries, bitmaps, plan):
        """Search with checked arguments; plan: k, probes, fetch, enough of each query; no more is taken than there is."""
        cdef int64_t[:, ::1] plan_view = plan
        cdef Py_ssize_t batch = plan_view.shape[0], width = 1, fetch = 1, lists = self.centroids.shape[0] * IVF_GROUP
        cdef Py_ssize_t i, j, found
        for i in range(batch):
            plan_view[i, 1] = min(plan_view[i, 1], self.index.lists)
            plan_view[i, 2] = min(plan_view[i, 2], max(self.items, 1))
            plan_view[i, 0] = min(plan_view[i, 0], plan_view[i, 2])
            width, fetch = max(width, plan_view[i, 0]), max(fetch, plan_view[i, 2])
        addresses = np.array([0 if each is None else each.ctypes.data for each in bitmaps], np.uintp)
        found_rows, found_scores = np.empty((batch, width), np.int64), np.empty((batch, width), np.float32)
        counts = np.empty(batch, np.int64)
        exact = pad(queries)
        scaled = np.empty_like(exact)
        floats = np.empty(lists + 2 * self.index.dim + 32 * self.index.pairs, np.float32)
        keys = np.empty(lists + max(lists, fetch) + 3 * fetch + IVF_CHUNK * IVF_BLOCK, np.uint64)
        tables = np.empty(32 * self.index.pairs, np.uint8)
        each_row = np.empty(max(fetch, self.index.dim), np.int64)
        cdef const float[:, ::1] table = vectors, exact_view = exact
        cdef float[:, ::1] scaled_view = scaled
        cdef const uintptr_t[::1] address_view = addresses
        cdef int64_t[:, ::1] rows_view = found_rows
        cdef float[:, ::1] scores_view = found_scores
        cdef int64_t[::1] counts_view = counts, row_view = each_row
        cdef float[::1] floats_view = floats
        cdef uint64_t[::1] keys_view = keys
        cdef uint8_t[::1] tables_view = tables
        cdef float* projected = &floats_view[lists]
        cdef ivf_scratch scratch = ivf_scratch(
            list_scores=&floats_view[0], table_scores=projected + self.index.dim, lists=&keys_view[0],
            spare=&keys_view[lists], found=&keys_view[lists + max(lists, fetch) + fetch], tables=&tables_view[0],
        )
        for i in range(batch):
            if not rescale(&exact_view[i, 0], exact_view.shape[1], &scaled_view[i, 0]):
                raise ValueError("queries: expected finite elements")
        with nogil:
            for i in range(batch):
                for j in range(self.index.dim):
                    row_view[j] = j
                dot(&self.projection[0, 0], self.dim, &row_view[0], self.index.dim, &scaled_view[i, 0], projected)
                found = ivf_search(
                    &self.index, &variant, projected, plan_view[i, 1], plan_view[i, 3], plan_view[i, 2],
                    <const uint64_t*>address_view[i], &scratch,
                )
                for j in range(found):
                    row_view[j] = key_row(scratch.found[j])
                found = rescore_rows(
                    dot, &table[0, 0], self.dim, &exact_view[i, 0], &row_view[0], found, plan_view[i, 0],
                    scratch.found, scratch.spare,
                )
                unpack(scratch.found, found, &rows_view[i, 0], &scores_view[i, 0])
                counts_view[i] = found
        return [(found_rows[i, : counts[i]], found_scores[i, : counts[i]]) for i in range(batch)]


cdef bint rescale(const float* query, Py_ssize_t dim, float* scaled) noexcept nogil:
    """Bring a query to a scale of its own, so that its length can neither overflow nor vanish; False: it is not finite."""
    cdef float largest = 0
    cdef Py_ssize_t i
    for i in range(dim):
        if not isfinite(query[i]):
            return False
        largest = max(largest, fabsf(query[i]))
    for i in range(dim):
        scaled[i] = query[i] / (largest if largest > 0 else 1)
    return True


cdef inline void unpack(const uint64_t* keys, Py_ssize_t n, int64_t* rows, float* scores) noexcept nogil:
    """Turn keys back into rows and scores."""
    cdef Py_ssize_t i
    for i in range(n):
        rows[i] = key_row(keys[i])
        scores[i] = score_of_rank(key_rank(keys[i]))


def check_table(vectors):
    """Refuse a table whose rows do not fit into keys."""
    check_array("vectors", vectors, np.float32, (None, None))
    if len(vectors) >= 1 << 31:
        raise ValueError(f"vectors: expected fewer than 2 ** 31 rows, found {len(vectors)}")


cdef check_at_least(name, const int64_t[:, ::1] plan, Py_ssize_t column, int64_t least):
    cdef Py_ssize_t i
    for i in range(plan.shape[0]):
        if plan[i, column] < least:
            raise ValueError(f"{name}: expected at least {least}, found {plan[i, column]}")


def check_listed(rows, items):
    """Refuse lists that do not hold every item once, with -1 in the places that are left."""
    seen = np.zeros(items, np.uint8)
    count = 0
    for start in range(0, len(rows), 1 << 15):
        listed = rows[start : start + (1 << 15)].ravel()
        listed = listed[listed != -1]
        if listed.size and (listed.min() < 0 or listed.max() >= items):
            raise ValueError(f"rows: expected -1 to {items - 1}, found {listed.min()} to {listed.max()}")
        seen[listed] = 1
        count += listed.size
    if count != items or not seen.all():
        raise ValueError(f"rows: expected each of {items} items once, found {count}, {int(seen.sum())} distinct")
