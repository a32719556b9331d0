"""The lists of candidate sources, against counts made one by one in plain Python; and what is refused."""

from __future__ import annotations

import collections
import datetime
import itertools
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from recserve.exporters.catalogue import read_items
from recserve.exporters.errors import ExportError
from recserve.exporters.export import export_bundle
from recserve.exporters.item_lists import Lists, bought_together, popular_by, trending, trending_by
from recserve.exporters.spec import EventsSpec, ItemColumn, PopularBySpec, SourcesSpec, TogetherSpec, TrendingSpec
from recserve.exporters.specfile import read_spec
from recserve.kernels.features import ColumnSpec, ColumnValues
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.snapshot import Snapshot, open_snapshot
from recserve.server.pipeline.pipeline import Pipeline, open_pipeline
from recserve.server.pipeline.types import ItemFilter, Quota, Result, UserState

DAY_US = 86_400_000_000
ITEMS = 8
NO_TABLE = pa.table({"basket_id": ["a"]})


def entries(lists: Lists) -> list[list[tuple[int, float]]]:
    """Each list as (row, score)."""
    pairs = list(zip(lists.rows.tolist(), lists.scores.tolist(), strict=True))
    return [pairs[start:stop] for start, stop in itertools.pairwise(lists.offsets.tolist())]


def best(scored: dict[int, float], top: int) -> list[tuple[int, float]]:
    rounded = {row: float(np.float32(score)) for row, score in scored.items()}
    return sorted(rounded.items(), key=lambda entry: (-entry[1], entry[0]))[:top]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, ITEMS - 1)), min_size=1, max_size=60),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([0.0, 2.5]),
    st.sampled_from([3, 100]),
)
@settings(max_examples=80, deadline=None)
def test_together(lines: list[tuple[int, int]], top: int, least: int, shrinkage: float, most: int) -> None:
    spec = TogetherSpec(table=NO_TABLE, top=top, min_baskets=least, shrinkage=shrinkage, max_items=most)
    found = bought_together(np.array([b for b, _ in lines]), np.array([r for _, r in lines]), ITEMS, spec)
    baskets: dict[int, set[int]] = collections.defaultdict(set)
    for basket, row in lines:
        baskets[basket].add(row)
    kept = [rows for rows in baskets.values() if len(rows) <= most]
    single = collections.Counter(row for rows in kept for row in rows)
    both = collections.Counter(pair for rows in kept for pair in itertools.permutations(rows, 2))
    for item, listed in enumerate(entries(found)):
        expected = {
            other: n / math.sqrt(single[item] * single[other]) * (n / (n + shrinkage))
            for (one, other), n in both.items()
            if one == item and n >= least
        }
        assert listed == best(expected, top)


@given(
    st.lists(st.tuples(st.integers(0, ITEMS - 1), st.integers(0, 40)), min_size=1, max_size=60),
    st.sampled_from([0.5, 5.0]),
    st.integers(1, ITEMS),
)
@settings(max_examples=80, deadline=None)
def test_trending(events: list[tuple[int, int]], smoothing: float, top: int) -> None:
    rows, days = (np.array(each) for each in zip(*events, strict=True))
    found = trending(rows, days * DAY_US, ITEMS, TrendingSpec(days=7, smoothing=smoothing, top=top))
    recent = collections.Counter(row for row, day in events if day > max(days) - 7)
    overall = collections.Counter(row for row, _ in events)
    usual = recent.total() / overall.total()
    trend = [row for row in overall if recent[row] * overall.total() > overall[row] * recent.total()]
    scores = {row: (recent[row] + smoothing * usual) / (overall[row] + smoothing) for row in trend}
    assert all(score > usual for score in scores.values())
    (listed,) = entries(found)
    expected = best(scores, top)
    assert [row for row, _ in listed] == [row for row, _ in expected]
    assert [score for _, score in listed] == pytest.approx([score for _, score in expected], rel=1e-6)


