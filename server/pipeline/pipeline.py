"""The road from queries to answers: embed, retrieve, rank, rerank.

Plain, synchronous and over arrays; no I/O, no asyncio, no gRPC. A micro-batch gives each request the answer that it
would get alone, bit for bit: whatever is shared (one scan of the vectors, one feature matrix, one pass of the forest)
treats every row by itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recserve.kernels import rerank as rerank_kernel
from recserve.kernels.features import ColumnValues, FeatureProgram
from recserve.server.bundle.catalogue import Catalogue
from recserve.server.bundle.columns import CategoryColumn
from recserve.server.bundle.reader import Bundle, Space
from recserve.server.pipeline.assemble import Candidates, Subject, subject, tower_users
from recserve.server.pipeline.cache import NOTHING_KEPT, CacheLimits, CacheStats
from recserve.server.pipeline.candidates import extend, fuse, union
from recserve.server.pipeline.errors import CallerGoneError, DeadlineExpiredError, InvalidRequestError, Violation
from recserve.server.pipeline.filters import PURCHASE_EVENT, Filters
from recserve.server.pipeline.golden import item_arrays, replay
from recserve.server.pipeline.host import this_host
from recserve.server.pipeline.inputs import FeatureComputer, RankingInputs
from recserve.server.pipeline.orders import RowsByCode
from recserve.server.pipeline.ranker import Ranker, RankerEngine, open_ranker
from recserve.server.pipeline.reasons import Reasons, reasons_for
from recserve.server.pipeline.scoring import combine, freshen, fuse_ranks
from recserve.server.pipeline.search import Searcher, open_searcher
from recserve.server.pipeline.similar import Similar
from recserve.server.pipeline.sources import POPULAR, Proposal, Request, sources_of
from recserve.server.pipeline.towers import TowerOutputError, UserTower, open_user_tower
from recserve.server.pipeline.types import (
    Cap,
    Degraded,
    Query,
    QueryKind,
    Reason,
    RerankOptions,
    Result,
    Rows,
    StageTimes,
    UserState,
    no_rows,
)

Select = Callable[..., tuple[NDArray[np.int64], bool]]
"""The signature of `recserve.kernels.rerank.select`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Engines:
    """What computes; a pipeline over reference engines is the oracle of one over the fast ones."""

    towers: Mapping[str, UserTower]
    searchers: Mapping[str, Searcher]
    features: FeatureComputer
    ranker: Ranker | None
    select: Select = rerank_kernel.select


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """One request before re-ranking.

    Attributes:
        candidates: all of them, in no particular order.
        scores: [n]; what the list is chosen by, freshness included.
        relevance: [n], calibrated, in (0, 1); None where no ranker ran.
    """

    candidates: Candidates
    scores: NDArray[np.float64]
    relevance: NDArray[np.float64] | None


_NO_CANDIDATES: Final = Candidates.given(no_rows())
_NO_SCORES: Final = np.empty(0)


@dataclass(slots=True, eq=False)
class _Job:
    """One request of a micro-batch and what the stages have made of it."""

    request: Request
    candidates: Candidates = _NO_CANDIDATES
    scores: NDArray[np.float64] = field(default_factory=lambda: _NO_SCORES)
    relevance: NDArray[np.float64] | None = None
    times: StageTimes = field(default_factory=StageTimes)
    outcome: Result | Exception | None = None
    gone: Callable[[], bool] | None = None

    @property
    def query(self) -> Query:
        return self.request.query

    def wanted(self, stage: str) -> bool:
        """Whether somebody still waits for the answer; if not, that is the outcome, and no further work is done."""
        if self.outcome is None:
            if self.gone is not None and self.gone():
                self.outcome = CallerGoneError(stage)
            elif self.query.expired():
                self.outcome = DeadlineExpiredError(stage)
        return self.outcome is None


