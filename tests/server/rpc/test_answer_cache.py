"""Answers that are kept: what makes two requests equal, and what is served over real gRPC."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.timestamp_pb2 import Timestamp

from recserve.kernels.features import ColumnLayout, ColumnSpec, ColumnValues
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.strings import key_of
from recserve.server.config import Settings
from recserve.server.pipeline.pipeline import Pipeline, open_engines
from recserve.server.pipeline.types import History, UserState
from recserve.server.rpc.answer_cache import NOT_SHAPING, request_key, state_version
from recserve.server.state.embedded import EmbeddedStore, open_users
from recserve.server.state.protocol import StateUnavailableError
from recserve.v1 import recommender_pb2 as pb

NOW = Timestamp(seconds=1_748_779_200)
NOW_US = NOW.seconds * 1_000_000
KEEPING = {"entries": 1000, "seconds": 60}

# ---------------------------------------------------------------------------------------------------------- the key

PAIRS = (
    ('user_id: "a"', 'user_id: "b"'),
    ("count: 20", "count: 21"),
    ('context { placement: "home" }', 'context { placement: "cart" }'),
    ('context { device: "phone" }', 'context { device: "tablet" }'),
    ('context { country: "AT" }', 'context { country: "DE" }'),
    ('context { language: "de" }', 'context { language: "fr" }'),
    ("context { time { seconds: 1 } }", "context { time { seconds: 2 } }"),
    ("context { time { nanos: 1000 } }", "context { time { nanos: 2000 } }"),
    ('context { session_item_ids: ["a", "b"] }', 'context { session_item_ids: ["b", "a"] }'),
    ('context { features { key: "x" value { number: 1 } } }', 'context { features { key: "y" value { number: 1 } } }'),
    ('context { features { key: "x" value { number: 1 } } }', 'context { features { key: "x" value { number: 2 } } }'),
    (
        'context { features { key: "x" value { category: "f" } } }',
        'context { features { key: "x" value { category: "m" } } }',
    ),
    (
        'context { features { key: "x" value { categories { values: "f" } } } }',
        'context { features { key: "x" value { categories { values: "m" } } } }',
    ),
    ('filter { exclude_item_ids: "a" }', 'filter { exclude_item_ids: "b" }'),
    ('filter { include_categories: "a" }', 'filter { include_categories: "b" }'),
    ('filter { exclude_categories: "a" }', 'filter { exclude_categories: "b" }'),
    ("filter { price_min: 1 }", "filter { price_min: 2 }"),
    ("filter { price_max: 1 }", "filter { price_max: 2 }"),
    ("filter { in_stock: false }", "filter { in_stock: true }"),
    ("filter { in_region: false }", "filter { in_region: true }"),
    ("filter { exclude_purchased: false }", "filter { exclude_purchased: true }"),
    ("filter { exclude_shown: false }", "filter { exclude_shown: true }"),
    ('filter { exclude_flags: "a" }', 'filter { exclude_flags: "b" }'),
    ('rerank { caps { caps { attribute: "a" } } }', 'rerank { caps { caps { attribute: "b" } } }'),
    ("rerank { caps { caps { max: 1 } } }", "rerank { caps { caps { max: 2 } } }"),
    ("rerank { caps { caps { window: 1 } } }", "rerank { caps { caps { window: 2 } } }"),
    ("rerank { caps { caps { sliding: true } } }", "rerank { caps { caps { } } }"),
    ("rerank { mmr { relevance_weight: 0.1 } }", "rerank { mmr { relevance_weight: 0.2 } }"),
    ("rerank { dpp { theta: 0.1 } }", "rerank { dpp { theta: 0.2 } }"),
    ("rerank { none { } }", "rerank { mmr { } }"),
    (
        'rerank { objective_weights { key: "click" value: 1 } }',
        'rerank { objective_weights { key: "purchase" value: 1 } }',
    ),
    (
        'rerank { objective_weights { key: "click" value: 1 } }',
        'rerank { objective_weights { key: "click" value: 2 } }',
    ),
    ("rerank { exploration: 0.1 }", "rerank { exploration: 0.2 }"),
    ("rerank { seed: 1 }", "rerank { seed: 2 }"),
    ('sources { name: "a" }', 'sources { name: "b" }'),
    ("sources { weight: 1 }", "sources { weight: 2 }"),
    ('fields: "a"', 'fields: "b"'),
    ("reasons: true", "fields: []"),
    ('bundle: "a"', 'bundle: "b"'),
)
"""Requests in pairs of different answers, which set every field that shapes an answer."""


def request_of(text: str) -> pb.RecommendRequest:
    return text_format.Parse(text, pb.RecommendRequest())


def fields_of(kind: Descriptor, path: str = "") -> Iterator[str]:
    """Every field of a message and of the messages in it, dotted."""
    for field in kind.fields:
        if field.message_type is None or not field.message_type.fields:
            yield path + field.name
        else:
            yield from fields_of(field.message_type, f"{path}{field.name}.")


def fields_set(message: Any, path: str = "") -> Iterator[str]:
    for field, value in message.ListFields():
        yield path + field.name
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            yield from (f"{path}{field.name}.{part}" for part in ("key", "value"))
            values = [value[key] for key in value]
        else:
            values = list(value) if field.is_repeated else [value]
        inner = f"{path}{field.name}." + ("value." if isinstance(value, dict) or hasattr(value, "keys") else "")
        for each in values:
            if hasattr(each, "ListFields"):
                yield from fields_set(each, inner)


def test_every_field_of_a_request_is_in_its_key() -> None:
    """A field that is new in the contract fails here until it has a pair, or is one that shapes no answer."""
    covered = {path for pair in PAIRS for text in pair for path in fields_set(request_of(text))}
    assert set(fields_of(pb.RecommendRequest.DESCRIPTOR)) - covered == set(NOT_SHAPING)
    for one, other in PAIRS:
        keys = {request_key(request_of(text)) for text in ("", one, other)}
        assert len(keys) == (2 if request_of(other) == request_of("") else 3), (one, other)


def test_what_shapes_no_answer_is_not_in_the_key() -> None:
    whole = request_of(
        'user_id: "a" count: 5 '
        'rerank { objective_weights { key: "b" value: 1 } objective_weights { key: "a" value: 2 } }'
    )
    for change in ('request_id: "x"', "record_shown: true", "record_shown: false"):
        other = request_of(change)
        other.MergeFrom(whole)
        assert request_key(other) == request_key(whole)
    turned = request_of(
        'rerank { objective_weights { key: "a" value: 2 } objective_weights { key: "b" value: 1 } } '
        'count: 5 user_id: "a"'
    )
    assert request_key(turned) == request_key(whole)


def a_state() -> UserState:
    layout = ColumnLayout(
        (
            ColumnSpec("n", "number"),
            ColumnSpec("c", "category"),
            ColumnSpec("t", "time"),
            ColumnSpec("l", "categories"),
            ColumnSpec("m", "categories"),
        )
    )
    columns = ColumnValues.missing(layout, 1).with_overrides(layout, {"n": 1.0, "c": 1, "t": 1, "l": (1, 2), "m": (3,)})
    history = History(*(np.array([1, 2], kind) for kind in (np.uint64, np.int32, np.float64, np.int64)))
    return UserState(known=True, columns=columns, history=history, shown=np.array([3, 4], np.uint64))


def variants(value: Any) -> Iterator[tuple[str, Any]]:
    """A dataclass with one of its values changed, at every depth."""
    for field in dataclasses.fields(value):
        old = getattr(value, field.name)
        if dataclasses.is_dataclass(old):
            yield from (
                (f"{field.name}.{at}", dataclasses.replace(value, **{field.name: new})) for at, new in variants(old)
            )
        elif isinstance(old, np.ndarray):
            for new in (old + old.dtype.type(1), old[..., :-1], np.concatenate([old, old], axis=-1)):
                yield field.name, dataclasses.replace(value, **{field.name: new})
        else:
            yield field.name, dataclasses.replace(value, **{field.name: not old})


def test_every_part_of_a_state_is_in_its_version() -> None:
    """A new field of a state must be hashed, or fails here."""
    state = a_state()
    versions = {state_version(state)}
    changed = list(variants(state))
    assert {name.partition(".")[0] for name, _ in changed} == {"known", "columns", "history", "shown"}
    for name, other in changed:
        version = state_version(other)
        assert version not in versions, name
        versions.add(version)
    assert state_version(a_state()) == state_version(state)


# -------------------------------------------------------------------------------------------------------- over gRPC


class Events:
    """A store whose users can be given events, as if somebody had recorded them; `down` makes it fail."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store
        self._more: dict[str, list[tuple[int, int]]] = {}
        self.down = False

    def add(self, user: str, item: str, event: int, time_us: int) -> None:
        self._more.setdefault(user, []).insert(0, (key_of(item), event, time_us))

    async def fetch(self, user_ids: list[str]) -> list[UserState]:
        if self.down:
            raise StateUnavailableError("down")
        states = self._store.fetch(user_ids)
        return [self._with_events(user, state) for user, state in zip(user_ids, states, strict=True)]

    def _with_events(self, user: str, state: UserState) -> UserState:
        old = state.history
        for key, event, time_us in reversed(self._more.get(user, [])):
            old = History(
                np.concatenate([np.array([key], np.uint64), old.keys]),
                np.concatenate([np.array([event], np.int32), old.events]),
                np.concatenate([np.ones(1), old.counts]),
                np.concatenate([np.array([time_us]), old.last_us]),
            )
        return dataclasses.replace(state, history=old)

    async def record_shown(self, user_id: str, item_keys: np.ndarray, time_us: int) -> None:
        await self._store.record_shown(user_id, item_keys, time_us)

    async def close(self) -> None:
        await self._store.close()


