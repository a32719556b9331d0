"""What `recserve call` does: one request over gRPC, and its answer or its error as a person reads it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, cast

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from recserve.server.bundle.errors import RecserveError
from recserve.server.bundle.tables import fits, stdout_console
from recserve.server.text import own_command, printable
from recserve.v1 import recommender_pb2 as pb
from recserve.v1.recommender_pb2_grpc import RecommenderServiceStub

Answer = pb.RecommendResponse | pb.SimilarItemsResponse | pb.RankItemsResponse

_METHODS: dict[type[Message], str] = {
    pb.RecommendRequest: "Recommend",
    pb.SimilarItemsRequest: "SimilarItems",
    pb.RankItemsRequest: "RankItems",
}

_CHANNEL = (
    ("grpc.max_receive_message_length", -1),
    # The address is the server's own; a proxy for the web would not find it.
    ("grpc.enable_http_proxy", 0),
    # For whoever waits for a server to come up.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)

_DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata with a google.rpc.Status."""

_POLL_S = 0.1

DEFAULT_ADDRESS = "127.0.0.1:50051"
"""Where a server listens that was not told otherwise."""


class CallError(RecserveError):
    """A request could not be made, or not be answered; the message has a line for each detail."""


def call(address: str, request: Message, timeout_s: float) -> Answer:
    """Send one request and return its answer.

    Args:
        address: host:port.
        request: a RecommendRequest, SimilarItemsRequest or RankItemsRequest.
        timeout_s: the request's deadline, seconds from now.

    Raises:
        CallError: with the status, and every field that the server found wrong.
    """
    with grpc.insecure_channel(address, options=_CHANNEL) as channel:
        method = getattr(RecommenderServiceStub(channel), _METHODS[type(request)])
        try:
            answer: Answer = method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise CallError("\n".join(_error_lines(error, address))) from error
    return answer


def wait_until_serving(address: str, seconds: float) -> None:
    """Return once the server's health is SERVING.

    Raises:
        CallError: it is not within that many seconds.
    """
    end = time.monotonic() + seconds
    found = "nothing answers there"
    with grpc.insecure_channel(address, options=_CHANNEL) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while (left := end - time.monotonic()) > 0:
            try:
                answer = health.Check(health_pb2.HealthCheckRequest(), timeout=left, wait_for_ready=True)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    found = f"{error.code().name}: {error.details()}"
            else:
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
                found = f"its health is {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}"
            time.sleep(_POLL_S)
    raise CallError(f"no server is ready at {address} after {seconds:g} s: {found}")


def _error_lines(error: grpc.RpcError, address: str) -> Iterator[str]:
    """The status and what its details say; where they name fields, the message would only repeat them."""
    code: grpc.StatusCode = error.code()
    metadata = dict(cast("Iterable[tuple[str, bytes]]", error.trailing_metadata() or ()))
    details = list(Status.FromString(metadata.get(_DETAILS_KEY, b"")).details)
    violations = [line for packed in details for line in _violations(packed)]
    what = "the request cannot be answered as it is:" if violations else error.details() or "no details"
    yield f"{code.name}: {printable(what)}"
    yield from (f"  {printable(line)}" for line in violations)
    retry = error_details_pb2.RetryInfo()
    if any(packed.Unpack(retry) for packed in details):
        yield f"  try again in {retry.retry_delay.ToMilliseconds()} ms"
    if code is grpc.StatusCode.UNAVAILABLE and _DETAILS_KEY not in metadata:
        yield f"  is a server running at {address}? `recserve serve` starts one"


def _violations(packed: Packed) -> Iterator[str]:
    """A line for each field that the server finds wrong, or that asks for what the bundle lacks."""
    bad, lacking = error_details_pb2.BadRequest(), error_details_pb2.PreconditionFailure()
    if packed.Unpack(bad):
        yield from (f"{each.field}: {each.description}" for each in bad.field_violations)
    elif packed.Unpack(lacking):
        yield from (f"{each.subject}: {each.description}" for each in lacking.violations)


def render(answer: Answer, fields: Sequence[str] = ()) -> RenderableType:
    """The answer as a headline and a table with a row per item; where that is too wide, with some lines per item.

    Args:
        answer: of any of the methods.
        fields: item attributes that were asked for, in the order of their columns; "*" shows all that came back.
    """
    names = _field_names(answer, fields)
    has_reasons = any(item.reasons for item in answer.items)
    headings = (*_KEYS, "sources", *map(printable, names), *(["reasons"] if has_reasons else []))
    rows = [list(_row(item, names, has_reasons=has_reasons)) for item in answer.items]
    items = _Items(headings, rows) if rows else Text(_NOTHING)
    return Group(*(Text(line) for line in _headline(answer)), Text(), items)


