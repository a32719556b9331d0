"""What a placement's configuration means for one bundle: worked out once, used by every request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from recserve.kernels.features import ColumnValues
from recserve.server.bundle.columns import CategoryColumn, Vocabulary
from recserve.server.bundle.reader import Bundle
from recserve.server.config import PlacementSettings, Settings, SimilarSettings
from recserve.server.pipeline.errors import Violation
from recserve.server.pipeline.filters import PURCHASE_EVENT
from recserve.server.pipeline.types import Cap, Freshness, Fusion, ItemFilter, Quota, RerankOptions
from recserve.server.rpc.errors import PlacementError
from recserve.server.rpc.problems import listed

if TYPE_CHECKING:
    from recserve.server.pipeline.pipeline import Pipeline


_CONTEXT_FIELDS: Final = ("device", "country", "language", "placement")
"""Fields of Context that fill the context column of the same name, where the schema has one."""


@dataclass(frozen=True, slots=True, eq=False)
class ContextColumns:
    """How one bundle's context columns are filled."""

    missing: ColumnValues
    """One row in which all are missing."""
    fields: tuple[tuple[str, int, Vocabulary], ...]
    """Fields of Context, each with its column among the codes and the vocabulary of that column."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placement:
    """Defaults of one placement in terms of one bundle."""

    settings: PlacementSettings
    quotas: tuple[Quota, ...]
    fusion: Fusion | None
    rerank: RerankOptions
    in_stock: bool
    context: ContextColumns
    own_filters: dict[bool, ItemFilter]
    """Of requests without a filter, by whether they have a user: made from the above when the first one comes."""
    problems: tuple[Violation, ...]
    """Settings that the bundle cannot serve, by their path in the configuration."""


class Placements:
    """Every configured placement, for any bundle.

    Args:
        settings: placements by name.
    """

    def __init__(self, settings: Mapping[str, PlacementSettings]) -> None:
        self._settings = settings
        self._resolved: WeakKeyDictionary[Pipeline, dict[str, Placement]] = WeakKeyDictionary()

    @property
    def names(self) -> tuple[str, ...]:
        """What requests may name."""
        return tuple(self._settings)

    def get(self, name: str, pipeline: Pipeline) -> Placement:
        """The placement of that name, which must be one of `names`, for a pipeline's bundle."""
        resolved = self._resolved.setdefault(pipeline, {})
        if name not in resolved:
            resolved[name] = _resolve(name, self._settings[name], pipeline)
        return resolved[name]


def check_placements(settings: Settings, name: str, pipeline: Pipeline) -> None:
    """Make sure that a bundle can serve what is configured, before any request finds out.

    Args:
        settings: the configuration.
        name: what the configuration calls the bundle.
        pipeline: over the bundle.

    Raises:
        PlacementError: it cannot; every setting in question is listed.
    """
    placements = Placements(settings.placements)
    problems = [problem for each in placements.names for problem in placements.get(each, pipeline).problems]
    problems.extend(_similar_problems(settings.similar, pipeline))
    if problems:
        raise PlacementError(name, problems)


def _resolve(name: str, settings: PlacementSettings, pipeline: Pipeline) -> Placement:
    weights = settings.objective_weights
    configured = tuple(Quota(source.name, source.weight) for source in settings.sources)
    return Placement(
        settings=settings,
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
        context=_context_columns(pipeline.bundle),
        own_filters={},
        problems=tuple(_problems(f"placements.{name}", settings, pipeline)),
    )


def _context_columns(bundle: Bundle) -> ContextColumns:
    layout = bundle.schema.context_layout
    fields = [
        (column.name, layout[column.name][1], bundle.vocabularies[column.vocabulary])
        for column in layout.codes
        if column.name in _CONTEXT_FIELDS
    ]
    return ContextColumns(ColumnValues.missing(layout, 1), tuple(fields))


def _problems(path: str, settings: PlacementSettings, pipeline: Pipeline) -> Iterator[Violation]:
    """Settings that name what the bundle does not have."""
    for index, source in enumerate(settings.sources):
        if source.name not in pipeline.sources:
            yield Violation(f"{path}.sources[{index}].name", _has_no("source", source.name, pipeline.sources))
    for name in settings.objective_weights:
        if name not in pipeline.objectives:
            yield Violation(f"{path}.objective_weights.{name}", _has_no("objective", name, pipeline.objectives))
    columns = pipeline.bundle.catalogue.columns
    categories = [name for name, column in columns.items() if isinstance(column, CategoryColumn)]
    for index, cap in enumerate(settings.caps):
        if cap.attribute not in categories:
            description = _has_no("category attribute", cap.attribute, categories)
            yield Violation(f"{path}.caps[{index}].attribute", description)
    yield from _space_problems(path, settings, pipeline)
    yield from _condition_problems(path, settings, pipeline)


def _space_problems(path: str, settings: PlacementSettings, pipeline: Pipeline) -> Iterator[Violation]:
    if settings.diversity_space and settings.diversity_space not in pipeline.similarity_spaces:
        description = _has_no("vector space of length 1", settings.diversity_space, pipeline.similarity_spaces)
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


def _similar_problems(settings: SimilarSettings, pipeline: Pipeline) -> Iterator[Violation]:
    wanted = {"behaviour_space": settings.behaviour_space}
    if settings.alpha < 1:
        wanted["content_space"] = settings.content_space
    for key, space in wanted.items():
        if space and space not in pipeline.similarity_spaces:
            yield Violation(f"similar.{key}", _has_no("vector space of length 1", space, pipeline.similarity_spaces))


def _has_no(what: str, name: str, valid: tuple[str, ...] | list[str]) -> str:
    return f"the bundle has no {what} {name!r}; it has: {listed(valid)}"
