"""The client of HTTP, against a server whose answers depend on what it is asked."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from recserve.loadtest.generator.http import HttpCalls
from recserve.loadtest.generator.record import BLOCKED, OK, OUTCOMES, UNSENT, Record
from recserve.loadtest.generator.wire import Kind, Requests

KIND = Kind(b"/v1/Recommend", min_items=2, degraded_field=0, times_field=0, timeout_ns=0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(asked.get("delay_s", 0))
        if asked.get("hang_up"):
            self.close_connection = True
            return
        items = [{"item_id": str(number)} for number in range(asked.get("items", 2))]
        answer = json.dumps({"path": self.path, "items": items}).encode()
        self.send_response(asked.get("status", 200))
        self.send_header("Content-Length", str(len(answer)))
        if asked.get("close"):
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(name="port")
def fixture_port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join(10)


def recorded(size: int, due_ms: list[float] | None = None) -> Record:
    record = Record.new(size, 10)
    record.due[:] = time.monotonic_ns() + (1e6 * np.array(due_ms)).astype(np.int64) if due_ms is not None else 0
    return record


def run(port: int, bodies: list[dict], record: Record, *, connections: int = 1, **options: int) -> tuple[str, str]:
    requests = Requests.of([KIND], [(0, json.dumps(each).encode()) for each in bodies], len(bodies))
    address = "127.0.0.1", port
    sockets = [socket.create_connection(address).detach() for _ in range(connections)]
    return HttpCalls(requests, record, address).run(sockets, **options)


def test_statuses_have_grpcs_names_and_few_items_are_noticed(port: int) -> None:
    bodies = [{}, {"items": 1}, {"status": 429}, {"status": 503}, {"status": 418}]
    record = recorded(5, [0, 1, 2, 3, 4])
    assert run(port, bodies, record, connections=2) == ("done", "")
    found = [OUTCOMES[each] for each in record.outcome]
    assert found == ["OK", "too few items", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNKNOWN"]
    assert record.items.tolist() == [2, 1, 2, 2, 2]
    assert record.messages()["UNAVAILABLE"].startswith('503: {"path": "/v1/Recommend"')


def test_requests_leave_when_they_are_due_and_wait_for_a_connection(port: int) -> None:
    record = recorded(3, [100, 130, 300])
    assert run(port, [{"delay_s": 0.08}, {}, {}], record) == ("done", "")
    sent_ms = (record.sent - record.due) / 1e6
    assert (sent_ms >= 0).all()
    assert sent_ms[1] > 40  # behind the first, which took the only connection for 80 ms
    assert (record.flags & BLOCKED).tolist() == [0, BLOCKED, 0]
    assert (record.done - record.due)[0] > 80e6


def test_a_closed_loop_keeps_requests_under_way_until_its_end(port: int) -> None:
    record = recorded(1000)
    end = time.monotonic_ns() + 300_000_000
    assert run(port, [{"delay_s": 0.02}] * 1000, record, connections=4, outstanding=3, end_ns=end) == ("done", "")
    answered = int((record.outcome == OK).sum())
    assert 10 < answered <= 48  # three at a time, 20 ms each, for 300 ms
    assert (record.outcome[answered:] == UNSENT).all()
    assert (record.due[:answered] <= record.sent[:answered]).all()


def test_a_lost_connection_ends_the_run(port: int) -> None:
    record = recorded(3, [0, 5, 10])
    end, error = run(port, [{}, {"hang_up": True}, {}], record)
    assert end == "gone"
    assert "RemoteDisconnected" in error
    assert [OUTCOMES[each] for each in record.outcome[:2]] == ["OK", "connection lost"]
    assert record.outcome[2] == UNSENT


def test_a_connection_that_the_service_closes_is_made_again(port: int) -> None:
    record = recorded(4, [0, 5, 10, 15])
    assert run(port, [{"close": True}, {"close": True}, {}, {}], record) == ("done", "")
    assert [OUTCOMES[each] for each in record.outcome] == ["OK"] * 4


def test_a_stop_leaves_the_rest_unsent(port: int) -> None:
    record = recorded(2, [0, 60_000])
    threading.Timer(0.2, lambda: record.stop.__setitem__(0, 1)).start()
    assert run(port, [{}, {}], record) == ("stopped", "")
    assert record.outcome.tolist() == [OK, UNSENT]