@pytest.fixture
def pipeline(tiny_bundle, squash) -> Pipeline:
    bundle = open_bundle(tiny_bundle())
    return Pipeline(bundle, dataclasses.replace(open_engines(bundle, device="cpu"), ranker=squash))


@pytest.fixture
def make_store(tiny_snapshot, pipeline) -> Callable[[], Events]:
    users = open_users(tiny_snapshot(), {"main": pipeline.bundle})

    def make() -> Events:
        embedded = EmbeddedStore.from_settings(Settings(bundles=[{"path": "unused"}]).state)
        embedded.serve(users)
        return Events(embedded)

    return make


def recommend(user: str = "user-07", **fields: Any) -> pb.RecommendRequest:
    return pb.RecommendRequest(**{"user_id": user, "context": pb.Context(time=NOW), **fields})


def random_request(rng: random.Random) -> pb.RecommendRequest:
    session = rng.choice([[], ["item-001", "item-017"], ["item-017", "item-001"]])
    context = pb.Context(time=NOW, device=rng.choice(["", "phone"]), session_item_ids=session)
    if rng.random() < 0.3:
        context.features["age"].number = rng.choice([20, 70])
    return pb.RecommendRequest(
        user_id=rng.choice(["user-01", "user-02", "nobody"]),
        count=rng.choice([5, 20]),
        context=context,
        filter=pb.Filter(exclude_shown=rng.random() < 0.5),
        reasons=rng.random() < 0.5,
        fields=rng.choice([[], ["title"]]),
    )


