from __future__ import annotations

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.loadtest.generator.record import BLOCKED, DEGRADED, OUTCOMES, UNSENT, Record
from recserve.loadtest.runs.figures import Happened, curve, figures, histogram, percentiles
from recserve.v1 import recommender_pb2 as pb

SECOND = 1_000_000_000


def recorded(latency_ms: list[float], outcomes: list[int] | None = None, *, late_ms: float = 0.0) -> Record:
    """A request every 10 ms from the start on."""
    record = Record.new(len(latency_ms))
    record.due[:] = SECOND + np.arange(len(latency_ms)) * 10_000_000
    record.sent[:] = record.due + int(late_ms * 1e6)
    record.done[:] = record.due + (np.array(latency_ms) * 1e6).astype(np.int64)
    record.outcome[:] = outcomes or 0
    return record


def of(*records: Record, warmup_s: float = 0.0, seconds: float = 1.0) -> dict:
    return figures(Happened.of(records, SECOND, warmup_s, seconds))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 100_000_000), min_size=1, max_size=200))
def test_percentiles_are_right_to_three_digits(microseconds: list[int]) -> None:
    found = percentiles(histogram(np.array(microseconds)))
    for name, percent in (("p50_ms", 50), ("p90_ms", 90), ("p99_ms", 99)):
        exact = sorted(microseconds)[max(int(percent / 100 * len(microseconds) + 0.5), 1) - 1] / 1000
        assert found[name] == pytest.approx(exact, rel=2e-3, abs=1e-3)
    assert found["max_ms"] == pytest.approx(max(microseconds) / 1000, rel=2e-3)


def test_the_histogram_can_be_read_by_others() -> None:
    found = of(recorded([1.0, 2.0, 3.0, 1000.0]))
    decoded = HdrHistogram.decode(found["histogram"])
    assert decoded.total_count == 4
    assert decoded.get_max_value() == pytest.approx(1_000_000, rel=1e-3)


def test_percentiles_are_over_all_outcomes_and_per_status() -> None:
    rejected, missed, lost = (
        OUTCOMES.index(name) for name in ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "connection lost")
    )
    found = of(
        recorded([10.0] * 90 + [1.0] * 5 + [500.0] * 4 + [2.0], [0] * 90 + [rejected] * 5 + [missed] * 4 + [lost])
    )
    assert found["max_ms"] == pytest.approx(500, rel=1e-3)
    assert found["p99_ms"] == pytest.approx(500, rel=1e-3)  # an answer that never came is no fast one
    assert found["outcomes"]["OK"]["p99_ms"] == pytest.approx(10, rel=1e-3)
    assert {name: each["group"] for name, each in found["outcomes"].items()} == {
        "OK": "ok",
        "RESOURCE_EXHAUSTED": "rejected",
        "DEADLINE_EXCEEDED": "missed",
        "connection lost": "failed",
    }
    assert sum(each["requests"] for each in found["outcomes"].values()) == found["runs"] == 100
    assert (found["ok_share"], found["requests_per_s"], found["offered_per_s"]) == (0.9, 90, 100)
    line = found["timeline"]
    assert [sum(line[name]) for name in ("ok", "rejected", "missed", "failed")] == [90, 5, 4, 1]


def test_latency_counts_from_when_a_request_was_due() -> None:
    found = of(recorded([50.0] * 100, late_ms=40.0))
    assert found["p50_ms"] == pytest.approx(50, rel=1e-3)
    assert found["lateness"]["p50_ms"] == pytest.approx(40, rel=1e-3)


def test_the_warm_up_does_not_count() -> None:
    found = of(recorded([900.0] * 50 + [1.0] * 50), warmup_s=0.5, seconds=0.5)
    assert found["runs"] == 50
    assert found["max_ms"] == pytest.approx(1, rel=1e-2)
    assert found["requests_per_s"] == 100


def test_what_was_due_after_the_window_does_not_count() -> None:
    record = recorded([1.0] * 100)
    record.outcome[52:] = UNSENT
    found = of(record, warmup_s=0.1, seconds=0.4)
    assert (found["runs"], found["offered_per_s"], found["problems"]) == (40, 100, [])


