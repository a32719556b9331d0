"""Small real artifacts for all tests: a bundle that is searched exactly and has no ranker, and its user snapshot.

`tiny_bundle()` and `tiny_snapshot()` make one and return its directory; keyword arguments replace parts. Everything is
seeded: two bundles of the same arguments hold the same bytes but for the time of their making.

200 items `item-000`, ... with category, price, stock, regions, flags, launch time, popularity and more; 50 users
`user-00`, ... with columns and a history of up to 12 items; spaces `als` (8 dimensions) and `content` (16, normalised),
both with vectors for the first 40 users. User `user-49` has no history.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters.catalogue import read_items, write_catalogue
from recserve.exporters.snapshot import export_snapshot
from recserve.exporters.spec import CatalogueSpec, HistorySpec, ItemColumn, Roles, SnapshotSpec, TableSource
from recserve.exporters.writer import BundleWriter
from recserve.kernels.features import FeatureSchema
from recserve.server.bundle.files import file_sha256
from recserve.server.bundle.strings import keys_of

ITEMS = 200
USERS = 50
USERS_WITH_VECTORS = 40
NOW = datetime.datetime(2025, 6, 1, 12, tzinfo=datetime.UTC)
CATEGORIES = ("books", "garden", "kitchen", "music", "office", "sports", "toys", "wine")
BRANDS = ("Acme", "Böhm", "Čapek", "東屋")
COUNTRIES = ("AT", "CH", "DE", "FR", "NA")
VOCABULARIES = {
    "device": ("desktop", "phone", "tablet"),
    "gender": ("f", "m", "x"),
    "country": COUNTRIES,
    "flag": ("adult", "fragile"),
}
COLUMNS = (
    ItemColumn(name="category", kind="category"),
    ItemColumn(name="brand", kind="category"),
    ItemColumn(name="price", kind="number"),
    ItemColumn(name="in_stock", kind="flag"),
    ItemColumn(name="regions", kind="categories", vocabulary="country"),
    ItemColumn(name="flags", kind="categories", vocabulary="flag"),
    ItemColumn(name="launch_time", kind="time"),
    ItemColumn(name="popularity", kind="number"),
    ItemColumn(name="title", kind="string"),
    ItemColumn(name="pages", kind="integer"),
)
ROLES = Roles(
    category="category",
    price="price",
    in_stock="in_stock",
    regions="regions",
    flags="flags",
    launch_time="launch_time",
    popularity="popularity",
)
SCHEMA: dict[str, Any] = {
    "schema_version": 1,
    "user": [
        {"name": "age", "type": "number"},
        {"name": "gender", "type": "category"},
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
        {"name": "category", "type": "category"},
        {"name": "launch_time", "type": "time"},
        {"name": "popularity", "type": "number"},
    ],
    "event_types": ["view", "cart", "purchase"],
    "features": [
        {"name": "price", "op": "value", "inputs": ["item.price"]},
        {"name": "category_rank", "op": "rank_in", "inputs": ["item.category", "user.top_categories"]},
        {"name": "device_x_weekday", "op": "pair", "inputs": ["context.device", "context.weekday"]},
        {"name": "item_age", "op": "days_since", "inputs": ["item.launch_time"]},
        {"name": "als_score", "op": "value", "inputs": ["source.als.score"]},
        {"name": "als_dot", "op": "dot", "inputs": ["space.als"]},
        {"name": "bought_category", "op": "count", "inputs": ["history.category"], "event": "purchase"},
        {"name": "similar", "op": "max_similarity", "inputs": ["space.content"], "last": 5},
    ],
}


class MakeBundle(Protocol):
    """Makes a bundle and returns its directory; what is not given is as the module's docstring says.

    Args:
        target: the directory; by default one below the test's own.
        name, version: in the manifest.
        items: the item table.
        columns, roles, vocabularies: as in `CatalogueSpec`.
        schema: the text of features.json, as a document.
        edit: changes the manifest before it is written.
        check: as in `BundleWriter.commit`.
    """

    def __call__(
        self,
        *,
        target: Path | None = None,
        name: str = "tiny",
        version: str = "1",
        items: TableSource | None = None,
        columns: Sequence[ItemColumn] = COLUMNS,
        roles: Roles = ROLES,
        vocabularies: Mapping[str, Sequence[str]] = VOCABULARIES,
        schema: Mapping[str, Any] = SCHEMA,
        edit: Callable[[manifest_pb2.Manifest], object] | None = None,
        check: Callable[[Path], object] | None = None,
    ) -> Path: ...


class MakeSnapshot(Protocol):
    """Makes the snapshot of the tiny users and returns its directory; keyword arguments replace parts."""

    def __call__(
        self,
        *,
        target: Path | None = None,
        version: str = "1",
        users: pa.Table | None = None,
        history: pa.Table | None = None,
        schema: Mapping[str, Any] = SCHEMA,
    ) -> Path: ...


def item_ids(count: int = ITEMS) -> list[str]:
    return [f"item-{row:03d}" for row in range(count)]


def user_ids() -> list[str]:
    return [f"user-{row:02d}" for row in range(USERS)]


def item_table(count: int = ITEMS) -> pa.Table:
    """Every eleventh category, thirteenth price and seventh launch time is missing."""
    rng = np.random.default_rng(1)
    rows = range(count)
    prices = np.round(rng.lognormal(3, 1, count), 2).tolist()
    launches = [NOW - datetime.timedelta(days=int(days)) for days in rng.integers(0, 700, count)]
    stock = (rng.random(count) < 0.85).tolist()
    regions = [rng.choice(COUNTRIES, size, replace=False).tolist() for size in rng.integers(0, 4, count)]
    return pa.table(
        {
            "item_id": item_ids(count),
            "category": [None if row % 11 == 10 else CATEGORIES[row % len(CATEGORIES)] for row in rows],
            "brand": [BRANDS[pick] for pick in rng.integers(0, len(BRANDS), count)],
            "price": [None if row % 13 == 12 else prices[row] for row in rows],
            "in_stock": stock,
            "regions": pa.array(regions, pa.list_(pa.string())),
            "flags": pa.array([["adult"] if row % 20 == 0 else [] for row in rows], pa.list_(pa.string())),
            "launch_time": pa.array(
                [None if row % 7 == 6 else launches[row] for row in rows], pa.timestamp("us", tz="UTC")
            ),
            "popularity": np.floor(1000 / (1 + rng.permutation(count))),
            "title": [f"Thing № {row}" for row in rows],
            "pages": rng.integers(1, 900, count),
        }
    )


def user_table() -> pa.Table:
    rng = np.random.default_rng(2)
    days = rng.integers(0, 1000, USERS)
    return pa.table(
        {
            "user_id": user_ids(),
            "age": [None if row % 9 == 8 else float(18 + row) for row in range(USERS)],
            "gender": [None if row % 5 == 4 else "fmx"[row % 3] for row in range(USERS)],
            "signup": pa.array([NOW - datetime.timedelta(days=int(day)) for day in days], pa.timestamp("ms")),
            "top_categories": [
                rng.choice(CATEGORIES, size, replace=False).tolist() for size in rng.integers(0, 4, USERS)
            ],
        }
    )


def history_table() -> pa.Table:
    rng = np.random.default_rng(3)
    rows = []
    for user in user_ids()[:-1]:
        for item in rng.choice(ITEMS, rng.integers(1, 13), replace=False):
            for event in ("view", "cart", "purchase")[: rng.integers(1, 4)]:
                when = NOW - datetime.timedelta(minutes=int(rng.integers(1, 200_000)))
                rows.append((user, f"item-{item:03d}", event, int(rng.integers(1, 5)), when))
    names = ("user_id", "item_id", "event_type", "count", "last_time")
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def vectors(seed: int, rows: int, dim: int, *, normalized: bool) -> NDArray[np.float32]:
    found = np.random.default_rng(seed).normal(size=(rows, dim))
    if normalized:
        found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found.astype(np.float32)


def write_space(writer: BundleWriter, name: str, dim: int, items: int, *, normalized: bool) -> manifest_pb2.Space:
    keys = keys_of(user_ids()[:USERS_WITH_VECTORS])
    users = vectors(dim + 1, USERS_WITH_VECTORS, dim, normalized=normalized)
    order = np.argsort(keys)
    writer.array(f"spaces/{name}/vectors.npy", vectors(dim, items, dim, normalized=normalized))
    writer.array(f"spaces/{name}/user_vectors.npy", users[order])
    writer.array(f"spaces/{name}/user_keys.npy", keys[order])
    return manifest_pb2.Space(
        name=name,
        dim=dim,
        metric=manifest_pb2.INNER_PRODUCT,
        normalized=normalized,
        index=manifest_pb2.Index(kind=manifest_pb2.EXACT, recall=1.0, recall_k=100),
        user_vectors=USERS_WITH_VECTORS,
    )


def make_bundle(
    *,
    target: Path,
    name: str = "tiny",
    version: str = "1",
    items: TableSource | None = None,
    columns: Sequence[ItemColumn] = COLUMNS,
    roles: Roles = ROLES,
    vocabularies: Mapping[str, Sequence[str]] = VOCABULARIES,
    schema: Mapping[str, Any] = SCHEMA,
    edit: Callable[[manifest_pb2.Manifest], object] | None = None,
    check: Callable[[Path], object] | None = None,
) -> Path:
    table = item_table() if items is None else items
    features = FeatureSchema.from_json(json.dumps(schema))
    spec = CatalogueSpec(items=table, columns=columns, roles=roles, vocabularies=vocabularies)
    with BundleWriter(target) as writer:
        read = read_items(spec, features)
        catalogue = write_catalogue(writer, spec, features, read)
        writer.text("features.json", features.to_json())
        manifest = manifest_pb2.Manifest(
            name=name,
            version=version,
            catalogue=catalogue,
            spaces=[
                write_space(writer, "als", 8, catalogue.items, normalized=False),
                write_space(writer, "content", 16, catalogue.items, normalized=True),
            ],
            features=manifest_pb2.Features(
                count=len(features.features),
                schema_hash=features.schema_hash(read.vocabularies),
                user_hash=features.user_hash(read.vocabularies),
            ),
        )
        if edit:
            edit(manifest)
        return writer.commit(manifest, check)


def make_snapshot(
    *,
    target: Path,
    version: str = "1",
    users: pa.Table | None = None,
    history: pa.Table | None = None,
    schema: Mapping[str, Any] = SCHEMA,
) -> Path:
    spec = SnapshotSpec(
        version=version,
        users=user_table() if users is None else users,
        history=HistorySpec(table=history_table() if history is None else history),
    )
    vocabularies = {**VOCABULARIES, "category": CATEGORIES, "brand": BRANDS}
    return export_snapshot(spec, FeatureSchema.from_json(json.dumps(schema)), vocabularies, target)


@pytest.fixture(scope="session")
def tiny_originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unchanged bundle and snapshot; copying them is quicker than an export, which waits for the disk."""
    root = tmp_path_factory.mktemp("tiny")
    make_bundle(target=root / "bundle")
    make_snapshot(target=root / "snapshot")
    return root


