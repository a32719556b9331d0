"""`recserve-loadtest kernels retrieval`: its options, and what they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from recserve.loadtest.arguments import natural, share, share_or_all, whole
from recserve.loadtest.kernel_sets import KernelSet
from recserve.loadtest.results import Measurement
from recserve.loadtest.retrieval.tables import all_grids

ENGINES: Final = ("ivf-flat", "ivf-pq", "hnsw", "scann")
"""The keys of engines.others, which is imported only to measure."""
FULL_ITEMS, QUICK_ITEMS = 1_000_000, 100_000


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--items", type=whole, help=f"of the catalogue (default {FULL_ITEMS:,})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ITEMS:,} items")
    parser.add_argument("--k", type=whole, default=500, help="answers a query (default %(default)s)")
    parser.add_argument("--recall", type=share_or_all, default=0.95, help="that all are tuned to (default %(default)s)")
    parser.add_argument(
        "--batches", type=whole, nargs="+", default=[1, 8, 32], help="queries of a call (default 1 8 32)"
    )
    parser.add_argument(
        "--filters", type=share_or_all, nargs="+", default=[1.0, 0.1], help="shares that pass (default 1 0.1)"
    )
    parser.add_argument(
        "--regions",
        type=share,
        nargs="*",
        default=[0.1],
        help="shares that pass filters which go with the vectors, as a category does: the items that lie furthest in "
        "a direction drawn at random (default 0.1)",
    )
    parser.add_argument(
        "--engines",
        nargs="*",
        choices=ENGINES,
        default=list(ENGINES),
        metavar="ENGINE",
        help=f"to measure beside ours: {', '.join(ENGINES)} (default all)",
    )
    parser.add_argument("--runs", type=whole, default=200, help="timed calls of each size (default %(default)s)")
    parser.add_argument("--seed", type=natural, default=1, help="of vectors and filters (default %(default)s)")
    parser.add_argument("--plot", type=Path, help="picture to draw, .svg or .png (default beside the result file)")


def _measure(options: argparse.Namespace) -> Iterable[Measurement]:
    from recserve.loadtest.retrieval.measure import Filter, Work, measure_retrieval  # noqa: PLC0415  needs what exports need

    work = Work(
        items=options.items or (QUICK_ITEMS if options.quick else FULL_ITEMS),
        k=options.k,
        target=options.recall,
        batches=options.batches,
        filters=[Filter(each) for each in options.filters] + [Filter(each, "region") for each in options.regions],
        engines=options.engines,
        runs=options.runs,
        seed=options.seed,
    )
    console = Console(stderr=True)
    return measure_retrieval(work, lambda text: console.print(text, style="dim", highlight=False))


def _draw(options: argparse.Namespace, content: Mapping[str, Any]) -> None:
    from recserve.loadtest.retrieval.plot import plot_retrieval  # noqa: PLC0415  slow to import

    plot_retrieval(content, options.plot or options.out.with_suffix(".svg"))


RETRIEVAL: Final = KernelSet(
    name="retrieval",
    help="search through an index of codes, beside FAISS and ScaNN",
    workload="retrieval",
    add_options=_add_options,
    measure=_measure,
    grids=all_grids,
    finish=_draw,
)
