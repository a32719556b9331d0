"""What goes into the pipeline and what comes out: arrays and plain values, no gRPC, no asyncio.

A `Query` is a request that has been validated and resolved against one bundle: names have become codes, ids have
become rows, and the placement's defaults have been filled in. Codes and rows are meaningful for that bundle alone.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.features import ColumnValues

Rows = NDArray[np.int64]
"""Item rows of one bundle."""

DEFAULT_COUNT: Final = 20
"""Items in the answer to a request that names no number."""


def no_rows() -> Rows:
    """An empty array of rows."""
    return np.empty(0, np.int64)


class QueryKind(enum.Enum):
    """What is asked for."""

    RECOMMEND = "recommend"
    """Candidates come from the sources."""
    SIMILAR = "similar"
    """Candidates are the neighbours of `given_rows`; ordered by similarity, no ranker runs."""
    RANK = "rank"
    """Candidates are `given_rows`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ItemFilter:
    """Which items may be answered; every condition must hold.

    An item whose attribute is missing fails a condition that needs the attribute's value (price bounds,
    include_categories, in_stock) and passes one that excludes values.
    """

    exclude_rows: Rows = field(default_factory=no_rows)
    include_categories: NDArray[np.int32] | None = None
    """Category codes; None: all."""
    exclude_categories: NDArray[np.int32] | None = None
    price_min: float | None = None
    """Inclusive, in the catalogue's currency."""
    price_max: float | None = None
    in_stock: bool = False
    region: int | None = None
    """Code in the regions' vocabulary, -1 for a country that no item names; None: no condition.
    An item that lists no regions is sold everywhere."""
    exclude_purchased: bool = False
    exclude_shown: bool = False
    exclude_flags: NDArray[np.int32] | None = None
    """Codes of the flags' vocabulary; an item with any of them fails."""


@dataclass(frozen=True, slots=True)
class Cap:
    """At most `max` items with the same value of the CATEGORY column `attribute`; missing values are not capped."""

    attribute: str
    max: int
    window: int = 0
    """Among the first `window` places; 0: in the whole list."""
    sliding: bool = False
    """In every run of `window` consecutive places instead."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """New items gain: score = relevance * (1 + boost * 2 ** (-age / half_life_days)), age in days since launch."""

    boost: float
    half_life_days: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankOptions:
    """How the final list is made from relevances."""

    objective_weights: tuple[float, ...] | None = None
    """In the order of the ranker's objectives, >= 0 with a positive sum; None: the bundle's."""
    freshness: Freshness | None = None
    caps: tuple[Cap, ...] = ()
    mmr_weight: float | None = None
    """MMR's lambda in [0, 1]; None: no diversity, by score alone."""
    diversity_space: str = ""
    """Space whose item vectors measure similarity in MMR; empty: the bundle's first."""


@dataclass(frozen=True, slots=True)
class Quota:
    """A source's share of the candidates, >= 0, relative to the other quotas; in a fusion, the weight of its ranks."""

    source: str
    weight: float


@dataclass(frozen=True, slots=True)
class Fusion:
    """Candidates are chosen by what all sources say of them: the sum of weight / (constant + rank)."""

    depth: int = 2000
    """How many items each source is asked for, or as many as there are to be candidates where that is more."""
    constant: float = 500.0
    """Above 0. About the number of candidates: far below it, a source's first few count for too much."""


