"""Figures of a run, from what happened to each of its requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from recserve.loadtest.generator.record import BLOCKED, DEGRADED, OK, OUTCOMES, Record
from recserve.v1 import recommender_pb2 as pb

PERCENTILES: Final = {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0, "p999_ms": 99.9}
STAGES: Final = ("queue", "state", "embed", "retrieve", "rank", "rerank", "total")
GROUPS: Final = ("ok", "rejected", "missed", "failed")
"""Of outcomes, in pictures and tables: answered; RESOURCE_EXHAUSTED; DEADLINE_EXCEEDED; everything else."""

MAX_LATENESS_MS: Final = 1.0
MAX_LATENESS_SHARE: Final = 0.1
MAX_UNSENT_SHARE: Final = 0.001
_LONGEST_US: Final = 200_000_000
_DIGITS: Final = 3
_WINDOWS: Final = 60
"""Of a timeline, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Happened:
    """What became of each request of the window, in the order of the schedule.

    Attributes:
        due_s: when it was due, seconds after the start.
        latency_us: from when it was due to its outcome, microseconds.
        late_us: from when it was due until it was handed to the system.
        outcome, flags: see Record.
        times: StageTimes of a share of the answers.
        unsent: requests that never left, as the run was stopped.
        messages: what the first request of each outcome was told.
        warmup_s, seconds: where the window begins, and how long it is.
    """

    due_s: NDArray[np.float64]
    latency_us: NDArray[np.int64]
    late_us: NDArray[np.int64]
    outcome: NDArray[np.int16]
    flags: NDArray[np.uint8]
    times: Sequence[pb.StageTimes]
    unsent: int
    messages: Mapping[str, str]
    warmup_s: float
    seconds: float

    @classmethod
    def of(cls, records: Sequence[Record], start_ns: int, warmup_s: float, seconds: float) -> Happened:
        """From the generators' records; what was due before or after the window is left out."""
        due = np.concatenate([each.due for each in records]) - start_ns
        order = np.argsort(due, kind="stable")
        late, latency, outcome, flags = (
            np.concatenate(parts)[order]
            for parts in zip(*((r.sent - r.due, r.done - r.due, r.outcome, r.flags) for r in records), strict=True)
        )
        due = due[order]
        inside = (due >= warmup_s * 1e9) & (due < (warmup_s + seconds) * 1e9)
        ended = inside & (outcome >= 0)
        return cls(
            due_s=due[ended] / 1e9,
            latency_us=np.maximum(latency[ended] // 1000, 0),
            late_us=np.maximum(late[ended] // 1000, 0),
            outcome=outcome[ended],
            flags=flags[ended],
            times=[times for each in records for times in _stage_times(each, start_ns + int(warmup_s * 1e9))],
            unsent=int((inside & ~ended).sum()),
            messages={name: text for each in records for name, text in each.messages().items()},
            warmup_s=warmup_s,
            seconds=seconds,
        )


def _stage_times(record: Record, from_ns: int) -> Iterator[pb.StageTimes]:
    sampled = slice(None, None, record.times_every)
    wanted = (record.outcome[sampled] == OK) & (record.due[sampled] >= from_ns) & (record.times[:, 0] > 0)
    for place in np.flatnonzero(wanted):
        size = int(record.times[place, 0])
        yield pb.StageTimes.FromString(record.times[place, 1 : size + 1].tobytes())


def figures(happened: Happened) -> dict[str, Any]:
    """All that a result file says of the requests of one run."""
    everything = histogram(happened.latency_us)
    ok = happened.outcome == OK
    lateness = _lateness(happened)
    problems = _problems(happened, lateness, everything)
    return {
        **percentiles(everything),
        "runs": int(happened.outcome.size),
        "requests_per_s": round(float(ok.sum()) / happened.seconds, 2),
        "offered_per_s": round((happened.outcome.size + happened.unsent) / happened.seconds, 2),
        "ok_share": round(float(ok.mean()), 6) if ok.size else 0.0,
        "valid": not problems,
        "problems": problems,
        "lateness": lateness,
        "outcomes": dict(_outcomes(happened)),
        "messages": dict(happened.messages),
        "degraded": int(((happened.flags & DEGRADED) > 0).sum()),
        "blocked": int(((happened.flags & BLOCKED) > 0).sum()),
        "stages": _stages(happened.times),
        "timeline": timeline(happened),
        "curve": curve(everything),
        "histogram": everything.encode().decode() if everything.total_count else "",
    }


def histogram(microseconds: NDArray[np.int64]) -> HdrHistogram:
    """An HdrHistogram of 3 digits, from 1 microsecond to 200 seconds."""
    filled = HdrHistogram(1, _LONGEST_US, _DIGITS)
    for value, count in zip(*np.unique(np.clip(microseconds, 1, _LONGEST_US), return_counts=True), strict=True):
        filled.record_value(int(value), int(count))
    return filled


def percentiles(filled: HdrHistogram) -> dict[str, float | None]:
    """p50, p90, p99, p99.9 and the largest, in milliseconds; None where there is nothing."""
    if not filled.total_count:
        return dict.fromkeys((*PERCENTILES, "max_ms"))
    found = {name: filled.get_value_at_percentile(percent) / 1000 for name, percent in PERCENTILES.items()}
    return {**found, "max_ms": filled.get_max_value() / 1000}


def curve(filled: HdrHistogram) -> list[tuple[float, float]]:
    """The distribution as (percentile, milliseconds), ever closer towards 100."""
    if not filled.total_count:
        return []
    steps = [1 - 10 ** -(step / 8) for step in range(49)]  # to 99.9999
    reached = [100 * share for share in steps if share <= 1 - 1 / filled.total_count]
    return [(round(each, 5), filled.get_value_at_percentile(each) / 1000) for each in (*reached, 100.0)]


def group_of(outcome: int) -> str:
    """The group of an outcome."""
    known = {OK: "ok", OUTCOMES.index("RESOURCE_EXHAUSTED"): "rejected", OUTCOMES.index("DEADLINE_EXCEEDED"): "missed"}
    return known.get(outcome, "failed")


def _outcomes(happened: Happened) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each status beside its own distribution: a fast refusal is no fast answer."""
    for number, count in zip(*np.unique(happened.outcome, return_counts=True), strict=True):
        mine = histogram(happened.latency_us[happened.outcome == number])
        share = round(int(count) / happened.outcome.size, 6)
        name = OUTCOMES[int(number)]
        yield name, {"group": group_of(int(number)), "requests": int(count), "share": share, **percentiles(mine)}


def _lateness(happened: Happened) -> dict[str, Any]:
    """The generator's own. Requests that the target's limits held back are not late by its fault."""
    own = histogram(happened.late_us[(happened.flags & BLOCKED) == 0])
    return percentiles(own)


def _problems(happened: Happened, lateness: Mapping[str, float | None], latencies: HdrHistogram) -> list[str]:
    """Why the run's figures cannot be trusted; empty: they can.

    Latencies count from when requests were due, so lateness is in them. A run counts when the p50 and the p99 of
    lateness are each at most 1 ms, or at most a tenth of the same percentile of latency, and when at most one request
    in a thousand never left.
    """
    problems = []
    total = happened.outcome.size + happened.unsent
    latency = percentiles(latencies)
    if (late := _late(lateness, latency, "p99_ms")) is not None:
        problems.append(_could_not_keep_up("1%", late))
    elif (late := _late(lateness, latency, "p50_ms")) is not None:
        problems.append(_could_not_keep_up("half", late))
    if happened.unsent > MAX_UNSENT_SHARE * total:
        problems.append(f"{happened.unsent:,} of {total:,} requests never left")
    if not happened.outcome.size:
        problems.append("no request was measured")
    return problems


def _late(lateness: Mapping[str, float | None], latency: Mapping[str, float | None], name: str) -> float | None:
    """Milliseconds of lateness at a percentile that is too late; None: it is not."""
    late, whole = lateness[name], latency[name]
    if late is None or whole is None or late <= max(MAX_LATENESS_MS, MAX_LATENESS_SHARE * whole):
        return None
    return late


def _could_not_keep_up(share: str, late_ms: float) -> str:
    return (
        f"the generator could not keep up: {share} of the requests left more than {late_ms:.3g} ms late; give it a "
        "core of its own (--generator-cores), or more processes (--processes) where one is too few for the rate"
    )


def _stages(times: Sequence[pb.StageTimes]) -> dict[str, dict[str, float]]:
    """The server's own times in milliseconds, over a share of the answers; "other" is what no stage accounts for."""
    if not times:
        return {}
    stages = {stage: np.array([getattr(each, f"{stage}_us") for each in times]) / 1000 for stage in STAGES}
    known = np.sum([values for stage, values in stages.items() if stage != "total"], axis=0)
    found = {}
    for stage, values in {**stages, "other": np.maximum(stages["total"] - known, 0)}.items():
        p50, p99 = np.percentile(values, (50, 99))
        found[stage] = {
            "mean_ms": round(float(values.mean()), 4),
            "p50_ms": round(float(p50), 4),
            "p99_ms": round(float(p99), 4),
            "answers": len(times),
        }
    return found


def timeline(happened: Happened) -> dict[str, Any]:
    """Outcomes and latencies by when requests were due, in up to 60 equal windows of at least a second, or in one."""
    count = int(np.clip(happened.seconds, 1, _WINDOWS))
    step = happened.seconds / count
    window = np.clip(((happened.due_s - happened.warmup_s) / step).astype(int), 0, count - 1)
    groups = np.array([GROUPS.index(group_of(each)) for each in range(len(OUTCOMES))])[happened.outcome]
    rows: dict[str, Any] = {"step_s": step, "from_s": happened.warmup_s}
    for place, name in enumerate(GROUPS):
        rows[name] = np.bincount(window[groups == place], minlength=count).tolist()
    for name, percent in (("p50_ms", 50), ("p99_ms", 99)):
        parts = (happened.latency_us[window == each] for each in range(count))
        rows[name] = [round(float(np.percentile(part, percent)) / 1000, 3) if part.size else None for part in parts]
    return rows
