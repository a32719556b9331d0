"""What a ranking engine is given: a micro-batch's requests with their candidates, whole or by parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.features import FeatureBatch, FeatureSchema, ItemArrays
from recserve.server.pipeline.assemble import Candidates, Subject, assemble


class FeatureComputer(Protocol):
    """Computes the ranker's features: `FeatureProgram`, or the reference in its place."""

    def compute(self, items: ItemArrays, batch: FeatureBatch) -> NDArray[np.float32]:
        """[candidates, features]."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankingInputs:
    """Requests with their candidates, and how features are computed from them.

    Attributes:
        schema: of all features.
        features: computes all of them.
        items: the catalogue's side.
        dims: dimension of each space that the schema refers to.
        subjects: one per request.
        candidates: one per request.
    """

    schema: FeatureSchema
    features: FeatureComputer
    items: ItemArrays
    dims: Mapping[str, int]
    subjects: Sequence[Subject]
    candidates: Sequence[Candidates]

    def matrix(self) -> NDArray[np.float32]:
        """Every feature of every candidate: [candidates, features], C-contiguous."""
        return self.features.compute(self.items, self.batch(self.schema))

    def batch(self, schema: FeatureSchema) -> FeatureBatch:
        """The input of a program that computes some of the features for every candidate.

        Args:
            schema: those features (`FeatureSchema.select`).
        """
        return assemble(schema, self.subjects, self.candidates, self.dims)
