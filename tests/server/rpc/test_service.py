"""The whole road over real sockets: each front, grpc.aio clients, real pipelines over the tiny bundle."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import uvloop
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2 as detail
from google.rpc.code_pb2 import Code
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.registry import BundleRegistry
from recserve.server.bundle.strings import key_of
from recserve.server.config import Settings
from recserve.server.pipeline.pipeline import Pipeline, open_engines, open_pipeline
from recserve.server.rpc import ListenError, RecommenderService, RpcServer, answers, servicer
from recserve.server.rpc.convert import Converter
from recserve.server.rpc.servicer import SERVICE
from recserve.server.state.embedded import EmbeddedStore, open_users
from recserve.server.state.protocol import StateUnavailableError
from recserve.v1 import recommender_pb2 as pb
from recserve.v1.recommender_pb2_grpc import RecommenderServiceStub

NAN = float("nan")
NOW = Timestamp(seconds=1_748_779_200)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
METHODS = {method.name: method for method in SERVICE.methods}


class Forests:
    """A plain ranker: each objective is a sum of squashed features; rows do not depend on one another."""

    objectives = ("click", "purchase")
    weights = (1.0, 0.5)

    def margins(self, features):
        squashed = np.tanh(np.nan_to_num(features.astype(np.float64)) / 50)
        weights = np.random.default_rng(5).normal(size=(2, features.shape[1]))
        return np.stack([(squashed * each).sum(axis=1) for each in weights], axis=1)

    def score(self, inputs):
        return self.margins(inputs.matrix())

    def relevance(self, margins):
        return 1 / (1 + np.exp(-margins))


@dataclass
class Shop:
    """A bundle with its users, on disk."""

    pipeline: Pipeline
    snapshot: Path

    def store(self) -> EmbeddedStore:
        store = EmbeddedStore.from_settings(settings().state)
        store.serve(open_users(self.snapshot, {"main": self.pipeline.bundle}))
        return store


@pytest.fixture
def shop(tiny_bundle, tiny_snapshot) -> Shop:
    bundle = open_bundle(tiny_bundle())
    engines = open_engines(bundle, device="cpu", allow_native_code=False)
    return Shop(Pipeline(bundle, dataclasses.replace(engines, ranker=Forests())), tiny_snapshot())


def settings(**sections) -> Settings:
    defaults = {
        "bundles": [{"path": "unused"}],
        "server": {"port": 0, "default_deadline_ms": 10_000},
        "state": {"deadline_ms": 1000},
        "compute": {"threads": 2, "max_batch": 8},
        "placements": {"default": {"candidates": 60, "caps": [{"attribute": "category", "max": 4}], "mmr_weight": 0.7}},
    }
    merged = {name: {**defaults.get(name, {}), **section} for name, section in sections.items()}
    return Settings(**{**defaults, **merged})


def fronted(configured: Settings, front: str) -> Settings:
    """The same settings with this front."""
    return configured.model_copy(update={"server": configured.server.model_copy(update={"front": front})})


@dataclass
class Client:
    """A connection to a server, and the server itself."""

    stub: RecommenderServiceStub
    channel: grpc.aio.Channel
    server: RpcServer
    service: RecommenderService
    registry: BundleRegistry
    port: int

    @property
    def admitted(self) -> int:
        return self.service._admission.admitted

    async def raw(self, method: str, payload: bytes) -> bytes:
        return await self.channel.unary_unary(f"/{SERVICE.full_name}/{method}")(payload)

    async def health(self, service: str = "") -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


@asynccontextmanager
async def serving(pipelines, store, configured) -> AsyncIterator[Client]:
    registry = BundleRegistry()
    for name, pipeline in pipelines.items():
        registry.add(name, pipeline)
    service = RecommenderService(registry, store, configured)
    server = RpcServer(service, configured.server)
    port = await server.listen()
    await server.set_serving(bool(pipelines))
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Client(RecommenderServiceStub(channel), channel, server, service, registry, port)
    finally:
        await server.drain(5)
    assert service._admission.admitted == 0


@pytest.fixture
def serve(run, shop, front) -> Callable[..., Any]:
    """Runs a scenario against a server, on the loop that the server is deployed with."""

    def served(scenario, *, pipelines=None, store=None, configured=None, seconds=60):
        async def main():
            chosen = {"main": shop.pipeline} if pipelines is None else pipelines
            async with serving(chosen, store or shop.store(), fronted(configured or settings(), front)) as client:
                return await scenario(client)

        return run(main(), seconds=seconds, loop=uvloop.new_event_loop)

    return served


class Gate:
    """A pipeline before which compute threads stop until it is open."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.bundle = pipeline.bundle
        self.objectives, self.sources = pipeline.objectives, pipeline.sources
        self.similarity_spaces = pipeline.similarity_spaces
        self.pipeline = pipeline
        self.open = threading.Event()
        self.inside = 0

    def run(self, work, *, gone=None):
        self.inside += 1
        assert self.open.wait(20)
        return self.pipeline.run(work, gone=gone)

    async def entered(self) -> None:
        await until(lambda: self.inside)


