"""Collects everything that is wrong with a request, so that its caller learns of it at once."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from recserve.server.pipeline.errors import BundleLacksError, InvalidRequestError, Violation

_KEPT: Final = 200
"""Violations that are kept; more than a status could carry. The rest are counted."""

_LISTED_NAMES: Final = 20
_SHOWN_CHARACTERS: Final = 40


class Problems:
    """What is wrong with one request: the caller's faults, and what it asks for that this bundle or build lacks."""

    def __init__(self) -> None:
        self._bad: list[Violation] = []
        self._unkept = 0
        self._oversized = False
        self._lacking: list[Violation] = []

    def reject(self, field: str, description: str) -> None:
        """The field's value is wrong."""
        if len(self._bad) < _KEPT:
            self._bad.append(Violation(field, description))
        else:
            self._unkept += 1

    def reject_size(self, field: str, description: str) -> None:
        """The field has a wrong number of entries: nobody should look at each of them."""
        self.reject(field, description)
        self._oversized = True

    def lacks(self, field: str, message: str) -> None:
        """The field asks for what the bundle or build lacks."""
        self._lacking.append(Violation(field, message))

    def invalid(self) -> InvalidRequestError:
        """Everything that is the caller's fault, as an error."""
        return InvalidRequestError(self._bad, self._unkept)

    def raise_oversized(self) -> None:
        """Return only if every list of the request has a permitted size.

        Raises:
            InvalidRequestError: with everything found so far.
        """
        if self._oversized:
            raise self.invalid()

    def raise_any(self) -> None:
        """Return only if nothing is wrong.

        Raises:
            InvalidRequestError: something is the caller's fault; it wins, because no export would mend it.
            BundleLacksError: all that is wrong is that the bundle or build lacks something.
        """
        if self._bad:
            raise self.invalid()
        if self._lacking:
            first, *others = self._lacking
            raise BundleLacksError(first.field, first.description, *others)


def quoted(value: str) -> str:
    """A caller's text, printable and short."""
    return repr(value if len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS] + "…")


def listed(names: Collection[str]) -> str:
    """What would have been valid."""
    if not names:
        return "none"
    shown = sorted(names)[:_LISTED_NAMES]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
