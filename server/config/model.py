"""What can be configured: sections, keys, defaults, ranges, and the checks that involve several keys.

Checks across keys are field validators that look at the fields before them (`info.data`), not model validators:
those run only when every field of the model is valid, and then a person would learn of the errors one start at a time.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator
from pydantic.types import JsonValue

from recserve.server.bundle.layout import MAX_WEIGHT
from recserve.server.pipeline.cache import CacheLimits

DEFAULT_PLACEMENT = "default"
"""The placement of requests that name none; it always exists."""

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
"""From which times are counted, in microseconds."""
_LAST_MOMENT = datetime.datetime.max.replace(tzinfo=datetime.UTC)

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$")]
"""Of bundles, placements and sources; whatever names a source within a bundle is one."""
NAME_RULE = "a name: a letter, digit or `_`, then at most 63 letters, digits, `_` or `-`"
"""`Name` in words."""


def _unit(name: str) -> dict[str, JsonValue]:
    """The unit of a key, for the reference."""
    return {"unit": name}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class ServerSettings(_Section):
    """Where and how the server listens."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on; `0.0.0.0` or `::` for all.")
    port: int = Field(
        default=50051, ge=0, le=65535, description="TCP port; 0 takes a free one, which is printed and logged."
    )
    front: Literal["grpc", "native"] = Field(
        default="grpc",
        description="What speaks gRPC: grpcio, or pygrpc-native (the extra `[native]`), which takes less CPU a "
        "request, and is for callers who can be trusted: `docs/fronts.md`.",
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Processes that share the port and the pages of mapped bundles, each with compute threads, "
        "queue, caches and recently shown items of its own: `docs/fronts.md`. Above 1: Linux only.",
        json_schema_extra=_unit("processes"),
    )
    max_message_bytes: int = Field(
        default=4 * 1024 * 1024,
        ge=64 * 1024,
        le=256 * 1024 * 1024,
        description="Largest request; the transport answers RESOURCE_EXHAUSTED beyond it. For answers, the caller's "
        "own limit holds.",
        json_schema_extra=_unit("bytes"),
    )
    default_deadline_ms: int = Field(
        default=1000,
        ge=1,
        le=600_000,
        description="Deadline of a request whose caller set none.",
        json_schema_extra=_unit("ms"),
    )
    drain_seconds: float = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="How long requests in flight may take to finish after SIGTERM, at least `default_deadline_ms`; "
        "what takes longer is cut off, and the process ends about a second later.",
        json_schema_extra=_unit("s"),
    )
    reflection: bool = Field(
        default=True, description="Offer gRPC server reflection, so that clients need no proto files."
    )
    clock: AwareDatetime | None = Field(
        default=None,
        description="Requests without a time are answered as of this moment, always: ages, days since and the hour are "
        "counted from it, so that historic data is served as of its end. Recently shown items still age in real time. "
        "Absent: the time of day.",
    )

    @field_validator("drain_seconds")
    @classmethod
    def _drain_covers_a_request(cls, value: float, info: ValidationInfo) -> float:
        deadline_ms = info.data.get("default_deadline_ms")
        if deadline_ms is not None and 0 < value < deadline_ms / 1000:
            raise ValueError(
                f"must be at least server.default_deadline_ms ({deadline_ms / 1000:g} s), or requests that are in time "
                "are cut off when the server stops; 0 cuts them off on purpose"
            )
        return value

    @field_validator("clock", mode="before")
    @classmethod
    def _clock_is_written_out(cls, value: object) -> object:
        """Pydantic would take "2011" for seconds since 1970; what is no moment is left for it to refuse."""
        with contextlib.suppress(ValueError):
            return datetime.datetime.fromisoformat(value) if isinstance(value, str) else value
        return value

    @field_validator("clock")
    @classmethod
    def _clock_is_a_request_time(cls, value: datetime.datetime | None) -> datetime.datetime | None:
        if value is not None and not EPOCH <= value <= _LAST_MOMENT:
            raise ValueError(f"found {value.isoformat()}, allowed are the years 1970 to 9999, as for a request's time")
        return value

    @property
    def clock_us(self) -> int | None:
        """`clock` as requests' times are counted: microseconds since 1970 UTC."""
        return None if self.clock is None else (self.clock - EPOCH) // datetime.timedelta(microseconds=1)