def test_kept_answers_are_those_that_would_be_computed(over_grpc, pipeline, make_store, plain) -> None:
    """The same 300 calls with events and exposures in between, with and without the cache."""

    def scenario(store):
        async def ask(served):
            rng = random.Random(11)
            few = [random_request(rng) for _ in range(12)]
            found = []
            for step in range(300):
                request = rng.choice(few)
                request.request_id, request.record_shown = str(step), rng.random() < 0.1
                if rng.random() < 0.1:
                    store.add(request.user_id, f"item-{rng.randrange(200):03d}", rng.randrange(3), NOW_US + step)
                response = await served.stub.Recommend(request)
                await asyncio.gather(*served.service._recording)
                assert response.request_id == request.request_id
                found.append(response)
            return found, served.service.cache_stats()

        return ask

    stores = make_store(), make_store()
    kept, stats = over_grpc(scenario(stores[0]), pipeline, stores[0], answer_cache=KEEPING)
    computed, none = over_grpc(scenario(stores[1]), pipeline, stores[1])
    assert [plain(answer) for answer in kept] == [plain(answer) for answer in computed]
    hits = sum(answer.cache_hit for answer in kept)
    assert hits > 50
    assert not any(answer.cache_hit for answer in computed)
    assert (stats["answers"].hits, stats["answers"].misses, none) == (hits, 300 - hits, {})
    assert len({answer.recommendation_id for answer in kept}) == 300
    assert all(answer.cache_hit == (answer.times.retrieve_us == 0) for answer in kept)


