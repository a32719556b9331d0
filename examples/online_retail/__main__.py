"""`python -m examples.online_retail --data transactions.parquet --out build/retail`."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from rich.console import Console

from recserve.server.bundle.errors import RecserveError
from recserve.server.bundle.extras import install_hint


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; 0, 1 with a message where the data or the target cannot be used, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m examples.online_retail", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the transactions: Parquet, CSV or Arrow")
    parser.add_argument("--out", type=Path, default=Path("build/retail"), help="a directory of its own")
    parser.add_argument("--replace", action="store_true", help="replace an earlier result in that directory")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        _make(options.data, options.out, replace=options.replace, console=console)
    except ModuleNotFoundError as error:
        _print_error(console, f"{error}: {install_hint('cpu,export,torch')}")
        return 1
    except (RecserveError, OSError) as error:
        _print_error(console, str(error))
        return 1
    except KeyboardInterrupt:
        _print_error(
            console, "interrupted; nothing is left of what was not complete, and an earlier result is as it was"
        )
        return 128 + signal.SIGINT  # as shells expect of a command that a signal has ended
    return 0


def _print_error(console: Console, message: str) -> None:
    # No markup, for hints have brackets; and a line that is copied stays one.
    console.print(message, style="red", highlight=False, markup=False, soft_wrap=True)


def _make(data: Path, out: Path, *, replace: bool, console: Console) -> None:
    """An earlier result stays until there is a new one to take its name."""
    from examples.online_retail.run import BUNDLE, run  # noqa: PLC0415  PyTorch is optional, and slow to import

    out = out.resolve()
    if not (replace and (out / BUNDLE / "manifest.json").exists()):
        run(data, out, console=console)
        return
    with TemporaryDirectory(prefix=f".{out.name}.new-", dir=out.parent) as folder:
        new = Path(folder, out.name)
        run(data, new, console=console)
        earlier = mkdtemp(prefix=f".{out.name}.earlier-", dir=out.parent)
        out.rename(earlier)
        new.rename(out)
    shutil.rmtree(earlier)


if __name__ == "__main__":
    sys.exit(main())
