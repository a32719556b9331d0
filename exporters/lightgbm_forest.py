"""LightGBM's decisions in the common form, from its model text, which is the truth about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    Nodes,
)
from recserve.exporters.forest_source import Output, SourceForest, TreeShape
from recserve.exporters.lightgbm_text import ForestText, MissingType, Tree

_DEFAULT_LEFT = 2
"""Bit 1 of LightGBM's decision_type."""


def lightgbm_forest(text: ForestText) -> SourceForest:
    """The forest of a model text.

    Raises:
        ExportError: its leaves or thresholds have no exact translation.
    """
    outputs = int(text.header.get("num_tree_per_iteration", "1"))
    _check_leaves(text, outputs)
    values = [(number, tree.leaf_values) for number, tree in enumerate(text.trees)]
    return SourceForest(
        features=text.features,
        nodes=_nodes(text.trees),
        trees=[TreeShape(tree.left, tree.right) for tree in text.trees],
        outputs=[Output(values[output::outputs]) for output in range(outputs)],
    )


def _check_leaves(text: ForestText, outputs: int) -> None:
    for position, tree in enumerate(text.trees):
        if tree.linear:
            raise ExportError(
                f"tree {position} has linear leaves, whose sums no bit-sliced forest can follow: train with "
                "linear_tree=false"
            )
        if np.isnan(tree.thresholds).any():
            raise ExportError(f"tree {position} has a threshold that is NaN: train it again on finite features")
    if outputs < 1 or len(text.trees) % outputs:
        raise ExportError(f"the model has {len(text.trees)} trees for {outputs} outputs: the text was edited")


def _nodes(trees: Sequence[Tree]) -> Nodes:
    """All decisions of LightGBM trees.

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
        nan_left=~categorical & np.where(missing == MissingType.NONE, zero_left, default_left),
        zero=np.where(forced, np.where(default_left, ZERO_LEFT, ZERO_RIGHT), ZERO_AS_IS),
        sets=numbers,
        categories=sets,
        single=np.zeros(len(thresholds), np.bool_),
    )
