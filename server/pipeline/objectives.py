"""The objectives of a bundle's forests: their weights, and what their margins mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1.manifest_pb2 import Forest
from recserve.kernels.rerank import calibrate


class Objectives:
    """The part of a ranker that is the same for every engine.

    Args:
        forests: the manifest's entries.
    """

    def __init__(self, forests: Sequence[Forest]) -> None:
        self._calibrations = tuple(_calibration(forest) for forest in forests)
        self._objectives = tuple(forest.objective for forest in forests)
        self._weights = tuple(forest.weight for forest in forests)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Such as ("click", "purchase"), in the manifest's order."""
        return self._objectives

    @property
    def weights(self) -> tuple[float, ...]:
        """The objectives' default weights."""
        return self._weights

    def relevance(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated margins: [n, objectives] -> [n, objectives], in (0, 1)."""
        relevance = np.empty(margins.shape)
        for objective, calibration in enumerate(self._calibrations):
            relevance[:, objective] = calibrate(np.ascontiguousarray(margins[:, objective]), *calibration)
        return relevance


def _calibration(forest: Forest) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """The arguments of the kernel's `calibrate` that describe the forest's map."""
    calibration = forest.calibration
    return calibration.kind, np.array(calibration.x, np.float64), np.array(calibration.y, np.float64)
