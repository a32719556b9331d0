"""The demo from nothing to a directory that can be served: simulate, train, export.

Everything that the rankers learn from lies after a cut, two weeks before the simulation's end; what they are told (the
models that retrieve, the state of users and items) ends there. What is served is the state at the end.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from recserve.exporters.demo.examples import OBJECTIVES, SOURCE_WEIGHTS, ExampleMaker, Retrieval
from recserve.exporters.demo.factors import train_factors
from recserve.exporters.demo.features import demo_schema
from recserve.exporters.demo.known import Known, read_known
from recserve.exporters.demo.marketplace import Marketplace, simulate
from recserve.exporters.demo.rankers import HeldOut, evaluate, ranker_specs, train_rankers
from recserve.exporters.demo.sizes import DemoSizes
from recserve.exporters.demo.stages import stage
from recserve.exporters.demo.state import State, state_at
from recserve.exporters.demo.tables import catalogue_spec, snapshot_spec, sources_spec
from recserve.exporters.demo.towers import (
    Tower,
    content_vectors,
    item_inputs,
    train_item_tower,
    train_user_tower,
    unit_targets,
    user_inputs,
)
from recserve.exporters.demo.words import EVENT_TYPES, VOCABULARIES
from recserve.exporters.demo.world import DAY_US, END
from recserve.exporters.errors import ExportError
from recserve.exporters.export import export_bundle
from recserve.exporters.snapshot import export_snapshot
from recserve.exporters.spec import BundleSpec, RankerSpec, SpaceSpec
from recserve.exporters.writer import staged_directory

BUNDLE, SNAPSHOT, CONFIG = "bundle", "snapshot", "recserve.toml"
"""What a build leaves."""
LABEL_DAYS = 14
"""The rankers learn from the last days of the simulation, and are measured on the last of these."""
MAX_SEED: Final = 2**31 - 1
"""LightGBM's, whose seeds are of 32 bits with a sign."""
_HELD_OUT_DAYS = 5
_ENOUGH = 5  # items that a user, or events that an item, must have for its factors to be worth learning


@dataclass(frozen=True, slots=True)
class DemoPaths:
    """What a build leaves."""

    bundle: Path
    snapshot: Path
    config: Path


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """Everything that an export needs beside tables."""

    retrieval: Retrieval
    item_tower: Tower
    rankers: list[RankerSpec]
    metrics: dict[str, float]


def build_demo(
    out: Path, *, sizes: DemoSizes | None = None, seed: int = 7, console: Console | None = None
) -> DemoPaths:
    """Build the demo under `out`, which appears when all of it is complete, and not before.

    Args:
        out: the directory, which must not exist.
        sizes: of the marketplace and its models; None: the demo's.
        seed: of everything random, 0 to `MAX_SEED`.
        console: where progress is shown; None: standard error.

    Raises:
        ExportError: `out` exists, the seed is out of range, or the export refuses what was trained.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ExportError(f"the seed must be 0 to {MAX_SEED}, found {seed}")
    sizes = sizes or DemoSizes()
    console = console or Console(stderr=True)
    with staged_directory(out) as directory:
        market = _simulate(sizes, seed, console)
        trained = _train(market, sizes, seed, console)
        _export(market, trained, f"{END:%Y-%m-%d}-seed{seed}", directory, console)
        (directory / CONFIG).write_text(config_text(), encoding="utf-8")
    return DemoPaths(out / BUNDLE, out / SNAPSHOT, out / CONFIG)


def config_text() -> str:
    """The server's configuration for the demo; paths are relative to the file."""
    sources = ", ".join(f'{{ name = "{name}", weight = {weight} }}' for name, weight in SOURCE_WEIGHTS.items())
    return _CONFIG.format(sources=sources, clock=f"{END:%Y-%m-%dT%H:%M:%SZ}")


