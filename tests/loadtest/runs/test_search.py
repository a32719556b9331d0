"""Searches over a target that is a formula: what they find is known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from recserve.loadtest.arguments import LEAST_PRECISION
from recserve.loadtest.generator.pacing import ScheduleError
from recserve.loadtest.runs.errors import ResultError
from recserve.loadtest.runs.search import Capacity, holds_budget, knee, past_knee, rising_rates, sweep
from recserve.loadtest.runs.trend import trend

BUDGET = 50.0


def target(
    capacity: float, *, valid: Callable[[float], bool] = lambda _: True
) -> Callable[[float, int], dict[str, Any]]:
    """A queue: latency grows towards its capacity and beyond it answers fall behind."""

    def hold(rate: float, repeat: int) -> dict[str, Any]:
        p99 = 10 / (1 - rate / capacity) if rate < capacity else 5000.0
        return {
            "params": {"rate": rate, "repeat": repeat},
            "p99_ms": p99,
            "ok_share": 1.0 if rate < capacity else capacity / rate,
            "offered_per_s": rate,
            "requests_per_s": min(rate, capacity),
            "valid": valid(rate),
            "problems": [] if valid(rate) else ["the generator could not keep up"],
        }

    return hold


@pytest.mark.parametrize("capacity", [3.0, 47.0, 1000.0, 12_345.0])
@pytest.mark.parametrize("start", [1.0, 50.0, 2000.0])
def test_capacity_is_found_from_wherever_the_search_starts(capacity: float, start: float) -> None:
    found = Capacity(BUDGET)
    hold = target(capacity)
    found.search(hold, hold, start, 100_000)
    exact = 0.8 * capacity  # where 10 / (1 - rate / capacity) is 50
    assert found.confirmed
    assert found.rate is not None
    assert 0.94 * exact <= found.rate <= exact
    assert not found.at_least
    assert len(found.rows) < 30
    assert found.rows[-1]["holds"]


@pytest.mark.parametrize("capacity", [1250.3, 1251.25, 12_495.0, 12_505.0])
@pytest.mark.parametrize("start", [50.0, 1000.7])
def test_the_finest_precision_comes_to_an_end(capacity: float, start: float) -> None:
    found = Capacity(BUDGET, LEAST_PRECISION)
    found.search(target(capacity), target(0.99 * capacity), start, 100_000)
    assert found.rate is not None
    assert 0.988 * 0.8 * capacity <= found.rate <= 0.99 * 0.8 * capacity
    assert len(found.rows) < 50


def test_no_rate_above_the_most_is_tried() -> None:
    found = Capacity(BUDGET)
    hold = target(1e9)
    found.search(hold, hold, 50, 300)
    assert found.rate == 300
    assert found.at_least
    assert max(row["params"]["rate"] for row in found.rows) == 300


def test_a_rate_that_longer_runs_do_not_hold_is_lowered() -> None:
    found = Capacity(BUDGET)
    found.search(target(1000), target(900), 50, 10_000)
    assert found.rate is not None
    assert 0.9 * 0.8 * 900 <= found.rate <= 0.8 * 900


def test_the_highest_rate_that_only_short_runs_hold_is_no_least() -> None:
    found = Capacity(BUDGET)
    found.search(target(1000), target(900), 50, 780)
    assert found.rate is not None
    assert found.rate < 780
    assert not found.at_least


def test_a_target_that_holds_nothing_is_told() -> None:
    with pytest.raises(ResultError, match="no rate from 1 request/s on holds a p99 of 50 ms"):
        Capacity(BUDGET).search(target(0.5), target(0.5), 50, 1000)


def test_no_rate_below_one_a_second_is_tried() -> None:
    found = Capacity(BUDGET)
    with pytest.raises(ResultError, match="no rate from 1 request/s on"):
        found.search(target(0.5), target(0.5), 50, 1000)
    assert [row["params"]["rate"] for row in found.rows] == [50, 25, 12.5, 6.25, 3.125, 1.5625, 1]


def test_who_cannot_be_told_of_so_few_requests_is_told_of_more() -> None:
    failing = target(0.5)

    def hold(rate: float, repeat: int) -> dict[str, Any]:
        if rate < 10:
            raise ScheduleError("no request would leave")
        return failing(rate, repeat)

    expected = r"no rate from 12.5 requests/s on .* below it cannot be told: no request would leave; .* \(--seconds\)"
    with pytest.raises(ResultError, match=expected):
        Capacity(BUDGET).search(hold, hold, 50, 1000)


def test_a_late_generator_decides_nothing() -> None:
    """Where it was late and the budget was missed, nobody knows whose fault it was: tried again, then told."""
    found = Capacity(BUDGET)
    hold = target(100, valid=lambda rate: rate < 90)
    with pytest.raises(ResultError, match="could not keep up"):
        found.search(hold, hold, 50, 1000)
    assert [row["params"]["rate"] for row in found.rows] == [50, 100, 100]
    late_but_good = target(1000, valid=lambda _: False)
    found = Capacity(BUDGET)
    found.search(late_but_good, late_but_good, 50, 200)
    assert found.rate == 200


def test_a_sweep_goes_past_the_knee_and_no_further() -> None:
    rows = list(sweep(target(100), rising_rates(10, 1.5, 10_000), BUDGET))
    rates = [row["params"]["rate"] for row in rows]
    assert rates == [10, 15, 22.5, 33.8, 50.6, 75.9, 114, 171]
    assert knee(rows, BUDGET) == 75.9
    assert [past_knee(row, BUDGET) for row in rows] == [False] * 6 + [True] * 2
    assert knee(rows[-2:], BUDGET) is None


@pytest.mark.parametrize(
    ("p99", "share", "holds"),
    [(50.0, 1.0, True), (50.1, 1.0, False), (1.0, 0.999, True), (1.0, 0.99, False), (None, 0.0, False)],
)
def test_what_holds_a_budget(p99: float | None, share: float, holds: bool) -> None:
    assert holds_budget({"p99_ms": p99, "ok_share": share}, BUDGET) is holds


def test_a_trend_of_memory_and_latency() -> None:
    at = [float(second) for second in range(0, 100, 5)]
    row = {
        "server": {"pss_at_s": at, "pss_mib": [100 + max(0.0, each - 20) / 36 for each in at]},
        "timeline": {"p99_ms": [10.0] * 20 + [None] * 5 + [20.0] * 20},
    }
    found = trend(row)
    assert found["memory_mib_per_hour"] == pytest.approx(100)
    assert (found["p99_first_ms"], found["p99_last_ms"]) == (10, 20)
    short = trend({"server": {"pss_at_s": [], "pss_mib": []}, "timeline": {"p99_ms": [1.0]}})
    assert short["memory_mib_per_hour"] is None
    assert short["p99_first_ms"] is None
