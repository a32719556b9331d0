"""What the straightforward service holds in memory, all of it ready to be looked up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.loadtest.reference.schema import (
    CONTENTS,
    ITEM_CATEGORIES,
    ITEM_NUMBERS,
    SPACE,
    TASTES,
    USER_NUMBERS,
    VIEW,
)
from recserve.server.bundle.reader import Bundle, open_bundle
from recserve.server.bundle.snapshot import Snapshot, open_snapshot
from recserve.server.config import Settings

LOGARITHMS: Final = frozenset(
    {"rating_count", "views_7d", "views_30d", "carts_30d", "sales_7d", "sales_30d", "popularity", "orders_30d", "stock"}
)
"""Columns that the model wants the logarithm of."""
MISSING_TIME: Final = np.iinfo(np.int64).min

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """By row.

    Attributes:
        ids: of all items.
        features: [items, 50], as the model wants them.
        prices: NaN: unknown.
        categories, brands: codes, -1: unknown.
        vectors: [items, 128], of length 1.
        popular: rows, the most popular first.
        category_count: how many categories there are.
    """

    ids: list[str]
    features: Floats
    prices: Doubles
    categories: NDArray[np.int32]
    brands: NDArray[np.int32]
    vectors: Floats
    popular: NDArray[np.int64]
    category_count: int


@dataclass(frozen=True, slots=True, eq=False)
class Users:
    """By row; behind the last row stands one of an unknown user, whom -1 finds.

    Attributes:
        rows: by id.
        features: [users + 1, 30], as the model wants them.
        taste: [users + 1, 32], the tower's input.
        typical_price: NaN: unknown.
        home_country, favourite_brand: codes, -1: unknown.
        signup, last_order: microseconds since 1970 UTC.
        top_categories: each user's, the best first.
        history: where each user's begins in the following, [users + 2].
        item_rows: of the history, the latest first; -1: no longer sold.
        item_categories: their categories; -1: unknown.
        views: whether it was a view.
        counts, last_us: how often, and when last.
    """

    rows: dict[str, int]
    features: Floats
    taste: Floats
    typical_price: Doubles
    home_country: NDArray[np.int32]
    favourite_brand: NDArray[np.int32]
    signup: NDArray[np.int64]
    last_order: NDArray[np.int64]
    top_categories: list[NDArray[np.int32]]
    history: NDArray[np.int64]
    item_rows: NDArray[np.int64]
    item_categories: NDArray[np.int32]
    views: NDArray[np.bool_]
    counts: Doubles
    last_us: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """What is asked of the list: how many candidates are ranked, the cap on categories, and MMR's lambda."""

    candidates: int
    cap: int
    relevance_weight: float


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Everything.

    Attributes:
        items, users, placement: see there.
        tower, model: files of the user tower and of the forest.
        calibration: from the forest's margins to relevance.
        devices, countries: codes by name.
        clock_us: what is taken for now; None: the time of day.
    """

    items: Items
    users: Users
    placement: Placement
    tower: Path
    model: Path
    calibration: manifest_pb2.Calibration
    devices: dict[str, int]
    countries: dict[str, int]
    clock_us: int | None


def load_data(settings: Settings) -> Data:
    """Read what a server of this configuration would serve: its first bundle, its snapshot, its default placement."""
    bundle = open_bundle(settings.bundles[0].path, verify=False)
    if settings.state.snapshot is None:
        raise ValueError("the configuration names no snapshot: nobody would be known")
    items = _items(bundle)
    forest, space = bundle.manifest.forests[0], bundle.space(SPACE)
    return Data(
        items=items,
        users=_users(bundle, open_snapshot(settings.state.snapshot, verify=False), items.categories),
        placement=_placement(settings),
        tower=bundle.file(space.spec.user_tower.file),
        model=bundle.file(forest.model),
        calibration=forest.calibration,
        devices={name: code for code, name in enumerate(bundle.vocabularies["device"].values)},
        countries={name: code for code, name in enumerate(bundle.vocabularies["country"].values)},
        clock_us=settings.server.clock_us,
    )


def _placement(settings: Settings) -> Placement:
    placement = settings.placements["default"]
    (cap,) = placement.caps
    if placement.mmr_weight is None or cap.attribute != "category" or cap.window:
        raise ValueError("the straightforward service is written for MMR and one cap on categories in the whole list")
    return Placement(placement.candidates, cap.max, placement.mmr_weight)


def _items(bundle: Bundle) -> Items:
    catalogue = bundle.catalogue
    places = bundle.schema.item_feature_columns
    columns = {name: np.asarray(catalogue.features[:, places.index(name)], np.float64) for name in places}
    names = (*ITEM_NUMBERS, *CONTENTS, *ITEM_CATEGORIES)
    return Items(
        ids=catalogue.ids_of_rows(np.arange(catalogue.size)),
        features=_ready(columns, names),
        prices=columns["price"],
        categories=_codes(columns["category"]),
        brands=_codes(columns["brand"]),
        vectors=bundle.space(SPACE).vectors,
        popular=catalogue.popular_rows,
        category_count=len(bundle.vocabularies["category"]),
    )


def _ready(columns: dict[str, Doubles], names: tuple[str, ...]) -> Floats:
    """The named columns side by side, [rows, names]."""
    table = np.empty((len(columns[names[0]]), len(names)), np.float32)
    for place, name in enumerate(names):
        table[:, place] = np.log1p(columns[name]) if name in LOGARITHMS else columns[name]
    return table


def _codes(column: Doubles) -> NDArray[np.int32]:
    return np.where(np.isnan(column), -1, column).astype(np.int32)


def _users(bundle: Bundle, snapshot: Snapshot, categories: NDArray[np.int32]) -> Users:
    layout, columns = bundle.schema.user_layout, snapshot.columns
    numbers = {column.name: np.append(columns.numbers[:, place], np.nan) for place, column in enumerate(layout.numbers)}
    codes = {column.name: np.append(columns.codes[:, place], np.int32(-1)) for place, column in enumerate(layout.codes)}
    times = {column.name: np.append(columns.times[:, place], MISSING_TIME) for place, column in enumerate(layout.times)}
    as_numbers = {name: np.where(code < 0, np.nan, code) for name, code in codes.items()}
    taste = np.stack([numbers[name] for name in TASTES], axis=1).astype(np.float32)
    history = snapshot.history
    item_rows = bundle.catalogue.rows_of_keys(history.keys)
    return Users(
        rows={user: row for row, user in enumerate(snapshot.user_ids(np.arange(snapshot.size)))},
        features=_ready({**numbers, **as_numbers}, (*TASTES[:16], *USER_NUMBERS, "tier", "home_country")),
        taste=np.nan_to_num(taste, nan=0.0),
        typical_price=numbers["typical_price"],
        home_country=codes["home_country"],
        favourite_brand=codes["favourite_brand"],
        signup=times["signup_time"],
        last_order=times["last_order"],
        top_categories=[*np.split(columns.list_codes, columns.list_offsets[1:-1]), np.empty(0, np.int32)],
        history=np.append(history.offsets, history.offsets[-1]),
        item_rows=item_rows,
        item_categories=np.where(item_rows < 0, -1, categories[item_rows]).astype(np.int32),
        views=history.events == bundle.schema.event_types.index(VIEW),
        counts=np.asarray(history.counts),
        last_us=np.asarray(history.last_us),
    )
