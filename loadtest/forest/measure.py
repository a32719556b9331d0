"""Measures forests: trains them, opens the engines, lets them take turns, and compares what they answer.

    recipe ─ LightGBM's model file ─┬─ ours: each CPU variant, each way to ask ─┐
                                    └─ others: LightGBM, TL2cgen, …  ───────────┴─ turns ─ times, bits ─ measurements

All engines answer the same requests on one core.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lightgbm
import numpy as np
from numpy.typing import NDArray

from recserve.exporters.forest import compile_forest
from recserve.exporters.lightgbm_text import parse_forest
from recserve.kernels.forest import CPU_VARIANTS, Forest
from recserve.loadtest.forest.command import SLOW
from recserve.loadtest.forest.engines import (
    BASELINE,
    OTHERS,
    OWN,
    Effort,
    Engine,
    EngineUnavailableError,
    measure_effort,
)
from recserve.loadtest.forest.recipe import Marketplace, Recipe, request_split_share, train
from recserve.loadtest.forest.runners import Job, LocalRunner, Runner, Times, own_runners
from recserve.loadtest.results import Measurement

TURN_SECONDS: Final = 0.01
MIN_ROUNDS: Final = 7
RATIOS_TO: Final = {"lightgbm": "LightGBM", "lleaves": "lleaves"}
"""Engines whose times are given as multiples of every engine's, with their names in the results.

Ratios are of the processor's time: the clock is unfair to slow engines, whose calls are interrupted more often.
"""
MAIN_WAYS: Final = ("predict", "request")
"""Measured with every CPU variant; all ways to ask are measured with the widest."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What to measure.

    Attributes:
        trees, leaves: each number of trees with each number of leaves makes a forest.
        rows: candidates of a call.
        engines: names of engines.OTHERS; BASELINE takes part in any case.
        slow_leaves: numbers of leaves with which SLOW takes part, if it is among the engines.
        seconds: to spend on each forest and number of rows; never less than MIN_ROUNDS rounds of turns.
        groups, seed: as in Recipe.
        models: folder that keeps trained and compiled models.
    """

    trees: Sequence[int]
    leaves: Sequence[int]
    rows: Sequence[int]
    engines: Sequence[str]
    slow_leaves: Sequence[int]
    seconds: float
    groups: int
    seed: int
    models: Path


def measure_forests(work: Work, tell: Tell) -> Iterator[Measurement]:
    """Measure all engines on all forests.

    Args:
        work: what to measure.
        tell: told what is going on.

    Yields:
        for each forest: how its compilation went, the engines that are left out, then times by rows and engine.
    """
    for leaves in work.leaves:
        tell(f"training forests of {leaves} leaves, unless {work.models} has them")
        recipe = Recipe(leaves=leaves, groups=work.groups, seed=work.seed)
        for trees, model in train(recipe, work.trees, work.models).items():
            yield from _measure_forest(work, {"trees": trees, "leaves": leaves}, model, tell)


def _measure_forest(work: Work, params: Mapping[str, int], model: Path, tell: Tell) -> Iterator[Measurement]:
    yield _compilation(params, model)
    market, others = Marketplace(work.seed), []
    for name in dict.fromkeys((BASELINE, *work.engines)):
        tell(f"opening {name}: {params['trees']} trees of {params['leaves']} leaves")
        try:
            engine = _open(work, name, params["leaves"], model)
        except EngineUnavailableError as error:
            yield Measurement(name=name, params=params, milliseconds=(), extra={"skipped": str(error)})
            continue
        others.append(LocalRunner(engine, market))
        if engine.compilation is not None:
            yield _compiled(engine.name, {**params, **engine.params}, engine.compilation)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_one_core())
        ours: list[Runner] = []
        for variant in CPU_VARIANTS:
            ways = tuple(OWN) if variant == CPU_VARIANTS[-1] else MAIN_WAYS
            ours += stack.enter_context(own_runners(variant, Job(model=model, seed=work.seed, ways=ways)))
        for rows in work.rows:
            tell(f"timing {params['trees']} trees of {params['leaves']} leaves, {rows} rows")
            runners = [each for each in (*ours, *others) if each.max_rows is None or rows <= each.max_rows]
            yield from _measure_rows(work, {**params, "rows": rows}, runners)


def _open(work: Work, name: str, leaves: int, model: Path) -> Engine:
    if name == SLOW and leaves not in work.slow_leaves:
        raise EngineUnavailableError(f"it compiles for minutes; --slow-engines {leaves} asks for it")
    return OTHERS[name](model)


def _measure_rows(work: Work, params: Mapping[str, int], runners: Sequence[Runner]) -> Iterator[Measurement]:
    margins = [runner.prepare(params["rows"]) for runner in runners]
    times = _take_turns(runners, work.seconds, np.random.default_rng(work.seed))
    by_name = {runner.name: number for number, runner in enumerate(runners)}
    expected = margins[by_name[RATIOS_TO["lightgbm"]]]
    references = {ratio: times[by_name[name]] for ratio, name in RATIOS_TO.items() if name in by_name}
    for runner, found, own in zip(runners, margins, times, strict=True):
        ratios = {f"ratio_to_{name}": np.median(other.cpu) / np.median(own.cpu) for name, other in references.items()}
        yield Measurement(
            name=runner.name,
            params={**params, **runner.params},
            milliseconds=own.wall,
            extra={
                "cpu_p50_ms": round(float(np.median(own.cpu)), 5),
                "cpu_min_ms": round(min(own.cpu), 5),
                **{name: round(float(ratio), 2) for name, ratio in ratios.items()},
                **equality(found, expected),
            },
        )


def _take_turns(runners: Sequence[Runner], seconds: float, random: np.random.Generator) -> list[Times]:
    """Rounds of turns, each in another order."""
    times = [Times() for _ in runners]
    end = time.monotonic() + seconds
    rounds = 0
    while rounds < MIN_ROUNDS or time.monotonic() < end:
        for number in random.permutation(len(runners)):
            times[number].add(runners[number].turn(TURN_SECONDS))
        rounds += 1
    return times


def equality(found: NDArray[np.float64], expected: NDArray[np.float64]) -> dict[str, int | float]:
    """How many margins have other bits than LightGBM's, and by how much the worst differs."""
    return {
        "scores": len(expected),
        "mismatches": int((found.view(np.uint64) != expected.view(np.uint64)).sum()),
        "max_difference": float(f"{np.abs(found - expected).max(initial=0.0):.1e}"),
    }


