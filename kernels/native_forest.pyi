import os
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

class NativeForest:
    """A LightGBM forest that TL2cgen 1.0 compiled to a shared library, with one output and float64 thresholds.

    Loading runs the library's code: open only what the operator trusts. What is loaded is a copy in memory, so the file
    may be replaced or removed afterwards; it stays loaded as long as the object lives.

    Args:
        path: of the library.
        features: how many the caller will pass; must be the library's.
        nan_to_zero: features whose missing values LightGBM reads as 0.0 (missing type None).
        categorical: features that are compared as categories: truncated towards zero, and in no set where they are
            NaN, negative or above 2**24.

    Raises:
        OSError: the file is missing, not a library, or not one of this machine's.
        ValueError: the library is no such forest, or has another number of features; or a listed feature does not exist
            or is listed twice.
    """

    path: str
    features: int

    def __init__(
        self,
        path: str | os.PathLike[str],
        features: int,
        nan_to_zero: Iterable[int] = (),
        categorical: Iterable[int] = (),
    ) -> None: ...
    def margins(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Raw margins, equal to LightGBM's `predict(raw_score=True)` bit for bit: trees are added in their order.

        As in LightGBM's predictor, values of magnitude up to float32's 1e-35 count as 0. Releases the GIL; may be
        called from several threads at once.

        Args:
            features: float32 [n, features], C-contiguous; NaN is missing.

        Returns:
            float64 [n].

        Raises:
            TypeError: another dtype.
            ValueError: another shape, or not contiguous.
        """
