"""The item table of a bundle: read, checked, encoded, written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters.errors import ExportError
from recserve.exporters.spec import CatalogueSpec, ColumnKind, ItemColumn
from recserve.exporters.strings import make_string_table, write_string_table
from recserve.exporters.tables import Table, TableColumn, read_table
from recserve.exporters.writer import BundleWriter
from recserve.kernels.features import FeatureSchema, FeatureSchemaError
from recserve.server.bundle import layout
from recserve.server.bundle.columns import as_stored
from recserve.server.bundle.consistency import FEATURE_TYPES, ROLE_TYPES

COLUMN_TYPES: Final[dict[ColumnKind, manifest_pb2.ColumnType.ValueType]] = {
    "number": manifest_pb2.NUMBER,
    "integer": manifest_pb2.INTEGER,
    "category": manifest_pb2.CATEGORY,
    "categories": manifest_pb2.CATEGORIES,
    "time": manifest_pb2.TIME,
    "flag": manifest_pb2.FLAG,
    "string": manifest_pb2.STRING,
}

Vocabularies = dict[str, tuple[str, ...]]
"""Category values by vocabulary, in the order of their codes."""

ScalarT = TypeVar("ScalarT", bound=np.generic)

Parts = dict[str, NDArray[np.generic]]
"""A column's arrays by part, as `layout.COLUMN_PARTS` lists them."""


@dataclass(frozen=True, slots=True, eq=False)
class ItemTable:
    """Items as they are stored, before they are.

    Attributes:
        ids: an Arrow string array, in row order; checked when a string table is made of it.
        ids_name: what messages call them.
        columns: the arrays of each column, by name.
        vocabularies: of item, user and context columns.
        features: float32 [items, item feature columns]; see `ItemArrays`.
        times: int64 [items, item time columns]; see `ItemArrays`.
        popular_rows: int64 [items], by popularity descending, ties and missing ones by row ascending.
    """

    ids: pa.Array
    ids_name: str
    columns: Mapping[str, Parts]
    vocabularies: Vocabularies
    features: NDArray[np.float32]
    times: NDArray[np.int64]
    popular_rows: NDArray[np.int64]


def read_items(spec: CatalogueSpec, schema: FeatureSchema, scores: Sequence[str] = ()) -> ItemTable:
    """Read and encode the item table; what is trained on it and what is exported thus have the same codes.

    Args:
        spec: where the table is, and what its columns are.
        schema: the feature definitions.
        scores: further number columns that are scores of a candidate source, as popularity is.

    Raises:
        ExportError: the specification contradicts itself or the feature definitions, or the table does not hold what it
            says.
    """
    _check_spec(spec, schema)
    texts = [spec.id_column, *(column.name for column in spec.columns if column.kind in ("category", "string"))]
    lists = [column.name for column in spec.columns if column.kind == "categories"]
    table = read_table(spec.items, "items", text=texts, lists=lists)
    vocabularies = _vocabularies(table, spec, schema)
    columns = {column.name: _encode(table.column(column.name), column, vocabularies) for column in spec.columns}
    for name in (spec.roles.popularity, *scores):
        _as_feature(columns[name][""], table.column(name))  # refuses what a score, which is float32, cannot hold
    ids = table.column(spec.id_column)
    return ItemTable(
        ids=ids.strings(),
        ids_name=ids.what,
        columns=columns,
        vocabularies=vocabularies,
        features=_matrix(
            [_as_feature(columns[name][""], table.column(name)) for name in schema.item_feature_columns],
            len(table),
            np.float32,
        ),
        times=_matrix([columns[name][""] for name in schema.item_time_columns], len(table), np.int64),
        popular_rows=_by_popularity(columns[spec.roles.popularity][""]),
    )


def write_catalogue(
    writer: BundleWriter, spec: CatalogueSpec, schema: FeatureSchema, items: ItemTable
) -> manifest_pb2.Catalogue:
    """Write everything under items/ and vocab/.

    Args:
        writer: of the bundle.
        spec: what the columns are.
        schema: the feature definitions.
        items: from `read_items` with the same `spec` and `schema`.

    Returns:
        The manifest's entry.

    Raises:
        ExportError: ids are null, empty, longer than 256 bytes, not UTF-8, repeated, or collide.
    """
    write_string_table(writer, layout.ITEM_IDS, make_string_table(items.ids, items.ids_name))
    for name, parts in items.columns.items():
        for part, values in parts.items():
            writer.array(layout.column_file(name, part), values)
    writer.array(layout.ITEM_FEATURES, items.features)
    writer.array(layout.ITEM_TIMES, items.times)
    writer.array(layout.ITEM_POPULAR, items.popular_rows)
    for name, listed in items.vocabularies.items():
        writer.json(layout.vocabulary_file(name), list(listed))
    return _manifest_entry(spec, schema, len(items.ids))


def _manifest_entry(spec: CatalogueSpec, schema: FeatureSchema, items: int) -> manifest_pb2.Catalogue:
    entry = manifest_pb2.Catalogue(
        items=items, feature_columns=schema.item_feature_columns, time_columns=schema.item_time_columns
    )
    for column in spec.columns:
        entry.columns.add(name=column.name, type=COLUMN_TYPES[column.kind], vocabulary=_vocabulary_of(column))
    for part in ROLE_TYPES:
        setattr(entry.roles, part, getattr(spec.roles, part))
    return entry


def _check_spec(spec: CatalogueSpec, schema: FeatureSchema) -> None:
    """Tell every contradiction at once."""
    problems = [*_column_problems(spec.columns), *_role_problems(spec), *_schema_problems(spec.columns, schema)]
    if problems:
        raise ExportError("\n  ".join(["the catalogue cannot be exported:", *problems]))


