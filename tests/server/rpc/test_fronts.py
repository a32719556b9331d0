"""What a front makes of calls and answers, whatever the service is: each front over the same tests."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import uvloop
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from recserve.server.address import look_up
from recserve.server.config import ServerSettings
from recserve.server.rpc import FrontError
from recserve.server.rpc.fronts import Front, front_type
from recserve.server.rpc.servicer import SERVICE

RECOMMEND = f"/{SERVICE.full_name}/Recommend"
Answer = Callable[[str, bytes, float | None], Awaitable[bytes | Status]]
Scenario = Callable[[grpc.aio.Channel, Front], Awaitable[Any]]


class Service:
    """Answers as it is told to."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer


@pytest.fixture
def ask(run: Callable[..., Any], front: str) -> Callable[[Scenario, Answer], Any]:
    """`ask(scenario, answer)` runs a scenario with a channel to a front before a service that answers so."""

    async def asking(scenario: Scenario, answer: Answer) -> Any:
        settings = ServerSettings(port=0, max_message_bytes=100_000)
        opened = front_type(front)(Service(answer), settings)
        port = opened.bind(look_up(settings.host, settings.port))
        await opened.start()
        try:
            options = [("grpc.max_receive_message_length", -1)]
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
                return await scenario(channel, opened)
        finally:
            await opened.stop(0.1)

    return lambda scenario, answer: run(asking(scenario, answer), loop=uvloop.new_event_loop)


async def echo(_method: str, payload: bytes, _time_left: float | None) -> bytes:
    return payload


async def status_of(call: Awaitable[bytes]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), error.value.details() or ""


def test_the_service_learns_method_bytes_and_time_left(ask) -> None:
    asked = []

    async def answer(method: str, payload: bytes, time_left: float | None) -> bytes:
        asked.append((method, payload, time_left))
        return payload[::-1]

    async def scenario(channel: grpc.aio.Channel, _front: Front) -> list[bytes]:
        similar = channel.unary_unary(f"/{SERVICE.full_name}/SimilarItems")
        return [await channel.unary_unary(RECOMMEND)(b"\0ab", timeout=5), await similar(b"")]

    assert ask(scenario, answer) == [b"ba\0", b""]
    [(first, payload, time_left), second] = asked
    assert (first, payload, second) == ("Recommend", b"\0ab", ("SimilarItems", b"", None))
    assert 4 < time_left <= 5 * 1.01  # a client of gRPC rounds what it sends up, to a few digits


def test_a_status_arrives_with_its_text_and_details(ask) -> None:
    status = Status(code=Code.NOT_FOUND, message="no “漢字” here: 100%\n")
    status.details.add().Pack(Status(message="x" * 2000))

    async def answer(*_: object) -> Status:
        return status

    async def scenario(channel: grpc.aio.Channel, _front: Front) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await channel.unary_unary(RECOMMEND)(b"")
        return error.value

    error = ask(scenario, answer)
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, status.message)
    assert Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"]) == status


@pytest.mark.parametrize("path", [f"/{SERVICE.full_name}/Nothing", "/another.Service/Recommend"])
def test_other_methods_are_unimplemented(ask, path: str) -> None:
    code, _ = ask(lambda channel, _: status_of(channel.unary_unary(path)(b"")), echo)
    assert code is grpc.StatusCode.UNIMPLEMENTED


def test_a_request_at_and_over_the_limit(ask) -> None:
    async def scenario(channel: grpc.aio.Channel, _front: Front) -> tuple[int, grpc.StatusCode, bytes]:
        call = channel.unary_unary(RECOMMEND)
        return len(await call(bytes(100_000))), (await status_of(call(bytes(100_001))))[0], await call(b"next")

    assert ask(scenario, echo) == (100_000, grpc.StatusCode.RESOURCE_EXHAUSTED, b"next")


