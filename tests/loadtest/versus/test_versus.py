"""What a comparison makes of its turns, and one from end to end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recserve.loadtest.cli import main
from recserve.loadtest.grids import markdown_table
from recserve.loadtest.reference.build import Workload
from recserve.loadtest.runs.figures import histogram
from recserve.loadtest.versus.measure import Measured, Plan, problems, summaries, turns
from recserve.loadtest.versus.quality import overlap
from recserve.loadtest.versus.tables import all_grids, verdict
from recserve.loadtest.workload.scenario import load_scenario

SERVICES = ("recserve", "grpc.aio", "fastapi")


def turn(rate: float, milliseconds: list[float] | None = None, **others: Any) -> dict[str, Any]:
    return {
        "name": "it",
        "requests_per_s": rate,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "valid": True,
        "cpu_ms_per_request": 1000 / rate,
        "ok_share": 1.0,
        "problems": [],
        "server": {"pss_mib": [1.0, 200.0]},
        "histogram": histogram((1000 * np.array(milliseconds)).astype(int)).encode().decode() if milliseconds else "",
        "params": {"seconds": 1.0},
        **others,
    }


@pytest.fixture(name="measured")
def fixture_measured() -> Measured:
    return Measured(
        saturated={
            "recserve": [turn(1000), turn(800), turn(900), turn(990)],
            "grpc.aio": [turn(20), turn(20), turn(15), turn(20)],
            "fastapi": [turn(10), turn(25), turn(10), turn(10)],
        },
        light={name: [turn(5, [1, 2, 3, 4]), turn(5, [5]), turn(5, [6])] for name in SERVICES},
        overlaps={"recserve": 1.0, "grpc.aio": 0.9, "fastapi": 0.9},
    )


@pytest.fixture(name="plan")
def fixture_plan() -> Plan:
    return Plan(
        config=Path(),
        index=None,
        baselines=SERVICES[1:],
        scenario=load_scenario("recommend"),
        messages=(),
        outstanding=8,
        rounds=4,
        seconds=1.0,
        light_seconds=1.0,
        light_rate=5.0,
        warmup_s=1.0,
        compared=1,
        server_core=0,
        generator_core=1,
        realtime=False,
    )


def test_ratios_are_by_the_better_baseline_of_each_round(plan: Plan, measured: Measured) -> None:
    rows = summaries(plan, measured, dict.fromkeys(SERVICES, 0.95))
    own = rows[0]
    assert [row["name"] for row in rows] == list(SERVICES)
    assert own["params"]["rounds"] == 3  # the fourth is not complete
    assert own["requests_per_s"] == 900
    assert own["ratio_to"] == {"grpc.aio": 50.0, "fastapi": 90.0}
    assert own["ratio_to_better"] == 50.0  # 1000 / 20, 800 / 25, 900 / 15
    assert own["ratio_range"] == [32.0, 60.0]
    assert own["cpu_ratio_to_better"] == 45.0  # 50 ms by 1 / 0.9 ms
    assert "ratio_to" not in rows[1]
    assert "50.0 times the answers of the better baseline (32.0 to 60.0" in verdict(own)


def test_cpu_time_that_is_not_known_is_left_out(plan: Plan, measured: Measured) -> None:
    measured.saturated["fastapi"][0]["cpu_ms_per_request"] = None
    rows = summaries(plan, measured, dict.fromkeys(SERVICES, 0.95))
    assert [row["cpu_ms_per_request"] for row in rows] == [1.1111, 50, 70]  # of 40 and 100
    for row in measured.saturated["recserve"]:
        row["cpu_ms_per_request"] = None
    rows = summaries(plan, measured, dict.fromkeys(SERVICES, 0.95))
    own = rows[0]
    assert own["cpu_ms_per_request"] is own["cpu_ratio_to_better"] is None
    assert verdict(own).endswith("unknown by CPU time a request")
    content = {"results": rows, "candidates": 500, "count": 20, "reference": {"name": "x", "items": 1, "trees": 1}}
    lines = "\n".join(markdown_table(next(all_grids(content))))
    assert "| recserve | 900.0 | - | - | - |" in lines
    assert "| grpc.aio | 20.0 | 50.0 | 50 | - |" in lines


def test_latencies_of_all_rounds_count_together(plan: Plan, measured: Measured) -> None:
    own = summaries(plan, measured, dict.fromkeys(SERVICES, 0.95))[0]
    assert own["runs"] == 6
    assert own["p50_ms"] == pytest.approx(3, rel=1e-2)
    assert own["p99_ms"] == pytest.approx(6, rel=1e-2)


def test_a_table_has_a_line_for_each_service(plan: Plan, measured: Measured) -> None:
    rows = summaries(plan, measured, dict.fromkeys(SERVICES, 0.95))
    reference = {"name": "tiny", "items": 2000, "trees": 30}
    content = {"results": rows, "candidates": 500, "count": 20, "reference": reference}
    lines = "\n".join(markdown_table(next(all_grids(content))))
    assert "tiny, 2,000 items and 30 trees, on one core, 3 rounds: saturated with 8 requests" in lines
    assert "| recserve | 900.0 | - | 1.11 | - | 3 | 6 | 200 | 0.950 | 1.000 |" in lines
    assert "| grpc.aio | 20.0 | 50.0 | 50 | 45.0 | 3 | 6 | 200 | 0.950 | 0.900 |" in lines


def test_what_is_wrong_with_turns_is_told(measured: Measured) -> None:
    assert problems(measured) == []
    measured.light["fastapi"][1] |= {"ok_share": 0.5, "problems": ["the generator could not keep up"]}
    assert problems(measured) == [
        "fastapi, round 2: the generator could not keep up",
        "fastapi, round 2: only 50.00% of the answers were good",
    ]


def test_the_figures_of_every_turn_are_kept(measured: Measured) -> None:
    kept = turns(measured)
    assert len(kept) == 12 + 9
    assert [(row["round"], row["requests_per_s"]) for row in kept[:4]] == [(1, 1000), (2, 800), (3, 900), (4, 990)]
    assert "histogram" not in kept[0]


def test_overlap_is_the_share_of_our_items() -> None:
    assert overlap([["a", "b"], ["c", "d"]], [["b", "a"], ["d", "e"]]) == 0.75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--server-core", "0", "--generator-core", "0"), "need a core each"),
        (("--server-core", "4095"), "need a core each"),
        (("--workload", "nowhere"), "nowhere is neither one of small, reference, large nor a workload's folder"),
    ],
)
def test_errors_are_told(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("versus", *arguments)) == 1
    assert message in capsys.readouterr().err


two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="services and clients need a core each")


@two_cores
@pytest.mark.slow
def test_services_take_turns(tiny_workload: Workload, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "versus.json"
    short = ("--rounds", "2", "--seconds", "0.7", "--light-seconds", "1", "--warmup", "0", "--compared", "30")
    assert main(("versus", "--workload", str(tiny_workload.path), *short, "--out", str(out))) == 0
    content = json.loads(out.read_text("utf-8"))
    assert {"workload", "host", "commit", "versions", "results"} <= set(content)
    own, *others = content["results"]
    assert [row["name"] for row in (own, *others)] == list(SERVICES)
    for row in (own, *others):
        assert row["requests_per_s"] > 5
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["cpu_ms_per_request"] > 0
        assert row["ok_share"] == 1
    assert own["recall"] == own["overlap"] == 1
    for row in others:
        assert row["recall"] >= own["recall"]
        assert row["overlap"] > 0.95
    assert others[0]["overlap"] == others[1]["overlap"]
    assert set(own["ratio_to"]) == set(SERVICES[1:])
    assert len(content["turns"]) == 2 * 2 * 3
    assert content["baseline_index"]["factory"] == "Flat"
    assert "times the answers of the better baseline" in capsys.readouterr().out


@two_cores
@pytest.mark.slow
def test_ctrl_c_keeps_the_rounds_that_are_complete(tiny_workload: Workload, tmp_path: Path) -> None:
    out = tmp_path / "versus.json"
    command = (sys.executable, "-m", "recserve.loadtest.cli", "versus", "--workload", str(tiny_workload.path))
    short = ("--rounds", "100", "--seconds", "0.5", "--light-seconds", "0.5", "--warmup", "0", "--compared", "1")
    with subprocess.Popen(
        (*command, *short, "--baselines", "grpc.aio", "--out", str(out)), stderr=subprocess.PIPE, text=True
    ) as process:
        _wait_for_turns(process.pid, 5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip().endswith("interrupted")
    content = json.loads(out.read_text("utf-8"))
    assert content["cut_short"] == "interrupted"
    assert content["results"][0]["params"]["rounds"] >= 1


def _wait_for_turns(pid: int, count: int) -> None:
    """Until that many generators have been seen; a round of two services has four."""
    seen: set[str] = set()
    end = time.monotonic() + 120
    while len(seen) < count:
        assert time.monotonic() < end
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split():
            with contextlib.suppress(OSError):
                if b"generator.process" in Path(f"/proc/{child}/cmdline").read_bytes():
                    seen.add(child)
        time.sleep(0.05)
