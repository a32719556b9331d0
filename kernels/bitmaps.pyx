"""Bitmaps over item rows; see bitmaps.pyi for the public API."""

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t, uintptr_t

from recserve.kernels._arrays import check_array, check_rows
from recserve.kernels.vectors import CPU_VARIANT

cdef extern from "bits.h" nogil:
    ctypedef struct bits_variant_t:
        int64_t (*intersect)(const uint64_t* const* bitmaps, ptrdiff_t n, ptrdiff_t words, uint64_t* out) noexcept nogil
        int64_t (*count)(const uint64_t* bitmap, ptrdiff_t words) noexcept nogil
        void (*between)(
            const uint64_t* planes, ptrdiff_t words, uint64_t first, uint64_t last, uint64_t* out
        ) noexcept nogil
    const bits_variant_t* bits_variant_named(const char* name)
    enum:
        BITS_PLANES

# A CPU may have AVX-512 without its population count.
cdef const bits_variant_t* variant = bits_variant_named(CPU_VARIANT.encode())
if variant == NULL:
    variant = bits_variant_named(b"avx2")


def words_of(size):
    """How many words a bitmap has; see bitmaps.pyi."""
    return (size + 63) // 64


def full(size):
    """A bitmap of all rows; see bitmaps.pyi."""
    bitmap = np.full(words_of(size), ~np.uint64(0))
    if size % 64:
        bitmap[len(bitmap) - 1] >>= np.uint64(64 - size % 64)
    return bitmap


def pack(passes):
    """The bitmap of truth values; see bitmaps.pyi."""
    check_array("passes", passes, np.bool_, (None,))
    octets = np.zeros(8 * words_of(len(passes)), np.uint8)
    packed = np.packbits(passes, bitorder="little")
    octets[: len(packed)] = packed
    return octets.view("<u8").astype(np.uint64, copy=False)


def unpack(bitmap, size):
    """The truth values of a bitmap; see bitmaps.pyi."""
    check_array("bitmap", bitmap, np.uint64, (words_of(size),))
    octets = bitmap.astype("<u8", copy=False).view(np.uint8)
    return np.unpackbits(octets, count=size, bitorder="little").view(np.bool_)


def count(bitmap):
    """How many bits are set; see bitmaps.pyi."""
    check_array("bitmap", bitmap, np.uint64, (None,))
    cdef const uint64_t[::1] words = bitmap
    cdef int64_t found
    with nogil:
        found = variant.count(&words[0], words.shape[0])
    return found


def contains(bitmap, rows):
    """Whether rows are in a bitmap; see bitmaps.pyi."""
    check_array("bitmap", bitmap, np.uint64, (None,))
    check_array("rows", rows, np.int64, (None,))
    check_rows("rows", rows, 64 * len(bitmap))
    inside = np.empty(len(rows), np.uint8)
    cdef const uint64_t[::1] words = bitmap
    cdef const int64_t[::1] row = rows
    cdef uint8_t[::1] found = inside
    cdef Py_ssize_t i
    with nogil:
        for i in range(row.shape[0]):
            found[i] = (words[row[i] >> 6] >> (row[i] & 63)) & 1
    return inside.view(np.bool_)


def intersect(bitmaps, out):
    """The rows that are in all bitmaps; see bitmaps.pyi."""
    check_array("out", out, np.uint64, (None,), writable=True)
    if not bitmaps:
        raise ValueError("bitmaps: expected at least one")
    for bitmap in bitmaps:
        check_array("bitmaps", bitmap, np.uint64, out.shape)
    addresses = np.array([bitmap.ctypes.data for bitmap in bitmaps], np.uintp)
    cdef const uintptr_t[::1] address = addresses
    cdef uint64_t[::1] result = out
    cdef int64_t found
    with nogil:
        found = variant.intersect(<const uint64_t* const*>&address[0], address.shape[0], result.shape[0], &result[0])
    return found


def between(planes, first, last, out):
    """The rows whose number lies between two; see bitmaps.pyi."""
    check_array("out", out, np.uint64, (None,), writable=True)
    check_array("planes", planes, np.uint64, (BITS_PLANES, len(out)))
    if not 0 <= first <= last < 1 << BITS_PLANES:
        raise ValueError(f"first, last: expected ascending numbers of {BITS_PLANES} bits, found {first} and {last}")
    cdef const uint64_t[:, ::1] words = planes
    cdef uint64_t[::1] result = out
    cdef uint64_t low = first, high = last
    with nogil:
        variant.between(&words[0, 0], result.shape[0], low, high, &result[0])


def bounds(values, order, low, high):
    """Where a range of values lies in their order; see bitmaps.pyi."""
    check_array("values", values, np.float64, (None,))
    check_array("order", order, np.int32, (None,))
    cdef const double[::1] value = values
    cdef const int32_t[::1] row = order
    cdef double least = low, greatest = high
    cdef Py_ssize_t start, stop
    with nogil:
        start = count_below(value, row, least, False)
        stop = count_below(value, row, greatest, True)
    return start, max(start, stop)


cdef Py_ssize_t count_below(
    const double[::1] value, const int32_t[::1] order, double bound, bint inclusive
) noexcept nogil:
    """How many of the ordered rows have a value below the bound, or at it where that is inclusive; by bisection."""
    cdef Py_ssize_t low = 0, high = order.shape[0], middle
    cdef double v
    while low < high:
        middle = (low + high) // 2
        v = value[order[middle]]
        if v < bound or (inclusive and v == bound):
            low = middle + 1
        else:
            high = middle
    return low


def add_rows(bitmap, rows):
    """Set the bits of rows; see bitmaps.pyi."""
    check_array("bitmap", bitmap, np.uint64, (None,), writable=True)
    check_array("rows", rows, np.int32, (None,))
    check_rows("rows", rows, 64 * len(bitmap))
    cdef uint64_t[::1] words = bitmap
    cdef const int32_t[::1] row = rows
    cdef Py_ssize_t i
    with nogil:
        for i in range(row.shape[0]):
            words[row[i] >> 6] |= <uint64_t>1 << (row[i] & 63)


def drop_rows(bitmap, rows):
    """Clear the bits of rows; see bitmaps.pyi."""
    check_array("bitmap", bitmap, np.uint64, (None,), writable=True)
    check_array("rows", rows, np.int64, (None,))
    check_rows("rows", rows, 64 * len(bitmap))
    cdef uint64_t[::1] words = bitmap
    cdef const int64_t[::1] row = rows
    cdef uint64_t bit
    cdef int64_t dropped = 0
    cdef Py_ssize_t i
    with nogil:
        for i in range(row.shape[0]):
            bit = <uint64_t>1 << (row[i] & 63)
            dropped += (words[row[i] >> 6] & bit) != 0
            words[row[i] >> 6] &= ~bit
    return dropped
