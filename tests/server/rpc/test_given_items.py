"""SimilarItems and RankItems over real gRPC, against answers worked out by brute force."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pyarrow as pa
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2 as detail
from google.rpc.status_pb2 import Status

from recserve.kernels.features import ColumnValues
from recserve.server.bundle.catalogue import Catalogue
from recserve.server.bundle.columns import CategoriesColumn
from recserve.server.bundle.reader import Bundle, open_bundle
from recserve.server.bundle.strings import key_of
from recserve.server.config import Settings
from recserve.server.pipeline.assemble import Candidates
from recserve.server.pipeline.pipeline import Pipeline, open_engines
from recserve.server.pipeline.types import Query, QueryKind, UserState
from recserve.server.state.embedded import EmbeddedStore, Users, open_users
from recserve.v1 import recommender_pb2 as pb

NOW = Timestamp(seconds=1_748_779_200)
NEAR = 1e-6
"""Sums of float32 products in another order differ by less."""


def a_store(users: Users) -> EmbeddedStore:
    store = EmbeddedStore.from_settings(Settings(bundles=[{"path": "unused"}]).state)
    store.serve(users)
    return store


async def failure(call: Any) -> tuple[grpc.StatusCode, list[Any]]:
    """The code of a call that must fail, and its details."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    metadata = dict(error.value.trailing_metadata())
    return error.value.code(), list(Status.FromString(metadata["grpc-status-details-bin"]).details)


def unpacked(details: Sequence[Any], kind: type) -> list[Any]:
    found = []
    for each in details:
        message = kind()
        if each.Unpack(message):
            found.append(message)
    return found


def values_of(catalogue: Catalogue, role: str, row: int) -> tuple[str, ...]:
    column = catalogue.role(role)
    assert isinstance(column, CategoriesColumn)
    value = column.value(row)
    return value if isinstance(value, tuple) else ()


def passes(catalogue: Catalogue, row: int, wanted: pb.Filter, country: str) -> bool:
    """The contract's words, one item at a time."""
    category, price = catalogue.role("category").value(row), catalogue.role("price").value(row)
    regions = values_of(catalogue, "regions", row)
    in_stock = wanted.in_stock if wanted.HasField("in_stock") else True
    return not (
        catalogue.ids_of_rows(np.array([row]))[0] in wanted.exclude_item_ids
        or (wanted.include_categories and category not in wanted.include_categories)
        or category in wanted.exclude_categories
        or (wanted.HasField("price_min") and not (price is not None and price >= wanted.price_min))
        or (wanted.HasField("price_max") and not (price is not None and price <= wanted.price_max))
        or (in_stock and not catalogue.role("in_stock").value(row))
        or (wanted.in_region and regions and country not in regions)
        or set(wanted.exclude_flags) & set(values_of(catalogue, "flags", row))
    )


def random_filter(rng: random.Random, categories: Sequence[str], flag: str, ids: Sequence[str]) -> pb.Filter:
    wanted = pb.Filter()
    if rng.random() < 0.4:
        wanted.exclude_item_ids.extend(rng.sample(ids, rng.randint(1, 20)))
    if rng.random() < 0.3:
        wanted.include_categories.extend(rng.sample(categories, 2))
    if rng.random() < 0.2:
        wanted.exclude_categories.append(rng.choice(categories))
    if rng.random() < 0.4:
        wanted.price_min = rng.choice([0.0, 2.0, 5.0])
    if rng.random() < 0.4:
        wanted.price_max = rng.choice([5.0, 30.0, 90.0])
    if rng.random() < 0.5:
        wanted.in_stock = rng.random() < 0.5
    if rng.random() < 0.3:
        wanted.in_region = True
    if rng.random() < 0.3:
        wanted.exclude_flags.append(flag)
    return wanted


# --------------------------------------------------------------------------------------------------------- SimilarItems


@pytest.fixture
def two_spaces(make_bundle: Callable[..., Bundle]) -> Pipeline:
    """60 items with a behaviour and a content space."""
    bundle = make_bundle()
    return Pipeline(bundle, open_engines(bundle, device="cpu"))


