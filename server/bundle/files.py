"""The files of a bundle or snapshot: listed, checked against the manifest's sizes and checksums, and mapped.

Everything here reads in a stream or maps: a checksum keeps one block in memory, an array stays in the page cache, so
bundles of any size add next to nothing to the process's own memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np
from google.protobuf import json_format
from google.protobuf.message import Message
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.server.bundle.errors import (
    BundleCorruptError,
    BundleMismatchError,
    BundleNotFoundError,
    BundleSchemaError,
)
from recserve.server.bundle.layout import MANIFEST, SCHEMA_VERSION, SNAPSHOT_MANIFEST, check_relative

ManifestT = TypeVar("ManifestT", bound=Message)

ANY: Final = -1
"""Stands in an expected shape for a length that the file itself decides."""

MAX_MANIFEST_BYTES: Final = 64 * 2**20
"""A manifest is read whole, before anything about it is known; a listed file takes some 150 bytes of it."""

_KINDS: Final = {MANIFEST: "bundle", SNAPSHOT_MANIFEST: "user snapshot"}
"""What a directory is, by the manifest in it."""

_HEADER: Final = re.compile(
    r"\{'descr': '([^']{1,16})', 'fortran_order': (False|True), 'shape': \(((?:\d{1,24}, ?)*(?:\d{1,24})?)\), \} *\n",
    re.ASCII,
)
"""A .npy header as NumPy writes it. Nothing else is a bundle's, and no more of Python's syntax has to be understood."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes in lower-case hexadecimal, read in small blocks."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def walk_files(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every file below `root` with its status, as a relative path with forward slashes, sorted.

    Raises:
        BundleCorruptError: something is neither a directory nor a regular file. Symbolic links are refused as well:
            a bundle is immutable and complete in itself, which the target of a link need not be.
    """
    yield from _walk(root, "")


def _walk(root: Path, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(root) as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    for entry in entries:
        relative, status = prefix + entry.name, entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(root / entry.name, relative + "/")
        elif stat.S_ISREG(status.st_mode):
            yield relative, status
        else:
            raise BundleCorruptError(
                "only regular files and directories belong in a bundle: copy it with its links resolved",
                file=relative,
                expected="a regular file",
                found="a symbolic link" if entry.is_symlink() else "a special file",
            )


def read_manifest(root: Path, name: str, into: ManifestT) -> ManifestT:
    """Parse the manifest `name` in `root`.

    Args:
        root: the artifact's directory.
        name: the manifest's file name.
        into: an empty message of the manifest's type; filled and returned.

    Raises:
        BundleNotFoundError: no such directory, or no manifest in it.
        BundleSchemaError: the manifest's schema version is newer than this build's.
        BundleCorruptError: the manifest is not proto JSON of that type.
    """
    text = _manifest_text(root, name)
    _check_schema_version(text, name)
    try:
        return json_format.Parse(text, into)
    except (json_format.ParseError, RecursionError) as error:
        raise BundleCorruptError(f"the manifest is malformed: {error}", file=name) from error


def _manifest_text(root: Path, name: str) -> str:
    if not root.is_dir():
        raise BundleNotFoundError(
            f"no such directory: {root}; a bundle or snapshot is a directory with a manifest in it"
        )
    try:
        _check_manifest_file((root / name).lstat(), name)
        return (root / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BundleNotFoundError(_not_found(root, name), file=name) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleCorruptError(f"the manifest cannot be read: {error}", file=name) from error


def _not_found(root: Path, name: str) -> str:
    """An export writes bundle and snapshot side by side: the one, or what holds both, is easily given for the other."""
    wanted = _KINDS[name]
    found = next((kind for manifest, kind in _KINDS.items() if (root / manifest).is_file()), None)
    if found is None:
        below = sorted(path.parent for path in root.glob(f"[!.]*/{name}"))  # not of exports that still run
        hint = f"; give the {wanted} in it: {below[0]}" if below else ": it is not what an export wrote"
        return f"{root} holds no manifest{hint}"
    return f"{root} is a {found}, not a {wanted}: give the directory of a {wanted}"


def _check_manifest_file(status: os.stat_result, name: str) -> None:
    """Look before it is opened: opening a named pipe would wait for its writer."""
    if not stat.S_ISREG(status.st_mode):
        raise BundleCorruptError(
            "the manifest is no file: copy the bundle with its links resolved", file=name, expected="a regular file"
        )
    if status.st_size > MAX_MANIFEST_BYTES:
        raise BundleCorruptError(
            "the manifest is too long to be one",
            file=name,
            field="bytes",
            expected=f"at most {MAX_MANIFEST_BYTES}",
            found=status.st_size,
        )


def _check_schema_version(text: str, name: str) -> None:
    """Look at the version alone first: a newer manifest may hold fields that this build does not know."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleCorruptError(f"the manifest is not JSON: {error}", file=name) from error
    if not isinstance(document, dict):
        raise BundleCorruptError("the manifest is malformed", file=name, expected="a JSON object", found=document)
    version = document.get("schema_version", document.get("schemaVersion"))
    if type(version) is not int or version < 1:
        raise BundleCorruptError(
            "the manifest does not say its schema version",
            file=name,
            field="schema_version",
            expected=f"an integer from 1 to {SCHEMA_VERSION}",
            found=version,
        )
    if version > SCHEMA_VERSION:
        raise BundleSchemaError(
            "written by a newer exporter than this build reads: upgrade recserve, or export with its version",
            file=name,
            field="schema_version",
            expected=f"at most {SCHEMA_VERSION}",
            found=version,
        )


class ArtifactFiles:
    """The files that a manifest lists, below one directory.

    Args:
        root: the directory; made absolute with links resolved, so that a link that is later pointed to another version
            does not mix two.
        listed: the manifest's files by relative path.
        manifest: name of the manifest's own file.

    Raises:
        BundleCorruptError: the manifest lists a path that could leave the directory, or the directory does not hold
            exactly the listed files with the listed sizes.
    """

    def __init__(self, root: Path, listed: Mapping[str, manifest_pb2.File], manifest: str) -> None:
        self.root = root.resolve()
        self.listed = dict(listed)
        self._manifest = manifest
        for path in self.listed:
            check_relative(path, manifest=manifest)
        self._check_listing()

    def _check_listing(self) -> None:
        found = {path: status.st_size for path, status in walk_files(self.root)}
        found.pop(self._manifest, None)
        for path, file in self.listed.items():
            if path not in found:
                raise BundleCorruptError("a file is missing: copy or export it again", file=path)
            if found[path] != file.bytes:
                raise BundleCorruptError(
                    "a file has another size than at export: copy or export it again",
                    file=path,
                    field="bytes",
                    expected=file.bytes,
                    found=found[path],
                )
        extra = sorted(found.keys() - self.listed.keys())
        if extra:
            raise BundleCorruptError(
                f"{len(extra)} files are not in the manifest, such as this one: nothing may be added to a bundle",
                file=extra[0],
            )

    def check_sums(self) -> None:
        """Compare every file's SHA-256 with the manifest's.

        Raises:
            BundleCorruptError: a file's bytes are not those of the export.
        """
        for path, file in self.listed.items():
            found = file_sha256(self.root / path)
            if found != file.sha256:
                raise BundleCorruptError(
                    f"a file's bytes are not those of the export{self._owner_of(found)}: copy or export it again",
                    file=path,
                    field="sha256",
                    expected=file.sha256,
                    found=found,
                )

    def _owner_of(self, sha256: str) -> str:
        """Whose bytes these are, where another listed file has the checksum: exchanged files are told apart."""
        owners = [path for path, file in self.listed.items() if file.sha256 == sha256]
        return f", but those of {owners[0]}" if owners else ""

    def __contains__(self, relative: object) -> bool:
        return relative in self.listed

    def path(self, relative: str, *, field: str = "") -> Path:
        """The absolute path of a listed file.

        Args:
            relative: as in the manifest.
            field: the manifest field that asks for it, for the message.

        Raises:
            BundleMismatchError: the manifest does not list the file.
        """
        if relative not in self.listed:
            raise BundleMismatchError(
                "the manifest does not list a file that the bundle needs: export it again", file=relative, field=field
            )
        return self.root / relative

    def text(self, relative: str) -> str:
        """The contents of a listed UTF-8 file."""
        try:
            return self.path(relative).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BundleCorruptError(f"not UTF-8: {error}", file=relative) from error

    def array(self, relative: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
        """Map an array, read-only.

        Args:
            relative: a listed .npy file.
            dtype: the element type that it must have, byte order included.
            shape: the shape that it must have; `ANY` where any length will do.

        Returns:
            A C-contiguous array backed by the file: no page of it is private memory.

        Raises:
            BundleCorruptError: not a .npy file as NumPy writes it, shorter or longer than its header says, or
                not aligned.
            BundleMismatchError: other element type, order or shape.
        """
        path = self.path(relative)
        header = _read_header(path, relative)
        _check_header(header, relative, dtype, shape)
        expected = header.offset + math.prod(header.shape) * dtype.itemsize
        if expected != path.stat().st_size:
            raise BundleCorruptError(
                "the array's header contradicts the file's size",
                file=relative,
                expected=expected,
                found=path.stat().st_size,
            )
        mapped = np.memmap(path, dtype, "r", header.offset, header.shape).view(np.ndarray)
        if not mapped.flags.aligned:
            raise BundleCorruptError(
                "the array's values are not aligned: its header has another length than NumPy gives it",
                file=relative,
                field="offset",
                expected=f"a multiple of {dtype.itemsize}",
                found=header.offset,
            )
        return mapped


class _Header(NamedTuple):
    """What a .npy file says of itself; its numbers may be of any size."""

    dtype: str
    fortran_order: bool
    shape: tuple[int, ...]
    offset: int
    """Where the values start."""


def _read_header(path: Path, file: str) -> _Header:
    """Read a header of format 1.0: magic number, version, length in two bytes, a Python literal that ends the line."""
    with path.open("rb") as stream:
        start = stream.read(10)
        text = stream.read(int.from_bytes(start[8:], "little")).decode("latin-1")
    found = _HEADER.fullmatch(text)
    if start[:8] != b"\x93NUMPY\x01\x00" or not found:
        raise BundleCorruptError("not a .npy array as NumPy writes it (format 1.0)", file=file)
    dtype, fortran_order, lengths = found.groups()
    shape = tuple(int(length) for length in re.findall(r"\d+", lengths))
    return _Header(dtype, fortran_order == "True", shape, len(start) + len(text))


def _check_header(header: _Header, file: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    if header.dtype != dtype.str or header.fortran_order:
        raise BundleMismatchError(
            "an array has another element type",
            file=file,
            field="dtype",
            expected=dtype.str,
            found=header.dtype + (" in Fortran order" if header.fortran_order else ""),
        )
    fits = len(header.shape) == len(shape) and all(
        want in (ANY, have) for want, have in zip(shape, header.shape, strict=True)
    )
    if not fits:
        raise BundleMismatchError(
            "an array has another shape than the manifest says",
            file=file,
            field="shape",
            expected=tuple("any" if length == ANY else length for length in shape),
            found=header.shape,
        )
