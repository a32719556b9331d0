"""Where a server listens, and why it cannot."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recserve.server.rpc.errors import ListenError

SocketAddress = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]
"""An element of what getaddrinfo gives."""


@dataclass(frozen=True, slots=True)
class Address:
    """A host and port that has been looked up."""

    text: str
    """As gRPC writes it: "host:port", "[host]:port"."""
    sockets: Sequence[SocketAddress]

    def obstacle(self) -> str | None:
        """Why the system refuses to bind one of the addresses; None: it does not."""
        for family, kind, protocol, _, address in self.sockets:
            try:
                with socket.socket(family, kind, protocol) as probe:
                    # As servers do: connections of a server that has ended are no obstacle, one that listens is.
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(address)
            except OSError as error:
                return error.strerror or str(error)
        return None

    def refused(self, reason: str | None) -> ListenError:
        """The error of a server that cannot have this address."""
        reason = reason or "the port is taken, or the address is not this machine's"
        return ListenError(f"cannot listen on {self.text}: {reason}; set server.port or server.host")


async def look_up(host: str, port: int) -> Address:
    """The address of a host and port.

    Raises:
        ListenError: the host is unknown.
    """
    text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return Address(text, await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError) as error:  # UnicodeError: it cannot be a name at all
        reason = error.strerror if isinstance(error, OSError) else error
        raise ListenError(f"cannot listen on {text}: the host is unknown ({reason}); set server.host") from error
