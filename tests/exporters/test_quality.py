"""The quality gate over small tables in which it is plain which rule drops which row."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from recserve.exporters.errors import ExportError, QualityError, TableError
from recserve.exporters.quality import (
    Checked,
    Duplicate,
    EventKind,
    Gate,
    ImplausibleVolume,
    InFuture,
    Matching,
    MissingKey,
    NotMatching,
    OutOfRange,
    Rule,
    TooOld,
    Where,
)
from recserve.exporters.tables import Table

NOON = datetime.datetime(2025, 6, 1, 12, tzinfo=datetime.UTC)
COLUMNS: dict[str, EventKind] = {
    "user": "string",
    "item": "string",
    "time": "time",
    "quantity": "integer",
    "price": "number",
}
GATE = Gate(columns=COLUMNS, least_quality=0.01)
EVENTS = pa.table(
    {
        "user": ["a", "a", "b"],
        "item": ["001", "002", "001"],
        "time": pa.array([NOON] * 3, pa.timestamp("s", tz="UTC")),
        "quantity": pa.array([1, 2, 3], pa.int16()),
        "price": pa.array([1.5, 2.5, None], pa.float32()),
    }
)


def events(**columns: Any) -> Table:
    return Table("events", pa.table(columns))


def found(rule: Rule, **columns: Any) -> list[int]:
    """Rows that a rule finds."""
    mask = np.asarray(rule.finds(events(**columns)).fill_null(fill_value=False))
    return np.flatnonzero(mask).tolist()


def text(values: list[str | None]) -> pa.Array:
    return pa.array(values, pa.large_string())


def times(*days: int | None) -> pa.Array:
    """Noon, some days later."""
    naive = NOON.replace(tzinfo=None)
    shifted = [None if day is None else naive + datetime.timedelta(days=day) for day in days]
    return pa.array(shifted, pa.timestamp("us"))


# -------------------------------------------------------------------------------------------------------------- schema


def test_columns_come_out_in_one_type_per_kind() -> None:
    cleaned = GATE.check(EVENTS).events
    assert cleaned.column_names == list(COLUMNS)
    assert [str(kind) for kind in cleaned.schema.types] == [
        "large_string", "large_string", "timestamp[us]", "int64", "double",
    ]  # fmt: skip
    assert cleaned.column("time").to_pylist() == [NOON.replace(tzinfo=None)] * 3
    assert cleaned.column("price").to_pylist() == [1.5, 2.5, None]


def test_the_order_of_columns_and_columns_too_many_change_nothing() -> None:
    shuffled = EVENTS.select(["price", "time", "user", "quantity", "item"])
    wider = shuffled.append_column("comment", pa.array(["x", None, "y"])).append_column("user2", pa.array([1, 2, 3]))
    expected = GATE.check(EVENTS).events
    assert GATE.check(shuffled).events == expected
    assert GATE.check(wider).events == expected


def test_zones_are_read_as_the_same_moments() -> None:
    berlin = EVENTS.set_column(2, "time", EVENTS.column("time").cast(pa.timestamp("ms", tz="Europe/Berlin")))
    assert GATE.check(berlin).events == GATE.check(EVENTS).events


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_files_give_what_tables_give(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"events{suffix}"
    (pa.parquet.write_table if suffix == ".parquet" else pa.csv.write_csv)(EVENTS, path)
    assert GATE.check(path).events == GATE.check(EVENTS).events


def test_a_missing_column_is_named_with_those_that_are_there() -> None:
    with pytest.raises(TableError, match=r"^events: there is no column 'item'; the columns are user, time, quantity"):
        GATE.check(EVENTS.drop_columns(["item"]))


def test_all_that_is_wrong_with_the_columns_is_told_at_once() -> None:
    broken = EVENTS.drop_columns(["item"]).set_column(1, "time", pa.array([1, 2, 3]))
    with pytest.raises(TableError) as caught:
        GATE.check(broken)
    assert "no column 'item'" in str(caught.value)
    assert "column 'time': expected timestamps or dates, found int64" in str(caught.value)


def test_strings_where_numbers_belong_are_named_with_their_rows() -> None:
    words = EVENTS.set_column(3, "quantity", pa.array(["1", "two", None]))
    with pytest.raises(
        TableError, match=r"column 'quantity': expected integers, found string; 1 are no integers: 'two' in row 1"
    ):
        GATE.check(words)
    spelt = EVENTS.set_column(4, "price", pa.array(["1.5", " 2e3", "-.5"]))
    with pytest.raises(TableError, match="column 'price': expected numbers, found string; they spell numbers: cast"):
        GATE.check(spelt)


def test_strings_in_a_csv_file_where_numbers_belong(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("user,item,time,quantity,price\na,1,2025-06-01T12:00:00,one,1.0\nb,1,2025-06-01T12:00:00,2,1.0\n")
    with pytest.raises(TableError, match=r"events.csv\), column 'quantity': expected integers, found string; 1 are no"):
        GATE.check(path)


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        ("user", pa.array([1, 2, 3]), "expected strings, found int64"),
        ("quantity", pa.array([1.0, 2.0, 3.0]), "expected integers, found double"),
        ("quantity", pa.array([1, 2, 2**63], pa.uint64()), "not in range"),
        ("price", pa.array([True, False, True]), "expected numbers, found bool"),
        ("time", pa.array(["2025-06-01"] * 3), "expected timestamps or dates, found string"),
        ("time", pa.array([2**62] * 3, pa.timestamp("s")), "overflow|out of bounds"),
    ],
)
def test_what_a_kind_cannot_hold_is_refused(name: str, values: pa.Array, problem: str) -> None:
    broken = EVENTS.set_column(EVENTS.column_names.index(name), name, values)
    with pytest.raises(TableError, match=f"column '{name}'.*({problem})"):
        GATE.check(broken)


def test_a_column_of_nulls_has_its_kind_all_the_same() -> None:
    checked = GATE.check(EVENTS.set_column(4, "price", pa.nulls(3)))
    assert checked.events.column("price").to_pylist() == [None] * 3
    assert checked.events.schema.field("price").type == pa.float64()


def test_tables_without_rows(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"^events: the table is empty: expected at least one row"):
        GATE.check(EVENTS.slice(0, 0))
    header = tmp_path / "header.csv"
    header.write_text("user,item,time,quantity,price\n")
    with pytest.raises(TableError, match="the table is empty"):
        GATE.check(header)
    for name in ("nothing.csv", "nothing.parquet"):
        nothing = tmp_path / name
        nothing.touch()
        with pytest.raises(TableError, match=f"{name} cannot be read"):
            GATE.check(nothing)


def test_one_user_with_one_row() -> None:
    gate = Gate(
        columns=COLUMNS,
        rules=[MissingKey(("user",)), Duplicate(("user", "item")), ImplausibleVolume("user", "time", most=1)],
    )
    checked = gate.check(EVENTS.slice(2))
    assert (checked.events.num_rows, checked.report.rate) == (1, 1.0)


# --------------------------------------------------------------------------------------------------------------- rules


def test_missing_keys_are_nulls_and_empty_strings() -> None:
    rule = MissingKey(("user", "count"))
    assert found(rule, user=text(["a", None, "", " ", "b"]), count=pa.array([1, 2, 3, None, 0])) == [1, 2, 3]
    assert rule.description == "null or empty in user or count"


def test_of_duplicates_the_first_stays() -> None:
    rule = Duplicate(("user", "item"))
    assert found(rule, user=text(["a", "a", "a", "b", "a"]), item=text(["x", "y", "x", "x", "x"])) == [2, 4]
    assert found(rule, user=text([None, "a", None, None]), item=text(["x", None, "x", None])) == [2]


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from([1, 2, None])), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_duplicates_are_pythons(rows: list[tuple[str | None, int | None]]) -> None:
    again = [row for row, value in enumerate(rows) if value in rows[:row]]
    users, numbers = zip(*rows, strict=True)
    assert found(Duplicate(("user", "n")), user=text(list(users)), n=pa.array(numbers, pa.int64())) == again


def test_times_on_the_bounds_are_inside() -> None:
    moments = times(-1, 0, 1, None)
    assert found(TooOld("time", NOON), time=moments) == [0]
    assert found(InFuture("time", NOON), time=moments) == [2]
    assert TooOld("time", NOON).description == "time before 2025-06-01 12:00 UTC"


def test_bounds_have_zones() -> None:
    berlin = datetime.timezone(datetime.timedelta(hours=2))
    later = NOON.replace(hour=13, tzinfo=berlin)  # 11:00 UTC
    assert found(InFuture("time", later), time=times(0)) == [0]
    assert InFuture("time", later).description == "time after 2025-06-01 11:00 UTC"
    with pytest.raises(ExportError, match="has no zone"):
        TooOld("time", NOON.replace(tzinfo=None))


def test_ranges_hold_their_bounds_and_no_nan() -> None:
    rule = OutOfRange("n", least=1, most=3)
    assert found(rule, n=pa.array([0.99, 1, 3, 3.01, float("nan"), None])) == [0, 3, 4]
    assert found(OutOfRange("n", least=1), n=pa.array([0.0, float("inf")])) == [0, 1]
    assert rule.description == "n not in [1, 3]"


def test_codes_by_what_they_look_like() -> None:
    codes = text(["12345", "POST", "12345A", None, "C12345"])
    goods = NotMatching(column="code", pattern=r"^\d{5}", name="no goods", description="postage and the like")
    cancelled = Matching(column="code", pattern="^C", name="cancelled", description="cancellations")
    assert found(goods, code=codes) == [1, 4]
    assert found(cancelled, code=codes) == [4]


def test_volume_is_counted_by_day_and_takes_the_whole_user() -> None:
    rule = ImplausibleVolume("user", "time", most=2)
    users = text(["bot", "bot", "bot", "busy", "busy", "busy", "bot", None, None, None])
    days = times(0, 0, 0, 0, 0, 1, 5, 0, 0, 0)
    assert found(rule, user=users, time=days) == [0, 1, 2, 6]


def test_any_other_condition() -> None:
    rule = Where(name="free", description="gifts", test=lambda table: pc.equal(table.column("price"), 0))
    assert found(rule, price=pa.array([0.0, 1.0, None])) == [0]


# ---------------------------------------------------------------------------------------------------------------- gate

ROWS = pa.table(
    {
        "user": ["a", "a", None, "b", "", "b", "c"],
        "item": ["x", "x", "POST", "x", "x", "POST", "y"],
    }
)
POSTAGE = Matching(column="item", pattern="^POST$", name="no goods", description="postage")


def gate(*rules: Rule, least_quality: float = 0.1) -> Gate:
    return Gate(columns={"user": "string", "item": "string"}, rules=rules, least_quality=least_quality)


def dropped(checked: Checked) -> dict[str, tuple[int, tuple[int, ...]]]:
    return {each.rule: (each.rows, each.examples) for each in checked.report.dropped}


def test_a_row_belongs_to_the_first_rule_that_finds_it() -> None:
    checked = gate(MissingKey(("user",)), POSTAGE, Duplicate(("user", "item"))).check(ROWS)
    # Row 2 lacks its user and is postage; examples are rows of the table as it came.
    assert dropped(checked) == {"missing key": (2, (2, 4)), "no goods": (1, (5,)), "duplicate": (1, (1,))}
    assert checked.events.to_pylist() == [
        {"user": "a", "item": "x"}, {"user": "b", "item": "x"}, {"user": "c", "item": "y"},
    ]  # fmt: skip
    other = gate(POSTAGE, MissingKey(("user",))).check(ROWS)
    assert dropped(other) == {"no goods": (2, (2, 5)), "missing key": (1, (4,))}


def test_the_report_counts_everything() -> None:
    report = gate(MissingKey(("user",)), POSTAGE).check(ROWS, "sales").report
    assert (report.rows, report.kept, report.rate) == (7, 4, 4 / 7)
    assert json.loads(json.dumps(report.as_dict())) == {
        "table": "sales",
        "rows": 7,
        "kept": 4,
        "rate": 4 / 7,
        "dropped": [
            {"rule": "missing key", "description": "null or empty in user", "rows": 2, "examples": [2, 4]},
            {"rule": "no goods", "description": "postage", "rows": 1, "examples": [5]},
        ],
    }
    output = io.StringIO()
    Console(width=120, file=output).print(report.table())
    shown = output.getvalue()
    assert "sales: 4 of 7 rows kept, quality 57.1%" in shown
    assert [line.split("│")[3:5] for line in shown.splitlines() if "postage" in line] == [["    1 ", " 14.29% "]]


def test_below_the_threshold_the_table_is_refused() -> None:
    assert gate(POSTAGE, least_quality=5 / 7).check(ROWS).report.kept == 5
    with pytest.raises(QualityError) as caught:
        gate(POSTAGE, Duplicate(("item",)), least_quality=0.72).check(ROWS, "sales")
    assert str(caught.value).startswith(
        "sales: the quality rate is 28.6%, expected at least 72.0%: 2 of 7 rows are left; dropped were 2 by 'no goods' "
        "(postage), 3 by 'duplicate' (equal to an earlier row in item)"
    )
    assert caught.value.report.kept == 2


def test_nothing_left_is_refused_whatever_the_threshold() -> None:
    everything = Where(name="all", description="all rows", test=lambda table: pa.array([True] * table.num_rows))
    rules = (everything, Duplicate(("user",)), ImplausibleVolume("user", "time", 1))
    with pytest.raises(QualityError, match="0 of 3 rows are left"):
        Gate(columns=COLUMNS, rules=rules, least_quality=1e-9).check(EVENTS)


def test_gates_that_make_no_sense() -> None:
    for least in (0.0, 1.1, float("nan")):
        with pytest.raises(ExportError, match="least_quality"):
            gate(least_quality=least)
    with pytest.raises(ExportError, match="missing key, missing key: each needs a name of its own"):
        gate(MissingKey(("user",)), MissingKey(("item",)))
    with pytest.raises(TableError, match="no column 'price'"):
        gate(OutOfRange("price")).check(ROWS)
    with pytest.raises(ExportError, match="the rule 'out of range' cannot be applied"):
        gate(OutOfRange("item", least=1)).check(ROWS)


def test_many_rows() -> None:
    rng = np.random.default_rng(0)
    n = 200_000
    names = np.array([f"user-{row}" for row in range(5_000)])
    big = pa.table(
        {
            "user": names[rng.integers(0, 5_000, n)],
            "item": names[rng.integers(0, 5_000, n)],
            "time": pa.array(rng.integers(0, 10**9, n), pa.timestamp("s")),
        }
    )
    rules = [MissingKey(("user",)), Duplicate(("user", "item")), ImplausibleVolume("user", "time", most=5_000)]
    checked = Gate(columns={"user": "string", "item": "string", "time": "time"}, rules=rules).check(big)
    pairs = len(set(zip(*(checked.events.column(name).to_pylist() for name in ("user", "item")), strict=True)))
    assert checked.events.num_rows == pairs
