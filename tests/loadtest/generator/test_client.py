"""The compiled client against real grpcio servers, and against bytes that no server should send."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import hpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.loadtest.generator.client import OUTCOMES as OUTCOME_COUNT
from recserve.loadtest.generator.client import Calls, Connection
from recserve.loadtest.generator.record import BLOCKED, DEGRADED, OUTCOMES, PENDING, UNSENT, Record
from recserve.loadtest.generator.wire import Kind, Requests, header_block
from recserve.v1 import recommender_pb2 as pb

PATH = "/recserve.v1.RecommenderService/Recommend"
SECOND = 1_000_000_000
StartServer = Callable[..., tuple[int, grpc.Server]]


def kind(*, min_items: int = 0, timeout_s: float = 20, path: str = PATH) -> Kind:
    return Kind(header_block(path, "127.0.0.1:1"), min_items, 5, 6, int(timeout_s * SECOND))


def run(
    port: int,
    messages: Sequence[bytes],
    *,
    requests: int | None = None,
    gap_s: float = 0.001,
    connections: int = 2,
    **options: Any,
) -> Record:
    """Send the messages, one every `gap_s`, and wait for what becomes of them."""
    record = Record.new(requests or len(messages))
    calls = Calls(Requests.of([kind(**options)], [(0, each) for each in messages], len(record.due)), record)
    record.due[:] = time.monotonic_ns() + 10_000_000 + np.arange(len(record.due)) * int(gap_s * SECOND)
    calls.run([socket.create_connection(("127.0.0.1", port)).detach() for _ in range(connections)])
    return record


def named(record: Record) -> list[str]:
    return [OUTCOMES[outcome] if outcome >= 0 else str(outcome) for outcome in record.outcome]


def test_outcomes_have_a_name_each() -> None:
    assert len(OUTCOMES) == OUTCOME_COUNT
    for code in grpc.StatusCode:
        assert OUTCOMES[code.value[0]] == code.name


# ------------------------------------------------------------------------------------------------ a server as it is


def test_answers_are_checked_and_sampled(grpc_server: StartServer, answer_of: Callable[..., bytes]) -> None:
    seen = []

    def recommend(request: bytes, context: grpc.ServicerContext) -> bytes:
        found = pb.RecommendRequest.FromString(request)
        seen.append((found.user_id, context.time_remaining(), dict(context.invocation_metadata())["user-agent"]))
        return answer_of(20 if found.user_id == "u1" else 19, degraded=found.user_id == "u1")

    port, _ = grpc_server(recommend)
    bodies = [pb.RecommendRequest(user_id=f"u{number % 2}").SerializeToString() for number in range(40)]
    record = run(port, bodies, min_items=20)
    assert named(record) == ["too few items", "OK"] * 20
    assert record.items.tolist() == [19, 20] * 20
    assert (record.flags & DEGRADED).tolist() == [0, DEGRADED] * 20
    assert sorted(user for user, _, _ in seen) == ["u0"] * 20 + ["u1"] * 20
    assert all(15 < left <= 20 for _, left, _ in seen)
    assert seen[0][2] == "recserve-loadtest"
    assert (record.sent >= record.due).all()
    assert (record.done > record.sent).all()
    sizes = record.times[:, 0]
    times = [pb.StageTimes.FromString(bytes(row[1 : 1 + size])) for row, size in zip(record.times, sizes, strict=True)]
    assert all((each.rank_us, each.total_us) == (1234, 5678) for each in times)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_is_told_with_its_message(grpc_server: StartServer, code: grpc.StatusCode) -> None:
    def refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
        return context.abort(code, f"because of {code.name}")  # type: ignore[return-value]

    port, _ = grpc_server(refuse)
    record = run(port, [b"x"] * 3)
    assert named(record) == [code.name] * 3
    assert record.messages() == {code.name: f"because of {code.name}"}


def test_messages_are_decoded(grpc_server: StartServer) -> None:
    text = "50% of Ünïcode, 100%25\n" + 20 * "ü"

    def refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
        return context.abort(grpc.StatusCode.INTERNAL, text)  # type: ignore[return-value]

    port, _ = grpc_server(refuse)
    assert run(port, [b"x"]).messages() == {"INTERNAL": text}


def test_messages_of_other_clients_are_kept_as_they_are() -> None:
    record = Record.new(1)
    record.keep_text(OUTCOMES.index("INTERNAL"), "500: /a%20b, 50%")
    assert record.messages() == {"INTERNAL": "500: /a%20b, 50%"}


def test_an_unknown_method_is_unimplemented(grpc_server: StartServer) -> None:
    port, _ = grpc_server(lambda request, _: request, method="Other")
    assert set(named(run(port, [b"x"] * 3))) == {"UNIMPLEMENTED"}


def test_deadlines_pass_and_streams_are_given_up(grpc_server: StartServer) -> None:
    gone = threading.Event()

    def slow(request: bytes, context: grpc.ServicerContext) -> bytes:
        if request == b"slow":
            context.add_callback(gone.set)
            gone.wait(20)
        return b""

    port, _ = grpc_server(slow)
    record = run(port, [b"slow", *[b"fast"] * 20], timeout_s=0.5)
    assert named(record) == ["DEADLINE_EXCEEDED"] + ["OK"] * 20
    assert record.done[0] - record.due[0] == pytest.approx(0.5 * SECOND, rel=0.2)
    assert gone.wait(10)  # the server was told


def test_large_messages_wait_for_windows(grpc_server: StartServer) -> None:
    """More than the 64 KiB that a peer has to take at once, and answers of several frames and window updates."""
    sizes = []

    def echo(request: bytes, _: grpc.ServicerContext) -> bytes:
        sizes.append(len(request))
        return b"\x0a" + b"\x80\x80\x80\x01" + bytes(1 << 21)  # one item of 2 MiB

    port, _ = grpc_server(echo)
    record = run(port, [bytes(3_000_000), bytes(200_000), b"small"], connections=1, min_items=1)
    assert named(record) == ["OK"] * 3
    assert sorted(sizes) == [5, 200_000, 3_000_000]


def test_a_limit_on_streams_holds_requests_back(grpc_server: StartServer) -> None:
    together, most = [0], [0]

    def recommend(_: bytes, __: grpc.ServicerContext) -> bytes:
        together[0] += 1
        most[0] = max(most[0], together[0])
        time.sleep(0.02)
        together[0] -= 1
        return b""

    port, _ = grpc_server(recommend, options=(("grpc.max_concurrent_streams", 2),))
    record = run(port, [b"x"] * 30, connections=1)
    # The server frees a stream a moment after it has ended it, and refuses what comes in between.
    assert set(named(record)) <= {"OK", "UNAVAILABLE"}
    assert named(record).count("OK") >= 2
    assert most[0] <= 2
    assert (record.flags & BLOCKED).any()
    late = (record.sent - record.due)[(record.flags & BLOCKED) == 0]
    assert late.max() < 0.1 * SECOND  # the last of them wait for longer


def test_a_draining_server_is_left_and_found_again(grpc_server: StartServer) -> None:
    """GOAWAY: what is under way is finished, what cannot be is told, and a server that comes back is used."""
    port, server = grpc_server(lambda request, _: request)

    def restart() -> None:
        time.sleep(0.3)
        server.stop(1).wait(5)
        time.sleep(0.2)
        grpc_server(lambda request, _: request, port=port)

    thread = threading.Thread(target=restart)
    thread.start()
    record = run(port, [b""], requests=300, gap_s=0.01)
    thread.join()
    outcomes = named(record)
    assert set(outcomes) <= {"OK", "connection lost", "UNAVAILABLE", "CANCELLED"}
    assert outcomes[:10] == ["OK"] * 10
    assert outcomes[-10:] == ["OK"] * 10
    assert "connection lost" in outcomes


def test_a_target_that_stays_away_is_given_up(grpc_server: StartServer) -> None:
    port, server = grpc_server(lambda request, _: request)
    record = Record.new(1000)
    calls = Calls(Requests.of([kind()], [(0, b"")], 1000), record)
    record.due[:] = time.monotonic_ns() + np.arange(1000) * 10_000_000
    sockets = [socket.create_connection(("127.0.0.1", port)).detach() for _ in range(2)]
    threading.Timer(0.5, lambda: server.stop(0)).start()
    start = time.monotonic()
    end, error = calls.run(sockets)
    assert end == "gone"
    assert "connect" in error
    assert time.monotonic() - start < 8
    assert named(record)[0] == "OK"
    assert record.outcome[-1] == UNSENT


def test_a_stop_ends_the_schedule_and_keeps_the_rest(grpc_server: StartServer) -> None:
    port, _ = grpc_server(lambda request, _: request)
    record = Record.new(10_000)
    calls = Calls(Requests.of([kind()], [(0, b"")], 10_000), record)
    record.due[:] = time.monotonic_ns() + np.arange(10_000) * 5_000_000

    def stop() -> None:
        record.stop[0] = 1

    threading.Timer(0.5, stop).start()
    end, _ = calls.run([socket.create_connection(("127.0.0.1", port)).detach()])
    assert end == "stopped"
    ended = int((record.outcome == 0).sum())
    assert 10 < ended < 1000
    assert (record.outcome[ended:] == UNSENT).all()


def test_a_closed_loop_keeps_requests_under_way(grpc_server: StartServer) -> None:
    together, most = [0], [0]
    lock = threading.Lock()

    def recommend(_: bytes, __: grpc.ServicerContext) -> bytes:
        with lock:
            together[0] += 1
            most[0] = max(most[0], together[0])
        time.sleep(0.01)
        with lock:
            together[0] -= 1
        return b""

    port, _ = grpc_server(recommend)
    record = Record.new(5000)
    calls = Calls(Requests.of([kind(timeout_s=0)], [(0, b"")], 5000), record)
    sockets = [socket.create_connection(("127.0.0.1", port)).detach() for _ in range(2)]
    end, _ = calls.run(sockets, outstanding=4, end_ns=time.monotonic_ns() + SECOND)
    assert end == "done"
    assert most[0] <= 4
    ended = record.outcome >= 0
    assert 20 < ended.sum() <= 400
    assert (np.diff(record.due[ended]) >= 0).all()


# ---------------------------------------------------------------------------------------- bytes, without a server


def connection(calls: int = 1, **options: Any) -> tuple[Connection, Record]:
    record = Record.new(calls)
    made = Connection(Calls(Requests.of([kind(**options)], [(0, b"body")], calls), record))
    for _ in range(calls):
        assert made.begin()
    return made, record


def frame(number: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([number, flags]) + stream.to_bytes(4) + payload


SETTINGS = frame(4, 0, 0)


def headers(*fields: tuple[str, str], stream: int = 1, flags: int = 4, huffman: bool = True) -> bytes:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return frame(1, flags, stream, encoder.encode(fields, huffman=huffman))


def body(message: bytes, stream: int = 1, flags: int = 0) -> bytes:
    return frame(0, flags, stream, b"\0" + len(message).to_bytes(4) + message)


BEGIN = headers((":status", "200"), ("content-type", "application/grpc"))
GOOD = SETTINGS + BEGIN + body(b"\x0a\x00\x0a\x00") + headers(("grpc-status", "0"), flags=5)


def test_request_headers_are_those_of_grpc() -> None:
    made, _ = connection(timeout_s=1.5)
    output = made.take_output()
    assert output.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    at, found = 24, []
    while at < len(output):
        size = int.from_bytes(output[at : at + 3])
        found.append((output[at + 3], output[at + 4], output[at + 9 : at + 9 + size]))
        at += 9 + size
    assert [number for number, _, _ in found] == [4, 8, 1, 0]
    assert [flags for _, flags, _ in found] == [0, 0, 4, 1]
    assert dict(hpack.Decoder().decode(found[2][2])) == {
        ":method": "POST",
        ":scheme": "http",
        ":path": PATH,
        ":authority": "127.0.0.1:1",
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "recserve-loadtest",
        "grpc-timeout": "01500000u",
    }
    assert found[3][2] == b"\0\0\0\0\4body"


@pytest.mark.parametrize("huffman", [False, True])
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_an_answer_in_pieces(step: int, huffman: bool) -> None:
    made, record = connection(min_items=2)
    end = headers(("grpc-status", "0"), ("grpc-message", "fine"), flags=5, huffman=huffman)
    data = SETTINGS + BEGIN + body(b"\x0a\x03abc\x0a\x00") + end
    for at in range(0, len(data), step):
        made.feed(data[at : at + step], now=7)
    assert made.error == ""
    assert named(record) == ["OK"]
    assert (record.items[0], record.done[0]) == (2, 7)


@pytest.mark.parametrize(
    ("what", "data", "outcome"),
    [
        ("trailers alone", headers((":status", "200"), ("grpc-status", "8"), flags=5), "RESOURCE_EXHAUSTED"),
        ("a status in two digits", headers((":status", "200"), ("grpc-status", "14"), flags=5), "UNAVAILABLE"),
        ("a status that gRPC lacks", headers((":status", "200"), ("grpc-status", "99"), flags=5), "UNKNOWN"),
        ("a status that is no number", headers((":status", "200"), ("grpc-status", "x"), flags=5), "not gRPC"),
        ("no status", headers((":status", "200"), flags=5), "not gRPC"),
        ("HTTP 404", headers((":status", "404"), flags=5), "UNIMPLEMENTED"),
        ("HTTP 503, no entry of the static table", headers((":status", "503"), flags=5), "UNAVAILABLE"),
        ("HTTP 302", headers((":status", "302"), flags=5), "UNKNOWN"),
        ("OK without a message", BEGIN + headers(("grpc-status", "0"), flags=5), "not gRPC"),
        ("a message cut short", BEGIN + frame(0, 0, 1, b"\0\0\0\0\5ab") + headers(("grpc-status", "0"), flags=5),
         "not gRPC"),
        ("two messages", BEGIN + body(b"") + body(b"") + headers(("grpc-status", "0"), flags=5), "not gRPC"),
        ("a compressed message", BEGIN + frame(0, 0, 1, b"\1\0\0\0\0") + headers(("grpc-status", "0"), flags=5),
         "not gRPC"),
        ("a field longer than its message", BEGIN + body(b"\x0a\x7f") + headers(("grpc-status", "0"), flags=5),
         "not gRPC"),
        ("a message that ends in a tag", BEGIN + body(b"\x8a") + headers(("grpc-status", "0"), flags=5), "not gRPC"),
        ("a group, which proto3 lacks", BEGIN + body(b"\x0b") + headers(("grpc-status", "0"), flags=5), "not gRPC"),
        ("fields of all other types",
         BEGIN + body(b"\x10\x96\x01\x19" + bytes(8) + b"\x25" + bytes(4)) + headers(("grpc-status", "0"), flags=5),
         "OK"),
        ("data without headers", frame(0, 0, 1, b"x"), "not gRPC"),
        ("RST_STREAM: refused", frame(3, 0, 1, (7).to_bytes(4)), "UNAVAILABLE"),
        ("RST_STREAM: cancelled", frame(3, 0, 1, (8).to_bytes(4)), "CANCELLED"),
        ("RST_STREAM: enhance your calm", frame(3, 0, 1, (11).to_bytes(4)), "RESOURCE_EXHAUSTED"),
        ("RST_STREAM: anything else", frame(3, 0, 1, (2).to_bytes(4)), "INTERNAL"),
        ("GOAWAY before this stream", frame(7, 0, 0, bytes(8)), "UNAVAILABLE"),
        ("padded frames", frame(1, 12, 1, b"\3\x88\0\0\0") + frame(0, 8, 1, b"\2\0\0\0\0\0\0\0")
         + headers(("grpc-status", "0"), flags=5), "OK"),
        ("frames of unknown types", frame(0x2A, 3, 77, b"?") + BEGIN + body(b"")
         + headers(("grpc-status", "0"), flags=5), "OK"),
    ],
)  # fmt: skip
def test_what_an_answer_means(what: str, data: bytes, outcome: str) -> None:
    made, record = connection()
    made.feed(SETTINGS + data)
    assert (made.error, named(record)) == ("", [outcome]), what
    assert made.open_calls == 0


def test_headers_in_several_frames() -> None:
    made, record = connection()
    block = hpack.Encoder().encode([(":status", "200"), ("grpc-status", "5"), ("grpc-message", "m" * 300)])
    made.feed(SETTINGS + frame(1, 1, 1, block[:4]) + frame(9, 0, 1, block[4:9]) + frame(9, 4, 1, block[9:]))
    assert named(record) == ["NOT_FOUND"]
    assert record.messages() == {"NOT_FOUND": "m" * 255}


@pytest.mark.parametrize(
    ("what", "data", "error"),
    [
        ("no SETTINGS", BEGIN, "with SETTINGS"),
        ("HTTP/1", b"HTTP/1.1 400 Bad Request\r\n\r\n", "not speak HTTP/2"),
        ("a TLS alert", b"\x15\x03\x01\x00\x02\x02\x46\x15\x03\x01\x00\x02", "not speak HTTP/2"),
        ("a frame that is too long", SETTINGS + frame(0, 0, 1, bytes(16_385)), "too long"),
        ("a stream of its own", SETTINGS + frame(0, 0, 2, b""), "never opened"),
        ("a stream that is not there yet", SETTINGS + frame(0, 0, 3, b""), "never opened"),
        ("PUSH_PROMISE", SETTINGS + frame(5, 4, 1, bytes(4)), "does not allow"),
        ("PING of 7 bytes", SETTINGS + frame(6, 0, 0, bytes(7)), "does not allow"),
        ("SETTINGS of 5 bytes", frame(4, 0, 0, bytes(5)), "does not allow"),
        ("padding without end", SETTINGS + frame(0, 8, 1, b"\xff"), "padding"),
        ("CONTINUATION of nothing", SETTINGS + frame(9, 4, 1, b""), "interrupts or continues"),
        ("headers interrupted", SETTINGS + frame(1, 0, 1, b"\x88") + frame(6, 0, 0, bytes(8)), "interrupts"),
        ("endless headers", SETTINGS + frame(1, 0, 1, b"\x88") + frame(9, 0, 1, bytes(16_000)) * 5, "64 KiB"),
        ("an entry of the dynamic table", SETTINGS + frame(1, 4, 1, b"\xbe"), "dynamic table"),
        ("a larger dynamic table", SETTINGS + frame(1, 4, 1, b"\x3f\xe1\x1f"), "dynamic table"),
        ("a string beyond the block", SETTINGS + frame(1, 4, 1, b"\0\x7f"), "cannot be read"),
        (
            "a Huffman code that ends the string",
            SETTINGS + frame(1, 4, 1, b"\0\x84\xff\xff\xff\xff\0"),
            "cannot be read",
        ),
        ("an endless integer", SETTINGS + frame(1, 4, 1, b"\xff" * 12), "cannot be read"),
        ("a window that overflows", SETTINGS + frame(8, 0, 0, b"\x7f\xff\xff\xff"), "WINDOW_UPDATE"),
        ("a window of nothing", SETTINGS + frame(8, 0, 1, bytes(4)), "WINDOW_UPDATE"),
        ("an initial window out of range", frame(4, 0, 0, b"\0\4\x80\0\0\0"), "INITIAL_WINDOW_SIZE"),
        ("a frame size out of range", frame(4, 0, 0, b"\0\5\0\0\0\1"), "MAX_FRAME_SIZE"),
        ("a flood of pings", SETTINGS + frame(6, 0, 0, bytes(8)) * 100_000, "does not read"),
    ],
)
def test_a_connection_that_breaks_the_protocol(what: str, data: bytes, error: str) -> None:
    made, record = connection()
    made.feed(data)
    assert error in made.error, what
    assert named(record) == ["not gRPC"]
    assert record.messages()["not gRPC"] == made.error[:255]


def test_windows_are_respected() -> None:
    record = Record.new(1)
    made = Connection(Calls(Requests.of([kind()], [(0, bytes(100_000))], 1), record))
    made.feed(frame(4, 0, 0, b"\0\4\0\0\0\x64"))  # streams take 100 bytes at first
    made.take_output()
    assert made.begin()

    def sent() -> int:
        output, at, size = made.take_output(), 0, 0
        while at < len(output):
            length = int.from_bytes(output[at : at + 3])
            size += length if output[at + 3] == 0 else 0
            at += 9 + length
        return size

    assert sent() == 100
    made.feed(frame(8, 0, 1, (50).to_bytes(4)))
    assert sent() == 50
    made.feed(frame(4, 0, 0, b"\0\4\0\0\0\x74"))  # 16 more
    assert sent() == 16
    made.feed(frame(8, 0, 1, (200_000).to_bytes(4)))
    assert sent() == 65_535 - 166  # the connection's window is the limit now
    made.feed(frame(8, 0, 0, (100_000).to_bytes(4)))
    assert sent() == 100_005 - 65_535


def test_no_more_streams_than_the_peer_allows() -> None:
    record = Record.new(3)
    made = Connection(Calls(Requests.of([kind()], [(0, b"")], 3), record))
    made.feed(frame(4, 0, 0, b"\0\3\0\0\0\2"))
    assert [made.begin(), made.begin(), made.begin()] == [True, True, False]
    made.feed(BEGIN + body(b"") + headers(("grpc-status", "0"), flags=5))
    assert made.begin()


def test_pings_and_settings_are_answered() -> None:
    made, _ = connection()
    made.take_output()
    made.feed(SETTINGS + frame(6, 0, 0, b"12345678") + frame(6, 1, 0, b"12345678") + frame(4, 1, 0))
    assert made.take_output() == frame(4, 1, 0) + frame(6, 1, 0, b"12345678")


def test_after_goaway_nothing_begins_but_what_is_under_way_is_finished() -> None:
    record = Record.new(3)
    made = Connection(Calls(Requests.of([kind()], [(0, b"")], 3), record))
    assert made.begin()
    assert made.begin()
    made.feed(SETTINGS + frame(7, 0, 0, (1).to_bytes(4) + bytes(4)))
    assert made.draining
    assert not made.begin()
    made.feed(BEGIN + body(b"") + headers(("grpc-status", "0"), flags=5))
    assert named(record) == ["OK", "UNAVAILABLE", str(UNSENT)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["grpc-message", "x-y", "grpc-status-details-bin"]), st.text()), max_size=4))
def test_header_blocks_are_read_as_by_hpack(fields: list[tuple[str, str]]) -> None:
    made, record = connection()
    made.feed(SETTINGS + headers((":status", "200"), *fields, ("grpc-status", "3"), flags=5))
    assert made.error == ""
    assert named(record) == ["INVALID_ARGUMENT"]


FRAMES = [
    *(BEGIN, body(b"\x0a\x02ab"), body(b""), headers(("grpc-status", "0"), flags=5), SETTINGS),
    *(frame(3, 0, 3, bytes(4)), frame(6, 0, 0, bytes(8)), frame(8, 0, 0, b"\0\0\1\0"), frame(7, 0, 0, bytes(8))),
    *(frame(1, 0, 3, b"\x88"), frame(9, 4, 3, b""), frame(4, 0, 0, b"\0\4\0\0\1\0"), frame(0, 9, 3, b"\1ab")),
]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(FRAMES), max_size=12),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.binary(max_size=40),
    st.integers(1, 64),
)
def test_malformed_bytes_end_in_errors_and_never_worse(
    frames: list[bytes], changes: list[tuple[int, int]], tail: bytes, step: int
) -> None:
    """Frames in any order, with bytes changed and added, in pieces of any size."""
    made, record = connection(3)
    data = bytearray(SETTINGS + b"".join(frames) + tail)
    for place, value in changes:
        data[place % len(data)] = value
    for at in range(0, len(data), step):
        made.feed(bytes(data[at : at + step]))
    ended = int((record.outcome != PENDING).sum())
    assert ended + made.open_calls == 3
    if made.error:
        assert made.open_calls == 0
        assert not made.begin() if ended < 3 else True


# ------------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"message": np.array([5], np.int32)}, "message: expected indices below 1"),
        ({"message_kinds": np.array([-1], np.int32)}, "message_kinds: expected indices"),
        ({"offsets": np.array([0, 99], np.int64)}, "offsets: expected to rise"),
        ({"message": np.zeros(0, np.int32)}, "at least one request"),
        ({"message": np.zeros(1, np.int64)}, "message: expected dtype int32"),
        ({"message": np.zeros(9, np.int32)}, "due: expected shape"),
    ],
)
def test_requests_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    good = Requests.of([kind()], [(0, b"x")], 1)
    fields = {name: getattr(good, name) for name in Requests.__slots__}
    with pytest.raises((ValueError, TypeError), match=message):
        Calls(Requests(**{**fields, **change}), Record.new(1))
