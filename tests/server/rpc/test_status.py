from __future__ import annotations

import logging

import pytest
from google.rpc import error_details_pb2 as detail
from google.rpc.code_pb2 import Code
from grpc_status import rpc_status

from recserve.server.bundle.errors import BundleCorruptError, BundleError, RecserveError
from recserve.server.pipeline.errors import (
    BundleLacksError,
    CallerGoneError,
    DeadlineExpiredError,
    InvalidRequestError,
    NotReadyError,
    OverloadedError,
    RequestError,
    UnknownItemsError,
    Violation,
)
from recserve.server.rpc.errors import MalformedRequestError, NotImplementedMethodError
from recserve.server.rpc.status import RULES, rule_of, status_of
from recserve.server.state.protocol import StateUnavailableError
from recserve.v1 import recommender_pb2 as pb

METADATA_LIMIT = 8 * 1024


def subclasses(root: type) -> list[type]:
    return [found for child in root.__subclasses__() for found in (child, *subclasses(child))]


def details(status, kind):
    found = []
    for each in status.details:
        message = kind()
        if each.Unpack(message):
            found.append(message)
    return found


@pytest.mark.parametrize("root", [BundleError, RequestError])
def test_the_table_names_every_error(root):
    errors = [each for each in subclasses(root) if each.__module__.startswith("recserve.")]
    assert len(errors) >= 6
    assert [each.__name__ for each in errors if each not in RULES] == []


def test_the_table_names_nothing_but_our_errors():
    assert all(issubclass(each, RecserveError) for each in RULES)
    assert StateUnavailableError in RULES


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MalformedRequestError("recserve.v1.RecommendRequest"), Code.INVALID_ARGUMENT),
        (InvalidRequestError([Violation("count", "must be 1 to 500, but is 0")]), Code.INVALID_ARGUMENT),
        (UnknownItemsError(["a"]), Code.NOT_FOUND),
        (BundleLacksError("rerank.dpp", "this build has none"), Code.FAILED_PRECONDITION),
        (DeadlineExpiredError("queue"), Code.DEADLINE_EXCEEDED),
        (CallerGoneError("rank"), Code.CANCELLED),
        (OverloadedError("full", 0.25), Code.RESOURCE_EXHAUSTED),
        (NotReadyError("draining"), Code.UNAVAILABLE),
        (NotImplementedMethodError("Explain"), Code.UNIMPLEMENTED),
        (StateUnavailableError("no answer"), Code.UNAVAILABLE),
        (BundleCorruptError("changed", file="items/ids.keys.npy"), Code.INTERNAL),
        (ZeroDivisionError("secret"), Code.INTERNAL),
    ],
)
def test_statuses(error, code):
    status = status_of(error, "r-1")
    assert status.code == code
    assert details(status, detail.RequestInfo)[0].request_id == "r-1"
    reason = details(status, detail.ErrorInfo)[0]
    assert reason.domain == "recserve"
    assert reason.reason == rule_of(type(error)).reason
    assert not details(status, detail.DebugInfo)
    if code != Code.INTERNAL:
        assert status.message == str(error)


def test_a_subclass_is_treated_as_its_base():
    class LateError(DeadlineExpiredError):
        pass

    assert rule_of(LateError).code == Code.DEADLINE_EXCEEDED


def test_bad_request_names_every_field():
    error = InvalidRequestError(
        [Violation("count", "must be 1 to 500"), Violation("user_id", "must have 1 to 256 bytes")]
    )
    [bad] = details(status_of(error, "r"), detail.BadRequest)
    assert [(each.field, each.description) for each in bad.field_violations] == [
        ("count", "must be 1 to 500"),
        ("user_id", "must have 1 to 256 bytes"),
    ]


def test_what_is_lacking_is_named():
    error = BundleLacksError("rerank.dpp", "no DPP", Violation("sources[0].name", "no 'trending'"))
    [failure] = details(status_of(error, "r"), detail.PreconditionFailure)
    assert [(each.type, each.subject) for each in failure.violations] == [
        ("BUNDLE", "rerank.dpp"),
        ("BUNDLE", "sources[0].name"),
    ]
    assert "no 'trending'" in status_of(error, "r").message


def test_unknown_items_are_named():
    found = details(status_of(UnknownItemsError(["a", "ü"]), "r"), detail.ResourceInfo)
    assert [each.resource_name for each in found] == ["a", "ü"]


def test_overload_says_when_to_come_back():
    [retry] = details(status_of(OverloadedError("full", 0.25), "r"), detail.RetryInfo)
    assert retry.retry_delay.ToMicroseconds() == 250_000


def test_our_own_bugs_show_a_request_id_and_nothing_else(caplog):
    with pytest.raises(ZeroDivisionError) as bug:
        divmod(1, 0)
    with caplog.at_level(logging.ERROR):
        status = status_of(bug.value, "r-77")
    assert "r-77" in status.message
    serialized = status.SerializeToString()
    for inside in (b"divi", b"modulo", b"ZeroDivision", b"Traceback", b".py"):
        assert inside not in serialized
    assert "r-77" in caplog.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequestError([Violation(f"filter.exclude_item_ids[{i}]", "漢" * 500) for i in range(10_000)]),
        UnknownItemsError(["漢" * 85 + str(i % 10) for i in range(5_000)]),
        UnknownItemsError([str(i) for i in range(5_000)]),
        InvalidRequestError([Violation("", "") for _ in range(10_000)]),
        BundleLacksError("x" * 1000, "y" * 1000, *(Violation(f"sources[{i}].name", "z" * 500) for i in range(64))),
    ],
)
def test_statuses_fit_into_trailing_metadata(error):
    """Text percent-encoded, details in base64, as they travel."""
    status = status_of(error, "r" * 256)
    on_the_wire = len(status.SerializeToString()) * 4 / 3 + 3 * len(status.message.encode())
    assert on_the_wire < METADATA_LIMIT - 512
    assert any(
        "more" in str(each)
        for kind in (detail.BadRequest, detail.ResourceInfo, detail.PreconditionFailure)
        for each in details(status, kind)
    )


def test_what_nobody_kept_is_counted_too():
    error = InvalidRequestError([Violation("a", "wrong"), Violation("b", "wrong")], more=40)
    [bad] = details(status_of(error, "r"), detail.BadRequest)
    assert [(each.field, each.description) for each in bad.field_violations] == [
        ("a", "wrong"),
        ("b", "wrong"),
        ("", "and 40 more"),
    ]
    assert status_of(error, "r").message == "a: wrong; b: wrong; and 40 more"


def test_a_status_survives_as_grpc_status_and_as_ours():
    status = status_of(InvalidRequestError([Violation("count", "zero")]), "r")
    assert rpc_status.to_status(status).code.value[0] == status.code
    ours = pb.Status.FromString(status.SerializeToString())
    assert (ours.code, ours.message, len(ours.details)) == (status.code, status.message, len(status.details))
