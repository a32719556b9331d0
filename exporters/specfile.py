"""Exports described in a TOML file: `recserve-export build shop.toml`.

Paths are relative to the file. `docs/exporting.md` shows a whole one.
"""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails

from recserve.exporters.consistency import MAX_GOLDEN_REQUESTS
from recserve.exporters.errors import ExportError
from recserve.exporters.spec import (
    BundleSpec,
    CalibrationData,
    CatalogueSpec,
    EvaluationMode,
    EvaluationSpec,
    EventsSpec,
    HistorySpec,
    IndexSpec,
    InputSpec,
    ItemColumn,
    PopularBySpec,
    RankerSpec,
    Roles,
    SegmentSpec,
    SnapshotSpec,
    SourcesSpec,
    SpaceSpec,
    TogetherSpec,
    TowerSpec,
    TrendingSpec,
)
from recserve.kernels.features import FeatureSchema, FeatureSchemaError
from recserve.kernels.features.operations import suggest
from recserve.server.pipeline.settings import PlacementSettings

# ---------------------------------------------------------------------------------------------------- files as values


def _find(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str):
        raise ValueError(f"expected the path of a file, found {value!r}")  # noqa: TRY004  pydantic collects ValueErrors
    path = Path(info.context or "") / value
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return path


def _read_schema(value: object, info: ValidationInfo) -> FeatureSchema:
    return FeatureSchema.from_json(_find(value, info).read_text("utf-8"))


def _read_array(value: object, info: ValidationInfo) -> NDArray[np.generic]:
    path = _find(value, info)
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a NumPy array: {error}") from error
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{path} is an archive, not a single NumPy array (.npy)")  # noqa: TRY004  see _find
    return found


def _read_lines(value: object, info: ValidationInfo) -> list[str]:
    """An id may hold any character but the line's end, which is a line feed: reading as text would see more of them."""
    path = _find(value, info)
    *ended, rest = path.read_bytes().decode().split("\n")
    if all(line.endswith("\r") for line in ended or [rest]):  # the last line may lack its end
        raise ValueError(f"the lines of {path} end with CR LF, and the CR would be part of each id: end them with LF")
    return [*ended, rest] if rest else ended


InputPath = Annotated[Path, BeforeValidator(_find)]
"""An existing file, relative to the specification."""
InputSchema = Annotated[FeatureSchema, BeforeValidator(_read_schema)]
InputArray = Annotated[np.ndarray[Any, np.dtype[Any]], BeforeValidator(_read_array)]
InputLines = Annotated[list[str], BeforeValidator(_read_lines)]


# ----------------------------------------------------------------------------------------------------- the file's form


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class _Catalogue(_Part):
    items: InputPath
    id_column: str = "item_id"
    columns: list[ItemColumn]
    roles: Roles = Roles()
    vocabularies: dict[str, list[str]] = Field(default_factory=dict)

    def spec(self) -> CatalogueSpec:
        return CatalogueSpec(
            items=self.items,
            id_column=self.id_column,
            columns=self.columns,
            roles=self.roles,
            vocabularies=self.vocabularies,
        )


class _Tower(_Part):
    model: InputPath
    inputs: list[InputSpec]
    output: str = ""

    def spec(self) -> TowerSpec:
        return TowerSpec(model=self.model, inputs=self.inputs, output=self.output)


class _Space(_Part):
    name: str
    normalized: bool
    metric: Literal["inner_product"] = "inner_product"
    item_tower: _Tower | None = None
    user_tower: _Tower | None = None
    item_vectors: InputPath | None = None
    user_vectors: InputPath | None = None
    user_ids: InputLines | None = None
    index: IndexSpec = IndexSpec()

    def spec(self) -> SpaceSpec:
        return SpaceSpec(
            name=self.name,
            normalized=self.normalized,
            metric=self.metric,
            item_tower=self.item_tower.spec() if self.item_tower else None,
            user_tower=self.user_tower.spec() if self.user_tower else None,
            item_vectors=self.item_vectors,
            user_vectors=self.user_vectors,
            user_ids=self.user_ids,
            index=self.index,
        )