@pytest.fixture
def strangers(two_spaces: Pipeline) -> EmbeddedStore:
    return a_store(Users(two_spaces.bundle.schema.user_layout, None))


def blend(bundle: Bundle, seeds: Sequence[int], alpha: float) -> np.ndarray:
    """Every item's similarity to the nearest of the seeds, in double."""
    ann, content = (bundle.spaces[name].vectors.astype(np.float64) for name in ("ann", "content"))
    return (alpha * (ann @ ann[seeds].T) + (1 - alpha) * (content @ content[seeds].T)).max(axis=1)


def random_similar(rng: random.Random, bundle: Bundle) -> pb.SimilarItemsRequest:
    ids = bundle.catalogue.ids_of_rows(np.arange(bundle.catalogue.size))
    seeds = rng.choices(ids, k=rng.randint(1, 6))  # perhaps the same one twice
    seeds += rng.sample(["unknown-1", "unknown-2"], rng.randint(0, 2))
    rng.shuffle(seeds)
    request = pb.SimilarItemsRequest(item_ids=seeds, context=pb.Context(time=NOW, country=rng.choice(["DE", "FR"])))
    request.filter.CopyFrom(random_filter(rng, ["books", "games", "toys"], "adult", ids))
    if rng.random() < 0.8:
        request.alpha = rng.choice([0.0, 0.25, 0.5, 1.0])
    if rng.random() < 0.8:
        request.count = rng.choice([1, 7, 60, 500])
    return request


def assert_nearest(response: pb.SimilarItemsResponse, request: pb.SimilarItemsRequest, bundle: Bundle) -> int:
    """Exactly the nearest passing items that are no seeds, by brute force; how many there are."""
    catalogue = bundle.catalogue
    known = catalogue.rows_of_ids(request.item_ids)
    seeds = sorted({int(row) for row in known if row >= 0})
    similarity = blend(bundle, seeds, request.alpha if request.HasField("alpha") else 1.0)
    allowed = [
        row
        for row in range(catalogue.size)
        if row not in seeds and passes(catalogue, row, request.filter, request.context.country)
    ]
    wanted = request.count if request.HasField("count") else 20
    best = sorted((similarity[row] for row in allowed), reverse=True)[:wanted]
    rows = catalogue.rows_of_ids([item.item_id for item in response.items]).tolist()
    assert len(set(rows)) == len(rows) == min(wanted, len(allowed))
    assert set(rows) <= set(allowed)
    np.testing.assert_allclose([item.score for item in response.items], similarity[rows], atol=NEAR)
    np.testing.assert_allclose(similarity[rows], best, atol=NEAR)  # only near-ties may have changed places
    assert [item.rank for item in response.items] == list(range(1, len(rows) + 1))
    unknown = [item_id for item_id, row in zip(request.item_ids, known, strict=True) if row < 0]
    assert list(response.unknown_item_ids) == unknown
    return len(rows)


def test_similar_items_are_the_nearest_that_pass(over_grpc, two_spaces, strangers) -> None:
    async def scenario(served):
        rng = random.Random(7)
        requests = [random_similar(rng, two_spaces.bundle) for _ in range(120)]
        calls = [served.stub.SimilarItems(each) for each in requests]
        return [assert_nearest(await call, each, two_spaces.bundle) for call, each in zip(calls, requests, strict=True)]

    sizes = over_grpc(scenario, two_spaces, strangers)
    assert 0 in sizes  # a filter that nothing passes is an empty answer
    assert max(sizes) > 30


def test_a_seed_named_twice_counts_once(over_grpc, two_spaces, strangers, plain) -> None:
    async def scenario(served):
        ids = ["item-3", "item-9"]
        once = await served.stub.SimilarItems(pb.SimilarItemsRequest(item_ids=ids, alpha=0.5))
        twice = await served.stub.SimilarItems(pb.SimilarItemsRequest(item_ids=[*ids, *ids], alpha=0.5))
        assert plain(once) == plain(twice)
        assert {source.name for item in once.items for source in item.sources} == {"ann", "content"}

    over_grpc(scenario, two_spaces, strangers)


