"""What is installed is what is in the repository: nothing that the code needs may stay behind."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("kernels", "server", "exporters", "loadtest")
COMPILED = (".pyx", ".pxi", ".h")
"""Sources of extensions, of which a wheel carries the outcome."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_wheel_holds_every_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, timeout=800)
    (wheel,) = tmp_path.glob("recserve-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    listed = subprocess.run(["git", "ls-files", *FOLDERS], cwd=ROOT, check=True, capture_output=True, text=True)
    tracked = [Path(line) for line in listed.stdout.splitlines()]
    expected = {f"recserve/{path}" for path in tracked if path.suffix not in COMPILED}
    assert expected - packed == set()
    for source in (path for path in tracked if path.suffix == ".pyx"):
        stem = f"recserve/{source.with_suffix('')}."
        assert any(name.startswith(stem) and name.endswith(".so") for name in packed), source
    for stub in ("v1/recommender_pb2", "v1/recommender_pb2_grpc", "bundle/v1/manifest_pb2"):
        assert {f"recserve/{stub}.py", f"recserve/{stub}.pyi"} <= packed
    assert "recserve/v1/py.typed" in packed
    assert not any("tests/" in name or name.endswith(".c") for name in packed)
