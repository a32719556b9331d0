"""Items and users of a reference workload, as the tables and vectors that an export starts from.

Items come in blocks, each from a generator of its own: ten million of them need no more memory than their table.
A centre of the vectors has a category, most of its items are of it, and users deal mostly with items of their centres.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recserve.exporters.spec import CatalogueSpec, HistorySpec, ItemColumn, Roles, SnapshotSpec
from recserve.loadtest.clusters import CENTRES, Clusters, around
from recserve.loadtest.reference.recipe import NOW, Recipe
from recserve.loadtest.reference.schema import CONTENTS, EVENT_TYPES, ITEM_COLUMNS, TASTES
from recserve.loadtest.reference.tower import UserTower

Codes = NDArray[np.int32]
Floats = NDArray[np.float64]

_NUMBERED: Final = {"category": 200, "brand": 500, "seller": 1000, "colour": 16, "material": 30}
VOCABULARIES: Final[dict[str, tuple[str, ...]]] = {
    **{name: tuple(f"{name}-{number:03}" for number in range(size)) for name, size in _NUMBERED.items()},
    "tier": ("basic", "bronze", "silver", "gold"),
    "country": ("AT", "BE", "CH", "DE", "DK", "ES", "FI", "FR", "GB", "IT", "NL", "SE"),
    "device": ("desktop", "phone", "tablet", "app"),
}
SIZES: Final = {name: len(words) for name, words in VOCABULARIES.items()}
NOW_US: Final = int(NOW.timestamp()) * 1_000_000
DAY_US: Final = 86_400_000_000

_BLOCK: Final = 100_000
_OWN_CATEGORY: Final = 0.6  # of a centre's items
_OWN_CENTRES: Final = 0.8  # of a user's history
_BRANDS: Final = 10  # of a category
_VIEWED: Final = 22.0  # items of a user's history, on average
_BOUGHT: Final = 0.15  # of them
_DAYS: Final = 90
_TOP: Final = 5  # categories
_STREAMS: Final = ("world", "items", "users", "history", "tower")


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """All items.

    Attributes:
        table: one row an item, in the order of its vectors.
        centres: int32 [items], of the vectors.
    """

    table: pa.Table
    centres: Codes


@dataclass(frozen=True, slots=True, eq=False)
class Users:
    """All users, with their history.

    Attributes:
        table: one row a user.
        tastes: float32 [users, 32]; what the user tower reads.
        history: one row per user, item and event type, in the order of users.
        entries: int64 [users + 1]; where each user's history begins.
    """

    table: pa.Table
    tastes: NDArray[np.float32]
    history: pa.Table
    entries: NDArray[np.int64]

    def first(self, count: int) -> SnapshotSpec:
        """A snapshot of the first users only."""
        history = self.history.slice(0, int(self.entries[count]))
        return SnapshotSpec(version="first", users=self.table.slice(0, count), history=HistorySpec(table=history))


class Market:
    """Makes items and users of a recipe; the same for the same recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        world = self._random("world")
        self._clusters = Clusters.draw(world)
        self._category = world.integers(0, SIZES["category"], CENTRES, np.int32)
        """Of each centre."""
        self._price = np.exp(3.5 + 0.8 * world.standard_normal(SIZES["category"]))
        """Of each category, on average."""
        self.tower = UserTower.draw(self._clusters, self._random("tower"))

    def _random(self, stream: str, block: int = 0) -> np.random.Generator:
        return np.random.default_rng([self._recipe.seed, _STREAMS.index(stream), block])

    # ------------------------------------------------------------------------------------------------------- items

    def item_blocks(self) -> Iterator[tuple[NDArray[np.float32], Items]]:
        """Vectors, float32 [block, 128], and items, block by block."""
        for number, start in enumerate(range(0, self._recipe.items, _BLOCK)):
            random = self._random("items", number)
            count = min(_BLOCK, self._recipe.items - start)
            centres = random.integers(0, CENTRES, count, np.int32)
            inner = self._clusters.centres[centres]
            table = pa.table({"item_id": _ids("item", start, count), **self._item_columns(centres, inner, random)})
            yield self._clusters.vectors(inner, random), Items(table, centres)

    def _item_columns(self, centres: Codes, inner: Floats, random: np.random.Generator) -> dict[str, pa.Array]:
        count = len(centres)
        own = random.random(count) < _OWN_CATEGORY
        category = np.where(own, self._category[centres], random.integers(0, SIZES["category"], count, np.int32))
        codes = {
            "category": category,
            "brand": _brand(category, random),
            "seller": random.integers(0, SIZES["seller"], count, np.int32),
            "colour": random.integers(0, SIZES["colour"], count, np.int32),
            "material": random.integers(0, SIZES["material"], count, np.int32),
        }
        numbers = _item_numbers(self._price[category], random)
        contents = 0.6 * inner[:, : len(CONTENTS)] + 0.8 * random.standard_normal((count, len(CONTENTS)))
        return {
            **{name: pa.array(values.astype(np.float32)) for name, values in numbers.items()},
            **{name: pa.array(contents[:, place].astype(np.float32)) for place, name in enumerate(CONTENTS)},
            **{name: _words(values, name) for name, values in codes.items()},
        }

    # ------------------------------------------------------------------------------------------------------- users

    def users(self, items: Items) -> Users:
        """All users; their history is of these items."""
        random, count = self._random("users"), self._recipe.users
        pairs = random.integers(0, CENTRES, (count, 2))
        tastes = around(self._clusters.mixtures(pairs), random).astype(np.float32)
        top = self._top_categories(pairs, random)
        table = pa.table(
            {
                "user_id": _ids("user", 0, count),
                **{name: pa.array(tastes[:, place]) for place, name in enumerate(TASTES)},
                **{name: pa.array(values) for name, values in self._user_numbers(top, random).items()},
                "tier": _words(random.integers(0, SIZES["tier"], count, np.int32), "tier"),
                "home_country": _words(random.integers(0, SIZES["country"], count, np.int32), "country"),
                "favourite_brand": _words(_brand(top[:, 0], random), "brand"),
                "signup_time": _before_now(random.uniform(_DAYS, 2000, count)),
                "last_order": _before_now(random.exponential(20, count)),
                "top_categories": _lists(top),
            }
        )
        return Users(table, tastes, *self._history(pairs, items))

    def _top_categories(self, pairs: NDArray[np.int64], random: np.random.Generator) -> Codes:
        """int32 [users, 5]: those of the user's centres, then others; best first."""
        others = random.integers(0, SIZES["category"], (len(pairs), _TOP - pairs.shape[1]), np.int32)
        return np.concatenate([self._category[pairs], others], axis=1)

    def _user_numbers(self, top: Codes, random: np.random.Generator) -> dict[str, Floats]:
        count = len(top)
        orders = random.poisson(2.0, count)
        return {
            "age": _withheld(np.floor(random.uniform(18, 80, count)), 0.1, random),
            "typical_price": self._price[top].mean(axis=1) * np.exp(0.3 * random.standard_normal(count)),
            "mean_discount": random.beta(2, 8, count),
            "mean_rating": random.normal(3.9, 0.4, count),
            "views_30d": random.poisson(15.0, count) + 5.0 * orders,
            "orders_30d": orders.astype(np.float64),
            "purchase_rate": random.beta(2, 40, count),
            "return_rate": random.beta(1, 15, count),
            "evening_share": random.beta(2, 3, count),
            "weekend_share": random.beta(2, 5, count),
            "new_item_share": random.beta(1, 6, count),
            "app_share": random.beta(0.5, 0.5, count),
        }

    def _history(self, pairs: NDArray[np.int64], items: Items) -> tuple[pa.Table, NDArray[np.int64]]:
        """What users viewed and bought, and where each user's part begins."""
        random = self._random("history")
        users = np.repeat(np.arange(len(pairs)), 1 + random.poisson(_VIEWED - 1, len(pairs)))
        wanted = pairs[users, random.integers(0, pairs.shape[1], len(users))]
        elsewhere = random.random(len(users)) >= _OWN_CENTRES
        chosen = _items_of(np.where(elsewhere, random.integers(0, CENTRES, len(users)), wanted), items.centres, random)
        user, item = np.divmod(np.unique(users * len(items.centres) + chosen), len(items.centres))
        bought = random.random(len(user)) < _BOUGHT
        order = np.argsort(np.concatenate([user, user[bought]]), kind="stable")
        last_us = NOW_US - (random.uniform(0, _DAYS, len(user)) * DAY_US).astype(np.int64)
        event = np.concatenate([np.zeros(len(user), np.int32), np.ones(int(bought.sum()), np.int32)])[order]
        who = np.concatenate([user, user[bought]])[order]
        counts = np.concatenate([random.geometric(0.6, len(user)), np.ones(int(bought.sum()), np.int64)])
        table = pa.table(
            {
                "user_id": _ids("user", 0, len(pairs)).take(pa.array(who)),
                "item_id": items.table["item_id"].take(pa.array(np.concatenate([item, item[bought]])[order])),
                "event_type": pa.DictionaryArray.from_arrays(pa.array(event), pa.array(EVENT_TYPES)),
                "count": pa.array(counts[order]),
                "last_time": pa.array(np.concatenate([last_us, last_us[bought]])[order], pa.timestamp("us", "UTC")),
            }
        )
        return table, np.searchsorted(who, np.arange(len(pairs) + 1))


