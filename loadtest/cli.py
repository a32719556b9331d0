"""The command `recserve-loadtest`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np
from rich.console import Console

from recserve.loadtest.kernels import measure_kernels
from recserve.loadtest.results import Measurement, document, table, write
from recserve.loadtest.served import measure_server
from recserve.server.bundle.errors import RecserveError
from recserve.server.bundle.snapshot import open_snapshot


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the result is its exit status."""
    options = _parser().parse_args(arguments)
    try:
        title, measurements = _kernels(options) if options.command == "kernels" else _serve(options)
    except (RecserveError, OSError, RuntimeError) as error:
        print(f"recserve-loadtest: {error}", file=sys.stderr)
        return 1
    except grpc.aio.AioRpcError as error:
        print(f"recserve-loadtest: the server answered {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    Console().print(table(title, measurements))
    write(options.out, document(options.command, measurements))
    print(f"written to {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recserve-loadtest", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    kernels = commands.add_parser("kernels", help="time the kernels on seeded data")
    kernels.add_argument("--items", type=int, default=100_000, help="rows of the item table (default %(default)s)")
    kernels.add_argument("--runs", type=int, default=50, help="timed calls of each kernel (default %(default)s)")
    kernels.add_argument("--out", type=Path, default=Path("build/bench/kernels.json"))
    serve = commands.add_parser("serve", help="start a server from its configuration and measure it")
    serve.add_argument("--config", type=Path, required=True, help="the server's configuration; it must name a snapshot")
    serve.add_argument("--requests", type=int, default=2000, help="requests sent one at a time (default %(default)s)")
    serve.add_argument("--seconds", type=float, default=10.0, help="time at saturation (default %(default)s)")
    serve.add_argument("--out", type=Path, default=Path("build/bench/served.json"))
    return parser


def _kernels(options: argparse.Namespace) -> tuple[str, list[Measurement]]:
    return f"Kernels, {options.items:,} items", list(measure_kernels(options.items, options.runs))


def _serve(options: argparse.Namespace) -> tuple[str, list[Measurement]]:
    settings = tomllib.loads(options.config.read_text("utf-8"))
    path = settings.get("state", {}).get("snapshot")
    if path is None:
        raise RuntimeError(f"{options.config} names no [state].snapshot; users to ask for come from there")
    snapshot = open_snapshot(options.config.parent / path, verify=False)
    users = snapshot.user_ids(np.arange(min(snapshot.size, 10_000)))
    measured = measure_server(options.config, users, requests=options.requests, seconds=options.seconds)
    return f"Server, {options.config}", asyncio.run(measured)


if __name__ == "__main__":
    sys.exit(main())
