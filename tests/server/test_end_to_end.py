"""The demo over gRPC, against the source models: what is served is what LightGBM, onnxruntime and exact search say."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import lightgbm
import numpy as np
import onnxruntime
import pytest

from recserve.exporters.demo.build import DemoPaths, build_demo
from recserve.exporters.demo.sizes import DemoSizes
from recserve.exporters.oracle import oracle_engines
from recserve.kernels.features import ColumnValues
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.registry import BundleRegistry
from recserve.server.bundle.snapshot import open_snapshot
from recserve.server.config import Settings, load_settings
from recserve.server.pipeline.assemble import tower_users
from recserve.server.pipeline.pipeline import Pipeline, open_pipeline
from recserve.server.pipeline.ranker import ENGINES, RankerEngine
from recserve.server.pipeline.towers import user_feed
from recserve.server.pipeline.types import History, Result, UserState
from recserve.server.rpc.convert import Converter
from recserve.v1 import recommender_pb2 as pb
from recserve.v1 import recommender_pb2_grpc

EXPECTED = {getattr(grpc.StatusCode, name) for name in ("OK", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")}
TINY = DemoSizes(
    items=600,
    users=200,
    events=20_000,
    factors=12,
    als_iterations=5,
    tower_epochs=5,
    train_requests=300,
    held_out_requests=200,
    trees=30,
)


@pytest.fixture(name="demo", scope="module")
def fixture_demo(tmp_path_factory: pytest.TempPathFactory) -> DemoPaths:
    return build_demo(tmp_path_factory.mktemp("demo") / "demo", sizes=TINY)


@pytest.fixture(name="address", scope="module")
def fixture_address(demo: DemoPaths, launch: Callable[..., Any]) -> Iterator[str]:
    server = launch("--config", str(demo.config), "--threads", "2")
    yield server.wait_until_ready()
    server.send(signal.SIGTERM)
    assert server.wait() == 0, server.log


@dataclass(frozen=True, eq=False)
class Offline:
    """The offline pipeline over the source models, with the server's reading of requests."""

    oracle: Pipeline
    converter: Converter
    states: dict[str, UserState]

    def answer(self, request: pb.RecommendRequest) -> Result:
        query = self.converter.recommend(request, "offline", time.monotonic() + 60).query
        (found,) = self.oracle.run([(query, self.state(request.user_id))])
        assert isinstance(found, Result), found
        return found

    def rank(self, request: pb.RankItemsRequest) -> Result:
        query = self.converter.rank(request, "offline", time.monotonic() + 60).query
        (found,) = self.oracle.run([(query, self.state(request.user_id))])
        assert isinstance(found, Result), found
        return found

    def state(self, user_id: str) -> UserState:
        nobody = ColumnValues.missing(self.oracle.bundle.schema.user_layout, 1)
        return self.states.get(user_id, UserState(known=False, columns=nobody))


@pytest.fixture(name="offline", scope="module")
def fixture_offline(demo: DemoPaths) -> Offline:
    bundle, snapshot = open_bundle(demo.bundle), open_snapshot(demo.snapshot)
    oracle = Pipeline(bundle, oracle_engines(bundle))
    registry: BundleRegistry[Pipeline] = BundleRegistry()
    registry.add("demo", oracle)
    settings: Settings = load_settings(file=demo.config, environment={}, flags=[])
    rows = np.arange(snapshot.size)
    states = {}
    for row, user_id in zip(rows, snapshot.user_ids(rows), strict=True):
        user = snapshot.state(int(row))
        history = History(user.keys, user.events, user.counts, user.last_us)
        states[user_id] = UserState(known=True, columns=user.columns, history=history)
    return Offline(oracle, Converter(registry, settings), states)


def golden_users(demo: DemoPaths) -> list[str]:
    stored = json.loads((demo.bundle / "golden" / "requests.json").read_text("utf-8"))
    return [each["user_id"] for each in stored]


def request_for(user_id: str, number: int) -> pb.RecommendRequest:
    """A request like no other: filters, sessions, devices, quotas and re-ranking come and go with the number."""
    draw = random.Random(number)
    request = pb.RecommendRequest(user_id=user_id, count=draw.choice([1, 5, 20, 50]))
    request.context.time.FromSeconds(1_782_000_000 + draw.randrange(10_000_000))
    if draw.random() < 0.5:
        request.context.device = draw.choice(["phone", "desktop", "toaster"])
        request.context.country = draw.choice(["DE", "FR", "US"])
    if draw.random() < 0.4:
        request.context.session_item_ids.extend(f"item-{draw.randrange(700):05d}" for _ in range(4))
    if draw.random() < 0.5:
        request.filter.price_max = draw.uniform(10, 300)
    if draw.random() < 0.3:
        request.filter.exclude_purchased = True
    if draw.random() < 0.3:
        request.rerank.mmr.relevance_weight = draw.random()
    if draw.random() < 0.3:
        request.rerank.objective_weights["purchase"] = 1.0
    if draw.random() < 0.3:
        request.sources.add(name=draw.choice(["ann", "als", "popular"]), weight=1.0)
    request.context.placement = draw.choice(["", "home", "cart"]) if request.context.country else ""
    return request


def as_rows(answer: pb.RecommendResponse | pb.RankItemsResponse) -> list[tuple[str, float, float]]:
    """Items with their scores and relevances, every bit of them."""
    return [(item.item_id, item.score, item.relevance) for item in answer.items]


def rows_of(offline: Offline, result: Result) -> list[tuple[str, float, float]]:
    ids = offline.oracle.bundle.catalogue.ids_of_rows(result.rows)
    assert result.relevance is not None
    return list(zip(ids, result.scores.tolist(), result.relevance.tolist(), strict=True))