def test_compressed_requests(ask) -> None:
    """Also one that is within the limit only as long as it is compressed."""

    async def scenario(channel: grpc.aio.Channel, _front: Front) -> tuple[bytes, grpc.StatusCode]:
        call = channel.unary_unary(RECOMMEND)
        small = await call(b"a" * 1000, compression=grpc.Compression.Gzip)
        return small, (await status_of(call(bytes(1_000_000), compression=grpc.Compression.Gzip)))[0]

    assert ask(scenario, echo) == (b"a" * 1000, grpc.StatusCode.RESOURCE_EXHAUSTED)


@pytest.mark.parametrize("leave", [True, False], ids=["the caller leaves", "its deadline passes"])
def test_a_call_that_is_over_is_cancelled(ask, leave: bool) -> None:
    async def scenario(channel: grpc.aio.Channel, _front: Front) -> None:
        call = channel.unary_unary(RECOMMEND)(b"", timeout=10 if leave else 0.2)
        await asyncio.wait_for(started.wait(), 5)
        if leave:
            call.cancel()
        await asyncio.wait_for(cancelled.wait(), 5)
        with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
            await call

    async def answer(*_: object) -> bytes:
        started.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return b""

    started, cancelled = asyncio.Event(), asyncio.Event()
    ask(scenario, answer)


class Held:
    """An answer that comes when it is released."""

    def __init__(self, size: int) -> None:
        self._released = asyncio.Event()
        self._entered = asyncio.Condition()
        self._inside = 0
        self._answer = bytes(size)

    async def __call__(self, *_: object) -> bytes:
        self._inside += 1
        async with self._entered:
            self._entered.notify_all()
        await self._released.wait()
        return self._answer

    async def entered(self, calls: int) -> None:
        async with asyncio.timeout(20), self._entered:
            await self._entered.wait_for(lambda: self._inside == calls)

    def release(self) -> None:
        self._released.set()


def sent(channel: grpc.aio.Channel, calls: int) -> list[asyncio.Future[bytes]]:
    return [asyncio.ensure_future(channel.unary_unary(RECOMMEND)(b"", timeout=30)) for _ in range(calls)]


def test_a_connection_may_have_thousands_of_calls_open(ask) -> None:
    """It is for admission to refuse them; a front that made them wait would hide the load from it."""
    held = Held(10)

    async def scenario(channel: grpc.aio.Channel, _front: Front) -> set[bytes]:
        calls = []
        for step in range(1, 6):  # grpcio drops some of a thousand that arrive at once
            calls += sent(channel, 400)
            await held.entered(400 * step)
        held.release()
        return set(await asyncio.gather(*calls))

    assert ask(scenario, held) == {bytes(10)}


def test_answers_that_are_ready_leave_before_it_closes(ask) -> None:
    held = Held(100_000)

    async def scenario(channel: grpc.aio.Channel, front: Front) -> set[bytes]:
        calls = sent(channel, 50)
        await held.entered(50)
        held.release()
        await front.stop(1)
        return set(await asyncio.gather(*calls))

    assert ask(scenario, held) == {bytes(100_000)}


def test_what_is_not_answered_in_time_is_cut_off(ask) -> None:
    async def answer(*_: object) -> bytes:
        await asyncio.sleep(30)
        return b""

    async def scenario(channel: grpc.aio.Channel, front: Front) -> grpc.StatusCode:
        call = asyncio.ensure_future(status_of(channel.unary_unary(RECOMMEND)(b"")))
        await asyncio.sleep(0.1)
        await asyncio.wait_for(front.stop(0.1), 2)
        return (await call)[0]

    assert ask(scenario, answer) in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


async def called_while_busy(opened: Front, timeouts: list[float], busy: float) -> None:
    """Calls with so many seconds each, which come while the loop does something else for so long."""
    settings = ServerSettings(port=0)
    port = opened.bind(look_up(settings.host, settings.port))
    await opened.start()

    def call() -> None:
        for each in [recommend.future(b"", timeout=timeout) for timeout in timeouts]:
            each.exception()

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        recommend = channel.unary_unary(RECOMMEND)
        await asyncio.to_thread(recommend, b"", timeout=10)  # it is connected
        calling = asyncio.create_task(asyncio.to_thread(call))
        await asyncio.sleep(0)  # it begins
        time.sleep(busy)  # noqa: ASYNC251  that is what keeps it busy
        await calling
    await opened.stop(0.1)


