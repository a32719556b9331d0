"""Limits that kernels share with whoever prepares their inputs."""

from __future__ import annotations

from typing import Final

LARGEST_EXACT_INTEGER: Final = 2**24
"""float32, the type of every feature, tells neighbouring whole numbers apart up to here: category codes stay below."""
