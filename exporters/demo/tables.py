"""The marketplace's state as the tables that an export starts from: items, users, history.

The demo trains on what the exporters read back from these tables, so that its models see the codes, the rounding and
the order of what is served.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recserve.exporters.demo.features import ITEM_COLUMNS, USER_COLUMNS
from recserve.exporters.demo.marketplace import Marketplace
from recserve.exporters.demo.state import PURCHASE, Column, HistoryTable, Lists, State
from recserve.exporters.demo.words import EVENT_TYPES, VOCABULARIES
from recserve.exporters.demo.world import Codes, Items, World
from recserve.exporters.spec import (
    CatalogueSpec,
    EventsSpec,
    HistorySpec,
    ItemColumn,
    PopularBySpec,
    Roles,
    SnapshotSpec,
    SourcesSpec,
    TogetherSpec,
    TrendingSpec,
)
from recserve.kernels.features import MISSING_CODE, MISSING_TIME, ColumnSpec


def catalogue_spec(world: World, state: State) -> CatalogueSpec:
    """The item table with its columns, roles and vocabularies."""
    items = world.items
    table = pa.table(
        {
            "item_id": pa.array(items.ids),
            "title": pa.array(items.titles),
            **_arrow_columns(state.items, ITEM_COLUMNS),
            "stock": pa.array(items.stock),
            "in_stock": pa.array(items.stock > 0),
            "regions": _arrow(Lists.of(_listed(items.regions)), ColumnSpec("regions", "categories", "country")),
            "flags": _arrow(Lists.of(_listed(items.flags)), ColumnSpec("flags", "categories", "flag")),
        }
    )
    return CatalogueSpec(
        items=table,
        columns=[
            ItemColumn(name="title", kind="string"),
            *(ItemColumn(name=each.name, kind=each.type, vocabulary=each.vocabulary) for each in ITEM_COLUMNS),
            ItemColumn(name="stock", kind="integer"),
            ItemColumn(name="in_stock", kind="flag"),
            ItemColumn(name="regions", kind="categories", vocabulary="country"),
            ItemColumn(name="flags", kind="categories", vocabulary="flag"),
        ],
        roles=Roles(
            category="category",
            price="price",
            in_stock="in_stock",
            regions="regions",
            flags="flags",
            launch_time="launch_time",
            popularity="popularity",
        ),
        vocabularies=VOCABULARIES,
    )


def snapshot_spec(world: World, state: State, version: str) -> SnapshotSpec:
    """The users with their history."""
    users = pa.table(
        {"user_id": pa.array(world.users.ids), **_arrow_columns({**state.users, **state.user_lists}, USER_COLUMNS)}
    )
    history = _history_table(world.users.ids, world.items, state.history)
    return SnapshotSpec(version=version, users=users, history=HistorySpec(table=history))


def sources_spec(market: Marketplace) -> SourcesSpec:
    """Candidate sources from all that happened: every visit's purchases are a basket."""
    world, events = market.world, market.events
    item_ids, user_ids = pa.array(world.items.ids), pa.array(world.users.ids)
    device, country = market.sessions.device[events.session], world.users.country[events.user]
    table = pa.table(
        {
            "user_id": user_ids.take(pa.array(events.user)),
            "item_id": item_ids.take(pa.array(events.item)),
            "time": pa.array(events.time_us, pa.timestamp("us", "UTC")),
            "device": _arrow(device, ColumnSpec("device", "category")),
            "country": _arrow(country, ColumnSpec("country", "category")),
        }
    )
    users = pa.table(
        {
            "user_id": user_ids,
            "gender": _arrow(world.users.gender, ColumnSpec("gender", "category")),
            "tier": _arrow(world.users.tier, ColumnSpec("tier", "category")),
        }
    )
    bought = events.type == PURCHASE
    baskets = pa.table(
        {
            "basket_id": pc.cast(pa.array(events.session[bought]), pa.string()),
            "item_id": item_ids.take(pa.array(events.item[bought])),
        }
    )
    return SourcesSpec(
        similar_space="content",
        events=EventsSpec(table=table, users=users),
        together=TogetherSpec(table=baskets),
        trending=TrendingSpec(),
        popular_by=[
            PopularBySpec(name="popular_in_country", columns=["country"], days=30),
            PopularBySpec(name="popular_with_peers", columns=["gender", "tier"], days=30),
        ],
    )


def _history_table(user_ids: Sequence[str], items: Items, history: HistoryTable) -> pa.Table:
    return pa.table(
        {
            "user_id": pa.array(user_ids).take(pa.array(history.user)),
            "item_id": pa.array(items.ids).take(pa.array(history.item)),
            "event_type": pa.array(EVENT_TYPES).take(pa.array(history.event)),
            "count": pa.array(history.count),
            "last_time": pa.array(history.last_us, pa.timestamp("us", "UTC")),
        }
    )


def _arrow_columns(columns: Mapping[str, Column | Lists], specs: Iterable[ColumnSpec]) -> dict[str, pa.Array]:
    return {spec.name: _arrow(columns[spec.name], spec) for spec in specs}


def _arrow(column: Column | Lists, spec: ColumnSpec) -> pa.Array:
    """A column with its codes spelt out and its missing values null."""
    if isinstance(column, Lists):
        words = pa.array(VOCABULARIES[spec.vocabulary]).take(pa.array(column.codes))
        return pa.ListArray.from_arrays(pa.array(column.offsets, pa.int32()), words)
    if spec.type == "category":
        return pa.array(VOCABULARIES[spec.vocabulary]).take(pa.array(column, mask=column == MISSING_CODE))
    if spec.type == "time":
        return pa.array(column, pa.timestamp("us", "UTC"), mask=column == MISSING_TIME)
    return pa.array(column, mask=np.isnan(column))


def _listed(members: NDArray[np.bool_]) -> Codes:
    """int32 of the same shape: the column's number where True, else -1."""
    return np.where(members, np.arange(members.shape[1]), -1).astype(np.int32)
