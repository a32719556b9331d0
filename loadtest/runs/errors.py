"""What stops a load test before it has figures."""

from __future__ import annotations

from recserve.server.bundle.errors import RecserveError


class UsageError(RecserveError):
    """Options that are well-formed one by one do not go together."""


class TargetError(RecserveError):
    """The target cannot be measured: it is not there, not ready, or not what was expected."""


class ResultError(RecserveError):
    """A result file cannot be used."""
