from __future__ import annotations

import time
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from recserve.server.bundle.catalogue import Catalogue
from recserve.server.bundle.reader import Bundle
from recserve.server.bundle.registry import BundleRegistry
from recserve.server.config import PlacementSettings, Settings
from recserve.server.pipeline.errors import BundleLacksError, InvalidRequestError, NotReadyError, UnknownItemsError
from recserve.server.pipeline.types import Cap, Fusion, QueryKind, Quota
from recserve.server.rpc import PlacementError, check_placements
from recserve.server.rpc.convert import Converter
from recserve.v1 import recommender_pb2 as pb

NAN, INF = float("nan"), float("inf")


@dataclass(eq=False)
class Shop:
    """What conversion reads of a pipeline."""

    bundle: Bundle
    objectives: tuple[str, ...] = ("click", "purchase")
    sources: tuple[str, ...] = ("ann", "popular", "again")

    @property
    def similarity_spaces(self) -> tuple[str, ...]:
        return tuple(self.bundle.spaces)


def settings(placements=None, **similar) -> Settings:
    home = {
        "candidates": 50,
        "sources": [{"name": "ann", "weight": 0.7}, {"name": "popular", "weight": 0.3}],
        "fusion": {"depth": 900, "constant": 40},
        "caps": [{"attribute": "category", "max": 3}],
        "mmr_weight": 0.8,
        "freshness": {"boost": 0.2, "half_life_days": 14},
        "in_region": True,
        "exclude_shown": True,
        "exclude_purchased": True,
        "record_shown": True,
        "objective_weights": {"purchase": 2.0},
        "diversity_space": "content",
    }
    return Settings(bundles=[{"path": "x"}], placements={"home": home, **(placements or {})}, similar=similar)


@pytest.fixture
def convert(make_bundle):
    """Converts a request against a bundle in memory; `without` leaves parts of it out."""

    def converter(request, without=(), configured=None):
        registry = BundleRegistry()
        shop = Shop(make_bundle(without), objectives=() if "ranker" in without else ("click", "purchase"))
        registry.add("main", shop)
        method = {
            pb.RecommendRequest: "recommend",
            pb.SimilarItemsRequest: "similar",
            pb.RankItemsRequest: "rank",
        }[type(request)]
        return getattr(Converter(registry, configured or settings()), method)(request, "r-1", time.monotonic() + 1)

    return converter


def recommend(**fields) -> pb.RecommendRequest:
    return pb.RecommendRequest(**{"user_id": "user1", **fields})


def similar(**fields) -> pb.SimilarItemsRequest:
    return pb.SimilarItemsRequest(**{"item_ids": ["item-1"], **fields})


def rank(**fields) -> pb.RankItemsRequest:
    return pb.RankItemsRequest(**{"user_id": "user1", "item_ids": ["item-1", "item-2"], **fields})


def context(**fields):
    return recommend(context=pb.Context(**fields))


def filtered(**fields):
    return recommend(filter=pb.Filter(**fields))


def reranked(**fields):
    return recommend(rerank=pb.Rerank(**fields))


def capped(**fields):
    return reranked(caps=pb.Caps(caps=[pb.Cap(**{"attribute": "category", "max": 1, **fields})]))


def feature(name, **value):
    return context(features={name: pb.FeatureValue(**value)})


def features(*names):
    return context(features={name: pb.FeatureValue(number=1) for name in names})


def quotas(*pairs):
    return recommend(sources=[pb.SourceQuota(name=name, weight=weight) for name, weight in pairs])


ids = [f"item-{index}" for index in range(10_001)]

