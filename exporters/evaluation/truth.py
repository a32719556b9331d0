"""What users did in the test window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.errors import ExportError, TableError
from recserve.exporters.evaluation.metrics import Relevant
from recserve.exporters.evaluation.times import shown_time
from recserve.exporters.spec import EvaluationSpec
from recserve.exporters.tables import Table, TableColumn, read_table
from recserve.kernels.features import MISSING_TIME
from recserve.server.bundle.catalogue import Catalogue

TIME_COLUMN = "time"
"""Read where the table has it and no other column is named."""


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Users with what they took.

    Attributes:
        user_ids: users with at least one item of the catalogue, sorted.
        relevant: their items.
        events: rows of the table.
        unknown_events: rows whose item the catalogue does not have; nothing could have recommended it.
        unknown_items: how many such items there are.
        unknown_users: users that took no other items.
        dated: whether times were there, and thus checked against the cut-off.
    """

    user_ids: list[str]
    relevant: Relevant
    events: int
    unknown_events: int
    unknown_items: int
    unknown_users: int
    dated: bool

    def take(self, users: NDArray[np.int64]) -> tuple[list[str], Relevant]:
        """Some of the users with their items."""
        return [self.user_ids[user] for user in users], self.relevant.take(users)


def read_truth(spec: EvaluationSpec, catalogue: Catalogue) -> Truth:
    """Read the truth table.

    Raises:
        TableError: it cannot be read, is empty, lacks a column, or a value is missing.
        ExportError: an event lies before the cut-off, or the catalogue has none of the items.
    """
    table = read_table(spec.truth, "truth", text=(spec.user_column, spec.item_column))
    user_ids, users = _encoded(table.column(spec.user_column))
    item_ids, items = _encoded(table.column(spec.item_column))
    dated = _check_times(table, spec)
    rows_of_items = catalogue.rows_of_ids(item_ids)
    known = rows_of_items[items] >= 0
    if not known.any():
        raise ExportError(
            f"{table.name}: the bundle's catalogue has none of the {len(item_ids):,} items, such as {item_ids[0]!r}: "
            "the ids must be those of the item table"
        )
    pairs = np.unique(np.stack([users[known], rows_of_items[items[known]]], axis=1), axis=0)
    present, starts = np.unique(pairs[:, 0], return_index=True)
    return Truth(
        user_ids=[user_ids[user] for user in present],
        relevant=Relevant(np.append(starts, len(pairs)).astype(np.int64), np.ascontiguousarray(pairs[:, 1])),
        events=len(table),
        unknown_events=int((~known).sum()),
        unknown_items=int((rows_of_items < 0).sum()),
        unknown_users=len(user_ids) - present.size,
        dated=dated,
    )


def _encoded(column: TableColumn) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct values, sorted, and each row's position among them."""
    strings = column.strings()
    column.refuse(np.asarray(strings.is_null()), "null")
    encoded = strings.dictionary_encode()
    values = encoded.dictionary.to_pylist()
    order = sorted(range(len(values)), key=values.__getitem__)
    position = np.empty(len(values), np.int64)
    position[order] = np.arange(len(values))
    return [values[index] for index in order], position[encoded.indices.to_numpy()]


def _check_times(table: Table, spec: EvaluationSpec) -> bool:
    """Whether there are times. What happened before the cut-off is known to models and state: a leak."""
    name = spec.time_column or TIME_COLUMN
    if not spec.time_column and name not in table.data.column_names:
        return False
    times = table.column(name).times()
    table.column(name).refuse(times == MISSING_TIME, "missing")
    early = int((times < spec.time_us).sum())
    if early:
        raise TableError(
            f"{table.name}, column {name!r}: {early:,} of {len(times):,} events lie before the cut-off "
            f"{shown_time(spec.time_us)}, the first at {shown_time(int(times.min()))}: what models and snapshot may "
            "have seen is no test; leave these events out, or move the cut-off back and train up to it"
        )
    return True