_KEYS: Final = ("rank", "score", "relevance", "item")
_NOTHING: Final = "no item came back: none passes the filter, which is the server's where the request says nothing"


@dataclass(frozen=True, slots=True)
class _Items:
    """A table that finds out how wide it may be when it is printed."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for number, heading in enumerate(self.headings):
            table.add_column(Text(heading), justify="right" if number < _KEYS.index("item") else "left")
        for row in self.rows:
            table.add_row(*map(Text, row))
        if fits(table, console, options):
            yield table
        else:
            yield from self._below_each_other()

    def _below_each_other(self) -> Iterator[RenderableType]:
        for row in self.rows:
            rank, score, relevance, item, *others = row
            yield Text(f"{rank}. {item}  score {score}, relevance {relevance}", "bold", overflow="fold")
            for heading, value in zip(self.headings[len(_KEYS) :], others, strict=True):
                yield Padding(Text(f"{heading}: {value}", overflow="fold"), (0, 0, 0, 4))


def show(answer: Answer, fields: Sequence[str] = ()) -> None:
    """Print the answer to stdout."""
    stdout_console().print(render(answer, fields))


def hint(address: str, user_id: str, answer: Answer, fields: Sequence[str] = ("*",)) -> str:
    """Commands to go on with, ready for a shell; they show these fields of the items."""
    where = "" if address == DEFAULT_ADDRESS else f" --address {shlex.quote(address)}"
    lines = ["More of it:"]
    if user_id:
        user = shlex.quote(printable(user_id))
        shown = shlex.quote(printable(",".join(fields)))
        lines.append(f"  {own_command()} call recommend --user {user} --count 20 --fields {shown} --reasons{where}")
    if answer.items:
        lines.append(f"  {own_command()} call similar --item {shlex.quote(printable(answer.items[0].item_id))}{where}")
    return "\n".join(lines)


def _field_names(answer: Answer, fields: Sequence[str]) -> list[str]:
    named = [name for name in fields if name != "*"]
    if "*" in fields:
        named += sorted({name for item in answer.items for name in item.fields} - set(named))
    return named


def _row(item: pb.Recommendation, names: Sequence[str], *, has_reasons: bool) -> Iterator[str]:
    yield str(item.rank)
    yield f"{item.score:.4f}"
    yield f"{item.relevance:.4f}" if item.HasField("relevance") else "-"
    yield printable(item.item_id)
    yield ", ".join(f"{printable(source.name)} #{source.rank}" for source in item.sources)
    for name in names:
        yield printable(_attribute(item.fields[name])) if name in item.fields else "-"
    if has_reasons:
        yield ", ".join(_reason(reason) for reason in item.reasons)


def _attribute(value: pb.AttributeValue) -> str:
    match value.WhichOneof("kind"):
        case "number":
            return f"{value.number:g}"
        case "time":
            return value.time.ToJsonString()
        case "texts":
            return ", ".join(value.texts.values)
        case "flag":
            return "yes" if value.flag else "no"
        case None:
            return "-"
        case kind:
            return str(getattr(value, kind))


def _reason(reason: pb.Reason) -> str:
    parameters = ", ".join(f"{name}={value}" for name, value in sorted(reason.parameters.items()))
    return printable(f"{reason.code}({parameters})" if parameters else reason.code)


def _headline(answer: Answer) -> Iterator[str]:
    cold = isinstance(answer, (pb.RecommendResponse, pb.RankItemsResponse)) and answer.cold_start
    known = "" if isinstance(answer, pb.SimilarItemsResponse) else ", cold start" if cold else ", known user"
    yield printable(f"bundle {answer.bundle.name} {answer.bundle.version}{known}, request {answer.request_id}")
    yield _times(answer.times)
    for each in answer.degraded:
        yield printable(f"degraded: {each.stage} ({each.reason})")
    if not isinstance(answer, pb.RecommendResponse) and answer.unknown_item_ids:
        yield printable(f"unknown items: {', '.join(answer.unknown_item_ids)}")


def _times(times: pb.StageTimes) -> str:
    stages = ("queue", "state", "embed", "retrieve", "rank", "rerank")
    parts = ", ".join(f"{stage} {getattr(times, f'{stage}_us') / 1000:.2f}" for stage in stages)
    return f"{times.total_us / 1000:.2f} ms in the server ({parts})"
