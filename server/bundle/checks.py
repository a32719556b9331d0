"""What must hold within mapped arrays. Each check streams over its array in blocks, so the temporaries stay small.

Checks raise a BundleError, which names the file. `block` is how many elements are looked at in one go; it does not
show in the answer.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recserve.kernels import vectors as kernel
from recserve.kernels.features import MISSING_TIME, first_bad_list_code
from recserve.server.bundle.columns import as_stored
from recserve.server.bundle.errors import BundleCorruptError, BundleMismatchError

BLOCK: Final = 1 << 20
LENGTH_TOLERANCE: Final = 1e-4
"""How far the length of a normalised vector may be from 1."""
LOWEST_PRODUCT: Final = -1.01
"""No inner product of two normalised vectors is below it: it has room for the tolerance and for rounding."""
FIRST_TIME: Final = -62_135_596_800_000_000
END_OF_TIME: Final = 253_402_300_800_000_000
"""Microseconds UTC of the years 1 and 10000; protobuf's Timestamp and Python's datetime hold those between."""

_CONTINUATION: Final = 0b1000_0000  # UTF-8 bytes 0b10xx_xxxx continue a character


def blocks(length: int, size: int = BLOCK) -> Iterator[slice]:
    """Slices that cover `range(length)` in order."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def check_ends(offsets: NDArray[np.int64], total: int, file: str) -> None:
    """Offsets start at 0 and end at `total`: two reads, so this is checked at every load."""
    if offsets[0] != 0 or offsets[-1] != total:
        raise BundleCorruptError(
            "offsets do not span their values",
            file=file,
            expected=(0, total),
            found=(int(offsets[0]), int(offsets[-1])),
        )


def check_monotone(offsets: NDArray[np.int64], file: str, *, block: int = BLOCK) -> None:
    """Offsets never decrease. With `check_ends`, all of them then lie within their values."""
    for part in blocks(len(offsets) - 1, block):
        # Compared, not subtracted: a difference of two int64 can wrap around.
        decreases = offsets[part.start + 1 : part.stop + 1] < offsets[part]
        if decreases.any():
            at = part.start + int(decreases.argmax())
            raise BundleCorruptError(
                f"offsets decrease after entry {at}",
                file=file,
                expected=f"at least {offsets[at]}",
                found=int(offsets[at + 1]),
            )


def check_between(values: NDArray[np.integer], low: int, high: int, file: str, *, block: int = BLOCK) -> None:
    """Every value lies in [low, high)."""
    for part in blocks(len(values), block):
        bad = (values[part] < low) | (values[part] >= high)
        if bad.any():
            at = part.start + int(bad.argmax())
            raise BundleCorruptError(
                f"entry {at} is out of range", file=file, expected=f"{low} to {high - 1}", found=int(values[at])
            )


def check_falling(values: NDArray[np.number], order: NDArray[np.int64], file: str, *, block: int = BLOCK) -> None:
    """An order of rows goes from the highest to the lowest value; missing values (NaN) come last, equals by row.

    Args:
        values: by row.
        order: a permutation of the rows. Already checked.
        file: of the order.
        block: see the module.
    """
    for part in blocks(len(order) - 1, block):
        first, second = order[part], order[part.start + 1 : part.stop + 1]
        high, low = values[first].astype(np.float64), values[second].astype(np.float64)
        equal = (high == low) | (np.isnan(high) & np.isnan(low))
        falls = (high > low) | (np.isnan(low) & ~np.isnan(high)) | (equal & (first < second))
        if not falls.all():
            at = part.start + int(falls.argmin())
            raise BundleCorruptError(
                f"entry {at} does not come before the next one",
                file=file,
                expected="values that fall, equal ones by row",
                found=f"{high[at - part.start]:g} of row {order[at]}, {low[at - part.start]:g} of row {order[at + 1]}",
            )


def check_list_codes(codes: NDArray[np.int32], offsets: NDArray[np.int64], sizes: Sequence[int], file: str) -> None:
    """Codes of lists lie within the vocabularies of their columns.

    Args:
        codes: of all lists.
        offsets: cut them into lists: row by row, and by column within one. Already checked.
        sizes: of the columns' vocabularies; at least one.
        file: of the codes.
    """
    at = first_bad_list_code(codes, offsets, np.array(sizes, np.int64))
    if at >= 0:
        column = (int(np.searchsorted(offsets, at, side="right")) - 1) % len(sizes)
        raise BundleCorruptError(
            f"entry {at}, of list column {column}, is out of range",
            file=file,
            expected=f"0 to {sizes[column] - 1}",
            found=int(codes[at]),
        )