def hits(*responses: pb.RecommendResponse) -> list[bool]:
    return [response.cache_hit for response in responses]


def test_it_is_off_by_default(over_grpc, pipeline, make_store) -> None:
    async def scenario(served):
        return [await served.stub.Recommend(recommend()) for _ in range(2)]

    assert hits(*over_grpc(scenario, pipeline, make_store())) == [False, False]


def test_new_events_exposures_and_bundles_mean_another_answer(over_grpc, pipeline, make_store, plain) -> None:
    store = make_store()
    shown = recommend("user-05", count=5, record_shown=True, filter=pb.Filter(exclude_shown=True))

    async def scenario(served):
        async def ask(request):
            response = await served.stub.Recommend(request)
            await asyncio.gather(*served.service._recording)
            return response

        assert hits(await ask(recommend()), await ask(recommend()), await ask(recommend("user-08"))) == [
            False,
            True,
            False,
        ]
        store.add("user-07", "item-003", 0, NOW_US)
        assert hits(await ask(recommend()), await ask(recommend()), await ask(recommend("user-08"))) == [
            False,
            True,
            True,
        ]
        first, second = await ask(shown), await ask(shown)
        assert hits(first, second) == [False, False]
        assert not {item.item_id for item in first.items} & {item.item_id for item in second.items}
        replaced = Pipeline(pipeline.bundle, pipeline.engines)
        served.registry.replace("main", replaced)
        old, new = await ask(recommend("user-08")), await ask(recommend("user-08"))
        assert hits(old, new) == [False, True]
        assert plain(old) == plain(new)

    over_grpc(scenario, pipeline, store, answer_cache=KEEPING)


def test_an_answer_that_is_kept_is_shown_again(over_grpc, pipeline, make_store) -> None:
    """Its second exposure counts, and changes nothing: the list is the same."""
    store = make_store()

    async def scenario(served):
        found = []
        for _ in range(3):
            found.append(await served.stub.Recommend(recommend(count=3, record_shown=True)))
            await asyncio.gather(*served.service._recording)
        [state] = await store.fetch(["user-07"])
        return found, state.shown.tolist()

    found, shown = over_grpc(scenario, pipeline, store, answer_cache=KEEPING)
    assert hits(*found) == [False, False, True]  # the first exposure changed the user's state
    assert shown == [key_of(item.item_id) for item in found[0].items]


def test_now_is_as_of_the_kept_answer(over_grpc, pipeline, make_store) -> None:
    """A request without a time is answered for as long as the cache keeps it; another time is another request."""
    later = pb.Context(time=Timestamp(seconds=NOW.seconds + 1))

    async def scenario(served):
        now = pb.RecommendRequest(user_id="user-07")
        found = [await served.stub.Recommend(now) for _ in range(2)]
        await asyncio.sleep(0.5)
        found.append(await served.stub.Recommend(now))
        assert hits(*found) == [False, True, False]
        at_a_time = [
            await served.stub.Recommend(recommend(context=each)) for each in (pb.Context(time=NOW), later, later)
        ]
        assert hits(*at_a_time) == [False, False, True]

    over_grpc(scenario, pipeline, make_store(), answer_cache={"entries": 10, "seconds": 0.4})


def test_it_is_bounded(over_grpc, pipeline, make_store) -> None:
    async def scenario(served):
        for user in range(6):
            await served.stub.Recommend(recommend(f"user-{user:02d}"))
        newest = await served.stub.Recommend(recommend("user-05"))
        oldest = await served.stub.Recommend(recommend("user-00"))
        return oldest.cache_hit, newest.cache_hit, served.service.cache_stats()["answers"].entries

    assert over_grpc(scenario, pipeline, make_store(), answer_cache={"entries": 4}) == (False, True, 4)


