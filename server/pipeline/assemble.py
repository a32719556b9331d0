"""From requests and candidates to the arrays that features are computed from.

Serving and training both come through here, so a feature cannot see other inputs in one than in the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.features import ColumnValues, FeatureBatch, FeatureSchema, recent_items
from recserve.server.bundle.catalogue import Catalogue
from recserve.server.pipeline.towers import TowerUsers
from recserve.server.pipeline.types import History, Rows, UserState, no_rows

ScalarT = TypeVar("ScalarT", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """One request's side of the features: the user, the situation, the time."""

    time_us: int
    known: bool
    user: ColumnValues
    """One row of the schema's user columns."""
    context: ColumnValues
    """One row of the schema's context columns."""
    history: History
    history_rows: Rows
    """Rows of `history.keys`; -1 for items that the bundle does not have."""
    recent_rows: Rows
    """Distinct known items, latest first: the session's, then the history's."""
    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """The user's vector by space; a space without an entry has none."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Items up for ranking, with what each source said of them.

    Attributes:
        rows: [n], distinct.
        sources: names of the sources that were asked.
        scores: float32 [n, sources] in the source's own unit; NaN where it did not propose the item.
        ranks: int32 [n, sources], 1 is best; 0 where it did not propose the item.
    """

    rows: Rows
    sources: tuple[str, ...]
    scores: NDArray[np.float32]
    ranks: NDArray[np.int32]

    @staticmethod
    def given(rows: Rows) -> Candidates:
        """Candidates that no source proposed."""
        return Candidates(rows, (), np.empty((rows.size, 0), np.float32), np.empty((rows.size, 0), np.int32))


def subject(
    state: UserState,
    catalogue: Catalogue,
    *,
    context: ColumnValues,
    time_us: int,
    session_rows: Rows | None = None,
    user: ColumnValues | None = None,
) -> Subject:
    """Resolve a user's state against a catalogue.

    Args:
        state: of the user, by item keys.
        catalogue: of the bundle.
        context: one row of context columns.
        time_us: the request's time, microseconds UTC.
        session_rows: this session's items, latest first.
        user: the user columns to use instead of the state's (overrides applied).
    """
    rows = catalogue.rows_of_keys(state.history.keys)
    return Subject(
        time_us=time_us,
        known=state.known,
        user=state.columns if user is None else user,
        context=context,
        history=state.history,
        history_rows=rows,
        recent_rows=recent_items(no_rows() if session_rows is None else session_rows, rows),
    )


def assemble(
    schema: FeatureSchema,
    subjects: Sequence[Subject],
    candidates: Sequence[Candidates],
    dims: Mapping[str, int],
) -> FeatureBatch:
    """The feature program's input for a micro-batch.

    Args:
        schema: the feature definitions.
        subjects: one per request.
        candidates: one per request.
        dims: dimension of each space in which the schema reads users' vectors.
    """
    scores, ranks = _source_columns(schema.sources, candidates)
    return FeatureBatch(
        offsets=_offsets([each.rows for each in candidates]),
        rows=_joined([each.rows for each in candidates]),
        time_us=np.array([each.time_us for each in subjects], np.int64),
        known=np.array([each.known for each in subjects], np.uint8),
        user=ColumnValues.concat([each.user for each in subjects]),
        context=ColumnValues.concat([each.context for each in subjects]),
        history_offsets=_offsets([each.history_rows for each in subjects]),
        history_rows=_joined([each.history_rows for each in subjects]),
        history_events=_joined([each.history.events for each in subjects]),
        history_counts=_joined([each.history.counts for each in subjects]),
        history_last_us=_joined([each.history.last_us for each in subjects]),
        recent_offsets=_offsets([each.recent_rows for each in subjects]),
        recent_rows=_joined([each.recent_rows for each in subjects]),
        source_scores=scores,
        source_ranks=ranks,
        user_vectors={name: _user_vectors(subjects, name, dims[name]) for name in schema.dot_spaces},
    )


def tower_users(subjects: Sequence[Subject]) -> TowerUsers:
    """The user tower's side of some subjects, one row each."""
    return TowerUsers(
        user=ColumnValues.concat([each.user for each in subjects]),
        recent_offsets=_offsets([each.recent_rows for each in subjects]),
        recent_rows=_joined([each.recent_rows for each in subjects]),
        time_us=np.array([each.time_us for each in subjects], np.int64),
    )


def _joined(parts: Sequence[NDArray[ScalarT]]) -> NDArray[ScalarT]:
    """One part after another; the only part as it is."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _offsets(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """[len(parts) + 1]: where each part begins in the concatenation."""
    return np.array([0, *accumulate(part.size for part in parts)], np.int64)


def _source_columns(
    wanted: Sequence[str], candidates: Sequence[Candidates]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scores and ranks [n, wanted]; NaN for sources that were not asked or did not propose the item."""
    candidates = [each if each.sources == wanted else _said_by(wanted, each) for each in candidates]
    scores = _joined([each.scores for each in candidates])
    ranks = _joined([each.ranks for each in candidates]).astype(np.float32)
    ranks[ranks == 0] = np.nan
    return scores, ranks


def _said_by(wanted: Sequence[str], candidates: Candidates) -> Candidates:
    """The same candidates with what the wanted sources say of them, whoever was asked."""
    shape = (candidates.rows.size, len(wanted))
    scores, ranks = np.full(shape, np.nan, np.float32), np.zeros(shape, np.int32)
    for column, name in enumerate(wanted):
        if name in candidates.sources:
            found = candidates.sources.index(name)
            scores[:, column], ranks[:, column] = candidates.scores[:, found], candidates.ranks[:, found]
    return Candidates(candidates.rows, tuple(wanted), scores, ranks)


def _user_vectors(subjects: Sequence[Subject], space: str, dim: int) -> NDArray[np.float32]:
    """[subjects, dim]; NaN rows where there is no vector."""
    nothing: NDArray[np.float32] | None = None
    if any(space not in each.vectors for each in subjects):
        nothing = np.full(dim, np.nan, np.float32)
    return np.array([each.vectors.get(space, nothing) for each in subjects], np.float32)
