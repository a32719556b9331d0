"""Making and writing string tables: ids with their keys and the index over them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from recserve.exporters.errors import TableError
from recserve.exporters.writer import BundleWriter
from recserve.kernels.ids import DuplicateKeyError, build_slots
from recserve.server.bundle.layout import MAX_ID_BYTES, string_table_file

_BLOCK: Final = 1 << 18
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, eq=False)
class StringParts:
    """A string table as it is stored; see `recserve.server.bundle.strings`."""

    utf8: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    keys: NDArray[np.uint64]
    slots: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.keys)


def make_string_table(ids: pa.Array | Sequence[str], what: str) -> StringParts:
    """Check, hash and index ids.

    Args:
        ids: an Arrow string array, or strings; row i gets ids[i].
        what: names the ids in messages, such as "items, column 'item_id'".

    Raises:
        TableError: an id is null, empty, longer than 256 bytes, not UTF-8, or there twice; or two ids have one key.
    """
    utf8, offsets = check_ids(ids, what)
    keys = hash_strings(utf8, offsets)
    try:
        return StringParts(utf8, offsets, keys, build_slots(keys))
    except DuplicateKeyError:
        raise TableError(_describe_duplicates(utf8, offsets, keys, what)) from None


def distinct_keys(ids: pa.Array | Sequence[str], what: str) -> NDArray[np.uint64]:
    """The keys of ids that are fit to be stored and distinct, for those who need no table of them.

    Raises:
        TableError: see `make_string_table`.
    """
    utf8, offsets = check_ids(ids, what)
    keys = hash_strings(utf8, offsets)
    ordered = np.sort(keys)
    if (ordered[1:] == ordered[:-1]).any():
        raise TableError(_describe_duplicates(utf8, offsets, keys, what))
    return keys


def write_string_table(writer: BundleWriter, stem: str, table: StringParts) -> None:
    """Write a table's files.

    Args:
        writer: of the artifact.
        stem: such as "items/ids".
        table: from `make_string_table`.
    """
    writer.array(string_table_file(stem, "utf8"), table.utf8)
    writer.array(string_table_file(stem, "offsets"), table.offsets)
    writer.array(string_table_file(stem, "keys"), table.keys)
    writer.array(string_table_file(stem, "slots"), table.slots)


def check_ids(ids: pa.Array | Sequence[str], what: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Ids as UTF-8 bytes and offsets.

    Raises:
        TableError: an id is no string, null, empty, longer than 256 bytes or not UTF-8.
    """
    array = ids if isinstance(ids, (pa.Array, pa.ChunkedArray)) else _from_strings(ids, what)
    if not is_text(array.type):
        raise TableError(f"{what}: expected strings, found {array.type}")
    if array.null_count:
        rows = np.flatnonzero(np.asarray(array.is_null()))
        raise TableError(f"{what}: {len(rows)} are null, {shown_rows(rows)}: every row needs an id")
    utf8, offsets = utf8_parts(array, what)
    lengths = np.diff(offsets)
    for bad, problem in ((lengths == 0, "empty"), (lengths > MAX_ID_BYTES, f"longer than {MAX_ID_BYTES} bytes")):
        if bad.any():
            rows = np.flatnonzero(bad)
            raise TableError(f"{what}: {len(rows)} are {problem}, {shown_rows(rows)}")
    return utf8, offsets


def utf8_parts(array: pa.Array, what: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes and offsets (starting at 0) of an Arrow string array without nulls.

    Raises:
        TableError: the bytes are not UTF-8.
    """
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        raise TableError(f"{what}: {error}") from error
    whole = array.cast(pa.large_string())
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.combine_chunks()
    if not len(whole):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, offset_buffer, data = whole.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[whole.offset : whole.offset + len(whole) + 1]
    utf8 = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return utf8[offsets[0] : offsets[-1]], offsets - offsets[0]


def hash_strings(utf8: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """`recserve.server.bundle.strings.key_of` each string, without making any: uint64 [n]."""
    digest, data = xxhash.xxh3_64_intdigest, utf8.data
    keys = np.empty(len(offsets) - 1, np.uint64)
    for start in range(0, len(keys), _BLOCK):  # a list of all offsets would be an object per string
        cuts = offsets[start : start + _BLOCK + 1].tolist()
        hashes = (digest(data[a:b]) for a, b in itertools.pairwise(cuts))
        keys[start : start + _BLOCK] = np.fromiter(hashes, np.uint64, len(cuts) - 1)
    return keys


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings, or nothing at all."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def shown_rows(rows: NDArray[np.int64]) -> str:
    """The first few of some rows, for a message."""
    listed = ", ".join(map(str, rows[:_SHOWN].tolist()))
    return f"row{'s' if len(rows) > 1 else ''} {listed}{', …' if len(rows) > _SHOWN else ''} (counted from 0)"


def _from_strings(ids: Sequence[str], what: str) -> pa.Array:
    try:
        return pa.array(ids, pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, UnicodeEncodeError) as error:
        raise TableError(f"{what}: expected strings of valid Unicode: {error}") from error


def _describe_duplicates(
    utf8: NDArray[np.uint8], offsets: NDArray[np.int64], keys: NDArray[np.uint64], what: str
) -> str:
    """Which ids are there twice; or, about once in 400,000 catalogues of 10 million, which two have one key."""
    order = np.argsort(keys, kind="stable")
    again = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    pairs = [(int(order[at]), int(order[at + 1])) for at in again[:_SHOWN]]

    def text(row: int) -> str:
        return utf8[offsets[row] : offsets[row + 1]].tobytes().decode()

    listed = "; ".join(f"{text(a)!r} in row {a} and {text(b)!r} in row {b}" for a, b in pairs)
    if all(text(a) == text(b) for a, b in pairs):
        return f"{what}: {len(again)} are there again: {listed} (rows counted from 0): ids must be distinct"
    return f"{what}: different ids have the same 64-bit key: {listed} (rows counted from 0): rename one of them"
