"""Times the forest kernel beside other engines, on lambdarank forests that it trains itself.

    recipe ─ data ─ LightGBM ─ model text ─┬ recserve: predict, request path ┐
                                           ├ LightGBM, TL2cgen, Treelite, …  ├ timed in turns ─ measurements
                                           └ margins that all must equal ────┘

Every engine answers the same requests with one thread. Turns are short bursts, engine after engine, so that what else
the machine does meets all of them; requests differ from call to call, as no server sees the same rows twice.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightgbm
import numpy as np
from numpy.typing import NDArray

from recserve.exporters.forest import compile_forest
from recserve.kernels.forest import CPU_VARIANT, CPU_VARIANTS, Forest, RequestPlan
from recserve.loadtest.forest_engines import OTHERS, Engine, EngineUnavailableError, single_row_engine
from recserve.loadtest.results import Measurement

USER_FEATURES, ITEM_FEATURES, CROSS_FEATURES = 40, 50, 10
FEATURES = USER_FEATURES + ITEM_FEATURES + CROSS_FEATURES
GROUP = 100
ITEMS = 100_000
BURST = 5
"""Calls of an engine's turn; the first is not counted: it brings the engine's data back into the caches."""
BASELINE = "LightGBM"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What to measure.

    Attributes:
        trees, leaves: sizes of the forests; each number of trees with each number of leaves.
        rows: candidates of a call.
        engines: the other engines, names of forest_engines.OTHERS; LightGBM always takes part.
        runs: timed calls of each engine and size.
        seconds: after so many seconds on one size, engines stop after fewer runs, but not after fewer than a burst's.
        groups: groups of 100 rows to train on.
        seed: of data and training.
        models: folder that keeps trained and compiled models.
    """

    trees: Sequence[int] = (300,)
    leaves: Sequence[int] = (64,)
    rows: Sequence[int] = (1, 20, 500)
    engines: Sequence[str] = ("treelite", "onnxruntime", "lleaves")
    runs: int = 40
    seconds: float = 20.0
    groups: int = 600
    seed: int = 1
    models: str = "build/bench/models"


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One request: its candidates as rows of features, and as the request path takes them."""

    features: NDArray[np.float32]
    """float32 [n, 100]: user and context, item, crosses."""
    item_rows: NDArray[np.int64]
    user: NDArray[np.float32]
    """float32 [1, 40]"""
    crosses: NDArray[np.float32]
    """float32 [n, 10]"""


class Marketplace:
    """Seeded data by the recipe: 40 user and context, 50 item and 10 cross features."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.items = self._random.standard_normal((ITEMS, ITEM_FEATURES)).astype(np.float32)
        self._linear = self._random.standard_normal(FEATURES) * 0.3
        self._waves = self._random.choice(FEATURES, 10, replace=False)
        self._left = self._random.permutation(USER_FEATURES)
        self._right = USER_FEATURES + self._random.choice(ITEM_FEATURES, USER_FEATURES, replace=False)

    def request(self, n: int) -> Request:
        """One user and n candidates."""
        user = self._random.standard_normal((1, USER_FEATURES)).astype(np.float32)
        rows = self._random.integers(0, ITEMS, n)
        pairs = user[:, :CROSS_FEATURES] * self.items[rows, :CROSS_FEATURES]
        crosses = (pairs + self._random.standard_normal(pairs.shape)).astype(np.float32)
        features = np.hstack((np.repeat(user, n, axis=0), self.items[rows], crosses))
        return Request(features, rows, user, crosses)

    def training(self, groups: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Rows of features in groups of 100, and their labels from 0 to 4.

        The label is by quantile of the sum of linear, sine and product terms, and noise.
        """
        x = np.concatenate([self.request(GROUP).features for _ in range(groups)])
        score = x @ self._linear + np.sin(2 * x[:, self._waves]).sum(axis=1)
        score += 3 * (x[:, self._left] * x[:, self._right]).sum(axis=1)
        score += score.std() * 0.2 * self._random.standard_normal(len(x))
        return x, np.digitize(score, np.quantile(score, (0.5, 0.75, 0.9, 0.97)))


def measure_forests(work: Work, variants: Sequence[str], tell: Callable[[str], None]) -> Iterator[Measurement]:
    """Measure engines on forests of several sizes.

    Args:
        work: what to measure.
        variants: further CPU variants of our kernel, each measured in a process of its own.
        tell: told what is going on, and which engines are left out and why.

    Raises:
        RuntimeError: a variant does not exist on this CPU, or an engine's name is unknown.
    """
    if unknown := sorted(set(variants) - set(CPU_VARIANTS)):
        raise RuntimeError(f"this build and CPU have no variant {unknown}: expected some of {', '.join(CPU_VARIANTS)}")
    if unknown := sorted(set(work.engines) - set(OTHERS)):
        raise RuntimeError(f"there is no engine {unknown}: expected some of {', '.join(OTHERS)}")
    for leaves in work.leaves:
        for trees in work.trees:
            yield from _measure_forest(work, trees, leaves, tell)
    for variant in variants:
        if variant != CPU_VARIANT:
            tell(f"measuring the variant {variant}")
            yield from _measure_in(variant, work)


def train(work: Work, trees: int, leaves: int) -> Path:
    """The model file of the recipe's forest; trained where it does not exist yet."""
    folder = Path(work.models)
    path = folder / f"lambdarank-{trees}x{leaves}-{work.groups}-{work.seed}-{lightgbm.__version__}.txt"
    if not path.exists():
        x, labels = Marketplace(work.seed).training(work.groups)
        data = lightgbm.Dataset(x, labels, group=[GROUP] * work.groups, free_raw_data=False)
        booster = lightgbm.train(_parameters(leaves, work.seed), data, trees)
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        booster.save_model(str(partial))
        partial.rename(path)
    return path


def _parameters(leaves: int, seed: int) -> dict[str, object]:
    return {
        "objective": "lambdarank",
        "num_leaves": leaves,
        "max_depth": 8,
        "learning_rate": 0.05,
        "feature_fraction": 0.8,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": len(os.sched_getaffinity(0)),
        "verbose": -1,
    }


def user_split_share(booster: lightgbm.Booster) -> float:
    """The share of splits on user and context features."""
    splits = booster.feature_importance("split")
    return float(splits[:USER_FEATURES].sum() / max(splits.sum(), 1))


def _measure_forest(work: Work, trees: int, leaves: int, tell: Callable[[str], None]) -> Iterator[Measurement]:
    params = {"trees": trees, "leaves": leaves}
    tell(f"training {trees} trees of {leaves} leaves, if they are not in {work.models}")
    path = train(work, trees, leaves)
    booster = lightgbm.Booster(model_file=path)
    start = time.perf_counter()
    forest = compile_forest(booster)
    extra = {
        "compile_s": round(time.perf_counter() - start, 2),
        "conditions": forest.conditions,
        "user_and_context_splits": round(user_split_share(booster), 3),
    }
    yield Measurement(name="recserve compilation", params=params, milliseconds=(), extra=extra)
    market = Marketplace(work.seed)
    engines = [*_own_engines(forest, market.items), _lightgbm(booster), *_others(work, path, tell)]
    for rows in work.rows:
        tell(f"timing {trees} trees of {leaves} leaves, {rows} rows")
        requests = [market.request(rows) for _ in range(max(8, 500 // rows))]
        present = [*engines, single_row_engine(booster)] if rows == 1 else engines
        yield from _measure_size(work, {**params, "rows": rows}, present, requests)


def _own_engines(forest: Forest, items: NDArray[np.float32]) -> Iterator[Engine[Request]]:
    plan = request_plan(forest)
    bins = forest.bin_matrix(items, plan.item_features)
    yield Engine("recserve", {"path": "predict", "cpu": CPU_VARIANT}, lambda request: forest.predict(request.features))
    yield Engine(
        "recserve",
        {"path": "request", "cpu": CPU_VARIANT},
        lambda request: plan.margins(
            bins, request.item_rows, np.array([0, len(request.item_rows)]), request.user, request.crosses
        )[:, 0],
    )


def request_plan(forest: Forest) -> RequestPlan:
    """Where the recipe's features come from."""
    user, item = range(USER_FEATURES), range(USER_FEATURES, USER_FEATURES + ITEM_FEATURES)
    return forest.plan(item, user, range(USER_FEATURES + ITEM_FEATURES, FEATURES))


def _lightgbm(booster: lightgbm.Booster) -> Engine[Request]:
    return Engine(BASELINE, {}, lambda request: booster.predict(request.features, raw_score=True, num_threads=1))


def _others(work: Work, path: Path, tell: Callable[[str], None]) -> Iterator[Engine[Request]]:
    for name in work.engines:
        try:
            title, margins = OTHERS[name](path, FEATURES)
        except (ImportError, EngineUnavailableError) as error:
            tell(f"{name} is left out: {error}")
        else:
            yield Engine(title, {}, lambda request, margins=margins: margins(request.features))


def _measure_size(
    work: Work,
    params: Mapping[str, int | float | str],
    engines: Sequence[Engine[Request]],
    requests: Sequence[Request],
) -> Iterator[Measurement]:
    """Time the engines in turns, and compare what they answer."""
    baseline = next(engine for engine in engines if engine.name == BASELINE)
    expected = [baseline.margins(request) for request in requests]
    compared = [_compare(engine, requests, expected) for engine in engines]
    times = _time_in_turns(engines, requests, work)
    reference = float(np.median(times[engines.index(baseline)]))
    for engine, milliseconds, equality in zip(engines, times, compared, strict=True):
        extra = {**equality, "ratio_to_lightgbm": round(reference / float(np.median(milliseconds)), 2)}
        yield Measurement(name=engine.name, params={**params, **engine.params}, milliseconds=milliseconds, extra=extra)


def _compare(
    engine: Engine[Request], requests: Sequence[Request], expected: Sequence[NDArray[np.float64]]
) -> dict[str, int | float]:
    """How many margins have other bits than LightGBM's, and by how much the worst differs."""
    found = np.concatenate([np.asarray(engine.margins(request), np.float64).reshape(-1) for request in requests])
    wanted = np.concatenate(expected)
    return {
        "scores": len(wanted),
        "mismatches": int((found.view(np.uint64) != wanted.view(np.uint64)).sum()),
        "largest_difference": float(f"{np.abs(found - wanted).max():.1e}"),
    }


def _time_in_turns(engines: Sequence[Engine[Request]], requests: Sequence[Request], work: Work) -> list[list[float]]:
    """Milliseconds of each engine's calls."""
    times: list[list[float]] = [[] for _ in engines]
    end = time.monotonic() + work.seconds
    call = 0
    while len(times[0]) < work.runs and (not times[0] or time.monotonic() < end):
        for engine, own in zip(engines, times, strict=True):
            for position in range(BURST):
                request = requests[(call + position) % len(requests)]
                start = time.perf_counter_ns()
                engine.margins(request)
                if position:
                    own.append((time.perf_counter_ns() - start) / 1e6)
        call += BURST
    return times


def _measure_in(variant: str, work: Work) -> list[Measurement]:
    """Our own figures from a process that uses another variant; LightGBM runs beside for the ratio."""
    job = json.dumps(dataclasses.asdict(dataclasses.replace(work, engines=())))
    done = subprocess.run(
        [sys.executable, "-m", "recserve.loadtest.forest", job],
        env={**os.environ, "RECSERVE_CPU": variant},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"measuring the variant {variant} failed with status {done.returncode}: {done.stderr[-2000:]}"
        )
    return [Measurement(**row) for row in json.loads(done.stdout) if row["params"].get("cpu") == variant]


def main(job: str) -> None:
    """Measure in this process's variant; the work comes and the measurements go as JSON."""
    measured = measure_forests(Work(**json.loads(job)), (), lambda _: None)
    print(json.dumps([dataclasses.asdict(each) for each in measured]))


if __name__ == "__main__":
    main(sys.argv[1])
