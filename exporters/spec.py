"""What an export is made of. `recserve-export build` reads it from TOML; programs build it directly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.features import FeatureSchema
from recserve.server.pipeline.types import Cap, Freshness

if TYPE_CHECKING:  # heavy, optional libraries: only their names are needed here
    import lightgbm
    import pyarrow
    import torch

TableSource: TypeAlias = "Path | pyarrow.Table"
"""A Parquet, CSV or Arrow (IPC file or stream) file, by its suffix, or a table in memory."""

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
    """How a space is searched."""

    kind: Literal["exact", "ivf_sq8", "hnsw_sq8"] = "exact"
    recall_target: float = 0.95
    """The search parameter (nprobe, efSearch) is the smallest tried that reaches it at `recall_k`."""
    recall_k: int = 500


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
    user_ids: Sequence[str] | None = None
    index: IndexSpec = field(default_factory=IndexSpec)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibrationData:
    """Rows that calibrate a forest: features [n, F] float32 and what happened, labels in {0, 1}."""

    features: NDArray[np.float32]
    labels: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankerSpec:
    """A LightGBM forest for one objective.

    calibration: "model" takes a binary model's own sigmoid (no data needed); "platt" and "isotonic" are fitted on
    `calibration_data`.
    """

    objective: str
    model: Path | lightgbm.Booster
    weight: float = 1.0
    calibration: Literal["model", "platt", "isotonic"] = "model"
    calibration_data: CalibrationData | None = None


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


@dataclass(frozen=True, slots=True)
class SourceShare:
    """A candidate source with its share of the candidates, relative to the other sources' weights."""

    name: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementSpec:
    """What is asked of a bundle when it is evaluated; keys and defaults are those of a server's `[placements.NAME]`."""

    candidates: int = 500
    sources: Sequence[SourceShare] = ()
    """Empty: every source of the bundle, in equal shares."""
    caps: Sequence[Cap] = ()
    mmr_weight: float | None = None
    diversity_space: str = ""
    freshness: Freshness | None = None
    objective_weights: Mapping[str, float] = field(default_factory=dict)
    in_stock: bool = True
    exclude_purchased: bool = False


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
    """Measure a bundle by what its users did in a test window that begins when the user snapshot ends.

    `truth` has one row per purchase (or whatever counts): user, item, and optionally when.
    """

    truth: TableSource
    time_us: int
    """The cut-off: time of the requests, microseconds UTC. The snapshot must not hold anything later, the truth
    nothing earlier."""
    user_column: str = "user_id"
    item_column: str = "item_id"
    time_column: str = ""
    """Empty: `time` where the table has a column of that name."""
    placement: PlacementSpec = field(default_factory=PlacementSpec)
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
class BundleSpec:
    """One export."""

    name: str
    version: str
    catalogue: CatalogueSpec
    features: FeatureSchema
    spaces: Sequence[SpaceSpec]
    rankers: Sequence[RankerSpec] = ()
    golden_user_ids: Sequence[str] = ()
    """Users of the snapshot whose golden requests are stored; empty: the first `golden_requests` of it."""
    golden_requests: int = 16
    golden_time_us: int = 0
    """Time of the golden requests, microseconds UTC; 0: the latest event of the snapshot."""
    offline_metrics: Mapping[str, float] = field(default_factory=dict)
    evaluation: EvaluationSpec | None = None
    """Needs the export's user snapshot, which then ends at the evaluation's cut-off."""
