from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import uvloop

from recserve.bundle.v1 import manifest_pb2
from recserve.kernels.features import MISSING_TIME, ColumnSpec, FeatureSchema, FeatureSpec
from recserve.kernels.ids import build_slots
from recserve.server.bundle.catalogue import Catalogue
from recserve.server.bundle.columns import (
    CategoriesColumn,
    CategoryColumn,
    Column,
    FlagColumn,
    IntegerColumn,
    NumberColumn,
    StringColumn,
    TimeColumn,
    Vocabulary,
)
from recserve.server.bundle.reader import Bundle, Space
from recserve.server.bundle.registry import BundleRegistry
from recserve.server.bundle.strings import StringTable, keys_of
from recserve.server.config import Settings
from recserve.server.pipeline.inputs import RankingInputs
from recserve.server.rpc import RecommenderService, RpcServer
from recserve.v1.recommender_pb2_grpc import RecommenderServiceStub


@pytest.fixture
def run() -> Callable[..., Any]:
    """Runs a coroutine on a loop of its own; what the loop could not hand to anybody fails the test."""

    def runner(
        coroutine: Coroutine[Any, Any, Any], *, seconds: float = 30, loop: Callable[[], Any] | None = None
    ) -> Any:
        unhandled: list[dict[str, Any]] = []

        async def main() -> Any:
            asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
            result = await asyncio.wait_for(coroutine, seconds)
            gc.collect()  # a future whose exception nobody fetched reports when it is collected
            await asyncio.sleep(0)
            return result

        with asyncio.Runner(loop_factory=loop) as loop_runner:
            result = loop_runner.run(main())
        assert unhandled == []
        return result

    return runner


ITEMS = 60
DAY_US = 86_400_000_000
SCHEMA = FeatureSchema(
    user=(
        ColumnSpec("age", "number"),
        ColumnSpec("gender", "category"),
        ColumnSpec("signup", "time"),
        ColumnSpec("top_categories", "categories", "category"),
    ),
    context=(
        ColumnSpec("device", "category"),
        ColumnSpec("country", "category"),
        ColumnSpec("basket_value", "number"),
    ),
    item=(ColumnSpec("price", "number"), ColumnSpec("category", "category")),
    event_types=("view", "purchase"),
    features=(
        FeatureSpec("price", "value", ("item.price",)),
        FeatureSpec("age", "value", ("user.age",)),
        FeatureSpec("bought", "count", ("history.item",), event="purchase"),
        FeatureSpec("ann_score", "value", ("source.ann.score",)),
    ),
)
VOCABULARIES = {
    "gender": ["f", "m"],
    "category": ["books", "games", "toys"],
    "device": ["phone", "desktop"],
    "country": ["DE", "FR"],
    "region": ["DE", "FR", "US"],
    "flag": ["adult", "fragile"],
}
ROLES = {
    "category": "category",
    "price": "price",
    "in_stock": "in_stock",
    "regions": "regions",
    "flags": "flags",
    "launch_time": "launched",
    "popularity": "popularity",
}


def string_table(strings: list[str]) -> StringTable:
    utf8, offsets = packed(strings)
    keys = keys_of(strings)
    return StringTable(utf8, offsets, keys, build_slots(keys))


def packed(strings: list[str]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *(len(each.encode()) for each in strings)], dtype=np.int64)
    return np.frombuffer("".join(strings).encode(), np.uint8), offsets


def item_columns(vocabularies: dict[str, Vocabulary]) -> dict[str, Column]:
    rng = np.random.default_rng(3)
    rows = np.arange(ITEMS)
    no_lists = np.zeros(ITEMS + 1, np.int64)
    regions = np.cumsum([0, *(rows % 3 == 0)], dtype=np.int64)
    flags = np.cumsum([0, *(rows % 10 == 0)], dtype=np.int64)
    price = rng.integers(1, 100, ITEMS).astype(np.float64)
    price[7] = np.nan
    launched = 1_600_000_000_000_000 + rows * DAY_US
    launched[7] = MISSING_TIME
    titles, title_offsets = packed([f"Item № {row}" if row != 7 else "" for row in rows])
    columns = [
        NumberColumn("price", price),
        CategoryColumn("category", (rows % 3).astype(np.int32), vocabularies["category"]),
        FlagColumn("in_stock", (rows % 5 != 0).astype(np.uint8)),
        CategoriesColumn("regions", regions, (np.arange(regions[-1]) % 3).astype(np.int32), vocabularies["region"]),
        CategoriesColumn("flags", flags, np.zeros(flags[-1], np.int32), vocabularies["flag"]),
        TimeColumn("launched", launched),
        NumberColumn("popularity", rng.permutation(ITEMS).astype(np.float64)),
        IntegerColumn("stock", rows * 10),
        StringColumn("title", title_offsets, titles),
        CategoriesColumn("tags", no_lists, np.empty(0, np.int32), vocabularies["flag"]),
    ]
    return {column.name: column for column in columns}


