"""Ninety days of a simulated marketplace: sessions, what they were shown, and what users did.

A session has a focus, drawn from its user's interests, and shows one shelf of 21 places. Most are filled with items of
the focus and the shop's favourites, by Zipf weights; every seventh shows something that the user has dealt with before,
which is where repeat purchases come from. Everything is drawn from one seeded generator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.demo.choice import BOUGHT, CARTED, NOTHING, VIEWED, Responses, Shoppers, Shown
from recserve.exporters.demo.sizes import DemoSizes
from recserve.exporters.demo.words import CATEGORIES, DEVICE_SHARES, DEVICES
from recserve.exporters.demo.world import DAY_US, Codes, Items, Times, World, category_table, make_world

SHELF = 21
"""Places of a shelf."""
_AGAIN_PLACES = np.array([2, 8, 15], np.int32)
_DISCOVERY_PLACES = np.setdiff1d(np.arange(SHELF, dtype=np.int32), _AGAIN_PLACES)
_EVENTS_PER_SESSION = 5.9  # what CLICK_RATE and the choices after a click come to
_HOUR_US = DAY_US // 24
_SECOND_US = 1_000_000
_SEEN_SECONDS = 20  # a user looks at the next place of the shelf after so long
_CART_SECONDS = 9
_CHECKOUT_SECONDS = SHELF * _SEEN_SECONDS + 60
_LONGEST_US = (_CHECKOUT_SECONDS + 60) * _SECOND_US


@dataclass(frozen=True, slots=True, eq=False)
class Sessions:
    """Visits, in the order of their times."""

    user: Codes
    device: Codes
    time_us: Times


@dataclass(frozen=True, slots=True, eq=False)
class Impressions:
    """What was shown and what came of it, by session and position; no item twice in a session."""

    session: NDArray[np.int64]
    item: Codes
    position: Codes
    clicked: NDArray[np.bool_]
    carted: NDArray[np.bool_]
    purchased: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """What users did, in the order of the times.

    Attributes:
        user: rows of users.
        item: rows of items.
        type: codes of EVENT_TYPES.
        time_us: microseconds UTC.
        session: rows of sessions.
    """

    user: Codes
    item: Codes
    type: Codes
    time_us: Times
    session: NDArray[np.int64]

    def before(self, time_us: int) -> Events:
        """The events before a time."""
        end = int(np.searchsorted(self.time_us, time_us))
        return Events(*(getattr(self, name)[:end] for name in self.__slots__))


@dataclass(frozen=True, slots=True, eq=False)
class Marketplace:
    """A world with what happened in it. `shoppers` answer what would have happened had they been shown more."""

    world: World
    shoppers: Shoppers
    sessions: Sessions
    impressions: Impressions
    events: Events


def simulate(sizes: DemoSizes, seed: int) -> Marketplace:
    """Simulate a marketplace; the same sizes and seed give the same arrays."""
    rng = np.random.default_rng(seed)
    world = make_world(sizes, rng)
    shoppers = Shoppers(world, rng)
    sessions = _draw_sessions(world, round(sizes.events / _EVENTS_PER_SESSION), rng)
    discoveries, session = _stock_shelves(world, sessions, rng)
    first = _to_impressions(session, discoveries, shoppers.respond(discoveries, rng))
    returns, session = _show_again(sessions, _to_events(sessions, first), rng)
    second = _to_impressions(session, returns, shoppers.respond(returns, rng))
    impressions = _buy_durables_once(world.items, sessions, _merge(first, second))
    return Marketplace(world, shoppers, sessions, impressions, _to_events(sessions, impressions))


def available(items: Items, rows: Codes, country: Codes, time_us: Times) -> NDArray[np.bool_]:
    """Whether items are launched by then and sold in the country."""
    regions = items.regions[rows]
    sold = regions[np.arange(rows.size), country] | ~regions.any(axis=1)
    return sold & (items.launch_us[rows] <= time_us)


def _draw_sessions(world: World, count: int, rng: np.random.Generator) -> Sessions:
    """Active users come more often; there are more sessions at weekends and around each user's hour of the day."""
    users = world.users
    user = rng.choice(users.activity.size, size=count, p=users.activity)
    first_day = np.maximum(users.signup_us[user] - world.start_us, 0) // DAY_US
    day = _draw_days((world.end_us - world.start_us) // DAY_US, first_day, world.start_us // DAY_US, rng)
    hour = (users.peak_hour[user] + 2.8 * rng.standard_normal(count)) % 24
    time_us = world.start_us + day * DAY_US + (hour * _HOUR_US).astype(np.int64)
    time_us = np.minimum(time_us, world.end_us - _LONGEST_US - rng.integers(0, _HOUR_US, count))
    order = np.argsort(time_us, kind="stable")
    device = rng.choice(len(DEVICES), size=count, p=DEVICE_SHARES)
    return Sessions(user[order].astype(np.int32), device.astype(np.int32), time_us[order])


def _draw_days(days: int, first: NDArray[np.int64], epoch_day: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A day from `first` on for each session; Saturdays and Sundays weigh 1.4."""
    weekday = (epoch_day + np.arange(days) + 3) % 7
    until = np.concatenate([[0.0], np.cumsum(np.where(weekday >= 5, 1.4, 1.0))])
    target = until[first] + rng.random(first.size) * (until[-1] - until[first])
    day: NDArray[np.int64] = np.clip(np.searchsorted(until, target, side="right") - 1, first, days - 1)
    return day


def _stock_shelves(world: World, sessions: Sessions, rng: np.random.Generator) -> tuple[Shown, NDArray[np.int64]]:
    """The places for discoveries: 60% the session's focus, 20% a second one, the rest the shop's favourites."""
    places = _DISCOVERY_PLACES.size
    session = np.repeat(np.arange(sessions.user.size), places)
    focus = _draw_interest(world, sessions.user, rng)[session]
    second = _draw_interest(world, sessions.user, rng)[session]
    which = rng.random(session.size)
    category = np.select([which < 0.6, which < 0.8], [focus, second], -1)
    item = _draw_items(world.items, category, rng)
    shown = _shown(sessions, session, item, np.tile(_DISCOVERY_PLACES, sessions.user.size))
    return _keep(shown, session, available(world.items, item, world.users.country[shown.user], shown.time_us))


def _draw_interest(world: World, user: Codes, rng: np.random.Generator) -> Codes:
    """A category for each session, by its user's affinities."""
    until = np.cumsum(world.users.affinity, axis=1)
    target = rng.random((user.size, 1), np.float32) * until[:, -1:][user]
    category = np.empty(user.size, np.int32)
    for start in range(0, user.size, 8192):
        part = slice(start, start + 8192)
        category[part] = (until[user[part]] < target[part]).sum(axis=1)
    return np.minimum(category, len(CATEGORIES) - 1)


def _draw_items(items: Items, category: Codes, rng: np.random.Generator) -> Codes:
    """An item of each category by Zipf weight; of any category where it is -1."""
    order = np.argsort(items.category, kind="stable")
    until = np.concatenate([[0.0], np.cumsum(items.weight[order])])
    bounds = np.searchsorted(items.category[order], np.arange(len(CATEGORIES) + 1))
    low = np.where(category < 0, 0, bounds[category])
    high = np.where(category < 0, order.size, bounds[category + 1])
    target = until[low] + rng.random(category.size) * (until[high] - until[low])
    place = np.clip(np.searchsorted(until, target, side="right") - 1, low, high - 1)
    chosen: NDArray[np.intp] = order[place]
    return chosen.astype(np.int32)


def _show_again(sessions: Sessions, events: Events, rng: np.random.Generator) -> tuple[Shown, NDArray[np.int64]]:
    """The places for what the user has dealt with before, the latest more often; none in a user's first session."""
    order = np.lexsort((events.session, events.user))
    # Sessions are ordered by time, so (user, session) orders a user's events by session.
    stride = sessions.user.size + 1
    keys = events.user[order].astype(np.int64) * stride + events.session[order]
    session = np.repeat(np.arange(sessions.user.size), _AGAIN_PLACES.size)
    user = sessions.user[session].astype(np.int64)
    low, high = np.searchsorted(keys, user * stride), np.searchsorted(keys, user * stride + session)
    back = np.floor((high - low) * np.square(rng.random(session.size))).astype(np.int64)
    position = np.tile(_AGAIN_PLACES, sessions.user.size)
    some = high > low
    session, item = session[some], events.item[order[(high - 1 - back)[some]]]
    past, past_us = _furthest(events, sessions.user[session], item, session)
    return _shown(sessions, session, item, position[some], past, past_us), session


def _furthest(events: Events, user: Codes, item: Codes, session: NDArray[np.int64]) -> tuple[Codes, Times]:
    """The furthest that each user went with the item before the session, and when last."""
    items, sessions = int(events.item.max()) + 1, int(session.max()) + 2
    wanted = (user.astype(np.int64) * items + item) * sessions + session
    past, past_us = np.full(item.size, NOTHING, np.int32), np.zeros(item.size, np.int64)
    for kind in (VIEWED, CARTED, BOUGHT):
        rows = np.flatnonzero(events.type == kind)
        keys = (events.user[rows].astype(np.int64) * items + events.item[rows]) * sessions + events.session[rows]
        order = np.argsort(keys)
        before = np.searchsorted(keys, wanted, sorter=order) - 1
        latest = order[np.maximum(before, 0)]
        happened = (before >= 0) & (keys[latest] // sessions == wanted // sessions)
        past[happened] = kind
        past_us[happened] = events.time_us[rows[latest[happened]]]
    return past, past_us


def _shown(
    sessions: Sessions,
    session: NDArray[np.int64],
    item: Codes,
    position: Codes,
    past: Codes | None = None,
    past_us: Times | None = None,
) -> Shown:
    return Shown(
        user=sessions.user[session],
        item=item,
        device=sessions.device[session],
        time_us=sessions.time_us[session],
        position=position,
        past=np.full(item.size, NOTHING, np.int32) if past is None else past,
        past_us=np.zeros(item.size, np.int64) if past_us is None else past_us,
    )


def _keep(shown: Shown, session: NDArray[np.int64], which: NDArray[np.bool_]) -> tuple[Shown, NDArray[np.int64]]:
    return Shown(*(getattr(shown, name)[which] for name in Shown.__slots__)), session[which]


def _to_impressions(session: NDArray[np.int64], shown: Shown, responses: Responses) -> Impressions:
    return Impressions(session, shown.item, shown.position, responses.clicked, responses.carted, responses.purchased)


def _merge(first: Impressions, second: Impressions) -> Impressions:
    """Both by session and position; of an item that a session shows twice, `second`'s impression remains."""
    columns = [np.concatenate([getattr(second, name), getattr(first, name)]) for name in Impressions.__slots__]
    session, item, position = columns[:3]
    _, kept = np.unique(session * (int(item.max()) + 1) + item, return_index=True)
    kept = kept[np.argsort(session[kept] * SHELF + position[kept], kind="stable")]
    return Impressions(*(column[kept] for column in columns))


def _buy_durables_once(items: Items, sessions: Sessions, impressions: Impressions) -> Impressions:
    """Leave every user one purchase of an item that nobody needs twice."""
    durable = category_table("cycle_days")[items.category[impressions.item]] == 0
    rows = np.flatnonzero(impressions.purchased & durable)
    user = sessions.user[impressions.session[rows]].astype(np.int64)
    # Impressions are in the order of time, and the first of several equals is the one that is kept.
    _, kept = np.unique(user * items.category.size + impressions.item[rows], return_index=True)
    purchased = impressions.purchased.copy()
    purchased[np.delete(rows, kept)] = False
    return replace(impressions, purchased=purchased)


def _to_events(sessions: Sessions, impressions: Impressions) -> Events:
    """A view for each click at its place's turn, the cart addition soon after, the purchase at the checkout."""
    parts = []
    for code, (happened, seconds) in enumerate(
        (
            (impressions.clicked, impressions.position * _SEEN_SECONDS),
            (impressions.carted, impressions.position * _SEEN_SECONDS + _CART_SECONDS),
            (impressions.purchased, np.full(impressions.position.size, _CHECKOUT_SECONDS)),
        )
    ):
        session = impressions.session[happened]
        time_us = sessions.time_us[session] + seconds[happened].astype(np.int64) * _SECOND_US
        # One microsecond a place: a checkout's purchases have an order, too.
        time_us += impressions.position[happened]
        codes = np.full(session.size, code, np.int32)
        parts.append((sessions.user[session], impressions.item[happened], codes, time_us, session))
    user, item, types, time_us, session = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(time_us, kind="stable")
    return Events(user[order], item[order], types[order], time_us[order], session[order])