def test_several_records_are_one_run() -> None:
    found = of(recorded([1.0] * 100), recorded([3.0] * 100))
    assert found["runs"] == 200
    assert (found["p50_ms"], found["p90_ms"]) == (pytest.approx(1, rel=1e-2), pytest.approx(3, rel=1e-2))


@pytest.mark.parametrize(
    ("latency", "late", "valid"),
    [(5.0, 0.9, True), (5.0, 1.1, False), (100.0, 9.0, True), (100.0, 11.0, False)],
)
def test_when_a_run_counts(latency: float, late: float, valid: bool) -> None:
    """Lateness of up to 1 ms, or a tenth of the latency: both at the 99th percentile."""
    found = of(recorded([latency] * 100, late_ms=late))
    assert found["valid"] is valid
    assert bool(found["problems"]) is not valid


@pytest.mark.parametrize(("median", "valid"), [(30.0, False), (60.0, True)])
def test_a_run_counts_only_if_half_of_it_left_in_time(median: float, valid: bool) -> None:
    """A long tail does not excuse lateness of 5 ms in a median of 30 ms."""
    found = of(recorded([median] * 90 + [500.0] * 10, late_ms=5.0))
    assert found["valid"] is valid
    assert all("half of the requests left more than 5 ms late" in text for text in found["problems"])


def test_lateness_that_the_target_causes_is_not_the_generators() -> None:
    record = recorded([50.0] * 100, late_ms=40.0)
    record.flags[:] = BLOCKED
    found = of(record)
    assert found["valid"]
    assert found["blocked"] == 100


def test_requests_that_never_left_make_a_run_invalid() -> None:
    record = recorded([1.0] * 100)
    record.outcome[99:] = UNSENT
    found = of(record)
    assert not found["valid"]
    assert "1 of 100 requests never left" in found["problems"]
    assert found["offered_per_s"] == 100


def test_a_run_without_requests_has_no_percentiles() -> None:
    record = recorded([1.0])
    record.outcome[:] = UNSENT
    found = of(record)
    assert found["p50_ms"] is None
    assert found["curve"] == []
    assert not found["valid"]


def test_stage_times_are_sampled_from_good_answers() -> None:
    record = recorded([1.0] * 4, [0, 0, 8, 0])
    for place, micros in enumerate((1000, 3000, 9000)):
        message = pb.StageTimes(rank_us=micros, total_us=2 * micros).SerializeToString()
        record.times[place, 0] = len(message)
        record.times[place, 1 : 1 + len(message)] = np.frombuffer(message, np.uint8)
    record.flags[1] = DEGRADED
    found = of(record)
    assert found["stages"]["rank"] == {"mean_ms": 2.0, "p50_ms": 2.0, "p99_ms": 2.98, "answers": 2}
    assert found["stages"]["total"]["p50_ms"] == 4
    assert found["stages"]["other"] == found["stages"]["rank"], "what no stage accounts for: the other half"
    assert found["degraded"] == 1


@pytest.mark.parametrize(
    ("seconds", "windows"), [(0.5, 1), (1, 1), (2.4, 2), (2.5, 2), (3, 3), (59.9, 59), (60, 60), (61, 60), (130, 60)]
)
def test_windows_of_a_timeline_are_of_equal_length(seconds: float, windows: int) -> None:
    """A request every 10 ms: every bar of the chart stands for 100 a second."""
    found = of(recorded([1.0] * round(100 * seconds)), seconds=seconds)["timeline"]
    assert len(found["ok"]) == windows
    assert windows * found["step_s"] == pytest.approx(seconds)
    assert [requests / found["step_s"] for requests in found["ok"]] == pytest.approx([100] * windows, rel=0.011)
    assert sum(found["ok"]) == round(100 * seconds)


def test_a_curve_comes_ever_closer_to_100() -> None:
    points = curve(histogram(np.arange(1, 10_001)))
    shares = [share for share, _ in points]
    assert shares[0] == 0
    assert shares[-1] == 100
    assert sorted(shares) == shares
    assert 99.9 < shares[-2] < 100
    assert [value for _, value in points] == sorted(value for _, value in points)
