"""User snapshots: features and history of users, as an artifact of their own beside bundles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.kernels.features import ColumnLayout, ColumnValues
from recserve.server.bundle import checks, layout
from recserve.server.bundle.errors import BundleCorruptError, BundleMismatchError
from recserve.server.bundle.files import ANY, ArtifactFiles, read_manifest
from recserve.server.bundle.reader import Bundle
from recserve.server.bundle.strings import StringTable

_BLOCK: Final = 1 << 20
"""Users looked at together, so that memory does not grow with their number."""


@dataclass(frozen=True, slots=True, eq=False)
class SnapshotUser:
    """What a snapshot holds of one user. The history has one entry per (item, event type), latest first.

    Attributes:
        columns: one row of the schema's user columns.
        keys: uint64; item keys.
        events: int32; codes of the manifest's event types.
        counts: float64; how often, at least 1.
        last_us: int64; when last, microseconds since 1970 UTC.
    """

    columns: ColumnValues
    keys: NDArray[np.uint64]
    events: NDArray[np.int32]
    counts: NDArray[np.float64]
    last_us: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class HistoryArrays:
    """Every user's history, cut by `offsets` int64 [users + 1]; the other arrays are those of `SnapshotUser`."""

    offsets: NDArray[np.int64]
    keys: NDArray[np.uint64]
    events: NDArray[np.int32]
    counts: NDArray[np.float64]
    last_us: NDArray[np.int64]


