"""What a placement's configuration means for one bundle: worked out once, used by every request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from recserve.kernels.features import ColumnValues
from recserve.server.bundle.columns import Vocabulary
from recserve.server.bundle.reader import Bundle
from recserve.server.config import PlacementSettings, Settings, SimilarSettings
from recserve.server.pipeline.errors import Violation
from recserve.server.pipeline.placement import Resolved, has_no, placement_problems, resolve
from recserve.server.pipeline.types import ItemFilter
from recserve.server.rpc.errors import PlacementError

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
    resolved: Resolved
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
    return Placement(
        settings=settings,
        resolved=resolve(settings, pipeline),
        context=_context_columns(pipeline.bundle),
        own_filters={},
        problems=tuple(placement_problems(f"placements.{name}", settings, pipeline)),
    )


def _context_columns(bundle: Bundle) -> ContextColumns:
    layout = bundle.schema.context_layout
    fields = [
        (column.name, layout[column.name][1], bundle.vocabularies[column.vocabulary])
        for column in layout.codes
        if column.name in _CONTEXT_FIELDS
    ]
    return ContextColumns(ColumnValues.missing(layout, 1), tuple(fields))


def _similar_problems(settings: SimilarSettings, pipeline: Pipeline) -> Iterator[Violation]:
    wanted = {"behaviour_space": settings.behaviour_space}
    if settings.alpha < 1:
        wanted["content_space"] = settings.content_space
    for key, space in wanted.items():
        if space and space not in pipeline.similarity_spaces:
            yield Violation(f"similar.{key}", has_no("vector space of length 1", space, pipeline.similarity_spaces))