def test_trending_by_a_column() -> None:
    found = trending_by(np.array([0.5, np.nan, 2.0, 0.5]), TrendingSpec(top=2, column="trend"))
    assert entries(found) == [[(2, 2.0), (0, 0.5)]]


@given(
    st.lists(
        st.tuples(st.integers(0, ITEMS - 1), st.integers(0, 20), st.integers(-1, 2), st.integers(-1, 1)),
        min_size=1,
        max_size=60,
    ),
    st.sampled_from([0.0, 5.0]),
    st.integers(1, 4),
)
@settings(max_examples=80, deadline=None)
def test_popular_by(events: list[tuple[int, int, int, int]], days: float, top: int) -> None:
    rows, when, first, second = (np.array(each) for each in zip(*events, strict=True))
    spec = PopularBySpec(name="x", columns=["a", "b"], days=days, top=top)
    found = popular_by(rows, when * DAY_US, [first.astype(np.int32), second.astype(np.int32)], [3, 2], ITEMS, spec)
    lately = [event for event in events if not days or event[1] > max(when) - days]
    groups = [[row for row, _, a, b in lately if (a, b) == values] for values in itertools.product(range(3), range(2))]
    groups.append([row for row, *_ in lately])
    for listed, group in zip(entries(found), groups, strict=True):
        assert listed == best({row: n / len(group) for row, n in collections.Counter(group).items()}, top)


# ---------------------------------------------------------------------------------------------------- what is proposed


@pytest.fixture(name="pipeline", scope="module")
def fixture_pipeline(complete: Any) -> Pipeline:
    return open_pipeline(open_bundle(complete.path))


@pytest.fixture(name="snapshot", scope="module")
def fixture_snapshot(complete: Any) -> Snapshot:
    return open_snapshot(complete.snapshot)


def test_the_shop_has_every_source(pipeline: Pipeline) -> None:
    assert pipeline.sources == (
        *("ann", "als", "popular", "again", "similar", "popular_in_category", "new", "together", "trending"),
        *("popular_in_country", "popular_with_peers"),
    )


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.01, 0.0])
def test_proposals_are_distinct_pass_the_filter_and_descend(
    pipeline: Pipeline, snapshot: Snapshot, shop_work: Any, share: float
) -> None:
    items = pipeline.bundle.catalogue.size
    proposed = collections.Counter[str]()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        passing = np.sort(rng.choice(items, round(share * items), replace=False))
        query, state = shop_work(pipeline, snapshot, seed, seed)
        excluded = ItemFilter(exclude_rows=np.setdiff1d(np.arange(items), passing))
        k = int(rng.integers(1, 80))
        for name in set(pipeline.sources) - {"ann", "als"}:
            (found,) = pipeline.proposals([(replace(query, filter=excluded), state)], name, k)
            assert np.isin(found.rows, passing).all(), name
            assert np.unique(found.rows).size == found.rows.size == found.scores.size <= k, name
            assert (np.diff(found.scores) <= 0).all(), name
            ties = np.diff(found.scores) == 0
            assert name == "again" or (np.diff(found.rows)[ties] > 0).all(), name  # among equals the latest
            proposed[name] += found.rows.size
        (popular,) = pipeline.proposals([(replace(query, filter=excluded), state)], "popular", k)
        assert popular.rows.size == min(k, passing.size)
    assert share < 0.5 or proposed.keys() >= set(pipeline.sources) - {"ann", "als"}
    assert share < 0.5 or min(proposed.values()) > 0


