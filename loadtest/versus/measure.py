"""Services in turns on one core: saturation, and latency at light load."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from hdrh.histogram import HdrHistogram

from recserve.loadtest.generator.process import Protocol
from recserve.loadtest.runs.figures import percentiles
from recserve.loadtest.runs.once import Row, Setup, run_once, saturate
from recserve.loadtest.runs.search import OK_SHARE
from recserve.loadtest.runs.target import Target, started
from recserve.loadtest.versus.quality import lists, overlap
from recserve.loadtest.workload.requests import Message
from recserve.loadtest.workload.scenario import Scenario
from recserve.v1 import recommender_pb2 as pb

OWN: Final = "recserve"
BASELINES: Final[Mapping[str, tuple[str, Protocol]]] = {
    "grpc.aio": ("recserve.loadtest.baselines.grpc_server", "grpc"),
    "fastapi": ("recserve.loadtest.baselines.http_server", "http"),
}
"""Module and protocol of each server of the straightforward service."""
_KEPT: Final = ("name", "params", "requests_per_s", "p50_ms", "p99_ms", "cpu_ms_per_request", "ok_share", "valid")
"""Of a turn, in a result file."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured, and how long.

    Attributes:
        config: of the server.
        index: file of the straightforward service's index; None: it searches exactly.
        baselines: names of BASELINES.
        scenario, messages: what is asked.
        outstanding: requests under way at saturation, and connections.
        rounds: every service has its turn in each.
        seconds, light_seconds, light_rate: of a turn at saturation, and of one at light load, with its rate.
        warmup_s: before each.
        compared: lists that are asked of every service, to be compared.
        server_core, generator_core: where services and their clients run.
        realtime: of the generator; see Load.
    """

    config: Path
    index: Path | None
    baselines: Sequence[str]
    scenario: Scenario
    messages: Sequence[tuple[int, Message]]
    outstanding: int
    rounds: int
    seconds: float
    light_seconds: float
    light_rate: float
    warmup_s: float
    compared: int
    server_core: int
    generator_core: int
    realtime: bool


@dataclass(slots=True)
class Measured:
    """What there is so far, by service.

    Attributes:
        saturated, light: rows of its turns.
        overlaps: of the compared lists with ours.
    """

    saturated: dict[str, list[Row]] = field(default_factory=dict)
    light: dict[str, list[Row]] = field(default_factory=dict)
    overlaps: dict[str, float] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """How many are complete."""
        return min((len(rows) for rows in self.light.values()), default=0)


def measure(plan: Plan, measured: Measured, tell: Tell) -> None:
    """Start every service, compare their lists, and let them take turns.

    Args:
        plan: what to do.
        measured: filled while it happens, so that an interrupted comparison has what it has.
        tell: told what happens.

    Raises:
        TargetError: a service does not start or does not answer.
        RunCutShort: by Ctrl-C, or because a service went away.
    """
    with _services(plan, tell) as targets:
        tell(f"comparing {plan.compared} lists")
        asked = [each for _, each in plan.messages[: plan.compared] if isinstance(each, pb.RecommendRequest)]
        found = {name: lists(target, asked) for name, target in targets.items()}
        measured.overlaps = {name: overlap(found[OWN], theirs) for name, theirs in found.items()}
        measured.saturated = {name: [] for name in targets}
        measured.light = {name: [] for name in targets}
        names = list(targets)
        for turn in range(plan.rounds):
            for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
                _take_turn(plan, _setup(plan, name, targets[name]), turn + 1, measured, tell)


def _take_turn(plan: Plan, setup: Setup, number: int, measured: Measured, tell: Tell) -> None:
    say = _prefixed(tell, f"round {number} of {plan.rounds}, {setup.name}")
    saturated = saturate(setup, plan.outstanding, plan.seconds, tell=say)
    light = run_once(setup, plan.light_rate, plan.light_seconds, repeat=number, tell=say)
    measured.saturated[setup.name].append(saturated)
    measured.light[setup.name].append(light)


def _prefixed(tell: Tell, what: str) -> Tell:
    return lambda text: tell(f"{what}: {text}")


@contextlib.contextmanager
def _services(plan: Plan, tell: Tell) -> Iterator[dict[str, Target]]:
    """All of them, started one after the other."""
    own = ("recserve.server.cli", "serve", "--config", str(plan.config), "--host", "127.0.0.1", "--port", "0")
    options = ("--config", str(plan.config), *(() if plan.index is None else ("--index", str(plan.index))))
    with contextlib.ExitStack() as stack:
        targets = {}
        for name in (OWN, *plan.baselines):
            tell(f"starting {name}")
            module, protocol = (own, "grpc") if name == OWN else ((BASELINES[name][0], *options), BASELINES[name][1])
            targets[name] = stack.enter_context(started(module, (plan.server_core,), protocol))
        yield targets


def _setup(plan: Plan, name: str, target: Target) -> Setup:
    return Setup(
        name=name,
        target=target,
        scenario=plan.scenario,
        messages=plan.messages,
        warmup_s=plan.warmup_s,
        connections=plan.outstanding,
        generator_cores=(plan.generator_core,),
        realtime=plan.realtime,
    )


# --------------------------------------------------------------------------------------------------------- results


def summaries(plan: Plan, measured: Measured, recalls: Mapping[str, float]) -> list[Row]:
    """A row for each service, over the rounds that are complete.

    Args:
        plan: what was done.
        measured: what came of it; at least one round is complete.
        recalls: of the index of each service.
    """
    rounds = measured.rounds
    rates = {name: [row["requests_per_s"] for row in rows[:rounds]] for name, rows in measured.saturated.items()}
    return [_summary(plan, measured, name, rates, recalls[name]) for name in rates]


def _summary(plan: Plan, measured: Measured, name: str, rates: Mapping[str, Sequence[float]], recall: float) -> Row:
    rounds = measured.rounds
    saturated, light = measured.saturated[name][:rounds], measured.light[name][:rounds]
    latencies = _together(light)
    return {
        "name": name,
        "params": {
            "outstanding": plan.outstanding,
            "seconds": plan.seconds,
            "rounds": rounds,
            "light_rate": plan.light_rate,
            "light_seconds": plan.light_seconds,
        },
        **{figure: value for figure, value in percentiles(latencies).items() if figure in ("p50_ms", "p99_ms")},
        "runs": latencies.total_count,
        "requests_per_s": round(float(np.median(rates[name])), 2),
        "cpu_ms_per_request": _cpu_ms(saturated),
        "light_cpu_ms_per_request": _cpu_ms(light),
        "memory_mib": max(row["server"]["pss_mib"][-1] for row in light),
        "ok_share": min(row["ok_share"] for row in (*saturated, *light)),
        "recall": round(recall, 4),
        "overlap": round(measured.overlaps[name], 4),
        **(_ratios(measured, rates) if name == OWN and len(rates) > 1 else {}),
    }


def _together(rows: Sequence[Row]) -> HdrHistogram:
    """The latencies of several runs."""
    first, *others = (HdrHistogram.decode(row["histogram"]) for row in rows)
    for each in others:
        first.add(each)
    return first


def _cpu_ms(rows: Sequence[Row]) -> float | None:
    """The median of the turns that know it; None: there is none."""
    known = [row["cpu_ms_per_request"] for row in rows if row["cpu_ms_per_request"] is not None]
    return round(float(np.median(known)), 4) if known else None


def _cpu_ratio(ours: float | None, others: Sequence[float | None]) -> float | None:
    """The least of the others by ours; None where one is not known."""
    known = [each for each in others if each is not None]
    return round(min(known) / ours, 2) if ours and len(known) == len(others) else None


def _ratios(measured: Measured, rates: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Ours by the others: saturation, in the same round; and what machines with other work change less, CPU time."""
    ours = np.array(rates[OWN])
    by_round = {name: ours / np.array(values) for name, values in rates.items() if name != OWN}
    to_better = np.minimum.reduce(list(by_round.values()))
    cpu = {name: _cpu_ms(rows[: measured.rounds]) for name, rows in measured.saturated.items()}
    own_cpu = cpu.pop(OWN)
    return {
        "ratio_to": {name: round(float(np.median(ratios)), 2) for name, ratios in by_round.items()},
        "ratio_to_better": round(float(np.median(to_better)), 2),
        "ratio_range": [round(float(to_better.min()), 2), round(float(to_better.max()), 2)],
        "cpu_ratio_to_better": _cpu_ratio(own_cpu, [*cpu.values()]),
    }


def turns(measured: Measured) -> list[Row]:
    """The main figures of every turn."""
    return [
        {"round": number, **{name: row[name] for name in _KEPT}}
        for group in (measured.saturated, measured.light)
        for rows in group.values()
        for number, row in enumerate(rows, 1)
    ]


def problems(measured: Measured) -> list[str]:
    """Why figures cannot be trusted as they are; empty: they can."""
    found = []
    for group in (measured.saturated, measured.light):
        for name, rows in group.items():
            for number, row in enumerate(rows, 1):
                found += [f"{name}, round {number}: {text}" for text in row["problems"]]
                if row["ok_share"] < OK_SHARE:
                    found.append(f"{name}, round {number}: only {row['ok_share']:.2%} of the answers were good")
    return found
