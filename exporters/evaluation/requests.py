"""A placement's requests in terms of one bundle, as a server resolves them: of a user, without a context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from recserve.exporters.errors import ExportError
from recserve.exporters.spec import EvaluationMode
from recserve.kernels.features import ColumnValues
from recserve.server.pipeline.filters import PURCHASE_EVENT
from recserve.server.pipeline.pipeline import Pipeline
from recserve.server.pipeline.placement import placement_problems, resolve
from recserve.server.pipeline.settings import PlacementSettings
from recserve.server.pipeline.types import DEFAULT_COUNT, ItemFilter, Query, QueryKind, Quota, RerankOptions

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


def excludes_purchased(placement: PlacementSettings, mode: EvaluationMode) -> bool:
    """Whether nothing is answered that the user has bought."""
    return placement.exclude_purchased or mode == "first"


def make_requests(pipeline: Pipeline, placement: PlacementSettings, mode: EvaluationMode, time_us: int) -> Requests:
    """Resolve a placement.

    Raises:
        ExportError: the bundle cannot serve it; every setting in question is listed.
    """
    problems = list(_problems(pipeline, placement, mode))
    if problems:
        raise ExportError("\n  ".join(["the bundle cannot be evaluated:", *problems]))
    asked = resolve(placement, pipeline)
    base = Query(
        kind=QueryKind.RECOMMEND,
        count=DEFAULT_COUNT,
        time_us=time_us,
        context=ColumnValues.missing(pipeline.bundle.schema.context_layout, 1),
        filter=ItemFilter(in_stock=asked.in_stock, exclude_purchased=excludes_purchased(placement, mode)),
        rerank=asked.rerank,
        candidates=placement.candidates,
        quotas=asked.quotas,
        fusion=asked.fusion,
    )
    return Requests(base, replace(asked.rerank, mmr_weight=TRIAL_MMR) if pipeline.similarity_spaces else None)


def _problems(pipeline: Pipeline, placement: PlacementSettings, mode: EvaluationMode) -> Iterator[str]:
    if placement.in_region:
        yield (
            "placement.in_region: it answers items of the request's country only, and the users of a test have none: "
            "evaluate a placement without it"
        )
    for problem in placement_problems("placement", placement, pipeline):
        yield f"{problem.field}: {problem.description}"
    if mode == "first" and PURCHASE_EVENT not in pipeline.bundle.schema.event_types:
        yield f"mode 'first': the bundle has no event type {PURCHASE_EVENT!r}"