class _Ranker(_Part):
    objective: str
    model: InputPath
    weight: float = 1.0
    calibration: Literal["model", "platt", "isotonic"] = "model"
    calibration_features: InputArray | None = None
    calibration_labels: InputArray | None = None
    tl2cgen: bool = False

    @model_validator(mode="after")
    def _has_both_or_none(self) -> Self:
        if (self.calibration_features is None) != (self.calibration_labels is None):
            raise ValueError("calibration_features and calibration_labels belong together")
        return self

    @model_validator(mode="after")
    def _are_numbers(self) -> Self:
        for name in ("calibration_features", "calibration_labels"):
            array = getattr(self, name)
            if array is not None and array.dtype.kind not in "buif":
                raise ValueError(f"{name}: expected an array of numbers, found {array.dtype}")
        return self

    def spec(self) -> RankerSpec:
        data = None
        if self.calibration_features is not None and self.calibration_labels is not None:
            features, labels = np.array(self.calibration_features), np.array(self.calibration_labels)
            data = CalibrationData(features=features.astype(np.float32), labels=labels.astype(np.float64))
        return RankerSpec(
            objective=self.objective,
            model=self.model,
            weight=self.weight,
            calibration=self.calibration,
            calibration_data=data,
            tl2cgen=self.tl2cgen,
        )


class _History(_Part):
    table: InputPath
    user_column: str = "user_id"
    item_column: str = "item_id"
    event_column: str = "event_type"
    count_column: str = "count"
    time_column: str = "last_time"


class _Snapshot(_Part):
    version: str
    users: InputPath
    id_column: str = "user_id"
    history: _History | None = None

    def spec(self) -> SnapshotSpec:
        history = HistorySpec(**self.history.model_dump()) if self.history else None
        return SnapshotSpec(version=self.version, users=self.users, id_column=self.id_column, history=history)


class _Events(_Part):
    table: InputPath
    item_column: str = "item_id"
    time_column: str = "time"
    user_column: str = "user_id"
    users: InputPath | None = None
    users_id_column: str = "user_id"


class _Together(_Part):
    table: InputPath
    basket_column: str = "basket_id"
    item_column: str = "item_id"
    top: int = 50
    min_baskets: int = 2
    shrinkage: float = 10.0
    max_items: int = 200


class _Sources(_Part):
    similar_space: str = ""
    similar_items: int = 5
    new_days: float = 30.0
    events: _Events | None = None
    together: _Together | None = None
    trending: TrendingSpec | None = None
    popular_by: list[PopularBySpec] = Field(default_factory=list)

    def spec(self) -> SourcesSpec:
        return SourcesSpec(
            similar_space=self.similar_space,
            similar_items=self.similar_items,
            new_days=self.new_days,
            events=EventsSpec(**self.events.model_dump()) if self.events else None,
            together=TogetherSpec(**self.together.model_dump()) if self.together else None,
            trending=self.trending,
            popular_by=self.popular_by,
        )


class _Evaluation(_Part):
    truth: InputPath
    time: AwareDatetime
    user_column: str = "user_id"
    item_column: str = "item_id"
    time_column: str = ""
    placement: PlacementSettings = PlacementSettings()
    modes: list[EvaluationMode] = Field(default=["all", "first"], min_length=1)
    segments: SegmentSpec = SegmentSpec()
    new_users: bool = False
    max_users: int = Field(default=10_000, ge=1)
    resamples: int = Field(default=1000, ge=1)
    seed: int = Field(default=7, ge=0)
    minimum: dict[str, float] = Field(default_factory=dict)

    def spec(self) -> EvaluationSpec:
        parts = {name: getattr(self, name) for name in type(self).model_fields if name != "time"}
        return EvaluationSpec(time_us=_microseconds(self.time), **parts)


