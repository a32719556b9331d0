"""What can be wrong with an export's specification by itself, told at once and before anything is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final

from recserve.exporters.errors import ExportError
from recserve.exporters.evaluation.results import figure_names
from recserve.exporters.sources import category_columns
from recserve.exporters.spec import (
    BundleSpec,
    PopularBySpec,
    SourcesSpec,
    SpaceSpec,
    TableSource,
    TogetherSpec,
    TrendingSpec,
)
from recserve.kernels.features.operations import suggest
from recserve.server.bundle.layout import (
    AGAIN,
    MAX_DAYS,
    NAME_RULE,
    NEW,
    POPULAR,
    POPULAR_IN_CATEGORY,
    SIMILAR,
    SOURCE_NAMES,
    TOGETHER,
    TRENDING,
    is_name,
)

MAX_GOLDEN_REQUESTS = 1000
_LEAST: Final[dict[type, dict[str, int | None]]] = {
    SourcesSpec: {"similar_items": 1, "new_days": None},
    TogetherSpec: {"top": 1, "min_baskets": 1, "max_items": 1, "shrinkage": 0},
    TrendingSpec: {"top": 1, "days": None, "smoothing": None},
    PopularBySpec: {"top": 1, "days": 0},
}
"""The least that each number of the candidate sources may be; None: more than 0."""
_DAYS: Final = ("days", "new_days")
_FRACTIONS: Final = (*_DAYS, "smoothing", "shrinkage")
_MAX_WHOLE: Final = 2**31 - 1


def check_spec(spec: BundleSpec, *, has_snapshot: bool) -> None:
    """Refuse a specification that contradicts itself.

    Args:
        spec: of the bundle.
        has_snapshot: whether it is exported with a user snapshot.

    Raises:
        ExportError: with every problem.
    """
    problems = [
        *_identity_problems(spec),
        *_space_problems(spec.spaces),
        *_source_problems(spec),
        *_feature_problems(spec),
        *_ranker_problems(spec),
        *_golden_problems(spec, has_snapshot=has_snapshot),
        *_evaluation_problems(spec, has_snapshot=has_snapshot),
        *_file_problems(spec),
    ]
    if problems:
        raise ExportError("\n  ".join(["the bundle cannot be exported:", *problems]))


def source_files(spec: BundleSpec) -> Iterator[tuple[str, object]]:
    """What a bundle is made from, by part: paths, and objects in memory."""
    yield "items", _table(spec.catalogue.items)
    for space in spec.spaces:
        parts = {
            "item tower": space.item_tower and space.item_tower.model,
            "user tower": space.user_tower and space.user_tower.model,
            "item vectors": space.item_vectors,
            "user vectors": space.user_vectors,
        }
        yield from ((f"{part} of {space.name}", source) for part, source in parts.items() if source is not None)
    for ranker in spec.rankers:
        yield f"ranker {ranker.objective}", ranker.model
    sources = spec.sources
    tables = {
        "baskets": sources.together and sources.together.table,
        "events": sources.events and sources.events.table,
        "users of the events": sources.events and sources.events.users,
    }
    yield from ((part, _table(table)) for part, table in tables.items() if table is not None)
    if spec.evaluation is not None:
        yield "truth", _table(spec.evaluation.truth)


def _table(source: TableSource) -> object:
    """A table may be given by a text, its path; for a ranker, a text is the model itself."""
    return Path(source) if isinstance(source, str) else source


def _identity_problems(spec: BundleSpec) -> Iterator[str]:
    for field in ("name", "version"):
        if not getattr(spec, field):
            yield f"{field}: a bundle needs one"
    for name, value in _leaves(spec.offline_metrics):
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            yield f"offline_metrics: {name} is {value!r}, which is no finite number"


def _leaves(metrics: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _space_problems(spaces: Sequence[SpaceSpec]) -> Iterator[str]:
    if not spaces:
        yield "spaces: a bundle needs at least one vector space"
    names = [space.name for space in spaces]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield f"spaces: {names.count(name)} have the name {name!r}"
        if not is_name(name):
            yield f"spaces: {name!r} cannot be part of a file name: expected {NAME_RULE}"
        if name in (*SOURCE_NAMES, TOGETHER, TRENDING):
            yield f"spaces: {name!r} is the name of a candidate source of another kind: choose another"


def _feature_problems(spec: BundleSpec) -> Iterator[str]:
    """A feature of a space or source that the bundle lacks would be missing for every item, and nobody would know."""
    spaces = [space.name for space in spec.spaces]
    for name in spec.features.spaces:
        if name not in spaces:
            yield f'features: there is no space "{name}"{suggest(name, spaces)}'
    sources = [*_proposing_spaces(spec), *_further_sources(spec)]
    for name in spec.features.sources:
        if name in spaces and name not in sources:
            yield f'features: space "{name}" has no users, so it proposes no candidates{suggest("", sources)}'
        elif name not in sources:
            yield f'features: there is no candidate source "{name}"{suggest(name, sources)}'


def _proposing_spaces(spec: BundleSpec) -> list[str]:
    """Names of the spaces that have users, and thus propose candidates."""
    return [space.name for space in spec.spaces if space.user_tower is not None or space.user_vectors is not None]


def _further_sources(spec: BundleSpec) -> Iterator[str]:
    """Names of the candidate sources that the bundle will have beside its spaces."""
    yield from (POPULAR, AGAIN)
    roles, sources = spec.catalogue.roles, spec.sources
    needed = {
        SIMILAR: any(space.normalized for space in spec.spaces),
        NEW: roles.launch_time,
        POPULAR_IN_CATEGORY: roles.category,
        TOGETHER: sources.together,
        TRENDING: sources.trending,
    }
    yield from (name for name, need in needed.items() if need)
    yield from (each.name for each in sources.popular_by)


def _source_problems(spec: BundleSpec) -> Iterator[str]:
    sources = spec.sources
    comparable = [space.name for space in spec.spaces if space.normalized]
    if sources.similar_space and sources.similar_space not in comparable:
        found = suggest(sources.similar_space, comparable)
        yield f"sources: similar_space {sources.similar_space!r} is no normalised space{found}"
    yield from _source_number_problems(sources)
    column = sources.trending.column if sources.trending else ""
    if column and column not in [each.name for each in spec.catalogue.columns if each.kind == "number"]:
        yield f"sources: trending.column {column!r} is no number column of the catalogue"
    from_events = (sources.trending is not None and not column) or bool(sources.popular_by)
    if from_events and sources.events is None:
        yield "sources: trending and popular_by are computed from events: give sources.events, or trending.column"
    taken = [*SOURCE_NAMES, TOGETHER, TRENDING, *(space.name for space in spec.spaces)]
    for each in sources.popular_by:
        yield from _popular_problems(each, taken, spec)
        taken.append(each.name)


def _source_number_problems(sources: SourcesSpec) -> Iterator[str]:
    parts: dict[str, object] = {"": sources, "together.": sources.together, "trending.": sources.trending}
    parts |= {f"popular_by {each.name}.": each for each in sources.popular_by}
    for prefix, part in parts.items():
        for name, least in _LEAST.get(type(part), {}).items():
            expected = _expected(name, getattr(part, name), least)
            if expected:
                yield f"sources: {prefix}{name} is {getattr(part, name)!r}: expected {expected}"


def _expected(name: str, value: Any, least: int | None) -> str:
    """What a number should be; empty: it is that."""
    most = MAX_DAYS if name in _DAYS else math.inf if name in _FRACTIONS else _MAX_WHOLE
    kind: type[Any] = Real if name in _FRACTIONS else Integral
    what = "a number" if kind is Real else "a whole number"
    fits = isinstance(value, kind) and -math.inf < value < math.inf  # also false of NaN
    if not fits or (value <= 0 if least is None else value < least):
        return f"{what} of {'more than 0' if least is None else f'at least {least}'}"
    return f"{what} of at most {most:,}" if value > most else ""


def _popular_problems(spec: PopularBySpec, taken: Sequence[str], bundle: BundleSpec) -> Iterator[str]:
    where = f"sources: popular_by {spec.name!r}"
    if not is_name(spec.name):
        yield f"{where} cannot be part of a file name: expected {NAME_RULE}"
    if spec.name in taken:
        yield f"{where} has the name of another candidate source: choose another"
    columns = category_columns(bundle.features)
    if not spec.columns or len(set(spec.columns)) != len(spec.columns):
        yield f"{where} needs columns, each once"
    for name in spec.columns:
        if name not in columns:
            yield f"{where}: {name!r} is no user or context column of type category{suggest(name, list(columns))}"


def _ranker_problems(spec: BundleSpec) -> Iterator[str]:
    objectives = [ranker.objective for ranker in spec.rankers]
    for objective in dict.fromkeys(objectives):
        if objectives.count(objective) > 1:
            yield f"rankers: {objectives.count(objective)} have the objective {objective!r}"
        if not is_name(objective):
            yield f"rankers: {objective!r} cannot be part of a file name: expected {NAME_RULE}"
    weights = [ranker.weight for ranker in spec.rankers]
    if weights and all(weight == 0 for weight in weights):
        yield "rankers: at least one objective needs a weight above 0"


def _golden_problems(spec: BundleSpec, *, has_snapshot: bool) -> Iterator[str]:
    if not 1 <= spec.golden_requests <= MAX_GOLDEN_REQUESTS:
        yield f"golden_requests: expected 1 to {MAX_GOLDEN_REQUESTS}, found {spec.golden_requests}"
    if spec.golden_time_us < 0:
        yield f"golden_time_us: expected microseconds since 1970 UTC, found {spec.golden_time_us}"
    if spec.golden_user_ids and not has_snapshot:
        yield "golden_user_ids: names users of a user snapshot, and there is none: export with one, or leave them out"


def _evaluation_problems(spec: BundleSpec, *, has_snapshot: bool) -> Iterator[str]:
    if spec.evaluation is None:
        return
    if not has_snapshot:
        yield "evaluation: needs the user snapshot of the cut-off, and there is none"
    if not spec.evaluation.time_us:
        yield "evaluation: needs the cut-off, the time of its requests"
    spaces = _proposing_spaces(spec)
    sources = [*spaces, *_further_sources(spec)]
    names = list(figure_names(spec.evaluation, spaces, sources, ranked=bool(spec.rankers)))
    for name in spec.evaluation.minimum:
        if name not in names:
            yield f"evaluation: minimum: there is no figure {name!r}{suggest(name, names)}"


def _file_problems(spec: BundleSpec) -> Iterator[str]:
    for role, source in source_files(spec):
        if isinstance(source, Path) and not source.is_file():
            yield f"{role}: there is no file {source}"
