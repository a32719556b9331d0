"""User state: features, history and recently shown items, behind one protocol.

`StateStore` (recserve.server.state.protocol) is what the servicer fetches from, once per request and before the
batcher; it is the only I/O on a request's road. `EmbeddedStore` (recserve.server.state.embedded) keeps everything in
this process: a mapped user snapshot, and recently shown lists in bounded memory.
"""

from __future__ import annotations

from recserve.server.state.protocol import StateStore, StateUnavailableError

__all__ = ["StateStore", "StateUnavailableError"]