def check_times(values: NDArray[np.int64], file: str, *, missing: bool = True, block: int = BLOCK) -> None:
    """Times lie in the years 1 to 9999, or are missing where they may be.

    Args:
        values: microseconds since 1970 UTC; of any shape.
        file: that holds them.
        missing: whether they may be missing.
        block: see the module.
    """
    flat = values.reshape(-1)
    for part in blocks(len(flat), block):
        bad = (flat[part] < FIRST_TIME) | (flat[part] >= END_OF_TIME)
        if missing:
            bad &= flat[part] != MISSING_TIME
        if bad.any():
            at = part.start + int(bad.argmax())
            raise BundleCorruptError(
                f"entry {at} is no time",
                file=file,
                expected=f"microseconds from {FIRST_TIME} to {END_OF_TIME - 1} (years 1 to 9999)",
                found=int(flat[at]),
            )


def check_counts(counts: NDArray[np.float64], file: str, *, block: int = BLOCK) -> None:
    """Counts are finite and at least 1."""
    for part in blocks(len(counts), block):
        good = (counts[part] >= 1) & (counts[part] < np.inf)
        if not good.all():
            at = part.start + int(good.argmin())
            raise BundleCorruptError(
                f"entry {at} counts nothing",
                file=file,
                expected="a finite number of at least 1",
                found=float(counts[at]),
            )


def check_ascending(keys: NDArray[np.uint64], file: str, *, block: int = BLOCK) -> None:
    """Keys ascend strictly, so none occurs twice and binary search works."""
    for part in blocks(len(keys) - 1, block):
        bad = keys[part.start + 1 : part.stop + 1] <= keys[part]
        if bad.any():
            at = part.start + int(bad.argmax())
            raise BundleCorruptError(
                f"keys do not ascend after entry {at}",
                file=file,
                expected=f"more than {keys[at]}",
                found=int(keys[at + 1]),
            )


def check_permutation(rows: NDArray[np.int64], file: str, *, block: int = BLOCK) -> None:
    """Each of the rows 0 to n - 1 occurs once."""
    check_between(rows, 0, len(rows), file, block=block)
    seen = np.zeros(len(rows), np.bool_)
    for part in blocks(len(rows), block):
        seen[rows[part]] = True
    if not seen.all():
        raise BundleCorruptError(
            "a row occurs twice and another is missing", file=file, expected=int(seen.argmin()), found="absent"
        )


def check_utf8(utf8: NDArray[np.uint8], offsets: NDArray[np.int64], file: str, *, block: int = BLOCK) -> None:
    """The bytes are UTF-8, and no string starts or ends within a character."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for part in blocks(len(utf8), block):
            decoder.decode(utf8[part].data)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise BundleCorruptError(f"strings are not UTF-8: {error.reason}", file=file) from error
    for part in blocks(len(offsets), block):
        starts = offsets[part]
        first = utf8[starts[starts < len(utf8)]]
        if ((first & 0b1100_0000) == _CONTINUATION).any():
            raise BundleCorruptError("a string starts within a UTF-8 character", file=file)


def check_column(
    matrix: NDArray[np.generic], column: int, values: NDArray[np.generic], file: str, *, block: int = BLOCK
) -> None:
    """A column of `features.npy` or `times.npy` holds an item column's values, as `as_stored` gives them.

    Args:
        matrix: [rows, columns].
        column: its number.
        values: [rows], of the item column.
        file: of the matrix.
        block: see the module.
    """
    for part in blocks(len(values), block):
        expected, found = as_stored(values[part], matrix.dtype), matrix[part, column]
        same = (found == expected) | (np.isnan(found) & np.isnan(expected))
        if not same.all():
            row = int(same.argmin())
            raise BundleMismatchError(
                f"column {column} contradicts the item column that it is made of, in row {part.start + row}",
                file=file,
                expected=expected[row].item(),
                found=found[row].item(),
            )


def check_vectors(vectors: NDArray[np.float32], file: str, *, normalized: bool, block: int = BLOCK) -> None:
    """Vectors are finite, and of length 1 where they should be; see `first_bad_vector`."""
    for part in blocks(len(vectors), max(block // vectors.shape[1], 1)):
        bad = first_bad_vector(vectors[part], normalized=normalized)
        if bad is not None:
            row, problem = bad
            raise BundleCorruptError(f"the vector in row {part.start + row} {problem}", file=file)


def first_bad_vector(vectors: NDArray[np.float32], *, normalized: bool) -> tuple[int, str] | None:
    """The first row that is no vector of its space, with what is wrong with it; None: all are.

    Args:
        vectors: [rows, dim].
        normalized: whether the space's vectors have length 1.
    """
    row = kernel.first_bad_vector(np.ascontiguousarray(vectors), LENGTH_TOLERANCE if normalized else np.inf)
    if row < 0:
        return None
    if not np.isfinite(vectors[row]).all():
        return row, "is not finite"
    length = np.linalg.norm(vectors[row].astype(np.float64))
    return row, f"has length {length:.6g}, but the space is declared normalised (length 1)"