def _simulate(sizes: DemoSizes, seed: int, console: Console) -> Marketplace:
    with stage(console, "simulate the marketplace") as running:
        market = simulate(sizes, seed)
        counts = np.bincount(market.events.type, minlength=len(EVENT_TYPES))
        running.note = ", ".join(f"{count:,} {name}s" for name, count in zip(EVENT_TYPES, counts, strict=True))
    return market


def _train(market: Marketplace, sizes: DemoSizes, seed: int, console: Console) -> Trained:
    cut_us = market.world.end_us - LABEL_DAYS * DAY_US
    schema = demo_schema()
    with stage(console, "collect what is known at the cut") as running:
        state = state_at(market, cut_us)
        known = read_known(market, state, schema)
        running.note = f"{state.history.user.size:,} history entries"
    retrieval, item_tower = _train_spaces(market, state, known, sizes, seed, console)
    maker = ExampleMaker(market, state, known, schema, retrieval)
    train, held_out = _draw_sessions(market, sizes, seed)
    rng = np.random.default_rng([seed, 1])
    with stage(console, "compute the rankers' features", train.size + held_out.size) as running:
        examples = maker.make(train, rng, running.advance)
        later = HeldOut.split(maker.make(held_out, rng, running.advance))
        running.note = f"{examples.features.shape[0]:,} rows x {examples.features.shape[1]} features"
    with stage(console, "train the rankers", 2 * sizes.trees) as running:
        boosters = train_rankers(schema, examples, trees=sizes.trees, seed=seed, advance=running.advance)
        metrics = evaluate(schema, boosters, later.test)
        running.note = f"NDCG@10 {_comparison(metrics)}"
    return Trained(retrieval, item_tower, ranker_specs(boosters, later.calibration), metrics)


def _comparison(metrics: dict[str, float]) -> str:
    """The rankers beside what they have to beat."""
    return ", ".join(
        f"{name} {metrics[f'{name}_ndcg@10']:.3f} (by popularity {metrics[f'{name}_ndcg@10_by_popularity']:.3f})"
        for name in OBJECTIVES
    )


def _train_spaces(
    market: Marketplace, state: State, known: Known, sizes: DemoSizes, seed: int, console: Console
) -> tuple[Retrieval, Tower]:
    events = market.events.before(state.time_us)
    with stage(console, "factorise users x items (ALS)") as running:
        users, items = train_factors(events, sizes, seed)
        running.note = f"{sizes.factors} factors"
    content = content_vectors(market.world.items, np.random.default_rng([seed, 2]))
    user_targets, item_targets = unit_targets(users, items)
    of_users, of_items = user_inputs(state.users, known.recent, state.time_us), item_inputs(state.items)
    telling_users = np.flatnonzero([rows.size >= _ENOUGH for rows in known.recent])
    telling_items = np.flatnonzero(np.bincount(events.item, minlength=items.shape[0]) >= _ENOUGH)
    with stage(console, "distil the towers", 2 * sizes.tower_epochs) as running:
        user_tower = train_user_tower(
            of_users[telling_users],
            user_targets[telling_users],
            content,
            sizes=sizes,
            seed=seed,
            advance=running.advance,
        )
        item_tower = train_item_tower(
            of_items[telling_items], item_targets[telling_items], sizes=sizes, seed=seed, advance=running.advance
        )
        running.note = f"from {telling_users.size:,} users and {telling_items.size:,} items"
    vectors = {"ann": item_tower.vectors(of_items), "als": items, "content": content}
    has_factors = np.array([rows.size > 0 for rows in known.recent])
    return Retrieval(vectors, users, has_factors, user_tower), item_tower


