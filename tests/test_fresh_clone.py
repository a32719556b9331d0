"""`make run` on a fresh clone, as the README has it: from nothing to an answer, and again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SECONDS = 900
ANSWERED = "More of it:"
"""What `recserve call … --hint` prints behind the answer."""


def run_until_answered(clone: Path) -> tuple[str, float]:
    """What `make run` prints until it has shown an answer, and how many seconds that took; then it is interrupted."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "RECSERVE"))
    }
    started = time.monotonic()
    with subprocess.Popen(
        ["make", "run"],
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith(ANSWERED) or time.monotonic() > started + SECONDS:
                    break
            seconds = time.monotonic() - started
        finally:
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: everybody in the foreground
            process.wait(60)
    return "".join(lines), seconds


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
def test_make_run_twice(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    for attempt in ("first", "second"):
        printed, seconds = run_until_answered(clone)
        print(f"{attempt}: {seconds:.1f} s")
        assert ANSWERED in printed, printed
        assert "recserve 0" in printed
        assert "bundle demo" in printed
    for command in ("recserve", "recserve-export", "recserve-loadtest"):
        subprocess.run([clone / ".venv" / "bin" / command, "--help"], check=True, stdout=subprocess.DEVNULL)
    listed = subprocess.run(["git", "status", "--porcelain"], cwd=clone, check=True, capture_output=True, text=True)
    assert listed.stdout == ""  # everything that a build makes is ignored
