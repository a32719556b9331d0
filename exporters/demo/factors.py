"""Collaborative filtering: ALS factors of users and items from the events (Hu, Koren & Volinsky 2008)."""

from __future__ import annotations

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from recserve.exporters.demo.marketplace import Events
from recserve.exporters.demo.sizes import DemoSizes
from recserve.exporters.demo.state import EVENT_WEIGHTS

_REGULARIZATION = 8.0
_CONFIDENCE = 6.0


def train_factors(events: Events, sizes: DemoSizes, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Factors [users, factors] and [items, factors], float32.

    A pair's confidence grows with the logarithm of its weighted events. Users and items without events get factors
    close to zero: their inner products say that nothing is known.
    """
    weights = csr_matrix(
        (EVENT_WEIGHTS[events.type], (events.user, events.item)), shape=(sizes.users, sizes.items), dtype=np.float32
    )
    weights.sum_duplicates()
    weights.data = (_CONFIDENCE * np.log1p(weights.data)).astype(np.float32)
    # One BLAS thread: the library runs its own, and asks for this loudly.
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=sizes.factors,
            regularization=_REGULARIZATION,
            iterations=sizes.als_iterations,
            random_state=seed,
            num_threads=1,
        )
        model.fit(weights, show_progress=False)
    return np.ascontiguousarray(model.user_factors), np.ascontiguousarray(model.item_factors)
