"""Errors of single requests; they know nothing of gRPC (recserve.server.rpc.status maps them).

RecserveError
├── BundleError                  see recserve.server.bundle.errors
└── RequestError
    ├── InvalidRequestError      the caller's fault: every bad field at once
    ├── UnknownItemsError        none of the items asked about is known
    ├── BundleLacksError         defined, but this bundle or build lacks it
    ├── DeadlineExpiredError     the caller's deadline passed while queued, between stages or in the choice of a list
    ├── CallerGoneError          the caller left while queued or between stages
    ├── OverloadedError          more load than the queue can serve in time
    └── NotReadyError            no bundle ready, or draining
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from recserve.server.bundle.errors import RecserveError

_SHOWN_VIOLATIONS: Final = 10
"""How many the text of an InvalidRequestError names; all that were kept are in its `violations`."""


class RequestError(RecserveError):
    """One request cannot be answered; others are not affected."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One bad field of a request: its path in the proto, and what is wrong with what was found."""

    field: str
    description: str


class InvalidRequestError(RequestError):
    """Fields are missing, out of range, NaN, too long, or name what nothing defines.

    Args:
        violations: what is wrong, the first found first.
        more: how many further violations there are that nobody has kept.
    """

    def __init__(self, violations: Sequence[Violation], more: int = 0) -> None:
        self.violations = tuple(violations)
        self.more = more
        shown = self.violations[:_SHOWN_VIOLATIONS]
        unsaid = len(self.violations) - len(shown) + more
        parts = [f"{v.field}: {v.description}" for v in shown] + ([f"and {unsaid} more"] if unsaid else [])
        super().__init__("; ".join(parts))


class UnknownItemsError(RequestError):
    """None of the items asked about is in the catalogue."""

    def __init__(self, item_ids: Sequence[str]) -> None:
        self.item_ids = tuple(item_ids)
        shown = ", ".join(self.item_ids[:20]) + (", …" if len(self.item_ids) > 20 else "")
        super().__init__(f"no item that is asked about is in the catalogue: {shown}")


class BundleLacksError(RequestError):
    """What the request names is defined, but this bundle or build lacks it.

    Args:
        field: path of the request's field.
        message: what is lacking, and what to export or configure.
        others: further fields of the same request that ask for what is lacking.
    """

    def __init__(self, field: str, message: str, *others: Violation) -> None:
        self.field = field
        self.lacking = (Violation(field, message), *others)
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in self.lacking))


class DeadlineExpiredError(RequestError):
    """The caller's deadline passed; `stage` names where the work stopped."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        super().__init__(f"the deadline passed in stage {stage}")


class CallerGoneError(RequestError):
    """The caller left before its answer was there; `stage` names where the work stopped."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        super().__init__(f"the caller had left by stage {stage}")


class OverloadedError(RequestError):
    """The queue cannot serve more in time; `retry_after_s` says when to try again."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class NotReadyError(RequestError):
    """No bundle is ready, or the server is draining."""