def _draw_sessions(market: Marketplace, sizes: DemoSizes, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sessions after the cut to learn from, and later ones to calibrate and measure with."""
    end_us, times = market.world.end_us, market.sessions.time_us
    bounds = [end_us - LABEL_DAYS * DAY_US, end_us - _HELD_OUT_DAYS * DAY_US, end_us]
    first, split, last = np.searchsorted(times, bounds).tolist()
    rng = np.random.default_rng([seed, 3])

    def draw(low: int, high: int, count: int) -> NDArray[np.int64]:
        return low + np.sort(rng.choice(high - low, min(count, high - low), replace=False)).astype(np.int64)

    return draw(first, split, sizes.train_requests), draw(split, last, sizes.held_out_requests)


def _export(market: Marketplace, trained: Trained, version: str, out: Path, console: Console) -> None:
    """Write the snapshot and the bundle with the state at the simulation's end."""
    schema = demo_schema()
    state = state_at(market, market.world.end_us)
    with stage(console, "export the user snapshot") as running:
        users = snapshot_spec(market.world, state, version)
        snapshot = export_snapshot(users, schema, VOCABULARIES, out / SNAPSHOT)
        running.note = f"{len(market.world.users.ids):,} users"
    with tempfile.TemporaryDirectory(prefix="recserve-demo-") as models:
        spec = BundleSpec(
            name="demo",
            version=version,
            catalogue=catalogue_spec(market.world, state),
            features=schema,
            spaces=_spaces(market, trained, Path(models)),
            rankers=trained.rankers,
            sources=sources_spec(market),
            offline_metrics=trained.metrics,
        )
        report = export_bundle(spec, out / BUNDLE, snapshot=snapshot, console=console)
    console.print(report.table())


def _spaces(market: Marketplace, trained: Trained, models: Path) -> list[SpaceSpec]:
    """The towers' space, the factors', and the content's, which has no users and serves similarity."""
    retrieval = trained.retrieval
    rows = np.flatnonzero(retrieval.has_factors)
    return [
        SpaceSpec(
            name="ann",
            normalized=True,
            item_tower=trained.item_tower.save(models / "item.onnx"),
            user_tower=retrieval.tower.save(models / "user.onnx"),
        ),
        SpaceSpec(
            name="als",
            normalized=False,
            item_vectors=retrieval.vectors["als"],
            user_vectors=retrieval.factors[rows],
            user_ids=[market.world.users.ids[row] for row in rows],
        ),
        SpaceSpec(name="content", normalized=True, item_vectors=retrieval.vectors["content"]),
    ]


_CONFIG = """\
# The demo's server. `recserve serve --config recserve.toml`

# The simulation ends at this moment, and so does what the models know: served later, every item would be old news, and
# every user long gone. A shop whose bundles are exported every day leaves its clock alone.
[server]
clock = {clock}

[[bundles]]
name = "demo"
path = "bundle"

[state]
snapshot = "snapshot"

[similar]
behaviour_space = "ann"
content_space = "content"
alpha = 0.5

[placements.default]
candidates = 500
sources = [{sources}]
caps = [{{ attribute = "category", max = 4 }}]
mmr_weight = 0.95
diversity_space = "content"
freshness = {{ boost = 0.2, half_life_days = 14 }}

# More sources than the rankers have seen in training: to them, the others' candidates are ones that no source proposed.
[placements.home]
candidates = 500
sources = [
    {sources},
    {{ name = "similar", weight = 0.1 }},
    {{ name = "trending", weight = 0.05 }},
    {{ name = "popular_in_country", weight = 0.05 }},
    {{ name = "popular_with_peers", weight = 0.05 }},
    {{ name = "popular_in_category", weight = 0.05 }},
    {{ name = "new", weight = 0.05 }},
]
caps = [{{ attribute = "category", max = 4 }}, {{ attribute = "brand", max = 3 }}]
mmr_weight = 0.9
diversity_space = "content"
freshness = {{ boost = 0.3, half_life_days = 14 }}
in_region = true

# Beside a filled cart: what goes with it, what the user buys again and again, and what sells.
[placements.cart]
candidates = 300
sources = [
    {{ name = "together", weight = 0.3 }},
    {{ name = "again", weight = 0.3 }},
    {{ name = "als", weight = 0.2 }},
    {{ name = "ann", weight = 0.2 }},
]
caps = [{{ attribute = "category", max = 4 }}]
mmr_weight = 0.95
diversity_space = "content"
objective_weights = {{ purchase = 1.0 }}
in_region = true
"""
