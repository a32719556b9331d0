"""The candidate sources of a bundle beside its spaces: tables are read, lists computed and written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters.catalogue import ItemTable
from recserve.exporters.errors import ExportError, TableError
from recserve.exporters.evaluation.times import shown_time
from recserve.exporters.item_lists import Lists, bought_together, popular_by, trending, trending_by
from recserve.exporters.report import Tell
from recserve.exporters.spec import BundleSpec, EventsSpec, PopularBySpec, SourcesSpec, TogetherSpec
from recserve.exporters.strings import distinct_keys
from recserve.exporters.tables import Table, TableColumn, read_table
from recserve.exporters.writer import BundleWriter
from recserve.kernels.features import MISSING_TIME, ColumnSpec, FeatureSchema
from recserve.server.bundle import layout

MAX_LISTS: Final = 1 << 24
"""Of one source: each takes memory while it is made, and a place in the bundle, whether it holds an item or not."""


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """Events of known items.

    Attributes:
        rows: int64 [n], the item of each.
        times_us: int64 [n].
        codes: int32 [n] by column that popular lists need, -1 where missing or of an unknown user.
    """

    rows: NDArray[np.int64]
    times_us: NDArray[np.int64]
    codes: Mapping[str, NDArray[np.int32]]


def write_sources(
    writer: BundleWriter, spec: BundleSpec, items: ItemTable, tell: Tell = lambda *_: None
) -> manifest_pb2.CandidateSources:
    """Compute and write the lists of a bundle's candidate sources.

    Args:
        writer: of the bundle.
        spec: of the bundle; its contradictions have been refused.
        items: of the bundle.
        tell: is told what was left out of the tables.

    Returns:
        The manifest's entry.

    Raises:
        ExportError: a table does not hold what the specification says, none of its items is in the catalogue, or its
            events know the evaluation's test.
    """
    sources = spec.sources
    comparable = [space.name for space in spec.spaces if space.normalized]
    entry = manifest_pb2.CandidateSources(
        similar_space=sources.similar_space or next(iter(comparable), ""),
        similar_items=sources.similar_items,
        new_days=sources.new_days,
    )
    for described, lists in _all_lists(spec, items, tell):
        for part in layout.LISTS_PARTS:
            writer.array(layout.lists_file(described.name, part), getattr(lists, part))
        described.lists, described.entries = len(lists.offsets) - 1, len(lists.rows)
        entry.lists.append(described)
    return entry


def score_columns(sources: SourcesSpec) -> list[str]:
    """Number columns of the catalogue that are scores of a candidate source."""
    return [sources.trending.column] if sources.trending and sources.trending.column else []


def category_columns(schema: FeatureSchema) -> dict[str, ColumnSpec]:
    """User and context columns by which lists can be kept; of a name that both have, the context's counts."""
    return {column.name: column for column in (*schema.user_layout.codes, *schema.context_layout.codes)}


def _all_lists(spec: BundleSpec, items: ItemTable, tell: Tell) -> Iterator[tuple[manifest_pb2.ItemLists, Lists]]:
    """Each source's entry, without its sizes, and its lists."""
    sources, schema = spec.sources, spec.features
    if sources.together is not None:
        baskets, rows = _read_baskets(sources.together, items, tell)
        lists = bought_together(baskets, rows, len(items.ids), sources.together)
        yield manifest_pb2.ItemLists(name=layout.TOGETHER, kind=manifest_pb2.TOGETHER), lists
    events = _read_events(sources.events, spec, items, tell) if sources.events else None
    if sources.trending is not None:
        lists = _trending(sources, events, items)
        yield manifest_pb2.ItemLists(name=layout.TRENDING, kind=manifest_pb2.TRENDING), lists
    for each in sources.popular_by:
        found = _required(events)
        sizes = _list_sizes(each, schema, items)
        codes = [found.codes[name] for name in each.columns]
        described = manifest_pb2.ItemLists(name=each.name, kind=manifest_pb2.POPULAR_BY, columns=each.columns)
        yield described, popular_by(found.rows, found.times_us, codes, sizes, len(items.ids), each)


def _list_sizes(spec: PopularBySpec, schema: FeatureSchema, items: ItemTable) -> list[int]:
    """How many values each column has."""
    sizes = [len(items.vocabularies[category_columns(schema)[name].vocabulary]) for name in spec.columns]
    if math.prod(sizes) > MAX_LISTS:
        counted = " x ".join(f"{size:,} of {name}" for name, size in zip(spec.columns, sizes, strict=True))
        raise ExportError(
            f"sources: popular_by {spec.name!r}: its columns have {math.prod(sizes):,} combinations ({counted}), "
            f"each with a list of its own, and there may be at most {MAX_LISTS:,}: use fewer columns, or fewer values"
        )
    return sizes