class _File(_Part):
    name: str
    version: str
    features: InputSchema
    catalogue: _Catalogue
    spaces: list[_Space]
    rankers: list[_Ranker] = Field(default_factory=list)
    sources: _Sources = _Sources()
    snapshot: _Snapshot | None = None
    golden_user_ids: list[str] = Field(default_factory=list)
    golden_requests: int = Field(default=16, ge=1, le=MAX_GOLDEN_REQUESTS)
    golden_time: AwareDatetime | None = None
    offline_metrics: dict[str, float] = Field(default_factory=dict)
    evaluation: _Evaluation | None = None

    def spec(self) -> BundleSpec:
        return BundleSpec(
            name=self.name,
            version=self.version,
            catalogue=self.catalogue.spec(),
            features=self.features,
            spaces=[space.spec() for space in self.spaces],
            rankers=[ranker.spec() for ranker in self.rankers],
            sources=self.sources.spec(),
            golden_user_ids=self.golden_user_ids,
            golden_requests=self.golden_requests,
            golden_time_us=_microseconds(self.golden_time) if self.golden_time else 0,
            offline_metrics=self.offline_metrics,
            evaluation=self.evaluation.spec() if self.evaluation else None,
        )


def _microseconds(time: datetime.datetime) -> int:
    return (time - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


# ------------------------------------------------------------------------------------------------------------- reading


def read_spec(path: Path) -> tuple[BundleSpec, SnapshotSpec | None]:
    """Read an export's specification.

    Args:
        path: the TOML file.

    Returns:
        The bundle, and the user snapshot where the file has one.

    Raises:
        ExportError: the file cannot be read, or naming everything that is wrong in it and in its features.json at once.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    try:
        parsed = _File.model_validate(content, context=path.parent)
    except ValidationError as error:
        problems = [problem for each in error.errors() for problem in _problems(each)]
        raise ExportError("\n  ".join([f"{path} is not a valid export:", *problems])) from error
    return parsed.spec(), parsed.snapshot.spec() if parsed.snapshot else None


_OURS = re.compile("^Input should (be|have)")


def _problems(error: ErrorDetails) -> Iterator[str]:
    """What pydantic found, in this project's words."""
    where, found = _dotted(error["loc"]), error["input"]
    match error["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            yield f"{where}: unknown key{suggest(str(error['loc'][-1]), _keys_beside(error['loc']))}"
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
            yield f"{where}: missing"
        case "value_error":
            cause = error["ctx"]["error"]
            listed = cause.problems if isinstance(cause, FeatureSchemaError) else [str(cause)]
            yield from (f"{where}: {each}" for each in listed)
        case _:
            seen = f", found {found!r}" if isinstance(found, (str, int, float, bool)) else ""
            yield f"{where}: {_OURS.sub('expected', error['msg'])}{seen}"


def _dotted(path: tuple[int | str, ...]) -> str:
    """Such as `catalogue.columns[2].kind`."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")


def _keys_beside(path: tuple[int | str, ...]) -> list[str]:
    """The keys that are valid in the place of the last one."""
    part: type = _File
    for step in path[:-1]:
        if isinstance(step, str):
            part = _part_in(_keys(part)[step]) or part
    return list(_keys(part))


def _keys(part: type) -> Mapping[str, object]:
    return get_type_hints(part) if is_dataclass(part) else _own_fields(part)


def _own_fields(part: type) -> Mapping[str, object]:
    return {name: field.annotation for name, field in part.model_fields.items()} if issubclass(part, BaseModel) else {}


def _part_in(annotation: object) -> type | None:
    """The part that an annotation such as `list[_Space]` or `_Tower | None` speaks of."""
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        return annotation
    return next((found for each in get_args(annotation) if (found := _part_in(each))), None)
