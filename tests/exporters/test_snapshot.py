from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recserve.exporters.errors import ExportError, TableError
from recserve.exporters.snapshot import export_snapshot
from recserve.exporters.spec import SnapshotSpec
from recserve.kernels.features import FeatureSchema
from recserve.server.bundle.snapshot import open_snapshot
from recserve.server.bundle.strings import key_of

Make = Callable[..., Path]


def changed(table: pa.Table, row: int, **values: Any) -> pa.Table:
    rows = table.to_pylist()
    rows[row].update(values)
    return pa.Table.from_pylist(rows, table.schema)


def test_history_needs_users_events_items_counts_and_times(
    tiny_snapshot: Make, tiny_history: pa.Table, tmp_path: Path
) -> None:
    for values, message in (
        ({"user_id": "nobody"}, "column 'user_id': 1 values are users that the users table does not have, row 5"),
        ({"user_id": None}, "column 'user_id': 1 values are users"),
        ({"event_type": "like"}, "1 values are not in the vocabulary: 'like'"),
        ({"event_type": None}, "column 'event_type': 1 values are null"),
        ({"item_id": None}, "column 'item_id': 1 values are null, row 5"),
        ({"item_id": ""}, "column 'item_id': 1 are empty"),
        ({"item_id": "x" * 257}, "column 'item_id': 1 are longer than 256 bytes"),
        ({"count": 0}, "column 'count': 1 values are missing or below 1, row 5"),
        ({"count": None}, "column 'count': 1 values are missing or below 1"),
        ({"last_time": None}, "column 'last_time': 1 values are missing, row 5"),
    ):
        with pytest.raises(TableError, match=message):
            tiny_snapshot(history=changed(tiny_history, 5, **values))
    assert not list(tmp_path.iterdir())


def test_a_history_entry_that_is_there_twice(tiny_snapshot: Make, tiny_history: pa.Table) -> None:
    twice = pa.concat_tables([tiny_history, tiny_history.slice(3, 2)])
    with pytest.raises(TableError, match=rf"2 rows repeat.*rows {len(tiny_history)}, {len(tiny_history) + 1}"):
        tiny_snapshot(history=twice)


def test_history_of_one_moment_goes_by_key_then_event(tiny_snapshot: Make, tiny_history: pa.Table) -> None:
    """One order for equal times, whatever the order of the table."""
    items = [f"item-{row:03d}" for row in range(30)]
    moment = tiny_history.column("last_time")[0].as_py()
    rows = [("user-00", item, event, 1, moment) for event in ("purchase", "view") for item in items]
    history = pa.Table.from_arrays(list(map(pa.array, zip(*rows, strict=True))), tiny_history.column_names)
    user = open_snapshot(tiny_snapshot(history=history)).state(0)
    found = list(zip(user.keys.tolist(), user.events.tolist(), strict=True))
    assert found == sorted((key_of(item), event) for item in items for event in (0, 2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"user_id": "user-00"}, "there again: 'user-00' in row 0 and 'user-00' in row 5"),
        ({"user_id": None}, "1 are null, row 5"),
        ({"gender": "q"}, "column 'gender': 1 values are not in the vocabulary: 'q'"),
        ({"top_categories": ["cars"]}, "column 'top_categories': 1 values are not in the vocabulary"),
        ({"age": float("inf")}, "column 'age': 1 values are infinite"),
    ],
)
def test_users_that_cannot_be_stored(
    tiny_snapshot: Make, tiny_users: pa.Table, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(TableError, match=message):
        tiny_snapshot(users=changed(tiny_users, 5, **values), history=None)


def test_a_user_column_that_the_table_lacks(tiny_snapshot: Make, tiny_users: pa.Table) -> None:
    with pytest.raises(TableError, match="there is no column 'gender'"):
        tiny_snapshot(users=tiny_users.drop_columns(["gender"]))


def test_lists_of_several_columns_are_stored_user_by_user(tmp_path: Path) -> None:
    schema = FeatureSchema.from_json(
        '{"schema_version": 1, "user": [{"name": "a", "type": "categories", "vocabulary": "v"},'
        ' {"name": "n", "type": "number"}, {"name": "b", "type": "categories", "vocabulary": "v"}]}'
    )
    lists = pa.list_(pa.string())
    users = pa.table(
        {
            "user_id": ["u", "v", "w"],
            "n": [1.0, 2.0, 3.0],
            "a": pa.array([["x", "y"], [], None], lists),
            "b": pa.array([["z"], ["y", "x"], ["x"]], lists),
        }
    )
    export_snapshot(SnapshotSpec(version="1", users=users), schema, {"v": ["x", "y", "z"]}, tmp_path / "s")
    snapshot = open_snapshot(tmp_path / "s")
    found = [
        [part.tolist() for part in np.split(columns.list_codes, columns.list_offsets[1:-1])]
        for columns in (snapshot.state(row).columns for row in range(3))
    ]
    assert found == [[[0, 1], [2]], [[], [1, 0]], [[], [0]]]
    assert snapshot.state(0).keys.size == 0


def test_users_without_columns(tmp_path: Path) -> None:
    schema = FeatureSchema.from_json('{"schema_version": 1}')
    export_snapshot(SnapshotSpec(version="1", users=pa.table({"user_id": ["u"]})), schema, {}, tmp_path / "s")
    columns = open_snapshot(tmp_path / "s").state(0).columns
    assert columns.numbers.shape == (1, 0)
    assert columns.list_offsets.tolist() == [0]


def test_a_vocabulary_or_version_that_is_not_given(tmp_path: Path) -> None:
    schema = FeatureSchema.from_json('{"schema_version": 1, "user": [{"name": "a", "type": "category"}]}')
    users = pa.table({"user_id": ["u"], "a": ["x"]})
    with pytest.raises(ExportError, match="needs the vocabulary 'a'"):
        export_snapshot(SnapshotSpec(version="1", users=users), schema, {}, tmp_path / "s")
    with pytest.raises(ExportError, match="version"):
        export_snapshot(SnapshotSpec(version="", users=users), schema, {"a": ["x"]}, tmp_path / "s")
    assert not list(tmp_path.iterdir())
