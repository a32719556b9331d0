"""The command `recserve-export`: build, inspect, verify, diff and evaluate bundles, and build the demo."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from recserve.server.bundle.errors import RecserveError
from recserve.server.bundle.extras import install_hint
from recserve.server.bundle.interrupts import ENDING, handled
from recserve.server.bundle.replacing import is_replaceable, replace_text
from recserve.server.bundle.tables import stdout_console, terminal_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Its exit status: 0, 1 where an error was printed, or what shells expect of a command that a signal has ended,
        such as 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        with handled(ENDING, _interrupt):
            options.run(options, console)
    except (RecserveError, OSError) as error:
        _print_error(console, str(error))
        return 1
    except ImportError as error:
        _print_error(console, f"{error}; exporting needs {install_hint('cpu,export')}")
        return 1
    except KeyboardInterrupt as interrupt:
        _print_error(console, "interrupted; nothing is left of what was not complete")
        number: int = interrupt.args[0] if interrupt.args else signal.SIGINT
        return 128 + number
    return 0


def _interrupt(number: int, _: object) -> NoReturn:
    """What ends the command counts as Ctrl-C, so that what it began is removed."""
    raise KeyboardInterrupt(number)


def _print_error(console: Console, message: str) -> None:
    """Nothing is wrapped: a path or a name that is broken over two lines cannot be copied."""
    console.print(f"recserve-export: {message}", style="red", markup=False, highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recserve-export", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    build = commands.add_parser("build", help="export a bundle, and its user snapshot, from a TOML file")
    build.add_argument("spec", type=Path, help="the export's specification")
    build.add_argument("--out", type=Path, required=True, help="directory to make, for bundle/ and snapshot/")
    build.set_defaults(run=_build)

    inspect = commands.add_parser("inspect", help="what a bundle or a user snapshot holds")
    inspect.add_argument("path", type=Path, help="its directory")
    inspect.set_defaults(run=_inspect)

    verify = commands.add_parser("verify", help="check a bundle's files, and replay its golden requests")
    verify.add_argument("bundle", type=Path)
    verify.add_argument("--allow-native-code", action="store_true", help="replay them with its native forests, too")
    verify.set_defaults(run=_verify)

    diff = commands.add_parser("diff", help="what sets two bundles apart")
    diff.add_argument("old", type=Path)
    diff.add_argument("new", type=Path)
    diff.set_defaults(run=_diff)

    evaluate = commands.add_parser("evaluate", help="measure how well a bundle recommends")
    evaluate.add_argument("bundle", type=Path)
    evaluate.add_argument("--snapshot", type=Path, required=True, help="the user snapshot of the cut-off")
    evaluate.add_argument("--truth", type=Path, required=True, help="table of what users took after the cut-off")
    evaluate.add_argument("--time", required=True, help="the cut-off, ISO 8601; without a zone it is UTC")
    evaluate.add_argument("--user-column", default="user_id", help="of the truth (default %(default)s)")
    evaluate.add_argument("--item-column", default="item_id", help="of the truth (default %(default)s)")
    evaluate.add_argument("--time-column", default="", help="of the truth (default time, where there is one)")
    evaluate.add_argument("--config", type=Path, help="a server's configuration, whose placement is asked")
    evaluate.add_argument("--placement", default="default", help="which one of the configuration (default %(default)s)")
    evaluate.add_argument("--mode", choices=("all", "first"), action="append", help="one of the two modes only")
    evaluate.add_argument("--new-users", action="store_true", help="count users without history, too")
    evaluate.add_argument("--out", type=Path, help="where to write the figures as JSON")
    evaluate.add_argument("--report", type=Path, help="where to write the figures as a page")
    evaluate.set_defaults(run=_evaluate)

    demo = commands.add_parser("demo", help="simulate a marketplace, train on it, and export")
    demo.add_argument("--out", type=Path, required=True, help="receives bundle/, snapshot/ and recserve.toml")
    demo.add_argument("--seed", type=int, default=7, help="of the simulation (default %(default)s)")
    demo.set_defaults(run=_demo)
    return parser


# Each command imports what it needs: `inspect` should not wait for LightGBM.


def _build(options: argparse.Namespace, console: Console) -> None:
    from recserve.exporters.export import export_all  # noqa: PLC0415
    from recserve.exporters.specfile import read_spec  # noqa: PLC0415

    spec, users = read_spec(options.spec)
    report = export_all(spec, users, options.out, console=console)
    stdout_console().print(report.table())
    console.print(f"wrote {options.out}", markup=False, highlight=False, soft_wrap=True)


def _inspect(options: argparse.Namespace, _console: Console) -> None:
    from recserve.exporters.inspect import inspect_artifact  # noqa: PLC0415

    stdout_console().print(inspect_artifact(options.path))


def _verify(options: argparse.Namespace, _console: Console) -> None:
    from recserve.exporters.inspect import verify_bundle  # noqa: PLC0415

    stdout_console().print(verify_bundle(options.bundle, allow_native_code=options.allow_native_code))


def _diff(options: argparse.Namespace, _console: Console) -> None:
    from recserve.exporters.inspect import diff_bundles  # noqa: PLC0415

    stdout_console().print(diff_bundles(options.old, options.new))


def _evaluate(options: argparse.Namespace, console: Console) -> None:
    from recserve.exporters.errors import ExportError  # noqa: PLC0415
    from recserve.exporters.evaluate import evaluate_bundle  # noqa: PLC0415
    from recserve.exporters.evaluation.page import evaluation_notes, evaluation_tables, render_evaluation  # noqa: PLC0415
    from recserve.exporters.evaluation.placement import read_placement  # noqa: PLC0415
    from recserve.exporters.evaluation.times import parse_time  # noqa: PLC0415
    from recserve.exporters.spec import EvaluationSpec  # noqa: PLC0415
    from recserve.server.pipeline.settings import DEFAULT_PLACEMENT, PlacementSettings  # noqa: PLC0415

    if options.placement != DEFAULT_PLACEMENT and options.config is None:
        raise ExportError(f"--placement {options.placement} is one of a server's configuration: add --config")
    for path in filter(None, (options.out, options.report)):
        _check_writable(path)
    spec = EvaluationSpec(
        truth=options.truth,
        time_us=parse_time(options.time),
        user_column=options.user_column,
        item_column=options.item_column,
        time_column=options.time_column,
        placement=read_placement(options.config, options.placement) if options.config else PlacementSettings(),
        modes=options.mode or ("all", "first"),
        new_users=options.new_users,
    )
    with console.status("evaluating") as status:
        evaluation = evaluate_bundle(
            options.bundle,
            options.snapshot,
            spec,
            on_progress=lambda done, total: status.update(f"evaluating: {done:,} of {total:,} users"),
        )
    try:
        if options.out:
            replace_text(options.out, json.dumps(evaluation.to_json(), indent=2) + "\n")
        if options.report:
            replace_text(options.report, render_evaluation(evaluation))
    finally:  # the figures took minutes: whichever place fails, the others have them
        stdout_console().print(*map(terminal_table, evaluation_tables(evaluation)), sep="\n")
    for note in evaluation_notes(evaluation):
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _check_writable(path: Path) -> None:
    """Refuse a place for results before they are computed, which takes minutes.

    Raises:
        ExportError: it is a directory, or its directory is missing or closed to this user.
    """
    from recserve.exporters.errors import ExportError  # noqa: PLC0415

    if path.is_dir():
        raise ExportError(f"{path} is a directory: name a file in it")
    if not path.parent.is_dir():
        raise ExportError(f"{path} cannot be written: there is no directory {path.parent}: make it")
    places = [path] if path.exists() else []
    places += [path.resolve().parent] if is_replaceable(path) else []
    if not all(os.access(place, os.W_OK) for place in places):
        raise ExportError(f"{path} cannot be written: this user has no right to: choose another place")


def _demo(options: argparse.Namespace, console: Console) -> None:
    from recserve.exporters.demo.build import build_demo  # noqa: PLC0415

    build_demo(options.out, seed=options.seed, console=console)


if __name__ == "__main__":
    sys.exit(main())
