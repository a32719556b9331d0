"""From requests to queries: what the servicer has to do, with everything looked up, or everything that is wrong."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from recserve.server.bundle.registry import BundleRegistry
from recserve.server.config import DEFAULT_PLACEMENT, Settings
from recserve.server.pipeline.errors import NotReadyError, UnknownItemsError
from recserve.server.pipeline.types import DEFAULT_COUNT, Query, QueryKind, RerankOptions, Rows
from recserve.server.rpc import limits, validate
from recserve.server.rpc.answer_cache import request_key
from recserve.server.rpc.placements import Placement, Placements
from recserve.server.rpc.problems import Problems, listed, quoted
from recserve.server.rpc.resolve import Request, Resolver
from recserve.v1 import recommender_pb2 as pb

if TYPE_CHECKING:
    from recserve.server.pipeline.pipeline import Pipeline


class Job(NamedTuple):
    """One request, ready to be answered."""

    bundle: str
    """What the registry calls the pipeline's bundle."""
    pipeline: Pipeline
    query: Query
    request_id: str
    fields: tuple[str, ...] = ()
    """Item attributes to return."""
    unknown_item_ids: tuple[str, ...] = ()
    """Of the items asked about."""
    record_shown: bool = False
    needs_state: bool = False
    """The request itself excludes what its user bought or was shown: without state there is no answer to it."""
    cache_key: bytes = b""
    """Under which the answer may be kept (`request_key`); empty: it may not."""


def new_id() -> str:
    """A unique id, for an answer or for a request that came without one.

    Nobody has to be kept from guessing it, so it does not ask the system for randomness each time.
    """
    return f"{random.getrandbits(128):032x}"


def usable_request_id(given: str) -> str:
    """The caller's id for its request; empty where it gave none, or one too long to be repeated in a status."""
    return given if len(given.encode()) <= limits.TEXT_BYTES else ""


