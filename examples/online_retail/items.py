"""What is known of items at a moment: nothing here looks at a later event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from examples.online_retail.clean import Events
from examples.online_retail.content import Content
from examples.online_retail.split import DAY_US, WINDOW_US
from recserve.exporters.spec import CatalogueSpec, ItemColumn, Roles
from recserve.kernels.features import MISSING_TIME, ColumnSpec

BUYER_DAYS: Final = (7, 14, 28, 91, 365)
POPULARITY: Final = "buyers_14d"
"""What `popular` sorts by; the window was chosen on the validation weeks."""
YEAR_US: Final = 364 * DAY_US
"""The same weekday a year ago."""

Floats = NDArray[np.float64]
Times = NDArray[np.int64]

NUMBERS: Final = (
    "price", "price_change", "price_level", "pieces", "buyers", "repeat_rate", "orders_per_buyer",
    *(f"buyers_{days}d" for days in BUYER_DAYS), "buyers_last_year", "growth_last_year",
)  # fmt: skip
TIMES: Final = ("first_sold", "last_sold")

ITEM_COLUMNS: Final = (
    *(ColumnSpec(name, "number") for name in NUMBERS),
    *(ColumnSpec(name, "time") for name in TIMES),
    ColumnSpec("category", "category"),
)
"""What the ranker may read."""


@dataclass(frozen=True, slots=True, eq=False)
class ItemState:
    """All items at a moment, also those not yet sold, of which nothing is known.

    Attributes:
        time_us: the moment.
        numbers: float64 [items] by column; NaN where unknown.
        times: int64 [items] by column; MISSING_TIME where unknown.
        sold: bool [items]; whether the shop has sold it before.
    """

    time_us: int
    numbers: dict[str, Floats]
    times: dict[str, Times]
    sold: NDArray[np.bool_]


def items_at(events: Events, time_us: int) -> ItemState:
    """The items' state; `price_level`, which needs categories, is NaN until `with_categories`."""
    past = events.before(time_us)
    count = len(events.items)
    buyers = {f"buyers_{days}d": _buyers(past, time_us - days * DAY_US, time_us) for days in BUYER_DAYS}
    price = _latest_price(past)
    numbers = {
        "price": price,
        "price_change": price / _mean(past.item, past.price, count),
        "price_level": np.full(count, np.nan),
        "pieces": _mean(past.item, past.quantity, count),
        **_loyalty(past),
        **buyers,
        **_last_year(past, time_us),
    }
    first, last = np.full(count, MISSING_TIME), np.full(count, MISSING_TIME)
    first[past.item[::-1]] = past.time_us[::-1]  # the last assignment holds: the first event
    last[past.item] = past.time_us
    sold = first != MISSING_TIME
    numbers = {name: np.where(sold, values, np.nan) for name, values in numbers.items()}
    return ItemState(time_us, numbers, {"first_sold": first, "last_sold": last}, sold)


def catalogue_at(events: Events, state: ItemState, rows: NDArray[np.int64], content: Content) -> CatalogueSpec:
    """The item table: `rows` are the numbers of the items that it lists, in its order."""
    numbers = {name: values[rows] for name, values in state.numbers.items()}
    numbers["price_level"] = _price_level(numbers["price"], content.category)
    text = {f"text_{n:02}": column for n, column in enumerate(content.vectors.T)}
    age = (state.time_us - state.times["first_sold"][rows]) / DAY_US
    table = pa.table(
        {
            "item_id": pa.array([events.items[row] for row in rows]),
            "description": pa.array(descriptions_at(events.before(state.time_us))).take(pa.array(rows)),
            "category": pa.array(content.category),
            "row": pa.array(np.arange(rows.size)),
            "age_days": pa.array(age),
            **{name: pa.array(values, mask=np.isnan(values)) for name, values in numbers.items()},
            **{name: pa.array(values[rows], pa.timestamp("us", "UTC")) for name, values in state.times.items()},
            **{name: pa.array(values) for name, values in text.items()},
        }
    )
    return CatalogueSpec(
        items=table,
        columns=[
            ItemColumn(name="description", kind="string"),
            ItemColumn(name="category", kind="category"),
            ItemColumn(name="row", kind="integer"),
            *(ItemColumn(name=name, kind="number") for name in ("age_days", *numbers, *text)),
            *(ItemColumn(name=name, kind="time") for name in TIMES),
        ],
        roles=Roles(category="category", price="price", launch_time="first_sold", popularity=POPULARITY),
        vocabularies={"country": events.countries},
    )


def descriptions_at(past: Events) -> list[str]:
    """The most frequent description of each item, the first in the alphabet among equals; its code without any."""
    named = past.description >= 0
    size = max(len(past.descriptions), 1)
    pairs, counts = np.unique(past.item[named] * size + past.description[named], return_counts=True)
    order = np.lexsort((pairs, -counts))[::-1]
    texts = list(past.items)
    for item, text in zip((pairs[order] // size).tolist(), (pairs[order] % size).tolist(), strict=True):
        texts[item] = past.descriptions[text] or past.items[item]
    return texts


def _buyers(past: Events, start_us: int, end_us: int) -> Floats:
    """[items]: how many customers bought it in a time."""
    window = past.between(start_us, end_us)
    count = len(past.items)
    pairs = np.unique(window.user * count + window.item)
    return np.bincount(pairs % count, minlength=count).astype(np.float64)


def _last_year(past: Events, time_us: int) -> dict[str, Floats]:
    """What came next a year ago: gift-ware has seasons. NaN where the data does not reach back so far."""
    then = time_us - YEAR_US
    if past.size == 0 or then - WINDOW_US < past.time_us[0]:
        unknown = np.full(len(past.items), np.nan)
        return {"buyers_last_year": unknown, "growth_last_year": unknown}
    after, before = _buyers(past, then, then + WINDOW_US), _buyers(past, then - WINDOW_US, then)
    return {"buyers_last_year": after, "growth_last_year": (after + 1) / (before + 1)}


def _loyalty(past: Events) -> dict[str, Floats]:
    """Customers of an item, how many of them bought it again, and how often on the whole."""
    count = len(past.items)
    lines = np.unique(past.invoice * count + past.item, return_index=True)[1]
    pairs, orders = np.unique(past.user[lines] * count + past.item[lines], return_counts=True)
    item = pairs % count
    buyers = np.bincount(item, minlength=count).astype(np.float64)
    again = np.bincount(item[orders > 1], minlength=count)
    return {
        "buyers": buyers,
        "repeat_rate": (again + 1) / (buyers + 5),
        "orders_per_buyer": np.bincount(item, orders, count) / np.maximum(buyers, 1),
    }


def _latest_price(past: Events) -> Floats:
    price = np.full(len(past.items), np.nan)
    price[past.item] = past.price
    return price


def _price_level(price: Floats, category: list[str]) -> Floats:
    """Price relative to the median of the category."""
    codes = np.unique(category, return_inverse=True)[1]
    medians = np.array([np.median(price[codes == code]) for code in range(codes.max() + 1)])
    return np.asarray(price / medians[codes])


def _mean(who: NDArray[np.int64], values: Floats, count: int) -> Floats:
    total, size = np.bincount(who, values, count), np.bincount(who, minlength=count)
    mean = np.full(count, np.nan)
    np.divide(total, size, out=mean, where=size > 0)
    return mean
