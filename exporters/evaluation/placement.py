"""Reading a placement from a server's configuration, so that what is evaluated is what is served."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from recserve.exporters.errors import ExportError
from recserve.exporters.spec import PlacementSpec

DEFAULT: Final = "default"
"""The placement of requests that name none; a configuration need not have it."""
_SHOWN: Final = ("exclude_shown", "record_shown")
"""Without effect here: to a user under test, nothing was shown yet."""


def read_placement(config: Path, name: str = DEFAULT) -> PlacementSpec:
    """The placement of that name in a server's configuration file.

    Raises:
        ExportError: the file cannot be read, has no such placement, or it cannot be evaluated.
    """
    try:
        content = tomllib.loads(config.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ExportError(f"{config} cannot be read: {error}") from error
    placements = {DEFAULT: {}, **content.get("placements", {})}
    if name not in placements:
        raise ExportError(f"{config}: there is no placement {name!r}; there are {', '.join(placements)}")
    settings = {key: value for key, value in placements[name].items() if key not in _SHOWN}
    if settings.pop("in_region", False):
        raise ExportError(
            f"{config}: placement {name!r} answers items of the request's country only (in_region), and the users of "
            "a test have none: evaluate a placement without it"
        )
    try:
        return TypeAdapter(PlacementSpec).validate_python(settings, extra="forbid")
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise ExportError("\n  ".join([f"{config}, placements.{name}:", *problems])) from error