def test_what_the_user_was_shown_is_left_out(over_grpc, two_spaces, strangers) -> None:
    async def scenario(served):
        request = pb.SimilarItemsRequest(item_ids=["item-3"], count=5, user_id="anybody")
        first = await served.stub.SimilarItems(request)
        shown = [item.item_id for item in first.items]
        await strangers.record_shown("anybody", np.array([key_of(each) for each in shown], np.uint64), 2**62)
        request.filter.exclude_shown = True
        second = await served.stub.SimilarItems(request)
        assert len(second.items) == 5
        assert not {item.item_id for item in second.items} & set(shown)

    over_grpc(scenario, two_spaces, strangers)


@pytest.mark.parametrize("method", ["SimilarItems", "RankItems"])
def test_where_no_item_is_known_all_are_named(over_grpc, two_spaces, strangers, squash, method: str) -> None:
    ranking = Pipeline(two_spaces.bundle, dataclasses.replace(two_spaces.engines, ranker=squash))
    kind = getattr(pb, f"{method}Request")

    async def scenario(served):
        ask = getattr(served.stub, method)
        code, details = await failure(ask(kind(user_id="u", item_ids=["gone-1", "gone-2"])))
        assert code == grpc.StatusCode.NOT_FOUND
        assert [each.resource_name for each in unpacked(details, detail.ResourceInfo)] == ["gone-1", "gone-2"]
        some = await ask(kind(user_id="u", item_ids=["gone-1", "item-1"]))
        assert list(some.unknown_item_ids) == ["gone-1"]

    over_grpc(scenario, ranking, strangers)


# ------------------------------------------------------------------------------------------------------------ RankItems


@pytest.fixture
def ranking(tiny_bundle, squash) -> Pipeline:
    bundle = open_bundle(tiny_bundle())
    return Pipeline(bundle, dataclasses.replace(open_engines(bundle, device="cpu"), ranker=squash))


@pytest.fixture
def users(tiny_snapshot, ranking) -> Users:
    return open_users(tiny_snapshot(), {"main": ranking.bundle})


def brute_scores(pipeline: Pipeline, user: str, state: UserState, rows: Sequence[int], weights: Sequence[float]) -> Any:
    """Each row's score by itself: no other candidate is there."""
    query = Query(
        kind=QueryKind.RANK,
        user_id=user,
        time_us=NOW.seconds * 1_000_000,
        context=ColumnValues.missing(pipeline.bundle.schema.context_layout, 1),
        given_rows=np.array(rows[:1], np.int64),
    )
    [(subject, _)] = pipeline.retrieve([(query, state)])
    ranker = pipeline.engines.ranker
    scores = []
    for row in rows:
        inputs = pipeline.ranking_inputs([subject], [Candidates.given(np.array([row], np.int64))])
        [relevance] = ranker.relevance(ranker.margins(inputs.matrix()))
        scores.append(
            float(sum(part * (weight / sum(weights)) for part, weight in zip(relevance, weights, strict=True)))
        )
    return scores


