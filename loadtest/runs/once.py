"""One run: a rate, held for a time against a target."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from recserve.loadtest.generator.pacing import MAX_REQUESTS, arrivals, replay_seconds
from recserve.loadtest.generator.process import Ended, Generators, Load
from recserve.loadtest.generator.record import UNSENT
from recserve.loadtest.runs.figures import Happened, figures
from recserve.loadtest.runs.target import Target
from recserve.loadtest.runs.watch import Usage, Watch
from recserve.loadtest.workload.recording import load_recording
from recserve.loadtest.workload.requests import Message, serialise, serialise_json, turned
from recserve.loadtest.workload.scenario import Scenario

TICK_SECONDS: Final = 0.25
SAMPLES: Final = 4000
"""Answers of a run whose stage times are read, about."""
CLOSED_REQUESTS_PER_S: Final = 50_000
"""Room for the requests of a closed loop, whose number nobody knows beforehand."""
LEAST_SECONDS: Final = 1e-3
"""Of a window: a run that ends in its warm-up has none, and no rate is divided by nothing."""

Row = dict[str, Any]
"""One entry of a result file's `results`."""
Progress = Callable[[str], None]


class RunCutShort(Exception):  # noqa: N818  it brings a result
    """A run ended before its time; `row` has what was measured until then.

    Args:
        row: of the run.
        reason: why, in words.
        interrupted: by Ctrl-C; else the target went away, or a generator broke down.
    """

    def __init__(self, row: Row, reason: str, *, interrupted: bool) -> None:
        super().__init__(reason)
        self.row = row
        self.interrupted = interrupted


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all runs of a command share.

    Attributes:
        name: of what is measured, in results.
        target: to be measured.
        scenario, messages: what is asked; see workload.requests.
        warmup_s: at the start of each run, which does not count.
        connections, processes, generator_cores, realtime: of the generator; see Load.
        seed: of the first schedule; repetitions have others.
    """

    name: str
    target: Target
    scenario: Scenario
    messages: Sequence[tuple[int, Message]]
    warmup_s: float = 1.0
    connections: int = 4
    processes: int = 1
    generator_cores: Sequence[int] = ()
    realtime: bool = False
    seed: int = 1


def run_once(
    setup: Setup, rate: float, seconds: float, *, repeat: int = 1, before: int = 0, tell: Progress = lambda _: None
) -> Row:
    """Hold a rate and say what came of it.

    Args:
        setup: what is measured, and how.
        rate: requests a second; 0: as recorded ("replay"), and the row has the mean.
        seconds: that count, behind the warm-up.
        repeat: number of the repetition, from 1.
        before: requests that runs before this one have sent: it goes on behind them, lest what the target keeps of
            answers make it look better than those.
        tell: told how it goes.

    Raises:
        RunCutShort: by Ctrl-C, or because the target went away or a generator broke down.
    """
    pattern, times = setup.scenario.arrivals.pattern, setup.scenario.arrivals.times
    recorded = load_recording(times) if times is not None else ()
    whole = setup.warmup_s + seconds
    due = arrivals(pattern, rate, whole, seed=setup.seed + repeat - 1, recorded=recorded)
    window = min(seconds, replay_seconds(recorded, rate) - setup.warmup_s) if pattern == "replay" else seconds
    every = max(1, len(due) // SAMPLES)
    load = _load(setup, len(due), before, times_every=every)
    params = {"arrivals": pattern, "rate": rate or _mean_rate(due, whole), "seconds": seconds, "repeat": repeat}
    return _measure(setup, load, due, params, window, tell)


def saturate(
    setup: Setup, outstanding: int, seconds: float, *, before: int = 0, tell: Progress = lambda _: None
) -> Row:
    """Keep requests under way for a time: a closed loop, without deadlines, where only the rate means anything.

    Args:
        setup: what is measured, and how; one process is used.
        outstanding: requests under way.
        seconds: that count, behind the warm-up.
        before: as in run_once.
        tell: told how it goes.

    Raises:
        RunCutShort: as run_once.
    """
    whole = setup.warmup_s + seconds
    count = min(MAX_REQUESTS, int(CLOSED_REQUESTS_PER_S * whole))
    load = _load(setup, count, before, times_every=1000, outstanding=outstanding, seconds=whole)
    params = {"arrivals": "closed", "outstanding": outstanding, "seconds": seconds}
    row = _measure(setup, load, np.zeros(count, np.int64), params, seconds, tell)
    # Latencies of a closed loop are the generator's own waiting; so are those of every part of it.
    hidden = ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms", "curve", "histogram", "timeline", "lateness")
    return {name: None if name in hidden[:5] else value for name, value in row.items() if name not in hidden[5:]}


def _mean_rate(due: np.ndarray, seconds: float) -> float:
    """Of a replay as recorded: gaps by the time that they take together, as it is stretched to a rate."""
    took = float(due[-1]) / 1e9
    return float(f"{(len(due) - 1) / took if took else len(due) / seconds:.4g}")


def _load(
    setup: Setup, count: int, before: int, *, times_every: int, outstanding: int = 0, seconds: float = 0.0
) -> Load:
    target, messages = setup.target, turned(setup.messages, before)
    if target.protocol == "http":
        requests = serialise_json(setup.scenario, messages, count)
    else:
        requests = serialise(setup.scenario, messages, count, authority=target.address, deadlines=not outstanding)
    return Load(
        host=target.host,
        port=target.port,
        protocol=target.protocol,
        requests=requests,
        connections=setup.connections,
        processes=1 if outstanding else min(setup.processes, count),
        cores=setup.generator_cores,
        realtime=setup.realtime,
        times_every=times_every,
        outstanding=outstanding,
        seconds=seconds,
    )


def _measure(setup: Setup, load: Load, due: np.ndarray, params: dict[str, Any], window_s: float, tell: Progress) -> Row:
    """Let the generators work, and say what came of it in the window of that many seconds behind the warm-up."""
    with Generators(load, due) as generators:
        watch = Watch(setup.target.pid)
        watch.read()  # before anything is due, however long it takes
        generators.start()
        stopped_s = _until_over(generators, watch, tell)
        start_s, over_s = generators.start_ns / 1e9, generators.elapsed_s
        watch.read(last=True)
        ends = generators.ended()
        reason = "interrupted" if stopped_s is not None else _failure(ends)
        if reason:  # what was due later was never meant to be sent any more
            window_s = min(window_s, (over_s if stopped_s is None else stopped_s) - setup.warmup_s)
        happened = Happened.of(generators.records, generators.start_ns, setup.warmup_s, max(window_s, LEAST_SECONDS))
        if load.outstanding:  # nor was the room that was left over
            happened = replace(happened, unsent=0)
        row = {
            "name": setup.name,
            "params": params,
            **figures(happened),
            "cpu_ms_per_request": _cpu_per_request(watch.usage, happened, start_s, over_s),
            "server": watch.usage.row(start_s),
            "generator": {
                "processes": load.processes,
                "cpu_s": round(sum(each.cpu_s for each in ends), 3),
                "requests": sum(int((each.outcome != UNSENT).sum()) for each in generators.records),
            },
        }
    if reason:
        cut = {**row, "valid": False, "problems": [*row["problems"], f"cut short: {reason}"]}
        raise RunCutShort(cut, reason, interrupted=stopped_s is not None)
    return row


def _until_over(generators: Generators, watch: Watch, tell: Progress) -> float | None:
    """Wait for the generators, which Ctrl-C stops: when it did, in seconds after the start; None: it did not."""
    stopped_s: float | None = None
    while generators.running:
        try:
            time.sleep(TICK_SECONDS)
            watch.read()
            tell(_progress(generators))
        except KeyboardInterrupt:
            if stopped_s is not None:
                raise
            stopped_s = generators.elapsed_s
            tell("stopping: what is under way is waited for; Ctrl-C again gives it up")
            generators.stop()
    return stopped_s


def _failure(ends: Sequence[Ended]) -> str:
    """Why generators ended before their time; empty: none did."""
    for each in ends:
        if each.end == "broken":
            return each.error
        if each.end == "gone":
            return f"the target went away: {each.error}"
    return ""


def _progress(generators: Generators) -> str:
    outcomes = np.concatenate([each.outcome for each in generators.records])
    ended = int((outcomes >= 0).sum())
    good = int((outcomes == 0).sum())
    return f"{ended:,} of {outcomes.size:,} requests have ended, {ended - good:,} of them without a good answer"


def _cpu_per_request(usage: Usage, happened: Happened, start_s: float, over_s: float) -> float | None:
    """The server's CPU time for each request of the window, however it ended; None: it is not known for all of it.

    Args:
        usage: of the server.
        happened: to the requests.
        start_s: of the run, by time.monotonic.
        over_s: when the last request had ended, seconds after the start. That may be before the window's end, for which
            nobody reads on.
    """
    end_s = min(happened.warmup_s + happened.seconds, over_s)
    used = usage.cpu_between(start_s + happened.warmup_s, start_s + end_s)
    if used is None or not happened.outcome.size:
        return None
    return round(1000 * used / happened.outcome.size, 4)