@pytest.mark.parametrize("share", [0.5, 0.01, 0.0])
@pytest.mark.parametrize("known", [True, False])
def test_answers_have_exactly_as_many_items_as_pass(
    pipeline: Pipeline, snapshot: Snapshot, shop_work: Any, share: float, known: bool
) -> None:
    items = pipeline.bundle.catalogue.size
    for seed, name in enumerate(pipeline.sources):
        rng = np.random.default_rng(seed)
        passing = np.sort(rng.choice(items, round(share * items), replace=False))
        query, state = shop_work(pipeline, snapshot, seed, seed)
        asked = replace(
            query, quotas=(Quota(name, 1.0),), filter=ItemFilter(exclude_rows=np.setdiff1d(np.arange(items), passing))
        )
        if not known:
            state = UserState(known=False, columns=ColumnValues.missing(pipeline.bundle.schema.user_layout, 1))
        (found,) = pipeline.run([(asked, state)])
        assert isinstance(found, Result)
        assert found.rows.size == min(query.count, passing.size), name
        assert np.unique(found.rows).size == found.rows.size
        assert np.isin(found.rows, passing).all()


def test_a_batch_proposes_as_one_by_one(pipeline: Pipeline, snapshot: Snapshot, shop_work: Any) -> None:
    work = [shop_work(pipeline, snapshot, row, row) for row in range(20)]
    for name in set(pipeline.sources) - {"ann", "als"}:
        for one, found in zip(work, pipeline.proposals(work, name, 30), strict=True):
            (alone,) = pipeline.proposals([one], name, 30)
            assert np.array_equal(found.rows, alone.rows), name
            assert np.array_equal(found.scores, alone.scores), name


def test_reasons_name_the_sources(pipeline: Pipeline, snapshot: Snapshot, shop_work: Any) -> None:
    seen: dict[str, dict[str, str]] = {}
    for row in range(30):
        query, state = shop_work(pipeline, snapshot, row, row)
        (found,) = pipeline.run([(replace(query, reasons=True), state)])
        assert isinstance(found, Result)
        for reasons in found.reasons:
            assert len(reasons) == len({(each.code, *each.parameters.items()) for each in reasons})
            seen |= {each.code: each.parameters for each in reasons}
    assert seen.keys() == {
        *("bought_before", "seen_before", "category_affinity", "bought_together", "similar_to_recent", "near_taste"),
        *("trending", "popular_with", "popular_in_category", "new", "popular"),
    }
    assert seen["similar_to_recent"] == {"space": "content"}
    assert seen["popular_with"].keys() in ({"country"}, {"gender", "device"})


# -------------------------------------------------------------------------------------------------------- whole exports


def test_the_shops_lists_are_those_of_its_tables(complete: Any) -> None:
    bundle = open_bundle(complete.path)
    items = read_items(complete.shop.spec.catalogue, complete.shop.spec.features)
    events = pa.parquet.read_table(complete.shop.root / "events.parquet").to_pylist()
    users = {row["user_id"]: row for row in pa.parquet.read_table(complete.shop.root / "users.parquet").to_pylist()}
    rows = {name: row for row, name in enumerate(items.ids.to_pylist())}
    known = [event for event in events if event["item_id"] in rows]
    assert len(known) < len(events)
    peers = bundle.lists["popular_with_peers"]
    gender, device = (items.vocabularies[name] for name in ("audience", "device"))
    for (code_a, a), (code_b, b) in itertools.product(enumerate(gender), enumerate(device)):
        counts = collections.Counter(
            rows[event["item_id"]]
            for event in known
            if event["device"] == b and users.get(event["user_id"], {}).get("gender") == a
        )
        listed, scores = peers.at(code_a * len(device) + code_b)
        assert dict(zip(listed.tolist(), scores.tolist(), strict=True)) == {
            row: np.float32(n / counts.total()) for row, n in counts.items()
        }
    latest = max(event["time"] for event in events if event["item_id"] in rows)
    recent = [event for event in known if event["time"] > latest - datetime.timedelta(days=60)]
    german = [event for event in recent if event["country"] == "DE"]
    listed, scores = bundle.lists["popular_in_country"].at(items.vocabularies["country"].index("DE"))
    top = collections.Counter(rows[event["item_id"]] for event in german)
    assert scores[0] == np.float32(max(top.values()) / len(german))
    assert top[int(listed[0])] == max(top.values())