def test_ranked_items_are_ordered_by_their_scores(over_grpc, ranking, users) -> None:
    catalogue = ranking.bundle.catalogue
    ids = catalogue.ids_of_rows(np.arange(catalogue.size))
    categories = ["books", "garden", "kitchen", "music", "office"]

    def random_rank(rng: random.Random) -> pb.RankItemsRequest:
        items = rng.sample(ids, rng.randint(1, 40))
        items.insert(rng.randint(0, len(items)), "unknown")
        request = pb.RankItemsRequest(user_id=f"user-{rng.randrange(60):02d}", item_ids=items)
        request.context.time.CopyFrom(NOW)
        request.context.country = "AT"
        request.filter.CopyFrom(random_filter(rng, categories, "adult", ids))
        if rng.random() < 0.5:
            request.count = rng.choice([1, 5, 5000])
        if rng.random() < 0.5:
            request.rerank.objective_weights["purchase"] = 1.0
            request.rerank.caps.SetInParent()
        return request

    async def scenario(served):
        rng = random.Random(3)
        requests = [random_rank(rng) for _ in range(25)]
        calls = [served.stub.RankItems(each) for each in requests]
        return [(each, await call) for each, call in zip(requests, calls, strict=True)]

    store = a_store(users)
    sizes = []
    for request, response in over_grpc(scenario, ranking, store):
        known = [row for row in catalogue.rows_of_ids(request.item_ids).tolist() if row >= 0]
        rows = [row for row in known if passes(catalogue, row, request.filter, "AT")]
        weights = (0.0, 1.0) if request.rerank.objective_weights else ranking.engines.ranker.weights
        [state] = users.states([request.user_id], store._shown)
        scores = brute_scores(ranking, request.user_id, state, rows, weights) if rows else []
        expected = sorted(zip(scores, rows, strict=True), key=lambda each: (-each[0], each[1]))
        expected = expected[: request.count if request.HasField("count") else len(expected)]
        found = catalogue.rows_of_ids([item.item_id for item in response.items]).tolist()
        assert [(item.score, row) for item, row in zip(response.items, found, strict=True)] == expected
        assert list(response.unknown_item_ids) == ["unknown"]
        sizes.append(len(found))
    assert max(sizes) > 20
    assert 0 in sizes


def test_an_item_given_twice_is_named(over_grpc, ranking, users) -> None:
    async def scenario(served):
        request = pb.RankItemsRequest(user_id="user-01", item_ids=["item-001", "item-002", "item-001"])
        code, details = await failure(served.stub.RankItems(request))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        [bad] = unpacked(details, detail.BadRequest)
        assert [each.field for each in bad.field_violations] == ["item_ids[2]"]

    over_grpc(scenario, ranking, a_store(users))


def test_5000_given_items_are_ranked_and_one_more_is_refused(
    over_grpc, tiny_bundle, tiny_items, tmp_path, squash, users
) -> None:
    """Items that differ in nothing but their vectors tie, and are ordered by row."""
    count = 5001
    table = pa.concat_tables([tiny_items] * 26).slice(0, count)
    ids = [f"item-{row:04d}" for row in range(count)]
    table = table.set_column(0, "item_id", pa.array(ids))
    bundle = open_bundle(tiny_bundle(target=tmp_path / "large", items=table))
    pipeline = Pipeline(bundle, dataclasses.replace(open_engines(bundle, device="cpu"), ranker=squash))
    given = random.Random(2).sample(ids, 5000)
    store = a_store(users)
    keep_all = pb.Filter(in_stock=False)

    async def scenario(served):
        request = pb.RankItemsRequest(user_id="user-01", item_ids=given, filter=keep_all, context=pb.Context(time=NOW))
        response = await served.stub.RankItems(request)
        code, details = await failure(
            served.stub.RankItems(pb.RankItemsRequest(user_id="user-01", item_ids=ids, filter=keep_all))
        )
        return response, code, details

    response, code, details = over_grpc(scenario, pipeline, store)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    [bad] = unpacked(details, detail.BadRequest)
    assert [each.field for each in bad.field_violations] == ["item_ids"]
    assert "1 to 5000 ids, but there are 5001" in bad.field_violations[0].description
    found = bundle.catalogue.rows_of_ids([item.item_id for item in response.items])
    assert sorted(found.tolist()) == sorted(bundle.catalogue.rows_of_ids(given).tolist())
    scores = np.array([item.score for item in response.items])
    assert np.lexsort((found, -scores)).tolist() == list(range(5000))
    [state] = users.states(["user-01"], store._shown)
    some = np.linspace(0, 4999, 60, dtype=int)
    expected = brute_scores(pipeline, "user-01", state, found[some].tolist(), squash.weights)
    assert scores[some].tolist() == expected
