"""What the retail example does with files that are not quite what it expects: right results, or errors that help."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from examples.online_retail.clean import clean
from recserve.exporters.errors import QualityError, TableError

MORNING = datetime.datetime(2010, 12, 1, 8, 26)
# invoice, stock code, description, quantity, minutes after the morning, price, customer
LINES = [
    ("536365", "85123A", "WHITE HANGING HEART", 6, 0, 2.55, 17850),
    ("536366", " 85123a", "WHITE HANGING HEART ", 2, 5, 2.55, 13047),  # the same item, typed otherwise
    ("536367", "22752", None, 1, 9, 7.65, 13047),
    ("536365", "85123A", "WHITE HANGING HEART", 6, 0, 2.55, 17850),  # a duplicate
    ("C536379", "22752", "NESTING BOXES", -1, 20, 7.65, 13047),  # a cancellation
    ("536370", "POST", "POSTAGE", 3, 30, 18.00, 12583),  # no goods
    ("536371", "22752", "NESTING BOXES", 1, 40, 7.65, None),  # a guest
    ("536372", "22752", "NESTING BOXES", 1, 50, 0.0, 12583),  # a gift
]


def transactions(lines: list[tuple[object, ...]] = LINES) -> pa.Table:
    invoice, code, description, quantity, minutes, price, customer = zip(*lines, strict=True)
    times = [MORNING + datetime.timedelta(minutes=each) for each in minutes]
    return pa.table(
        {
            "invoice": invoice,
            "stock_code": code,
            "description": description,
            "quantity": pa.array(quantity, pa.int32()),
            "invoice_date": pa.array(times, pa.timestamp("s")),
            "unit_price": pa.array(price, pa.float64()),
            "customer_id": pa.array(customer, pa.int32()),
            "country": ["United Kingdom"] * len(invoice),
        }
    )


GOOD = transactions(LINES[:3])
Write = Callable[[pa.Table], Path]


@pytest.fixture(params=[".parquet", ".csv"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Write:
    def to_file(table: pa.Table) -> Path:
        path = tmp_path / f"transactions{request.param}"
        (pa.parquet.write_table if request.param == ".parquet" else pa.csv.write_csv)(table, path)
        return path

    return to_file


def test_purchases_are_what_is_left(write: Write) -> None:
    with pytest.raises(QualityError, match=r"37\.5%.*3 of 8 rows.*'cancellation'.*'no goods'.*'duplicate'"):
        clean(write(transactions()))
    events, report = clean(write(GOOD))
    assert report.rate == 1.0
    assert [events.items[item] for item in events.item] == ["85123A", "85123A", "22752"]
    assert [events.users[user] for user in events.user] == ["17850", "13047", "13047"]
    assert events.description.tolist() == [0, 0, -1]
    assert events.price.tolist() == [2.55, 2.55, 7.65]


def test_the_order_of_columns_and_columns_too_many_change_nothing(write: Write) -> None:
    expected, _ = clean(GOOD)
    columns = list(reversed(GOOD.column_names))
    for table in (GOOD.select(columns), GOOD.select(columns).append_column("store", pa.array([1, 2, 3]))):
        found, _ = clean(write(table))
        for name in ("user", "item", "invoice", "country", "time_us", "quantity", "price", "description"):
            assert getattr(found, name).tolist() == getattr(expected, name).tolist()
        assert (found.users, found.items, found.descriptions) == (expected.users, expected.items, expected.descriptions)


def test_rows_come_in_the_order_of_time() -> None:
    expected, _ = clean(GOOD)
    found, _ = clean(GOOD.take([2, 0, 1]))
    assert found.time_us.tolist() == expected.time_us.tolist()
    assert found.item.tolist() == expected.item.tolist()


@pytest.mark.parametrize("missing", GOOD.column_names)
def test_a_missing_column(write: Write, missing: str) -> None:
    with pytest.raises(TableError, match=f"transactions.*there is no column '{missing}'; the columns are"):
        clean(write(GOOD.drop_columns([missing])))


@pytest.mark.parametrize(("column", "kind"), [("quantity", "integers"), ("unit_price", "numbers")])
def test_strings_where_numbers_belong(write: Write, column: str, kind: str) -> None:
    words = GOOD.set_column(GOOD.column_names.index(column), column, pa.array(["6", "two", "1"]))
    with pytest.raises(TableError, match=f"column '{column}': expected {kind}, found string; 1 are no.*'two' in row 1"):
        clean(write(words))


def test_an_empty_file(write: Write, tmp_path: Path) -> None:
    with pytest.raises(TableError, match="the table is empty: expected at least one row"):
        clean(write(GOOD.slice(0, 0)))
    nothing = tmp_path / "nothing.parquet"
    nothing.touch()
    with pytest.raises(TableError, match="cannot be read"):
        clean(nothing)
    with pytest.raises(TableError, match="no such file"):
        clean(tmp_path / "none.parquet")


def test_one_user(write: Write) -> None:
    events, report = clean(write(GOOD.slice(1)))
    assert (report.kept, events.users) == (2, ("13047",))
    assert events.user.tolist() == [0, 0]
