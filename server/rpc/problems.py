"""Collects everything that is wrong with a request, so that its caller learns of it at once."""

from __future__ import annotations

from collections.abc import Collection

from recserve.server.pipeline.errors import BundleLacksError, InvalidRequestError, Violation

_LISTED_NAMES = 20
_SHOWN_CHARACTERS = 40


class Problems:
    """What is wrong with one request.

    `bad` entries are the caller's fault; `lacking` ones ask for what is defined but not in this bundle or build.
    """

    def __init__(self) -> None:
        self.bad: list[Violation] = []
        self.lacking: list[Violation] = []

    def reject(self, field: str, description: str) -> None:
        """The field's value is wrong."""
        self.bad.append(Violation(field, description))

    def lacks(self, field: str, message: str) -> None:
        """The field asks for what the bundle or build lacks."""
        self.lacking.append(Violation(field, message))

    def raise_any(self) -> None:
        """Return only if nothing is wrong.

        Raises:
            InvalidRequestError: something is the caller's fault; it wins, because no export would mend it.
            BundleLacksError: all that is wrong is that the bundle or build lacks something.
        """
        if self.bad:
            raise InvalidRequestError(self.bad)
        if self.lacking:
            first, *others = self.lacking
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