def test_requests_of_a_batch_are_kept_like_any_other(over_grpc, pipeline, make_store, plain) -> None:
    requests = [recommend("user-01"), recommend(""), recommend("user-02")]

    async def scenario(served):
        alone = await served.stub.Recommend(recommend("user-02"))
        first = await served.stub.BatchRecommend(pb.BatchRecommendRequest(requests=requests))
        second = await served.stub.BatchRecommend(pb.BatchRecommendRequest(requests=requests))
        assert [each.WhichOneof("result") for each in second.answers] == ["response", "status", "response"]
        assert hits(*(each.response for each in first.answers)) == [False, False, True]
        assert hits(*(each.response for each in second.answers)) == [True, False, True]
        assert plain(second.answers[2].response) == plain(alone)
        assert plain(second.answers[0].response) == plain(first.answers[0].response)

    over_grpc(scenario, pipeline, make_store(), answer_cache=KEEPING)


def test_what_failed_or_was_left_or_lacks_state_is_not_kept(over_grpc, pipeline, make_store) -> None:
    store = make_store()
    broken = threading.Event()
    slow = threading.Event()
    entered = threading.Event()

    def select(*arguments, deadline):
        if broken.is_set():
            raise RuntimeError("a bug")
        if slow.is_set():
            entered.set()
            slow.clear()
            assert not left.wait(0.2)
        return pipeline.engines.select(*arguments, deadline=deadline)

    left = threading.Event()
    fragile = Pipeline(pipeline.bundle, dataclasses.replace(pipeline.engines, select=select))

    async def scenario(served):
        broken.set()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await served.stub.Recommend(recommend())
        assert error.value.code() == grpc.StatusCode.INTERNAL
        broken.clear()
        slow.set()
        call = served.stub.Recommend(recommend())
        await asyncio.to_thread(entered.wait, 20)
        call.cancel()
        store.down = True
        without = await served.stub.Recommend(recommend())
        store.down = False
        assert [each.stage for each in without.degraded] == ["state"]
        assert served.service.cache_stats()["answers"].entries == 0
        assert hits(await served.stub.Recommend(recommend()), await served.stub.Recommend(recommend())) == [False, True]
        store.down = True
        degraded = await served.stub.Recommend(recommend())
        store.down = False
        assert (degraded.cache_hit, [each.stage for each in degraded.degraded]) == (False, ["state"])
        assert (await served.stub.Recommend(recommend())).cache_hit

    over_grpc(scenario, fragile, store, answer_cache=KEEPING)


def test_a_kept_answer_takes_no_place_in_the_queue(over_grpc, pipeline, make_store) -> None:
    """While the only place is taken, what is kept is served; what turns out to be out of date is refused."""
    store = make_store()
    stop, reached, go_on = threading.Event(), threading.Event(), threading.Event()

    def select(*arguments, deadline):
        if stop.is_set():
            reached.set()
            assert go_on.wait(20)
        return pipeline.engines.select(*arguments, deadline=deadline)

    gated = Pipeline(pipeline.bundle, dataclasses.replace(pipeline.engines, select=select))

    async def scenario(served):
        for user in ("user-01", "user-02"):
            await served.stub.Recommend(recommend(user))
        stop.set()
        busy = served.stub.Recommend(recommend("user-03"))
        await asyncio.to_thread(reached.wait, 20)
        assert (await served.stub.Recommend(recommend("user-01"))).cache_hit
        store.add("user-02", "item-001", 0, NOW_US)
        for refused in (recommend("user-02"), recommend("user-04")):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await served.stub.Recommend(refused)
            assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        batch = await served.stub.BatchRecommend(
            pb.BatchRecommendRequest(requests=[recommend("user-04"), recommend("user-01")])
        )
        assert [each.WhichOneof("result") for each in batch.answers] == ["status", "response"]
        go_on.set()
        assert not (await busy).cache_hit
        assert not (await served.stub.Recommend(recommend("user-02"))).cache_hit
        assert served.service._admission.admitted == 0

    over_grpc(
        scenario, gated, store, answer_cache=KEEPING, admission={"max_queue": 1}, compute={"threads": 1, "max_batch": 1}
    )
