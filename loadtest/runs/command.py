"""`recserve-loadtest run`, `sweep`, `capacity`, `soak`, `saturate`, `compare` and `report`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from recserve.loadtest.arguments import cores, natural, not_negative, pause, positive, precision, rising, whole
from recserve.loadtest.generator.pacing import arrivals
from recserve.loadtest.grids import terminal_table
from recserve.loadtest.results import check_writable, write
from recserve.loadtest.runs.compare import compare, differences, grid, invalid_runs, read_results, shown
from recserve.loadtest.runs.document import at_least, load_document, problems_of, runs_grid
from recserve.loadtest.runs.ending import Ending
from recserve.loadtest.runs.errors import TargetError, UsageError
from recserve.loadtest.runs.once import Row, Setup, run_once, saturate
from recserve.loadtest.runs.search import LEAST_RATE, Capacity, knee, rising_rates, sweep
from recserve.loadtest.runs.target import Target, parse_address, probe, started_server
from recserve.loadtest.runs.trend import trend
from recserve.loadtest.workload.recording import load_recording
from recserve.loadtest.workload.requests import POOL, Sources, messages_of, one_of_each
from recserve.loadtest.workload.scenario import DEFAULT, Scenario, load_scenario, shipped_scenarios
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.replacing import replace_text
from recserve.server.bundle.snapshot import open_snapshot
from recserve.server.config import load_settings

RATE: Final = "requests a second; only for a replay it may be left out, which then goes as recorded"
WORSE: Final = 3
"""Exit status of `compare` where B is worse than A."""
UNTRUSTED: Final = 4
"""Exit status of `compare` where runs are invalid, so that nobody knows whether B is worse."""


@dataclass(slots=True)
class Session:
    """One command at work: what it measures, and what it has so far."""

    options: argparse.Namespace
    setup: Setup
    tell: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def hold(self, rate: float, repeat: int = 1, *, seconds: float | None = None) -> Row:
        """One run, of the time that the options say where none is given."""
        seconds = self.options.seconds if seconds is None else seconds
        pace = f"{rate:g} requests/s" if rate else "as recorded,"
        shown = f"{pace} for {self.setup.warmup_s + seconds:g} s"

        def tell(text: str) -> None:
            self.tell(f"{shown}: {text}")

        return run_once(self.setup, rate, seconds, repeat=repeat, before=self.sent, tell=tell)

    @property
    def sent(self) -> int:
        """Requests of the runs so far, with those of their warm-ups."""
        return sum(row["generator"]["requests"] for row in self.rows)


Work = Callable[[Session], None]


def _run(session: Session) -> None:
    for repeat in range(1, session.options.repeat + 1):
        session.rows.append(session.hold(session.options.rate or 0.0, repeat))


def _sweep(session: Session) -> None:
    options = session.options
    # Rising rates stay an iterator: most of them lie past the knee, and are never asked for.
    rates = sorted(options.rates) if options.rates else rising_rates(options.start, options.factor, options.most)
    session.more["budget_ms"] = options.budget_ms
    for row in sweep(session.hold, rates, options.budget_ms, past=None if options.rates else options.past):
        session.rows.append(row)
        session.more["knee"] = knee(session.rows, options.budget_ms)


def _capacity(session: Session) -> None:
    options = session.options
    found = Capacity(options.budget_ms, options.precision, rows=session.rows)
    session.more["budget_ms"] = options.budget_ms
    confirm = functools.partial(session.hold, seconds=options.confirm_seconds)
    found.search(session.hold, confirm, options.start, options.most)
    session.more["capacity"] = {
        "rate": found.rate,
        "confirmed": found.confirmed,
        "at_least": found.at_least,
    }


def _soak(session: Session) -> None:
    row = session.hold(session.options.rate or 0.0)
    session.rows.append(row)
    session.more["trend"] = trend(row)


def _saturate(session: Session) -> None:
    options = session.options
    for _ in range(options.repeat):
        row = saturate(session.setup, options.outstanding, options.seconds, before=session.sent, tell=session.tell)
        session.rows.append(row)


# ------------------------------------------------------------------------------------------------------- sessions


def _load_test(workload: str, work: Work, options: argparse.Namespace) -> int:
    """Do the work on the target; whatever ends it, what was measured is written."""
    check_options(workload, options)
    check_writable(options.out, *([options.out.with_suffix(".html")] if options.report else ()))
    scenario = load_scenario(options.scenario)
    check_schedule(scenario, options)
    sources = _sources(options)
    messages = messages_of(scenario, sources, _pool(options), options.seed)
    console = Console(stderr=True)
    session: Session | None = None
    with Ending() as ending, _target(options) as target, console.status("asking the target once") as shown:
        probe(target, one_of_each(messages))
        session = Session(options, _setup(options, target, scenario, messages), shown.update)
        work(session)
    if session is not None and ending.row is not None:
        session.rows.append(ending.row)
    if session is not None and session.rows:
        _write(workload, session, scenario, sources, ending.problem)
    ending.tell()
    return ending.status


def check_options(workload: str, options: argparse.Namespace) -> None:
    """What can be said of the options before anything is started.

    Raises:
        UsageError: they do not go together.
    """
    allowed = os.sched_getaffinity(0)
    if not set(options.generator_cores) <= allowed:
        asked = ",".join(map(str, options.generator_cores))
        raise UsageError(f"--generator-cores {asked}: this process may use {sorted(allowed)}")
    if workload == "sweep" and not options.rates and options.start > options.most:
        raise UsageError(
            f"there is no rate to try: the first, --start {options.start:g}, is above --most {options.most:g}"
        )
    if workload == "capacity" and options.most < LEAST_RATE:
        raise UsageError(f"--most {options.most:g}: expected a rate from {LEAST_RATE:g}, no lower one is tried")


def check_schedule(scenario: Scenario, options: argparse.Namespace) -> None:
    """That requests can leave as the scenario and the options say, as far as rates are known before the first run.

    Raises:
        ScheduleError: they cannot; where a recording is to blame, the message names its file.
        UsageError: there is no rate.
    """
    pattern, times = scenario.arrivals.pattern, scenario.arrivals.times
    recorded = load_recording(times) if times is not None else ()
    if not hasattr(options, "rate"):
        return
    if options.rate is None and pattern != "replay":
        raise UsageError(
            f"--rate is missing: the arrivals of scenario {options.scenario} are {pattern}, and only a replay has a "
            "rate of its own"
        )
    arrivals(pattern, options.rate or 0.0, options.warmup + options.seconds, recorded=recorded)


def _write(workload: str, session: Session, scenario: Scenario, sources: Sources, problem: str) -> None:
    options = session.options
    content = load_document(
        workload,
        session.rows,
        scenario=scenario,
        scenario_name=options.scenario,
        target=f"recserve serve --config {options.config}" if options.target is None else options.target,
        bundle=sources.bundle,
        config=options.config if options.target is None else None,
        more={**session.more, **({"cut_short": problem} if problem else {})},
    )
    page = options.out.with_suffix(".html")
    # First the files: what was measured outlives whoever no longer reads what is printed.
    write(options.out, content)
    if options.report:
        _report(options.out, page)
    print_grid(content)
    print(f"written to {options.out}")
    if options.report:
        print(f"written to {page}")
    elif page.exists():
        print(f"{page} is still of an earlier run; to draw it again: recserve-loadtest report {options.out}")


def print_grid(content: Mapping[str, Any]) -> None:
    """The runs as a table, and what is wrong with them."""
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(terminal_table(runs_grid(f"{content['workload']}, {content['target']}", content["results"])))
    for text in problems_of(content["results"]):
        console.print(text, style="red", markup=False, highlight=False)
    for name, text in {name: text for row in content["results"] for name, text in row["messages"].items()}.items():
        console.print(f"{name}: {text}", style="dim", markup=False, highlight=False)
    if capacity := content.get("capacity"):
        rate = f"{at_least(capacity)}{capacity['rate']:g} requests/s"
        print(f"capacity: {rate} with a p99 of at most {content['budget_ms']:g} ms, confirmed")
    elif "knee" in content:
        found = content["knee"]
        print("knee: below the first rate" if found is None else f"knee: at {found:g} requests/s")
    for line in content.get("trend", {}).get("words", ()):
        print(line)


def _report(results: Path, page: Path) -> None:
    from recserve.loadtest.report.page import check_drawable, render_page  # noqa: PLC0415  slow to import: it draws

    content = read_results(results)
    check_drawable(content, results)
    replace_text(page, render_page(content))


def _pool(options: argparse.Namespace) -> int:
    """Distinct requests: as many as all runs send, where that is known."""
    rate: float | None = getattr(options, "rate", None)
    if rate is None:
        return POOL
    return max(1, int(1.2 * rate * (options.warmup + options.seconds) * getattr(options, "repeat", 1)))


def _sources(options: argparse.Namespace) -> Sources:
    """The bundle and the snapshot that requests are made of."""
    bundle, snapshot = options.bundle, options.snapshot
    if options.config is not None:
        settings = load_settings(file=options.config)
        bundle = bundle or settings.bundles[0].path
        snapshot = snapshot or settings.state.snapshot
    return Sources(
        bundle=open_bundle(bundle, verify=False) if bundle else None,
        snapshot=open_snapshot(snapshot, verify=False) if snapshot else None,
    )


@contextlib.contextmanager
def _target(options: argparse.Namespace) -> Iterator[Target]:
    if options.target is not None:
        if options.server_cores:
            raise TargetError("--server-cores is for a server that is started here, not for --target")
        yield Target(*parse_address(options.target), pid=options.pid)
        return
    if options.config is None:
        raise TargetError("what is to be measured? give --target HOST:PORT, or --config FILE to start a server from it")
    with started_server(options.config, options.server_cores) as target:
        yield target


def _setup(options: argparse.Namespace, target: Target, scenario: Scenario, messages: Any) -> Setup:
    return Setup(
        name=options.name,
        target=target,
        scenario=scenario,
        messages=messages,
        warmup_s=options.warmup,
        connections=options.connections,
        processes=options.processes,
        generator_cores=options.generator_cores,
        realtime=options.realtime,
        seed=options.seed,
    )


def _compare(options: argparse.Namespace) -> int:
    if options.out:
        check_writable(options.out)
    a, b = read_results(options.a), read_results(options.b)
    ratios = compare(a, b, options.tolerance)
    if options.out:
        replace_text(options.out, json.dumps([asdict(each) for each in ratios], indent=1))
    Console(width=None if sys.stdout.isatty() else 200).print(terminal_table(grid(ratios)))
    for text in differences(a, b):
        print(f"not of the same work: {text}")
    invalid = [(path, text) for path, content in ((options.a, a), (options.b, b)) for text in invalid_runs(content)]
    for path, text in invalid:
        print(f"invalid: {path}: {text}")
    worse = [each for each in ratios if each.verdict == "worse"]
    for each in worse:
        print(f"worse: {each.figure} of {each.name}, {each.params}: {shown(each.ratio)} times")
    if any(each.low is None and each.a and each.b for each in ratios):
        print("intervals need repeated runs on both sides: run --repeat 5")
    return WORSE if worse else UNTRUSTED if invalid else 0


def _draw(options: argparse.Namespace) -> int:
    page = options.out or options.results.with_suffix(".html")
    _report(options.results, page)
    print(f"written to {page}")
    return 0


# --------------------------------------------------------------------------------------------------------- parser


def add_commands(commands: Any) -> None:
    """Add the commands to the parser of `recserve-loadtest`."""
    run = _command(commands, "run", _run, "hold one rate", seconds=30.0)
    run.add_argument("--rate", type=positive, help=RATE)
    run.add_argument("--repeat", type=whole, default=1, help="runs, for `compare` (default %(default)s)")

    rates = _command(commands, "sweep", _sweep, "latency against offered rate, to the knee and past it", seconds=10.0)
    rates.add_argument("--rates", type=positive, nargs="+", metavar="RATE", help="all of them; left out: rising ones")
    rates.add_argument("--factor", type=rising, default=1.5, help="from rate to rate (default %(default)s)")
    rates.add_argument("--past", type=whole, default=2, help="rising rates past the knee (default %(default)s)")

    capacity = _command(commands, "capacity", _capacity, "the highest rate whose p99 holds a budget", seconds=5.0)
    capacity.add_argument("--confirm-seconds", type=positive, default=20.0, help="(default %(default)s)")
    capacity.add_argument("--precision", type=precision, default=0.05, help="of the rate (default %(default)s)")

    for each in (rates, capacity):
        each.add_argument("--budget-ms", type=positive, default=50.0, help="for the p99 (default %(default)s)")
        each.add_argument("--start", type=positive, default=50.0, help="the first rate (default %(default)s)")
        each.add_argument("--most", type=positive, default=20_000.0, help="no rate above it (default %(default)s)")

    soak = _command(commands, "soak", _soak, "hold one rate for long: memory and p99 over time", seconds=300.0)
    soak.add_argument("--rate", type=positive, help=RATE)

    full = _command(commands, "saturate", _saturate, "keep requests under way: good answers a second", seconds=10.0)
    full.add_argument("--outstanding", type=whole, default=8, help="requests under way (default %(default)s)")
    full.add_argument("--repeat", type=whole, default=1, help="runs (default %(default)s)")

    both = commands.add_parser(
        "compare",
        help=f"ratios of two result files, with intervals; exit status {WORSE}: B is worse, {UNTRUSTED}: invalid runs",
    )
    both.add_argument("a", type=Path, metavar="A.json")
    both.add_argument("b", type=Path, metavar="B.json")
    both.add_argument(
        "--tolerance", type=not_negative, default=0.05, help="changes that do not matter (default %(default)s)"
    )
    both.add_argument("--out", type=Path, help="ratios as JSON")
    both.set_defaults(run=_compare)

    page = commands.add_parser("report", help="draw the page of a result file again")
    page.add_argument("results", type=Path, metavar="RESULTS.json")
    page.add_argument("--out", type=Path, help="the page (default beside the results)")
    page.set_defaults(run=_draw)


def _command(commands: Any, name: str, work: Work, meaning: str, *, seconds: float) -> argparse.ArgumentParser:
    """A command that loads a target."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=meaning, description=meaning)
    parser.set_defaults(run=functools.partial(_load_test, name, work))
    parser.add_argument("--seconds", type=positive, default=seconds, help="of a run (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(f"build/bench/{name}.json"), help="(default %(default)s)")
    parser.add_argument(
        "--report", action=argparse.BooleanOptionalAction, default=True, help="also draw the page beside it"
    )
    _add_target(parser.add_argument_group("target"))
    _add_load(parser.add_argument_group("load"))
    return parser


def _add_target(group: Any) -> None:
    group.add_argument("--config", type=Path, help="the server's configuration: it is started from it")
    group.add_argument("--target", metavar="HOST:PORT", help="a server that runs already")
    group.add_argument("--pid", type=whole, default=0, help="of --target, to measure its CPU time and memory")
    group.add_argument("--server-cores", type=cores, default=(), metavar="N,…", help="where the started server runs")
    group.add_argument("--bundle", type=Path, help="what --target serves (default from --config)")
    group.add_argument("--snapshot", type=Path, help="the users (default from --config)")
    group.add_argument("--name", default="recserve", help="in results (default %(default)s)")


def _add_load(group: Any) -> None:
    names = "; ".join(f"{name}: {text}" for name, text in shipped_scenarios().items())
    group.add_argument("--scenario", default=DEFAULT, help=f"a file, or one of these (default %(default)s). {names}")
    group.add_argument("--warmup", type=pause, default=2.0, help="seconds before each run (default %(default)s)")
    group.add_argument("--connections", type=whole, default=4, help="of each process (default %(default)s)")
    group.add_argument("--processes", type=whole, default=1, help="generators (default %(default)s)")
    group.add_argument("--generator-cores", type=cores, default=(), metavar="N,…", help="where they run, in turns")
    group.add_argument(
        "--realtime", action="store_true", help="generators go before all else on their cores; privileged"
    )
    group.add_argument("--seed", type=natural, default=1, help="of users, items and schedules (default %(default)s)")