def test_served_lists_equal_the_offline_pipelines_bit_by_bit(demo: DemoPaths, address: str, offline: Offline) -> None:
    users = golden_users(demo)
    with grpc.insecure_channel(address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        for number in range(3 * len(users)):
            request = request_for(users[number % len(users)], number)
            served = stub.Recommend(request, timeout=10)
            expected = offline.answer(request)
            assert as_rows(served) == rows_of(offline, expected), request
            assert served.cold_start == expected.cold_start
            for item, ranks in zip(served.items, expected.source_ranks, strict=True):
                proposed = [(n, r) for n, r in zip(expected.sources, ranks.tolist(), strict=True) if r]
                assert [(source.name, source.rank) for source in item.sources] == proposed


def test_ranked_items_equal_the_offline_pipelines(address: str, offline: Offline) -> None:
    draw = random.Random(9)
    with grpc.insecure_channel(address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        for user_id in [*list(offline.states)[:5], "nobody"]:
            item_ids = [f"item-{row:05d}" for row in draw.sample(range(700), 80)]  # a hundred of them do not exist
            request = pb.RankItemsRequest(user_id=user_id, item_ids=item_ids)
            request.context.time.FromSeconds(1_782_000_000)
            served = stub.RankItems(request, timeout=10)
            assert as_rows(served) == rows_of(offline, offline.rank(request))
            known = {item for item in item_ids if item < "item-00600"}
            assert set(served.unknown_item_ids) == set(item_ids) - known
            assert {item.item_id for item in served.items} <= known


@pytest.mark.parametrize("engine", ENGINES)
def test_margins_are_lightgbms_and_user_vectors_onnxruntimes(
    demo: DemoPaths, offline: Offline, engine: RankerEngine
) -> None:
    bundle = open_bundle(demo.bundle)
    pipeline = open_pipeline(bundle, ranker_engine=engine, allow_native_code=True)
    users = list(offline.states)[:50]
    work = [
        (offline.converter.recommend(request_for(user, row), "x", time.monotonic() + 60).query, offline.state(user))
        for row, user in enumerate(users)
    ]
    subjects, candidates = zip(*pipeline.retrieve(work), strict=True)
    inputs = pipeline.ranking_inputs(subjects, candidates)
    features = inputs.matrix()
    assert pipeline.engines.ranker is not None
    margins = pipeline.engines.ranker.score(inputs)
    assert margins.tobytes() == pipeline.engines.ranker.margins(features).tobytes()
    for column, forest in enumerate(bundle.manifest.forests):
        booster = lightgbm.Booster(model_file=str(bundle.file(forest.model)))
        assert margins[:, column].tobytes() == np.asarray(booster.predict(features, raw_score=True)).tobytes()

    tower = bundle.spaces["ann"].spec.user_tower
    session = onnxruntime.InferenceSession(bundle.file(tower.file), providers=["CPUExecutionProvider"])
    feed = user_feed(tower, bundle.schema.user_layout, bundle.catalogue.columns, tower_users(subjects))
    # A product of one row adds in another order than one of several: where users share runs, one alone runs as two.
    height = 2 if pipeline.engines.towers["ann"].shares_runs else 1
    for row, who in enumerate(subjects):
        (expected,) = session.run([tower.output], {name: values[[row] * height] for name, values in feed.items()})
        assert who.vectors["ann"].tobytes() == expected[0].tobytes()


def test_an_answer_does_not_depend_on_the_engine(demo: DemoPaths, offline: Offline) -> None:
    bundle = open_bundle(demo.bundle)
    work = [
        (offline.converter.recommend(request_for(user, row), "x", time.monotonic() + 60).query, offline.state(user))
        for row, user in enumerate([*list(offline.states)[:30], "nobody"])
    ]
    answers = [open_pipeline(bundle, ranker_engine=each, allow_native_code=True).run(work) for each in ENGINES]
    for one, other in zip(*answers, strict=True):
        assert isinstance(one, Result)
        assert isinstance(other, Result)
        assert rows_of(offline, one) == rows_of(offline, other)


def test_64_callers_with_leavers_and_latecomers_get_what_they_would_get_alone(address: str, offline: Offline) -> None:
    users = [*offline.states, "nobody"]
    requests = [request_for(users[number % len(users)], number) for number in range(64 * 6)]

    async def caller(stub: Any, mine: list[tuple[int, pb.RecommendRequest]]) -> list[tuple[int, Any]]:
        answers = []
        for number, request in mine:
            fate = random.Random(number).random()
            call = stub.Recommend(request, timeout=0.0005 if fate < 0.15 else 30)
            if fate > 0.85:
                await asyncio.sleep(0.002 * (1 - fate))
                call.cancel()
            code = await call.code() if not call.cancelled() else grpc.StatusCode.CANCELLED
            assert code in EXPECTED, code
            if code is grpc.StatusCode.OK:
                answers.append((number, await call))
        return answers

    async def scenario() -> tuple[dict[int, Any], dict[int, Any]]:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
            numbered = list(enumerate(requests))
            together = await asyncio.gather(*(caller(stub, numbered[start::64]) for start in range(64)))
            alone = {number: await stub.Recommend(request, timeout=10) for number, request in numbered}
        return dict(answer for answers in together for answer in answers), alone

    together, alone = asyncio.run(scenario())
    assert len(together) > 64 * 6 * 0.6
    for number, answer in together.items():
        assert as_rows(answer) == as_rows(alone[number]), requests[number]
