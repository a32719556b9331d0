"""User snapshots: users' columns and history, read from tables and written as an artifact of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters.errors import ExportError, TableError
from recserve.exporters.spec import HistorySpec, SnapshotSpec
from recserve.exporters.strings import (
    StringParts,
    check_ids,
    hash_strings,
    make_string_table,
    shown_rows,
    write_string_table,
)
from recserve.exporters.tables import Table, TableColumn, encode, read_table
from recserve.exporters.writer import BundleWriter
from recserve.kernels.features import MISSING_TIME, ColumnSpec, ColumnValues, FeatureSchema
from recserve.server.bundle import layout
from recserve.server.bundle.snapshot import HistoryArrays, open_snapshot

ScalarT = TypeVar("ScalarT", bound=np.generic)


@dataclass(frozen=True, slots=True, eq=False)
class UserTable:
    """Users as they are stored, before they are.

    Attributes:
        ids: in row order.
        columns: the schema's user columns, one row per user.
        history: cut by user.
    """

    ids: StringParts
    columns: ColumnValues
    history: HistoryArrays


def read_users(spec: SnapshotSpec, schema: FeatureSchema, vocabularies: Mapping[str, Sequence[str]]) -> UserTable:
    """Read and encode users and their history; what is trained on them and what is exported thus have the same codes.

    Args:
        spec: where the tables are.
        schema: the feature definitions.
        vocabularies: the bundle's, by name.

    Raises:
        ExportError: a table does not hold what the specification and the feature definitions say.
    """
    texts = [spec.id_column, *(column.name for column in schema.user if column.type == "category")]
    lists = [column.name for column in schema.user if column.type == "categories"]
    table = read_table(spec.users, "users", text=texts, lists=lists)
    ids = table.column(spec.id_column)
    strings = ids.strings()
    return UserTable(
        ids=make_string_table(strings, ids.what),
        columns=_read_columns(table, schema, vocabularies),
        history=_read_history(spec.history, strings, schema) if spec.history else _no_history(len(table)),
    )


def check_snapshot_spec(spec: SnapshotSpec) -> None:
    """Refuse what can be wrong with a snapshot's specification by itself, before anything is read.

    Raises:
        ExportError: it has no version.
    """
    if not spec.version:
        raise ExportError("the snapshot needs a version")


def export_snapshot(
    spec: SnapshotSpec, schema: FeatureSchema, vocabularies: Mapping[str, Sequence[str]], out: Path
) -> Path:
    """Write a user snapshot.

    Args:
        spec: where the tables are.
        schema: the feature definitions of the bundles that it is for.
        vocabularies: those bundles', by name.
        out: the snapshot's directory, which must not exist.

    Returns:
        The snapshot's directory.

    Raises:
        ExportError: `out` exists, or a table does not hold what the specification and the feature definitions say.
    """
    check_snapshot_spec(spec)
    with BundleWriter(out) as writer:
        users = read_users(spec, schema, vocabularies)
        write_string_table(writer, layout.USER_IDS, users.ids)
        for file, values in _arrays(users).items():
            writer.array(file, values)
        manifest = manifest_pb2.SnapshotManifest(
            version=spec.version,
            user_hash=schema.user_hash({name: list(values) for name, values in vocabularies.items()}),
            users=len(users.ids),
            history_entries=len(users.history.keys),
            event_types=schema.event_types,
        )
        return writer.commit(manifest, check=lambda path: open_snapshot(path, verify=False))


def _arrays(users: UserTable) -> dict[str, NDArray[np.generic]]:
    columns, history = users.columns, users.history
    return {
        layout.USER_NUMBERS: columns.numbers,
        layout.USER_CODES: columns.codes,
        layout.USER_TIMES: columns.times,
        layout.USER_LIST_OFFSETS: columns.list_offsets,
        layout.USER_LIST_CODES: columns.list_codes,
        layout.HISTORY_OFFSETS: history.offsets,
        layout.HISTORY_KEYS: history.keys,
        layout.HISTORY_EVENTS: history.events,
        layout.HISTORY_COUNTS: history.counts,
        layout.HISTORY_LAST: history.last_us,
    }


def _read_columns(table: Table, schema: FeatureSchema, vocabularies: Mapping[str, Sequence[str]]) -> ColumnValues:
    where = schema.user_layout
    for column in schema.user:
        if column.vocabulary and column.vocabulary not in vocabularies:
            raise ExportError(f"user column {column.name!r} needs the vocabulary {column.vocabulary!r}: give it")

    def codes(column: ColumnSpec) -> NDArray[np.int32]:
        return table.column(column.name).codes(vocabularies[column.vocabulary])

    lists = [table.column(column.name).list_codes(vocabularies[column.vocabulary]) for column in where.lists]
    list_codes, list_offsets = _interleave(lists)
    return ColumnValues(
        numbers=_stack([table.column(column.name).numbers() for column in where.numbers], len(table), np.float64),
        codes=_stack([codes(column) for column in where.codes], len(table), np.int32),
        times=_stack([table.column(column.name).times() for column in where.times], len(table), np.int64),
        list_codes=list_codes,
        list_offsets=list_offsets,
    )


def _stack(columns: Sequence[NDArray[ScalarT]], rows: int, dtype: type[ScalarT]) -> NDArray[ScalarT]:
    return np.ascontiguousarray(np.stack(columns, axis=1)) if columns else np.empty((rows, 0), dtype)


def _interleave(
    lists: Sequence[tuple[NDArray[np.int32], NDArray[np.int64]]],
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """From one pair of codes and offsets per column to one pair, user by user and by column within one."""
    if not lists:
        return np.empty(0, np.int32), np.zeros(1, np.int64)
    lengths = np.stack([np.diff(offsets) for _, offsets in lists], axis=1)
    merged = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths.ravel())])
    codes = np.empty(merged[-1], np.int32)
    for index, (values, offsets) in enumerate(lists):
        starts = merged[index : -1 : len(lists)]
        within = np.arange(len(values)) - np.repeat(offsets[:-1], lengths[:, index])
        codes[np.repeat(starts, lengths[:, index]) + within] = values
    return codes, merged


def _no_history(users: int) -> HistoryArrays:
    return HistoryArrays(
        np.zeros(users + 1, np.int64),
        np.empty(0, np.uint64),
        np.empty(0, np.int32),
        np.empty(0, np.float64),
        np.empty(0, np.int64),
    )


def _read_history(spec: HistorySpec, user_ids: pa.Array, schema: FeatureSchema) -> HistoryArrays:
    texts = (spec.user_column, spec.item_column, spec.event_column)
    table = read_table(spec.table, "history", text=texts)
    users = _user_rows(table.column(spec.user_column), user_ids)
    keys = _item_keys(table.column(spec.item_column))
    events = _event_codes(table.column(spec.event_column), schema.event_types)
    counts = table.column(spec.count_column).numbers()
    last_us = table.column(spec.time_column).times()
    table.column(spec.count_column).refuse(~(counts >= 1), "missing or below 1")
    table.column(spec.time_column).refuse(last_us == MISSING_TIME, "missing")
    _refuse_repeated(users, keys, events, table)
    order = np.lexsort((events, keys, -last_us, users))
    offsets = np.zeros(len(user_ids) + 1, np.int64)
    np.cumsum(np.bincount(users, minlength=len(user_ids)), out=offsets[1:])
    return HistoryArrays(offsets, keys[order], events[order], counts[order], last_us[order])


def _user_rows(column: TableColumn, user_ids: pa.Array) -> NDArray[np.int64]:
    """Rows of the users table; a history of nobody is an error in one of the two tables."""
    rows = pc.index_in(column.strings(), value_set=user_ids)
    column.refuse(np.asarray(rows.is_null()), "users that the users table does not have")
    return np.array(rows.to_numpy(), np.int64)


def _item_keys(column: TableColumn) -> NDArray[np.uint64]:
    """Keys of the items. Catalogues change, so an item need not be in any of them."""
    encoded = column.strings().dictionary_encode()
    column.refuse(np.asarray(encoded.is_null()), "null")
    keys = hash_strings(*check_ids(encoded.dictionary, column.what))
    positions: NDArray[np.int64] = encoded.indices.to_numpy()
    return keys[positions]


def _event_codes(column: TableColumn, event_types: Sequence[str]) -> NDArray[np.int32]:
    strings = column.strings()
    column.refuse(np.asarray(strings.is_null()), "null")
    return encode(strings, event_types, f"{column.what} (event types of the feature definitions)")


def _refuse_repeated(
    users: NDArray[np.int64], keys: NDArray[np.uint64], events: NDArray[np.int32], table: Table
) -> None:
    order = np.lexsort((events, keys, users))
    again = np.ones(max(len(order) - 1, 0), np.bool_)
    for values in (users, keys, events):
        again &= values[order][1:] == values[order][:-1]
    if again.any():
        rows = np.sort(order[1:][again])
        raise TableError(
            f"{table.name}: {len(rows)} rows repeat the user, item and event type of another, {shown_rows(rows)}: "
            "add up their counts and keep the last time"
        )
