"""Everything at one cut-off, built from nothing but what lies before it: models, item table, users.

Training windows, the validation and the test all come through `build_at`, so none of them can be treated otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from examples.online_retail.als import AlsSettings, factorise
from examples.online_retail.clean import Events
from examples.online_retail.content import describe
from examples.online_retail.features import retail_schema
from examples.online_retail.items import ItemState, catalogue_at, descriptions_at, items_at
from examples.online_retail.sources import sources_at
from examples.online_retail.split import DAY_US
from examples.online_retail.twotower import TowerSettings, moments_before, train_towers
from examples.online_retail.users import HistoryAt, UserState, snapshot_at, users_at
from recserve.exporters.spec import BundleSpec, SnapshotSpec, SpaceSpec

_TASTE_HALF_LIFE_DAYS: Final = 90.0

Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Settings:
    """What was chosen on the validation weeks; see the README."""

    als: AlsSettings = field(default_factory=AlsSettings)
    towers: TowerSettings = field(default_factory=TowerSettings)
    seed: int = 7


@dataclass(frozen=True, slots=True, eq=False)
class BuiltAt:
    """A bundle without a ranker, and its users, as they would have been exported at the cut-off."""

    time_us: int
    bundle: BundleSpec
    users: SnapshotSpec
    items: int
    customers: int


class Shop:
    """The events, and what is known at any moment; moments are shared between cut-offs."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.state_at = lru_cache(maxsize=None)(self._state_at)

    def _state_at(self, time_us: int) -> tuple[ItemState, UserState]:
        return items_at(self.events, time_us), users_at(self.events, time_us)


def build_at(shop: Shop, time_us: int, version: str, settings: Settings, advance: Callable[[], None]) -> BuiltAt:
    """Train on what lies before a cut-off, and describe what is to be exported.

    Args:
        shop: the events.
        time_us: the cut-off.
        version: of the bundle and the snapshot.
        settings: of the models.
        advance: called after each epoch of the towers.
    """
    events, (its, theirs) = shop.events, shop.state_at(time_us)
    rows = np.flatnonzero(its.sold)
    descriptions = descriptions_at(events.before(time_us))
    content = describe([descriptions[row] for row in rows], settings.seed)
    catalogue = catalogue_at(events, its, rows, content)
    moments = list(moments_before(events, time_us, rows, shop.state_at, settings.towers))
    towers = train_towers(moments, content.vectors, settings.towers, settings.seed, advance)
    known = np.flatnonzero(theirs.known)
    ids = [events.users[user] for user in known]
    counts = _counts(theirs.history, known, rows)
    als_users, als_items = factorise(counts, settings.als, settings.seed)
    tastes = _tastes(theirs.history, time_us, known, rows, content.vectors)
    spec = BundleSpec(
        name="online-retail",
        version=version,
        catalogue=catalogue,
        features=retail_schema(),
        sources=sources_at(events, time_us),
        spaces=[
            towers.space(),
            SpaceSpec(name="als", normalized=False, item_vectors=als_items, user_vectors=als_users, user_ids=ids),
            SpaceSpec(name="content", normalized=True, item_vectors=content.vectors, user_vectors=tastes, user_ids=ids),
        ],
    )
    return BuiltAt(time_us, spec, snapshot_at(events, theirs, version), rows.size, known.size)


def _counts(history: HistoryAt, known: Ints, rows: Ints) -> csr_matrix:
    """[known, rows]: orders of a customer with an item."""
    user, row = np.searchsorted(known, history.user), np.searchsorted(rows, history.item)
    return csr_matrix((history.count, (user, row)), shape=(known.size, rows.size), dtype=np.float32)


def _tastes(history: HistoryAt, time_us: int, known: Ints, rows: Ints, content: Floats32) -> Floats32:
    """Customers in the space of descriptions: the mean of their items, of length 1; what is recent weighs more."""
    age = (time_us - history.last_us) / DAY_US
    weight = np.log1p(history.count) * 0.5 ** (age / _TASTE_HALF_LIFE_DAYS)
    user, row = np.searchsorted(known, history.user), np.searchsorted(rows, history.item)
    sums = csr_matrix((weight, (user, row)), shape=(known.size, rows.size)) @ content.astype(np.float64)
    return np.asarray(sums / np.linalg.norm(sums, axis=1, keepdims=True), np.float32)
