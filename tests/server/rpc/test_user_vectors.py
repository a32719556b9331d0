"""Users' vectors that are kept, warmed and made together: what is served is what would be made afresh."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from onnx import TensorProto, helper, numpy_helper

from recserve.bundle.v1 import manifest_pb2
from recserve.bundle.v1.manifest_pb2 import COLUMNS, FLOAT32, INT64, RECENT_ITEMS, TowerInput
from recserve.kernels.features import ColumnValues
from recserve.server.bundle.reader import Bundle, open_bundle
from recserve.server.bundle.snapshot import open_snapshot
from recserve.server.config import Settings, UserVectorCacheSettings
from recserve.server.loading import warm
from recserve.server.pipeline import towers
from recserve.server.pipeline.assemble import subject, tower_users
from recserve.server.pipeline.cache import NOTHING_KEPT, CacheLimits
from recserve.server.pipeline.errors import InvalidRequestError
from recserve.server.pipeline.pipeline import Pipeline, open_engines
from recserve.server.pipeline.search import Found, Mask, Searcher, Vectors
from recserve.server.pipeline.towers import SHARED_ROWS, TowerOutputError, UserTower, open_session
from recserve.server.pipeline.types import Query, QueryKind, Quota, UserState
from recserve.server.state.embedded import EmbeddedStore, Users, open_users
from recserve.v1 import recommender_pb2 as pb

NOW_S = 1_748_779_200
DIM = 8


def network(path: Path, steepness: float) -> Path:
    """`numbers` [B, 1], `codes` [B, 1] and `recent` [B, 3], through 600 hidden numbers; and `numbers` times so much."""
    rng = np.random.default_rng(6)
    constants = {
        "w": rng.normal(size=(1, 600)).astype(np.float32) / 30,
        "g": rng.normal(size=(4, 600)).astype(np.float32),
        "e": rng.normal(size=(201, 600)).astype(np.float32),
        "v": rng.normal(size=(600, DIM)).astype(np.float32) / 10,
        "axis": np.array([1]),
        "k": np.full((1, DIM), steepness, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["numbers", "w"], ["a"]),
        helper.make_node("Gather", ["g", "codes"], ["b3"]),
        helper.make_node("ReduceSum", ["b3", "axis"], ["b"], keepdims=0),
        helper.make_node("Gather", ["e", "recent"], ["c3"]),
        helper.make_node("ReduceSum", ["c3", "axis"], ["c"], keepdims=0),
        helper.make_node("Sum", ["a", "b", "c"], ["s"]),
        helper.make_node("Tanh", ["s"], ["t"]),
        helper.make_node("MatMul", ["t", "v"], ["bounded"]),
        helper.make_node("Mul", ["numbers", "k"], ["steep"]),
        helper.make_node("Add", ["bounded", "steep"], ["out"]),
    ]
    inputs = [
        helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["batch", 1]),
        helper.make_tensor_value_info("codes", TensorProto.INT64, ["batch", 1]),
        helper.make_tensor_value_info("recent", TensorProto.INT64, ["batch", 3]),
    ]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", DIM])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tower", inputs, [output], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


TOWER = manifest_pb2.Tower(
    output="out",
    inputs=[
        TowerInput(name="numbers", kind=COLUMNS, columns=["age"], dtype=FLOAT32, rank=2, missing=0),
        TowerInput(name="codes", kind=COLUMNS, columns=["gender"], dtype=INT64, rank=2, missing=0, offset=1),
        TowerInput(name="recent", kind=RECENT_ITEMS, dtype=INT64, rank=2, length=3, missing=0, offset=1),
    ],
)


class CountingSession:
    """A session that remembers how many rows each of its runs had."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.heights: list[int] = []

    def run(self, outputs: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.heights.append(len(feed["numbers"]))
        return self._session.run(outputs, feed)


class CountingSearcher:
    """A searcher that remembers how many queries each call had."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher
        self.calls: list[tuple[int, int]] = []

    def search(self, queries: Vectors, k: int, masks: Sequence[Mask | None]) -> list[Found]:
        self.calls.append((len(queries), k))
        return self._searcher.search(queries, k, masks)


@pytest.fixture
def bundle(tiny_bundle: Callable[..., Path]) -> Bundle:
    return open_bundle(tiny_bundle())


@pytest.fixture
def users(bundle: Bundle, tiny_snapshot: Callable[..., Path]) -> Users:
    return open_users(tiny_snapshot(), {"main": bundle})


@pytest.fixture
def make_pipeline(bundle: Bundle, users: Users, squash: Any, tmp_path: Path) -> Callable[..., Pipeline]:
    """A pipeline over the tiny bundle whose space `als` has a user tower."""
    some = [state for _, state in users.most_active(SHARED_ROWS)]

    def make(limits: CacheLimits = NOTHING_KEPT, steepness: float = 0.0) -> Pipeline:
        session = CountingSession(open_session(network(tmp_path / "user.onnx", steepness), "cpu"))
        tower = UserTower(
            session,
            TOWER,
            layout=bundle.schema.user_layout,
            columns=bundle.catalogue.columns,
            dim=DIM,
            normalized=False,
            name="als",
            limits=limits,
        )
        nowhere = ColumnValues.missing(bundle.schema.context_layout, 1)
        subjects = [subject(each, bundle.catalogue, context=nowhere, time_us=0) for each in some]
        tower.try_sharing(tower_users(subjects))
        session.heights.clear()
        engines = open_engines(bundle, device="cpu")
        searchers = {name: CountingSearcher(each) for name, each in engines.searchers.items()}
        return Pipeline(bundle, dataclasses.replace(engines, towers={"als": tower}, searchers=searchers, ranker=squash))

    return make


def tower_of(pipeline: Pipeline) -> UserTower:
    return pipeline.engines.towers["als"]


def heights(pipeline: Pipeline) -> list[int]:
    return tower_of(pipeline)._session.heights


# ---------------------------------------------------------------------------------------------------------- over gRPC


class Growing:
    """A store whose users can gain a second user's history, as if events had come in."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store
        self.donors: dict[str, str] = {}

    async def fetch(self, user_ids: Sequence[str]) -> list[UserState]:
        states = self._store.fetch(user_ids)
        for index, user in enumerate(user_ids):
            if user in self.donors:
                [donor] = self._store.fetch([self.donors[user]])
                states[index] = dataclasses.replace(states[index], history=donor.history)
        return states

    async def record_shown(self, user_id: str, item_keys: np.ndarray, time_us: int) -> None:
        await self._store.record_shown(user_id, item_keys, time_us)


def random_request(rng: random.Random) -> pb.RecommendRequest | pb.RankItemsRequest:
    context = pb.Context(time=Timestamp(seconds=NOW_S + rng.randrange(10)))
    if rng.random() < 0.4:
        context.session_item_ids.extend(rng.sample([f"item-{row:03d}" for row in range(12)], 2))
    if rng.random() < 0.4:
        context.features["age"].number = rng.choice([20, 40])
    if rng.random() < 0.3:
        context.features["gender"].category = rng.choice("fm")
    if rng.random() < 0.2:
        context.features["signup"].number = NOW_S - rng.randrange(1000)
    user = rng.choice(["user-01", "user-02", "user-03", "nobody"])
    if rng.random() < 0.2:
        return pb.RankItemsRequest(user_id=user, item_ids=["item-001", "item-002", "item-099"], context=context)
    return pb.RecommendRequest(
        user_id=user,
        context=context,
        sources=[pb.SourceQuota(name="als", weight=1)],
        filter=pb.Filter(exclude_shown=rng.random() < 0.3),
    )


def test_answers_are_the_same_without_the_cache(over_grpc, make_pipeline, users, plain) -> None:
    """The same random calls, several at a time, with sessions, overrides, events and exposures."""

    async def scenario(served, store):
        rng = random.Random(5)
        found = []
        for step in range(60):
            if step % 10 == 9:
                store.donors[f"user-0{rng.randint(1, 3)}"] = f"user-{rng.randint(10, 40)}"
                shown = pb.RecommendRequest(user_id=rng.choice(["user-01", "nobody"]), record_shown=True)
                shown.context.time.seconds = NOW_S
                found.append(plain(await served.stub.Recommend(shown)))
                await asyncio.gather(*served.service._recording)
            requests = [random_request(rng) for _ in range(4)]
            calls = [
                served.stub.RankItems(each) if isinstance(each, pb.RankItemsRequest) else served.stub.Recommend(each)
                for each in requests
            ]
            found += [plain(await call) for call in calls]
        return found, served.service.cache_stats()

    answers = []
    for limits in (CacheLimits(20, 1e6), NOTHING_KEPT):
        embedded = EmbeddedStore.from_settings(Settings(bundles=[{"path": "unused"}]).state)
        embedded.serve(users)
        pipeline, store = make_pipeline(limits), Growing(embedded)
        found, stats = over_grpc(lambda served, store=store: scenario(served, store), pipeline, store)
        answers.append(found)
        if limits.entries:
            [kept] = stats.values()
            assert list(stats) == ['user vectors of bundle "main", space "als"']
            assert kept.hits > 40
            assert kept.entries == 20
            assert kept.evicted > 0
        else:
            assert stats == {}
    assert answers[0] == answers[1]


# -------------------------------------------------------------------------------------------------------- micro-batch


def queries(bundle: Bundle, users: Users, count: int, **changes: Any) -> list[tuple[Query, UserState]]:
    states = [state for _, state in users.most_active(count)]
    return [
        (
            Query(
                kind=QueryKind.RECOMMEND,
                user_id=f"user-{index:02d}",
                time_us=NOW_S * 1_000_000,
                context=ColumnValues.missing(bundle.schema.context_layout, 1),
                quotas=(Quota("als", 1.0), Quota("content", 1.0)),
                **changes,
            ),
            state,
        )
        for index, state in enumerate(states)
    ]


def test_a_micro_batch_shares_a_tower_run_and_a_search_of_each_space(make_pipeline, bundle, users) -> None:
    pipeline = make_pipeline()
    work = queries(bundle, users, 8)
    together = pipeline.run(work)
    shared = [8] if tower_of(pipeline).shares_runs else [1] * 8
    assert heights(pipeline) == shared
    calls = {name: searcher.calls for name, searcher in pipeline.engines.searchers.items()}
    assert calls == {"als": [(8, 500)], "content": [(8, 500)]}
    for one, result in zip(work, together, strict=True):
        [alone] = pipeline.run([one])
        assert alone.rows.tolist() == result.rows.tolist()
        assert alone.scores.tolist() == result.scores.tolist()
        assert alone.source_scores.tolist() == result.source_scores.tolist()


def test_requests_of_one_user_share_a_vector(make_pipeline, bundle, users) -> None:
    pipeline = make_pipeline()
    one = queries(bundle, users, 1)
    pipeline.run(one * 5)
    assert heights(pipeline) == [2 if tower_of(pipeline).shares_runs else 1]
    assert pipeline.engines.searchers["als"].calls == [(5, 500)]


class FickleSession(CountingSession):
    """A network whose single rows have other bits than several: some processors add in another order then."""

    def run(self, outputs: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        (vectors,) = super().run(outputs, feed)
        return [np.nextafter(vectors, np.float32(9)) if len(vectors) == 1 else vectors]


def test_what_is_kept_from_the_start_has_the_bits_of_what_is_made(bundle, tmp_path, monkeypatch) -> None:
    session = FickleSession(open_session(network(tmp_path / "user.onnx", 0.0), "cpu"))
    monkeypatch.setattr(towers, "open_session", lambda *_: session)
    bundle.spaces["als"].spec.user_tower.CopyFrom(TOWER)
    bundle.spaces["als"].spec.user_tower.file = "features.json"  # any file of the bundle
    nobody = subject(
        UserState(known=True, columns=ColumnValues.missing(bundle.schema.user_layout, 1)),
        bundle.catalogue,
        context=ColumnValues.missing(bundle.schema.context_layout, 1),
        time_us=0,
    )
    made, kept = (
        towers.open_user_tower(bundle, "als", "cpu", limits).embed(tower_users([nobody]))
        for limits in (NOTHING_KEPT, CacheLimits(10, 60.0))
    )
    assert made.tobytes() == kept.tobytes()


def test_features_that_no_vector_comes_of(make_pipeline, bundle, users) -> None:
    """It is the caller's fault who gave them, and nobody else's request is touched."""
    pipeline = make_pipeline(steepness=1e20)
    first, second, third, fourth = queries(bundle, users, 4)
    given = dataclasses.replace(second[0], user_overrides={"age": 1e30}), second[1]
    layout = bundle.schema.user_layout
    stored = fourth[0], dataclasses.replace(fourth[1], columns=fourth[1].columns.with_overrides(layout, {"age": 1e30}))
    mine, refused, yours, broken = pipeline.run([first, given, third, stored])
    assert isinstance(refused, InvalidRequestError)
    assert [each.field for each in refused.violations] == ["context.features['age']"]
    assert isinstance(broken, TowerOutputError)
    for together, alone in zip((mine, yours), pipeline.run([first, third]), strict=True):
        assert together.rows.tolist() == alone.rows.tolist()
        assert together.scores.tolist() == alone.scores.tolist()
    with pytest.raises(TowerOutputError):
        pipeline.retrieve([first, stored])


# --------------------------------------------------------------------------------------------------------------- warm


def test_the_most_active_users_come_first(tiny_snapshot: Callable[..., Path]) -> None:
    snapshot = open_snapshot(tiny_snapshot())
    lengths = [snapshot.state(row).keys.size for row in range(snapshot.size)]
    expected = sorted(range(snapshot.size), key=lambda row: (-lengths[row], row))
    for count in (0, 1, 7, 50, 60):
        assert snapshot.most_active(count).tolist() == expected[:count]


@pytest.mark.parametrize(("entries", "wanted", "warmed"), [(100, 10, 10), (100, 1000, 50), (5, 10, 5), (0, 10, 0)])
def test_warmed_users_need_no_tower(
    make_pipeline, bundle, users, entries: int, wanted: int, warmed: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings = UserVectorCacheSettings(entries=entries, warm_users=wanted)
    pipeline, fresh = make_pipeline(settings.limits), make_pipeline()
    with caplog.at_level(logging.INFO):
        warm("main", pipeline, users, settings)
    assert ("most active users" in caplog.text) == (entries > 0)
    assert sum(heights(pipeline)) == warmed
    heights(pipeline).clear()
    work = queries(bundle, users, max(warmed, 1))
    assert [each.scores.tolist() for each in pipeline.run(work)] == [each.scores.tolist() for each in fresh.run(work)]
    assert bool(heights(pipeline)) == (not warmed)
    if entries:
        assert pipeline.kept_vectors["als"].hits == warmed


def test_users_of_whom_no_vector_comes_are_left_out(make_pipeline, users, caplog: pytest.LogCaptureFixture) -> None:
    """The server starts all the same: one user's odd age is no reason to serve nobody."""
    settings = UserVectorCacheSettings(entries=100, warm_users=100)
    pipeline = make_pipeline(settings.limits, steepness=float(np.finfo(np.float32).max) / 50)  # too much from 50 on
    warm("main", pipeline, users, settings)
    left_out = 50 - pipeline.kept_vectors["als"].entries
    assert 0 < left_out < 50
    assert f"no vector of {left_out} of these users" in caplog.text
    assert re.search(r"the first is 'user-\d+': user tower of space 'als': row 0 is not finite", caplog.text)


def test_nobody_is_warmed_without_a_snapshot(make_pipeline, bundle) -> None:
    pipeline = make_pipeline(CacheLimits(10, 1e6))
    warm("main", pipeline, Users(bundle.schema.user_layout, None), UserVectorCacheSettings())
    assert pipeline.kept_vectors["als"].entries == 0
