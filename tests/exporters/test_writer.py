from __future__ import annotations

import errno
import fcntl
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters import writer as module
from recserve.exporters.errors import ExportError
from recserve.exporters.writer import BundleWriter, staged_directory
from recserve.server.bundle.errors import BundleCorruptError
from recserve.server.bundle.files import ArtifactFiles, read_manifest

OPEN_FILES = Path("/proc/self/fd")


def write(target: Path) -> Path:
    with BundleWriter(target) as writer:
        writer.array("items/numbers.npy", np.arange(10.0))
        writer.json("vocab/colour.json", ["red", "grün"])
        return writer.commit(manifest_pb2.SnapshotManifest(version="1"))


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_what_is_committed_is_listed_with_its_checksums(tmp_path: Path) -> None:
    target = write(tmp_path / "new" / "a")
    manifest = read_manifest(target, "snapshot.json", manifest_pb2.SnapshotManifest())
    files = ArtifactFiles(target, manifest.files, "snapshot.json")
    files.check_sums()
    assert sorted(files.listed) == ["items/numbers.npy", "vocab/colour.json"]
    assert (manifest.schema_version, manifest.version) == (1, "1")
    assert manifest.created.seconds > 0
    assert files.array("items/numbers.npy", np.dtype("<f8"), (10,)).tolist() == list(range(10))
    assert files.text("vocab/colour.json") == '[\n "red",\n "grün"\n]\n'
    assert names(target.parent) == ["a"]


def test_an_existing_target_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ExportError, match="immutable"), BundleWriter(tmp_path / "a"):
        pytest.fail("the writer has begun")
    (tmp_path / "b").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ExportError, match="immutable"), BundleWriter(tmp_path / "b"):
        pytest.fail("the writer has begun")
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("inside", ["new", "items/deep/new", "../link/new"])
def test_a_target_inside_an_artifact_is_refused_and_leaves_it_whole(tmp_path: Path, inside: str) -> None:
    target = write(tmp_path / "a")
    (tmp_path / "link").symlink_to(target / "items")
    before = sorted(target.rglob("*"))
    with pytest.raises(ExportError, match=r"a is a bundle or snapshot \(snapshot\.json\), .*: choose a directory"):
        write(target / inside)
    assert sorted(target.rglob("*")) == before


def test_manifests_of_other_programs_are_no_artifacts(tmp_path: Path) -> None:
    for name, content in (("manifest.json", '{"name": "web"}'), ("snapshot.json", "no json")):
        (tmp_path / name).write_text(content)
    assert names(write(tmp_path / "a"))


def test_a_target_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "a") as writer:
        (tmp_path / "a").mkdir()
        with pytest.raises(ExportError, match="immutable"):
            writer.commit(manifest_pb2.Manifest())
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def export() -> None:
        with BundleWriter(tmp_path / "a") as writer:
            writer.array("x.npy", np.arange(3))
            raise error

    with pytest.raises(error):
        export()
    assert names(tmp_path) == []


def test_a_failed_check_leaves_nothing(tmp_path: Path) -> None:
    def check(root: Path) -> None:
        assert (root / "manifest.json").exists()
        raise BundleCorruptError("not as promised")

    with pytest.raises(BundleCorruptError, match="not as promised"), BundleWriter(tmp_path / "a") as writer:
        writer.commit(manifest_pb2.Manifest(), check)
    assert names(tmp_path) == []


@pytest.mark.parametrize("staged", [False, True])
def test_an_error_behind_the_rename_is_told_and_leaves_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, staged: bool
) -> None:
    """The disk fails when the parent directory is brought to it."""

    def fail_for_parent(path: Path) -> None:
        if path == tmp_path and (tmp_path / "a").exists():
            raise OSError(errno.EIO, "the disk is gone")
        sync_one(path)

    def export() -> None:
        if staged:
            with staged_directory(tmp_path / "a") as directory:
                (directory / "x").touch()
        else:
            write(tmp_path / "a")

    sync_one = module._sync_one
    monkeypatch.setattr(module, "_sync_one", fail_for_parent)
    before = names(OPEN_FILES)
    with pytest.raises(OSError, match="the disk is gone"):
        export()
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a")
    assert names(OPEN_FILES) == before


def test_a_directory_that_cannot_be_removed_keeps_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "not yours", str(path))

    before = names(OPEN_FILES)
    with (
        monkeypatch.context() as patch,
        pytest.raises(PermissionError, match="not yours"),
        BundleWriter(tmp_path / "a"),
    ):
        patch.setattr(module.shutil, "rmtree", refuse)
    assert names(OPEN_FILES) == before
    write(tmp_path / "a")
    assert names(tmp_path) == ["a"]


