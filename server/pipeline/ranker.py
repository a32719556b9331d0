"""Ranking engines: margins of the bundle's forests, and what they mean.

`Ranker` is what the pipeline asks of an engine. There are two, which agree to the last bit:

    bitsliced   all forests in one pass over arrays (`recserve.server.pipeline.bitsliced`): the default
    tl2cgen     forests that TL2cgen compiled; they are code, so they are loaded only where the operator allows it
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1.manifest_pb2 import Forest, Manifest
from recserve.bundle.v1.manifest_pb2 import NativeForest as NativeEntry
from recserve.kernels.native_forest import NativeForest
from recserve.server.bundle.errors import BundleMismatchError, BundleUnsupportedError
from recserve.server.pipeline.bitsliced import open_bitsliced
from recserve.server.pipeline.inputs import RankingInputs
from recserve.server.pipeline.objectives import Objectives

if TYPE_CHECKING:
    from recserve.server.bundle.reader import Bundle

RankerEngine = Literal["bitsliced", "tl2cgen"]
ENGINES: Final[tuple[RankerEngine, ...]] = get_args(RankerEngine)


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

    def score(self, inputs: RankingInputs) -> NDArray[np.float64]:
        """Raw margins of the candidates of some requests, however the engine comes by them: [candidates, objectives].

        They have the bits of `margins(inputs.matrix())`.
        """

    def relevance(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated margins: [n, objectives] -> [n, objectives], in (0, 1)."""


class NativeRanker(Objectives):
    """Forests compiled by TL2cgen, one library per objective; implements `Ranker`.

    Args:
        forests: the manifest's entries.
        libraries: the loaded forests, in the same order.
    """

    def __init__(self, forests: Sequence[Forest], libraries: Sequence[NativeForest]) -> None:
        super().__init__(forests)
        self._libraries = tuple(libraries)

    def margins(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """See `Ranker`; equal to LightGBM's `predict(raw_score=True)` bit for bit. Releases the GIL."""
        return np.stack([library.margins(features) for library in self._libraries], axis=1)

    def score(self, inputs: RankingInputs) -> NDArray[np.float64]:
        """See `Ranker`."""
        return self.margins(inputs.matrix())


def open_ranker(
    bundle: Bundle, *, engine: RankerEngine, allow_native_code: bool, every_item: bool = False
) -> Ranker | None:
    """The bundle's ranker, ready to use; None where the bundle has no forests.

    Args:
        bundle: a verified bundle.
        engine: what evaluates the forests. There is no other choice than the one made here.
        allow_native_code: whether the operator lets the bundle's compiled code run in this process.
        every_item: recompute what was stored of all items, not of a sample.

    Raises:
        BundleUnsupportedError: the bundle has no forests for the engine, or they are native code and that is not
            allowed, is not there for this machine, or does not load.
        BundleCorruptError: the compiled forests are damaged.
        BundleMismatchError: they are not what the manifest describes, or no objective has a weight.
    """
    forests = list(bundle.manifest.forests)
    if not forests:
        return None
    weights = [forest.weight for forest in forests]
    if not sum(weights) > 0:
        raise BundleMismatchError(
            "no objective has a weight", field="forests.weight", expected="a positive sum", found=weights
        )
    if engine == "bitsliced":
        return open_bitsliced(bundle, every_item=every_item)
    return _open_native(bundle, allowed=allow_native_code)


def has_engine(manifest: Manifest, engine: RankerEngine) -> bool:
    """Whether a bundle has its forests for an engine, on this machine."""
    if engine == "bitsliced":
        return manifest.HasField("forest_set")
    return all(any(entry.machine == platform.machine() for entry in forest.native) for forest in manifest.forests)


def _open_native(bundle: Bundle, *, allowed: bool) -> NativeRanker:
    if not allowed:
        raise BundleUnsupportedError(
            f'the engine "tl2cgen" runs native code of bundle {bundle.name!r}, which is not allowed: set '
            "allow_native_code = true under [compute] if you trust who made the bundle, or use the engine "
            '"bitsliced", which runs none',
            field="forests.native",
        )
    forests = list(bundle.manifest.forests)
    return NativeRanker(forests, [_open_library(bundle, forest) for forest in forests])


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
    if not forest.native:
        raise BundleUnsupportedError(
            f'the bundle has no library of objective {forest.objective!r} ({forest.source}) for the engine "tl2cgen": '
            'use the engine "bitsliced", or export a LightGBM model that TL2cgen can follow with tl2cgen = true',
            field="forests.native",
        )
    raise BundleUnsupportedError(
        f"the forest of objective {forest.objective!r} is not compiled for this machine; export the bundle on one",
        field="forests.native.machine",
        expected=machine,
        found=[entry.machine for entry in forest.native],
    )