def test_time_goes_by_while_the_loop_is_busy(run, front: str) -> None:
    left = []

    async def answer(_method: str, payload: bytes, time_left: float | None) -> bytes:
        left.append(time_left)
        return payload

    async def scenario() -> None:
        await called_while_busy(front_type(front)(Service(answer), ServerSettings(port=0)), [10.0], 0.5)

    run(scenario(), loop=uvloop.new_event_loop)
    assert left[-1] < 9.8


def test_the_native_front_forgets_calls_that_are_over_before_they_begin(run) -> None:
    pytest.importorskip("pygrpc_native")

    async def scenario() -> int:
        opened = front_type("native")(Service(echo), ServerSettings(port=0))
        await called_while_busy(opened, [0.1] * 20, 0.5)
        return len(opened._calls)

    assert run(scenario(), loop=uvloop.new_event_loop) == 0


def test_a_service_that_raises_leaves_nobody_waiting(run, front: str) -> None:
    """It never should: errors are statuses by then."""

    async def answer(*_: object) -> bytes:
        raise ZeroDivisionError

    async def asking() -> grpc.StatusCode:
        unhandled: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
        settings = ServerSettings(port=0)
        opened = front_type(front)(Service(answer), settings)
        port = opened.bind(look_up(settings.host, settings.port))
        await opened.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            code, _ = await status_of(channel.unary_unary(RECOMMEND)(b"", timeout=5))
        await opened.stop(0.1)
        return code

    assert run(asking()) in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}


@pytest.mark.parametrize(
    "reply", [b"", Status(code=Code.RESOURCE_EXHAUSTED, message="too late")], ids=["answer", "status"]
)
def test_deadlines_that_pass_while_an_answer_leaves_are_no_errors(run, front: str, reply, caplog) -> None:
    """One in a few hundred of these calls ends in just that moment."""

    async def answer(_method: str, _payload: bytes, time_left: float | None) -> bytes | Status:
        assert time_left is not None
        await asyncio.sleep(max(0.0, time_left + random.uniform(-0.001, 0.0005)))
        return reply

    def call(port: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            recommend = channel.unary_unary(RECOMMEND)
            for _ in range(300):
                recommend.future(b"", timeout=random.uniform(0.002, 0.01)).exception()

    async def scenario() -> None:
        settings = ServerSettings(port=0)
        opened = front_type(front)(Service(answer), settings)
        port = opened.bind(look_up(settings.host, settings.port))
        await opened.start()
        await asyncio.gather(*(asyncio.to_thread(call, port) for _ in range(6)))
        await opened.stop(0.1)

    run(scenario(), loop=uvloop.new_event_loop)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_nothing_is_left_in_the_temporary_folder(run, front: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def life() -> None:
        settings = ServerSettings(port=0)
        opened = front_type(front)(Service(echo), settings)
        opened.bind(look_up(settings.host, settings.port))
        await opened.start()
        await opened.stop(0.1)

    run(life())
    assert list(tmp_path.iterdir()) == []


def test_a_native_front_without_a_temporary_folder(run, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("pygrpc_native", reason="pygrpc-native is in the extra [native]")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))

    async def life() -> None:
        settings = ServerSettings(port=0)
        opened = front_type("native")(Service(echo), settings)
        opened.bind(look_up(settings.host, settings.port))
        await opened.start()

    with pytest.raises(FrontError, match="TMPDIR to a folder that can be written"):
        run(life())


def test_a_front_that_is_not_installed(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "recserve.server.rpc.fronts.native", raising=False)
    monkeypatch.setitem(sys.modules, "pygrpc_native", None)
    with pytest.raises(FrontError, match=r"make install EXTRAS=native; or leave server\.front out"):
        front_type("native")
