"""What `recserve-loadtest kernels` is made of: each set of kernels is a subcommand with options of its own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from recserve.loadtest.grids import Grid
from recserve.loadtest.results import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSet:
    """One set of kernels; commands.KERNEL_SETS lists them.

    Attributes:
        name: of the subcommand.
        help: what it measures.
        workload: its name in the result file, and the name of that file.
        add_options: adds its own options; every set has --out.
        measure: measures what the options ask for. What only this needs, it imports itself: the command is installed
            without what the sets measure ours beside.
        grids: tables to print of the result file's content, instead of one line for each result.
        finish: what else to make of the result file's content.
    """

    name: str
    help: str
    workload: str
    add_options: Callable[[argparse.ArgumentParser], None]
    measure: Callable[[argparse.Namespace], Iterable[Measurement]]
    grids: Callable[[Mapping[str, Any]], Iterable[Grid]] | None = None
    finish: Callable[[argparse.Namespace, Mapping[str, Any]], None] | None = None
