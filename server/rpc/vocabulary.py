"""Names that the product defines, whether or not a bundle has them.

A request that uses one of these where the bundle or build lacks it is FAILED_PRECONDITION; any other unknown name is
INVALID_ARGUMENT.
"""

from __future__ import annotations

from typing import Final

SOURCES: Final = frozenset(
    {"ann", "als", "content", "similar", "together", "trending", "popular", "popular_in_category", "again", "new"}
)
"""Candidate sources."""

OBJECTIVES: Final = frozenset({"click", "purchase", "revenue"})
"""What rankers predict."""
