"""What must hold within mapped arrays. Each check streams over its array in blocks, so the temporaries stay small."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recserve.server.bundle.errors import BundleCorruptError

_BLOCK: Final = 1 << 20
_CONTINUATION: Final = 0b1000_0000  # UTF-8 bytes 0b10xx_xxxx continue a character


def blocks(length: int, size: int = _BLOCK) -> Iterator[slice]:
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


def check_monotone(offsets: NDArray[np.int64], file: str) -> None:
    """Offsets never decrease."""
    for block in blocks(len(offsets) - 1):
        steps = np.diff(offsets[block.start : block.stop + 1])
        if (steps < 0).any():
            at = block.start + int((steps < 0).argmax())
            raise BundleCorruptError(
                f"offsets decrease after entry {at}",
                file=file,
                expected=f"at least {offsets[at]}",
                found=int(offsets[at + 1]),
            )


def check_between(values: NDArray[np.integer], low: int, high: int, file: str) -> None:
    """Every value lies in [low, high)."""
    for block in blocks(len(values)):
        part = values[block]
        bad = (part < low) | (part >= high)
        if bad.any():
            at = block.start + int(bad.argmax())
            raise BundleCorruptError(
                f"entry {at} is out of range", file=file, expected=f"{low} to {high - 1}", found=int(values[at])
            )


def check_ascending(keys: NDArray[np.uint64], file: str) -> None:
    """Keys ascend strictly, so none occurs twice and binary search works."""
    for block in blocks(max(len(keys) - 1, 0)):
        part = keys[block.start : block.stop + 1]
        bad = part[1:] <= part[:-1]
        if bad.any():
            at = block.start + int(bad.argmax())
            raise BundleCorruptError(
                f"keys do not ascend after entry {at}",
                file=file,
                expected=f"more than {keys[at]}",
                found=int(keys[at + 1]),
            )


def check_permutation(rows: NDArray[np.int64], file: str) -> None:
    """Each of the rows 0 to n - 1 occurs once."""
    check_between(rows, 0, len(rows), file)
    seen = np.zeros(len(rows), np.bool_)
    for block in blocks(len(rows)):
        seen[rows[block]] = True
    if not seen.all():
        raise BundleCorruptError(
            "a row occurs twice and another is missing", file=file, expected=int(seen.argmin()), found="absent"
        )


def check_utf8(utf8: NDArray[np.uint8], offsets: NDArray[np.int64], file: str) -> None:
    """The bytes are UTF-8, and no string starts or ends within a character."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for block in blocks(len(utf8)):
            decoder.decode(utf8[block].data)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise BundleCorruptError(f"strings are not UTF-8: {error.reason}", file=file) from error
    for block in blocks(len(offsets)):
        starts = offsets[block]
        first = utf8[starts[starts < len(utf8)]]
        if ((first & 0b1100_0000) == _CONTINUATION).any():
            raise BundleCorruptError("a string starts within a UTF-8 character", file=file)
