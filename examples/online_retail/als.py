"""Collaborative filtering: ALS factors of users and items from purchases (Hu, Koren & Volinsky 2008)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits


@dataclass(frozen=True, slots=True)
class AlsSettings:
    """See the README for what was tried on the validation weeks."""

    factors: int = 64
    regularization: float = 30.0
    confidence: float = 10.0
    iterations: int = 12


def factorise(counts: csr_matrix, settings: AlsSettings, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Factors [users, factors] and [items, factors], float32, of counts [users, items].

    A pair's confidence grows with the logarithm of the orders that it occurs in.
    """
    weights = counts.astype(np.float32)
    weights.data = (settings.confidence * np.log1p(weights.data)).astype(np.float32)
    # One BLAS thread: the library runs its own, and asks for this loudly.
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=settings.factors,
            regularization=settings.regularization,
            iterations=settings.iterations,
            random_state=seed,
            num_threads=2,
        )
        model.fit(weights, show_progress=False)
    return np.ascontiguousarray(model.user_factors), np.ascontiguousarray(model.item_factors)
