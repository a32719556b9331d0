"""What an export is made of. `recserve-export build` reads it from TOML; programs build it directly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.features import FeatureSchema
from recserve.server.pipeline.settings import PlacementSettings

if TYPE_CHECKING:  # heavy, optional libraries: only their names are needed here
    import pyarrow
    import torch

    from recserve.exporters.source_models import Model

TableSource: TypeAlias = "Path | str | pyarrow.Table"
"""The path of a Parquet, CSV or Arrow (IPC file or stream) file, by its suffix, or a table in memory."""

ColumnKind = Literal["number", "integer", "category", "categories", "time", "flag", "string"]
"""How an item attribute is stored; see ColumnType in manifest.proto."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemColumn:
    """One item attribute of the catalogue."""

    name: str
    kind: ColumnKind
    vocabulary: str = ""
    """For category and categories; columns that share a vocabulary share their codes. Empty: the column's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Which item column plays which part; empty: none does. See Roles in manifest.proto."""

    category: str = ""
    price: str = ""
    in_stock: str = ""
    regions: str = ""
    flags: str = ""
    launch_time: str = ""
    popularity: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueSpec:
    """The item table."""

    items: TableSource
    id_column: str = "item_id"
    columns: Sequence[ItemColumn]
    roles: Roles = field(default_factory=Roles)
    vocabularies: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Values by vocabulary in the order of their codes, as the models were trained with them; they must cover the
    columns' values. One that is left out holds the item columns' distinct values, sorted. Vocabularies of user and
    context columns that no item column shares (such as "device") have to be given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """Where an input of a tower comes from; see TowerInput in manifest.proto."""

    name: str
    kind: Literal["columns", "recent_items", "recent_mask", "recent_count"] = "columns"
    columns: Sequence[str] = ()
    dtype: Literal["float32", "int64"] = "float32"
    length: int = 0
    """Recent items: how many of the last."""
    offset: int = 0
    """Added to category codes, integers and item rows."""
    missing: float = float("nan")
    """Stands for missing values and padding as it is, `offset` not added; int64 inputs that can miss values need it."""
    rank: int = 2
    """1: [batch]; 2: [batch, n]."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TowerSpec:
    """A network from named inputs to vectors: an ONNX file, or a PyTorch module that is converted (extra [torch])."""

    model: Path | torch.nn.Module
    inputs: Sequence[InputSpec]
    output: str = ""
    """Name of the ONNX output; empty: the only one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSpec:
    """How a space is searched: by the fastest index that finds enough, or by one that is fixed by hand."""

    kind: Literal["auto", "exact", "ivf_pq4", "ivf_sq8", "hnsw_sq8", "faiss"] = "auto"
    """auto: whichever of the others is fastest on this machine. faiss: the index of `factory`."""
    recall_target: float = 0.95
    """What the lower 95% confidence bound of the recall at `recall_k` has to reach on held-out queries."""
    recall_k: int = 500
    factory: str = ""
    """For kind faiss: a factory string of an index of codes, such as "IVF1024,PQ64x4fs"."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpaceSpec:
    """A vector space.

    Item vectors come from `item_tower`, or are given as `item_vectors` float32 [items, dim] in the order of the item
    table. User vectors come from `user_tower`, or are given as `user_vectors` float32 [users, dim] for `user_ids`;
    a space with neither serves similarity only.
    """

    name: str
    normalized: bool
    """Vectors have length 1; checked."""
    metric: Literal["inner_product"] = "inner_product"
    item_tower: TowerSpec | None = None
    user_tower: TowerSpec | None = None
    item_vectors: NDArray[np.float32] | Path | None = None
    user_vectors: NDArray[np.float32] | Path | None = None
    user_ids: Sequence[str] | pyarrow.Array | None = None
    index: IndexSpec = field(default_factory=IndexSpec)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibrationData:
    """Rows that calibrate a forest: features [n, F] float32 and what happened, labels in {0, 1}."""

    features: NDArray[np.float32]
    labels: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankerSpec:
    """A forest for one objective.

    calibration: "model" takes a binary model's own sigmoid (no data needed); "platt" and "isotonic" are fitted on
    `calibration_data`.
    """

    objective: str
    model: Path | Model
    """A model of LightGBM, XGBoost, scikit-learn or Treelite, or a file of one; see `exporters.forest.compile_forest`.
    A scikit-learn forest of a binary classifier ranks by its probability of the second class."""
    weight: float = 1.0
    calibration: Literal["model", "platt", "isotonic"] = "model"
    calibration_data: CalibrationData | None = None
    tl2cgen: bool = False
    """Also compile it for the engine "tl2cgen", if that can follow it; needs a C compiler and a LightGBM model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySpec:
    """A table of users' dealings with items, one row per (user, item, event type)."""

    table: TableSource
    user_column: str = "user_id"
    item_column: str = "item_id"
    event_column: str = "event_type"
    count_column: str = "count"
    time_column: str = "last_time"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSpec:
    """User features and history: a versioned artifact of its own, beside the bundles that it serves."""

    version: str
    users: TableSource
    """One row a user: `id_column`, and a column for each of the feature schema's user columns."""
    id_column: str = "user_id"
    history: HistorySpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentSpec:
    """Segments of users by their history at the cut-off.

    A user without history is "new"; one whose last event is older than `inactive_days` is "inactive"; of the others,
    those whose number of events is at or above the quantile `power_quantile` are "power", the rest "active".
    """

    inactive_days: float = 90.0
    power_quantile: float = 0.8


