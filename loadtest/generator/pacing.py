"""When requests leave. A schedule is made before the run and knows nothing of answers: that is what open loop means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from recserve.server.bundle.errors import RecserveError

Pattern = Literal["poisson", "constant", "replay"]

MAX_REQUESTS: Final = 50_000_000
"""Of one run: its record takes about 40 bytes each."""


class ScheduleError(RecserveError):
    """A schedule cannot be made as asked."""


def arrivals(
    pattern: Pattern, rate: float, seconds: float, *, seed: int = 1, recorded: Sequence[float] = ()
) -> NDArray[np.int64]:
    """When each request is due: nanoseconds after the start, ascending, each at least 0 and below `seconds`.

    Args:
        pattern: "poisson": gaps are exponential and independent, as of many users who know nothing of one another.
            "constant": all gaps are equal. "replay": as `recorded`.
        rate: requests a second; for "replay" the recorded gaps are stretched to it, and 0 leaves them.
        seconds: how long requests leave.
        seed: of "poisson".
        recorded: seconds at which requests came in, ascending; the first begins the replay.

    Raises:
        ScheduleError: nothing would be sent, far too much would, or the recording is not ascending.
    """
    if not 0 < seconds < np.inf or not 0 <= rate < np.inf or (rate == 0 and pattern != "replay"):
        raise ScheduleError(f"rate and seconds must be positive numbers, found {rate:g} requests/s for {seconds:g} s")
    if rate * seconds > MAX_REQUESTS:
        raise ScheduleError(f"{rate:g} requests/s for {seconds:g} s are more than {MAX_REQUESTS:,} requests")
    match pattern:
        case "poisson":
            times = _poisson(rate, seconds, seed)
        case "constant":
            times = np.arange(np.ceil(rate * seconds)) / rate
        case "replay":
            times = _replay(recorded, rate)
    due = (times[times < seconds] * 1e9).astype(np.int64)
    if due.size == 0:
        raise ScheduleError(f"no request would leave within {seconds:g} s at {rate:g} requests/s")
    return due


def _poisson(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Enough gaps to pass the end: ten standard deviations more than are expected."""
    expected = rate * seconds
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(expected + 10 * np.sqrt(expected) + 10))
    times: NDArray[np.float64] = np.cumsum(gaps)
    return times


def replay_seconds(recorded: Sequence[float], rate: float) -> float:
    """How long a replay takes that nothing ends before: its gaps, and a mean one behind the last request.

    With it, the requests by the seconds are the rate. What is recorded at one instant has no length, and no end.
    """
    if rate:
        return len(recorded) / rate
    took = recorded[-1] - recorded[0]
    return took * len(recorded) / (len(recorded) - 1) if took else np.inf


def _replay(recorded: Sequence[float], rate: float) -> NDArray[np.float64]:
    times: NDArray[np.float64] = np.asarray(recorded, np.float64)
    if times.size == 0 or not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise ScheduleError("a recording must be a list of seconds, ascending")
    times = times - times[0]
    if not rate:
        return times
    if times[-1] == 0:
        raise ScheduleError(f"a recording of one instant cannot be stretched to {rate:g} requests/s")
    times *= (times.size - 1) / times[-1] / rate
    return times


def read_recording(path: Path) -> list[float]:
    """Seconds at which requests came in: one number a line, lines that begin with # are passed over.

    Raises:
        ScheduleError: the file cannot be read, or a line is no number; the message names the line.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ScheduleError(f"{path}: cannot be read: {error}") from error
    times = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            try:
                times.append(float(line))
            except ValueError:
                raise ScheduleError(f"{path}:{number}: expected seconds, found {line[:40]!r}") from None
    return times
