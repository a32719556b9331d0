"""From a trained forest to what a bundle holds of it: the source model, a calibration, a compiled library if asked for.

    model ─ checks ─ calibration ─ [TL2cgen, C compiler ─ parity with the model] ─ CompiledRanker

What cannot be followed exactly is refused before anything is compiled, and what was compiled is refused unless it
answers as the library that trained the model, bit for bit. `exporters.bitsliced` compiles all rankers of a bundle
together.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from recserve.bundle.v1.manifest_pb2 import Calibration, Forest
from recserve.bundle.v1.manifest_pb2 import NativeForest as NativeEntry
from recserve.exporters.calibration import fit_calibration, model_calibration
from recserve.exporters.errors import ExportError
from recserve.exporters.forest_parity import require_parity, verification_rows
from recserve.exporters.lightgbm_text import InputRules, check_ranker, input_rules
from recserve.exporters.source_models import LightGBMModel, SourceModel, open_model
from recserve.exporters.spec import RankerSpec
from recserve.exporters.tl2cgen_library import Progress, compile_library
from recserve.kernels.native_forest import NativeForest
from recserve.server.bundle.layout import MAX_WEIGHT, NAME_RULE, is_name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompiledRanker:
    """One objective's part of a bundle."""

    forest: Forest
    """For the manifest; its files are relative to the bundle."""
    source: SourceModel
    """The oracle of its margins."""
    model: Path
    library: Path | None
    """For the engine "tl2cgen"; None where there is none."""
    no_library: str = ""
    """Why TL2cgen cannot follow the model, where its library was asked for."""
    rows_verified: int = 0
    """How many rows the library's margins were compared on, all equal."""


def compile_ranker(
    spec: RankerSpec, feature_names: Sequence[str], directory: Path, *, on_progress: Progress | None = None
) -> CompiledRanker:
    """Check and calibrate a forest, and compile it for the engine "tl2cgen" where that is asked for.

    Args:
        spec: the forest; a LightGBM Booster contributes the iterations that its `predict` uses.
        feature_names: of the feature schema, in order.
        directory: the bundle's ranker/, made if missing; receives model.<objective> with the suffix of its kind, and
            tl2cgen.<objective>.<machine>.so where that is asked for.
        on_progress: told of each finished compiler run; about one per eight trees.

    Raises:
        ExportError: the forest cannot be followed exactly, its features are not the schema's, it does not compile, the
            library's answers differ from the model's, or it cannot be calibrated; the message names the objective.
    """
    try:
        return _compile(spec, feature_names, directory, on_progress)
    except ExportError as error:
        raise ExportError(f"ranker {spec.objective!r}: {error}") from error


def _compile(
    spec: RankerSpec, feature_names: Sequence[str], directory: Path, on_progress: Progress | None
) -> CompiledRanker:
    _check_spec(spec)
    model = open_model(spec.model)
    if isinstance(model, LightGBMModel):
        check_ranker(model.text)
    _ = model.ranking_output  # refuses models that have several
    _check_features(model, feature_names)
    calibration = _calibration(spec, model)  # before the compiler: it takes the longest
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"model.{spec.objective}{model.suffix}"
    path.write_bytes(model.content)
    entry = Forest(
        objective=spec.objective,
        weight=spec.weight,
        features=model.forest.features,
        trees=len(model.forest.trees),
        model=f"ranker/{path.name}",
        calibration=calibration,
        kind=model.kind,
        source=model.source,
    )
    unlinked = CompiledRanker(forest=entry, source=model, model=path, library=None)
    return _with_library(spec, unlinked, directory, on_progress) if spec.tl2cgen else unlinked


def _with_library(
    spec: RankerSpec, ranker: CompiledRanker, directory: Path, on_progress: Progress | None
) -> CompiledRanker:
    """With TL2cgen's library, or with the reason why there is none."""
    model = ranker.source
    if not isinstance(model, LightGBMModel):
        return replace(ranker, no_library=f"the engine follows LightGBM, and this model is {model.source}'s")
    try:
        rules = input_rules(model.text)
    except ExportError as error:
        return replace(ranker, no_library=str(error))
    machine = platform.machine()
    library = directory / f"tl2cgen.{spec.objective}.{machine}.so"
    compile_library(model.booster, library, on_progress=on_progress)
    rows = verification_rows(model.forest)
    compiled = NativeForest(library, model.forest.features, rules.nan_to_zero, rules.categorical)
    require_parity(model, compiled.margins, rows, engine="the compiled forest")
    ranker.forest.native.append(_native(library, machine, rules))
    return replace(ranker, library=library, rows_verified=len(rows))


def _check_spec(spec: RankerSpec) -> None:
    if not is_name(spec.objective):
        raise ExportError(f"an objective's name has {NAME_RULE}")
    if not 0 <= spec.weight <= MAX_WEIGHT:  # also true of NaN
        raise ExportError(f"the weight must be a number from 0 to {MAX_WEIGHT:g}, not {spec.weight}")
    if (spec.calibration == "model") == (spec.calibration_data is not None):
        verb = "takes no" if spec.calibration == "model" else "needs"
        raise ExportError(f"calibration {spec.calibration!r} {verb} calibration_data")


def _check_features(model: SourceModel, feature_names: Sequence[str]) -> None:
    """The forest's columns must be the schema's, in order; names count where the forest was trained with names."""
    if model.forest.features != len(feature_names):
        raise ExportError(
            f"the model was trained on {model.forest.features} features, features.json defines {len(feature_names)}"
        )
    for column, (ours, theirs) in enumerate(zip(feature_names, model.feature_names, strict=False)):
        if ours != theirs:
            raise ExportError(
                f"the model was trained with other features: column {column} is {theirs!r} there and {ours!r} in "
                "features.json"
            )


def _calibration(spec: RankerSpec, model: SourceModel) -> Calibration:
    if spec.calibration_data is None:
        return model_calibration(model.sigmoid, model.objective)
    features = spec.calibration_data.features
    if features.ndim != 2 or features.shape[1] != model.forest.features:
        raise ExportError(
            f"calibration data: expected [n, {model.forest.features}] features, found {list(features.shape)}"
        )
    margins = model.ranking_margins(np.ascontiguousarray(features, np.float32))
    return fit_calibration(spec.calibration, margins, np.asarray(spec.calibration_data.labels, np.float64))


def _native(library: Path, machine: str, rules: InputRules) -> NativeEntry:
    return NativeEntry(
        file=f"ranker/{library.name}",
        machine=machine,
        compiler=f"tl2cgen {importlib.metadata.version('tl2cgen')}",
        nan_to_zero=rules.nan_to_zero,
        categorical=rules.categorical,
    )
