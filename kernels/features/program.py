"""FeatureProgram: computes the matrix in one call without the GIL, or says in words which input does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from recserve.kernels._arrays import check_array
from recserve.kernels.features._program import Kernel
from recserve.kernels.features.batch import FeatureBatch, ItemArrays
from recserve.kernels.features.checks import InputChecks
from recserve.kernels.features.definition import FeatureSchema
from recserve.kernels.features.lowering import lower

_CHANGED: Final = "the inputs changed while they were read"


class FeatureProgram:
    """A compiled feature schema. Immutable: any number of threads may call `compute` at once.

    A request's rows do not depend on the requests that share its batch. The items of the last call are kept, and an
    `ItemArrays` that comes again is not checked again.

    Args:
        schema: the features.
        cardinalities: the size of every vocabulary that the schema's columns name.

    Raises:
        FeatureSchemaError: a vocabulary is missing, or its codes or pairs are too many for float32.
    """

    def __init__(self, schema: FeatureSchema, cardinalities: Mapping[str, int]) -> None:
        schema.check_cardinalities(cardinalities)
        self.schema = schema
        self._checks = InputChecks(schema, cardinalities)
        self._kernel = Kernel(lower(schema, cardinalities))
        self._is_of_requests = all(scope == "request" for scope in schema.scopes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the matrix's columns."""
        return self.schema.names

    def compute(
        self, items: ItemArrays, batch: FeatureBatch, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """The features of every candidate.

        Args:
            items: what is known of the items.
            batch: the requests with their candidates.
            out: where to write; float32 [n, F], C-contiguous, overlapping no input. None: a new array.

        Returns:
            float32 [n, F], C-contiguous; `out` if it was given. Missing is NaN.

        Raises:
            TypeError: an input is no NumPy array, or of another dtype; as all of these, it names the array.
            ValueError: of another shape, not C-contiguous, an index out of range, or offsets that do not fit.
        """
        matrix = self._kernel.compute(items, batch, out)
        return self._refuse(items, batch, out) if matrix is None else matrix

    def of_requests(self, batch: FeatureBatch) -> NDArray[np.float32]:
        """The features of every request, where none depends on the candidate: what `compute` gives all its candidates.

        Args:
            batch: the requests. Only their times and columns are looked at, not their candidates, histories or vectors.

        Returns:
            float32 [R, F], C-contiguous. Missing is NaN.

        Raises:
            TypeError, ValueError: as `compute`; or a feature depends on the candidate.
        """
        if not self._is_of_requests:
            raise ValueError("a feature depends on the candidate: use `compute`")
        matrix = self._kernel.of_requests(batch)
        if matrix is None:
            self._checks.check_requests(batch)
            raise RuntimeError(_CHANGED)
        return matrix

    def _refuse(self, items: ItemArrays, batch: FeatureBatch, out: NDArray[np.float32] | None) -> NoReturn:
        """Say what does not fit."""
        shape = (self._checks.check(items, batch), len(self.names))
        check_array("out", out, np.float32, shape, writable=True)
        raise RuntimeError(_CHANGED)
