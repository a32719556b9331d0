"""A state as the server would know it: read back through the exporters, resolved against the items' rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.catalogue import read_items
from recserve.exporters.demo.marketplace import Marketplace
from recserve.exporters.demo.state import State
from recserve.exporters.demo.tables import catalogue_spec, snapshot_spec
from recserve.exporters.snapshot import read_users
from recserve.kernels.features import ColumnValues, FeatureSchema, recent_items
from recserve.server.bundle.strings import key_of
from recserve.server.pipeline.types import History, Rows, no_rows


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What is known at a moment.

    Attributes:
        features: float32 [items, item features], see `ItemArrays`.
        times: int64 [items, item times], likewise.
        popular: item rows, the most popular first.
        popularity: float32 [items].
        users: the user columns, one row a user.
        registered: bool [users]; the others are strangers.
        histories: of each user.
        history_rows: of each user, the item rows of its history.
        recent: of each user, the distinct items of its history, latest first.
    """

    features: NDArray[np.float32]
    times: NDArray[np.int64]
    popular: Rows
    popularity: NDArray[np.float32]
    users: ColumnValues
    registered: NDArray[np.bool_]
    histories: list[History]
    history_rows: list[Rows]
    recent: list[Rows]


def read_known(market: Marketplace, state: State, schema: FeatureSchema) -> Known:
    """Read a state the way an export does."""
    world = market.world
    items = read_items(catalogue_spec(world, state), schema)
    users = read_users(snapshot_spec(world, state, "training"), schema, items.vocabularies)
    bounds = users.history.offsets[1:-1]
    rows = np.split(_rows_of_keys(world.items.ids, users.history.keys), bounds)
    entries = zip(
        np.split(users.history.keys, bounds),
        np.split(users.history.events, bounds),
        np.split(users.history.counts, bounds),
        np.split(users.history.last_us, bounds),
        strict=True,
    )
    return Known(
        features=items.features,
        times=items.times,
        popular=items.popular_rows,
        popularity=items.features[:, schema.item_feature_columns.index("popularity")],
        users=users.columns,
        registered=world.users.signup_us < state.time_us,
        histories=[History(*each) for each in entries],
        history_rows=rows,
        recent=[recent_items(no_rows(), each) for each in rows],
    )


def _rows_of_keys(ids: tuple[str, ...], keys: NDArray[np.uint64]) -> Rows:
    """Rows of keys that are all there."""
    all_keys = np.array([key_of(each) for each in ids], np.uint64)
    order = np.argsort(all_keys)
    return order[np.searchsorted(all_keys, keys, sorter=order)]
