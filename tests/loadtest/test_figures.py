from __future__ import annotations

import json
from pathlib import Path

import pytest

from recserve.loadtest.figures import BEGIN, END, main, renew, renew_named

ROOT = Path(__file__).parents[2]
RESULT = {
    "workload": "demo",
    "host": {"cpu": "A CPU", "cores": 2, "memory_gib": 24, "flags": ["avx2"]},
    "versions": {"python": "3.11", "numpy": "2.0", "grpcio": "1.80"},
    "results": [
        {"name": "x", "params": {"items": 1_000_000}, "p50_ms": 1.23456, "p99_ms": 12.3456, "runs": 2000, "ratio": 3.5},
        {"name": "y", "params": {}, "p50_ms": None, "p99_ms": None, "runs": 0},
    ],
}


def test_tables_replace_what_stood_between_the_marks() -> None:
    found = renew(f"before\n{BEGIN}\nold\n{END}\nafter", [RESULT])
    assert found.startswith("before\n")
    assert found.endswith(f"{END}\nafter")
    assert "old" not in found
    assert "*demo* on A CPU, 2 cores, 24 GiB (avx2)" in found
    assert "| x | items 1,000,000 | 1.23 | 12.3 | 2,000 | ratio 3.5 |" in found
    assert "| y |  | - | - | 0 |  |" in found


def test_a_load_test_has_a_line_for_each_run() -> None:
    row = {
        "name": "recserve",
        "params": {"rate": 50.0, "seconds": 8.0, "repeat": 1},
        "requests_per_s": 49.5,
        "p50_ms": 1.0,
        "p90_ms": 2.0,
        "p99_ms": 3.0,
        "p999_ms": 4.0,
        "max_ms": 5.0,
        "valid": True,
        "outcomes": {"OK": {"group": "ok", "share": 1.0}},
        "cpu_ms_per_request": 0.9,
        "lateness": {"p99_ms": 0.1},
    }
    found = renew(f"{BEGIN}\n{END}", [{**RESULT, "workload": "sweep", "scenario": {"name": "mixed"}, "results": [row]}])
    assert "Sweep, scenario mixed:" in found
    assert "| recserve, 50/s, 8 s | 49.5 | 1 | 2 | 3 | 4 | 5 | 0 | 0 | 0 | 0.9 | 0.1 |  |" in found


@pytest.mark.parametrize("document", ["no marks", BEGIN, f"{END} {BEGIN}"])
def test_a_document_without_marks_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match="needs a line"):
        renew(document, [RESULT])


def test_from_the_command_line(tmp_path: Path) -> None:
    document, result = tmp_path / "README.md", tmp_path / "result.json"
    document.write_text(f"{BEGIN}\n{END}", "utf-8")
    result.write_text(json.dumps(RESULT), "utf-8")
    main([str(document), str(result)])
    assert "A CPU" in document.read_text("utf-8")


@pytest.mark.parametrize("document", ["README.md", "docs/performance.md"])
def test_figures_are_those_of_the_stored_results(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    assert renew_named(text, (ROOT / document).parent) == text


def named(file: str) -> str:
    return f"<!-- figures of {file}: written by python -m recserve.loadtest.figures -->\n"


def test_places_name_their_files(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps({**RESULT, "commit": "abc123", "command": "recserve-loadtest x"}))
    trouble = {**RESULT, "workload": "other", "commit": "def456", "problems": ["the generator could not keep up"]}
    (tmp_path / "two.json").write_text(json.dumps(trouble))
    document = tmp_path / "page.md"
    document.write_text(f"before\n{named('one.json')}old\n{END}\nbetween\n{named('two.json')}{END}\nafter\n", "utf-8")
    main([str(document)])
    found = document.read_text("utf-8")
    assert found.startswith(f"before\n{named('one.json')}\n*demo* on A CPU")
    assert "commit `abc123`, by `recserve-loadtest x`." in found
    assert "old" not in found
    one, two = found.split("between")
    assert "*other* on A CPU" in two
    assert "- the generator could not keep up" in two
    assert "| x | items 1,000,000 | 1.23 |" in one
    assert found.endswith(f"{END}\nafter\n")
    main([str(document)])
    assert document.read_text("utf-8") == found


def test_a_place_can_want_one_table(tmp_path: Path) -> None:
    forest = (ROOT / "docs" / "bench" / "forest.json").read_text("utf-8")
    (tmp_path / "forest.json").write_text(forest, "utf-8")
    found = renew_named(f"{named('forest.json, table 1')}{END}", tmp_path)
    assert "1,000 trees of up to 64 leaves, 500 rows" in found
    assert "Compilation, seconds" not in found
    with pytest.raises(ValueError, match="no table 99"):
        renew_named(f"{named('forest.json, table 99')}{END}", tmp_path)


def test_a_document_that_names_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names a file"):
        renew_named(f"{BEGIN}\n{END}", tmp_path)