def _column_problems(columns: Sequence[ItemColumn]) -> Iterable[str]:
    names = [column.name for column in columns]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield f"column {name!r} is there {names.count(name)} times"
    for column in columns:
        for name in (column.name, _vocabulary_of(column) or column.name):
            if not layout.is_name(name):
                yield f"{name!r} cannot be part of a file name: expected {layout.NAME_RULE}"
        if column.kind not in COLUMN_TYPES:
            yield f"column {column.name!r} has the unknown kind {column.kind!r}: expected {', '.join(COLUMN_TYPES)}"


def _role_problems(spec: CatalogueSpec) -> Iterable[str]:
    types = {column.name: COLUMN_TYPES.get(column.kind) for column in spec.columns}
    for part, expected in ROLE_TYPES.items():
        name = getattr(spec.roles, part)
        if name and name not in types:
            yield f"role {part} names the column {name!r}, which is not among the columns: {', '.join(types)}"
        elif name and types[name] != expected:
            yield f"role {part} needs a column of kind {_kind_of(expected)}, and {name!r} is another kind"
    if not spec.roles.popularity:
        yield "role popularity is not filled: name a number column by which items can be ordered for unknown users"


def _schema_problems(columns: Sequence[ItemColumn], schema: FeatureSchema) -> Iterable[str]:
    stored = {column.name: column for column in columns}
    for wanted in schema.item:
        column = stored.get(wanted.name)
        if column is None:
            yield f"the feature definitions need an item column {wanted.name!r}: add it to the catalogue's columns"
        elif COLUMN_TYPES.get(column.kind) not in FEATURE_TYPES[wanted.type]:
            yield f"the feature definitions need {wanted.name!r} as a {wanted.type}, and its kind is {column.kind}"
        elif _vocabulary_of(column) != wanted.vocabulary:
            yield (
                f"the feature definitions give {wanted.name!r} the vocabulary {wanted.vocabulary!r}, "
                f"and the catalogue {_vocabulary_of(column)!r}"
            )


def _kind_of(column_type: int) -> str:
    return next(kind for kind, stored in COLUMN_TYPES.items() if stored == column_type)


def _vocabulary_of(column: ItemColumn) -> str:
    return (column.vocabulary or column.name) if column.kind in ("category", "categories") else ""


def _vocabularies(table: Table, spec: CatalogueSpec, schema: FeatureSchema) -> Vocabularies:
    """Those that are given, and for the others the items' distinct values, sorted by code point."""
    columns: dict[str, list[ItemColumn]] = {}
    for column in spec.columns:
        if _vocabulary_of(column):
            columns.setdefault(_vocabulary_of(column), []).append(column)
    found = {name: tuple(values) for name, values in spec.vocabularies.items()}
    for name, sharing in columns.items():
        if name not in found:
            found[name] = _distinct(table, sharing)
    _check_vocabularies(found, schema)
    return found


def _distinct(table: Table, columns: Iterable[ItemColumn]) -> tuple[str, ...]:
    values: set[str] = set()
    for column in columns:
        data = table.column(column.name)
        strings = data.lists()[0] if column.kind == "categories" else data.strings()
        values.update(pc.unique(strings.drop_null()).to_pylist())
    return tuple(sorted(values))


def _check_vocabularies(vocabularies: Vocabularies, schema: FeatureSchema) -> None:
    missing = [name for name in schema.vocabularies if name not in vocabularies]
    problems = [f"vocabulary {name!r} is used by user or context columns alone: give its values" for name in missing]
    for name, values in vocabularies.items():
        if not layout.is_name(name):
            problems.append(f"vocabulary {name!r} cannot be part of a file name: expected {layout.NAME_RULE}")
        if len(set(values)) != len(values):
            twice = sorted(value for value, times in Counter(values).items() if times > 1)
            problems.append(f"vocabulary {name!r} holds a value twice: {', '.join(map(repr, twice))}")
    if problems:
        raise ExportError("\n  ".join(["the vocabularies cannot be exported:", *problems]))
    try:
        schema.check_cardinalities({name: len(values) for name, values in vocabularies.items()})
    except FeatureSchemaError as error:
        raise ExportError(str(error)) from error


def _encode(data: TableColumn, column: ItemColumn, vocabularies: Vocabularies) -> Parts:
    match column.kind:
        case "categories":
            codes, offsets = data.list_codes(vocabularies[_vocabulary_of(column)])
            return {"offsets": offsets, "codes": codes}
        case "string":
            utf8, offsets = data.utf8()
            return {"offsets": offsets, "utf8": utf8}
        case "category":
            return {"": data.codes(vocabularies[_vocabulary_of(column)])}
    scalars: Mapping[str, Callable[[], NDArray[Any]]] = {
        "number": data.numbers,
        "integer": data.integers,
        "time": data.times,
        "flag": data.flags,
    }
    return {"": scalars[column.kind]()}


def _as_feature(values: NDArray[np.generic], column: TableColumn) -> NDArray[np.float32]:
    """See `as_stored`; refuses numbers that would become infinite."""
    stored = as_stored(values, np.dtype(np.float32))
    column.refuse(np.isinf(stored), "beyond float32, the type of features and scores: scale them")
    return stored


def _matrix(columns: Sequence[NDArray[np.generic]], rows: int, dtype: type[ScalarT]) -> NDArray[ScalarT]:
    """Columns side by side, row-major: a candidate is one or two cache lines."""
    matrix = np.empty((rows, len(columns)), dtype)
    for index, column in enumerate(columns):
        matrix[:, index] = column
    return matrix


def _by_popularity(popularity: NDArray[np.generic]) -> NDArray[np.int64]:
    """Descending, ties by row; NumPy sorts NaN last."""
    return np.argsort(-popularity.astype(np.float64), kind="stable").astype(np.int64)