def test_what_is_left_out_is_counted(complete: Any) -> None:
    known = set(pa.parquet.read_table(complete.shop.root / "items.parquet").column("item_id").to_pylist())
    users = set(pa.parquet.read_table(complete.shop.root / "users.parquet").column("user_id").to_pylist())
    events = pa.parquet.read_table(complete.shop.root / "events.parquet").to_pylist()
    kept = [event for event in events if event["item_id"] in known]
    strangers = sum(event["user_id"] not in users for event in kept)
    assert 0 < len(kept) < 3000
    assert strangers
    told = {check.part: check.result for check in complete.report.checks}
    assert told["events"] == f"{3000 - len(kept):,} of 3,000 events left out"
    assert told["users of the events"] == f"{strangers:,} of {len(kept):,} events are of unknown users"
    assert re.match(r"0 of [\d,]+ lines left out", told["baskets"])


def test_users_of_the_events_are_there_once(shop: Any, tmp_path: Path) -> None:
    users = pa.parquet.read_table(shop.root / "users.parquet")
    twice = pa.concat_tables([users, users.slice(3, 1)])
    sources = replace(shop.spec.sources, events=replace(shop.spec.sources.events, users=twice))
    told = refused(shop, tmp_path, sources)
    assert "users, column 'user_id': 1 are there again: 'user-003' in row 3 and 'user-003' in row 120" in told


def refused(shop: Any, tmp_path: Path, sources: SourcesSpec) -> str:
    with pytest.raises(ExportError) as caught:
        export_bundle(replace(shop.spec, sources=sources), tmp_path / "bundle", console=Console(quiet=True))
    return str(caught.value)


def test_a_trend_beyond_float32_is_told_with_the_items(shop: Any, tmp_path: Path) -> None:
    catalogue = shop.spec.catalogue
    items = pa.parquet.read_table(catalogue.items)
    items = items.append_column("trend", pa.array([1e300, *range(1, len(items))], pa.float64()))
    columns = [*catalogue.columns, ItemColumn(name="trend", kind="number")]
    spec = replace(shop.spec, catalogue=replace(catalogue, items=items, columns=columns))
    sources = replace(shop.spec.sources, trending=TrendingSpec(column="trend"))
    told = refused(replace(shop, spec=spec), tmp_path, sources)
    assert told.startswith("items, column 'trend': 1 values are beyond float32")


def test_contradictions_are_told_at_once(shop: Any, tmp_path: Path) -> None:
    popular = [
        PopularBySpec(name="popular", columns=["contry"]),
        PopularBySpec(name="ann", columns=[], top=0),
        PopularBySpec(name="no name", columns=["age"], days=-1),
    ]
    together = replace(shop.spec.sources.together, shrinkage=-1.0, top=0)
    trend = TrendingSpec(column="title", days=0.0)
    told = refused(
        shop,
        tmp_path,
        SourcesSpec(
            similar_space="als",
            similar_items=0,
            new_days=math.inf,
            together=together,
            trending=trend,
            popular_by=popular,
        ),
    )
    for problem in (
        "similar_space 'als' is no normalised space; valid: ann, content",
        "similar_items is 0: expected a whole number of at least 1",
        "new_days is inf: expected a number of more than 0",
        "together.top is 0",
        "together.shrinkage is -1.0: expected a number of at least 0",
        "trending.days is 0.0: expected a number of more than 0",
        "trending.column 'title' is no number column of the catalogue",
        "give sources.events, or trending.column",
        "popular_by 'popular' has the name of another candidate source",
        "popular_by 'popular': 'contry' is no user or context column of type category; did you mean \"country\"?",
        "popular_by 'ann' has the name of another candidate source",
        "popular_by 'ann' needs columns, each once",
        "popular_by ann.top is 0",
        "popular_by 'no name' cannot be part of a file name",
        "popular_by 'no name': 'age' is no user or context column of type category",
        "popular_by no name.days is -1",
    ):
        assert problem in told, problem


