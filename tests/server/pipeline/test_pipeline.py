"""The whole road over a small bundle, against answers worked out in plain Python."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from recserve.kernels.features import ColumnValues
from recserve.server.bundle.reader import Bundle, open_bundle
from recserve.server.bundle.snapshot import Snapshot, open_snapshot
from recserve.server.pipeline.errors import CallerGoneError, DeadlineExpiredError
from recserve.server.pipeline.pipeline import Pipeline, open_pipeline
from recserve.server.pipeline.types import (
    Cap,
    Freshness,
    Fusion,
    History,
    ItemFilter,
    Query,
    QueryKind,
    Quota,
    RerankOptions,
    Result,
    UserState,
)

NOW_US = 1_750_000_000_000_000


@pytest.fixture(name="bundle")
def fixture_bundle(tiny_bundle: Callable[..., Path]) -> Bundle:
    return open_bundle(tiny_bundle())


@pytest.fixture(name="pipeline")
def fixture_pipeline(bundle: Bundle) -> Pipeline:
    return open_pipeline(bundle)


@pytest.fixture(name="snapshot")
def fixture_snapshot(tiny_snapshot: Callable[..., Path]) -> Snapshot:
    return open_snapshot(tiny_snapshot())


def state_of(snapshot: Snapshot, row: int) -> UserState:
    user = snapshot.state(row)
    return UserState(
        known=True, columns=user.columns, history=History(user.keys, user.events, user.counts, user.last_us)
    )


def stranger(bundle: Bundle) -> UserState:
    return UserState(known=False, columns=ColumnValues.missing(bundle.schema.user_layout, 1))


def query(bundle: Bundle, **changes: object) -> Query:
    plain: dict[str, object] = {
        "kind": QueryKind.RECOMMEND,
        "time_us": NOW_US,
        "context": ColumnValues.missing(bundle.schema.context_layout, 1),
        "quotas": (Quota("als", 1.0),),
        "count": 10,
        "candidates": 50,
    }
    return Query(**{**plain, **changes})  # type: ignore[arg-type]


def answer(pipeline: Pipeline, asked: Query, state: UserState) -> Result:
    (found,) = pipeline.run([(asked, state)])
    assert isinstance(found, Result), found
    return found


def test_one_space_gives_its_nearest_items(pipeline: Pipeline, bundle: Bundle, snapshot: Snapshot) -> None:
    user_id = snapshot.user_ids(np.array([3]))[0]
    space = bundle.spaces["als"]
    vector = space.user_vectors[space.user_row(user_id)]
    exact = np.argsort(-(space.vectors.astype(np.float64) @ vector.astype(np.float64)), kind="stable")[:10]
    found = answer(pipeline, query(bundle, user_id=user_id), state_of(snapshot, 3))
    assert found.rows.tolist() == exact.tolist()
    assert found.sources == ("als",)
    assert found.source_ranks[:, 0].tolist() == list(range(1, 11))
    assert np.allclose(found.source_scores[:, 0], space.vectors[exact] @ vector, rtol=1e-5)
    assert found.relevance is None
    assert not found.cold_start


def test_a_stranger_gets_popular_items_and_is_told_so(pipeline: Pipeline, bundle: Bundle) -> None:
    found = answer(pipeline, query(bundle, user_id="nobody"), stranger(bundle))
    assert found.cold_start
    assert found.rows.tolist() == bundle.catalogue.popular_rows[:10].tolist()
    assert found.sources == ("als", "popular")


def test_a_stranger_with_a_session_gets_items_like_it(pipeline: Pipeline, bundle: Bundle) -> None:
    session = np.array([5, 9], np.int64)
    found = answer(pipeline, query(bundle, session_rows=session), stranger(bundle))
    vectors = bundle.spaces["als"].vectors.astype(np.float64)
    exact = np.argsort(-(vectors @ vectors[session].mean(axis=0)), kind="stable")[:10]
    assert found.rows.tolist() == exact.tolist()


@pytest.mark.parametrize("fusion", [None, Fusion(depth=5)])
@pytest.mark.parametrize("quota", ["als", "popular", "again"])
@pytest.mark.parametrize("passing", [0, 1, 7, 60])
def test_exactly_as_many_as_pass_the_filter(
    pipeline: Pipeline, bundle: Bundle, snapshot: Snapshot, quota: str, passing: int, fusion: Fusion | None
) -> None:
    size = bundle.catalogue.size
    keep = np.random.default_rng(passing).choice(size, passing, replace=False)
    excluded = np.setdiff1d(np.arange(size), keep)
    asked = query(
        bundle,
        user_id=snapshot.user_ids(np.array([0]))[0],
        quotas=(Quota(quota, 1.0),),
        fusion=fusion,
        count=20,
        filter=ItemFilter(exclude_rows=excluded),
    )
    found = answer(pipeline, asked, state_of(snapshot, 0))
    assert found.rows.size == min(20, passing)
    assert set(found.rows.tolist()) <= set(keep.tolist())
    assert len(set(found.rows.tolist())) == found.rows.size


def test_a_fusion_hears_of_items_that_no_source_has_among_its_first(
    pipeline: Pipeline, bundle: Bundle, snapshot: Snapshot
) -> None:
    quotas = (Quota("als", 1.0), Quota("popular", 0.5))
    depth, candidates = 200, 20
    lists = []
    for quota in quotas:
        alone = query(bundle, user_id=snapshot.user_ids(np.array([3]))[0], quotas=(quota,), count=0, candidates=depth)
        ((_, found),) = pipeline.retrieve([(alone, state_of(snapshot, 3))])
        lists.append(found.rows.tolist())
    merits = dict.fromkeys(set().union(*lists), 0.0)
    for rows, quota in zip(lists, quotas, strict=True):
        for rank, row in enumerate(rows, start=1):
            merits[row] += quota.weight / (100.0 + rank)
    best = sorted(merits, key=lambda row: (-merits[row], row))[:candidates]
    asked = query(
        bundle,
        user_id=snapshot.user_ids(np.array([3]))[0],
        quotas=quotas,
        candidates=candidates,
        fusion=Fusion(depth=depth, constant=100.0),
    )
    ((_, chosen),) = pipeline.retrieve([(asked, state_of(snapshot, 3))])
    assert chosen.rows.tolist() == best
    assert chosen.sources == ("als", "popular")
    assert chosen.ranks.max() > candidates


def test_whoever_evaluates_is_told_of_a_deadline_that_has_passed(
    pipeline: Pipeline, bundle: Bundle, snapshot: Snapshot
) -> None:
    late = query(bundle, user_id=snapshot.user_ids(np.array([3]))[0], deadline=0.0)
    for half in (pipeline.retrieve, pipeline.rank):
        with pytest.raises(DeadlineExpiredError, match="retrieve"):
            half([(late, state_of(snapshot, 3))])


@pytest.mark.parametrize("kind", [QueryKind.RECOMMEND, QueryKind.SIMILAR])
def test_a_pool_smaller_than_the_count_does_not_shorten_the_list(
    pipeline: Pipeline, bundle: Bundle, kind: QueryKind
) -> None:
    seeds = np.array([1], np.int64) if kind is QueryKind.SIMILAR else np.empty(0, np.int64)
    asked = query(bundle, kind=kind, given_rows=seeds, quotas=(Quota("popular", 1.0),), count=40, candidates=5)
    assert answer(pipeline, asked, stranger(bundle)).rows.size == 40


def test_again_orders_own_items_by_frequency(pipeline: Pipeline, bundle: Bundle) -> None:
    rows = np.array([4, 8, 15, 16], np.int64)
    history = History(
        np.concatenate([bundle.catalogue.keys_of_rows(rows), np.array([12345], np.uint64)]),
        np.zeros(5, np.int32),
        np.array([1.0, 5.0, 2.0, 2.0, 99.0]),
        NOW_US - np.array([4, 3, 2, 1, 0]) * 1_000_000,
    )
    state = UserState(known=True, columns=ColumnValues.missing(bundle.schema.user_layout, 1), history=history)
    found = answer(pipeline, query(bundle, quotas=(Quota("again", 1.0),), count=4), state)
    assert found.rows.tolist() == [8, 16, 15, 4]
    assert found.source_scores[:, 0].tolist() == [5.0, 2.0, 2.0, 1.0]


def test_purchased_and_shown_items_are_left_out_on_request(pipeline: Pipeline, bundle: Bundle) -> None:
    purchase = bundle.schema.event_types.index("purchase")
    rows = np.array([1, 2, 3], np.int64)
    keys = bundle.catalogue.keys_of_rows(rows)
    events = np.array([purchase, purchase, (purchase + 1) % len(bundle.schema.event_types)], np.int32)
    history = History(keys, events, np.ones(3), np.full(3, NOW_US - 1))
    state = UserState(
        known=True,
        columns=ColumnValues.missing(bundle.schema.user_layout, 1),
        history=history,
        shown=bundle.catalogue.keys_of_rows(np.array([7], np.int64)),
    )
    everything = query(bundle, quotas=(Quota("popular", 1.0),), count=500, candidates=500)
    size = bundle.catalogue.size
    assert answer(pipeline, everything, state).rows.size == size
    asked = query(
        bundle,
        quotas=(Quota("popular", 1.0),),
        count=500,
        candidates=500,
        filter=ItemFilter(exclude_purchased=True, exclude_shown=True),
    )
    left = set(range(size)) - set(answer(pipeline, asked, state).rows.tolist())
    assert left == {1, 2, 7}


def test_caps_hold_and_say_when_they_cannot(pipeline: Pipeline, bundle: Bundle) -> None:
    capped = RerankOptions(caps=(Cap("category", 1),))
    categories = bundle.catalogue.columns["category"].codes  # type: ignore[union-attr]
    distinct = len(set(categories[categories >= 0].tolist()))
    asked = query(bundle, quotas=(Quota("popular", 1.0),), count=distinct, candidates=500, rerank=capped)
    found = answer(pipeline, asked, stranger(bundle))
    codes = [code for code in categories[found.rows].tolist() if code >= 0]
    assert len(codes) == len(set(codes))
    assert found.degraded == ()
    more = query(bundle, quotas=(Quota("popular", 1.0),), count=200, candidates=500, rerank=capped)
    full = answer(pipeline, more, stranger(bundle))
    assert full.rows.size == 200
    assert [(each.stage, each.reason) for each in full.degraded] == [("diversity", "caps_relaxed")]


def test_freshness_multiplies_scores(pipeline: Pipeline, bundle: Bundle) -> None:
    asked = query(bundle, quotas=(Quota("popular", 1.0),), count=500, candidates=500)
    plain = answer(pipeline, asked, stranger(bundle))
    fresh_query = query(
        bundle, quotas=asked.quotas, count=500, candidates=500, rerank=RerankOptions(freshness=Freshness(0.5, 30.0))
    )
    fresh = answer(pipeline, fresh_query, stranger(bundle))
    launch = bundle.catalogue.role("launch_time").values  # type: ignore[union-attr]
    before = dict(zip(plain.rows.tolist(), plain.scores.tolist(), strict=True))
    for row, score in zip(fresh.rows.tolist(), fresh.scores.tolist(), strict=True):
        age = max(0.0, (NOW_US - int(launch[row])) / 86_400e6)
        missing = int(launch[row]) == np.iinfo(np.int64).min
        gain = 1.0 if missing else 1 + 0.5 * 2 ** (-age / 30.0)
        assert score == pytest.approx(before[row] * gain, rel=1e-12)


def test_rank_orders_what_the_caller_brings(pipeline: Pipeline, bundle: Bundle) -> None:
    rows = np.array([11, 3, 42], np.int64)
    asked = query(bundle, kind=QueryKind.RANK, given_rows=rows, quotas=(), count=3)
    found = answer(pipeline, asked, stranger(bundle))
    assert sorted(found.rows.tolist()) == [3, 11, 42]
    priced = query(
        bundle, kind=QueryKind.RANK, given_rows=rows, quotas=(), count=3, filter=ItemFilter(exclude_rows=rows[:1])
    )
    assert sorted(answer(pipeline, priced, stranger(bundle)).rows.tolist()) == [3, 42]


def test_similar_finds_the_neighbours_of_its_seeds(pipeline: Pipeline, bundle: Bundle) -> None:
    seeds = np.array([10, 20], np.int64)
    asked = query(bundle, kind=QueryKind.SIMILAR, given_rows=seeds, quotas=())
    found = answer(pipeline, asked, stranger(bundle))
    vectors = bundle.spaces["content"].vectors.astype(np.float64)  # the bundle's only space of length 1
    scores = (vectors @ vectors[seeds].T).max(axis=1)
    scores[seeds] = -np.inf
    exact = np.argsort(-scores, kind="stable")[:10]
    assert found.rows.tolist() == exact.tolist()
    assert np.allclose(found.scores, scores[exact], atol=1e-6)
    assert found.sources == ("content",)


def test_diversity_uses_the_first_space_of_length_one(pipeline: Pipeline, bundle: Bundle) -> None:
    asked = query(bundle, quotas=(Quota("popular", 1.0),), count=2, rerank=RerankOptions(mmr_weight=0.0))
    first, second = answer(pipeline, asked, stranger(bundle)).rows.tolist()
    vectors = bundle.spaces["content"].vectors.astype(np.float64)
    pool = bundle.catalogue.popular_rows[:50]
    least_similar = pool[np.argmin(np.where(pool == first, np.inf, vectors[pool] @ vectors[first]))]
    assert second == least_similar


def test_a_passed_deadline_stops_work_for_that_request_alone(pipeline: Pipeline, bundle: Bundle) -> None:
    late, early = query(bundle, deadline=0.0), query(bundle)
    first, second = pipeline.run([(late, stranger(bundle)), (early, stranger(bundle))])
    assert isinstance(first, DeadlineExpiredError)
    assert first.stage == "embed"
    assert isinstance(second, Result)


def test_a_deadline_that_passes_in_the_choice_stops_it_for_that_request_alone(
    pipeline: Pipeline, bundle: Bundle
) -> None:
    def select(*selection: object, deadline: float) -> tuple[NDArray[np.int64], bool]:
        return pipeline.engines.select(*selection, deadline=deadline - 3600)  # an hour passes just now

    slow = Pipeline(bundle, dataclasses.replace(pipeline.engines, select=select))
    timed = query(bundle, deadline=time.monotonic() + 1800, rerank=RerankOptions(mmr_weight=0.5))
    untimed = query(bundle, rerank=RerankOptions(mmr_weight=0.5))
    first, second, third = slow.run([(each, stranger(bundle)) for each in (untimed, timed, untimed)])
    assert isinstance(second, DeadlineExpiredError)
    assert second.stage == "rerank"
    expected = answer(pipeline, untimed, stranger(bundle)).rows.tolist()
    for other in (first, third):
        assert isinstance(other, Result)
        assert other.rows.tolist() == expected


def test_a_caller_who_has_left_costs_no_further_stage(pipeline: Pipeline, bundle: Bundle) -> None:
    asked: list[int] = []

    def gone(index: int) -> bool:
        asked.append(index)
        return index == 0

    first, second = pipeline.run([(query(bundle), stranger(bundle)), (query(bundle), stranger(bundle))], gone=gone)
    assert isinstance(first, CallerGoneError)
    assert first.stage == "embed"
    assert isinstance(second, Result)
    assert asked.count(0) == 1
    assert asked.count(1) >= 4


@pytest.mark.parametrize(
    ("looks", "stage"), list(enumerate(["embed", "retrieve", "retrieve", "rank", "rerank", "rerank"]))
)
def test_callers_who_leave_during_a_stage_are_not_worked_for(
    pipeline: Pipeline, bundle: Bundle, looks: int, stage: str
) -> None:
    """Uniting what sources propose and re-ranking go through requests one by one: they look again before each."""
    looked = 0

    def gone(index: int) -> bool:
        nonlocal looked
        looked += index == 1
        return index == 1 and looked > looks

    first, second = pipeline.run([(query(bundle), stranger(bundle)), (query(bundle), stranger(bundle))], gone=gone)
    assert isinstance(first, Result)
    assert isinstance(second, CallerGoneError)
    assert second.stage == stage


def test_a_batch_answers_as_its_requests_would_alone(pipeline: Pipeline, bundle: Bundle, snapshot: Snapshot) -> None:
    random = np.random.default_rng(11)
    work = []
    for _ in range(40):
        row = int(random.integers(snapshot.size))
        options = RerankOptions(
            caps=(Cap("category", 3),) if random.random() < 0.5 else (),
            mmr_weight=float(random.random()) if random.random() < 0.5 else None,
        )
        asked = query(
            bundle,
            user_id=snapshot.user_ids(np.array([row]))[0],
            quotas=(Quota("als", 0.6), Quota("popular", 0.3), Quota("again", 0.1)),
            count=int(random.integers(1, 60)),
            candidates=int(random.integers(1, 150)),
            fusion=Fusion(int(random.integers(1, 200))) if random.random() < 0.5 else None,
            rerank=options,
            filter=ItemFilter(price_max=float(random.uniform(1, 100)) if random.random() < 0.5 else None),
            reasons=True,
        )
        work.append((asked, state_of(snapshot, row) if random.random() < 0.8 else stranger(bundle)))
    together = pipeline.run(work)
    for (asked, state), found in zip(work, together, strict=True):
        alone = answer(pipeline, asked, state)
        assert isinstance(found, Result)
        assert found.rows.tobytes() == alone.rows.tobytes()
        assert found.scores.tobytes() == alone.scores.tobytes()
        assert found.source_scores.tobytes() == alone.source_scores.tobytes()
        assert found.source_ranks.tobytes() == alone.source_ranks.tobytes()
        assert found.reasons == alone.reasons
        assert found.degraded == alone.degraded