async def until(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError("the condition did not come true")


def recommend(user: str = "user-07", **fields) -> pb.RecommendRequest:
    return pb.RecommendRequest(**{"user_id": user, "context": pb.Context(time=NOW), **fields})


def comparable(response):
    """What must not depend on when and with whom a request was answered."""
    copy = type(response)()
    copy.CopyFrom(response)
    for name in ("request_id", "recommendation_id", "times"):
        copy.ClearField(name)
    return copy


async def failure(call) -> tuple[grpc.StatusCode, Any]:
    """The status of a call that must fail, with its details by type name."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    status = await rpc_status.aio.from_call(AsCall(error.value))
    details = {each.TypeName().rpartition(".")[2]: each for each in status.details} if status else {}
    return error.value, details


class AsCall:
    """An error as the call that `from_call` expects."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self._error = error

    async def code(self):
        return self._error.code()

    async def details(self):
        return self._error.details()

    async def trailing_metadata(self):
        return tuple(self._error.trailing_metadata())


def unpack(details, name):
    message = getattr(detail, name)()
    details[name].Unpack(message)
    return message


# ------------------------------------------------------------------------------------------------ answers


def test_a_served_list_is_the_pipelines(serve, shop):
    request = recommend(count=25, request_id="mine", fields=["*"], reasons=True)
    response = serve(lambda client: client.stub.Recommend(request))
    registry = BundleRegistry()
    registry.add("main", shop.pipeline)
    job = Converter(registry, settings()).recommend(request, "mine", time.monotonic() + 10)
    [state] = shop.store().fetch(["user-07"])
    [expected] = shop.pipeline.run([(job.query, state)])
    catalogue = shop.pipeline.bundle.catalogue
    assert [item.item_id for item in response.items] == catalogue.ids_of_rows(expected.rows)
    assert [item.score for item in response.items] == expected.scores.tolist()
    assert [item.relevance for item in response.items] == expected.relevance.tolist()
    assert [item.rank for item in response.items] == list(range(1, 26))
    assert (response.request_id, response.bundle.name, response.bundle.version) == ("mine", "main", "1")
    assert not response.cold_start
    assert response.recommendation_id
    assert response.times.total_us >= response.times.rank_us > 0
    for item, row, scores, ranks in zip(
        response.items, expected.rows, expected.source_scores, expected.source_ranks, strict=True
    ):
        assert item.sources
        found = {source.name: (source.score, source.rank) for source in item.sources}
        assert found == {
            name: (float(score), rank)
            for name, score, rank in zip(expected.sources, scores, ranks, strict=True)
            if rank
        }
        assert_fields(item.fields, catalogue.attributes(row, catalogue.columns))


def assert_fields(fields, attributes):
    kinds = {"price": "number", "category": "text", "in_stock": "flag", "regions": "texts", "launch_time": "time",
             "title": "text", "pages": "integer"}  # fmt: skip
    assert set(fields) == set(attributes)
    for name, kind in kinds.items():
        if name not in attributes:
            continue
        assert fields[name].WhichOneof("kind") == kind
        value = getattr(fields[name], kind)
        if kind == "texts":
            value = tuple(value.values)
        elif kind == "time":
            value = value.ToDatetime(attributes[name].tzinfo)
        assert value == attributes[name]


def test_an_unknown_user_is_a_cold_start(serve):
    response = serve(lambda client: client.stub.Recommend(recommend("nobody", count=7)))
    assert response.cold_start
    assert not response.degraded
    assert len(response.items) == 7


def test_without_a_ranker_there_is_no_relevance(serve, tiny_bundle, tmp_path):
    plain = open_pipeline(open_bundle(tiny_bundle(target=tmp_path / "plain")), device="cpu", allow_native_code=False)
    response = serve(lambda client: client.stub.Recommend(recommend()), pipelines={"main": plain})
    assert len(response.items) == 20
    assert not any(item.HasField("relevance") for item in response.items)


def test_nothing_is_ranked_without_a_ranker(serve, tiny_bundle, tmp_path):
    plain = open_pipeline(open_bundle(tiny_bundle(target=tmp_path / "plain")), device="cpu", allow_native_code=False)
    request = pb.RankItemsRequest(user_id="user-01", item_ids=["item-001"])
    error, details = serve(lambda client: failure(client.stub.RankItems(request)), pipelines={"main": plain})
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    [violation] = unpack(details, "PreconditionFailure").violations
    assert violation.subject == "item_ids"
    assert "export the bundle with one" in violation.description


def test_an_answer_may_be_larger_than_a_request(serve):
    requests = [recommend(f"user-{index:02d}", count=100, fields=["*"]) for index in range(20)]
    batch = pb.BatchRecommendRequest(requests=requests)
    configured = settings(server={"max_message_bytes": 65_536})
    assert serve(lambda client: client.stub.BatchRecommend(batch), configured=configured).ByteSize() > 100_000


def test_ids_are_made_where_the_caller_gave_none(serve):
    async def scenario(client):
        return [await client.stub.Recommend(recommend(count=1)) for _ in range(3)]

    responses = serve(scenario)
    assert len({each.request_id for each in responses}) == 3
    assert len({each.recommendation_id for each in responses}) == 3


def test_similar_items(serve):
    request = pb.SimilarItemsRequest(item_ids=["item-003", "gone", "item-150"], count=12, alpha=0.5, fields=["price"])
    response = serve(lambda client: client.stub.SimilarItems(request))
    assert len(response.items) == 12
    assert response.unknown_item_ids == ["gone"]
    assert not {"item-003", "item-150"} & {item.item_id for item in response.items}
    scores = [item.score for item in response.items]
    assert scores == sorted(scores, reverse=True)
    assert {source.name for source in response.items[0].sources} == {"content"}  # "als" has vectors of any length
    assert response.recommendation_id


def test_rank_items(serve):
    asked = [f"item-{row:03d}" for row in range(0, 200, 3)]
    request = pb.RankItemsRequest(
        user_id="user-01", item_ids=[*asked, "gone"], filter=pb.Filter(in_stock=False), context=pb.Context(time=NOW)
    )
    response = serve(lambda client: client.stub.RankItems(request))
    assert sorted(item.item_id for item in response.items) == asked
    assert response.unknown_item_ids == ["gone"]
    scores = [item.score for item in response.items]
    assert scores == sorted(scores, reverse=True)


def test_explain_is_not_implemented_and_says_so(serve):
    error, details = serve(lambda client: failure(client.stub.Explain(pb.ExplainRequest())))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "Explain" in error.details()
    assert unpack(details, "ErrorInfo").reason == "NOT_IMPLEMENTED"


def test_several_bundles(serve, tiny_bundle, tmp_path, shop):
    canary = open_pipeline(
        open_bundle(tiny_bundle(target=tmp_path / "c", version="2")), device="cpu", allow_native_code=False
    )

    async def scenario(client):
        names = ("", "main", "canary")
        return [(await client.stub.Recommend(recommend(bundle=name, count=1))).bundle for name in names]

    found = serve(scenario, pipelines={"main": shop.pipeline, "canary": canary})
    assert [(each.name, each.version) for each in found] == [("main", "1"), ("main", "1"), ("canary", "2")]


# ------------------------------------------------------------------------------------------------ batches


def test_each_answer_of_a_batch_stands_alone(serve):
    requests = [
        recommend("user-01", count=3, request_id="first"),
        recommend("", count=0),
        recommend("nobody", count=2),
        recommend("user-02", rerank=pb.Rerank(exploration=0.2), request_id="fourth"),
        recommend("user-01", count=4),
    ]

    async def scenario(client):
        response = await client.stub.BatchRecommend(pb.BatchRecommendRequest(requests=requests))
        alone = [await client.stub.Recommend(requests[index]) for index in (0, 2, 4)]
        return response.answers, alone

    answers, alone = serve(scenario)
    assert [each.WhichOneof("result") for each in answers] == ["response", "status", "response", "status", "response"]
    assert [answers[1].status.code, answers[3].status.code] == [Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION]
    bad = detail.BadRequest()
    assert any(each.Unpack(bad) for each in answers[1].status.details)
    assert [each.field for each in bad.field_violations] == ["user_id", "count"]
    info = detail.RequestInfo()
    assert any(each.Unpack(info) for each in answers[3].status.details)
    assert info.request_id == "fourth"
    assert answers[0].response.request_id == "first"
    for index, expected in zip((0, 2, 4), alone, strict=True):
        assert comparable(answers[index].response) == comparable(expected)


@pytest.mark.parametrize(
    ("requests", "description"),
    [
        ([], "1 to 256 requests, but there are 0"),
        ([recommend(count=1)] * 257, "there are 257"),
        ([recommend(count=500)] * 20 + [recommend(count=1)], "at most 10000, but they are 10001"),
    ],
)
def test_bad_batches(serve, requests, description):
    error, details = serve(
        lambda client: failure(client.stub.BatchRecommend(pb.BatchRecommendRequest(requests=requests)))
    )
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    [violation] = unpack(details, "BadRequest").field_violations
    assert violation.field == "requests"
    assert description in violation.description


def test_each_request_of_a_batch_is_admitted_by_itself(serve, shop):
    class Counting:
        def __init__(self, store):
            self.store, self.calls = store, []

        async def fetch(self, user_ids):
            self.calls.append(list(user_ids))
            return self.store.fetch(user_ids)

    store = Counting(shop.store())
    requests = [recommend(f"user-{index % 2:02d}", count=1) for index in range(6)]
    answers = serve(
        lambda client: client.stub.BatchRecommend(pb.BatchRecommendRequest(requests=requests)),
        store=store,
        configured=settings(admission={"max_queue": 4}, compute={"threads": 1, "max_batch": 4}),
    ).answers
    assert [each.WhichOneof("result") for each in answers] == ["response"] * 4 + ["status"] * 2
    assert {each.status.code for each in answers[4:]} == {Code.RESOURCE_EXHAUSTED}
    assert store.calls == [["user-00", "user-01"]]


def test_an_answer_of_a_batch_gives_its_place_back_before_the_others_are_there(serve, shop):
    gate = Gate(shop.pipeline)

    class SecondWaits(Gate):
        def run(self, work, *, gone=None):
            return (gate if work[0][0].user_id == "slow" else self.pipeline).run(work, gone=gone)

    async def scenario(client):
        call = client.stub.BatchRecommend(pb.BatchRecommendRequest(requests=[recommend(), recommend("slow")]))
        await gate.entered()
        await until(lambda: client.admitted == 1)
        assert not call.done()
        gate.open.set()
        return await call

    configured = settings(compute={"threads": 2, "max_batch": 1})
    answers = serve(scenario, pipelines={"main": SecondWaits(shop.pipeline)}, configured=configured).answers
    assert [each.WhichOneof("result") for each in answers] == ["response"] * 2


def test_answers_of_a_batch_are_written_one_at_a_time(serve, monkeypatch):
    """Other calls go on between any two of them, and no answer's time contains the writing of the others."""
    turns, turns_at = 0, []
    fill = answers.fill_recommend

    def slowly(response, answer):
        turns_at.append(turns)
        time.sleep(0.05)
        fill(response, answer)

    async def take_turns():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def scenario(client):
        requests = [recommend(f"user-{index:02d}", count=5) for index in range(10)]
        other = asyncio.create_task(take_turns())
        response = await client.stub.BatchRecommend(pb.BatchRecommendRequest(requests=requests))
        other.cancel()
        return [each.response.times.total_us for each in response.answers]

    monkeypatch.setattr(answers, "fill_recommend", slowly)
    times = serve(scenario, configured=settings(compute={"threads": 1, "max_batch": 32}))
    assert len(set(turns_at)) == 10
    assert max(times) < 300_000  # the writing takes 500 ms


@pytest.mark.parametrize("method", ["Recommend", "BatchRecommend"])
def test_large_answers_are_written_beside_the_loop(serve, monkeypatch, method):
    """The loop answers health checks meanwhile."""
    threads = {}
    fill = answers.fill_recommend

    def noted(response, answer):
        threads[answer.values] = threading.current_thread() is threading.main_thread()
        fill(response, answer)

    def asked(count):
        request = recommend(count=count, fields=["*"])
        return request if method == "Recommend" else pb.BatchRecommendRequest(requests=[request])

    async def scenario(client):
        return [await getattr(client.stub, method)(asked(count)) for count in (10, 400)]

    monkeypatch.setattr(answers, "fill_recommend", noted)
    monkeypatch.setattr(servicer, "_WRITTEN_ON_THE_LOOP", 1000)  # the catalogue is small
    small, large = serve(scenario)
    assert list(threads.values()) == [True, False]
    assert min(threads) < 1000 < max(threads)
    if method == "BatchRecommend":
        small, large = small.answers[0].response, large.answers[0].response
    assert len(large.items) > 100
    assert all(item.fields for item in large.items)


# ----------------------------------------------------------------------------------------------- bad input


def test_malformed_bytes(serve):
    async def scenario(client):
        return [
            (await failure(client.raw(method, payload)), METHODS[method].input_type.full_name)
            for method in ("Recommend", "BatchRecommend", "SimilarItems", "RankItems")
            for payload in (b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe", bytes(1000))
        ]

    failed = serve(scenario)
    ids = {unpack(details, "RequestInfo").request_id for (_, details), _ in failed}
    assert len(ids) == len(failed), "each has an id of its own, though nobody can read whether its caller gave one"
    assert "" not in ids
    for (error, details), message_type in failed:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert unpack(details, "ErrorInfo").reason in {"MALFORMED_REQUEST", "INVALID_REQUEST"}
        if unpack(details, "ErrorInfo").reason == "MALFORMED_REQUEST":
            assert message_type in error.details()
            assert "parsing" not in error.details()  # the library's words


@pytest.mark.parametrize("method", ["Recommend", "RankItems"])
def test_a_user_id_that_is_not_utf8(serve, method):
    number = METHODS[method].input_type.fields_by_name["user_id"].number
    payload = bytes([number << 3 | 2, 3, 0xC3, 0x28, 0x41])
    error, _ = serve(lambda client: failure(client.raw(method, payload)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "not UTF-8" in error.details()


def test_a_message_of_10_megabytes(serve):
    async def scenario(client):
        too_large = await failure(client.raw("Recommend", bytes(10_000_000)))
        return too_large, await client.stub.Recommend(recommend(count=1))

    (error, _), afterwards = serve(scenario)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(afterwards.items) == 1


BAD = {
    "empty user id": (recommend(""), "user_id"),
    "user id of 257 bytes": (recommend("u" * 257), "user_id"),
    "count 0": (recommend(count=0), "count"),
    "count 501": (recommend(count=501), "count"),
    "unknown placement": (recommend(context=pb.Context(placement="nowhere")), "context.placement"),
    "unknown category": (recommend(filter=pb.Filter(include_categories=["x"])), "filter.include_categories[0]"),
    "unknown source": (recommend(sources=[pb.SourceQuota(name="x", weight=1)]), "sources[0].name"),
    "unknown field": (recommend(fields=["x"]), "fields[0]"),
    "unknown feature": (
        recommend(context=pb.Context(features={"x": pb.FeatureValue(number=1)})),
        "context.features['x']",
    ),
    "NaN feature": (
        recommend(context=pb.Context(features={"age": pb.FeatureValue(number=NAN)})),
        "context.features['age'].number",
    ),
    "unknown bundle": (recommend(bundle="x"), "bundle"),
}  # fmt: skip


def test_bad_input_is_named(serve):
    async def scenario(client):
        return {name: await failure(client.stub.Recommend(request)) for name, (request, _) in BAD.items()}

    for name, (error, details) in serve(scenario).items():
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, name
        [violation] = unpack(details, "BadRequest").field_violations
        assert violation.field == BAD[name][1]


def test_hundreds_of_problems_still_arrive_as_one_status(serve):
    """More details than fit into HTTP/2 trailers would reach the client as another error."""
    request = recommend(fields=[f"field-{index}-" + "漢" * 70 for index in range(900)], request_id="r" * 30_000)
    error, details = serve(lambda client: failure(client.stub.Recommend(request)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    violations = unpack(details, "BadRequest").field_violations
    assert violations[0].field == "request_id"
    assert violations[-1].description == f"and {901 - len(violations) + 1} more"


def test_unknown_items(serve):
    async def scenario(client):
        return [
            await failure(client.stub.SimilarItems(pb.SimilarItemsRequest(item_ids=["x", "y"]))),
            await failure(client.stub.RankItems(pb.RankItemsRequest(user_id="u", item_ids=["x", "y"]))),
        ]

    for error, details in serve(scenario):
        assert error.code() == grpc.StatusCode.NOT_FOUND
        assert "x, y" in error.details()
        assert unpack(details, "ResourceInfo").resource_type == "item"


def test_what_this_build_lacks(serve):
    request = recommend(rerank=pb.Rerank(dpp=pb.Dpp(theta=0.5)))
    error, details = serve(lambda client: failure(client.stub.Recommend(request)))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert unpack(details, "PreconditionFailure").violations[0].subject == "rerank.dpp"


def test_our_own_bug_is_internal_with_a_request_id(serve, shop, caplog):
    class Broken(Gate):
        def run(self, work, **_):
            raise ZeroDivisionError(f"secret of {work}")

    request = recommend(request_id="find-me")
    error, details = serve(
        lambda client: failure(client.stub.Recommend(request)), pipelines={"main": Broken(shop.pipeline)}
    )
    assert error.code() == grpc.StatusCode.INTERNAL
    assert "find-me" in error.details()
    assert "secret" not in str(error.trailing_metadata())
    assert unpack(details, "RequestInfo").request_id == "find-me"
    assert "find-me" in caplog.text


# ------------------------------------------------------------------------------- load, deadlines, cancellation


def random_request(rng: random.Random) -> tuple[str, Any]:
    """A method with a request whose answer depends on nothing but itself."""
    user = f"user-{rng.randrange(60):02d}"
    items = rng.sample([f"item-{row:03d}" for row in range(210)], rng.randint(1, 12))
    context = pb.Context(time=NOW, device=rng.choice(["", "phone", "toaster"]), session_item_ids=items[:3])
    wanted = pb.Filter(exclude_item_ids=items[3:], price_min=rng.choice([0.0, 10.0]), in_stock=rng.random() < 0.5)
    kind = rng.randrange(3)
    if kind == 0:
        return "Recommend", pb.RecommendRequest(
            user_id=user, count=rng.randint(1, 40), context=context, filter=wanted, fields=["title"], reasons=True
        )
    if kind == 1:
        return "RankItems", pb.RankItemsRequest(user_id=user, item_ids=["item-000", *(set(items) - {"item-000"})])
    return "SimilarItems", pb.SimilarItemsRequest(item_ids=["item-000", *items], count=rng.randint(1, 30))


def test_64_concurrent_callers_get_what_they_would_get_alone(serve):
    """With cancellations and deadlines that cannot be met mixed in; then the same server goes on as before."""
    rng = random.Random(3)
    requests = [[random_request(rng) for _ in range(4)] for _ in range(64)]
    for each in (request for caller in requests for _, request in caller):
        each.context.time.CopyFrom(NOW)
    counts = {"answered": 0, "cancelled": 0, "late": 0}
    failures = []

    async def ask(client, method, request, expected):
        how = rng.random()
        call = getattr(client.stub, method)(request, timeout=0.001 if how < 0.15 else 30)
        if how > 0.8:
            await asyncio.sleep(rng.random() * 0.02)
            call.cancel()
        try:
            response = await call
        except asyncio.CancelledError:
            counts["cancelled"] += 1
        except grpc.aio.AioRpcError as error:
            counts["late"] += 1
            failures.append((how < 0.15, error.code()))
        else:
            assert comparable(response) == expected
            counts["answered"] += 1

    async def caller(client, work, expected):
        for (method, request), answer in zip(work, expected, strict=True):
            await ask(client, method, request, answer)

    async def scenario(client):
        async def alone(method, request):
            return comparable(await getattr(client.stub, method)(request))

        expected = [[await alone(method, request) for method, request in caller] for caller in requests]
        await asyncio.gather(*(caller(client, *each) for each in zip(requests, expected, strict=True)))
        await until(lambda: client.admitted == 0)
        assert await alone(*requests[0][0]) == expected[0][0]

    serve(scenario)
    assert sum(counts.values()) == 256
    assert all(counts.values()), counts
    # Who is in a hurry is told at once where the queue is too long, or when the time is up; nobody else fails.
    late = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all(hurried and code in late for hurried, code in failures)


def test_a_caller_who_leaves_gives_its_place_back(serve, shop):
    gate = Gate(shop.pipeline)

    async def scenario(client):
        calls = [client.stub.Recommend(recommend()) for _ in range(4)]
        await gate.entered()
        await until(lambda: client.admitted == 4)
        error, details = await failure(client.stub.Recommend(recommend()))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert unpack(details, "RetryInfo").retry_delay.ToMicroseconds() > 0
        for call in calls:
            call.cancel()
        await until(lambda: client.admitted == 0)
        gate.open.set()
        assert len((await client.stub.Recommend(recommend())).items) == 20

    configured = settings(admission={"max_queue": 4}, compute={"threads": 1, "max_batch": 2})
    serve(scenario, pipelines={"main": gate}, configured=configured)


def test_heavy_work_stops_when_its_callers_leave(serve, shop):
    """17 callers have all of the catalogue ranked with MMR, and leave; the next caller waits for none of it."""
    reached, released = threading.Event(), threading.Event()
    calls = []

    def select(scores, rows, count, *options, deadline):
        calls.append(rows.size)
        if len(calls) == 2:  # the first of the heavy ones, in a batch with the others
            reached.set()
            assert released.wait(20)
        return shop.pipeline.engines.select(scores, rows, count, *options, deadline=deadline)

    slow = Pipeline(shop.pipeline.bundle, dataclasses.replace(shop.pipeline.engines, select=select))
    gate = Gate(slow)
    items = [f"item-{row:03d}" for row in range(200)]
    heavy = pb.RankItemsRequest(
        user_id="user-01",
        item_ids=items,
        rerank=pb.Rerank(mmr=pb.Mmr(relevance_weight=0.5)),
        filter=pb.Filter(in_stock=False),
    )

    async def scenario(client):
        first = client.stub.Recommend(recommend())
        await gate.entered()
        leaving = [client.stub.RankItems(heavy) for _ in range(17)]
        await until(lambda: client.admitted == 18)
        gate.open.set()
        await first
        await asyncio.to_thread(reached.wait, 20)
        for call in leaving:
            call.cancel()
        await until(lambda: client.admitted == 0)
        next_one = asyncio.ensure_future(client.stub.Recommend(recommend()))
        await until(lambda: client.admitted == 1)
        released.set()
        assert comparable(await next_one) == comparable(await first)

    configured = settings(compute={"threads": 1, "max_batch": 32})
    serve(scenario, pipelines={"main": gate}, configured=configured)
    assert calls == [60, 200, 60]


def test_heavy_work_stops_at_its_deadline(serve, shop):
    """The deadline passes while a list is chosen: no item is, and the only thread is free for the next request."""
    gave_up = []

    def select(scores, rows, count, *options, deadline):
        if rows.size < 200:
            return shop.pipeline.engines.select(scores, rows, count, *options, deadline=deadline)
        try:
            return shop.pipeline.engines.select(scores, rows, count, *options, deadline=deadline - 3600)
        except TimeoutError as error:
            gave_up.append(str(error))
            raise

    slow = Pipeline(shop.pipeline.bundle, dataclasses.replace(shop.pipeline.engines, select=select))
    heavy = pb.RankItemsRequest(
        user_id="user-01",
        item_ids=[f"item-{row:03d}" for row in range(200)],
        rerank=pb.Rerank(mmr=pb.Mmr(relevance_weight=0.5)),
        filter=pb.Filter(in_stock=False),
    )

    async def scenario(client):
        first = await client.stub.Recommend(recommend())
        error, details = await failure(client.stub.RankItems(heavy, timeout=30))
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "stage rerank" in error.details()
        assert unpack(details, "ErrorInfo").reason == "DEADLINE_EXPIRED"
        assert comparable(await client.stub.Recommend(recommend())) == comparable(first)

    serve(scenario, pipelines={"main": slow}, configured=settings(compute={"threads": 1, "max_batch": 32}))
    assert gave_up == ["the deadline passed when 0 of 200 places were filled"]


def test_a_request_without_a_deadline_gets_the_configured_one(serve, shop):
    gate = Gate(shop.pipeline)

    async def scenario(client):
        error, details = await failure(client.stub.Recommend(recommend()))
        gate.open.set()
        return error, details

    configured = settings(server={"default_deadline_ms": 50}, state={"deadline_ms": 20})
    error, details = serve(scenario, pipelines={"main": gate}, configured=configured)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "stage compute" in error.details()
    assert unpack(details, "ErrorInfo").reason == "DEADLINE_EXPIRED"


# ----------------------------------------------------------------------------------------------------- state


class Down:
    """A state store that does not answer."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.recorded = 0

    async def fetch(self, _user_ids):
        if self.error is None:
            await asyncio.sleep(60)
        raise self.error

    async def record_shown(self, _user_id, _item_keys, _time_us):
        self.recorded += 1
        raise self.error or StateUnavailableError("down")


@pytest.mark.parametrize(
    ("error", "reason"), [(StateUnavailableError("down"), "state_unavailable"), (None, "deadline")]
)
def test_without_state_the_answer_is_degraded(serve, error, reason, caplog):
    async def scenario(client):
        responses = [await client.stub.Recommend(recommend(count=5, record_shown=True)) for _ in range(2)]
        ranked = await client.stub.RankItems(pb.RankItemsRequest(user_id="user-01", item_ids=["item-001"]))
        similar = await client.stub.SimilarItems(pb.SimilarItemsRequest(item_ids=["item-001"]))
        return responses, ranked, similar

    store = Down(error)
    responses, ranked, similar = serve(scenario, store=store, configured=settings(state={"deadline_ms": 5}))
    for each in (*responses, ranked):
        assert [(part.stage, part.reason) for part in each.degraded] == [("state", reason)]
        assert each.cold_start
    assert len(responses[0].items) == 5
    assert not similar.degraded  # it asks about no user
    assert store.recorded == 2  # failed off the road, logged, not surfaced
    assert caplog.text.count("state store does not answer") == 1


@pytest.mark.parametrize("error", [StateUnavailableError("down"), None])
def test_a_request_that_demands_what_only_state_can_tell_fails_without_it(serve, error):
    wanted = pb.Filter(exclude_purchased=True)
    demanding = [
        ("Recommend", recommend(filter=pb.Filter(exclude_shown=True))),
        ("SimilarItems", pb.SimilarItemsRequest(item_ids=["item-001"], user_id="user-01", filter=wanted)),
        ("RankItems", pb.RankItemsRequest(item_ids=["item-001"], user_id="user-01", filter=wanted)),
    ]
    batch = pb.BatchRecommendRequest(requests=[recommend(), recommend(filter=wanted)])

    async def scenario(client):
        failures = [await failure(getattr(client.stub, method)(request)) for method, request in demanding]
        return failures, (await client.stub.BatchRecommend(batch)).answers

    configured = settings(
        state={"deadline_ms": 5}, placements={"default": {"exclude_shown": True, "exclude_purchased": True}}
    )
    failures, (served, refused) = serve(scenario, store=Down(error), configured=configured)
    for each, details in failures:
        assert each.code() == grpc.StatusCode.UNAVAILABLE
        assert unpack(details, "ErrorInfo").reason == "STATE_UNAVAILABLE"
        assert "filter.exclude_purchased" in each.details()
    assert served.response.degraded[0].stage == "state"  # the placement's conditions alone are no demand
    assert refused.status.code == Code.UNAVAILABLE


def test_a_callers_own_deadline_says_nothing_of_the_store(serve, caplog):
    async def scenario(client):
        payload = recommend().SerializeToString()
        return [await client.service.answer("Recommend", payload, 0.02) for _ in range(2)]

    for status in serve(scenario, store=Down(None), configured=settings(state={"deadline_ms": 5000})):
        assert status.code == Code.DEADLINE_EXCEEDED
        assert "stage state" in status.message
    assert "state store" not in caplog.text


def test_a_store_that_breaks_is_our_bug(serve):
    error, _ = serve(lambda client: failure(client.stub.Recommend(recommend())), store=Down(KeyError("x")))
    assert error.code() == grpc.StatusCode.INTERNAL


def test_shown_items_are_remembered_only_where_asked_for(serve):
    async def scenario(client):
        async def ask(**fields):
            request = recommend("user-03", count=10, filter=pb.Filter(exclude_shown=True), **fields)
            response = await client.stub.Recommend(request)
            await until(lambda: not client.service._recording)
            return [item.item_id for item in response.items]

        return [await ask(), await ask(), await ask(record_shown=True), await ask()]

    first, second, third, fourth = serve(scenario)
    assert first == second == third
    assert not set(third) & set(fourth)


def test_draining_waits_for_what_is_being_recorded(serve, shop):
    class Slow:
        def __init__(self, store):
            self.fetch, self.recorded = store.fetch, []

        async def record_shown(self, user_id, item_keys, time_us):
            await asyncio.sleep(0.1)
            self.recorded.append((user_id, item_keys.tolist(), time_us))

    store = Slow(shop.store())
    response = serve(lambda client: client.stub.Recommend(recommend(count=3, record_shown=True)), store=store)
    [(user_id, keys, time_us)] = store.recorded
    assert user_id == "user-07"
    assert keys == [key_of(item.item_id) for item in response.items]
    assert abs(time_us / 1e6 - time.time()) < 60  # when it was shown, whatever time the request was about


# ------------------------------------------------------------------------------------- the life of a server


def test_health_follows_the_bundles(serve, shop):
    async def scenario(client):
        names = ("", SERVICE.full_name)
        before = [await client.health(name) for name in names]
        error, _ = await failure(client.stub.Recommend(recommend()))
        whole_batch, _ = await failure(client.stub.BatchRecommend(pb.BatchRecommendRequest(requests=[recommend()] * 2)))
        assert whole_batch.code() == grpc.StatusCode.UNAVAILABLE
        client.registry.add("main", shop.pipeline)
        await client.server.set_serving(True)
        return before, error, [await client.health(name) for name in names], await client.stub.Recommend(recommend())

    before, error, after, response = serve(scenario, pipelines={})
    assert before == [NOT_SERVING] * 2
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert "no bundle is in service" in error.details()
    assert after == [SERVING] * 2
    assert len(response.items) == 20


def test_draining_finishes_what_was_admitted(serve, shop):
    gate = Gate(shop.pipeline)

    async def scenario(client):
        watch = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest())
        states = [(await watch.read()).status]
        calls = [client.stub.Recommend(recommend(record_shown=True)) for _ in range(5)]
        await until(lambda: client.admitted == 5)
        draining = asyncio.create_task(client.server.drain(10))
        states.append((await watch.read()).status)
        error, _ = await failure(client.stub.Recommend(recommend()))
        gate.open.set()
        started = time.monotonic()
        responses = await asyncio.gather(*calls)
        assert await draining
        watch.cancel()
        return states, error, responses, time.monotonic() - started, client

    states, error, responses, seconds, client = serve(scenario, pipelines={"main": gate})
    assert states == [SERVING, NOT_SERVING]
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert "draining" in error.details()
    assert [len(each.items) for each in responses] == [20] * 5
    assert seconds < 5  # an open health watch does not use up the time to drain
    assert not client.service._recording


def test_draining_cuts_off_what_takes_too_long(serve, shop):
    gate = Gate(shop.pipeline)

    async def scenario(client):
        call = client.stub.Recommend(recommend())
        await gate.entered()
        started = time.monotonic()
        draining = asyncio.create_task(client.server.drain(0.05))
        error, _ = await failure(call)
        at_rest = await draining
        seconds = time.monotonic() - started
        gate.open.set()  # a kernel cannot be interrupted
        return error, at_rest, seconds

    error, at_rest, seconds = serve(scenario, pipelines={"main": gate})
    assert error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert not at_rest
    assert seconds < 3


def test_a_taken_port_is_refused(serve, front):
    async def scenario(client):
        configured = fronted(settings(server={"port": client.port}), front)
        second = RpcServer(client.service, configured.server)
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{client.port}: Address already in use"):
            await second.listen()

    serve(scenario)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("no-such-host.invalid", "the host is unknown"),
        ("two..dots", "the host is unknown"),
        ("192.0.2.1", "Cannot assign requested address"),
    ],
)
def test_a_host_that_cannot_be_listened_on_is_refused(serve, front, host, reason):
    async def scenario(client):
        configured = fronted(settings(server={"host": host, "port": 0}), front)
        with pytest.raises(ListenError, match=f"cannot listen on {host}:0: {reason}"):
            await RpcServer(client.service, configured.server).listen()

    serve(scenario)


def test_a_client_with_nothing_but_reflection(serve):
    """It learns the messages from the server, and gets the same answer as the stubs."""

    def reflect(port):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            services = list(database.get_services())
            pool = descriptor_pool.DescriptorPool(database)
            method = pool.FindServiceByName(SERVICE.full_name).FindMethodByName("Recommend")
            request = message_factory.GetMessageClass(method.input_type)(user_id="user-07", count=5)
            request.context.time.FromSeconds(NOW.seconds)
            answer = message_factory.GetMessageClass(method.output_type)
            call = channel.unary_unary(
                f"/{SERVICE.full_name}/Recommend", lambda each: each.SerializeToString(), answer.FromString
            )
            return services, call(request, timeout=10).SerializeToString()

    async def scenario(client):
        services, raw = await asyncio.to_thread(reflect, client.port)
        return services, raw, await client.stub.Recommend(recommend(count=5))

    services, raw, expected = serve(scenario)
    assert set(services) == {SERVICE.full_name, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert comparable(pb.RecommendResponse.FromString(raw)) == comparable(expected)


def test_reflection_can_be_turned_off(serve):
    async def scenario(client):
        call = client.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(
            iter([b""])
        )
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call.read()
        return error.value.code()

    code = serve(scenario, configured=settings(server={"reflection": False}))
    assert code == grpc.StatusCode.UNIMPLEMENTED


def test_every_method_of_the_contract_is_answered(serve):
    async def scenario(client):
        return {name: (await failure(client.raw(name, b"")))[0].code() for name in METHODS}

    assert serve(scenario) == {
        "Recommend": grpc.StatusCode.INVALID_ARGUMENT,
        "BatchRecommend": grpc.StatusCode.INVALID_ARGUMENT,
        "SimilarItems": grpc.StatusCode.INVALID_ARGUMENT,
        "RankItems": grpc.StatusCode.INVALID_ARGUMENT,
        "Explain": grpc.StatusCode.UNIMPLEMENTED,
    }
