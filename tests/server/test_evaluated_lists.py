"""What is evaluated is what is served: the lists of the evaluation are those that gRPC answers."""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pytest

from recserve.exporters.evaluation.answers import TOP, answer
from recserve.exporters.evaluation.requests import make_requests
from recserve.exporters.evaluation.truth import read_truth
from recserve.exporters.evaluation.users import open_users, purchase_code
from recserve.exporters.spec import EvaluationMode, EvaluationSpec
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.snapshot import open_snapshot
from recserve.server.pipeline.pipeline import open_pipeline
from recserve.server.pipeline.settings import PlacementSettings, SourceSettings
from recserve.v1 import recommender_pb2 as pb
from recserve.v1 import recommender_pb2_grpc

PLACEMENT = PlacementSettings(
    sources=(
        SourceSettings(name="als", weight=0.7),
        SourceSettings(name="popular", weight=0.2),
        SourceSettings(name="again", weight=0.1),
    )
)
"""That of the server behind `address`."""


@pytest.mark.parametrize("mode", ["all", "first"])
def test_evaluated_lists_are_served_lists(
    address: str, tiny_originals: Path, tiny_users: pa.Table, mode: EvaluationMode
) -> None:
    pipeline = open_pipeline(open_bundle(tiny_originals / "bundle"))
    snapshot = open_snapshot(tiny_originals / "snapshot")
    ids = [*tiny_users.column("user_id").to_pylist(), "nobody"]
    truth = pa.table({"user_id": ids, "item_id": [f"item-{row:03d}" for row in range(len(ids))]})
    time_us = 1_748_779_200_000_000
    spec = EvaluationSpec(truth=truth, time_us=time_us, placement=PLACEMENT)
    users = open_users(read_truth(spec, pipeline.bundle.catalogue), snapshot, pipeline.bundle, spec)
    requests = make_requests(pipeline, PLACEMENT, mode, time_us)
    found = answer(pipeline, requests, users, purchase_code(pipeline.bundle), lambda _: None)
    with grpc.insecure_channel(address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        for user, rows in zip(users.ids, found.lists["full"], strict=True):
            request = pb.RecommendRequest(user_id=user)
            request.context.time.FromMicroseconds(time_us)
            if mode == "first":
                request.filter.exclude_purchased = True
            served = [item.item_id for item in stub.Recommend(request, timeout=30).items]
            assert served[:TOP] == pipeline.bundle.catalogue.ids_of_rows(rows[rows >= 0])
            assert np.count_nonzero(rows >= 0) == TOP
