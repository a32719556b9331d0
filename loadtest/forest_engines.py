"""The engines that the forest kernel is measured beside, each with one thread.

An engine is opened from LightGBM's model file and takes float32 rows. What it needs may be missing: then opening raises
ImportError or EngineUnavailableError, and the benchmark says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import lightgbm
import numpy as np
from numpy.typing import NDArray

from recserve.exporters.errors import ExportError
from recserve.exporters.lightgbm_text import Tree, parse_forest
from recserve.exporters.tl2cgen_library import compile_library
from recserve.kernels._forest_arrays import round_down
from recserve.kernels.native_forest import NativeForest

R = TypeVar("R")
Margins = Callable[[NDArray[np.float32]], NDArray[Any]]


class EngineUnavailableError(Exception):
    """An engine is installed but cannot run this model; says why."""


@dataclass(frozen=True, slots=True)
class Engine(Generic[R]):
    """Something that answers requests of type R with margins."""

    name: str
    params: Mapping[str, str]
    margins: Callable[[R], NDArray[Any]]


def single_row_engine(booster: lightgbm.Booster) -> Engine[Any]:
    """LightGBM's own call for single rows, prepared once: LGBM_BoosterPredictForMatSingleRowFast of its C interface."""
    library = lightgbm.basic._LIB
    prepared = ctypes.c_void_p()
    _check(
        library,
        library.LGBM_BoosterPredictForMatSingleRowFastInit(
            booster._handle,
            ctypes.c_int(1),  # C_API_PREDICT_RAW_SCORE
            ctypes.c_int(0),
            ctypes.c_int(-1),
            ctypes.c_int(0),  # C_API_DTYPE_FLOAT32
            ctypes.c_int32(booster.num_feature()),
            b"num_threads=1",
            ctypes.byref(prepared),
        ),
    )
    margin, count = np.empty(1), ctypes.c_int64()
    out, length = ctypes.c_void_p(margin.ctypes.data), ctypes.byref(count)

    def margins(request: Any) -> NDArray[np.float64]:
        row = ctypes.c_void_p(request.features.ctypes.data)
        _check(library, library.LGBM_BoosterPredictForMatSingleRowFast(prepared, row, length, out))
        return margin.copy()

    return Engine("LightGBM, C call for one row", {}, margins)


def _check(library: Any, status: int) -> None:
    if status != 0:
        raise EngineUnavailableError(library.LGBM_GetLastError().decode())


def _tl2cgen(path: Path, features: int) -> tuple[str, Margins]:
    library = path.with_suffix(".so")
    if not library.exists():
        try:
            compile_library(lightgbm.Booster(model_file=path), library)
        except ExportError as error:
            raise EngineUnavailableError(str(error)) from error
    return "TL2cgen, called directly", NativeForest(library, features, range(features)).margins


def _treelite(path: Path, _features: int) -> tuple[str, Margins]:
    import treelite  # noqa: PLC0415

    with Path(os.devnull).open("w") as sink, contextlib.redirect_stdout(sink):  # it prints remarks
        model = treelite.frontend.load_lightgbm_model(str(path))
    return "Treelite GTIL", lambda rows: treelite.gtil.predict(
        model, rows.astype(np.float64), nthread=1, pred_margin=True
    )


def _lleaves(path: Path, _features: int) -> tuple[str, Margins]:
    import lleaves  # noqa: PLC0415

    model = lleaves.Model(model_file=str(path))
    model.compile(cache=str(path.with_suffix(".lleaves")), raw_score=True)
    return "lleaves", lambda rows: model.predict(rows, n_jobs=1)


def _onnxruntime(path: Path, features: int) -> tuple[str, Margins]:
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = tree_ensemble(path, features)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return "ONNX Runtime, float32", lambda rows: session.run(None, {"rows": rows})[0]


def tree_ensemble(path: Path, features: int) -> bytes:
    """The forest as an ONNX TreeEnsembleRegressor in float32, the operator that converters write.

    Thresholds are rounded down to float32, which changes no decision on float32 rows; leaves and sums are rounded, so
    margins differ.

    Raises:
        EngineUnavailableError: a tree has category splits, or there are several outputs.
    """
    import onnx  # noqa: PLC0415
    from onnx import TensorProto, helper  # noqa: PLC0415

    forest = parse_forest(path.read_text("utf-8"))
    if any(tree.categorical.any() for tree in forest.trees) or forest.header.get("num_tree_per_iteration") != "1":
        raise EngineUnavailableError("the operator is given numeric splits and one output only")
    attributes: dict[str, list[Any]] = {}
    for number, tree in enumerate(forest.trees):
        for name, values in _ensemble_attributes(number, tree).items():
            attributes.setdefault(name, []).extend(values)
    node = helper.make_node(
        "TreeEnsembleRegressor", ["rows"], ["margins"], domain="ai.onnx.ml", n_targets=1, **attributes
    )
    graph = helper.make_graph(
        [node],
        "forest",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, features])],
        [helper.make_tensor_value_info("margins", TensorProto.FLOAT, [None, 1])],
    )
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=versions, ir_version=8)
    return bytes(model.SerializeToString())


def _ensemble_attributes(number: int, tree: Tree) -> dict[str, list[Any]]:
    """One tree's nodes: the inner ones first, then leaf i as node inner + i."""
    inner, leaves = len(tree.features), len(tree.leaf_values)
    count = inner + leaves

    def of_inner(values: NDArray[Any], filler: float) -> list[Any]:
        return [*values.tolist(), *[filler] * leaves]

    def child(nodes: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(nodes >= 0, nodes, inner + ~nodes)

    return {
        "nodes_treeids": [number] * count,
        "nodes_nodeids": list(range(count)),
        "nodes_featureids": of_inner(tree.features, 0),
        "nodes_modes": ["BRANCH_LEQ"] * inner + ["LEAF"] * leaves,
        "nodes_values": of_inner(round_down(tree.thresholds), 0.0),
        "nodes_truenodeids": of_inner(child(tree.left), 0),
        "nodes_falsenodeids": of_inner(child(tree.right), 0),
        "target_treeids": [number] * leaves,
        "target_nodeids": list(range(inner, count)),
        "target_ids": [0] * leaves,
        "target_weights": tree.leaf_values.tolist(),
    }


OTHERS: Final[Mapping[str, Callable[[Path, int], tuple[str, Margins]]]] = {
    "tl2cgen": _tl2cgen,
    "treelite": _treelite,
    "lleaves": _lleaves,
    "onnxruntime": _onnxruntime,
}
"""How each is opened: from a model file and the number of features to a title and its function."""
