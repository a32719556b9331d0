"""The straightforward service without its transport."""

from __future__ import annotations

import math
import time
from typing import Any, Final

import lightgbm
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from scipy.special import expit

from recserve.bundle.v1 import manifest_pb2
from recserve.loadtest.baselines.data import Data, Floats
from recserve.loadtest.baselines.features import Asked, Features
from recserve.loadtest.baselines.rerank import choose

Recommended = list[tuple[str, float]]
"""Item ids and their relevance, best first."""
LEAST: Final = np.finfo(np.float64).tiny
MOST: Final = math.nextafter(1.0, 0.0)


class Recommender:
    """Answers one request at a time, in one thread.

    Args:
        data: see data.load_data.
        index: of FAISS, over the items' vectors.
    """

    def __init__(self, data: Data, index: Any) -> None:
        self._data = data
        self._index = index
        self._tower = open_tower(data)
        self._booster = lightgbm.Booster(model_file=data.model)
        self._features = Features(data)

    def recommend(self, user_id: str, count: int, *, device: str = "", country: str = "") -> Recommended:
        """The list of a user; of an unknown one, what is popular."""
        data = self._data
        asked = Asked(
            data.users.rows.get(user_id, -1),
            data.devices.get(device, -1),
            data.countries.get(country, -1),
            data.clock_us or time.time_ns() // 1000,
        )
        user_vector, rows, scores = self._candidates(asked.user, count)
        vectors = data.items.vectors[rows]
        features = self._features.matrix(asked, rows, vectors, user_vector, scores)
        relevance = self._relevance(features)
        best_first = np.lexsort((rows, -relevance))
        rows, relevance, vectors = rows[best_first], relevance[best_first], vectors[best_first]
        chosen = choose(
            relevance,
            data.items.categories[rows],
            vectors,
            count,
            data.placement.cap,
            data.placement.relevance_weight,
        )
        return [
            (data.items.ids[row], score) for row, score in zip(rows[chosen], relevance[chosen].tolist(), strict=True)
        ]

    def _candidates(self, user: int, count: int) -> tuple[Floats, NDArray[np.int64], Floats]:
        """The user's vector, and what is near it with inner products; NaN where nothing is known."""
        if user < 0:
            popular = self._data.items.popular[:count]
            return np.full(self._index.d, np.nan, np.float32), popular, np.full(len(popular), np.nan, np.float32)
        vector = user_vectors(self._tower, self._data.users.taste[user : user + 1])
        scores, rows = self._index.search(vector, max(count, self._data.placement.candidates))
        return vector[0], rows[0], scores[0]

    def _relevance(self, features: Floats) -> NDArray[np.float64]:
        margins = np.asarray(self._booster.predict(features, raw_score=True, num_threads=1))
        calibration = self._data.calibration
        if calibration.kind == manifest_pb2.SIGMOID:
            slope, intercept = calibration.x
            relevance = expit(slope * margins + intercept)
        else:
            relevance = np.interp(margins, calibration.x, calibration.y)
        clipped: NDArray[np.float64] = np.clip(relevance, LEAST, MOST)
        return clipped


def open_tower(data: Data) -> onnxruntime.InferenceSession:
    """The user tower, in one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(data.tower, options, providers=["CPUExecutionProvider"])


def user_vectors(tower: onnxruntime.InferenceSession, taste: Floats) -> Floats:
    """[n, 128] of tastes [n, 32]."""
    vectors: Floats = tower.run(None, {"taste": taste})[0]
    return vectors
