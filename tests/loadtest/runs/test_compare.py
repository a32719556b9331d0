from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from recserve.loadtest.cli import main
from recserve.loadtest.runs.compare import compare, differences, interval, ratio_verdict
from recserve.loadtest.runs.errors import ResultError


def results(p99: Sequence[float], rate: float = 100, **figures: float) -> dict[str, Any]:
    rows = [
        {"name": "recserve", "params": {"rate": rate, "repeat": number}, "p99_ms": value, **figures}
        for number, value in enumerate(p99, 1)
    ]
    return {"workload": "run", "results": rows}


def test_intervals_are_welchs() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(1, 0.1, 6), rng.normal(1.2, 0.3, 4)
    low, high = interval(a, b)
    expected = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert (low, high) == pytest.approx((np.exp(expected.low), np.exp(expected.high)))
    assert interval(a[:1], b) == (None, None)
    assert interval(np.zeros(2), np.full(3, np.log(2))) == pytest.approx((2, 2))


@pytest.mark.parametrize(
    ("low", "high", "higher", "verdict"),
    [
        (1.06, 1.5, False, "worse"),
        (1.06, 1.5, True, "better"),
        (0.5, 0.9, False, "better"),
        (0.5, 0.9, True, "worse"),
        (0.97, 1.03, False, "same"),
        (0.9, 1.2, False, "unsure"),
        (1.01, 1.2, False, "unsure"),
        (None, None, False, "unsure"),
    ],
)
def test_verdicts(low: float | None, high: float | None, higher: bool, verdict: str) -> None:
    assert ratio_verdict(low, high, 0.05, higher_is_better=higher) == verdict


def test_repetitions_are_one_run() -> None:
    (ratio,) = compare(results([10, 11, 9]), results([20, 22, 18]))
    assert ratio.figure == "p99_ms"
    assert ratio.ratio == pytest.approx(2)
    assert ratio.low is not None
    assert ratio.low < 2
    assert ratio.verdict == "worse"


def test_throughput_is_better_when_it_is_higher() -> None:
    found = compare(results([1, 1], requests_per_s=100), results([1, 1], requests_per_s=200))
    assert {each.figure: each.verdict for each in found} == {"p99_ms": "same", "requests_per_s": "better"}


def verdicts(a: dict[str, Any], b: dict[str, Any]) -> dict[str, str]:
    return {each.figure: each.verdict for each in compare(a, b)}


@pytest.mark.parametrize("runs", [1, 3])
def test_a_server_that_answers_nothing_is_worse_however_fast_it_refuses(runs: int) -> None:
    good = results([10] * runs, requests_per_s=100, ok_share=1)
    none = results([1] * runs, requests_per_s=0, ok_share=0)
    assert verdicts(good, none) | {"p99_ms": ""} == {"p99_ms": "", "requests_per_s": "worse", "ok_share": "worse"}
    assert verdicts(none, good) | {"p99_ms": ""} == {"p99_ms": "", "requests_per_s": "better", "ok_share": "better"}
    assert verdicts(none, none)["requests_per_s"] == "unsure"
    (back,) = (each for each in compare(none, good) if each.figure == "ok_share")
    assert back.ratio is None


def test_a_lost_answer_in_a_hundred_is_not_the_same() -> None:
    a = results([10, 10], ok_share=1)
    assert verdicts(a, results([10, 10], ok_share=0.99))["ok_share"] == "worse"
    assert verdicts(a, results([10, 10], ok_share=0.9995))["ok_share"] == "same"


def test_invalid_runs_prove_nothing() -> None:
    a, b = results([10, 10], requests_per_s=9), results([30, 30], requests_per_s=9, valid=False)
    assert set(verdicts(a, b).values()) == {"unsure"}
    dead = results([30, 30], requests_per_s=0, valid=False)
    assert verdicts(a, dead)["requests_per_s"] == "worse"


def test_it_is_said_where_the_files_are_not_of_the_same_work() -> None:
    a: dict[str, Any] = {"workload": "run", "scenario": {"name": "mixed", "requests": [{"count": 20}]}, "bundle": None}
    b = {"workload": "soak", "scenario": {"name": "mixed", "requests": [{"count": 5}]}, "bundle": {"name": "shop"}}
    assert list(differences(a, a)) == []
    assert list(differences(a, {**a, "scenario": {**a["scenario"], "name": "elsewhere/mixed.toml"}})) == []
    assert list(differences(a, b)) == [
        "workload: A has run, B has soak",
        'scenario: they differ in requests (A: [{"count": 20}]; B: [{"count": 5}])',
        'bundle: A has none, B has {"name": "shop"}',
    ]


def test_invalid_runs_and_other_work_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    good, late = results([10, 10.2, 9.8]), results([10, 10.2, 9.8], valid=False)
    for row in late["results"]:
        row["problems"] = ["the generator could not keep up"]
    a.write_text(json.dumps(good))
    b.write_text(json.dumps({**late, "scenario": {"name": "mixed"}}))
    assert main(["compare", str(a), str(b)]) == 4
    printed = capsys.readouterr().out
    assert f"invalid: {b}: recserve, rate 100, repeat 1: the generator could not keep up" in printed
    assert "not of the same work: scenario: A has none" in printed


@pytest.mark.parametrize("tolerance", ["-0.1", "nan", "inf", "x"])
def test_a_tolerance_is_a_number_from_0(tolerance: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "a.json", "b.json", f"--tolerance={tolerance}"])
    assert "expected a number" in capsys.readouterr().err


def test_nothing_in_common_is_told() -> None:
    with pytest.raises(ResultError, match="no run in common"):
        compare(results([1], rate=1), results([1], rate=2))


@pytest.mark.parametrize(("b", "status"), [([10.1, 9.9, 10], 0), ([30, 31, 32], 3), ([3, 3.1, 3.2], 0), ([30], 0)])
def test_the_exit_status(b: list[float], status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for path, content in zip(paths, (results([10, 10.2, 9.8]), results(b)), strict=True):
        path.write_text(json.dumps(content))
    out = tmp_path / "ratios.json"
    assert main(["compare", *map(str, paths), "--out", str(out)]) == status
    (ratio,) = json.loads(out.read_text())
    assert list(ratio) == ["name", "params", "figure", "a", "b", "ratio", "low", "high", "verdict"]
    assert (ratio["figure"], ratio["verdict"] == "worse") == ("p99_ms", status == 3)
    printed = capsys.readouterr().out
    assert ("need repeated runs" in printed) == (len(b) == 1)
    assert ("worse:" in printed) == (status == 3)


def test_ratios_that_cannot_be_written_are_told_before_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "a.json", "b.json", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "cannot be written: Is a directory" in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("text", ["", "[]", '{"results": 3}', "{}"])
def test_what_is_no_result_file(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert main(["compare", str(path), str(path)]) == 1
    assert "a.json" in capsys.readouterr().err
