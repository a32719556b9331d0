"""Which sockets stand in the way of a server, and which of several processes that share a port."""

from __future__ import annotations

import contextlib
import socket

import pytest

from recserve.server.address import ListenError, joined, look_up

HOST = "127.0.0.1"
IN_USE = "Address already in use"


def listening(*options: int, port: int = 0) -> socket.socket:
    """A server's socket, with options set."""
    server = socket.socket()
    for option in options:
        server.setsockopt(socket.SOL_SOCKET, option, 1)
    server.bind((HOST, port))
    server.listen()
    return server


@pytest.fixture(params=["free", "after one worker", "after several workers"])
def port(request: pytest.FixtureRequest) -> int:
    """A port on which nobody listens; a server that did has closed a connection before its caller, and has ended."""
    shared = [socket.SO_REUSEPORT] if request.param == "after several workers" else []
    with listening(socket.SO_REUSEADDR, *shared) as server:
        found: int = server.getsockname()[1]
        if request.param != "free":
            with socket.create_connection((HOST, found)):
                server.accept()[0].close()
    return found


def test_a_port_that_nobody_listens_on_can_be_reserved(port: int) -> None:
    address = look_up(HOST, port)
    with address.reserved() as reserved:
        assert reserved == port
        assert address.obstacle() == IN_USE, "another server"
        assert address.obstacle(shared=True) is None
        with contextlib.ExitStack() as workers:
            for _ in range(2):
                workers.enter_context(listening(socket.SO_REUSEADDR, socket.SO_REUSEPORT, port=port))
        with pytest.raises(ListenError, match=IN_USE), look_up(HOST, port).reserved():
            pass


@pytest.mark.parametrize(
    ("host", "text"), [("127.0.0.1", "127.0.0.1:1"), ("localhost", "localhost:1"), ("::1", "[::1]:1")]
)
def test_addresses_are_written_as_grpc_reads_them(host: str, text: str) -> None:
    assert joined(host, 1) == text


@pytest.mark.parametrize("options", [[], [socket.SO_REUSEPORT]], ids=["one worker", "several workers"])
def test_a_port_that_a_server_listens_on_cannot(options: list[int]) -> None:
    with listening(socket.SO_REUSEADDR, *options) as server:
        address = look_up(HOST, server.getsockname()[1])
        with pytest.raises(ListenError, match=IN_USE), address.reserved():
            pass
