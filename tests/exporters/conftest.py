"""A small but complete export: towers, vectors, rankers, users; made once per session.

`shop` is what an ML engineer brings, as files: 400 items, 120 users with history, networks as ONNX, vectors as NumPy
files, forests as LightGBM files, and `shop.toml`, which names them all. The rankers are trained on the features that
the pipeline's own first half gives. `complete` is the export of it; `complete_copy` is one's own to damage.
"""

from __future__ import annotations

import datetime
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from recserve.exporters.catalogue import read_items
from recserve.exporters.export import export_bundle
from recserve.exporters.report import ExportReport
from recserve.exporters.snapshot import export_snapshot
from recserve.exporters.spec import BundleSpec, SnapshotSpec
from recserve.exporters.specfile import read_spec
from recserve.kernels.features import ColumnValues, FeatureProgram
from recserve.server.bundle.reader import Bundle, open_bundle
from recserve.server.bundle.snapshot import Snapshot, open_snapshot
from recserve.server.pipeline.assemble import assemble
from recserve.server.pipeline.golden import item_arrays
from recserve.server.pipeline.pipeline import Pipeline, open_pipeline
from recserve.server.pipeline.types import (
    Cap,
    Freshness,
    History,
    ItemFilter,
    Query,
    QueryKind,
    Quota,
    RerankOptions,
    UserState,
)

