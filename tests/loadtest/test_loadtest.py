from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recserve.loadtest.cli import main
from recserve.loadtest.clusters import clustered_vectors
from recserve.loadtest.kernels import measure_kernels
from recserve.loadtest.results import Measurement, check_writable, document, time_call
from recserve.server.bundle.replacing import replace_text


def test_vectors_are_seeded_clustered_and_of_length_one() -> None:
    items, users = clustered_vectors(500, 20, np.random.default_rng(1))
    again, _ = clustered_vectors(500, 20, np.random.default_rng(1))
    assert items.tobytes() == again.tobytes()
    assert items.dtype == users.dtype == np.float32
    assert np.allclose(np.linalg.norm(np.concatenate([items, users]), axis=1), 1, atol=1e-6)
    nearest = np.sort(users @ items.T, axis=1)[:, -1]
    assert np.median(nearest) > 3 / np.sqrt(128)  # far above what random directions would reach


def test_a_row_gives_percentiles_of_its_runs() -> None:
    row = Measurement(name="x", params={"n": 1}, milliseconds=[1.0, 2.0, 100.0], extra={"ratio_to": 3.0}).row()
    assert row == {"name": "x", "params": {"n": 1}, "p50_ms": 2.0, "p99_ms": 98.04, "runs": 3, "ratio_to": 3.0}


def test_time_call_counts_runs_but_not_the_warm_up() -> None:
    calls: list[int] = []
    times = time_call(lambda: calls.append(1), runs=4, warmup=2)
    assert len(times) == 4
    assert len(calls) == 6
    assert all(each > 0 for each in times)


def test_a_document_names_machine_commit_and_versions() -> None:
    content = document("kernels", [])
    assert set(content) == {"workload", "host", "commit", "versions", "results"}
    host, versions = content["host"], content["versions"]
    assert isinstance(host, dict)
    assert host["cores"] >= 1
    assert host["memory_gib"] > 0
    assert isinstance(versions, dict)
    assert versions["numpy"] == np.__version__


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, link = tmp_path / "results.json", tmp_path / "latest.json"
    file.write_text("of yesterday")
    link.symlink_to(file)

    def interrupted(path: Path, text: str, _: str) -> None:
        path.write_bytes(text[:3].encode())
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            replace_text(file, "of today")
    assert file.read_text() == "of yesterday"
    replace_text(link, "of today")
    assert file.read_text() == "of today"
    assert sorted(tmp_path.iterdir()) == [link, file]
    assert link.is_symlink()


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_writable(pipe)
        replace_text(pipe, "of today")
        assert os.read(reader, 100) == b"of today"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_every_kernel_is_measured() -> None:
    measured = list(measure_kernels(3000, 2))
    assert {each.name for each in measured} == {
        "recserve exact search",
        "NumPy matmul and argpartition",
        "recserve re-scoring",
        "recserve key lookup",
        "recserve filter mask",
        "recserve filter mask, a new category",
        "recserve features of candidates",
        "recserve features of a request",
        "recserve caps and MMR",
    }
    assert all(min(each.milliseconds) > 0 for each in measured)


def test_kernels_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    assert main(["kernels", "basics", "--items", "2000", "--runs", "1", "--out", str(out)]) == 0
    assert json.loads(out.read_text("utf-8"))["workload"] == "kernels"


def test_ctrl_c_while_it_is_imported_leaves_no_traceback() -> None:
    early = """
import signal, sys
from recserve.loadtest.cli import main

class CtrlC:
    def find_spec(self, name, *_):
        if name == "hdrh":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, CtrlC())
sys.exit(main(["run"]))
"""
    done = subprocess.run([sys.executable, "-c", early], capture_output=True, text=True, check=False)
    assert done.stderr == "recserve-loadtest: interrupted; nothing is left of what was not complete\n"
    assert done.returncode == 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("basics", "--items", "-5"), "a whole number from 500, as so many are searched for and re-ranked; found '-5'"),
        (("basics", "--items", "499"), "a whole number from 500"),
        (("basics", "--runs", "0"), "a whole number from 1, found '0'"),
        (("retrieval", "--items", "-5"), "a whole number from 1, found '-5'"),
        (("retrieval", "--seed", "-1"), "a whole number from 0, found '-1'"),
        (("forest", "--seed", "-1"), "a whole number from 0, found '-1'"),
        (("forest", "--seconds", "nan"), "a number above 0, found 'nan'"),
        (("retrieval", "--recall", "1.5"), "a share above 0 and at most 1, found '1.5'"),
    ],
)
def test_kernels_say_what_they_cannot_measure(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["kernels", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_without_its_extra_the_command_says_what_to_install() -> None:
    absent = "import sys; sys.modules['hdrh'] = None; from recserve.loadtest.cli import main; sys.exit(main(['run']))"
    done = subprocess.run([sys.executable, "-c", absent], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("recserve-loadtest: ")
    assert "hdrh" in line
    assert "make install EXTRAS=cpu,loadtest" in line
