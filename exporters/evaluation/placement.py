"""Reading a placement from a server's configuration, so that what is evaluated is what is served."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from recserve.exporters.errors import ExportError
from recserve.server.pipeline.settings import DEFAULT_PLACEMENT, PlacementSettings


class _Configuration(BaseModel):
    """What evaluations read of a server's configuration."""

    placements: dict[str, PlacementSettings] = Field(default_factory=dict)


def read_placement(config: Path, name: str = DEFAULT_PLACEMENT) -> PlacementSettings:
    """The placement of that name in a server's configuration file.

    Raises:
        ExportError: the file cannot be read, has no such placement, or a server would refuse its placements.
    """
    try:
        content = tomllib.loads(config.read_text("utf-8"))
        found = _Configuration.model_validate(content).placements
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise ExportError("\n  ".join([f"{config}:", *problems])) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ExportError(f"{config} cannot be read: {error}") from error
    placements = {DEFAULT_PLACEMENT: PlacementSettings(), **found}
    if name not in placements:
        raise ExportError(f"{config}: there is no placement {name!r}; there are {', '.join(placements)}")
    return placements[name]
