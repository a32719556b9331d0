"""A scenario says who asks for what: a TOML file, checked as a whole before anything is sent."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails

from recserve.loadtest.generator.pacing import Pattern
from recserve.loadtest.generator.wire import MAX_TIMEOUT_S
from recserve.server.bundle.errors import RecserveError

Method = Literal["Recommend", "SimilarItems", "RankItems"]


class ScenarioError(RecserveError):
    """A scenario cannot be used; the message lists everything that is wrong with it."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Users(_Section):
    """Who asks.

    Attributes:
        zipf: exponent of Zipf's law: the k-th most active user asks in proportion to 1 / k ** zipf; 0: all alike.
        unknown_share: of the requests, from users whom the server has never seen.
        limit: at most so many users of the snapshot take part.
    """

    zipf: float = Field(default=1.0, ge=0, le=5)
    unknown_share: float = Field(default=0.0, ge=0, le=1)
    limit: int = Field(default=1_000_000, ge=1)


class Arrivals(_Section):
    """When requests leave; see pacing.arrivals. `times` is the recording of "replay", relative to the file."""

    pattern: Pattern = "poisson"
    times: Path | None = None

    @field_validator("times")
    @classmethod
    def _belongs_to_replay(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("pattern") != "replay":
            raise ValueError('is for pattern = "replay" only')
        return value

    @model_validator(mode="after")
    def _replays_something(self) -> Arrivals:
        if self.pattern == "replay" and self.times is None:
            raise ValueError('pattern = "replay" needs times = "FILE": seconds at which requests came in, one a line')
        return self


class Filters(_Section):
    """Which items may be answered, as in the API's Filter; `exclude_items` and `categories` count random ones."""

    price_min: float | None = None
    price_max: float | None = None
    in_stock: bool | None = None
    in_region: bool | None = None
    exclude_purchased: bool | None = None
    exclude_shown: bool | None = None
    exclude_items: int = Field(default=0, ge=0, le=10_000)
    include_categories: tuple[str, ...] = ()
    categories: int = Field(default=0, ge=0, le=1000)


class Request(_Section):
    """Requests of one kind.

    Attributes:
        method: of the API.
        share: of all requests, relative to the others' shares.
        count: items to ask for.
        items: SimilarItems: given items; RankItems: candidates. Random ones.
        placement, device, country, fields: as in the API.
        countries: each request has one of them.
        session_items: random items of this session.
        filter: see there.
        deadline_ms: counted from when the request is due; what comes later is DEADLINE_EXCEEDED.
        min_items: fewer in an answer are an error. Absent: `count` (`items` of RankItems, where those are fewer), or 1
            where a filter may leave fewer.
    """

    method: Method = "Recommend"
    share: float = Field(default=1.0, gt=0, le=1e6)
    count: int = Field(default=20, ge=1, le=5000)
    items: Annotated[int | None, Field(ge=1, le=5000)] = None
    placement: str = Field(default="", max_length=256)
    device: str = Field(default="", max_length=256)
    countries: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    session_items: int = Field(default=0, ge=0, le=100)
    filter: Filters = Field(default_factory=Filters)
    deadline_ms: float = Field(default=1000.0, gt=0, le=1000 * MAX_TIMEOUT_S)
    min_items: Annotated[int | None, Field(ge=0, le=5000)] = None

    @field_validator("count")
    @classmethod
    def _count_is_allowed(cls, value: int, info: ValidationInfo) -> int:
        if value > 500 and info.data.get("method") != "RankItems":
            raise ValueError("is at most 500 but for RankItems")
        return value

    @field_validator("items")
    @classmethod
    def _items_belong_to_the_method(cls, value: int | None, info: ValidationInfo) -> int | None:
        method = info.data.get("method")
        if value is not None and method == "Recommend":
            raise ValueError("is for SimilarItems and RankItems; Recommend finds its items itself")
        if value is not None and value > 20 and method == "SimilarItems":
            raise ValueError("is at most 20 for SimilarItems")
        return value

    @property
    def given_items(self) -> int:
        """Items that the request names."""
        return self.items or {"Recommend": 0, "SimilarItems": 1, "RankItems": 100}[self.method]

    @property
    def least_items(self) -> int:
        """`min_items`, or what it is where it is absent."""
        if self.min_items is not None:
            return self.min_items
        if self.filter != Filters() or self.method == "RankItems":
            return 1  # the placement's own filter holds for candidates, too
        return self.count


class Scenario(_Section):
    """The whole file."""

    description: str = ""
    users: Users = Field(default_factory=Users)
    arrivals: Arrivals = Field(default_factory=Arrivals)
    requests: tuple[Request, ...] = Field(min_length=1)


DEFAULT: Final = "recommend"
"""The scenario of who names none."""


def shipped_scenarios() -> dict[str, str]:
    """Name and description of the scenarios that come with the product."""
    folder = resources.files("recserve.loadtest") / "scenarios"
    files = sorted((each for each in folder.iterdir() if each.name.endswith(".toml")), key=lambda each: each.name)
    return {each.name.removesuffix(".toml"): tomllib.loads(each.read_text("utf-8"))["description"] for each in files}


def load_scenario(name: str) -> Scenario:
    """A scenario by the name of a shipped one, or by the path of a file.

    Raises:
        ScenarioError: there is none, it is not TOML, or not a scenario.
    """
    shipped = resources.files("recserve.loadtest") / "scenarios" / f"{name}.toml"
    if name in shipped_scenarios():
        return parse_scenario(shipped.read_text("utf-8"), name)
    path = Path(name)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(shipped_scenarios())
        raise ScenarioError(f"{name} is neither a scenario ({known}) nor a file that can be read: {error}") from error
    scenario = parse_scenario(text, name)
    times = scenario.arrivals.times
    if times is None:
        return scenario
    arrivals = scenario.arrivals.model_copy(update={"times": path.parent / times})
    return scenario.model_copy(update={"arrivals": arrivals})


def parse_scenario(text: str, origin: str) -> Scenario:
    """The scenario of a text; `origin` says in messages where it came from.

    Raises:
        ScenarioError: as load_scenario.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{origin} is not TOML: {error}") from error
    try:
        # JSON, because strictness then still knows paths and tuples, yet `count = "20"` is an error.
        return Scenario.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        errors = error.errors()
        # A list whose entries are all wrong is also called too short.
        deeper = {each["loc"][:1] for each in errors if len(each["loc"]) > 1}
        problems = [f"  {_problem(each)}" for each in errors if each["loc"] not in deeper]
        count = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
        raise ScenarioError("\n".join((f"{count} in scenario {origin}:", *problems))) from None


def _problem(details: ErrorDetails) -> str:
    where = ".".join(map(str, details["loc"])) or "scenario"
    if details["type"] == "extra_forbidden":
        return f"{where}: no such key{_suggestion(details['loc'])}"
    if details["type"] == "missing":
        return f"{where}: is required"
    if details["type"] == "value_error":
        return f"{where}: {details['ctx']['error']}"
    return f"{where}: found {json.dumps(details['input'], default=str)[:80]}: {_lower(details['msg'])}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _suggestion(path: Sequence[str | int]) -> str:
    names = _keys(path[:-1])
    near = difflib.get_close_matches(str(path[-1]), names, 1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"


def _keys(path: Sequence[str | int]) -> list[str]:
    """The keys of the section at a path."""
    section: Any = Scenario
    for part in path:
        if isinstance(part, str):
            section = section.model_fields[part].annotation
            section = next((each for each in get_args(section) if each is not Ellipsis), section)
    return list(section.model_fields)
