"""A server maps its bundle: what it holds for itself does not grow with the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest

from recserve.exporters.export import export_bundle
from recserve.exporters.spec import BundleSpec, CatalogueSpec, IndexSpec, ItemColumn, Roles, SpaceSpec
from recserve.kernels.features import FeatureSchema
from recserve.loadtest.clusters import clustered_vectors
from recserve.v1 import recommender_pb2 as pb
from recserve.v1 import recommender_pb2_grpc

ITEMS, LIMIT_MB = 1_000_000, 400


@pytest.fixture(name="million_items")
def fixture_million_items(tmp_path: Path) -> Path:
    """A bundle of a million items with 128 dimensions, searched exactly."""
    random = np.random.default_rng(5)
    vectors, _ = clustered_vectors(ITEMS, 1, random)
    np.save(tmp_path / "vectors.npy", vectors)
    table = pa.table(
        {
            "item_id": pa.array([f"item-{row:07d}" for row in range(ITEMS)]),
            "price": random.exponential(30, ITEMS),
            "category": pa.array([f"c{code}" for code in random.integers(0, 500, ITEMS)]),
            "popularity": random.pareto(1.2, ITEMS),
        }
    )
    spec = BundleSpec(
        name="million",
        version="1",
        catalogue=CatalogueSpec(
            items=table,
            columns=[
                ItemColumn(name="price", kind="number"),
                ItemColumn(name="category", kind="category"),
                ItemColumn(name="popularity", kind="number"),
            ],
            roles=Roles(price="price", category="category", popularity="popularity"),
        ),
        features=FeatureSchema.from_json(
            '{"schema_version": 1, "user": [], "context": [], "item": [], "event_types": [], "features": []}'
        ),
        # Without user vectors the space would serve similarity only.
        spaces=[
            SpaceSpec(
                name="ann",
                normalized=True,
                item_vectors=tmp_path / "vectors.npy",
                user_vectors=vectors[:1],
                user_ids=["user-0"],
                index=IndexSpec(kind="exact"),
            )
        ],
        golden_requests=2,
    )
    del table, vectors
    return export_bundle(spec, tmp_path / "bundle").path


@pytest.mark.timeout(900)
def test_a_million_items_are_mapped_not_copied(million_items: Path, start_server: Callable[..., Any]) -> None:
    server = start_server("--bundle", str(million_items))
    with grpc.insecure_channel(server.wait_until_ready()) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        for number in range(30):
            answer = stub.Recommend(
                pb.RecommendRequest(
                    user_id="user-0",
                    count=20,
                    context=pb.Context(session_item_ids=[f"item-{row:07d}" for row in range(number, number + 3)]),
                    filter=pb.Filter(price_max=40.0, in_stock=False),
                    sources=[pb.SourceQuota(name="ann", weight=1)],
                ),
                timeout=10,
            )
            assert len(answer.items) == 20
            assert answer.items[0].sources[0].name == "ann"
    memory = rollup(server.process.pid)
    assert memory["Anonymous"] < LIMIT_MB, memory
    assert memory["Rss"] - memory["Anonymous"] > ITEMS * 128 * 4 / 1e6  # the vectors were read, from the mapped file


def rollup(pid: int) -> dict[str, float]:
    """Memory of a process by kind, in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()[1:]
    return {name: int(rest.split()[0]) * 1024 / 1e6 for name, rest in (line.split(":", 1) for line in lines)}