BAD = {
    "no user": (recommend(user_id=""), "user_id", "1 to 256 bytes, but has 0"),
    "long user": (recommend(user_id="u" * 257), "user_id", "has 257"),
    "long user in bytes": (recommend(user_id="é" * 129), "user_id", "has 258"),
    "count 0": (recommend(count=0), "count", "must be 1 to 500, but is 0"),
    "count 501": (recommend(count=501), "count", "is 501"),
    "count negative": (recommend(count=-1), "count", "is -1"),
    "request id": (recommend(request_id="r" * 257), "request_id", "at most 256 bytes, but has 257"),
    "bundle": (recommend(bundle="other"), "bundle", "no bundle is called 'other'; in service: main"),
    "placement": (context(placement="hom"), "context.placement", "configured: default, home"),
    "country of three": (context(country="DEU"), "context.country", "two letters"),
    "country of digits": (context(country="1a"), "context.country", "two letters"),
    "country beyond ASCII": (context(country="ÖÄ"), "context.country", "two letters"),
    "language": (context(language="x" * 257), "context.language", "at most 256"),
    "time before 1970": (context(time=Timestamp(seconds=-1)), "context.time.seconds", "1970 to 9999"),
    "time after 9999": (context(time=Timestamp(seconds=253_402_300_800)), "context.time.seconds", "1970 to 9999"),
    "nanos": (context(time=Timestamp(nanos=-1)), "context.time.nanos", "0 to 999999999"),
    "session": (context(session_item_ids=ids[:101]), "context.session_item_ids", "0 to 100 ids, but there are 101"),
    "session id": (context(session_item_ids=["item-1", ""]), "context.session_item_ids[1]", "has 0"),
    "feature unknown": (feature("agee", number=1), "context.features['agee']", "there are: age, basket_value"),
    "feature NaN": (feature("age", number=NAN), "context.features['age'].number", "leave the feature out"),
    "feature infinite": (feature("age", number=INF), "context.features['age'].number", "must be finite"),
    "feature beyond float32": (feature("age", number=-1e39), "context.features['age'].number", "3.4028e+38 either way"),
    "feature empty": (feature("age"), "context.features['age']", "has no value"),
    "feature of another kind": (feature("age", category="x"), "context.features['age']", "set number, not category"),
    "feature category": (feature("gender", category="x"), "context.features['gender'].category", "no category 'x'"),
    "feature categories": (
        feature("top_categories", categories=pb.CategoryList(values=["books", "cars"])),
        "context.features['top_categories'].categories.values",
        "no category 'cars'",
    ),
    "feature time": (feature("signup", number=-5), "context.features['signup'].number", "seconds since 1970"),
    "features": (features(*[f"f{index}" for index in range(1001)]), "context.features", "there are 1001"),
    "feature values": (
        context(features={name: pb.FeatureValue(categories=pb.CategoryList(values=["x"] * 501)) for name in "ab"}),
        "context.features",
        "0 to 1000 values in all category lists together, but there are 1002",
    ),
    "excluded ids": (filtered(exclude_item_ids=ids), "filter.exclude_item_ids", "there are 10001"),
    "excluded id": (filtered(exclude_item_ids=["x" * 257]), "filter.exclude_item_ids[0]", "has 257"),
    "category": (filtered(include_categories=["books", "cars"]), "filter.include_categories[1]", "'cars'"),
    "excluded category": (filtered(exclude_categories=["cars"]), "filter.exclude_categories[0]", "'cars'"),
    "flag": (filtered(exclude_flags=["heavy"]), "filter.exclude_flags[0]", "'heavy'"),
    "price NaN": (filtered(price_max=NAN), "filter.price_max", "NaN"),
    "prices crossed": (filtered(price_min=2, price_max=1), "filter.price_min", "price_max (1.0), but is 2.0"),
    "region without country": (filtered(in_region=True), "context.country", "required by filter.in_region"),
    "placement's region": (context(placement="home"), "context.country", "required by the placement"),
    "cap of 0": (capped(max=0), "rerank.caps.caps[0].max", "at least 1"),
    "cap window": (capped(window=-1), "rerank.caps.caps[0].window", "not be negative"),
    "cap sliding": (capped(sliding=True), "rerank.caps.caps[0].window", "required by sliding"),
    "cap nothing": (capped(attribute=""), "rerank.caps.caps[0].attribute", "required"),
    "cap unknown": (capped(attribute="brand"), "rerank.caps.caps[0].attribute", "'brand' does not exist"),
    "cap number": (capped(attribute="price"), "rerank.caps.caps[0].attribute", "is not a category"),
    "weights": (reranked(objective_weights=dict.fromkeys(ids[:1001], 1)), "rerank.objective_weights", "1001"),
    "caps": (reranked(caps=pb.Caps(caps=[pb.Cap(attribute="category", max=1)] * 17)), "rerank.caps.caps", "17"),
    "mmr": (reranked(mmr=pb.Mmr(relevance_weight=1.5)), "rerank.mmr.relevance_weight", "must be 0 to 1, but is 1.5"),
    "mmr NaN": (reranked(mmr=pb.Mmr(relevance_weight=NAN)), "rerank.mmr.relevance_weight", "nan"),
    "dpp": (reranked(dpp=pb.Dpp(theta=1)), "rerank.dpp.theta", "below 1"),
    "exploration": (reranked(exploration=0.6), "rerank.exploration", "0 to 0.5"),
    "exploration NaN": (reranked(exploration=NAN), "rerank.exploration", "0 to 0.5"),
    "objective": (reranked(objective_weights={"joy": 1}), "rerank.objective_weights['joy']", "click, purchase"),
    "weight": (reranked(objective_weights={"click": -1}), "rerank.objective_weights['click']", "is -1"),
    "weight NaN": (reranked(objective_weights={"click": NAN}), "rerank.objective_weights['click']", "is nan"),
    "weight too large": (reranked(objective_weights={"click": 2e6}), "rerank.objective_weights['click']", "0 to 1e+06"),
    "weights 0": (reranked(objective_weights={"click": 0}), "rerank.objective_weights", "above 0"),
    "source": (quotas(("psychic", 1)), "sources[0].name", "no source is called 'psychic'; it offers: again, ann"),
    "source twice": (quotas(("ann", 1), ("ann", 2)), "sources[1]", "listed before"),
    "source weight": (quotas(("ann", INF)), "sources[0].weight", "must be 0 to 1e+06, but is inf"),
    "source weight too large": (quotas(("ann", 1e308), ("popular", 1)), "sources[0].weight", "is 1e+308"),
    "source weights 0": (quotas(("ann", 0), ("popular", 0)), "sources", "above 0"),
    "sources": (quotas(*[("ann", 1)] * 65), "sources", "65"),
    "field": (recommend(fields=["price", "prize"]), "fields[1]", "no item attribute 'prize'"),
    "fields": (recommend(fields=["price"] * 1001), "fields", "1001"),
    "no items": (similar(item_ids=[]), "item_ids", "1 to 20 ids, but there are 0"),
    "21 items": (similar(item_ids=ids[:21]), "item_ids", "there are 21"),
    "long item": (similar(item_ids=["x" * 257]), "item_ids[0]", "has 257"),
    "alpha": (similar(alpha=1.1), "alpha", "must be 0 to 1"),
    "similar count": (similar(count=501), "count", "1 to 500"),
    "purchased by nobody": (similar(filter=pb.Filter(exclude_purchased=True)), "user_id", "filter.exclude_purchased"),
    "shown to nobody": (similar(filter=pb.Filter(exclude_shown=True)), "user_id", "required by filter.exclude_shown"),
    "similar user": (similar(user_id="u" * 257), "user_id", "has 257"),
    "rank nobody": (rank(user_id=""), "user_id", "has 0"),
    "rank nothing": (rank(item_ids=[]), "item_ids", "1 to 5000 ids"),
    "rank too much": (rank(item_ids=ids[:5001]), "item_ids", "there are 5001"),
    "rank twice": (rank(item_ids=["item-1", "item-2", "item-1"]), "item_ids[2]", "'item-1' is listed before"),
    "rank count": (rank(count=0), "count", "1 to 5000"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_fields_are_named(convert, case):
    request, field, description = BAD[case]
    with pytest.raises(InvalidRequestError) as refused:
        convert(request)
    [violation] = refused.value.violations
    assert violation.field == field
    assert description in violation.description


BADLY_SIZED = {
    "fields": (recommend(fields=["x"] * 200_000), "fields"),
    "ranked": (rank(item_ids=["item-1"] * 200_000), "item_ids"),
    "excluded": (filtered(exclude_item_ids=["x"] * 200_000, exclude_flags=["x"] * 10), "filter.exclude_item_ids"),
    "sources": (quotas(*[("x", 1)] * 200_000), "sources"),
    "caps": (reranked(caps=pb.Caps(caps=[pb.Cap()] * 200_000)), "rerank.caps.caps"),
}


@pytest.mark.parametrize("case", BADLY_SIZED)
def test_nobody_looks_at_the_entries_of_a_list_that_is_too_long(convert, case):
    """One message could otherwise keep the server busy for seconds, and hold a description of each of its entries."""
    request, field = BADLY_SIZED[case]
    tracemalloc.start()
    with pytest.raises(InvalidRequestError) as refused:
        convert(request)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    [violation] = refused.value.violations
    assert (violation.field, refused.value.more) == (field, 0)
    assert peak < 200_000


def test_of_many_problems_some_are_kept_and_all_are_counted(convert):
    request = recommend(filter=pb.Filter(exclude_item_ids=[""] * 10_000), fields=["x"] * 1_000)
    with pytest.raises(InvalidRequestError) as refused:
        convert(request)
    assert len(refused.value.violations) + refused.value.more == 11_000
    assert len(refused.value.violations) == 200
    assert str(refused.value).endswith("; and 10990 more")
    assert len(str(refused.value)) < 2_000


LACKING = {
    "dpp": (reranked(dpp=pb.Dpp(theta=0.5)), (), "rerank.dpp"),
    "exploration": (reranked(exploration=0.1), (), "rerank.exploration"),
    "source of the product": (quotas(("trending", 1)), (), "sources[0].name"),
    "space without users": (quotas(("content", 1)), (), "sources[0].name"),
    "objective of the product": (reranked(objective_weights={"revenue": 1}), (), "rerank.objective_weights['revenue']"),
    "price": (filtered(price_min=1), ("price",), "filter.price_min"),
    "categories": (filtered(include_categories=["books"]), ("category",), "filter.include_categories"),
    "flags": (filtered(exclude_flags=["adult"]), ("flags",), "filter.exclude_flags"),
    "stock": (filtered(in_stock=True), ("in_stock",), "filter.in_stock"),
    "purchases": (filtered(exclude_purchased=True), ("purchase",), "filter.exclude_purchased"),
    "mmr": (reranked(mmr=pb.Mmr(relevance_weight=0.5)), ("ann", "content"), "rerank.mmr"),
    "a ranker": (rank(), ("ranker",), "item_ids"),
    "content space": (similar(alpha=0.5), ("content",), "alpha"),
    "behaviour space": (similar(), ("ann", "content"), "alpha"),
}


@pytest.mark.parametrize("case", LACKING)
def test_what_is_defined_but_lacking_is_a_precondition(convert, case):
    request, without, field = LACKING[case]
    with pytest.raises(BundleLacksError) as refused:
        convert(request, without, settings({"home": {}}))
    assert [each.field for each in refused.value.lacking] == [field]


def test_regions_are_lacking(convert):
    request = recommend(filter=pb.Filter(in_region=True), context=pb.Context(country="de"))
    with pytest.raises(BundleLacksError, match=r"filter\.in_region: .* role 'regions'"):
        convert(request, ("regions",), settings({"home": {}}))


def test_every_problem_is_reported_at_once_and_the_callers_faults_win(convert):
    request = recommend(
        user_id="",
        count=0,
        fields=["nope"],
        sources=[pb.SourceQuota(name="trending", weight=1)],
        rerank=pb.Rerank(exploration=0.3, mmr=pb.Mmr(relevance_weight=-1)),
        filter=pb.Filter(include_categories=["cars"]),
        context=pb.Context(placement="nope", features={"nope": pb.FeatureValue(number=1)}),
    )
    with pytest.raises(InvalidRequestError) as refused:
        convert(request)
    assert {each.field for each in refused.value.violations} == {
        "user_id",
        "count",
        "fields[0]",
        "rerank.mmr.relevance_weight",
        "filter.include_categories[0]",
        "context.placement",
        "context.features['nope']",
    }


def test_everything_lacking_is_reported_at_once(convert):
    request = recommend(
        sources=[pb.SourceQuota(name="trending", weight=1), pb.SourceQuota(name="new", weight=1)],
        rerank=pb.Rerank(exploration=0.3, dpp=pb.Dpp(theta=0.1)),
    )
    with pytest.raises(BundleLacksError) as refused:
        convert(request)
    fields = [each.field for each in refused.value.lacking]
    assert fields == ["rerank.dpp", "rerank.exploration", "sources[0].name", "sources[1].name"]


def test_an_unknown_bundle_is_reported_with_what_can_be_said_without_it(convert):
    with pytest.raises(InvalidRequestError) as refused:
        convert(recommend(bundle="x", count=0, fields=["nope"]))
    assert [each.field for each in refused.value.violations] == ["count", "bundle"]


def test_a_default_that_vanishes_while_a_request_is_read(make_bundle):
    """Name and pipeline come from one look at the registry."""

    class Vanishing(BundleRegistry):
        @property
        def ready(self):
            ready = super().ready
            if ready:
                self.remove("main")
            return ready

    registry = Vanishing()
    registry.add("main", Shop(make_bundle()))
    converter = Converter(registry, settings())
    assert converter.recommend(recommend(), "r", 0.0).bundle == "main"
    with pytest.raises(NotReadyError, match="no bundle is in service"):
        converter.recommend(recommend(), "r", 0.0)


def test_no_bundle_in_service():
    converter = Converter(BundleRegistry(), settings())
    with pytest.raises(NotReadyError, match="no bundle is in service"):
        converter.recommend(recommend(), "r", 0.0)


def test_the_shortest_request_takes_the_defaults(convert):
    before = time.time_ns() // 1000
    job = convert(recommend())
    query = job.query
    assert (job.bundle, job.request_id, job.fields, job.record_shown) == ("main", "r-1", (), False)
    assert (query.kind, query.user_id, query.count, query.candidates) == (QueryKind.RECOMMEND, "user1", 20, 500)
    assert before <= query.time_us <= time.time_ns() // 1000
    assert [quota.source for quota in query.quotas] == ["ann", "popular", "again"]
    assert len({quota.weight for quota in query.quotas}) == 1
    assert (query.rerank.caps, query.rerank.mmr_weight, query.rerank.freshness) == ((), None, None)
    wanted = query.filter
    assert (wanted.in_stock, wanted.region, wanted.exclude_purchased, wanted.exclude_shown) == (
        True,
        None,
        False,
        False,
    )
    assert (wanted.include_categories, wanted.price_min, wanted.exclude_flags) == (None, None, None)
    assert np.isnan(query.context.numbers).all()
    assert (query.context.codes == -1).all()
    assert query.deadline > time.monotonic()


def test_a_placement_fills_in_what_the_request_leaves_out(convert):
    job = convert(context(placement="home", country="us"))
    query = job.query
    assert job.record_shown
    assert (query.candidates, query.quotas) == (50, (Quota("ann", 0.7), Quota("popular", 0.3)))
    assert (query.fusion, query.depth) == (Fusion(900, 40.0), 900)
    assert query.rerank.objective_weights == (0.0, 2.0)
    assert query.rerank.caps == (Cap("category", 3),)
    assert (query.rerank.mmr_weight, query.rerank.diversity_space) == (0.8, "content")
    assert query.rerank.freshness.half_life_days == 14
    assert (query.filter.region, query.filter.exclude_purchased, query.filter.exclude_shown) == (2, True, True)


def test_what_a_placement_asks_of_one_request_is_not_asked_of_another(make_bundle):
    """Its own filter is made once, for those with a user and those without, and an empty filter asks for no other."""
    registry = BundleRegistry()
    registry.add("main", Shop(make_bundle(())))
    shown = {"exclude_shown": True, "exclude_purchased": True}
    converter = Converter(registry, settings({"shown": shown, "plain": {}}, behaviour_space="content"))
    at = pb.Context(placement="shown", country="de")
    asked = pb.Filter(in_stock=False, exclude_shown=False, in_region=True)

    def filters():
        requests = (
            similar(context=at),
            similar(context=at, user_id="user1"),
            similar(context=at, user_id="user1", filter=pb.Filter()),
            similar(context=at, user_id="user1", filter=asked),
            similar(user_id="user1", context=pb.Context(placement="plain")),
        )
        wanted = [converter.similar(each, "r-1", time.monotonic() + 1).query.filter for each in requests]
        return [(each.in_stock, each.region, each.exclude_shown, each.exclude_purchased) for each in wanted]

    expected = [
        (True, None, False, False),
        (True, None, True, True),
        (True, None, True, True),
        (False, 0, False, True),
        (True, None, False, False),
    ]
    assert filters() == expected
    assert filters() == expected


def test_a_request_overrides_its_placement(convert):
    job = convert(
        recommend(
            count=60,
            record_shown=False,
            context=pb.Context(placement="home"),
            filter=pb.Filter(in_stock=False, in_region=False, exclude_purchased=False, exclude_shown=False),
            rerank=pb.Rerank(
                caps=pb.Caps(), none=pb.NoDiversity(), objective_weights={"click": 1}, exploration=0, seed=3
            ),
            sources=[pb.SourceQuota(name="again", weight=2)],
        )
    )
    query = job.query
    assert not job.record_shown
    assert (query.count, query.pool, query.quotas) == (60, 60, (Quota("again", 2.0),))
    assert (query.rerank.caps, query.rerank.mmr_weight, query.rerank.objective_weights) == ((), None, (1.0, 0.0))
    wanted = query.filter
    assert (wanted.in_stock, wanted.region, wanted.exclude_purchased, wanted.exclude_shown) == (
        False,
        None,
        False,
        False,
    )


def test_a_catalogue_without_stock_is_not_filtered_by_default(convert):
    assert not convert(recommend(), ("in_stock",), settings({"home": {}})).query.filter.in_stock


def test_names_become_rows_and_codes(convert):
    query = convert(
        recommend(
            filter=pb.Filter(
                exclude_item_ids=["item-9", "gone", "item-3", "item-9"],
                include_categories=["toys", "books"],
                exclude_categories=["games"],
                exclude_flags=["fragile"],
                price_min=1.5,
                price_max=1.5,
                in_region=True,
            ),
            context=pb.Context(
                country="fr",
                device="phone",
                session_item_ids=["item-5", "gone", "ünïcode/漢字 🛒", "item-5"],
                time=Timestamp(seconds=1_700_000_000, nanos=1_999),
                features={
                    "age": pb.FeatureValue(number=33),
                    "gender": pb.FeatureValue(category="m"),
                    "signup": pb.FeatureValue(number=1.5),
                    "top_categories": pb.FeatureValue(categories=pb.CategoryList(values=["toys", "books"])),
                    "basket_value": pb.FeatureValue(number=12.5),
                },
            ),
            fields=["title", "*", "title"],
        )
    ).query
    assert query.filter.exclude_rows.tolist() == [3, 9]
    assert query.filter.include_categories.tolist() == [0, 2]
    assert query.filter.exclude_categories.tolist() == [1]
    assert query.filter.exclude_flags.tolist() == [1]
    assert (query.filter.price_min, query.filter.price_max, query.filter.region) == (1.5, 1.5, 1)
    assert query.session_rows.tolist() == [5, 59]
    assert query.time_us == 1_700_000_000_000_001
    assert query.user_overrides == {"age": 33.0, "gender": 1, "signup": 1_500_000, "top_categories": (2, 0)}
    assert query.context.codes.tolist() == [[0, 1]]
    assert query.context.numbers.tolist() == [[12.5]]


def test_fields(convert):
    assert convert(recommend(fields=["title", "price", "title"])).fields == ("title", "price")
    everything = convert(recommend(fields=["*"])).fields
    assert {"title", "price", "stock", "launched", "tags"} <= set(everything)


def test_what_the_models_have_not_seen_in_the_context_is_missing(convert):
    query = convert(context(device="toaster", country="XX", language="tlh")).query
    assert query.context.codes.tolist() == [[-1, -1]]


def test_a_feature_overrides_the_field_of_its_name(convert):
    request = recommend(context=pb.Context(device="phone", features={"device": pb.FeatureValue(category="desktop")}))
    assert convert(request).query.context.codes[0, 0] == 1


def test_a_country_that_no_item_names(convert):
    request = recommend(filter=pb.Filter(in_region=True), context=pb.Context(country="JP"))
    assert convert(request).query.filter.region == -1


def test_a_request_that_excludes_what_state_alone_can_tell_needs_it(convert):
    """The placement alone does not demand it: its defaults degrade."""
    place = pb.Context(placement="home", country="de")
    assert not convert(recommend(context=place)).needs_state
    for wanted in (pb.Filter(exclude_purchased=True), pb.Filter(exclude_shown=True)):
        assert convert(recommend(filter=wanted)).needs_state
        assert convert(rank(filter=wanted)).needs_state
        assert convert(similar(filter=wanted, user_id="user1")).needs_state
    assert not convert(recommend(filter=pb.Filter(exclude_purchased=False, exclude_shown=False))).needs_state


def test_each_item_id_is_looked_up_once(convert, monkeypatch):
    looked_up = []
    lookup = Catalogue.rows_of_ids
    monkeypatch.setattr(Catalogue, "rows_of_ids", lambda self, ids: looked_up.extend(ids) or lookup(self, ids))
    for request in (rank(item_ids=["item-1", "gone"]), similar(item_ids=["item-1", "gone"])):
        looked_up.clear()
        assert convert(request).unknown_item_ids == ("gone",)
        assert sorted(looked_up) == ["gone", "item-1"]


def test_similar_items(convert):
    job = convert(similar(item_ids=["item-4", "gone", "item-2", "item-4", "gone"], alpha=0.25, fields=["price"]))
    query = job.query
    assert query.kind is QueryKind.SIMILAR
    assert query.given_rows.tolist() == [4, 2]
    assert job.unknown_item_ids == ("gone",)
    assert (query.count, query.alpha, query.behaviour_space, query.content_space) == (20, 0.25, "ann", "content")
    assert (job.fields, job.record_shown, query.user_id) == (("price",), False, "")
    assert query.rerank.caps == ()


def test_similar_items_by_one_space_needs_the_other_not(convert):
    query = convert(similar(), ("content",), settings({"home": {}})).query
    assert (query.alpha, query.behaviour_space, query.content_space) == (1.0, "ann", "")
    query = convert(similar(), (), settings(alpha=0.0)).query
    assert (query.alpha, query.behaviour_space, query.content_space) == (0.0, "", "content")


def test_a_placement_excludes_only_for_users_that_exist(convert):
    place = pb.Context(placement="home", country="de")
    assert not convert(similar(context=place)).query.filter.exclude_shown
    assert convert(similar(context=place, user_id="user1")).query.filter.exclude_shown


def test_rank_items(convert):
    job = convert(rank(item_ids=["item-7", "gone", "item-3"], context=pb.Context(placement="home", country="de")))
    query = job.query
    assert query.kind is QueryKind.RANK
    assert (query.given_rows.tolist(), query.count, query.candidates) == ([7, 3], 2, 2)
    assert job.unknown_item_ids == ("gone",)
    assert job.record_shown
    # By score alone, but it is the placement's score.
    assert (query.rerank.caps, query.rerank.mmr_weight) == ((), None)
    assert query.rerank.objective_weights == (0.0, 2.0)
    assert query.rerank.freshness is not None


def test_rank_items_with_rerank_takes_the_placements_options(convert):
    place = pb.Context(placement="home", country="de")
    query = convert(rank(count=1, rerank=pb.Rerank(), context=place)).query
    assert (query.count, query.rerank.caps, query.rerank.mmr_weight) == (1, (Cap("category", 3),), 0.8)


@pytest.mark.parametrize("request_", [similar(item_ids=["x", "y"]), rank(item_ids=["x", "y"])])
def test_not_found_only_when_no_item_is_known(convert, request_):
    with pytest.raises(UnknownItemsError) as refused:
        convert(request_)
    assert refused.value.item_ids == ("x", "y")


def test_limits_themselves_are_allowed(convert):
    convert(recommend(user_id="u" * 256, count=500, request_id="r" * 256))
    convert(recommend(count=1))
    convert(context(session_item_ids=ids[:100]))
    convert(filtered(exclude_item_ids=ids[:10_000]))
    convert(similar(item_ids=ids[:20], alpha=0))
    convert(rank(item_ids=ids[:5_000], count=5_000))
    convert(reranked(exploration=0))
    convert(reranked(mmr=pb.Mmr(relevance_weight=0)))
    convert(capped(window=1, sliding=True))
    convert(quotas(("ann", 0), ("popular", 1)))
    convert(quotas(("ann", 1e6), ("popular", 1e-300)))
    convert(reranked(objective_weights={"click": 1e6, "purchase": 0}))
    convert(feature("age", number=3.4028234663852886e38))
    convert(context(time=Timestamp(seconds=253_402_300_799, nanos=999_999_999)))


def test_placements_are_checked_before_any_request(make_bundle):
    bad = PlacementSettings(
        sources=[{"name": "als", "weight": 1}],
        caps=[{"attribute": "price", "max": 2}],
        objective_weights={"revenue": 1.0},
        diversity_space="als",
        in_region=True,
        freshness={"boost": 1, "half_life_days": 1},
        exclude_purchased=True,
    )
    configured = settings({"bad": bad, "home": {}}, behaviour_space="als")
    shop = Shop(make_bundle(("regions", "launch_time", "purchase")))
    with pytest.raises(PlacementError) as refused:
        check_placements(configured, "main", shop)
    assert [each.field for each in refused.value.problems] == [
        "placements.bad.sources[0].name",
        "placements.bad.objective_weights.revenue",
        "placements.bad.caps[0].attribute",
        "placements.bad.diversity_space",
        "placements.bad.in_region",
        "placements.bad.freshness",
        "placements.bad.exclude_purchased",
        "similar.behaviour_space",
    ]
    assert "the bundle has no source 'als'; valid: ann, popular, again" in str(refused.value)


def test_sound_placements_pass(make_bundle):
    check_placements(settings(), "main", Shop(make_bundle()))


def test_a_placement_that_the_bundle_cannot_serve_is_a_precondition(convert):
    with pytest.raises(BundleLacksError, match=r"placements\.home\.in_region"):
        convert(recommend(context=pb.Context(placement="home", country="de")), ("regions",))
