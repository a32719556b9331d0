"""What is known at a moment: the columns of items and users and the users' history, from the events before it.

The rankers learn from the state at a cut and from what happened after it; the snapshot holds the state at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.demo.marketplace import Events, Marketplace
from recserve.exporters.demo.words import BRANDS, CATEGORIES, COLOURS, DEPARTMENTS, DEVICES, EVENT_TYPES, STYLES
from recserve.exporters.demo.world import DAY_US, Codes, Floats, Items, Times, World, category_table
from recserve.kernels.features import MISSING_TIME

VIEW, CART, PURCHASE = range(len(EVENT_TYPES))
EVENT_WEIGHTS = np.array([1.0, 3.0, 5.0])
"""How much an event of each type says of a user's interest or an item's popularity."""
_TOP = 5
_PRIOR_VIEWS = 20.0  # rates of rarely seen items are drawn towards the mean by as many views


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """A list of codes per row: row r has codes[offsets[r]:offsets[r + 1]]."""

    offsets: NDArray[np.int64]
    codes: Codes

    @staticmethod
    def of(table: Codes) -> Lists:
        """The entries >= 0 of each row of [rows, places], in order."""
        present = table >= 0
        return Lists(np.concatenate([[0], np.cumsum(present.sum(axis=1))]), table[present])


Column: TypeAlias = NDArray[np.float64] | NDArray[np.int32] | NDArray[np.int64]
"""Numbers, codes or times; missing as in the feature program."""
Columns: TypeAlias = Mapping[str, Column]


@dataclass(frozen=True, slots=True, eq=False)
class HistoryTable:
    """Users' dealings with items, one entry per (user, item, event type), in that order."""

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    event: NDArray[np.int64]
    count: NDArray[np.int64]
    last_us: Times


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What is known at `time_us`: columns of items and users by name, users' lists likewise, and the history."""

    time_us: int
    items: Columns
    users: Columns
    user_lists: Mapping[str, Lists]
    history: HistoryTable


def state_at(market: Marketplace, time_us: int) -> State:
    """The state made by the events before a time, microseconds UTC."""
    events = market.events.before(time_us)
    favourites = _favourites(market.world, events)
    return State(
        time_us,
        items=_item_columns(market.world.items, events, time_us),
        users={
            **_user_columns(market, events, time_us),
            **{f"favourite_{name}": table[:, 0].copy() for name, table in favourites.items()},
        },
        user_lists={
            f"top_{plural}": Lists.of(favourites[name])
            for name, plural in (
                ("category", "categories"),
                ("brand", "brands"),
                ("style", "styles"),
                ("colour", "colours"),
            )
        },
        history=_history(events, len(market.world.items.ids)),
    )


def _history(events: Events, items: int) -> HistoryTable:
    entry = (events.user.astype(np.int64) * items + events.item) * len(EVENT_TYPES) + events.type
    # Events are in the order of time: the first of an entry from behind is its last.
    entry, from_behind, counts = np.unique(entry[::-1], return_index=True, return_counts=True)
    pair, event = np.divmod(entry, len(EVENT_TYPES))
    user, item = np.divmod(pair, items)
    return HistoryTable(user, item, event, counts, events.time_us[::-1][from_behind])


def _item_columns(items: Items, events: Events, time_us: int) -> Columns:
    count = len(items.ids)
    month = _item_counts(events, count, time_us - 30 * DAY_US)
    week = _item_counts(events, count, time_us - 7 * DAY_US)
    everything = _item_counts(events, count, 0)
    return {
        "category": items.category,
        "department": items.department,
        "brand": items.brand,
        "style": items.style,
        "colour": items.colour,
        "seller": items.seller,
        "audience": items.audience,
        "price": items.price,
        "list_price": items.list_price,
        "discount": 1 - items.price / items.list_price,
        "price_level": items.price / category_table("price")[items.category],
        "rating": items.rating,
        "rating_count": items.rating_count,
        "shipping_days": items.shipping_days,
        "weight_kg": items.weight_kg,
        "image_count": items.image_count,
        "views_7d": week[VIEW],
        "views_30d": month[VIEW],
        "carts_30d": month[CART],
        "purchases_30d": month[PURCHASE],
        "cart_rate": _smoothed_rate(everything[CART], everything[VIEW]),
        "purchase_rate": _smoothed_rate(everything[PURCHASE], everything[VIEW]),
        "trend": _divide(week[VIEW] * 30.0, month[VIEW] * 7.0),
        "popularity": EVENT_WEIGHTS @ month,
        "launch_time": items.launch_us,
        "last_sold": _last_time(events.item, events, PURCHASE, count),
    }


def _item_counts(events: Events, items: int, since_us: int) -> Floats:
    """[event types, items]: events since a time."""
    recent = slice(int(np.searchsorted(events.time_us, since_us)), None)
    entry = events.type[recent].astype(np.int64) * items + events.item[recent]
    return np.bincount(entry, minlength=len(EVENT_TYPES) * items).reshape(-1, items).astype(np.float64)


