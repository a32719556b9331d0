"""What can be wrong with an export's specification by itself, told at once and before anything is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from recserve.exporters.errors import ExportError
from recserve.exporters.spec import BundleSpec, SpaceSpec
from recserve.kernels.features.operations import suggest
from recserve.server.bundle.layout import NAME_RULE, is_name
from recserve.server.pipeline.sources import AGAIN, POPULAR

MAX_GOLDEN_REQUESTS = 1000


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
    yield "items", spec.catalogue.items
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
    if spec.evaluation is not None:
        yield "truth", spec.evaluation.truth


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
        if name in (POPULAR, AGAIN):
            yield f"spaces: {name!r} is the name of a candidate source that every bundle has: choose another"


def _feature_problems(spec: BundleSpec) -> Iterator[str]:
    """A feature of a space or source that the bundle lacks would be missing for every item, and nobody would know."""
    spaces = [space.name for space in spec.spaces]
    for name in spec.features.spaces:
        if name not in spaces:
            yield f'features: there is no space "{name}"{suggest(name, spaces)}'
    silent = [space.name for space in spec.spaces if space.user_tower is None and space.user_vectors is None]
    sources = [*(name for name in spaces if name not in silent), POPULAR, AGAIN]
    for name in spec.features.sources:
        if name in silent:
            yield f'features: space "{name}" has no users, so it proposes no candidates{suggest("", sources)}'
        elif name not in sources:
            yield f'features: there is no candidate source "{name}"{suggest(name, sources)}'


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


def _file_problems(spec: BundleSpec) -> Iterator[str]:
    for role, source in source_files(spec):
        if isinstance(source, Path) and not source.is_file():
            yield f"{role}: there is no file {source}"
