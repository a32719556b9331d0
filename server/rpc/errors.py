"""Errors that arise between the transport and the pipeline.

RequestError                     see recserve.server.pipeline.errors
├── MalformedRequestError        the bytes are not the message that they should be
└── NotImplementedMethodError    the contract defines the method, this build does not answer it

RecserveError                    see recserve.server.bundle.errors
├── FrontError                   the configured front cannot be had
└── PlacementError               a configured placement needs what a bundle lacks
"""

from __future__ import annotations

from collections.abc import Sequence

from recserve.server.bundle.errors import RecserveError
from recserve.server.pipeline.errors import RequestError, Violation


class MalformedRequestError(RequestError):
    """The bytes of a request do not parse; `message_type` is the proto message that they should have been."""

    def __init__(self, message_type: str) -> None:
        self.message_type = message_type
        super().__init__(
            f"the bytes received are not a {message_type}: they are damaged or cut short, or a text in them is not "
            "UTF-8; check that client and server were built from the same proto file"
        )


class NotImplementedMethodError(RequestError):
    """The contract defines the method, but this build does not answer it."""

    def __init__(self, method: str) -> None:
        self.method = method
        super().__init__(f"{method} is part of the API but not implemented in this version of recserve")


class FrontError(RecserveError):
    """The configured front cannot be had; the message says why, and what to do."""


class PlacementError(RecserveError):
    """Configured placements ask for what a bundle cannot do; `problems` names every such setting."""

    def __init__(self, bundle: str, problems: Sequence[Violation]) -> None:
        self.bundle = bundle
        self.problems = tuple(problems)
        listed = "".join(f"\n  {each.field}: {each.description}" for each in self.problems)
        super().__init__(f"the bundle {bundle!r} cannot serve what is configured:{listed}")
