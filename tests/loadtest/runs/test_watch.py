"""What a server uses is read while its threads and its children come and go."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recserve.loadtest.runs.watch import Usage, Watch, cpu_seconds

BUSY = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass\n"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen((sys.executable, "-c", {BUSY!r}), stdin=subprocess.PIPE)
print(child.pid, flush=True)
child.wait()
print("waited", flush=True)
input()
"""


@pytest.fixture(name="start")
def fixture_start() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts Python with some code; the pipes are the test's."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen((sys.executable, "-c", code), **pipes, text=True))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_cpu_time_of_children_that_have_ended_stays(start: Callable[[str], subprocess.Popen[str]]) -> None:
    server = start(PARENT)
    child = int(line(server))
    watch = Watch(server.pid)
    watch.read()
    assert line(server) == "waited"
    assert not Path(f"/proc/{child}").exists()
    watch.read()
    assert watch.usage.cpu_s[-1] - watch.usage.cpu_s[0] > 0.3
    assert watch.usage.cpu_s[-1] > cpu_seconds(server.pid) + 0.3


def test_what_ends_while_it_is_read_is_passed_over(
    start: Callable[[str], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads and children that are listed and gone a moment later."""
    server = start("import threading\nprint('ready', flush=True)\ninput()")
    assert line(server) == "ready"
    with subprocess.Popen(("true",)) as ended:
        pass
    iterdir, read_text = Path.iterdir, Path.read_text

    def with_an_ended_thread(path: Path) -> Iterator[Path]:
        yield path / str(ended.pid)
        yield from iterdir(path)

    def with_an_ended_child(path: Path, *options: str) -> str:
        found = read_text(path, *options)
        return f"{ended.pid} {found}" if path.name == "children" else found

    watch = Watch(server.pid)
    monkeypatch.setattr(Path, "iterdir", with_an_ended_thread)
    monkeypatch.setattr(Path, "read_text", with_an_ended_child)
    for _ in range(3):
        watch.read(last=True)
    monkeypatch.undo()
    assert [len(each) for each in (watch.usage.at_s, watch.usage.rss_mib, watch.usage.pss_mib)] == [3, 3, 3]
    assert watch.usage.rss_mib[-1] > 1


def test_cpu_time_never_falls(start: Callable[[str], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that ends between the reading of its parent and its own is in neither."""
    watch = Watch(start("input()").pid)
    sums = iter((3.0, 2.0, 4.0))
    monkeypatch.setattr("recserve.loadtest.runs.watch._cpu_with_children", lambda _: next(sums))
    for _ in range(3):
        watch.read()
    assert watch.usage.cpu_s == [3, 3, 4]


def test_a_server_that_ends_is_read_no_more(start: Callable[[str], subprocess.Popen[str]]) -> None:
    server = start("input()")
    watch = Watch(server.pid)
    watch.read()
    server.kill()
    wait_for_zombie(server.pid)
    watch.read(last=True)  # nobody has waited for it
    server.wait()
    watch.read(last=True)
    assert len(watch.usage.at_s) == 1


def wait_for_zombie(pid: int) -> None:
    end = time.monotonic() + 20
    while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"), [(0, 4, 2.0), (1, 3, 1.0), (-1, 3, None), (3, 5, None), (5, 6, None)]
)
def test_cpu_is_known_only_where_it_was_read(start_s: float, end_s: float, expected: float | None) -> None:
    usage = Usage(at_s=[0, 2, 4], cpu_s=[10, 11, 12])
    assert usage.cpu_between(start_s, end_s) == expected
    assert Usage().cpu_between(0, 1) is None


def test_times_are_written_as_of_the_start() -> None:
    usage = Usage(at_s=[99.9, 102.00049], cpu_s=[1, 2.00049], rss_mib=[1.04, 2], pss_at_s=[100.5], pss_mib=[3.06])
    assert usage.row(100.0) == {
        "at_s": [-0.1, 2.0],
        "cpu_s": [1, 2.0],
        "rss_mib": [1.0, 2],
        "pss_at_s": [0.5],
        "pss_mib": [3.1],
    }