class Converter:
    """Turns requests into jobs.

    Each method takes the request, its id, and its deadline (`time.monotonic()` seconds), and raises
    InvalidRequestError with every bad field, BundleLacksError where all is well-formed but the bundle or build lacks
    something, and NotReadyError where no bundle is in service.

    Args:
        registry: the pipelines by bundle name.
        settings: placements, the defaults of SimilarItems, the clock, where it is pinned, and whether answers are kept.
    """

    def __init__(self, registry: BundleRegistry[Pipeline], settings: Settings) -> None:
        self._registry = registry
        self._similar = settings.similar
        self._placements = Placements(settings.placements)
        self._clock_us = settings.server.clock_us
        self._caches_answers = settings.answer_cache.entries > 0

    def recommend(self, request: pb.RecommendRequest, request_id: str, deadline: float) -> Job:
        """The job of a RecommendRequest."""
        problems = Problems()
        validate.check_recommend(request, problems)
        place = self._place(request, problems)
        resolver, context, defaults = place.resolver, request.context, place.placement.settings
        count = request.count if request.HasField("count") else DEFAULT_COUNT
        query = Query(
            kind=QueryKind.RECOMMEND,
            user_id=request.user_id,
            count=count,
            time_us=self._time_us(context),
            context=resolver.context(context),
            user_overrides=resolver.user_overrides(context),
            session_rows=resolver.known_rows(context.session_item_ids),
            filter=resolver.filter(request, has_user=True),
            rerank=resolver.rerank(request),
            candidates=defaults.candidates,
            quotas=resolver.quotas(request.sources),
            fusion=place.placement.resolved.fusion,
            reasons=request.reasons,
            deadline=deadline,
        )
        fields = resolver.fields(request.fields)
        problems.raise_any()
        record = request.record_shown if request.HasField("record_shown") else defaults.record_shown
        key = request_key(request) if self._caches_answers else b""
        return place.job(query, request_id, fields, record_shown=record, cache_key=key)

    def similar(self, request: pb.SimilarItemsRequest, request_id: str, deadline: float) -> Job:
        """The job of a SimilarItemsRequest.

        Raises:
            UnknownItemsError: none of the items is known.
        """
        problems = Problems()
        validate.check_similar(request, problems)
        place = self._place(request, problems)
        resolver, context = place.resolver, request.context
        count = request.count if request.HasField("count") else DEFAULT_COUNT
        alpha = request.alpha if request.HasField("alpha") else self._similar.alpha
        behaviour, content = self._spaces(place.pipeline, alpha, problems)
        given, unknown = resolver.items(request.item_ids)
        query = Query(
            kind=QueryKind.SIMILAR,
            user_id=request.user_id,
            count=count,
            time_us=self._time_us(context),
            context=resolver.context(context),
            user_overrides=resolver.user_overrides(context),
            session_rows=resolver.known_rows(context.session_item_ids),
            given_rows=given,
            filter=resolver.filter(request, has_user=bool(request.user_id)),
            rerank=RerankOptions(),
            candidates=place.placement.settings.candidates,
            alpha=alpha,
            behaviour_space=behaviour,
            content_space=content,
            deadline=deadline,
        )
        fields = resolver.fields(request.fields)
        problems.raise_any()
        _require_known(given, request.item_ids)
        return place.job(query, request_id, fields, unknown_item_ids=unknown)

    def rank(self, request: pb.RankItemsRequest, request_id: str, deadline: float) -> Job:
        """The job of a RankItemsRequest.

        Raises:
            UnknownItemsError: none of the items is known.
        """
        problems = Problems()
        validate.check_rank(request, problems)
        place = self._place(request, problems)
        resolver, context = place.resolver, request.context
        if not place.pipeline.objectives:
            problems.lacks("item_ids", "ranking given items needs a ranker; export the bundle with one")
        given, unknown = resolver.items(request.item_ids)
        query = Query(
            kind=QueryKind.RANK,
            user_id=request.user_id,
            count=request.count if request.HasField("count") else given.size,
            time_us=self._time_us(context),
            context=resolver.context(context),
            user_overrides=resolver.user_overrides(context),
            session_rows=resolver.known_rows(context.session_item_ids),
            given_rows=given,
            filter=resolver.filter(request, has_user=True),
            rerank=resolver.rerank(request) if request.HasField("rerank") else resolver.by_score_alone(),
            candidates=given.size,
            reasons=request.reasons,
            deadline=deadline,
        )
        fields = resolver.fields(request.fields)
        problems.raise_any()
        _require_known(given, request.item_ids)
        defaults = place.placement.settings
        record = request.record_shown if request.HasField("record_shown") else defaults.record_shown
        return place.job(query, request_id, fields, unknown_item_ids=unknown, record_shown=record)

    def _place(self, request: Request, problems: Problems) -> _Place:
        """Bundle and placement of a request; without a bundle its names mean nothing, so that is the end of it."""
        problems.raise_oversized()
        ready = self._registry.ready
        if not ready:
            raise NotReadyError("no bundle is in service yet; try again soon")
        name = request.bundle or next(iter(ready))
        if name not in ready:
            problems.reject("bundle", f"no bundle is called {quoted(name)}; in service: {listed(ready)}")
            raise problems.invalid()
        pipeline = ready[name]
        placement = self._placement(request.context.placement, pipeline, problems)
        resolver = Resolver(pipeline, placement, problems)
        resolver.check_features(request.context)
        wanted = request.filter
        needs_state = wanted.exclude_purchased or wanted.exclude_shown
        return _Place(name, pipeline, placement, resolver, needs_state)

    def _placement(self, name: str, pipeline: Pipeline, problems: Problems) -> Placement:
        if name and name not in self._placements.names:
            description = f"no placement is called {quoted(name)}; configured: {listed(self._placements.names)}"
            problems.reject("context.placement", description)
            name = DEFAULT_PLACEMENT
        placement = self._placements.get(name or DEFAULT_PLACEMENT, pipeline)
        for each in placement.problems:
            problems.lacks("context.placement", f"{each.field}: {each.description}")
        return placement

    def _time_us(self, context: pb.Context) -> int:
        if context.HasField("time"):
            return context.time.seconds * 1_000_000 + context.time.nanos // 1000
        return time.time_ns() // 1000 if self._clock_us is None else self._clock_us

    def _spaces(self, pipeline: Pipeline, alpha: float, problems: Problems) -> tuple[str, str]:
        """Behaviour and content space; empty where its weight is 0."""
        behaviour = (self._similar.behaviour_space or next(iter(pipeline.similarity_spaces), "")) if alpha > 0 else ""
        content = self._similar.content_space if alpha < 1 else ""
        if alpha > 0 and behaviour not in pipeline.similarity_spaces:
            problems.lacks("alpha", _no_space("behaviour", behaviour, pipeline))
        if alpha < 1 and content not in pipeline.similarity_spaces:
            problems.lacks("alpha", _no_space("content", content, pipeline))
        return behaviour, content


class _Place(NamedTuple):
    """Where a request is answered."""

    bundle: str
    pipeline: Pipeline
    placement: Placement
    resolver: Resolver
    needs_state: bool

    def job(
        self,
        query: Query,
        request_id: str,
        fields: tuple[str, ...],
        *,
        unknown_item_ids: tuple[str, ...] = (),
        record_shown: bool = False,
        cache_key: bytes = b"",
    ) -> Job:
        return Job(
            bundle=self.bundle,
            pipeline=self.pipeline,
            query=query,
            request_id=request_id,
            fields=fields,
            unknown_item_ids=unknown_item_ids,
            record_shown=record_shown,
            needs_state=self.needs_state,
            cache_key=cache_key,
        )


def _no_space(part: str, name: str, pipeline: Pipeline) -> str:
    called = f" {name!r}" if name else ""
    return f"the bundle lacks the {part} space{called} of length 1; it has: {listed(pipeline.similarity_spaces)}"


def _require_known(rows: Rows, item_ids: Sequence[str]) -> None:
    """At least one of the items asked about must be known."""
    if not rows.size:
        raise UnknownItemsError(tuple(item_ids))
