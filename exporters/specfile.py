"""Exports described in a TOML file: `recserve-export build shop.toml`.

Paths are relative to the file. `docs/exporting.md` shows a whole one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

from recserve.exporters.errors import ExportError
from recserve.exporters.spec import (
    BundleSpec,
    CalibrationData,
    CatalogueSpec,
    HistorySpec,
    IndexSpec,
    InputSpec,
    ItemColumn,
    RankerSpec,
    Roles,
    SnapshotSpec,
    SpaceSpec,
    TowerSpec,
)
from recserve.kernels.features import FeatureSchema, FeatureSchemaError


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    found = path if info.context is None else Path(info.context) / path
    if not found.is_file():
        raise ValueError(f"there is no file {found}")
    return found


InputPath = Annotated[Path, AfterValidator(_beside_the_file)]
"""An existing file, relative to the specification."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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
    user_ids: InputPath | None = None
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
            user_ids=self.user_ids.read_text("utf-8").splitlines() if self.user_ids else None,
            index=self.index,
        )


class _Ranker(_Part):
    objective: str
    model: InputPath
    weight: float = 1.0
    calibration: Literal["model", "platt", "isotonic"] = "model"
    calibration_features: InputPath | None = None
    calibration_labels: InputPath | None = None

    def spec(self) -> RankerSpec:
        data = None
        if self.calibration_features is not None and self.calibration_labels is not None:
            features, labels = _array(self.calibration_features), _array(self.calibration_labels)
            data = CalibrationData(features=features.astype(np.float32), labels=labels.astype(np.float64))
        return RankerSpec(
            objective=self.objective,
            model=self.model,
            weight=self.weight,
            calibration=self.calibration,
            calibration_data=data,
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


class _File(_Part):
    name: str
    version: str
    features: InputPath
    catalogue: _Catalogue
    spaces: list[_Space]
    rankers: list[_Ranker] = Field(default_factory=list)
    snapshot: _Snapshot | None = None
    golden_user_ids: list[str] = Field(default_factory=list)
    golden_requests: int = Field(default=16, ge=1, le=1000)
    golden_time_us: int = Field(default=0, ge=0)
    offline_metrics: dict[str, float] = Field(default_factory=dict)


def read_spec(path: Path) -> tuple[BundleSpec, SnapshotSpec | None]:
    """Read an export's specification.

    Args:
        path: the TOML file.

    Returns:
        The bundle, and the user snapshot where the file has one.

    Raises:
        ExportError: the file cannot be read, or naming everything that is wrong in it at once.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    try:
        parsed = _File.model_validate(content, context=path.parent)
    except ValidationError as error:
        raise ExportError(f"{path} is not a valid export:\n  " + "\n  ".join(_problems(error))) from error
    return _bundle(parsed), parsed.snapshot.spec() if parsed.snapshot else None


def _bundle(parsed: _File) -> BundleSpec:
    try:
        schema = FeatureSchema.from_json(parsed.features.read_text("utf-8"))
    except (FeatureSchemaError, UnicodeDecodeError) as error:
        raise ExportError(f"{parsed.features}: {error}") from error
    return BundleSpec(
        name=parsed.name,
        version=parsed.version,
        catalogue=parsed.catalogue.spec(),
        features=schema,
        spaces=[space.spec() for space in parsed.spaces],
        rankers=[ranker.spec() for ranker in parsed.rankers],
        golden_user_ids=parsed.golden_user_ids,
        golden_requests=parsed.golden_requests,
        golden_time_us=parsed.golden_time_us,
        offline_metrics=parsed.offline_metrics,
    )


def _problems(error: ValidationError) -> Sequence[str]:
    return [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]


def _array(path: Path) -> NDArray[np.generic]:
    try:
        loaded: NDArray[np.generic] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} is not a NumPy array: {error}") from error
    return loaded
