"""Reference engines: the source models and the plain NumPy code in the places of the fast engines.

A pipeline over them answers what the trained models say, slowly; golden expectations and tests come from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1.manifest_pb2 import Forest, IndexKind
from recserve.exporters.source_models import SourceModel, open_model
from recserve.kernels.features import FeatureBatch, ItemArrays, reference_features
from recserve.kernels.reference import rerank as reference_rerank
from recserve.kernels.reference import vectors as reference_vectors
from recserve.server.bundle.reader import Bundle, Space
from recserve.server.pipeline.inputs import RankingInputs
from recserve.server.pipeline.pipeline import Engines
from recserve.server.pipeline.search import Searcher, open_searcher
from recserve.server.pipeline.towers import open_user_tower


class ReferenceFeatures:
    """The NumPy reference of the feature program."""

    def __init__(self, bundle: Bundle) -> None:
        self._schema = bundle.schema
        self._cardinalities = bundle.cardinalities

    def compute(self, items: ItemArrays, batch: FeatureBatch) -> NDArray[np.float32]:
        """[candidates, features]."""
        return reference_features(self._schema, self._cardinalities, items, batch)


class SourceRanker:
    """The source models themselves.

    Args:
        forests: the manifest's forests, for weights and calibration.
        models: by objective.
    """

    def __init__(self, forests: Sequence[Forest], models: Mapping[str, SourceModel]) -> None:
        self.objectives = tuple(forest.objective for forest in forests)
        self.weights = tuple(forest.weight for forest in forests)
        self._forests = forests
        self._models = [models[name] for name in self.objectives]

    @staticmethod
    def from_bundle(bundle: Bundle) -> SourceRanker | None:
        """From the model files that the bundle keeps; None where it has no ranker."""
        forests = list(bundle.manifest.forests)
        return SourceRanker(forests, load_models(bundle.path, forests)) if forests else None

    def margins(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """[n, objectives]: as the libraries answer that trained the models; see `exporters.source_models`."""
        return np.stack([model.ranking_margins(features) for model in self._models], axis=1)

    def score(self, inputs: RankingInputs) -> NDArray[np.float64]:
        """[candidates, objectives]."""
        return self.margins(inputs.matrix())

    def relevance(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n, objectives]: calibrated, in (0, 1)."""
        relevance = np.empty_like(margins)
        for column, forest in enumerate(self._forests):
            calibration = forest.calibration
            relevance[:, column] = reference_rerank.calibrate(
                np.ascontiguousarray(margins[:, column]),
                calibration.kind,
                np.array(calibration.x, np.float64),
                np.array(calibration.y, np.float64),
            )
        return relevance


def load_models(root: Path, forests: Iterable[Forest]) -> dict[str, SourceModel]:
    """The source models by objective, from the files in a bundle's directory."""
    return {forest.objective: open_model(root / forest.model) for forest in forests}


class ExactSearcher:
    """Exact search by the NumPy reference."""

    def __init__(self, space: Space) -> None:
        self._vectors = space.vectors

    def search(
        self, queries: NDArray[np.float32], k: int, masks: Sequence[NDArray[np.uint64] | None]
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """The `k` nearest passing rows of each query."""
        return [
            reference_vectors.search(self._vectors, query[None, :], k, mask)[0]
            for query, mask in zip(queries, masks, strict=True)
        ]


def reference_searcher(space: Space) -> Searcher:
    """Exact search, or the space's own index: an approximate index is judged by its recall, not by equality."""
    return ExactSearcher(space) if space.spec.index.kind == IndexKind.EXACT else open_searcher(space, "cpu")


def oracle_engines(bundle: Bundle) -> Engines:
    """Reference engines for a bundle; towers run in onnxruntime, which is their own reference."""
    return Engines(
        towers={name: open_user_tower(bundle, name, "cpu") for name, s in bundle.spaces.items() if s.has_user_tower},
        searchers={name: reference_searcher(space) for name, space in bundle.spaces.items()},
        features=ReferenceFeatures(bundle),
        ranker=SourceRanker.from_bundle(bundle),
        select=reference_rerank.select,
    )