def catalogue_spec(items: Items) -> CatalogueSpec:
    """The item table with what its columns are."""
    return CatalogueSpec(
        items=items.table,
        columns=[ItemColumn(name=each.name, kind=each.type, vocabulary=each.vocabulary) for each in ITEM_COLUMNS],
        roles=Roles(category="category", price="price", popularity="popularity"),
        vocabularies=VOCABULARIES,
    )


def snapshot_spec(users: Users, version: str) -> SnapshotSpec:
    """All users with their history."""
    return SnapshotSpec(version=version, users=users.table, history=HistorySpec(table=users.history))


def _item_numbers(price: Floats, random: np.random.Generator) -> dict[str, Floats]:
    count = len(price)
    price = np.round(price * np.exp(0.5 * random.standard_normal(count)), 2) + 0.01
    discount = random.beta(1, 6, count)
    quality, trend = random.standard_normal(count), 0.5 * random.standard_normal(count)
    views = np.floor(np.exp(4 + 1.3 * random.standard_normal(count) + 0.4 * quality))
    cart_rate, purchase_rate = random.beta(4, 40, count), random.beta(3, 60, count)
    views_7d, carts, sales = (random.poisson(views * rate) for rate in (np.exp(trend) / 4.3, cart_rate, purchase_rate))
    return {
        "price": price,
        "list_price": price / (1 - np.minimum(discount, 0.9)),
        "discount": discount,
        "rating": _withheld(np.clip(3.9 + 0.5 * quality, 1, 5), 0.1, random),
        "rating_count": np.floor(views * random.beta(1, 20, count)),
        "views_7d": views_7d.astype(np.float64),
        "views_30d": views,
        "carts_30d": carts.astype(np.float64),
        "sales_7d": random.poisson(sales / 4.3).astype(np.float64),
        "sales_30d": sales.astype(np.float64),
        "cart_rate": cart_rate,
        "purchase_rate": purchase_rate,
        "return_rate": random.beta(1, 12, count),
        "trend": trend,
        "popularity": views + 3.0 * carts + 5.0 * sales,
        "stock": np.floor(random.exponential(60, count)),
        "seller_rating": random.normal(4.2, 0.3, count),
        "shipping_days": np.floor(1 + random.exponential(2.5, count)),
        "weight_kg": _withheld(random.lognormal(-0.5, 1.0, count), 0.05, random),
        "image_count": np.floor(random.uniform(1, 12, count)),
        "title_words": np.floor(random.uniform(3, 20, count)),
    }


