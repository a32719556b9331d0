"""Compile trained forests to a `Forest`, exactly.

    models ─ decisions (forest_decisions) ─ columns, conditions ─┐
           └ trees ──────────────────────────────────────────────┴ programs (forest_program) ─ Forest

`exporters.source_models` says what a model may be, and reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recserve.exporters.errors import ExportError
from recserve.exporters.forest_decisions import Conditions, collect_conditions, join_nodes
from recserve.exporters.forest_program import Piece, Tree, compile_tree
from recserve.exporters.forest_source import Output, SourceForest
from recserve.exporters.source_models import source_forest
from recserve.kernels._forest_arrays import FIRST_CONDITION, LEAVES, PLANES
from recserve.kernels.forest import Forest

if TYPE_CHECKING:
    from recserve.exporters.source_models import Model


def compile_forest(*models: Model) -> Forest:
    """Compile one forest, or several that one pass will evaluate together.

    Args:
        models: all over the same columns. Each is one of

            - a LightGBM booster, which counts as far as its best iteration, as in its own `predict`;
            - an XGBoost booster, or an estimator of its scikit-learn interface as far as its best iteration;
            - a scikit-learn RandomForest, ExtraTrees, GradientBoosting or HistGradientBoosting estimator;
            - a `treelite.Model` of XGBoost or scikit-learn origin;
            - a file (os.PathLike) of LightGBM text, XGBoost JSON or UBJ, or a Treelite checkpoint;
            - a LightGBM text (str).

    Returns:
        a forest whose outputs are the models', one after another, with the bits of the library that trained it:
        LightGBM's `predict(raw_score=True)`, XGBoost's `predict(output_margin=True)`, and scikit-learn's
        `decision_function` or, of forests and regressors, `predict_proba` or `predict` before the link of the loss.

    Raises:
        ExportError: a model cannot be followed exactly, or the models have different numbers of features.
    """
    if not models:
        raise ExportError("no model: expected at least one")
    sources = []
    for number, model in enumerate(models):
        try:
            sources.append(source_forest(model))
        except ExportError as error:
            raise ExportError(f"model {number}: {error}") from error
    return compile_sources(sources)


def compile_sources(sources: Sequence[SourceForest]) -> Forest:
    """The same from what was read.

    Raises:
        ExportError: the models have different numbers of features.
    """
    features = {source.features for source in sources}
    if len(features) != 1:
        raise ExportError(f"the models have {sorted(features)} features: forests evaluated together share one row")
    conditions = collect_conditions(join_nodes([source.nodes for source in sources]))
    pieces: list[Piece] = []
    output_bounds = [0]
    first_node = 0
    for source in sources:
        node_bounds = first_node + np.cumsum([0, *(len(tree.left) for tree in source.trees)])
        for output in source.outputs:
            pieces.extend(_pieces(source, output, conditions, node_bounds.tolist()))
            output_bounds.append(len(pieces))
        first_node = int(node_bounds[-1])
    return _assemble(features.pop(), conditions, pieces, output_bounds, sources)


def _pieces(source: SourceForest, output: Output, conditions: Conditions, node_bounds: Sequence[int]) -> list[Piece]:
    """The programs of an output's trees."""
    pieces: list[Piece] = []
    for number, values in output.trees:
        shape = source.trees[number]
        own = conditions.nodes[node_bounds[number] : node_bounds[number + 1]]
        tree = Tree(shape.left.tolist(), shape.right.tolist(), own, values)
        pieces.extend(compile_tree(tree, FIRST_CONDITION + conditions.count))
    return pieces


def _assemble(
    features: int,
    conditions: Conditions,
    pieces: Sequence[Piece],
    output_bounds: Sequence[int],
    sources: Sequence[SourceForest],
) -> Forest:
    """Lay out the arrays."""
    ops = [op for piece in pieces for op in piece.ops]
    outputs = [(output, source.single) for source in sources for output in source.outputs]
    return Forest(
        {
            "features": np.array([features], np.int64),
            "column_features": conditions.column_features,
            "threshold_bounds": conditions.threshold_bounds,
            "thresholds": conditions.thresholds,
            "range_bounds": conditions.range_bounds,
            "range_lows": conditions.range_lows,
            "range_widths": conditions.range_widths,
            "set_bounds": conditions.set_bounds,
            "set_bits": conditions.set_bits,
            "op_bounds": np.cumsum([0, *(len(piece.ops) for piece in pieces)], dtype=np.int64),
            "ops": np.array(ops, np.uint32).reshape(-1, 3),
            "planes": np.array([piece.planes for piece in pieces], np.uint32).reshape(-1, PLANES),
            "leaves": np.array([piece.values for piece in pieces], np.float64).reshape(-1, LEAVES),
            "output_bounds": np.array(output_bounds, np.int64),
            "forest_bounds": np.cumsum([0, *(len(source.outputs) for source in sources)], dtype=np.int64),
            "initials": np.array([output.initial for output, _ in outputs], np.float64),
            "divisors": np.array([output.divisor for output, _ in outputs], np.float64),
            "singles": np.array([single for _, single in outputs], np.uint8),
        }
    )