ITEMS, USERS, USERS_WITH_FACTORS = 400, 120, 100
ANN_DIM, ALS_DIM, CONTENT_DIM = 16, 8, 12
RECENT = 5
NOW = datetime.datetime(2025, 6, 1, 12, tzinfo=datetime.UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
CATEGORIES = ("books", "garden", "kitchen", "music", "office", "sports", "toys", "wine")
VOCABULARIES = {
    "category": CATEGORIES,
    "audience": ("f", "m", "x"),
    "device": ("desktop", "phone", "tablet"),
    "country": ("AT", "CH", "DE", "FR"),
}
SCHEMA: dict[str, Any] = {
    "schema_version": 1,
    "user": [
        {"name": "age", "type": "number"},
        {"name": "mean_price", "type": "number"},
        {"name": "gender", "type": "category", "vocabulary": "audience"},
        {"name": "signup", "type": "time"},
        {"name": "top_categories", "type": "categories", "vocabulary": "category"},
    ],
    "context": [
        {"name": "device", "type": "category"},
        {"name": "country", "type": "category"},
        {"name": "basket_value", "type": "number"},
    ],
    "item": [
        {"name": "price", "type": "number"},
        {"name": "popularity", "type": "number"},
        {"name": "category", "type": "category"},
        {"name": "audience", "type": "category"},
        {"name": "launch_time", "type": "time"},
    ],
    "event_types": ["view", "cart", "purchase"],
    "features": [
        {"name": "price", "op": "value", "inputs": ["item.price"]},
        {"name": "category", "op": "value", "inputs": ["item.category"]},
        {"name": "log_popularity", "op": "log1p", "inputs": ["item.popularity"]},
        {"name": "price_ratio", "op": "ratio", "inputs": ["item.price", "user.mean_price"]},
        {"name": "basket_gap", "op": "difference", "inputs": ["item.price", "context.basket_value"]},
        {"name": "audience_match", "op": "equal", "inputs": ["item.audience", "user.gender"]},
        {"name": "device_weekday", "op": "pair", "inputs": ["context.device", "context.weekday"]},
        {"name": "category_rank", "op": "rank_in", "inputs": ["item.category", "user.top_categories"]},
        {"name": "hour_sin", "op": "hour_sin", "inputs": ["context.time"]},
        {"name": "item_age", "op": "days_since", "inputs": ["item.launch_time"]},
        {"name": "ann_score", "op": "value", "inputs": ["source.ann.score"]},
        {"name": "als_rank", "op": "value", "inputs": ["source.als.rank"]},
        {"name": "als_dot", "op": "dot", "inputs": ["space.als"]},
        {"name": "bought_item", "op": "count", "inputs": ["history.item"], "event": "purchase"},
        {"name": "category_recency", "op": "days_since", "inputs": ["history.category"]},
        {"name": "category_share", "op": "share", "inputs": ["history.category"]},
        {"name": "content_max", "op": "max_similarity", "inputs": ["space.content"], "last": 5},
        {"name": "ann_mean", "op": "mean_similarity", "inputs": ["space.ann"], "last": 3},
        {"name": "together_score", "op": "value", "inputs": ["source.together.score"]},
    ],
}
TOML = """\
name = "shop"
version = "2025-06-01"
features = "features.json"
golden_requests = 12
golden_time = 2025-06-01T12:00:00Z

[catalogue]
items = "items.parquet"
columns = [
    { name = "category", kind = "category" },
    { name = "audience", kind = "category" },
    { name = "price", kind = "number" },
    { name = "popularity", kind = "number" },
    { name = "in_stock", kind = "flag" },
    { name = "regions", kind = "categories", vocabulary = "country" },
    { name = "launch_time", kind = "time" },
    { name = "title", kind = "string" },
    { name = "pages", kind = "integer" },
]

[catalogue.roles]
category = "category"
price = "price"
in_stock = "in_stock"
regions = "regions"
launch_time = "launch_time"
popularity = "popularity"

[catalogue.vocabularies]
category = ["books", "garden", "kitchen", "music", "office", "sports", "toys", "wine"]
audience = ["f", "m", "x"]
device = ["desktop", "phone", "tablet"]
country = ["AT", "CH", "DE", "FR"]

[[spaces]]
name = "ann"
normalized = true

[spaces.item_tower]
model = "item.onnx"
inputs = [
    { name = "numbers", columns = ["price", "popularity"], missing = 0.0 },
    { name = "category", columns = ["category"], dtype = "int64", rank = 1, offset = 1, missing = 0 },
]

[spaces.user_tower]
model = "user.onnx"

[[spaces.user_tower.inputs]]
name = "numbers"
columns = ["age", "mean_price", "signup"]
missing = 0.0

[[spaces.user_tower.inputs]]
name = "gender"
columns = ["gender"]
dtype = "int64"
rank = 1
offset = 1
missing = 0

[[spaces.user_tower.inputs]]
name = "mask"
kind = "recent_mask"
length = 5

[[spaces.user_tower.inputs]]
name = "recent"
kind = "recent_items"
columns = ["category"]
dtype = "int64"
length = 5
offset = 1
missing = 0

[[spaces]]
name = "als"
normalized = false
item_vectors = "als_items.npy"
user_vectors = "als_users.npy"
user_ids = "als_users.txt"

[[spaces]]
name = "content"
normalized = true
item_vectors = "content.npy"
"""
SOURCES = """
[sources]
similar_space = "content"
similar_items = 3
new_days = 60

[sources.events]
table = "events.parquet"
users = "users.parquet"

[sources.together]
table = "baskets.parquet"
top = 20
shrinkage = 2.0

[sources.trending]
days = 14

[[sources.popular_by]]
name = "popular_in_country"
columns = ["country"]
days = 60

[[sources.popular_by]]
name = "popular_with_peers"
columns = ["gender", "device"]
"""
RANKERS = """
[[rankers]]
objective = "click"
model = "click.txt"
tl2cgen = true

[[rankers]]
objective = "purchase"
model = "purchase.txt"
tl2cgen = true
weight = 2.0
calibration = "isotonic"
calibration_features = "calibration_features.npy"
calibration_labels = "calibration_labels.npy"
"""
USERS_TOML = """
[snapshot]
version = "2025-06-01"
users = "users.parquet"
history = { table = "history.parquet" }
"""
METRICS = """
[offline_metrics]
"click_ndcg@10" = 0.4321
"""


@dataclass(frozen=True, slots=True)
class Shop:
    """What an export is made of, as files.

    Attributes:
        root: their directory, with `shop.toml`.
        spec: as read from there.
        users: likewise.
    """

    root: Path
    spec: BundleSpec
    users: SnapshotSpec


@dataclass(frozen=True, slots=True)
class Complete:
    """An export of the shop, not to be changed.

    Attributes:
        shop: what it was made of.
        path: the bundle.
        snapshot: the users.
        report: what the export said.
        log: what it printed while it ran.
    """

    shop: Shop
    path: Path
    snapshot: Path
    report: ExportReport
    log: str


# --------------------------------------------------------------------------------------------------------------- tables


def item_table() -> pa.Table:
    rng = np.random.default_rng(1)
    rows = range(ITEMS)
    categories = rng.choice(len(CATEGORIES), ITEMS, p=np.arange(8, 0, -1) / 36)
    prices = np.round(rng.lognormal(3, 0.8, ITEMS), 2).tolist()
    launches = [NOW - datetime.timedelta(hours=int(hours)) for hours in rng.integers(0, 15_000, ITEMS)]
    regions = [rng.choice(VOCABULARIES["country"], size, replace=False).tolist() for size in rng.integers(0, 3, ITEMS)]
    return pa.table(
        {
            "item_id": [f"item-{row:03d}" for row in rows],
            "category": [None if row % 37 == 36 else CATEGORIES[categories[row]] for row in rows],
            "audience": [None if row % 3 else "fmx"[row % 7 % 3] for row in rows],
            "price": [None if row % 29 == 28 else prices[row] for row in rows],
            "popularity": np.floor(5000 / (1 + rng.permutation(ITEMS))),
            "in_stock": (rng.random(ITEMS) < 0.9).tolist(),
            "regions": pa.array(regions, pa.list_(pa.string())),
            "launch_time": pa.array([None if row % 41 == 40 else launches[row] for row in rows], pa.timestamp("us")),
            "title": [f"Thing № {row}" for row in rows],
            "pages": rng.integers(1, 900, ITEMS),
        }
    )


def user_table() -> pa.Table:
    rng = np.random.default_rng(2)
    rows = range(USERS)
    days = rng.integers(0, 1000, USERS)
    return pa.table(
        {
            "user_id": [f"user-{row:03d}" for row in rows],
            "age": [None if row % 9 == 8 else float(rng.integers(18, 80)) for row in rows],
            "mean_price": np.round(rng.lognormal(3, 0.4, USERS), 2),
            "gender": [None if row % 5 == 4 else "fmx"[row % 3] for row in rows],
            "signup": pa.array([NOW - datetime.timedelta(days=int(day)) for day in days], pa.timestamp("ms")),
            "top_categories": [
                rng.choice(CATEGORIES, size, replace=False).tolist() for size in rng.integers(0, 4, USERS)
            ],
        }
    )


def history_table() -> pa.Table:
    """Users 0 to 117 have a history, which also names an item that the catalogue does not have."""
    rng = np.random.default_rng(3)
    rows = [("user-000", "item-gone", "view", 1, NOW - datetime.timedelta(days=3))]
    for user in range(USERS - 2):
        for item in rng.choice(ITEMS, rng.integers(1, 20), replace=False):
            for event in ("view", "cart", "purchase")[: rng.integers(1, 4)]:
                when = NOW - datetime.timedelta(minutes=int(rng.integers(1, 200_000)))
                rows.append((f"user-{user:03d}", f"item-{item:03d}", event, int(rng.integers(1, 5)), when))
    names = ("user_id", "item_id", "event_type", "count", "last_time")
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def event_table() -> pa.Table:
    """Some of an item and of a user that nobody knows, some without a country."""
    rng = np.random.default_rng(8)
    count = 3000
    minutes = rng.integers(0, 200_000, count)
    countries = VOCABULARIES["country"]
    return pa.table(
        {
            "user_id": [f"user-{row:03d}" for row in rng.integers(0, USERS + 5, count)],
            "item_id": [f"item-{row:03d}" for row in np.floor(ITEMS * rng.random(count) ** 2).astype(int) + 3],
            "time": pa.array([NOW - datetime.timedelta(minutes=int(each)) for each in minutes], pa.timestamp("us")),
            "country": [None if pick == 4 else countries[pick] for pick in rng.integers(0, 5, count)],
            "device": [VOCABULARIES["device"][pick] for pick in rng.integers(0, 3, count)],
        }
    )


def basket_table() -> pa.Table:
    """Neighbours of a random item are bought together, and one item with everything."""
    rng = np.random.default_rng(9)
    lines = []
    for basket in range(600):
        centre = int(rng.integers(0, ITEMS))
        picked = (centre + rng.integers(-4, 5, rng.integers(1, 7))) % ITEMS
        lines += [(f"basket-{basket}", f"item-{row:03d}") for row in {*picked.tolist(), 5}]
    baskets, rows = zip(*lines, strict=True)
    return pa.table({"basket_id": list(baskets), "item_id": list(rows)})


# --------------------------------------------------------------------------------------------------------------- models


def save_network(
    path: Path,
    inputs: Mapping[str, tuple[int, list[int | None]]],
    weights: Mapping[str, NDArray[np.generic]],
    nodes: Sequence[onnx.NodeProto],
) -> None:
    """Write a network whose output `vector` is `hidden` @ `out`, normalised."""
    last = [
        helper.make_node("Tanh", ["hidden"], ["activated"]),
        helper.make_node("MatMul", ["activated", "out"], ["raw"]),
        helper.make_node("LpNormalization", ["raw"], ["vector"], axis=1, p=2),
    ]
    graph = helper.make_graph(
        [*nodes, *last],
        "tower",
        [helper.make_tensor_value_info(name, kind, [None, *shape]) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, [None, ANN_DIM])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def save_item_tower(path: Path) -> None:
    rng = np.random.default_rng(4)
    node = helper.make_node
    save_network(
        path,
        {"numbers": (TensorProto.FLOAT, [2]), "category": (TensorProto.INT64, [])},
        {
            "w": (rng.normal(size=(2, 32)) * [[0.02], [0.0005]]).astype(np.float32),
            "b": rng.normal(size=32).astype(np.float32),
            "categories": rng.normal(size=(len(CATEGORIES) + 1, 32)).astype(np.float32),
            "out": rng.normal(size=(32, ANN_DIM)).astype(np.float32),
        },
        [
            node("Gemm", ["numbers", "w", "b"], ["dense"]),
            node("Gather", ["categories", "category"], ["embedded"]),
            node("Add", ["dense", "embedded"], ["hidden"]),
        ],
    )


def save_user_tower(path: Path, seed: int = 5) -> None:
    """The mean embedding of the last items' categories, by mask, with numbers and gender."""
    rng = np.random.default_rng(seed)
    node = helper.make_node
    save_network(
        path,
        {
            "numbers": (TensorProto.FLOAT, [3]),
            "gender": (TensorProto.INT64, []),
            "recent": (TensorProto.INT64, [RECENT]),
            "mask": (TensorProto.FLOAT, [RECENT]),
        },
        {
            "w": (rng.normal(size=(3, 32)) * [[0.01], [0.01], [0.001]]).astype(np.float32),
            "b": rng.normal(size=32).astype(np.float32),
            "genders": rng.normal(size=(4, 32)).astype(np.float32),
            "categories": rng.normal(size=(len(CATEGORIES) + 1, 32)).astype(np.float32),
            "out": np.random.default_rng(4).normal(size=(32, ANN_DIM)).astype(np.float32),
            "one": np.ones(1, np.float32),
            "across": np.array([1], np.int64),
            "last": np.array([2], np.int64),
        },
        [
            node("Gemm", ["numbers", "w", "b"], ["dense"]),
            node("Gather", ["genders", "gender"], ["of gender"]),
            node("Gather", ["categories", "recent"], ["each"]),
            node("Unsqueeze", ["mask", "last"], ["wide mask"]),
            node("Mul", ["each", "wide mask"], ["held"]),
            node("ReduceSum", ["held", "across"], ["sum"], keepdims=0),
            node("ReduceSum", ["mask", "across"], ["count"], keepdims=1),
            node("Max", ["count", "one"], ["at least one"]),
            node("Div", ["sum", "at least one"], ["mean"]),
            node("Sum", ["dense", "of gender", "mean"], ["hidden"]),
        ],
    )


def save_vectors(root: Path) -> None:
    rng = np.random.default_rng(6)
    content = rng.normal(size=(ITEMS, CONTENT_DIM))
    np.save(root / "als_items.npy", rng.normal(size=(ITEMS, ALS_DIM)).astype(np.float32))
    np.save(root / "als_users.npy", rng.normal(size=(USERS_WITH_FACTORS, ALS_DIM)).astype(np.float32))
    np.save(root / "content.npy", (content / np.linalg.norm(content, axis=1, keepdims=True)).astype(np.float32))
    (root / "als_users.txt").write_text("".join(f"user-{row:03d}\n" for row in range(USERS_WITH_FACTORS)))


def training_rows(bundle: Path, snapshot: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features of candidates that the bundle's own sources propose, and how many each request has."""
    pipeline, users = open_pipeline(open_bundle(bundle)), open_snapshot(snapshot)
    opened = pipeline.bundle
    work = [(random_query(pipeline, users, row, row), state_of(users, row)) for row in range(USERS)]
    subjects, candidates = zip(*pipeline.retrieve(work), strict=True)
    dims = {name: space.dim for name, space in opened.spaces.items()}
    batch = assemble(opened.schema, subjects, candidates, dims)
    program = FeatureProgram(opened.schema, opened.cardinalities)
    return program.compute(item_arrays(opened), batch), np.diff(batch.offsets)


def save_rankers(root: Path, features: NDArray[np.float32], groups: NDArray[np.int64]) -> None:
    """A binary forest with categories for clicks, and lambdarank for purchases with rows that calibrate it."""
    rng = np.random.default_rng(7)
    columns = {feature["name"]: np.nan_to_num(features[:, i]) for i, feature in enumerate(SCHEMA["features"])}
    taste = columns["als_dot"] + 2 * columns["audience_match"] - 0.1 * columns["category_rank"]
    taste += 0.3 * columns["log_popularity"] + (columns["category"] == 3) - np.abs(columns["price_ratio"] - 1)
    clicked = (taste + rng.normal(size=taste.size) > np.quantile(taste, 0.8)).astype(float)
    bought = clicked * (rng.random(taste.size) < 0.6)
    common = {"num_leaves": 15, "min_data_in_leaf": 5, "verbose": -1, "num_threads": 1, "seed": 1}
    names = [feature["name"] for feature in SCHEMA["features"]]
    for objective, labels, settings in (
        ("click", clicked, {"objective": "binary"}),
        ("purchase", bought, {"objective": "lambdarank"}),
    ):
        data = lightgbm.Dataset(
            features,
            labels,
            group=groups if objective == "purchase" else None,
            feature_name=names,
            categorical_feature=["category", "device_weekday"] if objective == "click" else [],
            params=common,
        )
        lightgbm.train({**common, **settings}, data, 12).save_model(root / f"{objective}.txt")
    np.save(root / "calibration_features.npy", features)
    np.save(root / "calibration_labels.npy", bought)


# ------------------------------------------------------------------------------------------------------------- requests


def state_of(snapshot: Snapshot, row: int) -> UserState:
    user = snapshot.state(row)
    history = History(user.keys, user.events, user.counts, user.last_us)
    return UserState(known=True, columns=user.columns, history=history)


def random_query(pipeline: Pipeline, snapshot: Snapshot, row: int, seed: int) -> Query:
    """A user's request with random sources, situation, filter and re-ranking."""
    rng, bundle = np.random.default_rng(seed), pipeline.bundle
    weights = rng.uniform(0.1, 1, len(pipeline.sources)) * (rng.random(len(pipeline.sources)) < 0.8)
    weights[rng.integers(weights.size)] = 1.0
    return Query(
        kind=QueryKind.RECOMMEND,
        user_id=snapshot.user_ids(np.array([row]))[0],
        time_us=NOW_US + int(rng.integers(0, 7 * 86_400)) * 1_000_000,
        count=int(rng.integers(1, 40)),
        context=random_context(bundle, rng),
        session_rows=rng.permutation(ITEMS)[: rng.integers(0, 4)].astype(np.int64),
        filter=ItemFilter(
            price_max=float(rng.uniform(10, 60)) if rng.random() < 0.3 else None,
            in_stock=bool(rng.random() < 0.5),
            exclude_purchased=bool(rng.random() < 0.3),
        ),
        rerank=RerankOptions(
            caps=(Cap("category", int(rng.integers(1, 5)), window=10, sliding=True),) if rng.random() < 0.5 else (),
            mmr_weight=float(rng.random()) if rng.random() < 0.5 else None,
            diversity_space="content",
            freshness=Freshness(0.3, 30.0) if rng.random() < 0.5 else None,
        ),
        candidates=int(rng.integers(20, 120)),
        quotas=tuple(Quota(name, float(weight)) for name, weight in zip(pipeline.sources, weights, strict=True)),
    )


def random_context(bundle: Bundle, rng: np.random.Generator) -> ColumnValues:
    values: dict[str, float | int] = {
        "device": int(rng.integers(3)),
        "country": int(rng.integers(4)),
        "basket_value": float(rng.gamma(2, 20)),
    }
    kept = {name: value for name, value in values.items() if rng.random() < 0.8}
    where = bundle.schema.context_layout
    return ColumnValues.missing(where, 1).with_overrides(where, kept)


# ------------------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """What is exported, with rankers trained on the features of a first export without them."""
    root = tmp_path_factory.mktemp("shop")
    (root / "features.json").write_text(json.dumps(SCHEMA))
    pa.parquet.write_table(item_table(), root / "items.parquet")
    pa.parquet.write_table(user_table(), root / "users.parquet")
    pa.parquet.write_table(history_table(), root / "history.parquet")
    pa.parquet.write_table(event_table(), root / "events.parquet")
    pa.parquet.write_table(basket_table(), root / "baskets.parquet")
    save_item_tower(root / "item.onnx")
    save_user_tower(root / "user.onnx")
    save_vectors(root)
    (root / "untrained.toml").write_text(TOML + SOURCES + USERS_TOML)
    spec, users = read_spec(root / "untrained.toml")
    assert users is not None
    console = Console(file=io.StringIO())
    snapshot = export_snapshot(users, spec.features, VOCABULARIES, root / "untrained/snapshot")
    export_bundle(spec, root / "untrained/bundle", snapshot=snapshot, console=console)
    save_rankers(root, *training_rows(root / "untrained/bundle", snapshot))
    (root / "shop.toml").write_text(TOML + RANKERS + SOURCES + USERS_TOML + METRICS)
    spec, users = read_spec(root / "shop.toml")
    assert users is not None
    return Shop(root, spec, users)


@pytest.fixture(scope="session")
def complete(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Complete:
    """The shop's bundle and snapshot."""
    root, log = tmp_path_factory.mktemp("complete"), io.StringIO()
    vocabularies = read_items(shop.spec.catalogue, shop.spec.features).vocabularies
    snapshot = export_snapshot(shop.users, shop.spec.features, vocabularies, root / "snapshot")
    report = export_bundle(shop.spec, root / "bundle", snapshot=snapshot, console=Console(file=log))
    return Complete(shop, root / "bundle", snapshot, report, log.getvalue())


@pytest.fixture(scope="session")
def complete_bundle(complete: Complete) -> Path:
    """The shop's bundle, not to be changed."""
    return complete.path


@pytest.fixture(scope="session")
def shop_work() -> Callable[[Pipeline, Snapshot, int, int], tuple[Query, UserState]]:
    """A random request of the user in a row of the snapshot, by pipeline, snapshot, row and seed."""
    return lambda pipeline, snapshot, row, seed: (random_query(pipeline, snapshot, row, seed), state_of(snapshot, row))


@pytest.fixture
def quiet() -> Console:
    """A console that nobody reads."""
    return Console(file=io.StringIO())


@pytest.fixture
def complete_copy(complete: Complete, tmp_path: Path) -> Path:
    """The shop's bundle, one's own to damage."""
    return shutil.copytree(complete.path, tmp_path / "copy")