def _items_of(wanted: NDArray[np.int64], centres: Codes, random: np.random.Generator) -> NDArray[np.int64]:
    """A random item of each wanted centre; any item where the centre has none."""
    by_centre = np.argsort(centres, kind="stable")
    sizes = np.bincount(centres, minlength=CENTRES)
    starts = np.cumsum(sizes) - sizes
    place = starts[wanted] + np.floor(random.random(len(wanted)) * sizes[wanted]).astype(np.int64)
    anything = random.integers(0, len(centres), len(wanted))
    return np.where(sizes[wanted] > 0, by_centre[np.minimum(place, len(centres) - 1)], anything)


def _brand(category: Codes, random: np.random.Generator) -> Codes:
    """One of the ten brands of each category, some of which it shares with its neighbours."""
    chosen = random.integers(0, _BRANDS, len(category), np.int32)
    brand: Codes = (_BRANDS // 2 * category + chosen) % np.int32(SIZES["brand"])
    return brand


def _withheld(values: Floats, share: float, random: np.random.Generator) -> Floats:
    """With a share of them missing."""
    values[random.random(len(values)) < share] = np.nan
    return values


def _ids(kind: str, start: int, count: int) -> pa.Array:
    return pa.array([f"{kind}-{number:08}" for number in range(start, start + count)])


def _words(codes: Codes, vocabulary: str) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(VOCABULARIES[vocabulary]))


def _lists(top: Codes) -> pa.Array:
    """The categories of each row, each once."""
    repeated = np.zeros(top.shape, np.bool_)
    for place in range(1, top.shape[1]):
        repeated[:, place] = (top[:, :place] == top[:, place : place + 1]).any(axis=1)
    offsets = np.concatenate([[0], np.cumsum((~repeated).sum(axis=1))])
    words = pa.array(VOCABULARIES["category"]).take(pa.array(top[~repeated]))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), words)


def _before_now(days: Floats) -> pa.Array:
    return pa.array(NOW_US - (days * DAY_US).astype(np.int64), pa.timestamp("us", "UTC"))
