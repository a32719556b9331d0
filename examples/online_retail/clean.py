"""From the shop's transactions as exported to purchases that can be learned from."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recserve.exporters.quality import (
    Duplicate,
    EventKind,
    Gate,
    ImplausibleVolume,
    InFuture,
    Matching,
    MissingKey,
    NotMatching,
    OutOfRange,
    QualityReport,
    TooOld,
)
from recserve.exporters.spec import TableSource

_GATE_COLUMNS: Final[dict[str, EventKind]] = {
    "invoice": "string",
    "stock_code": "string",
    "description": "string",
    "quantity": "integer",
    "invoice_date": "time",
    "unit_price": "number",
    "customer_id": "integer",
    "country": "string",
}
_EARLIEST: Final = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_MOST_LINES_A_DAY: Final = 1_000  # the largest day of a real customer has 596


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """Purchases in the order of time: an invoice's line each.

    Attributes:
        user, item, invoice, country: int64 [n], numbers into the names.
        time_us: int64 [n], ascending, microseconds since 1970 UTC.
        quantity: float64 [n], at least 1.
        price: float64 [n], of one piece, GBP.
        description: int64 [n], numbers into `descriptions`; -1 where there is none.
        users, items, countries, descriptions: names.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    invoice: NDArray[np.int64]
    country: NDArray[np.int64]
    time_us: NDArray[np.int64]
    quantity: NDArray[np.float64]
    price: NDArray[np.float64]
    description: NDArray[np.int64]
    users: tuple[str, ...]
    items: tuple[str, ...]
    countries: tuple[str, ...]
    descriptions: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many."""
        return int(self.time_us.size)

    def between(self, start_us: int, end_us: int) -> Events:
        """Those with start_us <= time < end_us; names keep their numbers."""
        part = slice(*np.searchsorted(self.time_us, [start_us, end_us]).tolist())
        columns = ("user", "item", "invoice", "country", "time_us", "quantity", "price", "description")
        return replace(self, **{name: getattr(self, name)[part] for name in columns})

    def before(self, time_us: int) -> Events:
        """Those of before a time."""
        return self.between(np.iinfo(np.int64).min, time_us)


def clean(source: TableSource, *, now: datetime.datetime | None = None) -> tuple[Events, QualityReport]:
    """Read and clean the transactions.

    Args:
        source: the table, see the README for its columns.
        now: later rows are in the future; None: the time of the call.

    Raises:
        TableError: a column is missing, or holds something else.
        QualityError: too few rows are left.
    """
    checked = _gate(now or datetime.datetime.now(datetime.UTC)).check(source, "transactions")
    return _events(checked.events), checked.report


def _gate(now: datetime.datetime) -> Gate:
    return Gate(
        columns=_GATE_COLUMNS,
        rules=[
            MissingKey(("invoice", "stock_code", "invoice_date", "customer_id")),
            TooOld("invoice_date", _EARLIEST),
            InFuture("invoice_date", now),
            Matching(
                column="invoice",
                pattern="^[A-Z]",
                name="cancellation",
                description="invoices that start with a letter",
            ),
            NotMatching(
                column="stock_code",
                pattern=r"^\s*\d{5}[A-Za-z]*\s*$",
                name="no goods",
                description="stock codes that are not five digits with letters behind: postage, fees, vouchers, tests",
            ),
            OutOfRange("quantity", least=1, name="no quantity"),
            OutOfRange("unit_price", least=0.001, most=10_000, name="no price"),
            Duplicate(tuple(_GATE_COLUMNS)),
            ImplausibleVolume("customer_id", "invoice_date", most=_MOST_LINES_A_DAY),
        ],
        least_quality=0.5,
    )


def _events(table: pa.Table) -> Events:
    """Arrays in the order of time. Codes that differ in case or spaces are one item: the shop's clerks typed them."""
    table = table.take(pc.sort_indices(table, [("invoice_date", "ascending"), ("invoice", "ascending")]))
    codes = pc.utf8_upper(pc.utf8_trim_whitespace(table.column("stock_code")))
    texts = pc.utf8_trim_whitespace(table.column("description"))
    user, users = _numbered(table.column("customer_id").cast(pa.string()))
    item, items = _numbered(codes)
    country, countries = _numbered(table.column("country").fill_null("Unspecified"))
    description, descriptions = _numbered(texts)
    return Events(
        user=user,
        item=item,
        invoice=_numbered(table.column("invoice"))[0],
        country=country,
        time_us=table.column("invoice_date").cast(pa.int64()).to_numpy(),
        quantity=table.column("quantity").to_numpy().astype(np.float64),
        price=table.column("unit_price").to_numpy(),
        description=description,
        users=users,
        items=items,
        countries=countries,
        descriptions=descriptions,
    )


def _numbered(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Numbers into the sorted distinct values, -1 for null; and those values."""
    names = pa.array(sorted(pc.unique(column.drop_null()).to_pylist()), column.type)
    numbers = pc.index_in(column, names).fill_null(-1)
    return np.asarray(numbers, np.int64), tuple(names.to_pylist())
