"""The example from a file of transactions to a directory that can be served, with figures that say how good it is."""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import pyarrow as pa
import torch
from rich.console import Console
from threadpoolctl import threadpool_limits

from examples.online_retail.clean import Events, clean
from examples.online_retail.features import retail_schema
from examples.online_retail.moment import BuiltAt, Settings, Shop, build_at
from examples.online_retail.ranker import (
    PLACEMENT,
    Examples,
    make_examples,
    ranker_spec,
    train_ranker,
)
from examples.online_retail.split import WINDOW_US, Split, split
from recserve.exporters.demo.stages import stage
from recserve.exporters.export import export_all
from recserve.exporters.report import ExportReport
from recserve.exporters.spec import EvaluationSpec, RankerSpec, TableSource
from recserve.exporters.writer import staged_directory

BUNDLE, SNAPSHOT, CONFIG, METRICS, QUALITY = "bundle", "snapshot", "recserve.toml", "metrics.json", "quality.json"
"""What a run leaves."""
_CALIBRATED: Final = 5  # every fifth customer of the validation weeks calibrates, the others are learned from


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done; the defaults are those of `make retail`.

    Attributes:
        training_windows: four weeks each, before the validation weeks.
        trees: of the ranker.
        models: settings of the models that retrieve.
        evaluate: whether the bundle is measured on the test weeks.
    """

    training_windows: int = 3
    trees: int = 300
    models: Settings = field(default_factory=Settings)
    evaluate: bool = True


def run(source: TableSource, out: Path, *, plan: Plan | None = None, console: Console | None = None) -> ExportReport:
    """Clean, train, export and evaluate; `out` appears when all of it is complete, and not before.

    Args:
        source: the transactions; the README lists the columns.
        out: the directory, which must not exist.
        plan: how much is done; None: all.
        console: where progress is shown; None: standard error.

    Raises:
        ExportError: the transactions cannot be used, or `out` exists.
    """
    plan, console = plan or Plan(), console or Console(stderr=True)
    with staged_directory(out) as directory, _one_thread():
        with stage(console, "clean the transactions") as running:
            events, quality = clean(source)
            running.note = f"{events.size:,} purchases of {len(events.users):,} customers"
        console.print(quality.table())
        (directory / QUALITY).write_text(json.dumps(quality.as_dict(), indent=1) + "\n", encoding="utf-8")
        cuts = split(events, plan.training_windows)
        shop = Shop(events)
        ranker = _train_ranker(shop, cuts, plan, console)
        final = _build(shop, cuts.test, plan, console)
        report = _export(final, ranker, events, plan, directory, console)
        if report.evaluation is not None:
            text = json.dumps(report.evaluation.to_json(), indent=1) + "\n"
            (directory / METRICS).write_text(text, encoding="utf-8")
        (directory / CONFIG).write_text(config_text(cuts.test), encoding="utf-8")
    return replace(report, path=out / BUNDLE)


def config_text(time_us: int) -> str:
    """The server's configuration: what is evaluated is what it serves. Paths are relative to the file."""
    sources = ", ".join(f'{{ name = "{each.name}", weight = {each.weight} }}' for each in PLACEMENT.sources)
    rule = PLACEMENT.fusion
    fusion = f"fusion = {{ depth = {rule.depth}, constant = {rule.constant} }}" if rule else ""
    placement = f"candidates = {PLACEMENT.candidates}\nsources = [{sources}]\n{fusion}"
    return _CONFIG.format(clock=_moment(time_us).isoformat(), placement=placement)


def evaluation_spec(events: Events, time_us: int) -> EvaluationSpec:
    """The window behind a cut-off as the truth, and the placements of the configuration."""
    window = events.between(time_us, time_us + WINDOW_US)
    truth = pa.table(
        {
            "user_id": pa.array(events.users).take(pa.array(window.user)),
            "item_id": pa.array(events.items).take(pa.array(window.item)),
            "time": pa.array(window.time_us, pa.timestamp("us", "UTC")),
        }
    )
    return EvaluationSpec(truth=truth, time_us=time_us, placement=PLACEMENT)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of several threads differ in their last bits from run to run, and layers as small as these gain nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def _train_ranker(shop: Shop, cuts: Split, plan: Plan, console: Console) -> RankerSpec:
    """Learn from the training windows and most of the validation weeks, and calibrate on the rest of these."""
    seed = plan.models.seed
    parts = [_examples(shop, time_us, plan, console).sampled(seed) for time_us in cuts.training]
    latest = _examples(shop, cuts.validation, plan, console)
    held_out = latest.customers % _CALIBRATED == 0
    examples = Examples.join([*parts, latest.of(~held_out).sampled(seed)])
    with stage(console, "train the ranker", plan.trees) as running:
        booster = train_ranker(retail_schema(), examples, plan.trees, seed, running.advance)
        running.note = f"from {examples.labels.size:,} rows of {examples.sizes.size:,} requests"
    return ranker_spec(booster, latest.of(held_out))


def _examples(shop: Shop, time_us: int, plan: Plan, console: Console) -> Examples:
    """Export what a cut-off knows into a scratch directory, and ask it what the ranker will be asked."""
    built = _build(shop, time_us, plan, console)
    with tempfile.TemporaryDirectory(prefix="recserve-retail-") as scratch:
        directory = Path(scratch) / "export"
        export_all(replace(built.bundle, golden_requests=1), built.users, directory, console=Console(quiet=True))
        with stage(console, f"compute features at {_moment(time_us):%Y-%m-%d}") as running:
            examples = make_examples(directory, shop.events, time_us, running.advance)
            running.note = f"{examples.labels.size:,} rows, {examples.labels.sum():,.0f} purchases"
    return examples


def _build(shop: Shop, time_us: int, plan: Plan, console: Console) -> BuiltAt:
    day = f"{_moment(time_us):%Y-%m-%d}"
    with stage(console, f"train ALS and towers at {day}", plan.models.towers.epochs) as running:
        built = build_at(shop, time_us, day, plan.models, running.advance)
        running.note = f"{built.items:,} items, {built.customers:,} customers"
    return built


def _export(
    final: BuiltAt, ranker: RankerSpec, events: Events, plan: Plan, out: Path, console: Console
) -> ExportReport:
    evaluation = evaluation_spec(events, final.time_us) if plan.evaluate else None
    spec = replace(final.bundle, rankers=[ranker], evaluation=evaluation, golden_time_us=final.time_us)
    report = export_all(spec, final.users, out / "export", console=console)
    for name in (BUNDLE, SNAPSHOT):
        (out / "export" / name).rename(out / name)
    (out / "export").rmdir()
    console.print(report.table())
    return report


def _moment(time_us: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(time_us / 1e6, datetime.UTC)


_CONFIG = """\
# The shop as of the beginning of the test weeks. `recserve serve --config recserve.toml`

[server]
clock = {clock}

[[bundles]]
name = "online-retail"
path = "bundle"

[state]
snapshot = "snapshot"

[similar]
behaviour_space = "ann"
content_space = "content"
alpha = 0.5

# What the evaluation measures as `all`: the user's own items may come again.
[placements.default]
{placement}

# What it measures as `first`: nothing that the user has bought before.
[placements.discover]
{placement}
exclude_purchased = true

# The same lists, more varied.
[placements.varied]
{placement}
caps = [{{ attribute = "category", max = 3 }}]
mmr_weight = 0.9
diversity_space = "content"
"""
