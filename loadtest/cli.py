"""The command `recserve-loadtest`."""

from __future__ import annotations

import argparse
import asyncio
import functools
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import grpc
import numpy as np
from rich.console import Console

from recserve.loadtest.forest.command import FOREST
from recserve.loadtest.grids import terminal_table
from recserve.loadtest.kernel_sets import KernelSet
from recserve.loadtest.kernels import BASICS
from recserve.loadtest.results import document, table, write
from recserve.loadtest.retrieval.command import RETRIEVAL
from recserve.loadtest.served import measure_server
from recserve.server.bundle.errors import RecserveError
from recserve.server.bundle.snapshot import open_snapshot

KERNEL_SETS: Final = (BASICS, FOREST, RETRIEVAL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the result is its exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (RecserveError, OSError, RuntimeError) as error:
        print(f"recserve-loadtest: {error}", file=sys.stderr)
        return 1
    except grpc.aio.AioRpcError as error:
        print(f"recserve-loadtest: the server answered {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    print(f"written to {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recserve-loadtest", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    kernels = commands.add_parser("kernels", help="time kernels on seeded data")
    sets = kernels.add_subparsers(title="sets of kernels", required=True)
    for each in KERNEL_SETS:
        added = sets.add_parser(each.name, help=each.help)
        each.add_options(added)
        added.add_argument("--out", type=Path, default=Path(f"build/bench/{each.workload}.json"))
        added.set_defaults(run=functools.partial(_kernels, each))
    serve = commands.add_parser("serve", help="start a server from its configuration and measure it")
    serve.add_argument("--config", type=Path, required=True, help="the server's configuration; it must name a snapshot")
    serve.add_argument("--requests", type=int, default=2000, help="requests sent one at a time (default %(default)s)")
    serve.add_argument("--seconds", type=float, default=10.0, help="time at saturation (default %(default)s)")
    serve.add_argument("--out", type=Path, default=Path("build/bench/served.json"))
    serve.set_defaults(run=_serve)
    return parser


def _kernels(kernel_set: KernelSet, options: argparse.Namespace) -> None:
    measurements = list(kernel_set.measure(options))
    content = document(kernel_set.workload, measurements)
    if kernel_set.grids:
        _console().print(*map(terminal_table, kernel_set.grids(content)), sep="\n")
    else:
        _console().print(table(f"Kernels: {kernel_set.name}", measurements))
    write(options.out, content)
    if kernel_set.finish:
        kernel_set.finish(options, content)


def _serve(options: argparse.Namespace) -> None:
    settings = tomllib.loads(options.config.read_text("utf-8"))
    path = settings.get("state", {}).get("snapshot")
    if path is None:
        raise RuntimeError(f"{options.config} names no [state].snapshot; users to ask for come from there")
    snapshot = open_snapshot(options.config.parent / path, verify=False)
    users = snapshot.user_ids(np.arange(min(snapshot.size, 10_000)))
    measured = asyncio.run(measure_server(options.config, users, requests=options.requests, seconds=options.seconds))
    _console().print(table(f"Server, {options.config}", measured))
    write(options.out, document(options.command, measured))


def _console() -> Console:
    """The terminal, or what output is redirected to, where nothing limits the width of a table."""
    return Console() if sys.stdout.isatty() else Console(width=160)


if __name__ == "__main__":
    sys.exit(main())