class BundleSettings(_Section):
    """A bundle to serve. The first is the default; requests name the others in their field `bundle`."""

    name: Name = Field(default="default", description="What requests call it; unique.")
    path: Path = Field(
        description="The bundle's directory; relative to the configuration file, or else to where the server starts."
    )


class StateSettings(_Section):
    """What is known of users."""

    snapshot: Path | None = Field(
        default=None,
        description="Directory of the user snapshot; without one every user is unknown. Relative as `bundles.path`.",
    )
    shown_per_user: int = Field(
        default=200,
        ge=1,
        le=10_000,
        description="Recently shown items remembered per user, the latest ones.",
        json_schema_extra=_unit("items"),
    )
    shown_users: int = Field(
        default=100_000,
        ge=1,
        le=100_000_000,
        description="Users with a recently shown list, 16 bytes an item; the least recently seen is forgotten.",
        json_schema_extra=_unit("users"),
    )
    shown_seconds: float = Field(
        default=86_400.0,
        gt=0,
        le=366 * 86_400,
        description="How long a shown item counts as recent.",
        json_schema_extra=_unit("s"),
    )
    deadline_ms: int = Field(
        default=20,
        ge=1,
        le=60_000,
        description="How long a request waits for its user's state before it is answered without, as degraded.",
        json_schema_extra=_unit("ms"),
    )


class ComputeSettings(_Section):
    """What computes."""

    threads: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Compute threads; the cores given to the server.",
        json_schema_extra=_unit("threads"),
    )
    max_batch: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="Most requests that one compute thread takes at once.",
        json_schema_extra=_unit("requests"),
    )
    device: Literal["cpu", "cuda"] = Field(
        default="cpu",
        description="Where towers and search run. On `cuda` search is exact; where it has to look at more than 2,048 "
        "items (the candidates asked of a source, over the share of items that pass the filter), the CPU scans all of "
        "them instead.",
    )
    ranker_engine: Literal["bitsliced", "tl2cgen"] = Field(
        default="bitsliced",
        description="What evaluates the forests. Both give the same scores to the last bit; `tl2cgen` is native code.",
    )
    allow_native_code: bool = Field(
        default=False,
        description="Load shared libraries from bundles, for `ranker_engine` `tl2cgen`. They are code: allow it for "
        "bundles that you trust.",
    )


class UserVectorCacheSettings(_Section):
    """Vectors that user towers have made, so that users who come back need no tower.

    A vector is kept under all that its tower reads, so it is exactly what the tower would make. Each bundle and vector
    space has a cache of its own. A tower that reads times gives every request another vector, and keeps none.
    """

    entries: int = Field(
        default=50_000,
        ge=0,
        le=100_000_000,
        description="Vectors kept, 4 bytes a dimension and about 300 more each; the least recently used goes first. "
        "0: none.",
        json_schema_extra=_unit("vectors"),
    )
    seconds: float = Field(
        default=3600.0, gt=0, le=366 * 86_400, description="How long a vector is kept.", json_schema_extra=_unit("s")
    )
    warm_users: int = Field(
        default=10_000,
        ge=0,
        le=100_000_000,
        description="Users of the snapshot whose vectors are made before the server is ready: those with the longest "
        "histories, no more than `entries`.",
        json_schema_extra=_unit("users"),
    )

    @property
    def limits(self) -> CacheLimits:
        """Of each cache."""
        return CacheLimits(self.entries, self.seconds)


