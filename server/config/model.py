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

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
)

from recserve.server.pipeline.cache import CacheLimits
from recserve.server.pipeline.settings import (
    DEFAULT_PLACEMENT,
    Name,
    PlacementSettings,
    Section,
    refuse_duplicates,
    unit,
)

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
"""From which times are counted, in microseconds."""
_LAST_MOMENT = datetime.datetime.max.replace(tzinfo=datetime.UTC)


def _refuse_nul(path: Path) -> Path:
    """Python raises a ValueError, which is nobody's mistake, from whatever looks at such a path first."""
    if "\0" in str(path):
        raise ValueError("holds a NUL character (\\u0000), which no path can have: remove it")
    return path


def _refuse_empty(path: object) -> object:
    """It would be the directory in which the server starts, which nobody means by it."""
    if path == "":
        raise ValueError("is empty: name a directory")
    return path


Directory = Annotated[Path, BeforeValidator(_refuse_empty), AfterValidator(_refuse_nul)]


class ServerSettings(Section):
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
        json_schema_extra=unit("processes"),
    )
    max_message_bytes: int = Field(
        default=4 * 1024 * 1024,
        ge=64 * 1024,
        le=256 * 1024 * 1024,
        description="Largest request; the transport answers RESOURCE_EXHAUSTED beyond it. For answers, the caller's "
        "own limit holds.",
        json_schema_extra=unit("bytes"),
    )
    default_deadline_ms: int = Field(
        default=1000,
        ge=1,
        le=600_000,
        description="Deadline of a request whose caller set none.",
        json_schema_extra=unit("ms"),
    )
    drain_seconds: float = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="How long requests in flight may take to finish after SIGTERM, SIGINT or SIGHUP, at least "
        "`default_deadline_ms`; what takes longer is cut off, and the process ends about a second later.",
        json_schema_extra=unit("s"),
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


class BundleSettings(Section):
    """A bundle to serve. The first is the default; requests name the others in their field `bundle`."""

    name: Name = Field(default="default", description="What requests call it; unique.")
    path: Directory = Field(
        description="The bundle's directory; relative to the configuration file, or else to where the server starts."
    )


class StateSettings(Section):
    """What is known of users."""

    snapshot: Directory | None = Field(
        default=None,
        description="Directory of the user snapshot; without one every user is unknown. Relative as `bundles.path`.",
    )
    shown_per_user: int = Field(
        default=200,
        ge=1,
        le=10_000,
        description="Recently shown items remembered per user, the latest ones.",
        json_schema_extra=unit("items"),
    )
    shown_users: int = Field(
        default=100_000,
        ge=1,
        le=100_000_000,
        description="Users with a recently shown list, 16 bytes an item; the least recently seen is forgotten.",
        json_schema_extra=unit("users"),
    )
    shown_seconds: float = Field(
        default=86_400.0,
        gt=0,
        le=366 * 86_400,
        description="How long a shown item counts as recent.",
        json_schema_extra=unit("s"),
    )
    deadline_ms: int = Field(
        default=20,
        ge=1,
        le=60_000,
        description="How long a request waits for its user's state before it is answered without, as degraded.",
        json_schema_extra=unit("ms"),
    )


class ComputeSettings(Section):
    """What computes."""

    threads: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Compute threads; the cores given to the server.",
        json_schema_extra=unit("threads"),
    )
    max_batch: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="Most requests that one compute thread takes at once.",
        json_schema_extra=unit("requests"),
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


class UserVectorCacheSettings(Section):
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
        json_schema_extra=unit("vectors"),
    )
    seconds: float = Field(
        default=3600.0, gt=0, le=366 * 86_400, description="How long a vector is kept.", json_schema_extra=unit("s")
    )
    warm_users: int = Field(
        default=10_000,
        ge=0,
        le=100_000_000,
        description="Users of the snapshot whose vectors are made before the server is ready: those with the longest "
        "histories, no more than `entries`.",
        json_schema_extra=unit("users"),
    )

    @property
    def limits(self) -> CacheLimits:
        """Of each cache."""
        return CacheLimits(self.entries, self.seconds)


class AnswerCacheSettings(Section):
    """Whole answers of Recommend, repeated to equal requests while nothing has changed; off by default.

    An answer is kept under the request (all but its id and `record_shown`), its user's state, and the bundle: new
    events, new features, another shown list or a new bundle mean that it is computed anew.
    """

    entries: int = Field(
        default=0,
        ge=0,
        le=100_000_000,
        description="Answers kept, a few kB each; the least recently used goes first. 0: none.",
        json_schema_extra=unit("answers"),
    )
    seconds: float = Field(
        default=60.0,
        gt=0,
        le=86_400,
        description="How long an answer is repeated. A request without `Context.time` means now: what depends on it "
        "(ages, hours, the gain of new items) is as of the first answer, up to so long ago.",
        json_schema_extra=unit("s"),
    )

    @property
    def limits(self) -> CacheLimits:
        """Of the cache."""
        return CacheLimits(self.entries, self.seconds)


class AdmissionSettings(Section):
    """How much load is let in."""

    max_queue: int = Field(
        default=1024,
        ge=1,
        le=1_000_000,
        description="Requests that may wait for an answer, each of a BatchRecommend's (up to 256) counted; more are "
        "answered RESOURCE_EXHAUSTED at once.",
        json_schema_extra=unit("requests"),
    )


class SimilarSettings(Section):
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


class LogSettings(Section):
    """What is logged to stderr, one line an event."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe level that is logged."
    )


class Settings(Section):
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
        refuse_duplicates("bundle", [bundle.name for bundle in value])
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
