"""Where a server listens, and why it cannot; addresses as people write them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from recserve.server.bundle.errors import RecserveError

SocketAddress = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]
"""An element of what getaddrinfo gives."""


class ListenError(RecserveError):
    """The server cannot listen on its address; the message has the system's reason."""


@dataclass(frozen=True, slots=True)
class Address:
    """A host and port that have been looked up."""

    text: str
    """See `joined`."""
    sockets: Sequence[SocketAddress]

    def obstacle(self, *, shared: bool = False) -> str | None:
        """Why the system refuses to bind one of the addresses; None: it does not.

        Args:
            shared: the port belongs to processes of ours, which share it.
        """
        for family, kind, protocol, _, address in self.sockets:
            try:
                with socket.socket(family, kind, protocol) as probe:
                    # As servers do: connections of a server that has ended are no obstacle, one that listens is.
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if shared:
                        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                    probe.bind(address)
            except OSError as error:
                return error.strerror or str(error)
        return None

    @contextlib.contextmanager
    def reserved(self) -> Iterator[int]:
        """Keep the port, which the block is given, for processes of ours that share it.

        The sockets do not listen, so no connection comes to them.

        Raises:
            ListenError: the address is not this machine's, or the port is taken or not permitted.
        """
        if reason := self.obstacle():  # sharing would be allowed with whoever shares it already
            raise self.refused(reason)
        port = 0
        with contextlib.ExitStack() as held:
            for family, kind, protocol, _, address in self.sockets:
                holder = held.enter_context(socket.socket(family, kind, protocol))
                try:
                    _hold(holder, (address[0], address[1] or port, *address[2:]))
                except OSError as error:
                    raise self.refused(error.strerror) from error
                port = holder.getsockname()[1]
            yield port

    def refused(self, reason: str | None) -> ListenError:
        """The error of a server that cannot have this address."""
        reason = reason or "the port is taken, or the address is not this machine's"
        return ListenError(f"cannot listen on {self.text}: {reason}; set server.port or server.host")


def joined(host: str, port: int) -> str:
    """An address as gRPC writes it: "host:port", or "[host]:port" where the host has colons."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def look_up(host: str, port: int) -> Address:
    """The address of a host and port.

    Raises:
        ListenError: the host is unknown.
    """
    text = joined(host, port)
    try:
        return Address(text, socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError) as error:  # UnicodeError: it cannot be a name at all
        reason = error.strerror if isinstance(error, OSError) else error
        raise ListenError(f"cannot listen on {text}: the host is unknown ({reason}); set server.host") from error


def host_and_port(text: str) -> tuple[str, int]:
    """Of "host:port" or "[host]:port".

    Raises:
        ValueError: it is not of that form.
    """
    host, _, port = text.rpartition(":")
    # Whole and in digits: a client would take a port modulo 65,536, and another one where there is none.
    if not host or "/" in host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:50051")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _hold(holder: socket.socket, address: tuple[Any, ...]) -> None:
    """Bind a socket that does not listen, so that only sockets that share the port can be bound beside it."""
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        holder.bind(address)
    except OSError:
        # Perhaps connections of a server that has ended are in the way. SO_REUSEADDR gets past them, but while a socket
        # that does not listen has it, every server gets past that, too: it is for the moment of binding only.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(address)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
