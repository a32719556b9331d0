"""What targets install, and what they say before they install anything."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALONE = {
    name: value
    for name, value in os.environ.items()
    if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "EXTRAS", "PORT"}
}
"""As if nobody had started these tests by make, whose variables would reach the make that is tested."""


def installed(*arguments: str) -> tuple[list[str], str]:
    """The sets of extras that a target installs on a fresh clone, and everything that it would run."""
    command = ["make", "--dry-run", "--always-make", *arguments]
    printed = subprocess.run(command, cwd=ROOT, env=ALONE, check=True, capture_output=True, text=True).stdout
    return re.findall(r'pip install --config-settings editable_mode=strict -e "\.\[(.*)\]"', printed), printed


def test_make_run_installs_what_the_readme_goes_on_with() -> None:
    """Serving, exporting and the load test."""
    assert installed("run")[0] == ["cpu,export,loadtest"]


@pytest.mark.parametrize(
    ("arguments", "extras"),
    [
        (["install"], "dev"),
        (["install", "EXTRAS=dev,torch"], "dev,torch"),
        (["test", "EXTRAS=bench"], "bench"),
        (["retail", "DATA=README.md"], "cpu,export,torch"),
    ],
)
def test_extras(arguments: list[str], extras: str) -> None:
    found, printed = installed(*arguments)
    assert set(found) == {extras}
    assert "--index-url" not in printed


def test_run_listens_and_calls_where_it_is_told_to() -> None:
    printed = installed("run")[1]
    assert "serve --config build/demo/recserve.toml >" in printed
    assert "--address" not in printed
    elsewhere = installed("run", "PORT=50099")[1]
    assert "serve --config build/demo/recserve.toml --port 50099" in elsewhere
    assert "--address 127.0.0.1:50099" in elsewhere


def test_port_0_is_refused_in_words() -> None:
    command = ["make", "--dry-run", "run", "PORT=0"]
    done = subprocess.run(command, cwd=ROOT, env=ALONE, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "PORT=0 would be a port that nobody knows beforehand: name one" in done.stderr


SERVER = """#!/bin/sh
if test "$1" = call; then echo "asked for $4"; exit; fi
trap 'echo drained; exit 0' TERM
echo "ready"
for _ in $(seq 100); do sleep 0.05; done
"""


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a target that serves, with something else for a server and as if everything were installed."""
    (tmp_path / "recserve").write_text(SERVER, "utf-8")
    (tmp_path / "recserve").chmod(0o755)
    (tmp_path / "recserve.toml").touch()
    ready = (f".venv/.ready-{extras}" for extras in ("cpu-export-loadtest", "cpu-export-torch"))
    there = (f"--old-file={each}" for each in (*ready, tmp_path / "recserve.toml"))
    options = (*there, f"BIN={tmp_path}", f"DEMO={tmp_path}", f"RETAIL={tmp_path}")
    return lambda target: subprocess.Popen(
        ("make", *options, target), cwd=ROOT, env=ALONE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


@pytest.mark.parametrize(("target", "last"), [("run", "asked for user-00042\n"), ("serve-retail", "ready\n")])
def test_a_make_that_is_told_to_end_ends_its_server(
    made: Callable[..., subprocess.Popen[str]], target: str, last: str
) -> None:
    with made(target) as process:
        assert process.stdout is not None
        assert last in iter(process.stdout.readline, "")
        process.terminate()
        assert process.stdout.read() == "drained\n"


def test_pytorch_comes_from_the_index_that_is_named() -> None:
    assert (
        "pip install --index-url https://cpu 'torch>="
        in installed("install", "EXTRAS=torch", "TORCH_INDEX=https://cpu")[1]
    )
    assert "--index-url" not in installed("install", "TORCH_INDEX=https://cpu")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["retail"], "say where the transactions are: make retail DATA=path/to/transactions.parquet\n"),
        (["retail", "DATA=a b.csv"], "DATA=path/to/transactions.parquet; there is no a b.csv\n"),
        (["serve-retail"], "nothing to serve yet: make retail DATA=path/to/transactions.parquet\n"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_installed(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    command = ["make", "-f", str(ROOT / "Makefile"), "PYTHON=false", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=ALONE, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.endswith(message)
    assert list(tmp_path.iterdir()) == []
