"""`recserve-loadtest versus`: its options, and what they ask for."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from recserve.loadtest.grids import terminal_table
from recserve.loadtest.reference.command import NAMES
from recserve.loadtest.results import document_of_rows, write
from recserve.loadtest.runs.command import INTERRUPTED, cut_short, positive_number, positive_whole
from recserve.loadtest.runs.errors import TargetError
from recserve.loadtest.versus.tables import all_grids

if TYPE_CHECKING:
    from recserve.loadtest.reference.build import Workload
    from recserve.loadtest.versus.measure import Measured, Plan
    from recserve.loadtest.versus.quality import Indexes

BASELINES: Final = ("grpc.aio", "fastapi")
"""The keys of measure.BASELINES, which is imported only to measure."""
