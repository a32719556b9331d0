"""Filters over item rows as bitmaps; see filters.pyi for the public API.

Every filter makes the bits of 64 rows at a time and clears those of the mask that fail. `row_at` is the only place that
knows whether the mask stands for all items or for a subset; the compiler moves its test out of the loops.
"""

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from recserve.kernels._arrays import check_array, check_rows


def keep_codes(mask, codes, allowed, rows=None):
    """Keep rows whose code is allowed; see filters.pyi."""
    check_array("codes", codes, np.int32, (None,))
    check_array("allowed", allowed, np.uint8, (None,))
    cdef Py_ssize_t n = check_mask(mask, len(codes), rows)
    cdef uint64_t[::1] words = mask
    cdef const int32_t[::1] code = codes
    cdef const uint8_t[::1] allow = allowed
    cdef const int64_t* row = address_of(rows)
    cdef Py_ssize_t i, first
    cdef uint64_t bits
    with nogil:
        for first in range(0, n, 64):
            bits = 0
            for i in range(first, min(first + 64, n)):
                bits |= <uint64_t>contains(allow, code[row_at(row, i)]) << (i - first)
            words[first >> 6] &= bits


def drop_codes(mask, codes, forbidden, rows=None):
    """Drop rows whose code is forbidden; see filters.pyi."""
    check_array("codes", codes, np.int32, (None,))
    check_array("forbidden", forbidden, np.uint8, (None,))
    cdef Py_ssize_t n = check_mask(mask, len(codes), rows)
    cdef uint64_t[::1] words = mask
    cdef const int32_t[::1] code = codes
    cdef const uint8_t[::1] forbid = forbidden
    cdef const int64_t* row = address_of(rows)
    cdef Py_ssize_t i, first
    cdef uint64_t bits
    with nogil:
        for first in range(0, n, 64):
            bits = 0
            for i in range(first, min(first + 64, n)):
                bits |= <uint64_t>contains(forbid, code[row_at(row, i)]) << (i - first)
            words[first >> 6] &= ~bits


def keep_range(mask, values, low, high, rows=None):
    """Keep rows with low <= value <= high; see filters.pyi."""
    check_array("values", values, np.float64, (None,))
    if low != low or high != high:
        raise ValueError(f"low, high: expected numbers or infinities, found {low} and {high}")
    cdef Py_ssize_t n = check_mask(mask, len(values), rows)
    cdef uint64_t[::1] words = mask
    cdef const double[::1] value = values
    cdef const int64_t* row = address_of(rows)
    cdef double lo = low, hi = high, v
    cdef Py_ssize_t i, first
    cdef uint64_t bits
    with nogil:
        for first in range(0, n, 64):
            bits = 0
            for i in range(first, min(first + 64, n)):
                v = value[row_at(row, i)]
                bits |= <uint64_t>((lo <= v) & (v <= hi)) << (i - first)
            words[first >> 6] &= bits


def keep_flag(mask, flags, rows=None):
    """Keep rows whose flag is set; see filters.pyi."""
    check_array("flags", flags, np.uint8, (None,))
    cdef Py_ssize_t n = check_mask(mask, len(flags), rows)
    cdef uint64_t[::1] words = mask
    cdef const uint8_t[::1] flag = flags
    cdef const int64_t* row = address_of(rows)
    cdef Py_ssize_t i, first
    cdef uint64_t bits
    with nogil:
        for first in range(0, n, 64):
            bits = 0
            for i in range(first, min(first + 64, n)):
                bits |= <uint64_t>(flag[row_at(row, i)] != 0) << (i - first)
            words[first >> 6] &= bits


def drop_any(mask, list_offsets, list_codes, forbidden, rows=None):
    """Drop rows whose list has a forbidden code; see filters.pyi."""
    check_lists(list_offsets, list_codes)
    check_array("forbidden", forbidden, np.uint8, (None,))
    cdef Py_ssize_t n = check_mask(mask, len(list_offsets) - 1, rows)
    cdef uint64_t[::1] words = mask
    cdef const int64_t[::1] offset = list_offsets
    cdef const int32_t[::1] code = list_codes
    cdef const uint8_t[::1] forbid = forbidden
    cdef const int64_t* row = address_of(rows)
    cdef Py_ssize_t i, j
    cdef int64_t item
    with nogil:
        for i in range(n):
            item = row_at(row, i)
            for j in range(offset[item], offset[item + 1]):
                if contains(forbid, code[j]):
                    words[i >> 6] &= ~(<uint64_t>1 << (i & 63))
                    break


def keep_listed(mask, list_offsets, list_codes, code, rows=None):
    """Keep rows whose list has the code or is empty; see filters.pyi."""
    check_lists(list_offsets, list_codes)
    cdef Py_ssize_t n = check_mask(mask, len(list_offsets) - 1, rows)
    cdef uint64_t[::1] words = mask
    cdef const int64_t[::1] offset = list_offsets
    cdef const int32_t[::1] listed = list_codes
    cdef const int64_t* row = address_of(rows)
    cdef int32_t wanted = code
    cdef Py_ssize_t i, j
    cdef int64_t item
    cdef bint passes
    with nogil:
        for i in range(n):
            item = row_at(row, i)
            passes = offset[item] == offset[item + 1]
            for j in range(offset[item], offset[item + 1]):
                if listed[j] == wanted and wanted >= 0:
                    passes = True
                    break
            if not passes:
                words[i >> 6] &= ~(<uint64_t>1 << (i & 63))


def check_mask(mask, size, rows):
    """Check the mask, and the rows that it stands for, against a column of `size` rows; how many rows it stands for."""
    if rows is not None:
        check_array("rows", rows, np.int64, (None,))
        check_rows("rows", rows, size)
        size = len(rows)
    check_array("mask", mask, np.uint64, ((size + 63) // 64,), writable=True)
    return size


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