class Pipeline:
    """Everything that answers from one bundle. Safe to run from several threads at once.

    Attributes:
        bundle: what it answers from.
        engines: what computes.
        objectives: of the ranker, in order; empty without one.
        sources: names that a request may ask for candidates.
        similarity_spaces: names of the spaces in which two items can be compared, those with vectors of length 1;
            the first is the one meant where none is named.
    """

    def __init__(self, bundle: Bundle, engines: Engines) -> None:
        self.bundle = bundle
        self.objectives = engines.ranker.objectives if engines.ranker else ()
        comparable = {name: space for name, space in bundle.spaces.items() if space.normalized}
        self.similarity_spaces = tuple(comparable)
        self.engines = engines
        by_category = _rows_by_category(bundle.catalogue)
        self._sources = sources_of(bundle, engines.searchers, by_category)
        self.sources = tuple(self._sources)
        self._similar = Similar(comparable, engines.searchers)
        self._items = item_arrays(bundle)
        self._ranked_spaces = bundle.schema.dot_spaces if self.objectives else ()
        self._dims = {name: space.dim for name, space in bundle.spaces.items()}
        events = bundle.schema.event_types
        self._purchase_code = events.index(PURCHASE_EVENT) if PURCHASE_EVENT in events else -1
        self._filters = Filters(bundle.catalogue, self._purchase_code, by_category)

    def run(
        self, work: Sequence[tuple[Query, UserState]], *, gone: Callable[[int], bool] | None = None
    ) -> list[Result | Exception]:
        """Answer a micro-batch.

        Args:
            work: queries against this pipeline's bundle, each with its user's state.
            gone: tells whether the caller of work[i] has left; asked between stages, and between the requests of a
                stage that goes through them one by one.

        Returns:
            In the order of `work`: an answer, or the RequestError of that request alone. An unexpected error of one
            request may raise for the whole batch; running the requests one by one then tells whose it is.
        """
        jobs = [_Job(self._resolve(query, state)) for query, state in work]
        if gone is not None:
            for index, job in enumerate(jobs):
                job.gone = partial(gone, index)
        for name, stage in (
            ("embed", self._embed),
            ("retrieve", self._retrieve),
            ("rank", self._rank),
            ("rerank", self._rerank),
        ):
            live = [job for job in jobs if job.wanted(name)]
            if live:
                _timed(stage, live, f"{name}_us")
        return [_outcome(job) for job in jobs]

    def retrieve(self, work: Sequence[tuple[Query, UserState]]) -> list[tuple[Subject, Candidates]]:
        """The first half of the road, for whoever trains or checks a ranker: users with their vectors, and candidates.

        Args:
            work: as for `run`.

        Raises:
            Exception: of the first request that comes to no candidates, or is past its deadline.
        """
        jobs = self._retrieved(work)
        return [(job.request.subject, job.candidates) for job in jobs]

    def proposals(self, work: Sequence[tuple[Query, UserState]], source: str, k: int) -> list[Proposal]:
        """What one source says of each request by itself, without users' vectors.

        Args:
            work: as for `run`.
            source: one of `sources`.
            k: how many items are wanted of each.
        """
        requests = [self._resolve(query, state) for query, state in work]
        return self._sources[source].propose(requests, k)

    def rank(self, work: Sequence[tuple[Query, UserState]]) -> list[Ranked]:
        """The road up to re-ranking, for whoever evaluates; `choose` is what remains of it.

        Args:
            work: as for `run`.

        Raises:
            Exception: as `retrieve`.
        """
        jobs = self._retrieved(work)
        self._rank(jobs)
        return [Ranked(job.candidates, self._fresh_scores(job), job.relevance) for job in jobs]

    def _retrieved(self, work: Sequence[tuple[Query, UserState]]) -> list[_Job]:
        """Requests with their candidates."""
        jobs = [_Job(self._resolve(query, state)) for query, state in work]
        for stage in (self._embed, self._retrieve):
            stage(jobs)
            for job in jobs:
                if isinstance(job.outcome, Exception):
                    raise job.outcome
        return jobs

    @property
    def kept_vectors(self) -> dict[str, CacheStats]:
        """The vectors that user towers keep, by space; without those that keep none."""
        return {name: tower.kept for name, tower in self.engines.towers.items() if tower.keeps}

    def warm(self, states: Sequence[UserState]) -> dict[int, TowerOutputError]:
        """Have the user towers that keep vectors keep those of these users.

        Args:
            states: of known users.

        Returns:
            Why there is no vector of a user, by place in `states`; its requests end in the same error.
        """
        nowhere = ColumnValues.missing(self.bundle.schema.context_layout, 1)
        users = [subject(state, self.bundle.catalogue, context=nowhere, time_us=0) for state in states]
        keeping = [tower for tower in self.engines.towers.values() if tower.keeps]
        return {place: error for tower in keeping for place, error in _keep(tower, users)}

    def _resolve(self, query: Query, state: UserState) -> Request:
        """The query's user in terms of this bundle's rows."""
        layout = self.bundle.schema.user_layout
        overrides = query.user_overrides
        who = subject(
            state,
            self.bundle.catalogue,
            context=query.context,
            time_us=query.time_us,
            session_rows=query.session_rows,
            user=state.columns.with_overrides(layout, overrides) if overrides else None,
        )
        return Request(query, state, who, self._filters)

    # ---------------------------------------------------------------------------------------------------- embed

    def _embed(self, jobs: Sequence[_Job]) -> None:
        """Give every request its user's vector in the spaces that its sources and features need."""
        for name, space in self.bundle.spaces.items():
            wanting = [job for job in jobs if job.outcome is None and self._needs(job.request, name)]
            tower = self.engines.towers.get(name)
            known = [job for job in wanting if job.request.subject.known] if tower else []
            if tower and known:
                _embed_known(known, name, tower)
            for job in wanting:
                if job.outcome is None and name not in job.request.subject.vectors:
                    _set_vector(job.request, space)

    def _needs(self, request: Request, space: str) -> bool:
        if request.query.kind is QueryKind.SIMILAR:
            return False
        return space in request.weights or space in self._ranked_spaces

    # ------------------------------------------------------------------------------------------------- retrieve

    def _retrieve(self, jobs: Sequence[_Job]) -> None:
        """Give every request its candidates, all of them passing its filter."""
        recommend = [job for job in jobs if job.query.kind is QueryKind.RECOMMEND]
        for job, mine in zip(recommend, self._ask_sources(recommend), strict=True):
            if job.wanted("retrieve"):
                job.candidates = self._merge(job, mine)
        for job in jobs:
            if job.query.kind is QueryKind.RANK:
                rows = job.query.given_rows
                job.candidates = Candidates.given(rows[job.request.passing(rows)])
            elif job.query.kind is QueryKind.SIMILAR and job.wanted("retrieve"):
                job.candidates, job.scores = self._similar.find(job.query, job.request.mask)
            job.request.release()

    def _ask_sources(self, jobs: Sequence[_Job]) -> list[dict[str, Proposal]]:
        """Per job, what each source says that it asks: one call per source and number of candidates.

        Jobs that want other numbers are asked for apart, because an approximate index finds other items with another k.
        """
        asking: dict[tuple[str, int], list[int]] = {}
        for index, job in enumerate(jobs):
            for name in job.request.weights:
                asking.setdefault((name, job.query.depth), []).append(index)
        proposals: list[dict[str, Proposal]] = [{} for _ in jobs]
        for (name, k), group in asking.items():
            found = self._sources[name].propose([jobs[index].request for index in group], k)
            for index, proposal in zip(group, found, strict=True):
                proposals[index][name] = proposal
        return proposals

    def _merge(self, job: _Job, proposals: Mapping[str, Proposal]) -> Candidates:
        """The union by quotas or by fusion; popular items stand in where the sources together know too few."""
        query, weights = job.query, job.request.weights
        names, mine = list(weights), [proposals[name] for name in weights]
        if query.fusion is None:
            merged = union(names, mine, list(weights.values()), query.pool)
        else:
            merged = fuse(names, mine, list(weights.values()), query.pool, query.fusion.constant)
        if merged.rows.size < query.count and POPULAR not in weights:
            popular = self._sources[POPULAR].propose([job.request], query.count + merged.rows.size)[0]
            merged = extend(merged, POPULAR, popular, query.count)
        return merged

    # ----------------------------------------------------------------------------------------------------- rank

    def _rank(self, jobs: Sequence[_Job]) -> None:
        """Give every candidate its score: one pass of features and forests for the micro-batch."""
        ranked = [job for job in jobs if job.query.kind is not QueryKind.SIMILAR]
        if self.engines.ranker is None:
            for job in ranked:
                job.scores = fuse_ranks(job.candidates.ranks)
        elif ranked:
            relevance = self._relevance(self.engines.ranker, ranked)
            start = 0
            for job in ranked:
                end = start + job.candidates.rows.size
                weights = job.query.rerank.objective_weights or self.engines.ranker.weights
                job.relevance = job.scores = combine(relevance[start:end], weights)
                start = end

    def _relevance(self, ranker: Ranker, jobs: Sequence[_Job]) -> NDArray[np.float64]:
        """[candidates of all jobs, objectives]."""
        inputs = self.ranking_inputs([job.request.subject for job in jobs], [job.candidates for job in jobs])
        return ranker.relevance(ranker.score(inputs))

    def ranking_inputs(self, subjects: Sequence[Subject], candidates: Sequence[Candidates]) -> RankingInputs:
        """What the ranker is given of requests and their candidates."""
        return RankingInputs(
            schema=self.bundle.schema,
            features=self.engines.features,
            items=self._items,
            dims=self._dims,
            subjects=subjects,
            candidates=candidates,
        )

    # --------------------------------------------------------------------------------------------------- rerank

    def _rerank(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            if job.wanted("rerank"):
                try:
                    job.outcome = self._answer(job)
                except TimeoutError:
                    job.outcome = DeadlineExpiredError("rerank")

    def _answer(self, job: _Job) -> Result:
        """Freshness, then caps and diversity, then exactly as many as were asked for."""
        query, candidates = job.query, job.candidates
        scores = self._fresh_scores(job)
        deadline = math.inf if query.deadline is None else query.deadline
        chosen, relaxed = self.choose(scores, candidates.rows, query.count, query.rerank, deadline=deadline)
        # `take` is several times as quick as an index into an array of two axes.
        rows, ranks = candidates.rows[chosen], candidates.ranks.take(chosen, axis=0)
        return Result(
            rows=rows,
            scores=scores[chosen],
            relevance=None if job.relevance is None else job.relevance[chosen],
            sources=candidates.sources,
            source_scores=candidates.scores.take(chosen, axis=0),
            source_ranks=ranks,
            reasons=self._reasons(job, rows, ranks) if query.reasons else (),
            cold_start=not job.request.state.known,
            degraded=(Degraded("diversity", "caps_relaxed"),) if relaxed else (),
            times=job.times,
        )

    def _fresh_scores(self, job: _Job) -> NDArray[np.float64]:
        freshness = job.query.rerank.freshness
        if freshness is None:
            return job.scores
        return freshen(job.scores, self.bundle.catalogue, job.candidates.rows, job.query.time_us, freshness)

    def choose(
        self,
        scores: NDArray[np.float64],
        rows: Rows,
        count: int,
        options: RerankOptions,
        *,
        deadline: float = math.inf,
    ) -> tuple[NDArray[np.int64], bool]:
        """Positions of the final list among the candidates, and whether caps had to be relaxed to fill it.

        Args:
            scores: [n], after freshness.
            rows: [n], the candidates.
            count: places to fill; fewer come back only where n is smaller.
            options: caps and diversity.
            deadline: `time.monotonic()` seconds from which on nobody waits for it; infinity: none.

        Raises:
            TimeoutError: the deadline passed before every place was filled.
        """
        codes = np.empty((rows.size, len(options.caps)), np.int32)
        for column, cap in enumerate(options.caps):
            codes[:, column] = self._cap_codes(cap.attribute)[rows]
        selection = scores, rows, count, codes, *_cap_arrays(options.caps)
        if options.mmr_weight is None:
            return self.engines.select(*selection, deadline=deadline)
        space = self.bundle.spaces[options.diversity_space or self.similarity_spaces[0]]
        diversity = space.vectors, options.mmr_weight, space.lowest_product
        return self.engines.select(*selection, *diversity, deadline=deadline)

    def _cap_codes(self, attribute: str) -> NDArray[np.int32]:
        column = self.bundle.catalogue.columns[attribute]
        if not isinstance(column, CategoryColumn):
            raise TypeError(f"caps need a category column; {attribute!r} is {column!r}")
        return column.codes

    def _reasons(self, job: _Job, rows: Rows, ranks: NDArray[np.int32]) -> tuple[tuple[Reason, ...], ...]:
        found = Reasons(self.bundle.catalogue, job.request.subject, self._purchase_code, self._sources)
        return reasons_for(found, rows, job.candidates.sources, ranks)


def open_pipeline(
    bundle: Bundle,
    *,
    device: str = "cpu",
    ranker_engine: RankerEngine = "bitsliced",
    allow_native_code: bool = False,
    every_item: bool = False,
    user_vectors: CacheLimits = NOTHING_KEPT,
) -> Pipeline:
    """A pipeline over the bundle's own engines that has answered the golden requests as they were answered at export.

    Args:
        bundle: an open bundle.
        device: "cpu" or "cuda".
        ranker_engine: what evaluates the forests.
        allow_native_code: whether compiled code in the bundle may be loaded.
        every_item: recompute what the forests store of all items, not of a sample.
        user_vectors: limits of the vectors that each user tower keeps.

    Raises:
        BundleError: see `open_engines` and `recserve.server.pipeline.golden.replay`.
    """
    engines = open_engines(
        bundle,
        device=device,
        ranker_engine=ranker_engine,
        allow_native_code=allow_native_code,
        every_item=every_item,
        user_vectors=user_vectors,
    )
    pipeline = Pipeline(bundle, engines)
    replay(pipeline, same_cpu=bundle.manifest.exporter_host == this_host())
    return pipeline


def open_engines(
    bundle: Bundle,
    *,
    device: str,
    ranker_engine: RankerEngine = "bitsliced",
    allow_native_code: bool = False,
    every_item: bool = False,
    user_vectors: CacheLimits = NOTHING_KEPT,
) -> Engines:
    """The bundle's own engines.

    Args:
        bundle: an open bundle.
        device: "cpu" or "cuda".
        ranker_engine: what evaluates the forests.
        allow_native_code: whether compiled code in the bundle may be loaded.
        every_item: see `open_pipeline`.
        user_vectors: limits of the vectors that each user tower keeps.

    Raises:
        BundleUnsupportedError: this build, configuration or machine lacks what the bundle needs.
        BundleMismatchError: an engine contradicts the manifest.
    """
    with_towers = [name for name, space in bundle.spaces.items() if space.has_user_tower]
    return Engines(
        towers={name: open_user_tower(bundle, name, device, user_vectors) for name in with_towers},
        searchers={name: open_searcher(space, device) for name, space in bundle.spaces.items()},
        features=FeatureProgram(bundle.schema, bundle.cardinalities),
        ranker=open_ranker(bundle, engine=ranker_engine, allow_native_code=allow_native_code, every_item=every_item),
    )


def _rows_by_category(catalogue: Catalogue) -> RowsByCode | None:
    """Rows by category, the most popular first; None where there are no categories."""
    column = catalogue.role("category")
    if not isinstance(column, CategoryColumn):
        return None
    return RowsByCode(column.codes, len(column.vocabulary), catalogue.popular_rows)


@lru_cache
def _cap_arrays(caps: tuple[Cap, ...]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.uint8]]:
    """Maxima, windows, and whether they slide: as `select` takes them. Placements share few lists of caps."""
    return (
        np.array([cap.max for cap in caps], np.int32),
        np.array([cap.window for cap in caps], np.int32),
        np.array([cap.sliding for cap in caps], np.uint8),
    )


