"""From domain errors to statuses: one table, read by every front.

A status travels as google.rpc.Status: in `grpc-status-details-bin` for a call of its own, in the body for an answer of
a batch. It holds details that a program can act on, and always the request id.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as detail
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from recserve.server.bundle import errors as bundle
from recserve.server.pipeline import errors as request
from recserve.server.rpc.errors import MalformedRequestError, NotImplementedMethodError
from recserve.server.state.protocol import StateUnavailableError

EntryT = TypeVar("EntryT", bound=Message)

logger = logging.getLogger(__name__)

DOMAIN: Final = "recserve"
"""ErrorInfo.domain of every status."""

# Peers refuse 8 KiB of trailing metadata and more by default. A status is in it twice: its text percent-encoded (up to
# three times as long), all of it in base64 (a third longer).
_MESSAGE_BYTES: Final = 512
_DETAILS_BYTES: Final = 2600  # of the entries that name what is wrong; the others of a status are a few hundred
_FRAME_BYTES: Final = 4  # before each entry of a repeated field: its number and its length
_TEXT_BYTES: Final = 300

_INTERNAL_TEXT: Final = "internal error; the server's log has more under request id {request_id}"


@dataclass(frozen=True, slots=True)
class Rule:
    """What one kind of error becomes."""

    code: int
    reason: str
    """ErrorInfo.reason: a stable name for programs."""
    details: Callable[[Any], Iterable[Packed]] = lambda _: ()
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
    details = [
        _packed(detail.ErrorInfo(reason=rule.reason, domain=DOMAIN)),
        _packed(detail.RequestInfo(request_id=request_id)),
        *rule.details(error),
    ]
    return Status(code=rule.code, message=_shortened(text, _MESSAGE_BYTES), details=details)


def rule_of(error: type[BaseException]) -> Rule:
    """The table's entry for an error type: its own, else that of its nearest base."""
    return next((RULES[base] for base in error.__mro__ if base in RULES), _OUR_BUG)


def _bad_request(error: request.InvalidRequestError) -> Iterable[Packed]:
    violation = detail.BadRequest.FieldViolation
    fields = (violation(field=_text(each.field), description=_text(each.description)) for each in error.violations)
    total = len(error.violations) + error.more
    yield _packed(detail.BadRequest(field_violations=_fitting(fields, total, lambda rest: violation(description=rest))))


def _precondition(error: request.BundleLacksError) -> Iterable[Packed]:
    violation = functools.partial(detail.PreconditionFailure.Violation, type="BUNDLE")
    lacking = (violation(subject=_text(each.field), description=_text(each.description)) for each in error.lacking)
    fitting = _fitting(lacking, len(error.lacking), lambda rest: violation(description=rest))
    yield _packed(detail.PreconditionFailure(violations=fitting))


def _unknown_items(error: request.UnknownItemsError) -> Iterable[Packed]:
    def item(item_id: str, description: str) -> Packed:
        return _packed(detail.ResourceInfo(resource_type="item", resource_name=_text(item_id), description=description))

    items = (item(each, "not in the catalogue") for each in error.item_ids)
    return _fitting(items, len(error.item_ids), lambda rest: item("", rest))


def _retry(error: request.OverloadedError) -> Iterable[Packed]:
    delay = Duration()
    delay.FromMicroseconds(round(error.retry_after_s * 1e6))
    yield _packed(detail.RetryInfo(retry_delay=delay))


_OUR_BUG: Final = Rule(Code.INTERNAL, "INTERNAL")

RULES: Final[Mapping[type[BaseException], Rule]] = {
    MalformedRequestError: Rule(Code.INVALID_ARGUMENT, "MALFORMED_REQUEST"),
    request.InvalidRequestError: Rule(Code.INVALID_ARGUMENT, "INVALID_REQUEST", _bad_request),
    request.UnknownItemsError: Rule(Code.NOT_FOUND, "UNKNOWN_ITEMS", _unknown_items),
    request.BundleLacksError: Rule(Code.FAILED_PRECONDITION, "BUNDLE_LACKS", _precondition),
    request.DeadlineExpiredError: Rule(Code.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED"),
    request.CallerGoneError: Rule(Code.CANCELLED, "CALLER_GONE"),  # nobody reads it
    request.OverloadedError: Rule(Code.RESOURCE_EXHAUSTED, "OVERLOADED", _retry),
    request.NotReadyError: Rule(Code.UNAVAILABLE, "NOT_READY"),
    NotImplementedMethodError: Rule(Code.UNIMPLEMENTED, "NOT_IMPLEMENTED"),
    # Where an answer is possible without state, it is given, and says so; this is for requests that demand what
    # only state can tell.
    StateUnavailableError: Rule(Code.UNAVAILABLE, "STATE_UNAVAILABLE"),
    # A bundle that fails under a request is never the caller's fault, and the text names the server's files.
    bundle.BundleNotFoundError: _OUR_BUG,
    bundle.BundleCorruptError: _OUR_BUG,
    bundle.BundleSchemaError: _OUR_BUG,
    bundle.BundleMismatchError: _OUR_BUG,
    bundle.BundleGoldenError: _OUR_BUG,
    bundle.BundleUnsupportedError: _OUR_BUG,
}


def _fitting(entries: Iterable[EntryT], total: int, rest: Callable[[str], EntryT]) -> list[EntryT]:
    """As many entries as fit into a status, and one more that counts the rest of `total`."""
    fitting: list[EntryT] = []
    room = _DETAILS_BYTES
    for each in entries:
        room -= each.ByteSize() + _FRAME_BYTES
        if room < 0:
            break
        fitting.append(each)
    if len(fitting) < total:
        fitting.append(rest(f"and {total - len(fitting)} more"))
    return fitting


def _packed(message: Message) -> Packed:
    """The message as an entry of a status."""
    packed = Packed()
    packed.Pack(message)
    return packed


def _text(text: str) -> str:
    return _shortened(text, _TEXT_BYTES)


def _shortened(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8, cut between characters."""
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    return encoded[: limit - len("…".encode())].decode(errors="ignore") + "…"
