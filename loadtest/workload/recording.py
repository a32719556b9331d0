"""The recording of a replay, checked as a whole before anything is started."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

from recserve.loadtest.generator.pacing import ScheduleError, read_recording


def load_recording(path: Path) -> list[float]:
    """Seconds at which requests came in; see pacing.read_recording.

    Raises:
        ScheduleError: the file cannot be read, has no times, or they are not ascending numbers; the message names the
            first that is wrong.
    """
    times = read_recording(path)
    if not times:
        raise ScheduleError(f"{path}: has no times; expected seconds at which requests came in, one a line")
    for number, time in enumerate(times, 1):
        if not math.isfinite(time):
            raise ScheduleError(f"{path}: time no. {number} is {time:g}; expected seconds")
    for number, (before, time) in enumerate(pairwise(times), 2):
        if time < before:
            raise ScheduleError(
                f"{path}: time no. {number}, {time:.15g} s, is before no. {number - 1}, {before:.15g} s; expected them "
                "ascending: sort -g sorts them"
            )
    return times
