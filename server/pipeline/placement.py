"""What a placement's settings mean for one bundle, to a server as to an evaluation."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recserve.kernels.features.operations import suggest
from recserve.server.bundle.columns import CategoryColumn
from recserve.server.pipeline.errors import Violation
from recserve.server.pipeline.filters import PURCHASE_EVENT
from recserve.server.pipeline.settings import PlacementSettings
from recserve.server.pipeline.types import Cap, Freshness, Fusion, Quota, RerankOptions

if TYPE_CHECKING:
    from recserve.server.pipeline.pipeline import Pipeline


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resolved:
    """A placement's settings in terms of one bundle."""

    quotas: tuple[Quota, ...]
    fusion: Fusion | None
    rerank: RerankOptions
    in_stock: bool


def resolve(settings: PlacementSettings, pipeline: Pipeline) -> Resolved:
    """What the settings mean for a pipeline's bundle; `placement_problems` tells what they do not."""
    weights = settings.objective_weights
    configured = tuple(Quota(source.name, source.weight) for source in settings.sources)
    return Resolved(
        quotas=configured or tuple(Quota(source, 1.0) for source in pipeline.sources),
        fusion=Fusion(**settings.fusion.model_dump()) if settings.fusion else None,
        rerank=RerankOptions(
            objective_weights=tuple(weights.get(each, 0.0) for each in pipeline.objectives) if weights else None,
            freshness=Freshness(**settings.freshness.model_dump()) if settings.freshness else None,
            caps=tuple(Cap(**cap.model_dump()) for cap in settings.caps),
            mmr_weight=settings.mmr_weight,
            diversity_space=settings.diversity_space,
        ),
        # True by default, so it cannot be a demand: a catalogue that does not know its stock is not filtered.
        in_stock=settings.in_stock and pipeline.bundle.catalogue.role("in_stock") is not None,
    )


def placement_problems(path: str, settings: PlacementSettings, pipeline: Pipeline) -> Iterator[Violation]:
    """Settings that ask for what the bundle does not have; `path` is that of the placement."""
    for index, source in enumerate(settings.sources):
        if source.name not in pipeline.sources:
            yield Violation(f"{path}.sources[{index}].name", has_no("source", source.name, pipeline.sources))
    for name in settings.objective_weights:
        if name not in pipeline.objectives:
            yield Violation(f"{path}.objective_weights.{name}", has_no("objective", name, pipeline.objectives))
    columns = pipeline.bundle.catalogue.columns
    categories = [name for name, column in columns.items() if isinstance(column, CategoryColumn)]
    for index, cap in enumerate(settings.caps):
        if cap.attribute not in categories:
            description = has_no("category attribute", cap.attribute, categories)
            yield Violation(f"{path}.caps[{index}].attribute", description)
    yield from _space_problems(path, settings, pipeline)
    yield from _condition_problems(path, settings, pipeline)


def has_no(what: str, name: str, valid: Collection[str]) -> str:
    """That a bundle lacks what was named, with what was meant, or what it has."""
    return f"the bundle has no {what} {name!r}{suggest(name, valid)}"


def _space_problems(path: str, settings: PlacementSettings, pipeline: Pipeline) -> Iterator[Violation]:
    if settings.diversity_space and settings.diversity_space not in pipeline.similarity_spaces:
        description = has_no("vector space of length 1", settings.diversity_space, pipeline.similarity_spaces)
        yield Violation(f"{path}.diversity_space", description)
    if settings.mmr_weight is not None and not pipeline.similarity_spaces:
        yield Violation(f"{path}.mmr_weight", "MMR needs a vector space of length 1; the bundle has none")


def _condition_problems(path: str, settings: PlacementSettings, pipeline: Pipeline) -> Iterator[Violation]:
    catalogue = pipeline.bundle.catalogue
    if settings.in_region and catalogue.role("regions") is None:
        yield Violation(f"{path}.in_region", "the bundle's catalogue has no column in the role 'regions'")
    if settings.freshness is not None and catalogue.role("launch_time") is None:
        yield Violation(f"{path}.freshness", "the bundle's catalogue has no column in the role 'launch_time'")
    if settings.exclude_purchased and PURCHASE_EVENT not in pipeline.bundle.schema.event_types:
        yield Violation(f"{path}.exclude_purchased", f"the bundle has no event type {PURCHASE_EVENT!r}")
