"""`python -m examples.online_retail --data transactions.parquet --out build/retail`."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from recserve.server.bundle.errors import RecserveError
from recserve.server.bundle.extras import install_hint


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; 0, or 1 with a message where the data or the target cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m examples.online_retail", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the transactions: Parquet, CSV or Arrow")
    parser.add_argument("--out", type=Path, default=Path("build/retail"), help="a directory of its own")
    parser.add_argument("--replace", action="store_true", help="replace an earlier result in that directory")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        from examples.online_retail.run import BUNDLE, run  # noqa: PLC0415  PyTorch is optional, and slow to import
    except ModuleNotFoundError as error:
        hint = install_hint("cpu,export,torch")  # whose brackets are no markup, and which is copied from one line
        console.print(f"{error}: {hint}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 1
    try:
        if options.replace and (options.out / BUNDLE / "manifest.json").exists():
            shutil.rmtree(options.out)
        run(options.data, options.out, console=console)
    except RecserveError as error:
        console.print(str(error), style="red", highlight=False, markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