def another_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> Path:
    """What a killed export to `b` left, which we may not open, lock or remove."""
    leftover = tmp_path / ".b.exporting-0123abcd"
    leftover.mkdir()
    (leftover / "x.npy").touch()
    holder, name = {"open": (os, "open"), "lock": (module.fcntl, "flock"), "remove": (module.shutil, "rmtree")}[step]
    do = getattr(holder, name)

    def refuse(what: Any, *arguments: Any, **options: Any) -> Any:
        path = (OPEN_FILES / str(what)).readlink() if step == "lock" else what
        if path == leftover:
            raise PermissionError(errno.EACCES, "not yours", str(leftover))
        return do(what, *arguments, **options)

    monkeypatch.setattr(holder, name, refuse)
    return leftover


@pytest.mark.parametrize("step", ["open", "lock", "remove"])
def test_what_another_users_export_left_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    leftover = another_users(tmp_path, monkeypatch, step)
    write(tmp_path / "a")
    assert names(tmp_path) == [leftover.name, "a"]


@pytest.mark.parametrize("step", ["open", "lock", "remove"])
def test_what_another_users_export_to_the_same_target_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It might still be running, so this is refused."""
    leftover = another_users(tmp_path, monkeypatch, step)
    with pytest.raises(
        ExportError, match=rf"{leftover.name}, which an earlier export left, cannot be removed: .*not yours"
    ):
        write(tmp_path / "b")
    assert names(tmp_path) == [leftover.name]


def test_siblings_appear_and_targets_are_named_under_the_parents_lock(tmp_path: Path) -> None:
    """Else an export could take another's sibling for abandoned, between its making and its locking."""
    reached: queue.Queue[str] = queue.Queue()

    def export() -> None:
        with BundleWriter(tmp_path / "a") as writer:
            reached.put("begun")
            may_commit.wait(30)
            writer.commit(manifest_pb2.Manifest())
        reached.put("done")

    may_commit = threading.Event()
    thread = threading.Thread(target=export)
    with parent_lock(tmp_path):
        thread.start()
        with pytest.raises(queue.Empty):
            reached.get(timeout=0.2)
        assert names(tmp_path) == []
    assert reached.get(timeout=30) == "begun"
    with parent_lock(tmp_path):
        may_commit.set()
        with pytest.raises(queue.Empty):
            reached.get(timeout=0.2)
        assert "a" not in names(tmp_path)
    assert reached.get(timeout=30) == "done"
    thread.join(30)
    assert names(tmp_path) == ["a"]


