"""What a placement can be set to: keys, defaults and ranges.

They are a part of the server's configuration (`recserve.server.config`), and what evaluations ask of a bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator
from pydantic.types import JsonValue

from recserve.server.bundle.layout import MAX_WEIGHT

DEFAULT_PLACEMENT = "default"
"""The placement of requests that name none; it always exists."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$")]
"""Of bundles, placements and sources; whatever names a source within a bundle is one."""
NAME_RULE = "a name: a letter, digit or `_`, then at most 63 letters, digits, `_` or `-`"
"""`Name` in words."""


def unit(name: str) -> dict[str, JsonValue]:
    """The unit of a key, for the reference."""
    return {"unit": name}


class Section(BaseModel):
    """Keys that belong together; what is no key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def refuse_duplicates(what: str, names: list[str]) -> None:
    """Refuse names that are given more than once.

    Raises:
        ValueError: naming them.
    """
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ValueError(f"{what} names must be unique; given more than once: {', '.join(duplicates)}")


class SourceSettings(Section):
    """A candidate source with its share."""

    name: Name = Field(description="Such as `ann` or `together`; `docs/retrieval.md` lists them all.")
    weight: float = Field(
        ge=0, le=MAX_WEIGHT, description="Share of the candidates, relative to the other sources' weights."
    )


class CapSettings(Section):
    """At most `max` items with the same value of an attribute."""

    attribute: str = Field(min_length=1, description="A category column of the catalogue.")
    max: int = Field(ge=1, le=500, description="Items with the same value.", json_schema_extra=unit("items"))
    window: int = Field(
        default=0,
        ge=0,
        le=500,
        description="Only among the first `window` places; 0: in the whole list.",
        json_schema_extra=unit("places"),
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


class FreshnessSettings(Section):
    """New items gain: score = relevance * (1 + boost * 2 ** (-age / half_life_days))."""

    boost: float = Field(ge=0, le=100, description="Gain of an item that is launched now; 0.2 is 20%.")
    half_life_days: float = Field(
        gt=0, le=36_500, description="Age at which half of the gain is left.", json_schema_extra=unit("days")
    )


class FusionSettings(Section):
    """Candidates are chosen by what all sources say of them, the sum of weight / (constant + rank)."""

    depth: int = Field(
        default=2000,
        ge=1,
        le=20_000,
        description="Asked of each source; `candidates` where that is more.",
        json_schema_extra=unit("items"),
    )
    constant: float = Field(
        default=500,
        gt=0,
        le=MAX_WEIGHT,
        description="The larger, the less a source's order counts against being proposed by many.",
    )


class PlacementSettings(Section):
    """Defaults of one placement; a request's own fields override them."""

    candidates: int = Field(
        default=500, ge=1, le=5000, description="Candidates to rank.", json_schema_extra=unit("items")
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
        refuse_duplicates("source", [source.name for source in value])
        if value and not any(source.weight > 0 for source in value):
            raise ValueError("at least one weight must be above 0")
        return value

    @field_validator("objective_weights")
    @classmethod
    def _weights_have_a_positive_sum(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        if value and not any(weight > 0 for weight in value.values()):
            raise ValueError("at least one weight must be above 0")
        return value
