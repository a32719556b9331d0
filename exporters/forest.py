"""Compile trained forests to a `Forest`, exactly.

    models ─ decisions (forest_decisions) ─ columns, conditions ─┐
           └ trees ──────────────────────────────────────────────┴ programs (forest_program) ─ Forest

LightGBM's model text is the truth about its decisions: missing types, default directions, category sets.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.errors import ExportError
from recserve.exporters.forest_decisions import (
    BELOW_ZERO,
    NUMERIC,
    ZERO_AS_IS,
    ZERO_LEFT,
    ZERO_RIGHT,
    ZERO_THRESHOLD,
    Conditions,
    Nodes,
    collect_conditions,
)
from recserve.exporters.forest_program import Piece, Tree, compile_tree
from recserve.exporters.lightgbm_text import ForestText, MissingType, parse_forest
from recserve.exporters.lightgbm_text import Tree as TextTree
from recserve.kernels._forest_arrays import FIRST_CONDITION, LEAVES, PLANES
from recserve.kernels.forest import Forest

if TYPE_CHECKING:
    import lightgbm

    Model = lightgbm.Booster | str | os.PathLike[str]

_DEFAULT_LEFT = 2
"""Bit 1 of LightGBM's decision_type."""


def compile_forest(*models: Model) -> Forest:
    """Compile one forest, or several that one pass will evaluate together.

    Args:
        models: LightGBM boosters, model files (os.PathLike) or model texts (str), all trained on the same columns. A
            booster counts as far as its best iteration, as in its own `predict`.

    Returns:
        a forest whose outputs are the models', one after another; each equals `predict(raw_score=True)` bit for bit.

    Raises:
        ExportError: a model cannot be followed exactly, or the models have different numbers of features.
    """
    if not models:
        raise ExportError("no model: expected at least one")
    return compile_texts([parse_forest(_text(model)) for model in models])


def compile_texts(forests: Sequence[ForestText]) -> Forest:
    """The same from parsed model texts."""
    features = {forest.features for forest in forests}
    if len(features) != 1:
        raise ExportError(f"the models have {sorted(features)} features: forests evaluated together share one row")
    for number, forest in enumerate(forests):
        _check_leaves(number, forest)
    trees = [tree for forest in forests for tree in forest.trees]
    conditions = collect_conditions(_nodes(trees))
    return _assemble(
        features.pop(),
        conditions,
        list(_outputs(forests, _with_conditions(trees, conditions))),
        [_output_count(forest) for forest in forests],
    )


def _text(model: Model) -> str:
    if isinstance(model, str):
        return model
    if isinstance(model, os.PathLike):
        return Path(model).read_text()
    return str(model.model_to_string())


def _output_count(forest: ForestText) -> int:
    return int(forest.header.get("num_tree_per_iteration", "1"))


def _check_leaves(number: int, forest: ForestText) -> None:
    """Refuse what has no exact translation."""
    for position, tree in enumerate(forest.trees):
        where = f"model {number}, tree {position}"
        if tree.linear:
            raise ExportError(
                f"{where} has linear leaves, whose sums no bit-sliced forest can follow: train with linear_tree=false"
            )
        if np.isnan(tree.thresholds).any():
            raise ExportError(f"{where} has a threshold that is NaN: train it again on finite features")
    outputs = _output_count(forest)
    if outputs < 1 or len(forest.trees) % outputs:
        raise ExportError(f"model {number} has {len(forest.trees)} trees for {outputs} outputs: the text was edited")


def _nodes(trees: Sequence[TextTree]) -> Nodes:
    """All decisions of LightGBM trees, in the common form.

    Its predictor reads numbers of magnitude up to ZERO_THRESHOLD as 0, so a threshold among them is moved to the end of
    those numbers: all of them go left where 0 <= threshold. NaN is read as 0 where the missing type is None, and goes
    with the zeros to the default side where it is Zero.
    """

    def join(arrays: list[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
        return np.concatenate([np.zeros(0, dtype), *arrays])

    thresholds = join([tree.thresholds for tree in trees], np.float64)
    categorical = join([tree.categorical for tree in trees], np.bool_)
    missing = join([tree.missing_types for tree in trees], np.int64)
    default_left = (join([tree.decisions for tree in trees], np.int64) & _DEFAULT_LEFT).astype(bool)
    tiny = np.abs(thresholds) <= ZERO_THRESHOLD
    canonical = np.where(tiny, np.where(thresholds >= 0, ZERO_THRESHOLD, BELOW_ZERO), thresholds)
    zero_left = thresholds >= 0
    forced = (missing == MissingType.ZERO) & (zero_left != default_left)
    sets: list[NDArray[np.int64]] = []
    numbers = np.full(len(thresholds), NUMERIC)
    for tree in trees:
        sets.extend(categories for _, categories in tree.category_sets())
    numbers[categorical] = np.arange(len(sets))
    return Nodes(
        features=join([tree.features for tree in trees], np.int64),
        thresholds=canonical,
        nan_left=np.where(missing == MissingType.NONE, zero_left, default_left),
        zero=np.where(forced, np.where(default_left, ZERO_LEFT, ZERO_RIGHT), ZERO_AS_IS),
        sets=numbers,
        categories=sets,
    )


def _with_conditions(trees: Sequence[TextTree], conditions: Conditions) -> Iterator[Tree]:
    start = 0
    for tree in trees:
        end = start + len(tree.features)
        yield Tree(tree.left.tolist(), tree.right.tolist(), conditions.nodes[start:end], tree.leaf_values)
        start = end


def _outputs(forests: Sequence[ForestText], trees: Iterator[Tree]) -> Iterator[Sequence[Tree]]:
    """The trees of each output, in the order in which LightGBM adds them."""
    for forest in forests:
        own = [next(trees) for _ in forest.trees]
        count = _output_count(forest)
        for output in range(count):
            yield own[output::count]


def _assemble(
    features: int, conditions: Conditions, outputs: Sequence[Sequence[Tree]], counts: Sequence[int]
) -> Forest:
    """Compile the trees and lay out the arrays."""
    pieces: list[Piece] = []
    output_bounds = [0]
    for output in outputs:
        for tree in output:
            pieces.extend(compile_tree(tree, FIRST_CONDITION + conditions.count))
        output_bounds.append(len(pieces))
    ops = [op for piece in pieces for op in piece.ops]
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
            "forest_bounds": np.cumsum([0, *counts], dtype=np.int64),
        }
    )