def vectors(seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(ITEMS, 8))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def space(name: str, seed: int, *, users: bool) -> Space:
    keys = np.sort(keys_of([f"user{index}" for index in range(20)]))
    spec = manifest_pb2.Space(
        name=name, dim=8, metric="INNER_PRODUCT", normalized=True, index=manifest_pb2.Index(kind="EXACT")
    )
    return Space(spec, vectors(seed), vectors(seed + 1)[:20] if users else None, keys if users else None)


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., Bundle]:
    """A small bundle in memory; `without` names roles, spaces and event types to leave out."""

    def make(without: tuple[str, ...] = ()) -> Bundle:
        vocabularies = {name: Vocabulary(name, values) for name, values in VOCABULARIES.items()}
        columns = item_columns(vocabularies)
        catalogue = Catalogue(
            ids=string_table([f"item-{row}" for row in range(ITEMS - 1)] + ["ünïcode/漢字 🛒"]),
            features=np.stack([columns["price"].values, columns["category"].codes], axis=1).astype(np.float32),
            times=np.empty((ITEMS, 0), np.int64),
            columns=columns,
            roles={part: name for part, name in ROLES.items() if part not in without},
            popular_rows=np.argsort(-columns["popularity"].values, kind="stable"),
        )
        spaces = [space("ann", 1, users=True), space("content", 5, users=False)]
        events = tuple(event for event in SCHEMA.event_types if event not in without)
        features = tuple(each for each in SCHEMA.features if each.event not in without)
        return Bundle(
            None,  # no files: everything is in memory
            manifest_pb2.Manifest(name="shop", version="v1"),
            replace(SCHEMA, event_types=events, features=features),
            vocabularies,
            catalogue,
            {each.name: each for each in spaces if each.name not in without},
        )

    return make


class Squash:
    """A plain ranker: each objective is a sum of squashed features; rows do not depend on one another."""

    objectives = ("click", "purchase")
    weights = (1.0, 0.5)

    def margins(self, features: np.ndarray) -> np.ndarray:
        squashed = np.tanh(np.nan_to_num(features.astype(np.float64)) / 50)
        weights = np.random.default_rng(5).normal(size=(2, features.shape[1]))
        return np.stack([(squashed * each).sum(axis=1) for each in weights], axis=1)

    def score(self, inputs: RankingInputs) -> np.ndarray:
        return self.margins(inputs.matrix())

    def relevance(self, margins: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-margins))


@pytest.fixture
def squash() -> Squash:
    return Squash()


@dataclass
class Served:
    """A server and a connection to it."""

    stub: RecommenderServiceStub
    service: RecommenderService
    registry: BundleRegistry
    server: RpcServer


@pytest.fixture
def over_grpc(run: Callable[..., Any], front: str) -> Callable[..., Any]:
    """`over_grpc(scenario, pipeline, store, **sections)` runs a scenario against a server of its own."""

    async def serving(scenario: Callable[..., Any], pipeline: Any, store: Any, sections: dict[str, Any]) -> Any:
        defaults = {
            "bundles": [{"path": "unused"}],
            "server": {"port": 0, "default_deadline_ms": 10_000, "front": front},
            "state": {"deadline_ms": 2000},
            "compute": {"threads": 2, "max_batch": 8},
        }
        configured = Settings(**{**defaults, **sections})
        registry: BundleRegistry[Any] = BundleRegistry()
        registry.add("main", pipeline)
        service = RecommenderService(registry, store, configured)
        server = RpcServer(service, configured.server)
        port = await server.listen()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                return await scenario(Served(RecommenderServiceStub(channel), service, registry, server))
        finally:
            await server.drain(5)

    def served(scenario: Callable[..., Any], pipeline: Any, store: Any, **sections: Any) -> Any:
        return run(serving(scenario, pipeline, store, sections), seconds=60, loop=uvloop.new_event_loop)

    return served


@pytest.fixture
def plain() -> Callable[..., Any]:
    """What of a response must not depend on when, how and with whom it was answered."""

    def without(response: Any) -> Any:
        copy = type(response)()
        copy.CopyFrom(response)
        for name in ("request_id", "recommendation_id", "times", "cache_hit"):
            if name in copy.DESCRIPTOR.fields_by_name:
                copy.ClearField(name)
        return copy

    return without