class AnswerCacheSettings(_Section):
    """Whole answers of Recommend, repeated to equal requests while nothing has changed; off by default.

    An answer is kept under the request (all but its id and `record_shown`), its user's state, and the bundle: new
    events, new features, another shown list or a new bundle mean that it is computed anew.
    """

    entries: int = Field(
        default=0,
        ge=0,
        le=100_000_000,
        description="Answers kept, a few kB each; the least recently used goes first. 0: none.",
        json_schema_extra=_unit("answers"),
    )
    seconds: float = Field(
        default=60.0,
        gt=0,
        le=86_400,
        description="How long an answer is repeated. A request without `Context.time` means now: what depends on it "
        "(ages, hours, the gain of new items) is as of the first answer, up to so long ago.",
        json_schema_extra=_unit("s"),
    )

    @property
    def limits(self) -> CacheLimits:
        """Of the cache."""
        return CacheLimits(self.entries, self.seconds)


class AdmissionSettings(_Section):
    """How much load is let in."""

    max_queue: int = Field(
        default=1024,
        ge=1,
        le=1_000_000,
        description="Requests that may wait for an answer, each of a BatchRecommend's (up to 256) counted; more are "
        "answered RESOURCE_EXHAUSTED at once.",
        json_schema_extra=_unit("requests"),
    )


class SourceSettings(_Section):
    """A candidate source with its share."""

    name: Name = Field(description="Such as `ann` or `together`; `docs/retrieval.md` lists them all.")
    weight: float = Field(
        ge=0, le=MAX_WEIGHT, description="Share of the candidates, relative to the other sources' weights."
    )


