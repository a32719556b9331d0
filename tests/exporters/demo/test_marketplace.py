"""The simulation: deterministic, within its bounds, and with the structure that models can learn."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import numpy as np
import pytest

from recserve.exporters.demo.choice import BOUGHT, NOTHING, Shoppers, Shown
from recserve.exporters.demo.marketplace import Marketplace, available, simulate
from recserve.exporters.demo.sizes import DemoSizes
from recserve.exporters.demo.words import CATEGORIES, EVENT_TYPES, VOCABULARIES
from recserve.exporters.demo.world import DAY_US, category_table

VIEW, CART, PURCHASE = range(3)


def arrays(value: object, path: str = "") -> dict[str, object]:
    """Every array and tuple below a dataclass, by path."""
    if isinstance(value, Shoppers):
        return {}
    if is_dataclass(value):
        return {
            name: each
            for field in fields(value)
            for name, each in arrays(getattr(value, field.name), f"{path}.{field.name}").items()
        }
    return {path: value}


def test_the_same_seed_gives_the_same_marketplace(market: Marketplace, tiny: DemoSizes) -> None:
    again = arrays(simulate(tiny, 7))
    first = arrays(market)
    assert len(first) > 40
    for path, values in first.items():
        np.testing.assert_array_equal(again[path], values, err_msg=path)


def test_another_seed_gives_another_marketplace(market: Marketplace, tiny: DemoSizes) -> None:
    other = simulate(tiny, 8)
    assert other.events.item[:200].tolist() != market.events.item[:200].tolist()
    assert other.world.items.price.tolist() != market.world.items.price.tolist()


def test_it_is_about_as_large_as_asked() -> None:
    sizes = DemoSizes(items=3_000, users=1_000, events=100_000)
    market = simulate(sizes, 1)
    assert len(market.world.items.ids) == len(set(market.world.items.ids)) == 3_000
    assert len(market.world.users.ids) == len(set(market.world.users.ids)) == 1_000
    assert market.events.user.size == pytest.approx(100_000, rel=0.15)
    views, carts, purchases = np.bincount(market.events.type)
    assert views > 3 * carts > 3 * purchases > 0


def test_sizes_out_of_range_are_all_named() -> None:
    with pytest.raises(ValueError, match=r"items is 10, must be 300 to 1000000; users is 0, must be 50 to 1000000"):
        DemoSizes(items=10, users=0)


def test_events_are_ordered_and_within_the_time(market: Marketplace) -> None:
    events, world = market.events, market.world
    assert (np.diff(events.time_us) >= 0).all()
    assert world.start_us <= events.time_us[0]
    assert events.time_us[-1] < world.end_us
    assert world.end_us - world.start_us == 90 * DAY_US
    assert (events.time_us >= world.users.signup_us[events.user]).all()
    assert set(np.unique(events.type)) == set(range(len(EVENT_TYPES)))


def test_only_what_is_launched_and_sold_there_is_shown(market: Marketplace) -> None:
    shown, sessions = market.impressions, market.sessions
    country = market.world.users.country[sessions.user[shown.session]]
    again = np.isin(shown.position, [2, 8, 15])
    sold = available(market.world.items, shown.item, country, sessions.time_us[shown.session])
    assert sold[~again].all()
    assert (market.world.items.launch_us[shown.item] <= sessions.time_us[shown.session]).all()


def test_purchases_follow_cart_additions_and_these_views(market: Marketplace) -> None:
    shown = market.impressions
    assert not (shown.purchased & ~shown.carted).any()
    assert not (shown.carted & ~shown.clicked).any()
    events = market.events
    when = {
        (session, item, kind): time_us
        for session, item, kind, time_us in zip(
            events.session.tolist(), events.item.tolist(), events.type.tolist(), events.time_us.tolist(), strict=True
        )
    }
    bought = [key for key in when if key[2] == PURCHASE]
    assert bought
    for session, item, _ in bought:
        assert when[session, item, VIEW] < when[session, item, CART] < when[session, item, PURCHASE]


def test_no_item_is_shown_twice_in_a_session(market: Marketplace) -> None:
    shown = market.impressions
    pairs = shown.session * len(market.world.items.ids) + shown.item
    assert np.unique(pairs).size == pairs.size
    order = shown.session * 21 + shown.position
    assert (np.diff(order) > 0).all()


def test_popularity_follows_a_power_law() -> None:
    market = simulate(DemoSizes(items=3_000, users=1_000, events=100_000), 1)
    views = np.sort(np.bincount(market.events.item[market.events.type == VIEW], minlength=3_000))[::-1]
    middle = slice(20, 1_000)
    slope = np.polyfit(np.log(np.arange(1, 3_001)[middle]), np.log(views[middle] + 0.5), 1)[0]
    assert -1.3 < slope < -0.6


def test_items_are_sensible(market: Marketplace) -> None:
    items = market.world.items
    assert (items.price > 0).all()
    assert (items.price <= items.list_price).all()
    np.testing.assert_allclose(items.price, np.round(items.price, 2), rtol=0, atol=1e-12)
    rated = ~np.isnan(items.rating)
    assert ((items.rating[rated] >= 1) & (items.rating[rated] <= 5)).all()
    assert (rated == (items.rating_count > 0)).all()
    assert set(items.category.tolist()) == set(range(len(CATEGORIES)))
    assert (items.stock >= 0).all()
    assert 0 < (items.stock == 0).mean() < 0.15
    assert (items.flags[:, 0] == (category_table("adult")[items.category] > 0)).all()
    np.testing.assert_allclose(np.linalg.norm(items.taste, axis=1), 1, atol=1e-5)


def test_codes_are_within_their_vocabularies(market: Marketplace) -> None:
    for owner, names in (
        (market.world.items, ("category", "department", "brand", "style", "colour", "seller")),
        (market.world.users, ("country", "language", "gender", "tier")),
    ):
        for name in names:
            codes = getattr(owner, name)
            assert codes.dtype == np.int32
            assert -1 <= codes.min() <= codes.max() < len(VOCABULARIES[name])
    assert all(len(set(values)) == len(values) for values in VOCABULARIES.values())


def test_users_click_what_suits_them(market: Marketplace) -> None:
    shown = market.impressions
    user = market.sessions.user[shown.session]
    fit = np.einsum("ij,ij->i", market.world.users.taste[user], market.world.items.taste[shown.item])
    assert fit[shown.clicked].mean() > fit[~shown.clicked].mean() + 0.1


def test_consumables_are_bought_again_and_durables_are_not() -> None:
    market = simulate(DemoSizes(items=3_000, users=1_000, events=100_000), 1)
    bought = market.events.type == PURCHASE
    pairs, counts = np.unique(
        market.events.user[bought].astype(np.int64) * 3_000 + market.events.item[bought], return_counts=True
    )
    consumable = category_table("cycle_days")[market.world.items.category[pairs % 3_000]] > 0
    assert (counts[consumable] > 1).mean() > 0.1
    assert (counts[~consumable] == 1).all()


def test_responses_can_be_asked_for_what_was_not_shown(market: Marketplace, rng: np.random.Generator) -> None:
    items = market.world.items
    durable = np.flatnonzero(category_table("cycle_days")[items.category] == 0).astype(np.int32)
    item = np.resize(durable, 4_000)

    def click_rate(past: int) -> float:
        shown = Shown(
            user=np.zeros(item.size, np.int32),
            item=item,
            device=np.zeros(item.size, np.int32),
            time_us=np.full(item.size, market.world.end_us),
            position=np.zeros(item.size, np.int32),
            past=np.full(item.size, past, np.int32),
            past_us=np.full(item.size, market.world.end_us - 3 * DAY_US),
        )
        return float(market.shoppers.respond(shown, rng).clicked.mean())

    assert click_rate(BOUGHT) < 0.5 * click_rate(NOTHING)
