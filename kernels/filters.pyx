"""Filters over item rows as byte masks; see filters.pyi for the public API.

Every filter is one loop over the mask that only ever writes zeros. `row_at` is the only place that knows whether the
mask stands for all items or for a subset; the compiler moves its test out of the loops.
"""

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from recserve.kernels._arrays import check_array, check_rows


def keep_codes(mask, codes, allowed, rows=None):
    """Keep rows whose code is allowed; see filters.pyi."""
    check_array("codes", codes, np.int32, (None,))
    check_subset(mask, len(codes), rows)
    check_array("allowed", allowed, np.uint8, (None,))
    cdef uint8_t[::1] mask_view = mask
    cdef const int32_t[::1] code = codes
    cdef const uint8_t[::1] allow = allowed
    cdef const int64_t* row = address_of(rows)
    cdef Py_ssize_t i
    with nogil:
        for i in range(mask_view.shape[0]):
            mask_view[i] &= -contains(allow, code[row_at(row, i)])


def drop_codes(mask, codes, forbidden, rows=None):
    """Drop rows whose code is forbidden; see filters.pyi."""
    check_array("codes", codes, np.int32, (None,))
    check_subset(mask, len(codes), rows)
    check_array("forbidden", forbidden, np.uint8, (None,))
    cdef uint8_t[::1] mask_view = mask
    cdef const int32_t[::1] code = codes
    cdef const uint8_t[::1] forbid = forbidden
    cdef const int64_t* row = address_of(rows)
    cdef Py_ssize_t i
    with nogil:
        for i in range(mask_view.shape[0]):
            mask_view[i] &= contains(forbid, code[row_at(row, i)]) - 1


def keep_range(mask, values, low, high, rows=None):
    """Keep rows with low <= value <= high; see filters.pyi."""
    check_array("values", values, np.float64, (None,))
    check_subset(mask, len(values), rows)
    if low != low or high != high:
        raise ValueError(f"low, high: expected numbers or infinities, found {low} and {high}")
    cdef uint8_t[::1] mask_view = mask
    cdef const double[::1] value = values
    cdef const int64_t* row = address_of(rows)
    cdef double lo = low, hi = high, v
    cdef Py_ssize_t i
    with nogil:
        for i in range(mask_view.shape[0]):
            v = value[row_at(row, i)]
            mask_view[i] &= -((lo <= v) & (v <= hi))


def keep_flag(mask, flags, rows=None):
    """Keep rows whose flag is set; see filters.pyi."""
    check_array("flags", flags, np.uint8, (None,))
    check_subset(mask, len(flags), rows)
    cdef uint8_t[::1] mask_view = mask
    cdef const uint8_t[::1] flag = flags
    cdef const int64_t* row = address_of(rows)
    cdef Py_ssize_t i
    with nogil:
        for i in range(mask_view.shape[0]):
            mask_view[i] &= -(flag[row_at(row, i)] != 0)


def drop_any(mask, list_offsets, list_codes, forbidden, rows=None):
    """Drop rows whose list has a forbidden code; see filters.pyi."""
    check_lists(list_offsets, list_codes)
    check_subset(mask, len(list_offsets) - 1, rows)
    check_array("forbidden", forbidden, np.uint8, (None,))
    cdef uint8_t[::1] mask_view = mask
    cdef const int64_t[::1] offset = list_offsets
    cdef const int32_t[::1] code = list_codes
    cdef const uint8_t[::1] forbid = forbidden
    cdef const int64_t* row = address_of(rows)
    cdef Py_ssize_t i, j
    cdef int64_t item
    with nogil:
        for i in range(mask_view.shape[0]):
            item = row_at(row, i)
            for j in range(offset[item], offset[item + 1]):
                if contains(forbid, code[j]):
                    mask_view[i] = 0
                    break


def keep_listed(mask, list_offsets, list_codes, code, rows=None):
    """Keep rows whose list has the code or is empty; see filters.pyi."""
    check_lists(list_offsets, list_codes)
    check_subset(mask, len(list_offsets) - 1, rows)
    cdef uint8_t[::1] mask_view = mask
    cdef const int64_t[::1] offset = list_offsets
    cdef const int32_t[::1] listed = list_codes
    cdef const int64_t* row = address_of(rows)
    cdef int32_t wanted = code
    cdef Py_ssize_t i, j
    cdef int64_t item
    cdef bint passes
    with nogil:
        for i in range(mask_view.shape[0]):
            item = row_at(row, i)
            passes = offset[item] == offset[item + 1]
            for j in range(offset[item], offset[item + 1]):
                if listed[j] == wanted and wanted >= 0:
                    passes = True
                    break
            mask_view[i] &= -passes


def drop_rows(mask, sorted_rows, rows=None):
    """Drop the given rows; see filters.pyi."""
    check_array("sorted_rows", sorted_rows, np.int64, (None,))
    if (np.diff(sorted_rows) < 0).any():
        raise ValueError("sorted_rows: expected ascending rows; pass np.sort(...) of them")
    size = len(mask) if rows is None else None
    check_rows("sorted_rows", sorted_rows, size)
    check_subset(mask, size, rows)
    cdef uint8_t[::1] mask_view = mask
    cdef const int64_t[::1] dropped = sorted_rows
    cdef const int64_t* row = address_of(rows)
    cdef Py_ssize_t i
    with nogil:
        if row == NULL:
            for i in range(dropped.shape[0]):
                mask_view[dropped[i]] = 0
        else:
            for i in range(mask_view.shape[0]):
                if is_among(dropped, row[i]):
                    mask_view[i] = 0


def check_subset(mask, size, rows):
    """Check the mask, and the rows that it stands for, against a column of `size` rows (None: unknown)."""
    if rows is None:
        check_array("mask", mask, np.uint8, (size,), writable=True)
        return
    check_array("rows", rows, np.int64, (None,))
    check_rows("rows", rows, size)
    check_array("mask", mask, np.uint8, rows.shape, writable=True)


def check_lists(offsets, codes):
    """Check the two arrays of a column of lists; that offsets ascend in between is checked where a bundle is opened."""
    check_array("list_offsets", offsets, np.int64, (None,))
    check_array("list_codes", codes, np.int32, (None,))
    if not len(offsets) or offsets[0] != 0 or offsets[len(offsets) - 1] != len(codes):
        raise ValueError(f"list_offsets: expected to begin with 0 and end with {len(codes)}, the number of list_codes")


cdef const int64_t* address_of(rows):
    """The first element of an array that the caller keeps alive; NULL for None."""
    cdef const int64_t[::1] view = rows
    if view is None:
        return NULL
    return &view[0]


cdef inline int64_t row_at(const int64_t* rows, Py_ssize_t i) noexcept nogil:
    """The item row that mask[i] stands for."""
    return i if rows == NULL else rows[i]


cdef inline int contains(const uint8_t[::1] members, int32_t code) noexcept nogil:
    """1 if the code is a member, else 0; -1 (missing) and codes beyond the vocabulary wrap to large numbers: 0."""
    cdef uint32_t index = <uint32_t>code
    return index < <size_t>members.shape[0] and members[index] != 0


cdef bint is_among(const int64_t[::1] ascending, int64_t row) noexcept nogil:
    """Whether the row is one of the ascending rows, by bisection."""
    cdef Py_ssize_t low = 0, high = ascending.shape[0], middle
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] < row:
            low = middle + 1
        else:
            high = middle
    return low < ascending.shape[0] and ascending[low] == row
