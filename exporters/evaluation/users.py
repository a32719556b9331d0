"""Who is evaluated: users with their state at the cut-off, their items of the test window, and their segment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.errors import ExportError
from recserve.exporters.evaluation.metrics import Relevant
from recserve.exporters.evaluation.times import shown_time
from recserve.exporters.evaluation.truth import Truth
from recserve.exporters.golden import latest_event, user_state
from recserve.exporters.spec import EvaluationMode, EvaluationSpec, SegmentSpec
from recserve.kernels.features import ColumnValues
from recserve.server.bundle.catalogue import Catalogue
from recserve.server.bundle.reader import Bundle
from recserve.server.bundle.snapshot import Snapshot
from recserve.server.pipeline.filters import PURCHASE_EVENT
from recserve.server.pipeline.types import History, UserState

SEGMENTS: Final = ("new", "active", "power", "inactive")
NEW: Final = 0
_DAY_US: Final = 86_400_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Users:
    """Users under test.

    Attributes:
        ids: of the users.
        states: at the cut-off.
        relevant: what they took in the test window.
        segments: [users], positions in SEGMENTS.
        power_from: events from which a user is "power".
    """

    ids: list[str]
    states: list[UserState]
    relevant: Relevant
    segments: NDArray[np.int64]
    power_from: float

    def __len__(self) -> int:
        return len(self.ids)

    def in_mode(self, mode: EvaluationMode, catalogue: Catalogue, purchase: int) -> Users:
        """In "first" without what they had bought before; users whom nothing is left of are left out.

        Args:
            mode: the mode.
            catalogue: of the bundle.
            purchase: code of the event type of purchases.
        """
        if mode == "all":
            return self
        left = []
        for index, state in enumerate(self.states):
            bought = catalogue.rows_of_keys(purchases(state, purchase).history.keys)
            left.append(np.setdiff1d(self.relevant.of(index), bought))
        return replace(self, relevant=Relevant.join(left)).take(np.flatnonzero([rows.size for rows in left]))

    def take(self, users: NDArray[np.int64]) -> Users:
        """Some of them, in the given order."""
        return replace(
            self,
            ids=[self.ids[user] for user in users],
            states=[self.states[user] for user in users],
            relevant=self.relevant.take(users),
            segments=self.segments[users],
        )


def open_users(truth: Truth, snapshot: Snapshot, bundle: Bundle, spec: EvaluationSpec) -> Users:
    """The users of the truth, at most `spec.max_users` of them.

    Raises:
        ExportError: the snapshot holds events of the cut-off or later.
    """
    snapshot.check_fits(bundle)
    latest = latest_event(snapshot)
    if latest >= spec.time_us:  # the moment itself is the truth's: an event on both sides would be a test of nothing
        raise ExportError(
            f"the user snapshot {snapshot.version} holds events up to {shown_time(latest)}, not only before the "
            f"cut-off {shown_time(spec.time_us)}: it knows the test; make a snapshot of the state before the cut-off"
        )
    chosen = np.arange(len(truth.user_ids))
    if chosen.size > spec.max_users:
        rng = np.random.default_rng(spec.seed)
        chosen = np.sort(rng.choice(chosen.size, spec.max_users, replace=False))
    ids, relevant = truth.take(chosen)
    nobody = UserState(known=False, columns=ColumnValues.missing(bundle.schema.user_layout, 1))
    rows = snapshot.rows_of(ids)
    states = [user_state(snapshot, int(row)) if row >= 0 else nobody for row in rows]
    segments, power_from = segment(states, spec.time_us, spec.segments)
    return Users(ids, states, relevant, segments, power_from)


def segment(states: list[UserState], time_us: int, spec: SegmentSpec) -> tuple[NDArray[np.int64], float]:
    """The segment of each user, and the number of events from which a user is "power"; see SegmentSpec."""
    events = np.array([state.history.counts.sum() for state in states], np.float64)
    last = np.array([state.history.last_us.max(initial=np.iinfo(np.int64).min) for state in states], np.int64)
    known = events > 0
    recent = known & (last >= time_us - int(spec.inactive_days * _DAY_US))
    power_from = float(np.quantile(events[recent], spec.power_quantile)) if recent.any() else float("inf")
    names = np.select([~known, ~recent, events >= power_from], ["new", "inactive", "power"], "active")
    return np.array([SEGMENTS.index(name) for name in names], np.int64), power_from


def purchase_code(bundle: Bundle) -> int:
    """Code of the event type of purchases; -1 where the bundle has none."""
    events = bundle.schema.event_types
    return events.index(PURCHASE_EVENT) if PURCHASE_EVENT in events else -1


def purchases(state: UserState, purchase: int) -> UserState:
    """The state with no other history than purchases; all of it where `purchase` is -1."""
    if purchase < 0:
        return state
    history, mine = state.history, state.history.events == purchase
    return replace(
        state,
        history=History(history.keys[mine], history.events[mine], history.counts[mine], history.last_us[mine]),
    )


def owners(snapshot: Snapshot, bundle: Bundle) -> NDArray[np.int64]:
    """[items]: how many users of the snapshot have bought an item, or dealt with it where there are no purchases."""
    history, purchase = snapshot.history, purchase_code(bundle)
    keys = history.keys if purchase < 0 else history.keys[np.asarray(history.events) == purchase]
    rows = bundle.catalogue.rows_of_keys(np.ascontiguousarray(keys))
    return np.bincount(rows[rows >= 0], minlength=bundle.catalogue.size)
