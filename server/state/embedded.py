"""The state store inside the server's process: a mapped user snapshot and recently shown lists in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.features import ColumnLayout, ColumnValues
from recserve.server.bundle.errors import BundleMismatchError
from recserve.server.bundle.reader import Bundle
from recserve.server.bundle.snapshot import Snapshot, SnapshotUser, open_snapshot
from recserve.server.config import StateSettings
from recserve.server.pipeline.types import History, UserState
from recserve.server.state.protocol import StateUnavailableError
from recserve.server.state.shown import ShownLists


class Users:
    """The users of a snapshot, as bundles of one layout of user columns read them. Immutable.

    Args:
        layout: the user columns.
        snapshot: None: every user is unknown.
    """

    def __init__(self, layout: ColumnLayout, snapshot: Snapshot | None) -> None:
        self._snapshot = snapshot
        self._missing = ColumnValues.missing(layout, 1)
        self._no_history = History.empty()

    @property
    def snapshot(self) -> Snapshot | None:
        """Where the users come from."""
        return self._snapshot

    def states(self, user_ids: Sequence[str], shown: ShownLists) -> list[UserState]:
        """What is known of each user."""
        if self._snapshot is None:
            return [self._unknown(shown.recent(user_id)) for user_id in user_ids]
        rows = self._snapshot.rows_of(user_ids).tolist()
        return [
            self._unknown(shown.recent(user_id))
            if row < 0
            else _known(self._snapshot.state(row), shown.recent(user_id))
            for user_id, row in zip(user_ids, rows, strict=True)
        ]

    def most_active(self, count: int) -> Iterator[tuple[str, UserState]]:
        """Ids of those with the longest histories, as far as the snapshot goes, and states without what was shown."""
        if self._snapshot is None:
            return
        rows = self._snapshot.most_active(count)
        for user_id, row in zip(self._snapshot.user_ids(rows), rows.tolist(), strict=True):
            yield user_id, _known(self._snapshot.state(row), np.empty(0, np.uint64))

    def _unknown(self, shown: NDArray[np.uint64]) -> UserState:
        return UserState(known=False, columns=self._missing, history=self._no_history, shown=shown)


class EmbeddedStore:
    """Users from a snapshot, and what they were shown by this process.

    It is unavailable until `serve` gives it users: what an unknown user's columns are depends on the bundles. Users
    are read on the event loop, without a thread: each is a few hundred bytes of mapped file. Recently shown lists live
    in this process alone and end with it.
    """

    def __init__(self, shown: ShownLists) -> None:
        self._shown = shown
        self._users: Users | None = None

    @classmethod
    def from_settings(cls, settings: StateSettings) -> EmbeddedStore:
        """A store with the configured bounds, and no users yet."""
        return cls(
            ShownLists(per_user=settings.shown_per_user, users=settings.shown_users, seconds=settings.shown_seconds)
        )

    def serve(self, users: Users) -> None:
        """Answer from these users from now on; what was shown is kept."""
        self._users = users

    def fetch(self, user_ids: Sequence[str]) -> list[UserState]:
        """States in the order of `user_ids`; see StateStore."""
        if self._users is None:
            raise StateUnavailableError("users are still being loaded")
        return self._users.states(user_ids, self._shown)

    async def record_shown(self, user_id: str, item_keys: NDArray[np.uint64], time_us: int) -> None:
        """Remember what was shown; see StateStore."""
        self._shown.record(user_id, item_keys, time_us)

    async def close(self) -> None:
        """Nothing to release: the mapping ends with the last array that refers to it."""


def open_users(snapshot: Path | None, bundles: Mapping[str, Bundle]) -> Users:
    """Open the user snapshot, and check that it and the bundles mean the same by a user.

    Args:
        snapshot: its directory; None: every user is unknown.
        bundles: at least one, by the name under which it is served.

    Raises:
        BundleError: the snapshot cannot be used.
        BundleMismatchError: bundles, or a bundle and the snapshot, differ in user columns, event types or vocabularies.
    """
    layout = _common_layout(bundles)
    if snapshot is None:
        return Users(layout, None)
    opened = open_snapshot(snapshot)
    for name, bundle in bundles.items():
        _check_fits(opened, name, bundle)
    return Users(layout, opened)


def _common_layout(bundles: Mapping[str, Bundle]) -> ColumnLayout:
    """The user columns; one store serves all bundles, so all must read a user's state alike."""
    (first_name, first), *others = bundles.items()
    for name, bundle in others:
        if bundle.manifest.features.user_hash != first.manifest.features.user_hash:
            raise BundleMismatchError(
                f"{_label(first_name, first)} and {_label(name, bundle)} differ in user columns, event types or their "
                "vocabularies, so one store cannot serve both: serve them from separate servers, or export them alike",
                field="features.user_hash",
                expected=first.manifest.features.user_hash,
                found=bundle.manifest.features.user_hash,
            )
    return first.schema.user_layout


def _check_fits(snapshot: Snapshot, name: str, bundle: Bundle) -> None:
    try:
        snapshot.check_fits(bundle)
    except BundleMismatchError as error:
        label = f"user snapshot {snapshot.version} ({snapshot.path})"
        raise BundleMismatchError(f"{label} does not fit {_label(name, bundle)}: {error}") from error


def _label(name: str, bundle: Bundle) -> str:
    return f'bundle "{name}" ({bundle.name} {bundle.version})'


def _known(user: SnapshotUser, shown: NDArray[np.uint64]) -> UserState:
    return UserState(
        known=True,
        columns=user.columns,
        history=History(user.keys, user.events, user.counts, user.last_us),
        shown=shown,
    )
