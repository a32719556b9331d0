"""The forests under the sanitizers; `make sanitize` runs the tests of all kernels, and for longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def can_sanitize(folder: Path) -> bool:
    """Whether the compiler links with the sanitizers: some installations have the option but not the libraries."""
    source = folder / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    command = [os.environ.get("CC", "gcc"), "-fsanitize=address,undefined", str(source), "-o", str(folder / "empty")]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_forests_run_clean_under_the_sanitizers(tmp_path: Path) -> None:
    if not can_sanitize(tmp_path):
        pytest.skip("the compiler has no AddressSanitizer and UndefinedBehaviorSanitizer")
    command = [sys.executable, "tests/sanitize.py", "tests/kernels/test_forest.py", "-m", "not slow"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
