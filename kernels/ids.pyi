import numpy as np
from numpy.typing import NDArray

MAX_KEYS: int
"""Most keys that one table holds: a slot is 32 bits."""

class DuplicateKeyError(ValueError):
    """Two rows have the same key; `second_row` is the lowest row whose key an earlier one, `first_row`, has."""

    first_row: int
    second_row: int
    def __init__(self, first_row: int, second_row: int) -> None: ...

def build_slots(keys: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Build the hash table that `lookup` reads.

    Rows are inserted in ascending order, so the table of given keys is always the same, bit for bit.

    Args:
        keys: uint64 [n], distinct, any values; the position is the row.

    Returns:
        uint32 [m]: m is the smallest power of two >= max(2, 2 n); a slot holds row + 1, or 0 where it is empty.

    Raises:
        DuplicateKeyError: two rows have the same key.
        TypeError: `keys` is not a uint64 array.
        ValueError: it is not one-dimensional and contiguous, or longer than MAX_KEYS.
    """

def lookup(keys: NDArray[np.uint64], slots: NDArray[np.uint32], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Find the rows of keys; about one cache miss a key where keys are well mixed. Releases the GIL.

    Args:
        keys: uint64 [n], as given to `build_slots`; may be read-only and memory-mapped, like `slots`.
        slots: uint32 [m], as `build_slots` made it of `keys`.
        wanted: uint64 [q], in any order, repeats allowed.

    Returns:
        int64 [q]: the row of each wanted key, -1 where no row has it.

    Raises:
        TypeError: an array is of another dtype.
        ValueError: an array is not one-dimensional and contiguous, or a probe found that `slots` is not a table of
            `keys`: its length is not a power of two, it names rows that do not exist, or it has no empty slot.
    """
