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
    first, last, country = np.full(count, MISSING_TIME), np.full(count, MISSING_TIME), np.full(count, -1)
    first[past.user[::-1]] = past.time_us[::-1]  # the last assignment holds: the first event
    last[past.user], country[past.user] = past.time_us, past.country
    known = first != MISSING_TIME
    numbers = {
        **_of_orders(past, time_us, first, last),
        **_of_lines(past),
        **_of_variety(past, time_us, history),
    }
    numbers = {name: np.where(known, values, np.nan) for name, values in numbers.items()}
    return UserState(time_us, numbers, {"first_order": first, "last_order": last}, country, known, history)


def _of_orders(past: Events, time_us: int, first: Ints, last: Ints) -> dict[str, Floats]:
    """How many, how large, how far apart."""
    count = len(past.users)
    invoice, line = np.unique(past.invoice, return_index=True)
    user, when = past.user[line], past.time_us[line]
    lines = np.bincount(np.searchsorted(invoice, past.invoice), minlength=invoice.size).astype(np.float64)
    latest, orders = when == last[user], _total(user, None, count)
    return {
        "orders": orders,
        **{f"orders_{days}d": _total(user[when >= time_us - days * DAY_US], None, count) for days in (28, 91)},
        "basket_items": _divide(_total(user, lines, count), orders),
        "last_basket_items": _total(user[latest], lines[latest], count),
        "order_gap": _divide((last - first) / DAY_US, orders - 1),
    }


def _of_lines(past: Events) -> dict[str, Floats]:
    """What is spent, and how: of goods of what price, how many at once."""
    count = len(past.users)
    lines = _total(past.user, None, count)
    return {
        "value": _total(past.user, past.price * past.quantity, count),
        "mean_price": np.exp(_divide(_total(past.user, np.log(past.price), count), lines)),
        "pieces_per_line": _divide(_total(past.user, past.quantity, count), lines),
    }


def _of_variety(past: Events, time_us: int, history: HistoryAt) -> dict[str, Floats]:
    """How much of what is bought has been bought before."""
    users, items = len(past.users), len(past.items)
    pairs, first_line = np.unique(past.user * items + past.item, return_index=True)
    fresh = past.time_us[first_line] >= time_us - 91 * DAY_US
    distinct = _total(history.user, None, users)
    return {
        "items": distinct,
        "repeat_share": 1 - _divide(distinct, _total(history.user, history.count, users)),
        "new_items_91d": _total(pairs[fresh] // items, None, users),
    }


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


def _total(who: Ints, values: Floats | Ints | None, count: int) -> Floats:
    """[count]: the sum of everybody's values; None: of ones."""
    return np.bincount(who, values, count).astype(np.float64)


def _divide(a: Floats, b: Floats) -> Floats:
    """The quotient, NaN where b is not positive."""
    quotient = np.full(a.shape, np.nan)
    np.divide(a, b, out=quotient, where=b > 0)
    return quotient


def _numbers(values: Floats) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))
