"""A reference workload from its recipe to a folder that can be served and loaded.

    bundle/         what `recserve serve` answers from
    snapshot/       its users
    recserve.toml   the server's configuration
    scenario.toml   the requests, for `recserve-loadtest run --scenario`
    workload.json   how it was made

The folder appears when all of it is complete. One that is there already is used again if its recipe is the same.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console

from recserve.exporters.demo.stages import Stage, stage
from recserve.exporters.errors import ExportError
from recserve.exporters.export import export_bundle
from recserve.exporters.report import ExportReport
from recserve.exporters.snapshot import export_snapshot
from recserve.exporters.spec import BundleSpec, IndexSpec, RankerSpec, SpaceSpec
from recserve.exporters.writer import ArrayFile, staged_directory
from recserve.loadtest.clusters import DIM
from recserve.loadtest.forest.recipe import request_split_share
from recserve.loadtest.reference.market import (
    NOW_US,
    VOCABULARIES,
    Items,
    Market,
    Users,
    catalogue_spec,
    snapshot_spec,
)
from recserve.loadtest.reference.ranking import CANDIDATES, ExampleMaker, make_examples, ranker_spec, train
from recserve.loadtest.reference.recipe import Recipe
from recserve.loadtest.reference.schema import SPACE, reference_schema
from recserve.loadtest.results import commit, host, versions

BUNDLE, SNAPSHOT, CONFIG, SCENARIO, ABOUT = "bundle", "snapshot", "recserve.toml", "scenario.toml", "workload.json"
"""What a folder holds."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A complete folder.

    Attributes:
        path: of the folder.
        about: what `workload.json` says.
    """

    path: Path
    about: Mapping[str, Any]

    @property
    def bundle(self) -> Path:
        """The bundle's directory."""
        return self.path / BUNDLE

    @property
    def snapshot(self) -> Path:
        """The user snapshot's directory."""
        return self.path / SNAPSHOT

    @property
    def config(self) -> Path:
        """The server's configuration."""
        return self.path / CONFIG

    @property
    def scenario(self) -> Path:
        """The requests."""
        return self.path / SCENARIO


def workload(recipe: Recipe, out: Path, *, console: Console | None = None) -> Workload:
    """The workload in a folder, which is made if it is not there.

    Args:
        recipe: of the workload.
        out: the folder.
        console: where progress is shown; None: standard error.

    Raises:
        ExportError: the folder holds something else, or another process is making it.
    """
    if out.exists():
        return Workload(out, _same(recipe, out))
    console = console or Console(stderr=True)
    with staged_directory(out) as directory:
        about = _Making(recipe, directory, console).run()
        (directory / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return Workload(out, about)


def _same(recipe: Recipe, out: Path) -> dict[str, Any]:
    """What is said of the folder, if it is of this recipe."""
    try:
        about: dict[str, Any] = json.loads((out / ABOUT).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{out} is there and no workload ({error}): choose another folder, or remove it") from error
    if about.get("recipe_sha256") != recipe.digest():
        raise ExportError(
            f"{out} holds a workload of another recipe (another size, seed, or version of recserve or LightGBM): "
            "choose another folder, or remove it to have it made anew"
        )
    return about


@dataclass(slots=True)
class _Making:
    """The steps of one build, with the seconds that they took."""

    recipe: Recipe
    directory: Path
    console: Console
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """All steps; what is to be said of the workload."""
        work = self.directory / "work"
        work.mkdir()
        market, schema = Market(self.recipe), reference_schema()
        items, vectors, users = self._draw(market, work)
        with self._step("user snapshot") as running:
            snapshot = export_snapshot(
                snapshot_spec(users, self.recipe.digest()[:12]), schema, VOCABULARIES, self.directory / SNAPSHOT
            )
            running.note = f"{len(users.history):,} history entries"
        booster, ranker = self._train(market, items, vectors, users)
        spec = BundleSpec(
            name=self.recipe.name,
            version=self.recipe.digest()[:12],
            catalogue=catalogue_spec(items),
            features=schema,
            spaces=[
                SpaceSpec(
                    name=SPACE,
                    normalized=True,
                    item_vectors=work / "vectors.npy",
                    user_tower=market.tower.save(work / "user.onnx"),
                    index=IndexSpec(recall_target=self.recipe.recall, recall_k=CANDIDATES),
                )
            ],
            rankers=[ranker],
            golden_time_us=NOW_US,
        )
        del users, vectors
        report = export_bundle(spec, self.directory / BUNDLE, snapshot=snapshot, console=self.console)
        shutil.rmtree(work)
        (self.directory / CONFIG).write_text(self.recipe.config(), encoding="utf-8")
        (self.directory / SCENARIO).write_text(self.recipe.scenario(), encoding="utf-8")
        return self._about(report, booster)

    def _draw(self, market: Market, work: Path) -> tuple[Items, NDArray[np.float32], Users]:
        """Items, their vectors (mapped), and users."""
        blocks = []
        with self._step("items and vectors", self.recipe.items) as running:
            with ArrayFile(work / "vectors.npy", np.dtype(np.float32), (self.recipe.items, DIM)) as file:
                for vectors, block in market.item_blocks():
                    file.append(vectors)
                    blocks.append(block)
                    running.advance(len(vectors))
            items = Items(
                pa.concat_tables([block.table for block in blocks]), np.concatenate([block.centres for block in blocks])
            )
            running.note = f"{self.recipe.items:,} items"
        with self._step("users"):
            users = market.users(items)
        return items, np.load(work / "vectors.npy", mmap_mode="r").view(np.ndarray), users

    def _train(
        self, market: Market, items: Items, vectors: NDArray[np.float32], users: Users
    ) -> tuple[lightgbm.Booster, RankerSpec]:
        schema = reference_schema()
        with self._step("features of candidates", self.recipe.groups + self.recipe.held_out) as running:
            maker = ExampleMaker(schema, items, vectors, users, market.tower)
            examples, held_out = make_examples(maker, self.recipe, running.advance)
            running.note = f"{len(examples.features):,} rows"
        with self._step("forest", self.recipe.trees) as running:
            booster = train(self.recipe, examples, schema.names, running.advance)
            running.note = f"{request_split_share(booster):.0%} of splits by user and context"
            return booster, ranker_spec(booster, held_out)

    def _about(self, report: ExportReport, booster: lightgbm.Booster) -> dict[str, Any]:
        index = report.manifest.spaces[0].index
        return {
            "workload": self.recipe.name,
            "recipe_sha256": self.recipe.digest(),
            "recipe": self.recipe.document(),
            "request_split_share": round(request_split_share(booster), 4),
            "index": {
                "factory": index.factory or "exact",
                "parameters": dict(index.parameters),
                "recall": round(index.recall, 4),
                "recall_low": round(index.recall_low, 4),
                "recall_k": index.recall_k,
                "queries": index.queries,
                "p50_ms": round(index.p50_ms, 4),
            },
            "seconds": {name: round(seconds, 1) for name, seconds in (self.seconds | report.seconds).items()},
            "host": host(),
            "versions": versions(),
            "commit": commit(),
        }

    @contextmanager
    def _step(self, name: str, steps: int | None = None) -> Iterator[Stage]:
        start = time.perf_counter()
        with stage(self.console, name, steps) as running:
            yield running
        self.seconds[name] = time.perf_counter() - start
