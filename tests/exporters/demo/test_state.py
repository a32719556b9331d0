"""What is known at a moment, against plain counting; and that nothing of the future is in it."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from recserve.exporters.demo.features import demo_schema
from recserve.exporters.demo.known import read_known
from recserve.exporters.demo.marketplace import Marketplace
from recserve.exporters.demo.state import EVENT_WEIGHTS, Lists, State, state_at
from recserve.exporters.demo.world import DAY_US
from recserve.kernels.features import MISSING_TIME
from recserve.server.bundle.strings import key_of

VIEW, CART, PURCHASE = range(3)


@pytest.fixture(scope="module")
def cut_us(market: Marketplace) -> int:
    return market.world.end_us - 14 * DAY_US


@pytest.fixture(scope="module")
def state(market: Marketplace, cut_us: int) -> State:
    return state_at(market, cut_us)


def events_before(market: Marketplace, time_us: int) -> list[tuple[int, int, int, int]]:
    """(user, item, type, time) of the events before a time."""
    events = market.events
    rows = zip(events.user.tolist(), events.item.tolist(), events.type.tolist(), events.time_us.tolist(), strict=True)
    return [row for row in rows if row[3] < time_us]


def test_the_future_is_not_known(market: Marketplace, state: State, cut_us: int) -> None:
    past_only = replace(market, events=market.events.before(cut_us))
    again = state_at(past_only, cut_us)
    for name, values in {**state.items, **state.users}.items():
        np.testing.assert_array_equal({**again.items, **again.users}[name], values, err_msg=name)
    assert state.history.last_us.max() < cut_us
    for name in ("last_seen", "last_order"):
        assert state.users[name].max() < cut_us
    assert state.items["last_sold"].max() < cut_us


def test_the_history_counts_events(market: Marketplace, state: State, cut_us: int) -> None:
    counts: Counter[tuple[int, int, int]] = Counter()
    last: dict[tuple[int, int, int], int] = {}
    for user, item, kind, time_us in events_before(market, cut_us):
        counts[user, item, kind] += 1
        last[user, item, kind] = time_us
    history = state.history
    found = zip(history.user.tolist(), history.item.tolist(), history.event.tolist(), strict=True)
    entries = list(found)
    assert entries == sorted(counts)
    assert history.count.tolist() == [counts[entry] for entry in entries]
    assert history.last_us.tolist() == [last[entry] for entry in entries]


def test_columns_count_recent_events(market: Marketplace, state: State, cut_us: int) -> None:
    views, bought, popularity = Counter[int](), Counter[int](), defaultdict[int, float](float)
    for user, item, kind, time_us in events_before(market, cut_us):
        if time_us >= cut_us - 30 * DAY_US:
            popularity[item] += EVENT_WEIGHTS[kind]
            views[user] += kind == VIEW
            bought[item] += kind == PURCHASE
    users, items = range(len(market.world.users.ids)), range(len(market.world.items.ids))
    assert state.users["views_30d"].tolist() == [views[user] for user in users]
    assert state.items["purchases_30d"].tolist() == [bought[item] for item in items]
    assert state.items["popularity"].tolist() == [popularity[item] for item in items]


def test_favourites_are_the_heaviest_categories(market: Marketplace, state: State, cut_us: int) -> None:
    weights: dict[int, Counter[int]] = defaultdict(Counter)
    for user, item, kind, _ in events_before(market, cut_us):
        weights[user][int(market.world.items.category[item])] += int(EVENT_WEIGHTS[kind])
    top = state.user_lists["top_categories"]
    for user in range(len(market.world.users.ids)):
        expected = [code for code, _ in sorted(weights[user].items(), key=lambda each: (-each[1], each[0]))[:5]]
        assert top.codes[top.offsets[user] : top.offsets[user + 1]].tolist() == expected
        assert state.users["favourite_category"][user] == (expected[0] if expected else -1)


def test_what_is_unknown_is_missing(market: Marketplace, state: State, cut_us: int) -> None:
    strangers = np.setdiff1d(np.arange(len(market.world.users.ids)), market.events.before(cut_us).user)
    assert strangers.size > 0
    assert np.isnan(state.users["mean_price"][strangers]).all()
    assert (state.users["favourite_brand"][strangers] == -1).all()
    assert (state.users["last_seen"][strangers] == MISSING_TIME).all()
    assert (state.users["views_30d"][strangers] == 0).all()


def test_it_is_read_back_as_the_server_orders_it(market: Marketplace, state: State) -> None:
    known = read_known(market, state, demo_schema())
    ids = market.world.items.ids
    for user in range(0, len(known.histories), 17):
        history, rows = known.histories[user], known.history_rows[user]
        assert [key_of(ids[row]) for row in rows.tolist()] == history.keys.tolist()
        order = list(zip((-history.last_us).tolist(), history.keys.tolist(), history.events.tolist(), strict=True))
        assert order == sorted(order)
        assert known.recent[user].tolist() == list(dict.fromkeys(rows.tolist()))
    assert known.registered.tolist() == (market.world.users.signup_us < state.time_us).tolist()


def test_lists_keep_the_order_and_leave_out_what_is_missing() -> None:
    lists = Lists.of(np.array([[3, 1, -1], [-1, -1, -1], [0, 2, 1]], np.int32))
    assert lists.offsets.tolist() == [0, 2, 2, 5]
    assert lists.codes.tolist() == [3, 1, 0, 2, 1]
