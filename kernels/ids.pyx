"""Key -> row lookup in a hash table of two mapped arrays; see ids.pyi for the public API.

Open addressing with linear probing (Knuth, The Art of Computer Programming, vol. 3, section 6.4, algorithm L). A slot
holds row + 1, 0 is empty; the keys stay in their own array, and a table costs 8 to 16 bytes a key beside it. Fibonacci
hashing (same section) spreads keys that differ in few bits: the home slot is the top bits of the low 64 bits of
key * 2**64 / golden ratio.
"""

import numpy as np

from libc.stdint cimport int64_t, uint32_t, uint64_t

from recserve.kernels._arrays import check_array

cdef enum:
    NOT_FOUND = -1
    CORRUPT = -2

cdef uint64_t MULTIPLIER = 0x9E3779B97F4A7C15ULL
MAX_KEYS = 2**32 - 2


class DuplicateKeyError(ValueError):
    """Two rows have the same key."""

    def __init__(self, first_row, second_row):
        self.first_row = first_row
        self.second_row = second_row
        super().__init__(f"rows {first_row} and {second_row} have the same key")


def build_slots(keys):
    """Build the table of `keys`; see ids.pyi."""
    check_array("keys", keys, np.uint64, (None,))
    if len(keys) > MAX_KEYS:
        raise ValueError(f"keys: a table holds at most {MAX_KEYS} keys, found {len(keys)}")
    bits = max(1, (2 * len(keys) - 1).bit_length())
    slots = np.zeros(1 << bits, np.uint32)
    cdef const uint64_t[::1] keys_view = keys
    cdef uint32_t[::1] slots_view = slots
    cdef int shift = 64 - bits
    cdef int64_t first = -1, second
    with nogil:
        second = fill(&keys_view[0], keys_view.shape[0], &slots_view[0], slots_view.shape[0], shift, &first)
    if second >= 0:
        raise DuplicateKeyError(first, second)
    return slots


def lookup(keys, slots, wanted):
    """Find the rows of `wanted`; see ids.pyi."""
    check_array("keys", keys, np.uint64, (None,))
    check_array("slots", slots, np.uint32, (None,))
    check_array("wanted", wanted, np.uint64, (None,))
    if len(slots) < 2 or len(slots) & (len(slots) - 1):
        raise ValueError(f"slots: expected a power of two of at least 2 slots, found {len(slots)}")
    found = np.empty(len(wanted), np.int64)
    cdef const uint64_t[::1] keys_view = keys
    cdef const uint32_t[::1] slots_view = slots
    cdef const uint64_t[::1] wanted_view = wanted
    cdef int64_t[::1] found_view = found
    cdef int shift = 64 - (len(slots).bit_length() - 1)
    cdef Py_ssize_t i, n = len(wanted)
    cdef bint corrupt = False
    with nogil:
        for i in range(n):
            found_view[i] = probe(
                &keys_view[0], keys_view.shape[0], &slots_view[0], slots_view.shape[0], shift, wanted_view[i]
            )
            corrupt |= found_view[i] == CORRUPT
    if corrupt:
        raise ValueError(f"slots: names rows beyond the {len(keys)} keys, or has no empty slot; it is not their table")
    return found


cdef inline uint64_t home(uint64_t key, int shift) noexcept nogil:
    return (key * MULTIPLIER) >> shift


cdef int64_t fill(
    const uint64_t* keys, Py_ssize_t n, uint32_t* slots, Py_ssize_t size, int shift, int64_t* first
) noexcept nogil:
    """Insert every row in order; return the first row whose key is taken (`first` gets the taker), or -1."""
    cdef Py_ssize_t row
    cdef uint64_t slot, last = <uint64_t>size - 1
    for row in range(n):
        slot = home(keys[row], shift)
        while slots[slot] != 0:
            if keys[slots[slot] - 1] == keys[row]:
                first[0] = <int64_t>slots[slot] - 1
                return row
            slot = (slot + 1) & last
        slots[slot] = <uint32_t>(row + 1)
    return -1


cdef int64_t probe(
    const uint64_t* keys, Py_ssize_t n, const uint32_t* slots, Py_ssize_t size, int shift, uint64_t key
) noexcept nogil:
    """Row of the key, NOT_FOUND or CORRUPT: slots come from files, so neither their rows nor an end are trusted."""
    cdef Py_ssize_t step
    cdef uint64_t slot = home(key, shift), last = <uint64_t>size - 1
    for step in range(size):
        if slots[slot] == 0:
            return NOT_FOUND
        if <Py_ssize_t>slots[slot] > n:
            return CORRUPT
        if keys[slots[slot] - 1] == key:
            return <int64_t>slots[slot] - 1
        slot = (slot + 1) & last
    return CORRUPT
