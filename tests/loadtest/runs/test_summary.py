from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recserve.loadtest.grids import markdown_table
from recserve.loadtest.runs.errors import ResultError
from recserve.loadtest.runs.summary import main, summary, summary_grids


def run(scenario: str, name: str, cpu_ms: float, rate: float) -> dict[str, Any]:
    params = {"outstanding": 8, "seconds": 5.0, "repeat": 2}
    return {
        "workload": "saturate",
        "host": {"cores": 2},
        "commit": "c",
        "versions": {},
        "bundle": None,
        "config": "",
        "scenario": {"name": f"scenarios/{scenario}.toml"},
        "results": [{"name": name, "params": params, "cpu_ms_per_request": cpu_ms, "requests_per_s": rate}],
    }


def test_runs_of_the_same_scenario_and_server_are_one_line(tmp_path: Path) -> None:
    runs = [
        run("few", "a", 0.5, 1000),
        run("few", "b", 0.3, 2000),
        run("many", "a", 2.0, 400),
        run("few", "a", 0.4, 3000),
        run("few", "a", 0.9, 900),
    ]
    files = [tmp_path / f"{number}.json" for number in range(len(runs))]
    for file, content in zip(files, runs, strict=True):
        file.write_text(json.dumps(content), "utf-8")
    main([str(tmp_path / "all.json"), *map(str, files)])
    found = json.loads((tmp_path / "all.json").read_text("utf-8"))
    assert found["results"][0] == {
        "name": "a",
        "params": {"scenario": "few", "outstanding": 8, "seconds": 5.0},
        "cpu_ms_per_request": [0.5, 0.4, 0.9],
        "requests_per_s": [1000, 3000, 900],
    }
    [grid] = summary_grids(found)
    assert list(markdown_table(grid))[5:] == [
        "| few, a | 3 | 0.5 | 0.4 | 1,000 | 3,000 |",
        "| few, b | 1 | 0.3 | 0.3 | 2,000 | 2,000 |",
        "| many, a | 1 | 2 | 2 | 400 | 400 |",
    ]


def test_memory_is_that_at_the_end(tmp_path: Path) -> None:
    for number, mib in enumerate((90.0, 100.4, 95.0)):
        content = run("few", "a", 0.5, 1000)
        content["results"][0]["server"] = {"pss_mib": [80.0, mib]}
        (tmp_path / f"{number}.json").write_text(json.dumps(content), "utf-8")
    main([str(tmp_path / "all.json"), *(str(tmp_path / f"{number}.json") for number in range(3))])
    [grid] = summary_grids(json.loads((tmp_path / "all.json").read_text("utf-8")))
    assert grid.headings[-1] == "memory MiB"
    assert grid.rows[0][-1] == "95"


def together(*runs: dict[str, Any]) -> dict[str, Any]:
    return summary({Path(f"{number}.json"): run for number, run in enumerate(runs)})


def test_runs_of_different_loads_are_lines_of_their_own() -> None:
    slow, fast, again = (run("few", "a", cpu_ms, rate) for cpu_ms, rate in ((2.0, 100), (0.5, 2000), (0.7, 1900)))
    slow["results"][0]["params"]["outstanding"] = 1
    again["results"][0]["params"] = {"repeat": 3, "seconds": 5.0, "outstanding": 8}
    [grid] = summary_grids(together(slow, fast, again))
    assert [row[:4] for row in grid.rows] == [
        ("few, a, outstanding 1", "1", "2", "2"),
        ("few, a, outstanding 8", "2", "0.6", "0.5"),
    ]


def test_rates_are_shown_as_they_were_asked_for() -> None:
    slow, fast = run("few", "a", 2.0, 100), run("few", "a", 0.5, 2000)
    slow["results"][0]["params"]["rate"], fast["results"][0]["params"]["rate"] = 1000.0, 0.5
    [grid] = summary_grids(together(slow, fast))
    assert [row[0] for row in grid.rows] == ["few, a, rate 1000", "few, a, rate 0.5"]


def test_cpu_time_that_nobody_read_is_a_dash() -> None:
    content = run("few", "a", 0.5, 100)
    content["results"][0]["cpu_ms_per_request"] = None
    [grid] = summary_grids(together(content))
    assert grid.rows == [("few, a", "1", "-", "-", "100", "100")]


def test_invalid_runs_are_told() -> None:
    late = run("few", "a", 0.5, 1000)
    late["results"][0] |= {"valid": False, "problems": ["the generator could not keep up"]}
    found = together(run("few", "a", 0.5, 1000), late)
    (text,) = found["problems"]
    assert text.startswith("invalid: a, outstanding 8, seconds 5.0, repeat 2: the generator could not keep up")


@pytest.mark.parametrize(("name", "other"), [("host", {"cores": 64}), ("bundle", {"name": "shop", "version": "2"})])
def test_runs_that_cannot_be_compared_are_refused(name: str, other: dict[str, Any]) -> None:
    first = {**run("few", "a", 0.5, 1000), "bundle": {"name": "shop", "version": "1"}}
    unknown = {**first, name: None}
    with pytest.raises(ResultError, match=rf"^2.json: is of another {name} than 0.json: "):
        together(first, unknown, {**first, name: other})
