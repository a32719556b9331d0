from __future__ import annotations

import sys
from pathlib import Path

import pytest

from recserve.server.text import own_command, printable


def test_control_characters_are_escaped() -> None:
    assert printable("a\x1b[2Jb\u202ec né 東京") == "a\\x1b[2Jb\\u202ec né 東京"


@pytest.fixture(name="command")
def fixture_command(tmp_path: Path) -> Path:
    command = tmp_path / "bin" / "recserve"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\n", "utf-8")
    command.chmod(0o755)
    return command


def test_a_command_on_the_path_is_named(command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(command.parent))
    monkeypatch.setattr(sys, "argv", [str(command), "serve"])
    assert own_command() == "recserve"


def test_a_command_elsewhere_is_named_by_its_path(
    command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(command), "serve"])
    assert own_command() == "bin/recserve"


def test_another_program_that_embeds_it_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest"])
    assert own_command() == "recserve"
