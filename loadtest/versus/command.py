"""`recserve-loadtest versus`: its options, and what they ask for."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from recserve.loadtest.arguments import pause, positive, whole
from recserve.loadtest.generator.wire import MAX_TIMEOUT_S
from recserve.loadtest.grids import terminal_table
from recserve.loadtest.reference.command import NAMES
from recserve.loadtest.results import check_writable, document_of_rows, write
from recserve.loadtest.runs.document import bundle_summary
from recserve.loadtest.runs.ending import Ending
from recserve.loadtest.runs.errors import TargetError
from recserve.loadtest.versus.tables import all_grids, verdict
from recserve.loadtest.workload.requests import POOL, Sources, messages_of
from recserve.loadtest.workload.scenario import Scenario, load_scenario
from recserve.server.bundle.extras import install_hint
from recserve.server.bundle.reader import Bundle, open_bundle
from recserve.server.bundle.snapshot import open_snapshot

if TYPE_CHECKING:
    from recserve.loadtest.reference.build import Workload
    from recserve.loadtest.versus.measure import Measured, Plan
    from recserve.loadtest.versus.quality import Indexes

BASELINES: Final = ("grpc.aio", "fastapi")
"""The keys of measure.BASELINES, which is imported only to measure."""
MODULES: Final = ("faiss", "lightgbm", "onnxruntime", "scipy", "fastapi", "httptools", "orjson", "uvicorn")
"""That the straightforward service needs."""


def add_versus(commands: Any) -> None:
    """Add the command to the parser of `recserve-loadtest`."""
    meaning = "ours beside a straightforward service with the same models, on one core"
    parser: argparse.ArgumentParser = commands.add_parser("versus", help=meaning, description=meaning)
    parser.add_argument(
        "--workload",
        default="small",
        metavar="NAME|FOLDER",
        help=f"one of {', '.join(NAMES)}, which is made if need be, or a folder of `workload` (default %(default)s)",
    )
    parser.add_argument("--baselines", nargs="+", choices=BASELINES, default=BASELINES, help="(default all)")
    parser.add_argument("--rounds", type=whole, default=3, help="turns of each service (default %(default)s)")
    parser.add_argument("--outstanding", type=whole, default=8, help="requests at saturation (default %(default)s)")
    parser.add_argument("--seconds", type=positive, default=8.0, help="of a saturated turn (default %(default)s)")
    parser.add_argument("--light-rate", type=positive, default=5.0, help="requests a second (default %(default)s)")
    parser.add_argument("--light-seconds", type=positive, default=8.0, help="of a light turn (default %(default)s)")
    parser.add_argument("--warmup", type=pause, default=1.0, help="seconds before each turn (default %(default)s)")
    parser.add_argument("--compared", type=whole, default=200, help="lists to compare (default %(default)s)")
    parser.add_argument("--server-core", type=int, metavar="N", help="of the services (default the first)")
    parser.add_argument("--generator-core", type=int, metavar="N", help="of their clients (default the last)")
    parser.add_argument("--realtime", action="store_true", help="clients go before all else on their core; privileged")
    parser.add_argument("--out", type=Path, default=Path("build/bench/versus.json"), help="(default %(default)s)")
    parser.set_defaults(run=_versus)


def _versus(options: argparse.Namespace) -> int:
    """Compare; whatever ends it, the rounds that are complete are written."""
    check_writable(options.out)
    cores, load = _cores(options), os.getloadavg()[0]
    _check_installed()
    from recserve.loadtest.versus.measure import Measured, measure  # noqa: PLC0415  it needs what exports need
    from recserve.loadtest.versus.quality import indexes  # noqa: PLC0415

    work = _workload(options.workload)
    bundle = open_bundle(work.bundle, verify=False)
    measured = Measured()
    with Ending() as ending, Console(stderr=True).status("") as shown:
        own_index = indexes(work.config, work.path / "baseline", shown.update)
        plan = _plan(options, work, bundle, own_index.path, cores)
        measure(plan, measured, shown.update)
    if measured.rounds:
        more = {"load_before": round(load, 2), **({"cut_short": ending.problem} if ending.problem else {})}
        _write(options, work, bundle, own_index, plan, measured, more)
    elif ending.problem:
        ending.problem += "; no round was complete, so nothing is written"
    ending.tell()
    return ending.status


def _check_installed() -> None:
    """The services are processes of their own: what they lack is said before they fail to start."""
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise TargetError(f"versus needs {', '.join(missing)}: {install_hint('versus')}")


def _cores(options: argparse.Namespace) -> tuple[int, int]:
    allowed = sorted(os.sched_getaffinity(0))
    server = allowed[0] if options.server_core is None else options.server_core
    generator = allowed[-1] if options.generator_core is None else options.generator_core
    if not {server, generator} <= set(allowed) or server == generator:
        raise TargetError(
            f"services and their clients need a core each, found {server} and {generator} of {allowed}: "
            "--server-core, --generator-core"
        )
    return server, generator


def _workload(name: str) -> Workload:
    from recserve.loadtest.reference.build import ABOUT, Workload, workload  # noqa: PLC0415
    from recserve.loadtest.reference.recipe import RECIPES  # noqa: PLC0415

    if name in RECIPES:
        return workload(RECIPES[name], Path("build/workloads") / name)
    try:
        return Workload(Path(name), json.loads((Path(name) / ABOUT).read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise TargetError(f"{name} is neither one of {', '.join(RECIPES)} nor a workload's folder: {error}") from error


def _plan(options: argparse.Namespace, work: Workload, bundle: Bundle, index: Path, cores: tuple[int, int]) -> Plan:
    from recserve.loadtest.versus.measure import Plan  # noqa: PLC0415

    scenario = _without_deadlines(load_scenario(str(work.scenario)))
    sources = Sources(bundle=bundle, snapshot=open_snapshot(work.snapshot, verify=False))
    return Plan(
        config=work.config,
        index=index,
        baselines=options.baselines,
        scenario=scenario,
        messages=messages_of(scenario, sources, POOL, seed=1),
        outstanding=options.outstanding,
        rounds=options.rounds,
        seconds=options.seconds,
        light_seconds=options.light_seconds,
        light_rate=options.light_rate,
        warmup_s=options.warmup,
        compared=options.compared,
        server_core=cores[0],
        generator_core=cores[1],
        realtime=options.realtime,
    )


def _without_deadlines(scenario: Scenario) -> Scenario:
    """The same for all: over HTTP there are none."""
    patient = [each.model_copy(update={"deadline_ms": 1000 * MAX_TIMEOUT_S}) for each in scenario.requests]
    return scenario.model_copy(update={"requests": tuple(patient)})


def _write(
    options: argparse.Namespace,
    work: Workload,
    bundle: Bundle,
    index: Indexes,
    plan: Plan,
    measured: Measured,
    more: Mapping[str, Any],
) -> None:
    from recserve.loadtest.versus.measure import OWN, problems, summaries, turns  # noqa: PLC0415

    recalls = dict.fromkeys(plan.baselines, index.choice.recall) | {OWN: index.own_recall}
    content = {
        **document_of_rows("versus", summaries(plan, measured, recalls)),
        "command": shlex.join(("recserve-loadtest", *sys.argv[1:])),
        "reference": {name: work.about["recipe"][name] for name in ("name", "items", "users", "trees", "seed")}
        | {"request_split_share": work.about["request_split_share"]},
        "bundle": bundle_summary(bundle.manifest),
        "baseline_index": asdict(index.choice),
        "candidates": index.choice.k,
        "count": plan.scenario.requests[0].count,
        "turns": turns(measured),
        "problems": problems(measured),
        **more,
    }
    write(options.out, content)
    _show(content)
    print(f"written to {options.out}")


def _show(content: Mapping[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(*map(terminal_table, all_grids(content)), sep="\n")
    own = content["results"][0]
    if "ratio_to_better" in own:
        print(verdict(own))
    for text in content["problems"]:
        console.print(text, style="red", markup=False, highlight=False)
