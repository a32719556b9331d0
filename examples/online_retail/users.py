"""What is known of customers at a moment: nothing here looks at a later event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from examples.online_retail.clean import Events
from examples.online_retail.split import DAY_US
from recserve.exporters.spec import HistorySpec, SnapshotSpec
from recserve.kernels.features import MISSING_TIME, ColumnSpec

EVENT: Final = "purchase"
NUMBERS: Final = (
    "orders", "orders_28d", "orders_91d", "items", "basket_items", "last_basket_items", "value", "mean_price",
    "pieces_per_line", "repeat_share", "order_gap", "new_items_91d",
)  # fmt: skip
TIMES: Final = ("first_order", "last_order")

USER_COLUMNS: Final = (
    *(ColumnSpec(name, "number") for name in NUMBERS),
    *(ColumnSpec(name, "time") for name in TIMES),
    ColumnSpec("country", "category"),
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class HistoryAt:
    """Purchases by customer and item, latest first within a customer.

    Attributes:
        user, item: int64 [n].
        count: int64 [n], orders with the item.
        last_us: int64 [n], of the last of them.
    """

    user: Ints
    item: Ints
    count: Ints
    last_us: Ints


@dataclass(frozen=True, slots=True, eq=False)
class UserState:
    """All customers at a moment, also those of later.

    Attributes:
        time_us: the moment.
        numbers: float64 [users] by column; NaN where unknown.
        times: int64 [users] by column; MISSING_TIME where unknown.
        country: int64 [users], of the last order, -1 where unknown.
        known: bool [users]; whether the customer has bought before.
        history: of those.
    """

    time_us: int
    numbers: dict[str, Floats]
    times: dict[str, Ints]
    country: Ints
    known: NDArray[np.bool_]
    history: HistoryAt


def users_at(events: Events, time_us: int) -> UserState:
    """The customers' state."""
    past, count = events.before(time_us), len(events.users)
    history = history_at(past)
    invoice, first_line = np.unique(past.invoice, return_index=True)
    order_user, order_time = past.user[first_line], past.time_us[first_line]
    order_items = np.bincount(np.searchsorted(invoice, past.invoice), minlength=invoice.size).astype(np.float64)
    first, last = np.full(count, MISSING_TIME), np.full(count, MISSING_TIME)
    first[past.user[::-1]] = past.time_us[::-1]
    last[past.user] = past.time_us
    known = first != MISSING_TIME
    orders = np.bincount(order_user, minlength=count).astype(np.float64)
    items = np.bincount(history.user, minlength=count).astype(np.float64)
    pairs = np.bincount(history.user, history.count, count)
    latest = order_time == last[order_user]
    country = np.full(count, -1)
    country[past.user] = past.country
    numbers = {
        "orders": orders,
        "orders_28d": _count(order_user, order_time >= time_us - 28 * DAY_US, count),
        "orders_91d": _count(order_user, order_time >= time_us - 91 * DAY_US, count),
        "items": items,
        "basket_items": _divide(np.bincount(order_user, order_items, count), orders),
        "last_basket_items": np.bincount(order_user[latest], order_items[latest], count),
        "value": np.bincount(past.user, past.price * past.quantity, count),
        "mean_price": np.exp(
            _divide(np.bincount(past.user, np.log(past.price), count), _count(past.user, None, count))
        ),
        "pieces_per_line": _divide(np.bincount(past.user, past.quantity, count), _count(past.user, None, count)),
        "repeat_share": 1 - _divide(items, pairs),
        "order_gap": _divide((last - first) / DAY_US, orders - 1),
        "new_items_91d": _count(*_first_purchases(past, time_us - 91 * DAY_US), count),
    }
    numbers = {name: np.where(known, values, np.nan) for name, values in numbers.items()}
    return UserState(time_us, numbers, {"first_order": first, "last_order": last}, country, known, history)


def history_at(past: Events) -> HistoryAt:
    """Purchases by customer and item; an item counts once an order."""
    count = len(past.items)
    lines = np.unique(past.invoice * count + past.item, return_index=True)[1]
    pairs, entry, orders = np.unique(
        past.user[lines] * count + past.item[lines], return_inverse=True, return_counts=True
    )
    last = np.zeros(pairs.size, np.int64)
    np.maximum.at(last, entry, past.time_us[lines])
    user, item = pairs // count, pairs % count
    order = np.lexsort((item, -last, user))
    return HistoryAt(user[order], item[order], orders[order], last[order])


def snapshot_at(events: Events, state: UserState, version: str) -> SnapshotSpec:
    """The users who have bought, with their history."""
    rows, history = np.flatnonzero(state.known), state.history
    names = pa.array(events.users)
    users = pa.table(
        {
            "user_id": names.take(pa.array(rows)),
            **{name: _numbers(values[rows]) for name, values in state.numbers.items()},
            **{name: pa.array(values[rows], pa.timestamp("us", "UTC")) for name, values in state.times.items()},
            "country": pa.array(events.countries).take(pa.array(state.country[rows])),
        }
    )
    purchases = pa.table(
        {
            "user_id": names.take(pa.array(history.user)),
            "item_id": pa.array(events.items).take(pa.array(history.item)),
            "event_type": pa.array([EVENT]).take(pa.array(np.zeros(history.user.size, np.int64))),
            "count": pa.array(history.count),
            "last_time": pa.array(history.last_us, pa.timestamp("us", "UTC")),
        }
    )
    return SnapshotSpec(version=version, users=users, history=HistorySpec(table=purchases))


def _first_purchases(past: Events, since_us: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Customers by item that they bought, and whether for the first time since then."""
    count = len(past.items)
    pairs, first = np.unique(past.user * count + past.item, return_index=True)
    return pairs // count, past.time_us[first] >= since_us


def _count(who: Ints, which: NDArray[np.bool_] | None, count: int) -> Floats:
    return np.bincount(who if which is None else who[which], minlength=count).astype(np.float64)


def _divide(a: Floats, b: Floats) -> Floats:
    """The quotient, NaN where b is not positive."""
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)


def _numbers(values: Floats) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))