class Size(NamedTuple):
    """Roughly what a query costs."""

    kind: QueryKind
    candidates: int
    """Bits of their number (`Query.work`)."""
    chosen: int
    """Bits of the number of items that are chosen with regard to one another, by caps or MMR; 0: none is."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Query:
    """A validated request; see the module's docstring."""

    kind: QueryKind
    user_id: str = ""
    count: int = DEFAULT_COUNT
    time_us: int
    """Microseconds since 1970 UTC; everything time-dependent uses this."""
    context: ColumnValues
    """One row of the schema's context columns, overrides applied."""
    user_overrides: dict[str, float | int | tuple[int, ...]] = field(default_factory=dict)
    """By user column: a number, a category code, a time in microseconds, or a tuple of category codes."""
    session_rows: Rows = field(default_factory=no_rows)
    """This session's known items, latest first, without duplicates."""
    given_rows: Rows = field(default_factory=no_rows)
    """SIMILAR: the seeds. RANK: the candidates. Without duplicates."""
    filter: ItemFilter = field(default_factory=ItemFilter)
    rerank: RerankOptions = field(default_factory=RerankOptions)
    candidates: int = 500
    """How many to find and rank, or `count` where that is more."""
    quotas: tuple[Quota, ...] = ()
    """RECOMMEND: the sources to ask, in order. Empty only for the other kinds."""
    fusion: Fusion | None = None
    """RECOMMEND: how the sources' proposals become candidates; None: by quotas."""
    alpha: float = 1.0
    """SIMILAR: weight of the behaviour space against the content space, 0 to 1."""
    behaviour_space: str = ""
    """SIMILAR: a space of the bundle; empty: its first."""
    content_space: str = ""
    """SIMILAR: a space of the bundle; needed where alpha < 1."""
    reasons: bool = False
    deadline: float | None = None
    """`time.monotonic()` seconds after which nobody waits for the answer."""

    @property
    def pool(self) -> int:
        """How many candidates to find: never fewer than are to be answered."""
        return max(self.candidates, self.count)

    @property
    def work(self) -> int:
        """How many candidates are looked at: those of similar items are found for each given item."""
        return self.pool * max(1, self.given_rows.size) if self.kind is QueryKind.SIMILAR else self.pool

    @property
    def size(self) -> Size:
        """Queries of equal size take about as long."""
        chosen = self.count if self.rerank.caps or self.rerank.mmr_weight is not None else 0
        return Size(self.kind, self.work.bit_length(), chosen.bit_length())

    @property
    def depth(self) -> int:
        """How many items to ask each source for: it may have to make up for others that run short."""
        return self.pool if self.fusion is None else max(self.pool, self.fusion.depth)

    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """A user's dealings with items: one entry per (item, event type), latest first (ties by key, then event).

    Rows belong to a bundle, so the history names items by their keys.
    """

    keys: NDArray[np.uint64]
    """Item keys."""
    events: NDArray[np.int32]
    """Codes of the feature schema's `event_types`."""
    counts: NDArray[np.float64]
    """How often, >= 1."""
    last_us: NDArray[np.int64]
    """When last, microseconds UTC."""

    def slice(self, part: slice) -> History:
        """Some of the entries."""
        return History(self.keys[part], self.events[part], self.counts[part], self.last_us[part])

    @staticmethod
    def empty() -> History:
        """No dealings."""
        return History(np.empty(0, np.uint64), np.empty(0, np.int32), np.empty(0, np.float64), np.empty(0, np.int64))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UserState:
    """What is known of a user, by item key; independent of any bundle but for the schema's user hash."""

    known: bool
    columns: ColumnValues
    """One row of the schema's user columns; all missing for an unknown user."""
    history: History = field(default_factory=History.empty)
    shown: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """Keys of recently shown items, latest first."""


@dataclass(frozen=True, slots=True)
class Degraded:
    """What was left out of an answer, and why; both are codes, such as "diversity" and "caps_relaxed"."""

    stage: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an item was recommended: a code with parameters that a client can phrase."""

    code: str
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class StageTimes:
    """Microseconds spent per stage; a micro-batch's stage counts in full for each of its requests."""

    embed_us: int = 0
    retrieve_us: int = 0
    rank_us: int = 0
    rerank_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """An answer: `k` items, best first."""

    rows: Rows
    scores: NDArray[np.float64]
    """What the list is ordered by before diversity."""
    relevance: NDArray[np.float64] | None
    """Calibrated, in (0, 1); None where no ranker ran."""
    sources: tuple[str, ...]
    source_scores: NDArray[np.float32]
    """[k, sources]: in the source's own unit; NaN where it did not propose the item."""
    source_ranks: NDArray[np.int32]
    """[k, sources]: 1 is the source's best; 0 where it did not propose the item."""
    reasons: tuple[tuple[Reason, ...], ...] = ()
    """Per item; empty unless asked for."""
    cold_start: bool = False
    degraded: tuple[Degraded, ...] = ()
    times: StageTimes = field(default_factory=StageTimes)