def _smoothed_rate(part: Floats, whole: Floats) -> Floats:
    """The rate part / whole, drawn towards the mean of all items where `whole` is small."""
    mean = float(part.sum()) / max(float(whole.sum()), 1.0)
    return (part + mean * _PRIOR_VIEWS) / (whole + _PRIOR_VIEWS)


def _user_columns(market: Marketplace, events: Events, time_us: int) -> Columns:
    users = market.world.users
    count = len(users.ids)
    month = _user_counts(events, count, time_us - 30 * DAY_US)
    everything = _user_counts(events, count, 0)
    return {
        "gender": users.gender,
        "home_country": users.country,
        "tier": users.tier,
        "age": users.age,
        "signup_time": users.signup_us,
        "last_seen": _last_time(events.user, events, VIEW, count),
        "last_order": _last_time(events.user, events, PURCHASE, count),
        "views_30d": month[VIEW],
        "carts_30d": month[CART],
        "purchases_30d": month[PURCHASE],
        "cart_rate": _divide(everything[CART], everything[VIEW]),
        "purchase_rate": _divide(everything[PURCHASE], everything[VIEW]),
        **_viewing_habits(market, events, count),
    }


def _viewing_habits(market: Marketplace, events: Events, users: int) -> Columns:
    """Means over a user's views; over purchases for the prices paid. NaN without any."""
    items = market.world.items
    viewed, bought = events.type == VIEW, events.type == PURCHASE
    item, user, time_us = events.item[viewed], events.user[viewed], events.time_us[viewed]
    level = np.log(items.price[item] / category_table("price")[items.category[item]])
    hour, weekday = time_us // (DAY_US // 24) % 24, (time_us // DAY_US + 3) % 7
    device = market.sessions.device[events.session[viewed]]
    return {
        "mean_price": np.exp(_mean(user, np.log(items.price[item]), users)),
        "mean_paid": np.exp(_mean(events.user[bought], np.log(items.price[events.item[bought]]), users)),
        "price_level": np.exp(_mean(user, level, users)),
        "mean_discount": _mean(user, 1 - items.price[item] / items.list_price[item], users),
        "mean_rating": _mean(user, np.nan_to_num(items.rating[item], nan=3.9), users),
        "evening_share": _mean(user, (hour >= 18).astype(np.float64), users),
        "weekend_share": _mean(user, (weekday >= 5).astype(np.float64), users),
        "new_item_share": _mean(user, (time_us - items.launch_us[item] < 30 * DAY_US).astype(np.float64), users),
        "usual_device": _top_codes(events, market.sessions.device[events.session], users, len(DEVICES))[:, 0].copy(),
        "app_share": _mean(user, (device == DEVICES.index("app")).astype(np.float64), users),
    }


def _user_counts(events: Events, users: int, since_us: int) -> Floats:
    """[event types, users]: events since a time."""
    recent = slice(int(np.searchsorted(events.time_us, since_us)), None)
    entry = events.type[recent].astype(np.int64) * users + events.user[recent]
    return np.bincount(entry, minlength=len(EVENT_TYPES) * users).reshape(-1, users).astype(np.float64)


def _favourites(world: World, events: Events) -> dict[str, Codes]:
    """Each user's favourite categories, departments and so on; see `_top_codes`."""
    items, users = world.items, len(world.users.ids)
    sized = {
        "category": (items.category, len(CATEGORIES)),
        "department": (items.department, len(DEPARTMENTS)),
        "brand": (items.brand, len(BRANDS)),
        "style": (items.style, len(STYLES)),
        "colour": (items.colour, len(COLOURS)),
    }
    return {name: _top_codes(events, codes[events.item], users, size) for name, (codes, size) in sized.items()}


def _top_codes(events: Events, codes: Codes, users: int, size: int) -> Codes:
    """int32 [users, _TOP]: each user's favourite codes, best first (ties by code); -1 where there are no more."""
    entry = events.user.astype(np.int64) * size + codes
    weights = np.bincount(entry, EVENT_WEIGHTS[events.type], users * size).reshape(users, size)
    top = np.argsort(-weights, axis=1, kind="stable")[:, :_TOP]
    return np.where(np.take_along_axis(weights, top, axis=1) > 0, top, -1).astype(np.int32)


def _last_time(who: Codes, events: Events, kind: int, count: int) -> Times:
    """The time of everybody's last event of a kind; MISSING_TIME without one."""
    last = np.full(count, MISSING_TIME, np.int64)
    chosen = events.type == kind
    np.maximum.at(last, who[chosen], events.time_us[chosen])
    return last


def _mean(who: Codes, values: Floats, count: int) -> Floats:
    total = np.bincount(who, values, count).astype(np.float64)
    return _divide(total, np.bincount(who, minlength=count).astype(np.float64))


def _divide(a: Floats, b: Floats) -> Floats:
    """The quotient, NaN where b is 0."""
    quotient = np.full(a.shape, np.nan)
    np.divide(a, b, out=quotient, where=b != 0)
    return quotient
