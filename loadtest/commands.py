"""The commands of `recserve-loadtest`: their parser, and what each prints and returns."""

from __future__ import annotations

import argparse
import functools
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from recserve.loadtest.forest.command import FOREST
from recserve.loadtest.grids import terminal_table
from recserve.loadtest.kernel_sets import KernelSet
from recserve.loadtest.kernels import BASICS
from recserve.loadtest.reference.command import add_workload
from recserve.loadtest.results import check_writable, document, table, write
from recserve.loadtest.retrieval.command import RETRIEVAL
from recserve.loadtest.runs.command import add_commands
from recserve.loadtest.runs.errors import UsageError
from recserve.loadtest.versus.command import add_versus
from recserve.server.bundle.errors import RecserveError
from recserve.server.bundle.interrupts import ENDING, handled

USAGE: Final = 2
"""Exit status where options do not go together, as argparse's own."""
KERNEL_SETS: Final = (BASICS, FOREST, RETRIEVAL)


def execute(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the result is its exit status.

    SIGTERM and SIGHUP count as Ctrl-C: servers that were started have sessions of their own, and would go on alone, and
    what is half made would stay.

    Raises:
        ImportError: an optional dependency is missing that only some commands need.
        KeyboardInterrupt: such a signal came where the command has nothing to save.
    """
    options = _parser().parse_args(arguments)
    try:
        with handled(ENDING, signal.default_int_handler):
            status: int = options.run(options)
    except UsageError as error:
        print(f"recserve-loadtest {options.command}: {error}", file=sys.stderr)
        return USAGE
    except (RecserveError, OSError, RuntimeError) as error:
        print(f"recserve-loadtest: {error}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="recserve-loadtest", description="Measure how fast a server is, and kernels alone."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    kernels = commands.add_parser("kernels", help="time kernels on seeded data")
    sets = kernels.add_subparsers(title="sets of kernels", required=True)
    for each in KERNEL_SETS:
        added = sets.add_parser(each.name, help=each.help)
        each.add_options(added)
        added.add_argument("--out", type=Path, default=Path(f"build/bench/{each.workload}.json"))
        added.set_defaults(run=functools.partial(_kernels, each))
    add_commands(commands)
    add_versus(commands)
    add_workload(commands)
    return parser


def _kernels(kernel_set: KernelSet, options: argparse.Namespace) -> int:
    check_writable(options.out)
    measurements = list(kernel_set.measure(options))
    content = document(kernel_set.workload, measurements)
    # First the files: what was measured outlives whoever no longer reads what is printed.
    write(options.out, content)
    if kernel_set.finish:
        kernel_set.finish(options, content)
    if kernel_set.grids:
        _console().print(*map(terminal_table, kernel_set.grids(content)), sep="\n")
    else:
        _console().print(table(f"Kernels: {kernel_set.name}", measurements))
    print(f"written to {options.out}")
    return 0


def _console() -> Console:
    """The terminal, or what output is redirected to, where nothing limits the width of a table."""
    return Console() if sys.stdout.isatty() else Console(width=160)
