"""The engines: ours, and those that it is measured beside, each with one thread.

Each is opened from LightGBM's model file and given rows in the type that it takes, so that no conversion is timed. What
one needs may not be installed, and it may not take the model: then opening it raises EngineUnavailableError, and the
benchmark lists it with the reason. What compilers make of a model is kept beside the model's file.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import importlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import lightgbm
import numpy as np
from numpy.typing import ArrayLike, NDArray

from recserve.exporters.errors import ExportError
from recserve.exporters.lightgbm_text import ForestText, input_rules, parse_forest
from recserve.exporters.tl2cgen_library import compile_library
from recserve.kernels.forest import Forest
from recserve.kernels.native_forest import NativeForest
from recserve.loadtest.forest.recipe import CROSS_FEATURES, FEATURES, ITEM_FEATURES, USER_FEATURES, Request
from recserve.server.bundle.extras import install_hint

T = TypeVar("T")
Margins = Callable[[Request], ArrayLike]

MAX_COMPILED_LEAVES: Final = 100_000
"""Compilers take minutes for a tenth of a million leaves."""


class EngineUnavailableError(Exception):
    """An engine is not installed or does not take the model; says why."""


@dataclass(frozen=True, slots=True)
class Effort:
    """Seconds that a compilation took by the clock, and of the processors' time."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Something that answers requests with raw margins.

    Attributes:
        name: of the engine.
        params: what tells its kinds apart.
        margins: of a request's candidates, [n] or of a shape that holds as many.
        compilation: what it took to compile the model, where the engine does.
        max_rows: the most candidates that it takes.
    """

    name: str
    params: Mapping[str, str] = field(default_factory=dict)
    margins: Margins
    compilation: Effort | None = None
    max_rows: int | None = None


# ---- ours


def predict(forest: Forest, _items: NDArray[np.float32], *, float_sums: bool = False) -> Margins:
    """From complete rows."""
    return lambda request: forest.predict(request.rows, float_sums=float_sums)


def request_path(forest: Forest, items: NDArray[np.float32], *, float_sums: bool = False) -> Margins:
    """Items binned beforehand, user values once a request, crosses for each candidate."""
    plan = forest.plan(ITEM_FEATURES, USER_FEATURES, CROSS_FEATURES)
    bins = forest.bin_matrix(items, ITEM_FEATURES)

    def margins(request: Request) -> NDArray[np.float64]:
        bounds = np.array([0, len(request.item_rows)])
        return plan.margins(bins, request.item_rows, bounds, request.user, request.crosses, float_sums=float_sums)

    return margins


def items_binned(forest: Forest, items: NDArray[np.float32]) -> Margins:
    """Only the items binned beforehand: user values are treated as crosses are."""
    plan = forest.plan(ITEM_FEATURES, (), (*USER_FEATURES, *CROSS_FEATURES))
    bins = forest.bin_matrix(items, ITEM_FEATURES)
    nothing = np.empty((1, 0), np.float32)

    def margins(request: Request) -> NDArray[np.float64]:
        bounds = np.array([0, len(request.item_rows)])
        return plan.margins(bins, request.item_rows, bounds, nothing, request.user_and_crosses)

    return margins


OWN: Final[Mapping[str, Callable[[Forest, NDArray[np.float32]], Margins]]] = {
    "predict": predict,
    "request": request_path,
    "items binned": items_binned,
    "predict, float sums": functools.partial(predict, float_sums=True),
    "request, float sums": functools.partial(request_path, float_sums=True),
}
"""The ways to ask our engine, from a forest and the features of all items."""


# ---- others


def _lightgbm(path: Path) -> Engine:
    booster = lightgbm.Booster(model_file=path)
    return Engine(name="LightGBM", margins=lambda request: booster.predict(request.rows, raw_score=True, num_threads=1))


def _lightgbm_single_row(path: Path) -> Engine:
    """LGBM_BoosterPredictForMatSingleRowFast of its C interface, whose preparation is done here, once."""
    booster = lightgbm.Booster(model_file=path)
    library = lightgbm.basic._LIB  # type: ignore[attr-defined]
    raw_score, start, all_trees, float32 = ctypes.c_int(1), ctypes.c_int(0), ctypes.c_int(-1), ctypes.c_int(0)
    prepared = ctypes.c_void_p()
    status = library.LGBM_BoosterPredictForMatSingleRowFastInit(
        booster._handle, raw_score, start, all_trees, float32, FEATURES, b"num_threads=1", ctypes.byref(prepared)
    )
    if status != 0:
        raise EngineUnavailableError(library.LGBM_GetLastError().decode())
    call, length, margin = library.LGBM_BoosterPredictForMatSingleRowFast, ctypes.c_int64(), np.empty(1)
    length_address, margin_address = ctypes.byref(length), ctypes.c_void_p(margin.ctypes.data)

    def margins(request: Request, _kept: object = booster) -> NDArray[np.float64]:
        call(prepared, ctypes.c_void_p(request.rows.ctypes.data), length_address, margin_address)
        return margin

    return Engine(name="LightGBM, single-row C call", margins=margins, max_rows=1)


def _tl2cgen(path: Path, *, quantize: bool) -> Engine:
    library = path.with_suffix(".quantized.so" if quantize else ".so")
    try:
        forest = parse_forest(path.read_text("utf-8"))
        _require_compilable(forest)
        rules = input_rules(forest)
        booster = lightgbm.Booster(model_file=path)
        effort = make_once(library, lambda target: compile_library(booster, target, quantize=quantize))
    except ExportError as error:
        raise EngineUnavailableError(str(error)) from error
    native = NativeForest(library, FEATURES, rules.nan_to_zero, rules.categorical)
    params = {"quantize": str(int(quantize))}
    return Engine(
        name="TL2cgen", params=params, margins=lambda request: native.margins(request.rows), compilation=effort
    )


def _treelite(path: Path) -> Engine:
    treelite = _module("treelite")
    with Path(os.devnull).open("w") as sink, contextlib.redirect_stdout(sink):  # it prints remarks
        model = treelite.frontend.load_lightgbm_model(str(path))
    return Engine(
        name="Treelite GTIL",
        margins=lambda request: treelite.gtil.predict(model, request.rows64, nthread=1, pred_margin=True),
    )


def _lleaves(path: Path) -> Engine:
    lleaves = _module("lleaves")
    _require_compilable(parse_forest(path.read_text("utf-8")))
    model = lleaves.Model(model_file=str(path))
    code = path.with_suffix(".lleaves")
    effort = make_once(code, lambda target: model.compile(cache=str(target), raw_score=True))
    if not model.is_compiled:
        model.compile(cache=str(code), raw_score=True)
    return Engine(name="lleaves", margins=lambda request: model.predict(request.rows64, n_jobs=1), compilation=effort)


def _onnxruntime(path: Path) -> Engine:
    onnxmltools, onnxruntime = _module("onnxmltools"), _module("onnxruntime")
    types = _module("onnxmltools.convert.common.data_types")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = onnxmltools.convert_lightgbm(
        lightgbm.Booster(model_file=path), initial_types=[("rows", types.FloatTensorType([None, FEATURES]))]
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Engine(name="ONNX Runtime", margins=lambda request: session.run(None, {"rows": request.rows})[0])


def _require_compilable(forest: ForestText) -> None:
    leaves = sum(len(tree.leaf_values) for tree in forest.trees)
    if leaves > MAX_COMPILED_LEAVES:
        raise EngineUnavailableError(f"it would compile {leaves:,} leaves for longer than a benchmark should take")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EngineUnavailableError(f"{name} cannot be imported ({error}): {install_hint('bench')}") from error


def make_once(path: Path, make: Callable[[Path], object]) -> Effort:
    """Make a file unless it is there; what it took then."""
    record = path.with_name(f"{path.name}.effort.json")
    if not (path.exists() and record.exists()):
        path.unlink(missing_ok=True)
        _, effort = measure_effort(lambda: make(path))
        record.write_text(json.dumps(dataclasses.asdict(effort)), "utf-8")
    return Effort(**json.loads(record.read_text("utf-8")))


def measure_effort(work: Callable[[], T]) -> tuple[T, Effort]:
    """Do it; its result, and what it took."""
    wall, before = time.perf_counter(), os.times()
    result = work()
    used = zip(os.times()[:4], before[:4], strict=True)  # of this process and of the compilers that it started
    return result, Effort(round(time.perf_counter() - wall, 2), round(sum(after - start for after, start in used), 2))


OTHERS: Final[Mapping[str, Callable[[Path], Engine]]] = {
    "lightgbm": _lightgbm,
    "lightgbm-single-row": _lightgbm_single_row,
    "tl2cgen": functools.partial(_tl2cgen, quantize=False),
    "tl2cgen-quantized": functools.partial(_tl2cgen, quantize=True),
    "treelite": _treelite,
    "onnxruntime": _onnxruntime,
    "lleaves": _lleaves,
}
"""How the others are opened, from a model file."""
BASELINE: Final = "lightgbm"
"""Its bits are the right ones."""
