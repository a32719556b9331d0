"""Reading tables, and taking typed columns from them. What cannot be stored as asked is refused, never guessed.

| kind       | Arrow types                                | null                 |
|------------|--------------------------------------------|----------------------|
| number     | integers, floats, decimals                 | missing              |
| integer    | integers that fit in 64 bits               | refused              |
| category   | strings, dictionaries of strings           | missing              |
| categories | lists of strings, none empty               | an empty list        |
| time       | timestamps (without a zone: UTC), dates    | missing              |
| flag       | booleans, the integers 0 and 1             | refused              |
| string     | strings, dictionaries of strings           | missing, as is empty |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
from numpy.typing import NDArray

from recserve.exporters.errors import TableError
from recserve.exporters.spec import TableSource
from recserve.exporters.strings import is_text, shown_rows, utf8_parts
from recserve.kernels.features import MISSING_CODE, MISSING_TIME
from recserve.server.bundle.checks import END_OF_TIME, FIRST_TIME

LIST_SEPARATOR: Final = "|"
"""Between the values of a list in a CSV file, which has no lists."""

_PARQUET: Final = (".parquet", ".pq")
_ARROW: Final = (".arrow", ".feather", ".ipc", ".arrows")
_CSV: Final = (".csv",)


@dataclass(frozen=True, slots=True)
class Table:
    """A table with the name that messages call it by."""

    name: str
    data: pa.Table

    def __len__(self) -> int:
        return int(self.data.num_rows)

    def column(self, name: str) -> TableColumn:
        """A column.

        Raises:
            TableError: there is none of that name, or several.
        """
        found = self.data.schema.get_all_field_indices(name)
        if len(found) != 1:
            problem = f"there are {len(found)} columns" if found else "there is no column"
            raise TableError(f"{self.name}: {problem} {name!r}; the columns are {', '.join(self.data.column_names)}")
        return TableColumn(f"{self.name}, column {name!r}", self.data.column(found[0]))


def read_table(source: TableSource, name: str, *, text: Iterable[str] = (), lists: Iterable[str] = ()) -> Table:
    """Read a Parquet, CSV or Arrow file, by its suffix, or take a table in memory.

    A CSV file has no types, and "007" read as a number would be another id: columns that have to be text are named.

    Args:
        source: a file, or a table.
        name: what messages call it, such as "items".
        text: columns that hold strings.
        lists: columns that hold lists of strings; in a CSV file separated by "|".

    Raises:
        TableError: no such file, an unknown suffix, an unreadable file, or a table without rows.
    """
    if isinstance(source, pa.Table):
        table = Table(name, source)
    else:
        table = Table(f"{name} ({source})", _read_file(Path(source), name, set(text), set(lists)))
    if not len(table):
        raise TableError(f"{table.name}: the table is empty: expected at least one row")
    return table


def _read_file(path: Path, name: str, text: set[str], lists: set[str]) -> pa.Table:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise TableError(f"{name}: no such file: {path}")
    try:
        if suffix in _PARQUET:
            return pa.parquet.read_table(path, partitioning=None)
        if suffix in _ARROW:
            return _read_arrow(path)
        if suffix in _CSV:
            return _read_csv(path, text, lists)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise TableError(f"{name}: {path} cannot be read as {suffix}: {error}") from error
    known = ", ".join((*_PARQUET, *_ARROW, *_CSV))
    raise TableError(f"{name}: {path} has an unknown suffix {suffix!r}: expected one of {known}")


def _read_arrow(path: Path) -> pa.Table:
    """An IPC file starts with a magic number; what does not is a stream."""
    with pa.OSFile(str(path)) as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        with pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file) as reader:
            return reader.read_all()


def _read_csv(path: Path, text: set[str], lists: set[str]) -> pa.Table:
    """Only an empty field is null: "NA" is Namibia."""
    options = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(text | lists, pa.large_string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    table = pa.csv.read_csv(path, convert_options=options)
    for index, name in enumerate(table.column_names):
        if name in lists:
            # No value at all is an empty list, also where it is quoted.
            joined = pc.if_else(pc.equal(table.column(index), ""), None, table.column(index))
            table = table.set_column(index, name, pc.split_pattern(joined, LIST_SEPARATOR))
    return table


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column; `what` names it in messages. Its methods give NumPy arrays, or raise TableError."""

    what: str
    data: pa.ChunkedArray

    def numbers(self) -> NDArray[np.float64]:
        """float64; null: NaN. Refuses other types and infinite values."""
        kind = self.data.type
        numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        self._require(numeric or pa.types.is_null(kind), "numbers")
        values = np.array(self.data.cast(pa.float64(), safe=False).to_numpy(), np.float64)
        self.refuse(np.isinf(values), "infinite")
        return values

    def integers(self) -> NDArray[np.int64]:
        """int64. Refuses other types, nulls, and values beyond 64 bits with sign."""
        self._require(pa.types.is_integer(self.data.type), "integers")
        self._refuse_nulls("integers have no missing value: fill them in, or store the column as a number")
        try:
            return np.array(self.data.cast(pa.int64()).to_numpy(), np.int64)
        except pa.ArrowInvalid as error:
            raise TableError(f"{self.what}: {error}") from error

    def flags(self) -> NDArray[np.uint8]:
        """uint8, 0 or 1. Refuses other types, nulls and other integers."""
        kind = self.data.type
        self._require(pa.types.is_boolean(kind) or pa.types.is_integer(kind), "booleans, or integers 0 and 1")
        self._refuse_nulls("flags have no missing value: fill them in")
        values = self.data.to_numpy()
        self.refuse((values != 0) & (values != 1), "neither 0 nor 1")
        return np.array(values, np.uint8)

    def times(self) -> NDArray[np.int64]:
        """int64 microseconds since 1970 UTC; null: the smallest int64. Refuses other types and years but 1 to 9999."""
        kind = self.data.type
        dated = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
        self._require(dated or pa.types.is_null(kind), "timestamps or dates (cast numbers to a timestamp type first)")
        coarse = not (pa.types.is_timestamp(kind) and kind.unit == "ns")  # only from ns can digits be lost
        try:
            stamps = self.data.cast(pa.timestamp("us"), safe=coarse).cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise TableError(f"{self.what}: {error}") from error
        missing = np.asarray(self.data.is_null())
        values = np.array(stamps.fill_null(0).to_numpy(), np.int64)
        self.refuse((values < FIRST_TIME) | (values >= END_OF_TIME), "outside the years 1 to 9999")
        values[missing] = MISSING_TIME
        return values

    def strings(self) -> pa.Array:
        """An Arrow large_string array, nulls kept. Refuses other types and bytes that are not UTF-8."""
        self._require(is_text(self.data.type), "strings")
        try:
            self.data.validate(full=True)
        except pa.ArrowInvalid as error:
            raise TableError(f"{self.what}: {error}") from error
        return self.data.cast(pa.large_string()).combine_chunks()

    def lists(self) -> tuple[pa.Array, NDArray[np.int64]]:
        """An Arrow large_string array of all lists' values, and int64 offsets; null: an empty list.

        Refuses other types, and nulls and empty strings within lists.
        """
        kind = self.data.type
        listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        self._require((listed and is_text(kind.value_type)) or pa.types.is_null(kind), "lists of strings")
        whole = self.data.cast(pa.large_list(pa.large_string())).combine_chunks()
        lengths = np.array(pc.list_value_length(whole).fill_null(0).to_numpy(zero_copy_only=False), np.int64)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        values = TableColumn(f"{self.what}, values of lists", pa.chunked_array([whole.flatten()]))
        values._refuse_nulls("leave the value out of its list")
        strings = values.strings()
        values.refuse(np.asarray(pc.equal(strings, "")), "empty; leave them out of their lists")
        return strings, offsets

    def utf8(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """UTF-8 bytes and int64 offsets; null: empty."""
        return utf8_parts(self.strings().fill_null(""), self.what)

    def codes(self, values: Sequence[str]) -> NDArray[np.int32]:
        """int32 positions in `values`; null: -1. Refuses strings that `values` does not hold."""
        return encode(self.strings(), values, self.what)

    def list_codes(self, values: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """int32 positions in `values` of all lists' values, and int64 offsets."""
        strings, offsets = self.lists()
        return encode(strings, values, self.what), offsets

    def _require(self, fits: bool, expected: str) -> None:
        if not fits:
            raise TableError(f"{self.what}: expected {expected}, found {self.data.type}")

    def refuse(self, bad: NDArray[np.bool_], problem: str) -> None:
        """Refuse the rows where `bad` is true.

        Raises:
            TableError: names them.
        """
        if bad.any():
            rows = np.flatnonzero(bad)
            raise TableError(f"{self.what}: {len(rows)} values are {problem}, {shown_rows(rows)}")

    def _refuse_nulls(self, remedy: str) -> None:
        if self.data.null_count:
            rows = np.flatnonzero(np.asarray(self.data.is_null()))
            raise TableError(f"{self.what}: {len(rows)} values are null, {shown_rows(rows)}; {remedy}")


def encode(strings: pa.Array, values: Sequence[str], what: str) -> NDArray[np.int32]:
    """int32 position of each string in `values`; null: -1.

    Raises:
        TableError: a string is not among `values`.
    """
    codes = pc.index_in(strings, value_set=pa.array(values, pa.large_string()))
    unknown = pc.and_(codes.is_null(), strings.is_valid())
    if pc.any(unknown).as_py():
        found = pc.unique(strings.filter(unknown)).to_pylist()
        listed = ", ".join(map(repr, found[:5])) + (", …" if len(found) > 5 else "")
        raise TableError(f"{what}: {len(found)} values are not in the vocabulary: {listed}: add them to it")
    return np.array(codes.fill_null(MISSING_CODE).to_numpy(zero_copy_only=False), np.int32)