class CapSettings(_Section):
    """At most `max` items with the same value of an attribute."""

    attribute: str = Field(min_length=1, description="A category column of the catalogue.")
    max: int = Field(ge=1, le=500, description="Items with the same value.", json_schema_extra=_unit("items"))
    window: int = Field(
        default=0,
        ge=0,
        le=500,
        description="Only among the first `window` places; 0: in the whole list.",
        json_schema_extra=_unit("places"),
    )
    sliding: bool = Field(default=False, description="In every run of `window` consecutive places instead.")

    @field_validator("window")
    @classmethod
    def _window_exceeds_max(cls, value: int, info: ValidationInfo) -> int:
        cap = info.data.get("max")
        if cap is not None and 0 < value <= cap:
            raise ValueError(f"must be larger than max ({cap}), or the cap can never bind; 0 means the whole list")
        return value

    @field_validator("sliding")
    @classmethod
    def _sliding_has_a_window(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("window") == 0:
            raise ValueError("needs a window larger than max")
        return value


class FreshnessSettings(_Section):
    """New items gain: score = relevance * (1 + boost * 2 ** (-age / half_life_days))."""

    boost: float = Field(ge=0, le=100, description="Gain of an item that is launched now; 0.2 is 20%.")
    half_life_days: float = Field(
        gt=0, le=36_500, description="Age at which half of the gain is left.", json_schema_extra=_unit("days")
    )


class FusionSettings(_Section):
    """Candidates are chosen by what all sources say of them, the sum of weight / (constant + rank)."""

    depth: int = Field(
        default=2000,
        ge=1,
        le=20_000,
        description="Asked of each source; `candidates` where that is more.",
        json_schema_extra=_unit("items"),
    )
    constant: float = Field(
        default=500,
        gt=0,
        le=MAX_WEIGHT,
        description="The larger, the less a source's order counts against being proposed by many.",
    )


class PlacementSettings(_Section):
    """Defaults of one placement; a request's own fields override them."""

    candidates: int = Field(
        default=500, ge=1, le=5000, description="Candidates to rank.", json_schema_extra=_unit("items")
    )
    sources: tuple[SourceSettings, ...] = Field(
        default=(),
        description="Candidate sources with their shares; empty: every source of the bundle, in equal shares.",
    )
    fusion: FusionSettings | None = Field(
        default=None,
        description="Candidates are those that the sources together rank best; absent: every source fills its share.",
    )
    caps: tuple[CapSettings, ...] = Field(default=(), description="Caps on attributes, all of which hold.")
    mmr_weight: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="MMR's relevance weight: 1 relevance only, 0 diversity only; absent: no diversity.",
    )
    diversity_space: str = Field(
        default="", description="Normalised vector space in which MMR measures similarity; empty: the bundle's first."
    )
    freshness: FreshnessSettings | None = Field(default=None, description="Gain of new items; absent: none.")
    objective_weights: Mapping[str, Annotated[float, Field(ge=0, le=MAX_WEIGHT)]] = Field(
        default_factory=dict, description="Weights of the ranker's objectives by name; empty: the bundle's."
    )
    in_stock: bool = Field(
        default=True, description="Only items in stock. A catalogue that does not know its stock is not filtered."
    )
    in_region: bool = Field(default=False, description="Only items sold in the request's country.")
    exclude_purchased: bool = Field(default=False, description="No items that the user has bought.")
    exclude_shown: bool = Field(default=False, description="No items recently shown to the user.")
    record_shown: bool = Field(default=False, description="Remember answers as shown to the user.")

    @field_validator("sources")
    @classmethod
    def _sources_are_usable(cls, value: tuple[SourceSettings, ...]) -> tuple[SourceSettings, ...]:
        _refuse_duplicates("source", [source.name for source in value])
        if value and not any(source.weight > 0 for source in value):
            raise ValueError("at least one weight must be above 0")
        return value

    @field_validator("objective_weights")
    @classmethod
    def _weights_have_a_positive_sum(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        if value and not any(weight > 0 for weight in value.values()):
            raise ValueError("at least one weight must be above 0")
        return value


class SimilarSettings(_Section):
    """Defaults of SimilarItems."""

    alpha: float = Field(default=1.0, ge=0, le=1, description="1: behaviour vectors only; 0: content vectors only.")
    behaviour_space: str = Field(
        default="", description="Normalised vector space of behaviour; empty: the bundle's first."
    )
    content_space: str = Field(
        default="content",
        min_length=1,
        description="Normalised vector space of content; needed where alpha is below 1.",
    )


class LogSettings(_Section):
    """What is logged to stderr, one line an event."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe level that is logged."
    )


class Settings(_Section):
    """The whole configuration."""

    server: ServerSettings = Field(default_factory=ServerSettings)
    bundles: tuple[BundleSettings, ...] = Field(min_length=1)
    compute: ComputeSettings = Field(default_factory=ComputeSettings)
    state: StateSettings = Field(default_factory=StateSettings)
    admission: AdmissionSettings = Field(default_factory=AdmissionSettings)
    user_vector_cache: UserVectorCacheSettings = Field(default_factory=UserVectorCacheSettings)
    answer_cache: AnswerCacheSettings = Field(default_factory=AnswerCacheSettings)
    placements: Mapping[Name, PlacementSettings] = Field(default_factory=dict)
    similar: SimilarSettings = Field(default_factory=SimilarSettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @field_validator("bundles")
    @classmethod
    def _bundle_names_are_unique(cls, value: tuple[BundleSettings, ...]) -> tuple[BundleSettings, ...]:
        _refuse_duplicates("bundle", [bundle.name for bundle in value])
        return value

    @field_validator("state")
    @classmethod
    def _state_leaves_time(cls, value: StateSettings, info: ValidationInfo) -> StateSettings:
        server = info.data.get("server")
        if server is not None and value.deadline_ms >= server.default_deadline_ms:
            raise ValueError(
                f"state.deadline_ms ({value.deadline_ms}) must be below server.default_deadline_ms "
                f"({server.default_deadline_ms}), or waiting for state uses up the whole request"
            )
        return value

    @field_validator("admission")
    @classmethod
    def _queue_holds_a_batch(cls, value: AdmissionSettings, info: ValidationInfo) -> AdmissionSettings:
        compute = info.data.get("compute")
        if compute is not None and value.max_queue < compute.max_batch:
            raise ValueError(
                f"admission.max_queue ({value.max_queue}) must be at least compute.max_batch ({compute.max_batch}), "
                "or a full batch can never form"
            )
        return value

    @field_validator("placements")
    @classmethod
    def _default_always_exists(cls, value: Mapping[str, PlacementSettings]) -> Mapping[str, PlacementSettings]:
        return {DEFAULT_PLACEMENT: PlacementSettings(), **value}


def _refuse_duplicates(what: str, names: list[str]) -> None:
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ValueError(f"{what} names must be unique; given more than once: {', '.join(duplicates)}")
