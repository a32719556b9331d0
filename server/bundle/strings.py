"""Ids, and their way to rows: a mapped table of strings with a hash index over their keys.

A table of 10 million ids is four mapped arrays and no Python object per id:

    utf8     uint8 [bytes]    the strings, one after another
    offsets  int64 [n + 1]    string i is utf8[offsets[i]:offsets[i + 1]]
    keys     uint64 [n]       key_of each string; no two are equal
    slots    uint32 [m]       open addressing over the keys (recserve.kernels.ids)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

import numpy as np
import xxhash
from numpy.typing import NDArray

from recserve.kernels.ids import lookup
from recserve.server.bundle import checks
from recserve.server.bundle.errors import BundleCorruptError
from recserve.server.bundle.files import ANY, ArtifactFiles
from recserve.server.bundle.layout import string_table_file

_SAMPLE: Final = 4096


def key_of(identifier: str) -> int:
    """The stable 64-bit key of an item or user id: XXH3 of its UTF-8 bytes."""
    return xxhash.xxh3_64_intdigest(identifier.encode())


def keys_of(identifiers: Sequence[str]) -> NDArray[np.uint64]:
    """`key_of` each id."""
    return np.fromiter(map(key_of, identifiers), np.uint64, len(identifiers))


class StringTable:
    """Distinct strings by row, with lookup by string and by key.

    Args:
        utf8: uint8 [bytes].
        offsets: int64 [n + 1], from 0 to len(utf8), never decreasing.
        keys: uint64 [n], distinct.
        slots: uint32 [m], from `recserve.kernels.ids.build_slots(keys)`.
    """

    def __init__(
        self,
        utf8: NDArray[np.uint8],
        offsets: NDArray[np.int64],
        keys: NDArray[np.uint64],
        slots: NDArray[np.uint32],
    ) -> None:
        self._bytes = utf8.data
        self._utf8 = utf8
        self._offsets = offsets
        self._keys = keys
        self._slots = slots

    @classmethod
    def open(cls, files: ArtifactFiles, stem: str, rows: int) -> StringTable:
        """Map the table `stem` of `rows` strings.

        Raises:
            BundleError: a part is malformed or has another size.
        """
        offsets = files.array(string_table_file(stem, "offsets"), np.dtype("<i8"), (rows + 1,))
        utf8 = files.array(string_table_file(stem, "utf8"), np.dtype("<u1"), (ANY,))
        keys = files.array(string_table_file(stem, "keys"), np.dtype("<u8"), (rows,))
        slots = files.array(string_table_file(stem, "slots"), np.dtype("<u4"), (ANY,))
        checks.check_ends(cast("NDArray[np.int64]", offsets), len(utf8), string_table_file(stem, "offsets"))
        _check_slot_count(len(slots), rows, string_table_file(stem, "slots"))
        return cls(
            cast("NDArray[np.uint8]", utf8),
            cast("NDArray[np.int64]", offsets),
            cast("NDArray[np.uint64]", keys),
            cast("NDArray[np.uint32]", slots),
        )

    def __len__(self) -> int:
        return len(self._keys)

    def rows_of(self, identifiers: Sequence[str]) -> NDArray[np.int64]:
        """The row of each id, -1 where the table does not hold it.

        A key alone is not believed: the string found is compared, so an unknown id never takes a known one's row.
        """
        rows = self.rows_of_keys(keys_of(identifiers))
        for i, row in enumerate(rows.tolist()):
            if row >= 0 and self._string(row) != identifiers[i]:
                rows[i] = -1
        return rows

    def rows_of_keys(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The row of each key, -1 where unknown."""
        return lookup(self._keys, self._slots, keys)

    def strings(self, rows: NDArray[np.int64]) -> list[str]:
        """The string of each row.

        Raises:
            IndexError: a row is negative or beyond the table.
        """
        self._check_rows(rows)
        starts, stops = self._offsets[rows].tolist(), self._offsets[rows + 1].tolist()
        return [str(self._bytes[start:stop], "utf-8") for start, stop in zip(starts, stops, strict=True)]

    def keys(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The key of each row.

        Raises:
            IndexError: a row is negative or beyond the table.
        """
        self._check_rows(rows)
        return self._keys[rows]

    def _string(self, row: int) -> str:
        start, stop = self._offsets[row : row + 2].tolist()
        return str(self._bytes[start:stop], "utf-8")

    def _check_rows(self, rows: NDArray[np.int64]) -> None:
        unsigned = rows.view(np.uint64)  # a negative row is then beyond every table
        if len(rows) and unsigned[unsigned.argmax()] >= len(self):
            raise IndexError(f"rows must be 0 to {len(self) - 1}, found {rows.min()} to {rows.max()}")

    def check(self, stem: str, *, block: int = checks.BLOCK) -> None:
        """Check the whole table, in a stream: offsets, UTF-8, the index, and that no two keys are equal.

        Args:
            stem: of the table's files.
            block: see `checks`.

        Raises:
            BundleCorruptError: naming the file of `stem` that is wrong.
        """
        checks.check_monotone(self._offsets, string_table_file(stem, "offsets"), block=block)
        checks.check_utf8(self._utf8, self._offsets, string_table_file(stem, "utf8"), block=block)
        checks.check_between(self._slots, 0, len(self) + 1, string_table_file(stem, "slots"), block=block)
        self._check_index(stem, block)
        self._check_hash(stem)

    def _check_index(self, stem: str, block: int) -> None:
        """Each key leads to its own row: false for the second of two equal keys, and for a key without a slot."""
        for part in checks.blocks(len(self), block):
            found = self.rows_of_keys(self._keys[part])
            wrong = found != np.arange(part.start, part.stop)
            if wrong.any():
                row = part.start + int(wrong.argmax())
                raise BundleCorruptError(
                    f"the key {self._keys[row]} of row {row} does not lead to it: keys collide, or the index is broken",
                    file=string_table_file(stem, "keys"),
                    expected=row,
                    found=int(found[row - part.start]),
                )

    def _check_hash(self, stem: str) -> None:
        """Keys come from `key_of`. A sample tells: another hash function agrees on none of them."""
        rows = np.linspace(0, len(self) - 1, min(len(self), _SAMPLE)).astype(np.int64)
        wrong = keys_of(self.strings(rows)) != self._keys[rows]
        if wrong.any():
            row = int(rows[wrong.argmax()])
            raise BundleCorruptError(
                f"the key of row {row} is not the XXH3 of its id",
                file=string_table_file(stem, "keys"),
                expected=key_of(self._string(row)),
                found=int(self._keys[row]),
            )


def _check_slot_count(slots: int, rows: int, file: str) -> None:
    """Lookup masks with slots - 1 and stops at an empty slot: it needs a power of two, and room."""
    if slots < 2 * rows or slots & (slots - 1) or not slots:
        raise BundleCorruptError(
            "the index has a size that lookup cannot use",
            file=file,
            expected=f"a power of two, at least {2 * rows}",
            found=slots,
        )
