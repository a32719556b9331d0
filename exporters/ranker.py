"""From a LightGBM forest to what a bundle holds of it: the model text, a compiled library, a calibration.

    model ─ text ─ checks ─ TL2cgen, C compiler ─ parity with LightGBM ─ calibration ─ CompiledRanker

The text is the truth: what cannot be followed exactly is refused before anything is compiled, and what was compiled is
refused unless it answers LightGBM's `predict(raw_score=True)` bit for bit.
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recserve.bundle.v1.manifest_pb2 import Calibration, Forest
from recserve.bundle.v1.manifest_pb2 import NativeForest as NativeEntry
from recserve.exporters.calibration import fit_calibration, model_calibration
from recserve.exporters.errors import ExportError
from recserve.exporters.forest_parity import require_parity, verification_rows
from recserve.exporters.lightgbm_text import ForestText, InputRules, input_rules, parse_forest
from recserve.exporters.spec import RankerSpec
from recserve.exporters.tl2cgen_library import Progress, compile_library
from recserve.kernels.native_forest import NativeForest
from recserve.server.bundle.layout import NAME_RULE, is_name

if TYPE_CHECKING:
    import lightgbm

UNNAMED = re.compile(r"Column_\d+")
"""What LightGBM calls features that were given to it without names."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompiledRanker:
    """One objective's part of a bundle."""

    forest: Forest
    """For the manifest; its files are relative to the bundle."""
    model: Path
    library: Path
    rows_verified: int
    """How many rows were compared with LightGBM, all equal."""


def compile_ranker(
    spec: RankerSpec, feature_names: Sequence[str], directory: Path, *, on_progress: Progress | None = None
) -> CompiledRanker:
    """Check, compile, verify and calibrate a forest.

    Args:
        spec: the forest; a Booster contributes the iterations that its `predict` uses.
        feature_names: of the feature schema, in order.
        directory: the bundle's ranker/, made if missing; receives model.<objective>.txt and
            tl2cgen.<objective>.<machine>.so.
        on_progress: told of each finished compiler run; about one per eight trees.

    Raises:
        ExportError: the forest cannot be followed exactly, its features are not the schema's, it does not compile, the
            library's answers differ from LightGBM's, or it cannot be calibrated; the message names the objective.
    """
    try:
        return _compile(spec, feature_names, directory, on_progress)
    except ExportError as error:
        raise ExportError(f"ranker {spec.objective!r}: {error}") from error


def _compile(
    spec: RankerSpec, feature_names: Sequence[str], directory: Path, on_progress: Progress | None
) -> CompiledRanker:
    _check_spec(spec)
    text = _model_text(spec)
    parsed = parse_forest(text)
    _check_features(parsed, feature_names)
    rules = input_rules(parsed)
    booster = _booster(text)
    calibration = _calibration(spec, parsed, booster)  # before the compiler: it takes the longest
    directory.mkdir(parents=True, exist_ok=True)
    machine = platform.machine()
    library = directory / f"tl2cgen.{spec.objective}.{machine}.so"
    compile_library(booster, library, on_progress=on_progress)
    rows = verification_rows(parsed)
    require_parity(booster, NativeForest(library, parsed.features, rules.nan_to_zero, rules.categorical), rows)
    model = directory / f"model.{spec.objective}.txt"
    model.write_bytes(text.encode())
    forest = Forest(
        objective=spec.objective,
        weight=spec.weight,
        features=parsed.features,
        trees=len(parsed.trees),
        model=f"ranker/{model.name}",
        calibration=calibration,
        native=[_native(library, machine, rules)],
    )
    return CompiledRanker(forest=forest, model=model, library=library, rows_verified=len(rows))


def _check_spec(spec: RankerSpec) -> None:
    if not is_name(spec.objective):
        raise ExportError(f"an objective's name has {NAME_RULE}")
    if not (math.isfinite(spec.weight) and spec.weight >= 0):
        raise ExportError(f"the weight must be a finite number of at least 0, not {spec.weight}")
    if (spec.calibration == "model") == (spec.calibration_data is not None):
        verb = "takes no" if spec.calibration == "model" else "needs"
        raise ExportError(f"calibration {spec.calibration!r} {verb} calibration_data")


def _model_text(spec: RankerSpec) -> str:
    if not isinstance(spec.model, Path):
        return str(spec.model.model_to_string())
    try:
        return spec.model.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"the model file cannot be read: {error}") from error


def _check_features(forest: ForestText, feature_names: Sequence[str]) -> None:
    """The forest's columns must be the schema's, in order; names count where the forest was trained with names."""
    if forest.features != len(feature_names):
        raise ExportError(
            f"the model was trained on {forest.features} features, features.json defines {len(feature_names)}"
        )
    if all(UNNAMED.fullmatch(name) for name in forest.feature_names):
        return
    for column, (ours, theirs) in enumerate(zip(feature_names, forest.feature_names, strict=True)):
        if ours != theirs:
            raise ExportError(
                f"the model was trained with other features: column {column} is {theirs!r} there and {ours!r} in "
                "features.json"
            )


def _booster(text: str) -> lightgbm.Booster:
    import lightgbm  # noqa: PLC0415  slow to import, and only an export with a ranker needs it

    try:
        return lightgbm.Booster(model_str=text)
    except lightgbm.basic.LightGBMError as error:
        raise ExportError(f"LightGBM cannot load the model: {error}") from error


def _calibration(spec: RankerSpec, forest: ForestText, booster: lightgbm.Booster) -> Calibration:
    if spec.calibration_data is None:
        return model_calibration(forest.header.get("objective", ""))
    features = spec.calibration_data.features
    if features.ndim != 2 or features.shape[1] != forest.features:
        raise ExportError(f"calibration data: expected [n, {forest.features}] features, found {list(features.shape)}")
    margins = np.asarray(booster.predict(np.asarray(features, np.float32), raw_score=True), np.float64)
    return fit_calibration(spec.calibration, margins, np.asarray(spec.calibration_data.labels, np.float64))


def _native(library: Path, machine: str, rules: InputRules) -> NativeEntry:
    return NativeEntry(
        file=f"ranker/{library.name}",
        machine=machine,
        compiler=f"tl2cgen {importlib.metadata.version('tl2cgen')}",
        nan_to_zero=rules.nan_to_zero,
        categorical=rules.categorical,
    )
