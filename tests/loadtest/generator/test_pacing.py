from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recserve.loadtest.generator.pacing import ScheduleError, arrivals, read_recording, replay_seconds


@pytest.mark.parametrize(
    ("what", "pattern", "rate", "seconds", "recorded", "milliseconds"),
    [
        ("constant gaps begin at once and end before the end", "constant", 4, 1, (), [0, 250, 500, 750]),
        ("the end itself is left out", "constant", 2, 1.5, (), [0, 500, 1000]),
        ("a rate below one a second", "constant", 0.5, 5, (), [0, 2000, 4000]),
        ("less than one gap: the first request alone", "constant", 1, 0.1, (), [0]),
        ("a fraction of the last gap holds no request", "constant", 3, 0.9, (), [0, 333.333333, 666.666666]),
        ("a replay counts from its first instant", "replay", 0, 10, (7.0, 7.5, 9.0), [0, 500, 2000]),
        ("a replay is cut where the run ends", "replay", 0, 1, (0.0, 0.9, 1.0, 5.0), [0, 900]),
        ("a replay is stretched to a rate", "replay", 1, 10, (0.0, 0.1, 0.2), [0, 1000, 2000]),
        ("requests may come together", "replay", 0, 1, (1.0, 1.0, 1.0), [0, 0, 0]),
    ],
)
def test_when_requests_leave(
    what: str, pattern: str, rate: float, seconds: float, recorded: tuple[float, ...], milliseconds: list[float]
) -> None:
    due = arrivals(pattern, rate, seconds, recorded=recorded)  # type: ignore[arg-type]
    assert due.dtype == np.int64
    assert (due / 1e6).tolist() == pytest.approx(milliseconds, abs=1e-6), what


def test_poisson_gaps_are_exponential_and_independent() -> None:
    due = arrivals("poisson", 1000, 60, seed=5)
    gaps = np.diff(due) / 1e9
    assert len(due) == pytest.approx(60_000, rel=0.02)
    assert gaps.mean() == pytest.approx(1e-3, rel=0.02)
    assert gaps.std() == pytest.approx(1e-3, rel=0.02)  # an exponential's deviation is its mean
    assert np.quantile(gaps, 0.9) == pytest.approx(np.log(10) * 1e-3, rel=0.03)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.02
    counts = np.bincount((due // 10**9).astype(int))
    assert counts.var() == pytest.approx(counts.mean(), rel=0.5)  # a Poisson count's variance is its mean
    assert due[-1] < 60e9
    assert (np.diff(due) >= 0).all()


def test_poisson_is_seeded() -> None:
    assert arrivals("poisson", 50, 3, seed=1).tolist() == arrivals("poisson", 50, 3, seed=1).tolist()
    assert arrivals("poisson", 50, 3, seed=1).tolist() != arrivals("poisson", 50, 3, seed=2).tolist()


@pytest.mark.parametrize(
    ("pattern", "rate", "seconds", "recorded", "message"),
    [
        ("poisson", 0, 1, (), "positive"),
        ("constant", -1, 1, (), "positive"),
        ("constant", 10, float("inf"), (), "positive"),
        ("constant", float("nan"), 1, (), "positive"),
        ("constant", 1e6, 1e6, (), "more than 50,000,000"),
        ("replay", 0, 1, (), "ascending"),
        ("replay", 0, 1, (1.0, 0.5), "ascending"),
        ("replay", 0, 1, (0.0, float("nan")), "ascending"),
        ("replay", 5, 1, (2.0, 2.0), "cannot be stretched"),
        ("poisson", 1e-9, 1, (), "no request would leave"),
    ],
)
def test_what_cannot_be_scheduled(
    pattern: str, rate: float, seconds: float, recorded: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ScheduleError, match=message):
        arrivals(pattern, rate, seconds, recorded=recorded)  # type: ignore[arg-type]


def test_a_recording_is_read(tmp_path: Path) -> None:
    path = tmp_path / "times.txt"
    path.write_text("# of Monday\n0\n0.25\n\n1e1\n")
    assert read_recording(path) == [0, 0.25, 10]
    path.write_text("0\nsoon\n")
    with pytest.raises(ScheduleError, match=r"times.txt:2: expected seconds, found 'soon'"):
        read_recording(path)
    with pytest.raises(ScheduleError, match="cannot be read"):
        read_recording(tmp_path / "absent.txt")


@pytest.mark.parametrize(
    ("recorded", "rate", "seconds"),
    [
        ((7.0, 8.0, 9.0), 0, 3),
        ((7.0, 8.0, 9.0), 0.5, 6),
        ((1.0, 1.0), 0, np.inf),
        ((1.0,), 0, np.inf),
        ((1.0,), 2, 0.5),
    ],
)
def test_how_long_a_replay_takes(recorded: tuple[float, ...], rate: float, seconds: float) -> None:
    assert replay_seconds(recorded, rate) == seconds