EvaluationMode = Literal["all", "first"]
"""all: everything that users buy counts. first: only what they had not bought before, and nothing else is answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSpec:
    """Measure a bundle by what its users did in a test window that begins when the user snapshot has ended.

    `truth` has one row per purchase (or whatever counts): user, item, and optionally when.
    """

    truth: TableSource
    time_us: int
    """The cut-off: time of the requests, microseconds UTC. The truth begins with it; the events of the snapshot and of
    the candidate sources end before it."""
    user_column: str = "user_id"
    item_column: str = "item_id"
    time_column: str = ""
    """Empty: `time` where the table has a column of that name."""
    placement: PlacementSettings = field(default_factory=PlacementSettings)
    """What is asked of the bundle. To a user under test nothing was shown yet, and nobody is in a country."""
    modes: Sequence[EvaluationMode] = ("all", "first")
    segments: SegmentSpec = field(default_factory=SegmentSpec)
    new_users: bool = False
    """Whether users without history count in the figures of all users; they have a segment in any case."""
    max_users: int = 10_000
    """More users than these are sampled, by `seed`."""
    resamples: int = 1000
    """Of the bootstrap."""
    seed: int = 7
    minimum: Mapping[str, float] = field(default_factory=dict)
    """Least figures, such as {"all.full.ndcg@10": 0.3}; a bundle below one of them is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsSpec:
    """A table of what users did, one row per event; events of items that the catalogue lacks are left out."""

    table: TableSource
    item_column: str = "item_id"
    time_column: str = "time"
    user_column: str = "user_id"
    """Joins `users`; not read without them."""
    users: TableSource | None = None
    """One row a user: for popular lists by columns that the events lack themselves."""
    users_id_column: str = "user_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class TogetherSpec:
    """Items that are bought together, from a table with a row per basket and item.

    Of items i and j, n(i) and n(j) baskets have the one and the other and n(i, j) have both. The score is the cosine of
    the items' baskets, drawn towards 0 where few have both (Sarwar et al., WWW 2001; Bell and Koren, ICDM 2007):
    n(i, j) / sqrt(n(i) n(j)) * n(i, j) / (n(i, j) + shrinkage).
    """

    table: TableSource
    basket_column: str = "basket_id"
    item_column: str = "item_id"
    top: int = 50
    """Partners kept of each item."""
    min_baskets: int = 2
    """Pairs that fewer baskets have are left out."""
    shrinkage: float = 10.0
    max_items: int = 200
    """Baskets with more distinct items say little of any pair, and are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrendingSpec:
    """Items that lately have more than their usual share of the events.

    With r and a events of the item in the last `days` and in all, and R and A of all items: the score is
    (r + smoothing R / A) / (a + smoothing), and items above R / A are listed.
    """

    days: float = 7.0
    """Before the latest event."""
    smoothing: float = 20.0
    top: int = 5000
    column: str = ""
    """A number column of the catalogue that is the score, instead of the events; larger is more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PopularBySpec:
    """Popular items by the values of some columns: a candidate source of its own. The score is an item's share."""

    name: str
    columns: Sequence[str]
    """User or context columns of type category, which the events or their users have under the same name."""
    days: float = 0.0
    """Before the latest event; 0: all events."""
    top: int = 500
    """Items kept of each combination of values, and of all events, which stand in for missing values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcesSpec:
    """Candidate sources beside the spaces; see docs/retrieval.md."""

    similar_space: str = ""
    """Where `similar` looks for neighbours of the user's latest items; empty: the first normalised space."""
    similar_items: int = 5
    """Around how many of the latest items."""
    new_days: float = 30.0
    """How old an item of `new` may be."""
    events: EventsSpec | None = None
    together: TogetherSpec | None = None
    trending: TrendingSpec | None = None
    popular_by: Sequence[PopularBySpec] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSpec:
    """One export."""

    name: str
    version: str
    catalogue: CatalogueSpec
    features: FeatureSchema
    spaces: Sequence[SpaceSpec]
    rankers: Sequence[RankerSpec] = ()
    sources: SourcesSpec = field(default_factory=SourcesSpec)
    golden_user_ids: Sequence[str] = ()
    """Users of the snapshot whose golden requests are stored; empty: the first `golden_requests` of it."""
    golden_requests: int = 16
    golden_time_us: int = 0
    """Time of the golden requests, microseconds UTC; 0: the latest event of the snapshot."""
    offline_metrics: Mapping[str, float] = field(default_factory=dict)
    evaluation: EvaluationSpec | None = None
    """Needs the export's user snapshot, which then ends at the evaluation's cut-off."""