def test_numbers_of_another_kind_or_beyond_measure(shop: Any, tmp_path: Path) -> None:
    popular = [PopularBySpec(name="far", columns=["country"], days=1e300)]
    sources = replace(
        shop.spec.sources,
        similar_items=2.5,
        new_days=math.nan,
        together=replace(shop.spec.sources.together, top=2**31, max_items="many"),
        trending=TrendingSpec(days=1e300),
        popular_by=popular,
    )
    told = refused(shop, tmp_path, sources)
    for problem in (
        "similar_items is 2.5: expected a whole number of at least 1",
        "new_days is nan: expected a number of more than 0",
        "together.top is 2147483648: expected a whole number of at most 2,147,483,647",
        "together.max_items is 'many': expected a whole number of at least 1",
        "trending.days is 1e+300: expected a number of at most 3,652,059",
        "popular_by far.days is 1e+300: expected a number of at most 3,652,059",
    ):
        assert problem in told, problem


def test_lists_of_too_many_combinations(shop: Any, tmp_path: Path) -> None:
    """Ten thousand values in each of two columns would be a hundred million lists."""
    values = [f"value {number}" for number in range(10_000)]
    catalogue = replace(
        shop.spec.catalogue, vocabularies={**shop.spec.catalogue.vocabularies, "left": values, "right": values}
    )
    context = (*shop.spec.features.context, ColumnSpec("left", "category"), ColumnSpec("right", "category"))
    events = pa.table(
        {
            "item_id": ["item-003"],
            "time": pa.array([0], pa.timestamp("us")),
            "user_id": ["user-000"],
            "left": values[:1],
            "right": values[:1],
        }
    )
    sources = replace(
        shop.spec.sources,
        events=EventsSpec(table=events),
        popular_by=[PopularBySpec(name="pairs", columns=["left", "right"])],
    )
    spec = replace(
        shop.spec, catalogue=catalogue, features=replace(shop.spec.features, context=context, features=()), rankers=()
    )
    with pytest.raises(ExportError, match=r"popular_by 'pairs': .* 100,000,000 combinations .*at most 16,777,216"):
        export_bundle(replace(spec, sources=sources), tmp_path / "bundle", console=Console(quiet=True))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"item_id": ["gone"]}, "none of the items is in the catalogue"),
        ({"time": pa.array([None], pa.timestamp("us"))}, "column 'time': 1 values are missing"),
        ({"country": ["XX"]}, "column 'country': 1 values are not in the vocabulary: 'XX'"),
        ({"gender": ["m"], "device": None}, "there is no column 'device': add it, or name the users' table"),
    ],
)
def test_events_that_cannot_be_used(shop: Any, tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    columns: dict[str, Any] = {
        "user_id": ["user-000"],
        "item_id": ["item-003"],
        "time": pa.array([0], pa.timestamp("us")),
        "country": ["DE"],
        "device": ["phone"],
        **change,
    }
    table = pa.table({name: values for name, values in columns.items() if values is not None})
    events = EventsSpec(table=table, users=None if "gender" in change else shop.root / "users.parquet")
    assert problem in refused(shop, tmp_path, replace(shop.spec.sources, events=events))


def test_the_specification_file(shop: Any) -> None:
    sources = read_spec(shop.root / "shop.toml")[0].sources
    assert sources.events is not None
    assert sources.together is not None
    assert (sources.similar_space, sources.similar_items, sources.new_days) == ("content", 3, 60)
    assert (sources.events.table, sources.events.users) == (shop.root / "events.parquet", shop.root / "users.parquet")
    assert (sources.together.top, sources.together.shrinkage, sources.together.min_baskets) == (20, 2.0, 2)
    assert sources.trending == TrendingSpec(days=14)
    assert [(each.name, list(each.columns), each.days) for each in sources.popular_by] == [
        ("popular_in_country", ["country"], 60),
        ("popular_with_peers", ["gender", "device"], 0),
    ]
