"""Names that the product defines, whether or not a bundle has them.

A request that uses one of these where the bundle or build lacks it is FAILED_PRECONDITION; any other unknown name is
INVALID_ARGUMENT.
"""

from __future__ import annotations

from typing import Final

from recserve.server.bundle import layout

SOURCES: Final = layout.SOURCE_NAMES | {layout.TOGETHER, layout.TRENDING, "ann", "als", "content"}
"""Candidate sources; the last three are vector spaces."""

OBJECTIVES: Final = frozenset({"click", "purchase", "revenue"})
"""What rankers predict."""
