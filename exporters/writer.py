"""Writing a bundle or a snapshot: everything or nothing.

An artifact grows in a temporary sibling of its final directory, `.NAME.exporting-XXXXXXXX`, and is renamed into place
when it is complete and on disk. Whoever is killed leaves that sibling and nothing else. Each writer locks its sibling
(flock), and the kernel releases the lock when the process ends, however it ends; so the next export in the same
directory can tell abandoned siblings from those of exports still running, and removes the abandoned ones. No lock
file is needed, and none is left behind. Another lock, on the parent directory, is held for the moments in which
siblings appear, vanish or are renamed.
"""

from __future__ import annotations

import datetime
import fcntl
import importlib.metadata
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

import numpy as np
from google.protobuf import json_format
from numpy.typing import DTypeLike, NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters.errors import ExportError
from recserve.server.bundle import layout
from recserve.server.bundle.files import file_sha256, walk_files

AnyManifest: TypeAlias = manifest_pb2.Manifest | manifest_pb2.SnapshotManifest

_SIBLING: Final = re.compile(r"\.(?P<name>.+)\.exporting-[0-9a-f]{8}")


class BundleWriter:
    """Writes one bundle or snapshot; a context manager. Leaving it without `commit` removes what was written.

    Args:
        target: the artifact's final directory, which must not exist. Its parent is made where it is missing.

    Raises:
        ExportError: on entering, before anything is written: the target exists or lies within a bundle or snapshot, or
            another export to it is running.
    """

    def __init__(self, target: Path) -> None:
        self.target = target.absolute()
        self._root: Path | None = None
        self._lock = -1

    @property
    def root(self) -> Path:
        """The temporary directory.

        Raises:
            RuntimeError: the writer has not been entered, or is done.
        """
        if self._root is None:
            raise RuntimeError("a BundleWriter writes only within its `with` block, until it has committed")
        return self._root

    def __enter__(self) -> Self:
        parent = self.target.parent
        _refuse_artifact(parent.resolve())
        parent.mkdir(parents=True, exist_ok=True)
        with _locked(parent):
            self._refuse_existing()
            self._remove_abandoned(parent)
            root = parent / f".{self.target.name}.exporting-{secrets.token_hex(4)}"
            root.mkdir()
            self._root, self._lock = root, _lock(root)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        root, self._root = self._root, None
        try:
            if root is not None:
                shutil.rmtree(root)
        finally:
            os.close(self._lock)

    def path(self, relative: str) -> Path:
        """Where to write a file of the artifact; its directory is made.

        Args:
            relative: with forward slashes, such as "items/features.npy".

        Raises:
            BundleCorruptError: the path could leave the artifact.
        """
        layout.check_relative(relative, manifest=layout.MANIFEST)
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def array(self, relative: str, values: NDArray[np.generic]) -> None:
        """Write a whole array."""
        with self.rows(relative, values.dtype, values.shape) as file:
            file.append(values)

    def rows(self, relative: str, dtype: DTypeLike, shape: tuple[int, ...]) -> ArrayFile:
        """Begin an array that is written block by block; a context manager.

        Args:
            relative: a path that ends in .npy.
            dtype: the element type; stored little-endian.
            shape: of the whole array.
        """
        return ArrayFile(self.path(relative), np.dtype(dtype), shape)

    def text(self, relative: str, text: str) -> None:
        """Write a UTF-8 text file."""
        self.path(relative).write_text(text, encoding="utf-8")

    def json(self, relative: str, value: object) -> None:
        """Write a value as JSON."""
        self.text(relative, json.dumps(value, ensure_ascii=False, indent=1) + "\n")

    def seal(self, manifest: AnyManifest) -> Path:
        """Write the manifest over what is there so far, so that the unfinished artifact can be opened and tried.

        Args:
            manifest: of the bundle or snapshot. Filled in here: `files` with the size of every file, `schema_version`,
                and where they are left out `created` and `created_by`. Checksums are `commit`'s: nobody would check
                these, and each reads the whole artifact.

        Returns:
            The temporary directory.
        """
        return self._write_manifest(manifest, checksums=False)

    def _write_manifest(self, manifest: AnyManifest, *, checksums: bool) -> Path:
        manifest.schema_version = layout.SCHEMA_VERSION
        manifest.created_by = manifest.created_by or _created_by()
        if not manifest.HasField("created"):
            manifest.created.FromDatetime(datetime.datetime.now(datetime.UTC))
        _list_files(self.root, manifest, checksums=checksums)
        (self.root / _manifest_name(manifest)).write_text(_to_json(manifest), encoding="utf-8")
        return self.root

    def commit(self, manifest: AnyManifest, check: Callable[[Path], object] | None = None) -> Path:
        """Seal the artifact with checksums, and move it to its final name. Before that, all of it is on disk.

        Args:
            manifest: as for `seal`; `files` get their checksums, too.
            check: called with the complete directory before it gets its name, such as `open_bundle`; what it raises
                ends the export.

        Returns:
            The final directory.

        Raises:
            ExportError: the target has appeared in the meantime.
        """
        root = self._write_manifest(manifest, checksums=True)
        if check is not None:
            check(root)
        self.publish(root)
        return self.target

    def publish(self, directory: Path) -> None:
        """Put a directory on disk and move it to the target's name.

        Raises:
            ExportError: the target has appeared in the meantime.
        """
        _sync(directory)
        with _locked(self.target.parent):
            self._refuse_existing()
            directory.rename(self.target)
            if directory == self._root:
                self._root = None  # there is nothing left to remove, whatever happens from here
            _sync_one(self.target.parent)

    def _refuse_existing(self) -> None:
        if os.path.lexists(self.target):
            raise ExportError(f"{self.target} exists: bundles are immutable, choose another name or remove it")

    def _remove_abandoned(self, parent: Path) -> None:
        """Make room for this export; of exports to other targets, remove what may be removed."""
        for directory, name in _siblings(parent):
            try:
                alive = not _remove_unlocked(directory)
            except (OSError, ExportError) as error:
                if name != self.target.name:
                    continue
                raise ExportError(f"{directory}, which an earlier export left, cannot be removed: {error}") from error
            if alive and name == self.target.name:
                raise ExportError(f"another export to {self.target} is running: wait for it, or end it")


@contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """A directory for several artifacts: it gets its name when the block ends, and none if the block raises.

    Args:
        target: the final directory, which must not exist.

    Raises:
        ExportError: as `BundleWriter`.
    """
    with BundleWriter(target) as writer:
        content = writer.path("content/x").parent  # writers of artifacts lock it; `writer` has locked its parent
        yield content
        writer.publish(content)


class ArrayFile:
    """A .npy file that is written block by block; a context manager.

    Args:
        path: the file.
        dtype: the element type.
        shape: of the whole array.
    """

    def __init__(self, path: Path, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
        if dtype.hasobject:
            raise TypeError(f"{path.name}: arrays of Python objects cannot be mapped")
        self._dtype = dtype.newbyteorder("<")
        self._shape = shape
        self._written = 0
        self._file = path.open("wb")
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, block: NDArray[np.generic]) -> None:
        """Write the next rows.

        Raises:
            ValueError: the block has another row shape, or does not fit losslessly into the array's element type.
        """
        if block.shape[1:] != self._shape[1:]:
            raise ValueError(f"rows of shape {block.shape[1:]} do not fit an array of shape {self._shape}")
        if not np.can_cast(block.dtype, self._dtype, casting="equiv"):
            raise ValueError(f"{block.dtype} values do not fit an array of {self._dtype}")
        self._written += len(block)
        np.ascontiguousarray(block, self._dtype).tofile(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is None and self._written != self._shape[0]:
            raise ValueError(f"{self._written} rows were written of {self._shape[0]}: {self._file.name}")


def _refuse_artifact(directory: Path) -> None:
    """Refuse a directory of, or below, a bundle or a snapshot: a file that its manifest does not list breaks it."""
    for above in (directory, *directory.parents):
        for name in (layout.MANIFEST, layout.SNAPSHOT_MANIFEST):
            if _is_manifest(above / name):
                raise ExportError(
                    f"{above} is a bundle or snapshot ({name}), which another file in it would break: choose a "
                    "directory outside of it"
                )


def _is_manifest(path: Path) -> bool:
    """Whether a file is one of our manifests; other programs have files of these names."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"schema_version", "files"} <= found.keys()


def _siblings(parent: Path) -> list[tuple[Path, str]]:
    """Temporary directories below `parent`, each with the final name that it is for."""
    matches = ((entry, _SIBLING.fullmatch(entry.name)) for entry in parent.iterdir())
    return [(entry, match["name"]) for entry, match in matches if match and entry.is_dir() and not entry.is_symlink()]


def _created_by() -> str:
    try:
        return f"recserve {importlib.metadata.version('recserve')}"
    except importlib.metadata.PackageNotFoundError:  # imported from a source tree that is not installed
        return "recserve (source tree)"


def _manifest_name(manifest: AnyManifest) -> str:
    return layout.MANIFEST if isinstance(manifest, manifest_pb2.Manifest) else layout.SNAPSHOT_MANIFEST


def _to_json(manifest: AnyManifest) -> str:
    """Proto JSON with the files in order of their names; a map has none."""
    document = json_format.MessageToDict(manifest, preserving_proto_field_name=True)
    document["files"] = dict(sorted(document.get("files", {}).items()))
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def _list_files(root: Path, manifest: AnyManifest, *, checksums: bool) -> None:
    manifest.files.clear()
    for relative, status in walk_files(root):
        if relative != _manifest_name(manifest):
            manifest.files[relative].bytes = status.st_size
            if checksums:
                manifest.files[relative].sha256 = file_sha256(root / relative)


def _sync(root: Path) -> None:
    """Put every file and directory below `root`, and itself, on disk: a rename may not overtake the contents."""
    for directory, _, names in os.walk(root):
        for name in names:
            _sync_one(Path(directory, name))
        _sync_one(Path(directory))


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(directory: Path, flags: int = fcntl.LOCK_EX) -> int:
    """Lock a directory; the lock lasts until the returned descriptor is closed."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, flags)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError as error:
        os.close(descriptor)
        raise ExportError(f"{directory} cannot be locked ({error}): export to a local file system") from error
    return descriptor


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = _lock(directory.resolve())
    try:
        yield
    finally:
        os.close(descriptor)


def _remove_unlocked(directory: Path) -> bool:
    """Remove a temporary sibling unless its writer lives; whether it was removed."""
    try:
        descriptor = _lock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    try:
        shutil.rmtree(directory)
    finally:
        os.close(descriptor)
    return True
