"""Which recserve this is."""

from __future__ import annotations

import importlib.metadata


def this_version() -> str:
    """The installed version, or that there is none: a source tree can be imported without being installed."""
    try:
        return importlib.metadata.version("recserve")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
