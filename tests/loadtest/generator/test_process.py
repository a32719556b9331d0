"""Generators as processes."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("said", [b"", (100).to_bytes(8) + b"the beginning"])
def test_a_generator_whose_parent_ends_leaves_without_a_word(said: bytes) -> None:
    command = (sys.executable, "-m", "recserve.loadtest.generator.process")
    ended = subprocess.run(command, input=said, capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, b"", b"")
