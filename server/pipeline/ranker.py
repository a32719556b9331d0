"""Ranking engines: margins of the bundle's forests, and what they mean.

`Ranker` is what the pipeline asks of an engine. The one here runs forests that TL2cgen compiled; they are code, so they
are loaded only where the operator allows it.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1.manifest_pb2 import Forest
from recserve.bundle.v1.manifest_pb2 import NativeForest as NativeEntry
from recserve.kernels.native_forest import NativeForest
from recserve.kernels.rerank import calibrate
from recserve.server.bundle.errors import BundleMismatchError, BundleUnsupportedError

if TYPE_CHECKING:
    from recserve.server.bundle.reader import Bundle


class Ranker(Protocol):
    """Scores rows of features for each objective. Safe for several threads at once."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Such as ("click", "purchase"), in the manifest's order."""

    @property
    def weights(self) -> tuple[float, ...]:
        """The objectives' default weights, >= 0 with a positive sum."""

    def margins(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Raw margins: [n, features] C-contiguous -> [n, objectives]. A row's margins do not depend on the others."""

    def relevance(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated margins: [n, objectives] -> [n, objectives], in (0, 1)."""


class NativeRanker:
    """Forests compiled by TL2cgen, one library per objective; implements `Ranker`.

    Args:
        forests: the manifest's entries.
        libraries: the loaded forests, in the same order.
    """

    def __init__(self, forests: Sequence[Forest], libraries: Sequence[NativeForest]) -> None:
        self._libraries = tuple(libraries)
        self._calibrations = tuple(_calibration(forest) for forest in forests)
        self._objectives = tuple(forest.objective for forest in forests)
        self._weights = tuple(forest.weight for forest in forests)

    @property
    def objectives(self) -> tuple[str, ...]:
        """See `Ranker`."""
        return self._objectives

    @property
    def weights(self) -> tuple[float, ...]:
        """See `Ranker`."""
        return self._weights

    def margins(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """See `Ranker`; equal to LightGBM's `predict(raw_score=True)` bit for bit. Releases the GIL."""
        return np.stack([library.margins(features) for library in self._libraries], axis=1)

    def relevance(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Ranker`."""
        columns = [
            calibrate(np.ascontiguousarray(margins[:, objective]), *calibration)
            for objective, calibration in enumerate(self._calibrations)
        ]
        return np.stack(columns, axis=1)


def open_ranker(bundle: Bundle, *, allow_native_code: bool) -> Ranker | None:
    """The bundle's ranker, ready to use; None where the bundle has no forests.

    Args:
        bundle: a verified bundle.
        allow_native_code: whether the operator lets the bundle's compiled code run in this process.

    Raises:
        BundleUnsupportedError: native code is not allowed, there is none for this machine, or it does not load.
        BundleMismatchError: a library is not the forest that the manifest describes, or no objective has a weight.
    """
    forests = list(bundle.manifest.forests)
    if not forests:
        return None
    weights = [forest.weight for forest in forests]
    if not sum(weights) > 0:
        raise BundleMismatchError(
            "no objective has a weight", field="forests.weight", expected="a positive sum", found=weights
        )
    if not allow_native_code:
        raise BundleUnsupportedError(
            f"the ranker of bundle {bundle.name!r} is native code, which is not allowed to run: set "
            "allow_native_code = true under [compute] if you trust who made the bundle",
            field="forests.native",
        )
    return NativeRanker(forests, [_open_library(bundle, forest) for forest in forests])


def _calibration(forest: Forest) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """The arguments of the kernel's `calibrate` that describe the forest's map."""
    calibration = forest.calibration
    return calibration.kind, np.array(calibration.x, np.float64), np.array(calibration.y, np.float64)


def _open_library(bundle: Bundle, forest: Forest) -> NativeForest:
    entry = _entry_for(forest, platform.machine())
    try:
        return NativeForest(bundle.file(entry.file), forest.features, entry.nan_to_zero, entry.categorical)
    except OSError as error:
        raise BundleUnsupportedError(
            f"the compiled forest of objective {forest.objective!r} does not load here ({error}); export the bundle on "
            "a machine with this system",
            file=entry.file,
        ) from error
    except ValueError as error:
        raise BundleMismatchError(
            f"the compiled forest of objective {forest.objective!r} is not what the manifest says ({error})",
            file=entry.file,
        ) from error


def _entry_for(forest: Forest, machine: str) -> NativeEntry:
    """The forest's library for this architecture."""
    for entry in forest.native:
        if entry.machine == machine:
            return entry
    raise BundleUnsupportedError(
        f"the forest of objective {forest.objective!r} is not compiled for this machine; export the bundle on one",
        field="forests.native.machine",
        expected=machine,
        found=[entry.machine for entry in forest.native],
    )
