"""Confidence intervals: repeatable, paired, and as wide as theory says."""

from __future__ import annotations

import numpy as np
import pytest

from recserve.exporters.evaluation import bootstrap
from recserve.exporters.evaluation.bootstrap import estimates

VALUES = np.random.default_rng(1).normal(0.3, 0.2, (400, 3))


def test_the_mean_is_the_mean_and_the_interval_is_that_of_normal_theory() -> None:
    for column, each in zip(VALUES.T, estimates(VALUES, resamples=4000, seed=1), strict=True):
        assert each.value == pytest.approx(column.mean())
        half = 1.96 * column.std() / np.sqrt(column.size)
        assert each.interval == pytest.approx((column.mean() - half, column.mean() + half), abs=0.1 * half)


def test_equal_seeds_give_equal_intervals_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = estimates(VALUES, resamples=100, seed=7)
    assert estimates(VALUES, resamples=100, seed=7) == whole
    assert estimates(VALUES, resamples=100, seed=8) != whole
    monkeypatch.setattr(bootstrap, "_BLOCK", 7 * 400)
    for found, expected in zip(estimates(VALUES, resamples=100, seed=7), whole, strict=True):
        assert found.interval == pytest.approx(expected.interval)


def test_a_paired_difference_is_narrower_than_its_parts() -> None:
    better = VALUES[:, 0] + 0.02
    full, other, difference = estimates(
        np.stack([better, VALUES[:, 0], better - VALUES[:, 0]], axis=1), resamples=500, seed=1
    )
    assert full.interval
    assert other.interval
    assert full.interval[0] < other.interval[1]
    assert difference.interval == pytest.approx((0.02, 0.02))


def test_nan_leaves_a_user_out_of_that_column_alone() -> None:
    values = np.array([[1.0, 5.0, np.nan], [3.0, np.nan, np.nan], [5.0, 5.0, np.nan]])
    first, second, nothing = estimates(values, resamples=200, seed=1)
    assert (first.value, second.value) == (3.0, 5.0)
    assert second.interval == (5.0, 5.0)
    assert np.isnan(nothing.value)


def test_one_user_is_no_uncertainty() -> None:
    (found,) = estimates(np.array([[0.25]]), resamples=10, seed=1)
    assert (found.value, found.interval) == (0.25, (0.25, 0.25))
