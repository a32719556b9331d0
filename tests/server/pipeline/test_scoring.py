from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recserve.kernels import rerank as kernel
from recserve.server.bundle.layout import MAX_WEIGHT
from recserve.server.pipeline.scoring import HIGHEST_RELEVANCE, combine

ENDS = kernel.calibrate(np.array([-math.inf, math.inf]), kernel.SIGMOID, np.array([1.0, 0.0]), np.empty(0))


def test_the_highest_relevance_is_the_kernels() -> None:
    assert ENDS[1] == HIGHEST_RELEVANCE


@given(st.lists(st.floats(0, MAX_WEIGHT), min_size=1, max_size=6).filter(any))
@example([0.1, 0.2, 0.2])
@settings(deadline=None)
def test_combined_relevance_stays_inside_the_open_interval(weights: list[float]) -> None:
    for end in ENDS:
        (found,) = combine(np.full((1, len(weights)), end), weights)
        assert 0 < found < 1


def test_combined_relevance_is_the_weighted_mean() -> None:
    relevance = np.array([[0.2, 0.4], [0.5, np.nan]])
    assert combine(relevance, [3.0, 1.0]) == pytest.approx([0.25, np.nan], nan_ok=True)
    assert combine(relevance, [7.0]).tolist() == [0.2, 0.5]
