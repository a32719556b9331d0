"""`recserve-loadtest kernels forest`: its options, and what they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from recserve.loadtest.arguments import natural, positive, whole
from recserve.loadtest.forest.tables import all_grids
from recserve.loadtest.kernel_sets import KernelSet
from recserve.loadtest.results import Measurement

ENGINES: Final = (
    "lightgbm",
    "lightgbm-single-row",
    "tl2cgen",
    "tl2cgen-quantized",
    "treelite",
    "onnxruntime",
    "lleaves",
)
"""The keys of engines.OTHERS, which is imported only to measure."""
SLOW: Final = "lleaves"
"""Compiles for minutes, so it takes part only where it is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What is measured where the options do not say otherwise; as in measure.Work."""

    trees: Sequence[int]
    leaves: Sequence[int]
    rows: Sequence[int]
    engines: Sequence[str]
    seconds: float


FULL: Final = Preset(
    trees=(300, 1000),
    leaves=(31, 64, 255),
    rows=(1, 20, 100, 500, 2000),
    engines=ENGINES,
    seconds=8.0,
)
QUICK: Final = Preset(
    trees=(300,),
    leaves=(64,),
    rows=(1, 20, 500),
    engines=("lightgbm", "lightgbm-single-row", "treelite", "onnxruntime", SLOW),
    seconds=3.0,
)


def _add_options(parser: argparse.ArgumentParser) -> None:
    def several(option: str, default: Sequence[int], meaning: str) -> None:
        text = f"{meaning} (default {' '.join(map(str, default))})"
        parser.add_argument(option, type=whole, nargs="+", metavar="N", help=text)

    several("--trees", FULL.trees, "trees of the forests")
    several("--leaves", FULL.leaves, "the most leaves of a tree")
    several("--rows", FULL.rows, "candidates of a call")
    parser.add_argument(
        "--engines",
        nargs="+",
        choices=ENGINES,
        metavar="ENGINE",
        help=f"engines to measure beside ours and lightgbm: {', '.join(ENGINES)} (default all but {SLOW})",
    )
    parser.add_argument(
        "--slow-engines",
        type=whole,
        nargs="*",
        metavar="LEAVES",
        help=f"measure {SLOW}, too, which compiles for minutes: on all forests, or on those of so many leaves",
    )
    parser.add_argument("--quick", action="store_true", help="one forest, and none of the engines that need a compiler")
    parser.add_argument("--seconds", type=positive, help=f"for each forest and number of rows (default {FULL.seconds})")
    parser.add_argument(
        "--groups", type=whole, default=600, help="groups of 100 rows to train on (default %(default)s)"
    )
    parser.add_argument("--seed", type=natural, default=1, help="of data, training and requests (default %(default)s)")
    parser.add_argument("--models", type=Path, default=Path("build/bench/models"), help="folder that keeps the models")
    parser.add_argument("--plot", type=Path, help="picture to draw, .svg or .png (default beside the result file)")


def _measure(options: argparse.Namespace) -> Iterable[Measurement]:
    from recserve.loadtest.forest.measure import Work, measure_forests  # noqa: PLC0415  it needs what exports need

    preset = QUICK if options.quick else FULL
    leaves = options.leaves or preset.leaves
    slow_everywhere = options.slow_engines == [] or SLOW in (options.engines or ())
    work = Work(
        trees=options.trees or preset.trees,
        leaves=leaves,
        rows=options.rows or preset.rows,
        engines=options.engines or preset.engines,
        slow_leaves=leaves if slow_everywhere else options.slow_engines or (),
        seconds=preset.seconds if options.seconds is None else options.seconds,
        groups=options.groups,
        seed=options.seed,
        models=options.models,
    )
    console = Console(stderr=True)
    return measure_forests(work, lambda text: console.print(text, style="dim", highlight=False))


def _draw(options: argparse.Namespace, content: Mapping[str, Any]) -> None:
    from recserve.loadtest.forest.plot import plot_forests  # noqa: PLC0415  slow to import

    plot_forests(content, options.plot or options.out.with_suffix(".svg"))


FOREST: Final = KernelSet(
    name="forest",
    help="compiled forests, beside LightGBM and what else compiles its models",
    workload="forest",
    add_options=_add_options,
    measure=_measure,
    grids=all_grids,
    finish=_draw,
)