def _compilation(params: Mapping[str, int], model: Path) -> Measurement:
    """Compile the forest for our engine and map it; what it is made of."""
    booster = lightgbm.Booster(model_file=model)
    forest, effort = measure_effort(lambda: compile_forest(booster))
    with tempfile.TemporaryDirectory() as folder:
        forest.save(Path(folder) / "forest")
        start = time.perf_counter()
        Forest.load(Path(folder) / "forest")
        load_ms = 1000 * (time.perf_counter() - start)
    contents = {
        "load_ms": round(load_ms, 2),
        "saved_mib": round(sum(array.nbytes for array in forest.arrays.values()) / 2**20, 2),
        "conditions": forest.conditions,
        "programs": forest.pieces,
        "operations": len(forest.arrays["ops"]),
        "operations_by_reach": _operations_by_reach(model),
        "request_split_share": round(request_split_share(booster), 3),
    }
    return _compiled("recserve", params, effort, contents)


def _compiled(
    name: str, params: Mapping[str, int | str], effort: Effort, contents: Mapping[str, int | float] | None = None
) -> Measurement:
    extra = {"compile_s": effort.wall_s, "compile_cpu_s": effort.cpu_s, **(contents or {})}
    return Measurement(name=f"{name}, compilation", params=params, milliseconds=(), extra=extra)


def _operations_by_reach(model: Path) -> int:
    """Bit operations if each node's rows were split in two, and the leaves' numbers gathered from the leaves' rows."""
    count = 0
    for tree in parse_forest(model.read_text("utf-8")).trees:
        leaves = np.arange(len(tree.leaf_values))
        of_planes = (leaves[:, np.newaxis] >> np.arange(16) & 1).sum(axis=0)
        count += 2 * (len(leaves) - 1) + int(np.maximum(of_planes - 1, 0).sum())
    return count


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Keep this process, and those that it starts meanwhile, on one core."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
