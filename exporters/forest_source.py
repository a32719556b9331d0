"""What a forest says, whatever library trained it: the one form that `exporters.forest` compiles.

LightGBM's model text ─ lightgbm_forest ─┐
                                         ├ SourceForest ─ forest ─ kernels.Forest
Treelite's model ─────── treelite_forest ┘
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.forest_decisions import NUMERIC, Nodes


@dataclass(frozen=True, slots=True, eq=False)
class TreeShape:
    """Children of node i are nodes where >= 0, else leaf ~child; a single leaf has no nodes."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """One margin: (initial + the leaves of its trees, in this order) / divisor."""

    trees: Sequence[tuple[int, NDArray[np.float64]]]
    """Which tree, and the values of its leaves: outputs may share the trees that have a value for each."""
    initial: float = 0.0
    divisor: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class SourceForest:
    """A forest's decisions and sums."""

    features: int
    nodes: Nodes
    """Of all trees, end to end."""
    trees: Sequence[TreeShape]
    outputs: Sequence[Output]
    single: bool = False
    """Leaves are float32, and so are the sums."""

    def special_values(self) -> tuple[list[NDArray[np.float64]], list[NDArray[np.int64]]]:
        """By feature: the thresholds that values are compared with, and the categories of its sets; ascending."""
        nodes, every = self.nodes, range(self.features)
        numeric = nodes.sets == NUMERIC
        thresholds = [np.unique(nodes.thresholds[numeric & (nodes.features == feature)]) for feature in every]
        categories: list[list[NDArray[np.int64]]] = [[np.zeros(0, np.int64)] for _ in every]
        for feature, number in zip(nodes.features[~numeric].tolist(), nodes.sets[~numeric].tolist(), strict=True):
            categories[feature].append(nodes.categories[number])
        return thresholds, [np.unique(np.concatenate(found)) for found in categories]

    def categorical_features(self) -> set[int]:
        """Features that some node compares with a category set."""
        return set(self.nodes.features[self.nodes.sets != NUMERIC].tolist())