def _timed(stage: Callable[[Sequence[_Job]], None], jobs: Sequence[_Job], name: str) -> None:
    start = time.perf_counter_ns()
    stage(jobs)
    elapsed = (time.perf_counter_ns() - start) // 1000
    for job in jobs:
        setattr(job.times, name, elapsed)


def _outcome(job: _Job) -> Result | Exception:
    if job.outcome is None:
        raise RuntimeError("a request left the pipeline without an outcome")
    return job.outcome


def _keep(tower: UserTower, users: Sequence[Subject]) -> list[tuple[int, TowerOutputError]]:
    """Have the users' vectors kept; the places of those of whom there is none, and why."""
    try:
        tower.embed(tower_users(users))
    except TowerOutputError as error:
        if len(users) == 1:
            return [(0, error)]
        return [(place, why) for place, user in enumerate(users) for _, why in _keep(tower, [user])]
    return []


def _embed_known(jobs: Sequence[_Job], space: str, tower: UserTower) -> None:
    """Give every known user its vector, or its request the reason why there is none."""
    try:
        vectors = tower.embed(tower_users([job.request.subject for job in jobs]))
    except TowerOutputError as error:
        if len(jobs) == 1:
            jobs[0].outcome = _no_vector(jobs[0].query, space, error)
        else:
            for job in jobs:
                _embed_known([job], space, tower)
        return
    for job, vector in zip(jobs, vectors, strict=True):
        job.request.subject.vectors[space] = vector


def _no_vector(query: Query, space: str, error: TowerOutputError) -> Exception:
    """A network that overflows is the caller's doing where the caller gave it features, else its own fault."""
    if not query.user_overrides:
        return error
    description = f"the user tower of space {space!r} makes no vector of it; give a value as users have them"
    return InvalidRequestError([Violation(f"context.features[{name!r}]", description) for name in query.user_overrides])


def _set_vector(request: Request, space: Space) -> None:
    """A stored user vector, else the direction of the session's items; neither: no vector, the source stays silent."""
    stored = space.user_row(request.query.user_id) if request.subject.known else -1
    if stored >= 0 and space.user_vectors is not None:
        request.subject.vectors[space.name] = np.array(space.user_vectors[stored])
        return
    session = request.query.session_rows
    if session.size == 0:
        return
    mean = space.vectors[session].mean(axis=0, dtype=np.float64)
    length = float(np.sqrt(np.sum(mean * mean)))
    if length > 0:
        request.subject.vectors[space.name] = (mean / length if space.normalized else mean).astype(np.float32)
