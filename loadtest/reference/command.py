"""`recserve-loadtest workload`: makes a reference workload, once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

NAMES: Final = ("small", "reference", "large")
"""The keys of recipe.RECIPES, which is imported only to make one."""


def add_workload(commands: Any) -> None:
    """Add the command to the parser of `recserve-loadtest`."""
    meaning = "make a reference workload: bundle, users, configuration and scenario"
    parser = commands.add_parser("workload", help=meaning, description=meaning)
    parser.add_argument("name", choices=NAMES, help="100k items and 300 trees; 1M and 1,000; 10M and 1,000")
    parser.add_argument("--out", type=Path, help="its folder (default build/workloads/NAME); used again if it is there")
    parser.set_defaults(run=_workload)


def _workload(options: argparse.Namespace) -> int:
    from recserve.loadtest.reference.build import workload  # noqa: PLC0415  it needs what exports need
    from recserve.loadtest.reference.recipe import RECIPES  # noqa: PLC0415

    made = workload(RECIPES[options.name], options.out or Path("build/workloads") / options.name)
    index = made.about["index"]
    print(f"{made.path}: index {index['factory']}, recall@{index['recall_k']} {index['recall']:.3f}")
    print(f"recserve serve --config {made.config}")
    print(f"recserve-loadtest run --config {made.config} --scenario {made.scenario} --rate 100")
    return 0
