"""A tiny marketplace, what is trained on it, and the demo built from it; each made once."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from recserve.exporters.demo.build import DemoPaths, build_demo
from recserve.exporters.demo.marketplace import Marketplace, simulate
from recserve.exporters.demo.sizes import DemoSizes

TINY = DemoSizes(
    items=400,
    users=200,
    events=20_000,
    factors=12,
    als_iterations=5,
    tower_epochs=5,
    train_requests=300,
    held_out_requests=200,
    trees=10,
)
SEED = 7


@dataclass(frozen=True)
class Demo:
    """A built demo, with what the build printed."""

    paths: DemoPaths
    printed: str


@pytest.fixture(scope="session")
def tiny() -> DemoSizes:
    return TINY


@pytest.fixture(scope="session")
def market() -> Marketplace:
    return simulate(TINY, SEED)


@pytest.fixture(scope="session")
def build() -> Callable[[Path], Demo]:
    def run(out: Path) -> Demo:
        console = Console(file=io.StringIO(), width=200)
        paths = build_demo(out, sizes=TINY, seed=SEED, console=console)
        assert isinstance(console.file, io.StringIO)
        return Demo(paths, console.file.getvalue())

    return run


@pytest.fixture(scope="session")
def demo(build: Callable[[Path], Demo], tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return build(tmp_path_factory.mktemp("demo") / "built")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