@pytest.fixture
def tiny_bundle(tmp_path: Path, tiny_originals: Path) -> MakeBundle:
    """Makes bundles below the test's own directory; see `MakeBundle`."""

    def make(*, target: Path | None = None, **changes: Any) -> Path:
        target = target or tmp_path / "bundle"
        return make_bundle(target=target, **changes) if changes else shutil.copytree(tiny_originals / "bundle", target)

    return make


@pytest.fixture
def tiny_snapshot(tmp_path: Path, tiny_originals: Path) -> MakeSnapshot:
    """Makes snapshots below the test's own directory; see `MakeSnapshot`."""

    def make(*, target: Path | None = None, **changes: Any) -> Path:
        target = target or tmp_path / "snapshot"
        if not changes:
            return shutil.copytree(tiny_originals / "snapshot", target)
        return make_snapshot(target=target, **changes)

    return make


@pytest.fixture
def tiny_items() -> pa.Table:
    """The item table of `tiny_bundle`."""
    return item_table()


@pytest.fixture
def tiny_columns() -> Sequence[ItemColumn]:
    """The columns of `tiny_bundle`."""
    return COLUMNS


@pytest.fixture
def tiny_users() -> pa.Table:
    """The user table of `tiny_snapshot`."""
    return user_table()


@pytest.fixture
def tiny_history() -> pa.Table:
    """The history table of `tiny_snapshot`."""
    return history_table()


@pytest.fixture
def tiny_roles() -> Callable[..., Roles]:
    """The roles of `tiny_bundle` with changes."""
    return lambda **changes: dataclasses.replace(ROLES, **changes)


@pytest.fixture
def tiny_schema() -> dict[str, Any]:
    """The features.json of `tiny_bundle`, as a document of one's own."""
    return copy.deepcopy(SCHEMA)


@pytest.fixture
def resign() -> Callable[[Path], None]:
    """Bring the sizes and checksums of a changed artifact's manifest up to date, so that deeper checks are reached."""

    def update(root: Path) -> None:
        path = next(root / name for name in ("manifest.json", "snapshot.json") if (root / name).exists())
        manifest = json.loads(path.read_text())
        files = [file for file in root.rglob("*") if file.is_file() and file != path]
        manifest["files"] = {
            file.relative_to(root).as_posix(): {"bytes": str(file.stat().st_size), "sha256": file_sha256(file)}
            for file in files
        }
        path.write_text(json.dumps(manifest))

    return update