def _trending(sources: SourcesSpec, events: Events | None, items: ItemTable) -> Lists:
    if sources.trending is None:
        raise ValueError("no trending items are wanted")
    if not sources.trending.column:
        found = _required(events)
        return trending(found.rows, found.times_us, len(items.ids), sources.trending)
    return trending_by(items.columns[sources.trending.column][""].astype(np.float64), sources.trending)


def _required(events: Events | None) -> Events:
    if events is None:
        raise ExportError("sources: trending and popular lists are made from events, and there are none")
    return events


def _read_baskets(spec: TogetherSpec, items: ItemTable, tell: Tell) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The basket, as a number, and the item of each line whose item is known."""
    table = read_table(spec.table, "baskets", text=(spec.basket_column, spec.item_column))
    rows = _item_rows(table.column(spec.item_column), items)
    column = table.column(spec.basket_column)
    encoded = column.strings().dictionary_encode()
    column.refuse(np.asarray(encoded.is_null()), "null")
    baskets = np.array(encoded.indices.to_numpy(), np.int64)
    known = rows >= 0
    tell("baskets", "the catalogue's items", _left_out(known, "lines"))
    return baskets[known], rows[known]


def _read_events(spec: EventsSpec, bundle: BundleSpec, items: ItemTable, tell: Tell) -> Events:
    names = list(dict.fromkeys(name for each in bundle.sources.popular_by for name in each.columns))
    table = read_table(spec.table, "events", text=(spec.item_column, spec.user_column, *names))
    rows = _item_rows(table.column(spec.item_column), items)
    known = rows >= 0
    times = table.column(spec.time_column)
    times_us = times.times()
    times.refuse(times_us == MISSING_TIME, "missing")
    if bundle.evaluation is not None:
        _check_times(times, times_us, bundle.evaluation.time_us)
    users = _Users(spec, table, names)
    columns = category_columns(bundle.features)
    codes = {name: users.codes(name, items.vocabularies[columns[name].vocabulary])[known] for name in names}
    tell("events", "the catalogue's items", _left_out(known, "events"))
    if users.rows is not None:
        strangers = int((users.rows[known] < 0).sum())
        found = f"{strangers:,} of {known.sum():,} events are of unknown users"
        tell("users of the events", "the events", found)
    return Events(rows[known], times_us[known], codes)


def _check_times(column: TableColumn, times_us: NDArray[np.int64], cutoff_us: int) -> None:
    """Lists of what sells in the test window would be recommended to the users who are tested on it: a leak."""
    late = int((times_us >= cutoff_us).sum())
    if late:
        raise TableError(
            f"{column.what}: {late:,} of {times_us.size:,} events do not lie before the evaluation's cut-off "
            f"{shown_time(cutoff_us)}, the last at {shown_time(int(times_us.max()))}: trending and popular lists that "
            "know the test are no test; leave these events out, or move the cut-off to where they end"
        )


def _left_out(known: NDArray[np.bool_], what: str) -> str:
    return f"{(~known).sum():,} of {known.size:,} {what} left out"


class _Users:
    """Values by event: of the events themselves, or of their users.

    Attributes:
        rows: int64 [events], rows of the users table, -1 where it lacks the user; None: no column is joined.
    """

    def __init__(self, spec: EventsSpec, events: Table, names: Sequence[str]) -> None:
        self._spec = spec
        self._events = events
        joined = [name for name in names if name not in events.data.column_names]
        if joined and spec.users is None:
            raise TableError(f"{events.name}: there is no column {joined[0]!r}: add it, or name the users' table")
        self._users: Table | None = None
        self.rows: NDArray[np.int64] | None = None
        if joined and spec.users is not None:
            self._users = read_table(spec.users, "users", text=(spec.users_id_column, *joined))
            column = self._users.column(spec.users_id_column)
            ids = column.strings()
            distinct_keys(ids, column.what)  # of a user who is there twice, only one row would count
            found = pc.index_in(events.column(spec.user_column).strings(), value_set=ids)
            self.rows = np.array(found.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)

    def codes(self, name: str, values: Sequence[str]) -> NDArray[np.int32]:
        """int32 [events]; -1 where the value is missing or the user unknown."""
        if name in self._events.data.column_names:
            return self._events.column(name).codes(values)
        if self._users is None or self.rows is None:
            raise TableError(f"{self._events.name}: there is no column {name!r}")
        of_users = self._users.column(name).codes(values)
        return np.where(self.rows >= 0, of_users[self.rows], np.int32(-1)).astype(np.int32)


def _item_rows(column: TableColumn, items: ItemTable) -> NDArray[np.int64]:
    """Rows of the items, -1 where the catalogue lacks them: catalogues change."""
    found = pc.index_in(column.strings(), value_set=items.ids)
    rows = np.array(found.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
    if not (rows >= 0).any():
        raise TableError(f"{column.what}: none of the items is in the catalogue")
    return rows
