"""A placement's requests in terms of one bundle, as a server resolves them: of a user, without a context."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from recserve.exporters.errors import ExportError
from recserve.exporters.spec import EvaluationMode, PlacementSpec
from recserve.kernels.features import ColumnValues
from recserve.kernels.features.operations import suggest
from recserve.server.bundle.columns import CategoryColumn
from recserve.server.pipeline.filters import PURCHASE_EVENT
from recserve.server.pipeline.pipeline import Pipeline
from recserve.server.pipeline.types import ItemFilter, Query, QueryKind, Quota, RerankOptions

COUNT: Final = 20
"""Items per answer, as a server answers requests that do not say."""
TRIAL_MMR: Final = 0.7
"""Shows what diversity would cost where the placement has none."""


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """Requests in one mode.

    Attributes:
        base: the placement's request of nobody.
        trial: diversity to look at where the placement has none; None where no space can measure it.
    """

    base: Query
    trial: RerankOptions | None

    @property
    def diversified(self) -> bool:
        """Whether the placement caps or diversifies."""
        return bool(self.base.rerank.caps) or self.base.rerank.mmr_weight is not None

    @property
    def plain(self) -> RerankOptions:
        """The placement's without caps and diversity."""
        return replace(self.base.rerank, caps=(), mmr_weight=None)

    def served(self, user_id: str) -> Query:
        """As a server asks for a user."""
        return replace(self.base, user_id=user_id)

    def from_source(self, user_id: str, source: str) -> Query:
        """The same of one source alone; for retrieval, where a `count` of 0 keeps other sources from standing in."""
        return replace(self.served(user_id), quotas=(Quota(source, 1.0),), fusion=None, count=0)


def excludes_purchased(placement: PlacementSpec, mode: EvaluationMode) -> bool:
    """Whether nothing is answered that the user has bought."""
    return placement.exclude_purchased or mode == "first"


def make_requests(pipeline: Pipeline, placement: PlacementSpec, mode: EvaluationMode, time_us: int) -> Requests:
    """Resolve a placement.

    Raises:
        ExportError: the bundle cannot serve it; every setting in question is listed.
    """
    problems = list(_problems(pipeline, placement, mode))
    if problems:
        raise ExportError("\n  ".join(["the bundle cannot be evaluated:", *problems]))
    bundle, weights = pipeline.bundle, placement.objective_weights
    rerank = RerankOptions(
        objective_weights=tuple(weights.get(each, 0.0) for each in pipeline.objectives) if weights else None,
        freshness=placement.freshness,
        caps=tuple(placement.caps),
        mmr_weight=placement.mmr_weight,
        diversity_space=placement.diversity_space,
    )
    base = Query(
        kind=QueryKind.RECOMMEND,
        count=COUNT,
        time_us=time_us,
        context=ColumnValues.missing(bundle.schema.context_layout, 1),
        filter=ItemFilter(
            in_stock=placement.in_stock and bundle.catalogue.role("in_stock") is not None,
            exclude_purchased=excludes_purchased(placement, mode),
        ),
        rerank=rerank,
        candidates=placement.candidates,
        quotas=tuple(Quota(each.name, each.weight) for each in placement.sources)
        or tuple(Quota(source, 1.0) for source in pipeline.sources),
        fusion=placement.fusion,
    )
    return Requests(base, replace(rerank, mmr_weight=TRIAL_MMR) if pipeline.similarity_spaces else None)


def _problems(pipeline: Pipeline, placement: PlacementSpec, mode: EvaluationMode) -> Iterator[str]:
    columns = pipeline.bundle.catalogue.columns
    categories = [name for name, column in columns.items() if isinstance(column, CategoryColumn)]
    for source in placement.sources:
        yield from _unknown("placement.sources: source", source.name, pipeline.sources)
    if placement.sources and not any(source.weight > 0 for source in placement.sources):
        yield "placement.sources: at least one weight must be above 0"
    for name in placement.objective_weights:
        yield from _unknown("placement.objective_weights: objective", name, pipeline.objectives)
    for cap in placement.caps:
        yield from _unknown("placement.caps: category attribute", cap.attribute, categories)
    if placement.diversity_space:
        space = placement.diversity_space
        yield from _unknown("placement.diversity_space: vector space of length 1", space, pipeline.similarity_spaces)
    if placement.mmr_weight is not None and not pipeline.similarity_spaces:
        yield "placement.mmr_weight: MMR needs a vector space of length 1; the bundle has none"
    if placement.freshness is not None and pipeline.bundle.catalogue.role("launch_time") is None:
        yield "placement.freshness: the bundle's catalogue has no column in the role 'launch_time'"
    wanted = {"mode 'first'": mode == "first", "placement.exclude_purchased": placement.exclude_purchased}
    if any(wanted.values()) and PURCHASE_EVENT not in pipeline.bundle.schema.event_types:
        asked = " and ".join(name for name, asks in wanted.items() if asks)
        yield f"{asked}: the bundle has no event type {PURCHASE_EVENT!r}"
    yield from _range_problems(placement)


def _range_problems(placement: PlacementSpec) -> Iterator[str]:
    """The ranges of a server's configuration."""
    if placement.candidates < 1:
        yield f"placement.candidates: expected at least 1, found {placement.candidates}"
    for each in placement.sources:
        if not 0 <= each.weight < math.inf:
            yield f"placement.sources: the weight of {each.name!r} is {each.weight}, expected 0 or more"
    if placement.fusion and not (placement.fusion.depth >= 1 and 0 < placement.fusion.constant < math.inf):
        yield "placement.fusion: expected a depth of at least 1, and a constant above 0"
    for name, weight in placement.objective_weights.items():
        if not 0 <= weight < math.inf:
            yield f"placement.objective_weights: {name!r} is {weight}, expected 0 or more"
    if placement.objective_weights and not any(placement.objective_weights.values()):
        yield "placement.objective_weights: at least one must be above 0"
    if placement.mmr_weight is not None and not 0 <= placement.mmr_weight <= 1:
        yield f"placement.mmr_weight: expected 0 to 1, found {placement.mmr_weight}"
    if any(cap.max < 1 or cap.window < 0 for cap in placement.caps):
        yield "placement.caps: expected a max of at least 1, and a window of at least 0"
    if placement.freshness and not (placement.freshness.boost >= 0 and placement.freshness.half_life_days > 0):
        yield "placement.freshness: expected a boost of 0 or more, and a half-life above 0"


def _unknown(what: str, name: str, known: tuple[str, ...] | list[str]) -> Iterator[str]:
    if name not in known:
        yield f"{what} {name!r} is not in the bundle{suggest(name, known)}"
