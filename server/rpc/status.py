"""From domain errors to statuses: one table, read by every front.

A status travels as google.rpc.Status: in `grpc-status-details-bin` for a call of its own, in the body for an answer of
a batch. It holds details that a program can act on, and always the request id.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as detail
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from recserve.server.bundle import errors as bundle
from recserve.server.pipeline import errors as request
from recserve.server.pipeline.errors import Violation
from recserve.server.rpc.errors import MalformedRequestError, NotImplementedMethodError
from recserve.server.state.protocol import StateUnavailableError

logger = logging.getLogger(__name__)

DOMAIN: Final = "recserve"
"""ErrorInfo.domain of every status."""

# Peers refuse 8 KiB of trailing metadata and more by default. A status is in it twice: its text percent-encoded (up to
# three times as long), all of it in base64 (a third longer).
_MESSAGE_BYTES: Final = 512
_DETAILS_BYTES: Final = 2600
_TEXT_BYTES: Final = 300

_INTERNAL_TEXT: Final = "internal error; the server's log has more under request id {request_id}"


@dataclass(frozen=True, slots=True)
class Rule:
    """What one kind of error becomes."""

    code: int
    reason: str
    """ErrorInfo.reason: a stable name for programs."""
    details: Callable[[Any], Iterable[Message]] = lambda _: ()
    """Any: each builder takes the error type that it stands beside in the table."""


def status_of(error: Exception, request_id: str) -> Status:
    """The status of a request that ended in `error`.

    Whatever the table does not name is a bug of ours: the log gets the stack trace, the caller the request id.
    """
    rule = rule_of(type(error))
    text = str(error)
    if rule.code == Code.INTERNAL:
        logger.error("request %s failed", request_id, exc_info=error)
        text = _INTERNAL_TEXT.format(request_id=request_id)
    status = Status(code=rule.code, message=_shortened(text, _MESSAGE_BYTES))
    details = [
        detail.ErrorInfo(reason=rule.reason, domain=DOMAIN),
        detail.RequestInfo(request_id=request_id),
        *rule.details(error),
    ]
    for each in details:
        status.details.add().Pack(each)
    return status


def rule_of(error: type[BaseException]) -> Rule:
    """The table's entry for an error type: its own, else that of its nearest base."""
    return next((RULES[base] for base in error.__mro__ if base in RULES), _OUR_BUG)


def _bad_request(error: request.InvalidRequestError) -> Iterable[Message]:
    fields = (
        detail.BadRequest.FieldViolation(field=each.field, description=each.description)
        for each in _fitting(error.violations)
    )
    yield detail.BadRequest(field_violations=fields)


def _precondition(error: request.BundleLacksError) -> Iterable[Message]:
    violations = (
        detail.PreconditionFailure.Violation(type="BUNDLE", subject=each.field, description=each.description)
        for each in _fitting(error.lacking)
    )
    yield detail.PreconditionFailure(violations=violations)


def _unknown_items(error: request.UnknownItemsError) -> Iterable[Message]:
    for each in _fitting([Violation(item_id, "not in the catalogue") for item_id in error.item_ids]):
        yield detail.ResourceInfo(resource_type="item", resource_name=each.field, description=each.description)


def _retry(error: request.OverloadedError) -> Iterable[Message]:
    delay = Duration()
    delay.FromMicroseconds(round(error.retry_after_s * 1e6))
    yield detail.RetryInfo(retry_delay=delay)


_OUR_BUG: Final = Rule(Code.INTERNAL, "INTERNAL")

RULES: Final[Mapping[type[BaseException], Rule]] = {
    MalformedRequestError: Rule(Code.INVALID_ARGUMENT, "MALFORMED_REQUEST"),
    request.InvalidRequestError: Rule(Code.INVALID_ARGUMENT, "INVALID_REQUEST", _bad_request),
    request.UnknownItemsError: Rule(Code.NOT_FOUND, "UNKNOWN_ITEMS", _unknown_items),
    request.BundleLacksError: Rule(Code.FAILED_PRECONDITION, "BUNDLE_LACKS", _precondition),
    request.DeadlineExpiredError: Rule(Code.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED"),
    request.OverloadedError: Rule(Code.RESOURCE_EXHAUSTED, "OVERLOADED", _retry),
    request.NotReadyError: Rule(Code.UNAVAILABLE, "NOT_READY"),
    NotImplementedMethodError: Rule(Code.UNIMPLEMENTED, "NOT_IMPLEMENTED"),
    # Where an answer is possible without state, it is given, and says so; this is for requests that need state.
    StateUnavailableError: Rule(Code.UNAVAILABLE, "STATE_UNAVAILABLE"),
    # A bundle that fails under a request is never the caller's fault, and the text names the server's files.
    bundle.BundleNotFoundError: _OUR_BUG,
    bundle.BundleCorruptError: _OUR_BUG,
    bundle.BundleSchemaError: _OUR_BUG,
    bundle.BundleMismatchError: _OUR_BUG,
    bundle.BundleGoldenError: _OUR_BUG,
    bundle.BundleUnsupportedError: _OUR_BUG,
}


def _fitting(violations: Sequence[Violation]) -> list[Violation]:
    """As many as fit into a status, and one more that counts the rest."""
    chosen: list[Violation] = []
    room = _DETAILS_BYTES
    for each in violations:
        short = Violation(_shortened(each.field, _TEXT_BYTES), _shortened(each.description, _TEXT_BYTES))
        room -= len(short.field.encode()) + len(short.description.encode()) + 16
        if room < 0:
            chosen.append(Violation("", f"and {len(violations) - len(chosen)} more"))
            break
        chosen.append(short)
    return chosen


def _shortened(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8, cut between characters."""
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    return encoded[: limit - len("…".encode())].decode(errors="ignore") + "…"