class Snapshot:
    """An open user snapshot. Immutable, mapped, and safe to read from several threads.

    Attributes:
        path: its directory, links resolved.
        manifest: as stored.
        columns: every user's columns; row i is user i.
        history: every user's history.
    """

    def __init__(
        self,
        path: Path,
        manifest: manifest_pb2.SnapshotManifest,
        ids: StringTable,
        columns: ColumnValues,
        history: HistoryArrays,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.columns = columns
        self.history = history
        self._ids = ids

    @property
    def version(self) -> str:
        """Its version."""
        return self.manifest.version

    @property
    def user_hash(self) -> str:
        """Hash of the user part of the feature definitions that it was made with."""
        return self.manifest.user_hash

    @property
    def size(self) -> int:
        """How many users it holds."""
        return len(self._ids)

    def row_of(self, user_id: str) -> int:
        """The user's row, -1 where unknown."""
        return int(self._ids.rows_of([user_id])[0])

    def rows_of(self, user_ids: Sequence[str]) -> NDArray[np.int64]:
        """The row of each user, -1 where unknown."""
        return self._ids.rows_of(user_ids)

    def user_ids(self, rows: NDArray[np.int64]) -> list[str]:
        """The id of each row."""
        return self._ids.strings(rows)

    def most_active(self, count: int) -> NDArray[np.int64]:
        """Rows of the users with the longest histories, the longest first; among equals the first row."""
        best = np.empty(0, np.int64)
        for start in range(0, self.size, _BLOCK):
            rows = np.concatenate([best, np.arange(start, min(start + _BLOCK, self.size))])
            lengths = self.history.offsets[rows + 1] - self.history.offsets[rows]
            best = rows[np.argsort(-lengths, kind="stable")[:count]]
        return best

    def state(self, row: int) -> SnapshotUser:
        """What is known of a user; the arrays are views of the mapped files.

        Raises:
            IndexError: no such row.
        """
        columns = self.columns.row(row)
        part = slice(*self.history.offsets[row : row + 2].tolist())
        return SnapshotUser(
            columns,
            self.history.keys[part],
            self.history.events[part],
            self.history.counts[part],
            self.history.last_us[part],
        )

    def check_fits(self, bundle: Bundle) -> None:
        """Check that a bundle can read these users' columns and events.

        Raises:
            BundleMismatchError: the bundle's user columns, their vocabularies or its event types are others, or the
                arrays do not have the columns that the hash promises.
        """
        expected = bundle.manifest.features.user_hash
        if self.user_hash != expected:
            raise BundleMismatchError(
                f"the snapshot was made with other user columns, vocabularies or event types than bundle {bundle.name} "
                f"{bundle.version}: export a snapshot with the bundle's feature definitions",
                file=layout.SNAPSHOT_MANIFEST,
                field="user_hash",
                expected=expected,
                found=self.user_hash,
            )
        _check_columns(self.columns, self.size, bundle.schema.user_layout, bundle.cardinalities)


def _check_columns(columns: ColumnValues, users: int, wanted: ColumnLayout, cardinalities: Mapping[str, int]) -> None:
    """Widths follow the layout, and codes lie within their vocabularies."""
    for file, found, expected in (
        (layout.USER_NUMBERS, columns.numbers.shape[1], len(wanted.numbers)),
        (layout.USER_CODES, columns.codes.shape[1], len(wanted.codes)),
        (layout.USER_TIMES, columns.times.shape[1], len(wanted.times)),
        (layout.USER_LIST_OFFSETS, (columns.list_offsets.size - 1) // users, len(wanted.lists)),
    ):
        if found != expected:
            raise BundleMismatchError(
                "the snapshot has another number of columns than the feature definitions",
                file=file,
                field="columns",
                expected=expected,
                found=found,
            )
    for index, column in enumerate(wanted.codes):
        checks.check_between(columns.codes[:, index], -1, cardinalities[column.vocabulary], layout.USER_CODES)
    if wanted.lists:
        checks.check_monotone(columns.list_offsets, layout.USER_LIST_OFFSETS)  # also of a snapshot that is not verified
        sizes = [cardinalities[column.vocabulary] for column in wanted.lists]
        checks.check_list_codes(columns.list_codes, columns.list_offsets, sizes, layout.USER_LIST_CODES)


def open_snapshot(path: Path, *, verify: bool = True) -> Snapshot:
    """Open the user snapshot in a directory.

    Args:
        path: the snapshot's directory; it may be a link to one.
        verify: also compare checksums and check the contents of arrays: indexes (offsets, codes, keys), times, counts.

    Raises:
        BundleNotFoundError: no such directory, or no manifest in it.
        BundleSchemaError: written by a newer format.
        BundleCorruptError: a file is missing, extra, truncated, changed, swapped or malformed.
        BundleMismatchError: parts contradict one another.
    """
    path = path.resolve()
    manifest = read_manifest(path, layout.SNAPSHOT_MANIFEST, manifest_pb2.SnapshotManifest())
    files = ArtifactFiles(path, manifest.files, layout.SNAPSHOT_MANIFEST)
    if verify:
        files.check_sums()
    _check_manifest(manifest)
    ids = StringTable.open(files, layout.USER_IDS, manifest.users)
    columns = _open_columns(files, manifest.users)
    history = _open_history(files, manifest)
    if verify:
        ids.check(layout.USER_IDS)
        checks.check_monotone(columns.list_offsets, layout.USER_LIST_OFFSETS)
        checks.check_monotone(history.offsets, layout.HISTORY_OFFSETS)
        checks.check_between(history.events, 0, len(manifest.event_types), layout.HISTORY_EVENTS)
        checks.check_times(columns.times, layout.USER_TIMES)
        checks.check_times(history.last_us, layout.HISTORY_LAST, missing=False)
        checks.check_counts(history.counts, layout.HISTORY_COUNTS)
    return Snapshot(path, manifest, ids, columns, history)


def _check_manifest(manifest: manifest_pb2.SnapshotManifest) -> None:
    for field in ("version", "user_hash", "users"):
        if not getattr(manifest, field):
            raise BundleMismatchError(
                "the manifest leaves a field empty",
                file=layout.SNAPSHOT_MANIFEST,
                field=field,
                expected="a value",
                found=getattr(manifest, field),
            )


def _open_columns(files: ArtifactFiles, users: int) -> ColumnValues:
    codes = files.array(layout.USER_LIST_CODES, np.dtype("<i4"), (ANY,))
    offsets = cast("NDArray[np.int64]", files.array(layout.USER_LIST_OFFSETS, np.dtype("<i8"), (ANY,)))
    if offsets.size == 0 or (offsets.size - 1) % users:
        raise BundleCorruptError(
            "there are not as many lists for each user",
            file=layout.USER_LIST_OFFSETS,
            field="shape",
            expected=f"1 more than a multiple of {users}",
            found=offsets.size,
        )
    checks.check_ends(offsets, codes.size, layout.USER_LIST_OFFSETS)
    return ColumnValues(
        cast("NDArray[np.float64]", files.array(layout.USER_NUMBERS, np.dtype("<f8"), (users, ANY))),
        cast("NDArray[np.int32]", files.array(layout.USER_CODES, np.dtype("<i4"), (users, ANY))),
        cast("NDArray[np.int64]", files.array(layout.USER_TIMES, np.dtype("<i8"), (users, ANY))),
        cast("NDArray[np.int32]", codes),
        offsets,
    )


def _open_history(files: ArtifactFiles, manifest: manifest_pb2.SnapshotManifest) -> HistoryArrays:
    shape = (manifest.history_entries,)
    offsets = cast("NDArray[np.int64]", files.array(layout.HISTORY_OFFSETS, np.dtype("<i8"), (manifest.users + 1,)))
    checks.check_ends(offsets, manifest.history_entries, layout.HISTORY_OFFSETS)
    return HistoryArrays(
        offsets,
        cast("NDArray[np.uint64]", files.array(layout.HISTORY_KEYS, np.dtype("<u8"), shape)),
        cast("NDArray[np.int32]", files.array(layout.HISTORY_EVENTS, np.dtype("<i4"), shape)),
        cast("NDArray[np.float64]", files.array(layout.HISTORY_COUNTS, np.dtype("<f8"), shape)),
        cast("NDArray[np.int64]", files.array(layout.HISTORY_LAST, np.dtype("<i8"), shape)),
    )
