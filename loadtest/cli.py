"""The command `recserve-loadtest`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grpc
import numpy as np
from rich.console import Console

from recserve.loadtest.forest import Work, measure_forests
from recserve.loadtest.forest_engines import OTHERS
from recserve.loadtest.forest_plot import plot_forests
from recserve.loadtest.kernels import measure_kernels
from recserve.loadtest.results import Measurement, document, table, write
from recserve.loadtest.served import measure_server
from recserve.server.bundle.errors import RecserveError
from recserve.server.bundle.snapshot import open_snapshot

_WORK = Work()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the result is its exit status."""
    options = _parser().parse_args(arguments)
    try:
        title, measurements = _COMMANDS[options.workload](options)
    except (RecserveError, OSError, RuntimeError) as error:
        print(f"recserve-loadtest: {error}", file=sys.stderr)
        return 1
    except grpc.aio.AioRpcError as error:
        print(f"recserve-loadtest: the server answered {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    Console().print(table(title, measurements))
    content = document(options.workload, measurements)
    out = options.out or Path(f"build/bench/{options.workload}.json")
    write(out, content)
    print(f"written to {out}")
    if options.workload == "forest":
        plot_forests(content, out.with_suffix(".svg"))
        print(f"drawn in {out.with_suffix('.svg')}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recserve-loadtest", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    kernels = commands.add_parser("kernels", help="time the kernels on seeded data")
    _add_kernel_options(kernels)
    serve = commands.add_parser("serve", help="start a server from its configuration and measure it")
    serve.add_argument("--config", type=Path, required=True, help="the server's configuration; it must name a snapshot")
    serve.add_argument("--requests", type=int, default=2000, help="requests sent one at a time (default %(default)s)")
    serve.add_argument("--seconds", type=float, default=10.0, help="time at saturation (default %(default)s)")
    serve.add_argument("--out", type=Path, default=Path("build/bench/served.json"))
    serve.set_defaults(workload="serve")
    return parser


def _add_kernel_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workload",
        nargs="?",
        choices=("kernels", "forest"),
        default="kernels",
        metavar="forest",
        help="time compiled forests beside other engines; otherwise search, keys, filters and re-ranking",
    )
    parser.add_argument("--items", type=int, default=100_000, help="rows of the item table (default %(default)s)")
    parser.add_argument("--runs", type=int, default=50, help="timed calls of each kernel (default %(default)s)")
    parser.add_argument("--out", type=Path, help="default build/bench/kernels.json, or forest.json")
    forest = parser.add_argument_group("forest")
    forest.add_argument("--trees", type=int, nargs="+", default=_WORK.trees, help="default %(default)s")
    forest.add_argument("--leaves", type=int, nargs="+", default=_WORK.leaves, help="default %(default)s")
    forest.add_argument("--rows", type=int, nargs="+", default=_WORK.rows, help="of a call (default %(default)s)")
    forest.add_argument(
        "--engines",
        nargs="*",
        choices=tuple(OTHERS),
        default=_WORK.engines,
        help="beside LightGBM (default %(default)s; to compile 1,000 trees takes tl2cgen minutes)",
    )
    forest.add_argument("--variants", nargs="*", default=(), help="of the kernel, beside the CPU's widest")
    forest.add_argument("--seconds", type=float, default=_WORK.seconds, help="limit of one size (default %(default)s)")
    forest.add_argument(
        "--groups", type=int, default=_WORK.groups, help="of 100 rows to train on (default %(default)s)"
    )
    forest.add_argument("--models", default=_WORK.models, help="folder that keeps models (default %(default)s)")


def _kernels(options: argparse.Namespace) -> tuple[str, list[Measurement]]:
    return f"Kernels, {options.items:,} items", list(measure_kernels(options.items, options.runs))


def _forest(options: argparse.Namespace) -> tuple[str, list[Measurement]]:
    names = ("trees", "leaves", "rows", "engines", "runs", "seconds", "groups", "models")
    work = Work(**{name: getattr(options, name) for name in names})
    return "Forests", list(measure_forests(work, options.variants, lambda line: print(line, file=sys.stderr)))


def _serve(options: argparse.Namespace) -> tuple[str, list[Measurement]]:
    settings = tomllib.loads(options.config.read_text("utf-8"))
    path = settings.get("state", {}).get("snapshot")
    if path is None:
        raise RuntimeError(f"{options.config} names no [state].snapshot; users to ask for come from there")
    snapshot = open_snapshot(options.config.parent / path, verify=False)
    users = snapshot.user_ids(np.arange(min(snapshot.size, 10_000)))
    measured = measure_server(options.config, users, requests=options.requests, seconds=options.seconds)
    return f"Server, {options.config}", asyncio.run(measured)


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], tuple[str, list[Measurement]]]] = {
    "kernels": _kernels,
    "forest": _forest,
    "serve": _serve,
}


if __name__ == "__main__":
    sys.exit(main())