@contextmanager
def parent_lock(directory: Path) -> Iterator[None]:
    """Held by somebody else: locks of one process exclude one another where they are of different openings."""
    descriptor = os.open(directory, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def test_two_exports_to_one_target_at_once(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "a") as first:
        with pytest.raises(ExportError, match="another export"), BundleWriter(tmp_path / "a"):
            pytest.fail("the writer has begun")
        first.commit(manifest_pb2.Manifest())
    assert names(tmp_path) == ["a"]


def test_exports_to_other_targets_do_not_disturb_one_another(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "a") as first, BundleWriter(tmp_path / "b") as second:
        first.json("x.json", 1)
        second.json("x.json", 2)
        first.commit(manifest_pb2.Manifest())
        second.commit(manifest_pb2.Manifest())
    assert names(tmp_path) == ["a", "b"]


def test_what_only_looks_like_a_leftover_stays(tmp_path: Path) -> None:
    (tmp_path / ".a.exporting-old").mkdir()
    (tmp_path / ".a.exporting-0123abcd").touch()
    (tmp_path / ".b.exporting-0123abcd").symlink_to(tmp_path)
    write(tmp_path / "a")
    assert names(tmp_path) == [".a.exporting-0123abcd", ".a.exporting-old", ".b.exporting-0123abcd", "a"]


@pytest.mark.parametrize("path", ["../x", "/tmp/x", "", "a//b", "manifest.json"])
def test_paths_out_of_the_bundle_are_refused(tmp_path: Path, path: str) -> None:
    with BundleWriter(tmp_path / "a") as writer, pytest.raises(BundleCorruptError, match="plain relative"):
        writer.path(path)


def test_links_are_refused_at_commit(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "a") as writer:
        writer.path("x").symlink_to("/etc/passwd")
        with pytest.raises(BundleCorruptError, match="symbolic link"):
            writer.commit(manifest_pb2.Manifest())
    assert names(tmp_path) == []


def test_a_writer_is_used_within_its_block(tmp_path: Path) -> None:
    writer = BundleWriter(tmp_path / "a")
    with pytest.raises(RuntimeError, match="within its `with` block"):
        writer.path("x")
    with writer:
        writer.commit(manifest_pb2.Manifest())
        with pytest.raises(RuntimeError, match="within its `with` block"):
            writer.path("x")


def test_arrays_are_written_block_by_block(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    with BundleWriter(tmp_path / "a") as writer:
        with writer.rows("x.npy", np.float32, (6, 2)) as file:
            file.append(values[:4])
            file.append(np.asfortranarray(values[4:]))
        writer.array("empty.npy", np.empty((0, 3), np.int64))
        np.testing.assert_array_equal(np.load(writer.root / "x.npy"), values)
        assert np.load(writer.root / "empty.npy").shape == (0, 3)


def test_blocks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "a") as writer:
        with writer.rows("x.npy", np.float32, (1, 2)) as file:
            with pytest.raises(ValueError, match="shape"):
                file.append(np.zeros((1, 3), np.float32))
            with pytest.raises(ValueError, match="float64 values do not fit"):
                file.append(np.zeros((1, 2)))
            file.append(np.zeros((1, 2), np.float32))
        with pytest.raises(ValueError, match="1 rows were written of 2"), writer.rows("y.npy", np.int64, (2,)) as file:
            file.append(np.zeros(1, np.int64))
        with pytest.raises(ValueError, match="3 rows were written of 2"), writer.rows("w.npy", np.int64, (2,)) as file:
            file.append(np.zeros(3, np.int64))
        with pytest.raises(TypeError, match="Python objects"):
            writer.array("z.npy", np.array([object()]))


KILL_AT_EVERY_LINE = """
    # For each line that an export executes in the writer: a process is killed there, and what it leaves is looked at;
    # then another process exports to the same target, and a third to another target beside it.
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    from recserve.bundle.v1 import manifest_pb2
    from recserve.exporters import writer as module
    from recserve.server.bundle.files import ArtifactFiles, read_manifest

    def export(target):
        with module.BundleWriter(target) as writer:
            writer.array("items/x.npy", np.arange(1000))
            writer.json("y.json", [1, 2])
            writer.commit(manifest_pb2.SnapshotManifest(version="1"))

    def check(target):
        manifest = read_manifest(target, "snapshot.json", manifest_pb2.SnapshotManifest())
        ArtifactFiles(target, manifest.files, "snapshot.json").check_sums()

    def in_a_process(work):
        child = os.fork()
        if child == 0:
            work()
            os._exit(0)
        return os.waitpid(child, 0)[1]

    def killed_at(line, target):
        seen = 0

        def trace(frame, event, argument):
            nonlocal seen
            if frame.f_code.co_filename != module.__file__:
                return None
            seen += event == "line"
            if seen == line:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        export(target)

    root, step = Path(sys.argv[1]), int(sys.argv[2])
    counts = {"absent": 0, "complete": 0}
    for line in range(1, 100_000, step):
        parent = root / str(line)
        parent.mkdir()
        status = in_a_process(lambda: killed_at(line, parent / "a"))
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        left = sorted(os.listdir(parent))
        assert len([name for name in left if name != "a"]) <= 1, left
        if "a" in left:
            check(parent / "a")
            counts["complete"] += 1
        else:
            counts["absent"] += 1
            assert in_a_process(lambda: export(parent / "a")) == 0
            check(parent / "a")
        assert in_a_process(lambda: export(parent / "b")) == 0
        assert sorted(os.listdir(parent)) == ["a", "b"], os.listdir(parent)
    print(counts["absent"], counts["complete"])
"""


def kill_at_lines(root: Path, step: int) -> tuple[int, int]:
    """How many of the killed exports left no target, and how many a complete one."""
    command = [sys.executable, "-c", textwrap.dedent(KILL_AT_EVERY_LINE), str(root), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    absent, complete = done.stdout.split()
    return int(absent), int(complete)


def test_an_export_killed_at_some_moment(tmp_path: Path) -> None:
    absent, _ = kill_at_lines(tmp_path, 23)
    assert absent > 3


@pytest.mark.slow
def test_an_export_killed_at_any_moment(tmp_path: Path) -> None:
    absent, complete = kill_at_lines(tmp_path, 1)
    assert absent > 50
    assert complete > 3


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    """The process is killed from outside, while it waits within its export."""
    script = """
        import sys, time
        from pathlib import Path
        from recserve.exporters.writer import BundleWriter
        with BundleWriter(Path(sys.argv[1])) as writer:
            writer.json("x.json", 1)
            print("writing", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "a")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        with pytest.raises(ExportError, match="another export"), BundleWriter(tmp_path / "a"):
            pytest.fail("the writer has begun")
        write(tmp_path / "b")  # leaves the sibling of a living process alone
        assert len(names(tmp_path)) == 2
        os.kill(process.pid, signal.SIGKILL)
    write(tmp_path / "a")
    assert names(tmp_path) == ["a", "b"]
