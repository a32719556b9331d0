import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CPU_VARIANTS: tuple[str, ...]
"""Instruction sets that this build and CPU have, narrowest first: "portable", then "avx2" and "avx512" on x86-64.

"avx512" here asks for the F, BW, VL and DQ parts, which every server CPU with AVX-512 has.
"""

CPU_VARIANT: str
"""The one in use: the last of CPU_VARIANTS, or what the environment variable RECSERVE_CPU named at import."""

class Forest:
    """Forests over one set of features, evaluated in one pass; recserve.exporters.forest compiles them.

    Answers are sums in the order of the trees, of doubles or of float32 as in the source model, so they have its bits,
    in every variant, in any order or split of the rows, and from any number of threads. Objects are immutable.

    Args:
        arrays: as in kernels/_forest_arrays.py; they are kept and not copied, so they must not change.

    Raises:
        TypeError: an array is of another dtype.
        ValueError: an array is missing, or not one of a forest.
    """

    arrays: Mapping[str, NDArray[Any]]
    features: int
    """Columns of the rows that `predict` takes."""
    outputs: int
    """Margins of a row, of all forests together."""
    columns: int
    """Bins of a row: a feature has one for every 254 thresholds, and none where no tree asks for it."""
    column_features: NDArray[np.int32]
    """The feature of each bin column."""
    forest_bounds: NDArray[np.int64]
    """The outputs of forest i are forest_bounds[i] : forest_bounds[i + 1]."""
    pieces: int
    """Programs: one a tree, more for trees of more than 64 leaves."""
    conditions: int
    """Distinct decisions of all trees."""
    float_error_bounds: NDArray[np.float64]
    """How far margins with float_sums may be from the exact ones: float64 [outputs]."""
    set_hash: str
    """SHA-256 of the arrays, in hexadecimal: names the forest set that stored bins belong to."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None: ...
    @staticmethod
    def load(folder: str | os.PathLike[str]) -> Forest:
        """Map a saved forest and check it completely.

        Raises:
            OSError: a file is missing or cannot be read.
            TypeError, ValueError: a file is damaged, or of another version; names it.
        """

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the arrays as .npy files into a new folder.

        Raises:
            OSError: the folder exists or cannot be written.
        """

    def predict(
        self, rows: NDArray[np.float32] | NDArray[np.float64], *, float_sums: bool = False
    ) -> NDArray[np.float64]:
        """Raw margins. Releases the GIL; may be called from several threads at once.

        Args:
            rows: float32 or float64 [n, features], C-contiguous; NaN is missing.
            float_sums: round leaves and sums to float32: quicker, and off by at most `float_error_bounds`. The bits are
                still those of every variant.

        Returns:
            float64 [n], or [n, outputs] where there are several outputs.

        Raises:
            TypeError: another dtype.
            ValueError: another shape, or not contiguous.
        """

    def bin_columns(self, features: Sequence[int]) -> NDArray[np.int32]:
        """The bin columns of some features, ascending: int32.

        Raises:
            ValueError: a feature does not exist, or is listed twice.
        """

    def bin_matrix(self, values: NDArray[np.float32], features: Sequence[int]) -> NDArray[np.uint8]:
        """Bins of some features, to be stored and gathered by row. Releases the GIL.

        Args:
            values: float32 [n, len(features)], C-contiguous: column i is feature features[i].
            features: distinct features of the forest.

        Returns:
            uint8 [n, columns], column j that of bin_columns(features)[j].

        Raises:
            TypeError: another dtype.
            ValueError: another shape, not contiguous, or a feature that does not exist or is listed twice.
        """

    def plan(
        self, item_features: Sequence[int], request_features: Sequence[int], cross_features: Sequence[int]
    ) -> RequestPlan:
        """Say where the features of requests come from.

        Args:
            item_features: those that depend on the item alone, binned once with `bin_matrix`.
            request_features: those that are the same for all candidates of a request (user and context).
            cross_features: those that are computed for each candidate.

        Raises:
            ValueError: a feature does not exist or is listed twice, or one that a tree asks for is not listed.
        """

class RequestPlan:
    """How a forest reads the features of requests. Immutable; made by `Forest.plan`."""

    forest: Forest
    item_features: tuple[int, ...]
    request_features: tuple[int, ...]
    cross_features: tuple[int, ...]
    item_columns: NDArray[np.int32]
    """The forest's columns that the item bins have, in their order."""

    def margins(
        self,
        item_bins: NDArray[np.uint8],
        rows: NDArray[np.int64],
        request_bounds: NDArray[np.int64],
        request_values: NDArray[np.float32],
        cross_values: NDArray[np.float32],
        *,
        float_sums: bool = False,
    ) -> NDArray[np.float64]:
        """Raw margins of the candidates of several requests, in one call: the bits of `Forest.predict`.

        Releases the GIL; may be called from several threads at once. All arrays are C-contiguous.

        Args:
            item_bins: uint8 [items, len(item_columns)], from `Forest.bin_matrix(…, item_features)`; may be mapped.
            rows: int64 [n], rows of item_bins, the candidates of all requests one after another.
            request_bounds: int64 [requests + 1]: request i has candidates request_bounds[i] : request_bounds[i + 1].
            request_values: float32 [requests, len(request_features)].
            cross_values: float32 [n, len(cross_features)].
            float_sums: as in `Forest.predict`.

        Returns:
            float64 [n, outputs].

        Raises:
            TypeError: another dtype.
            ValueError: shapes do not agree, an array is not contiguous, a row is outside item_bins, or the bounds do
                not rise from 0 to n.
        """
