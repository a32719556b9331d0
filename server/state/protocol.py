"""What the servicer expects of a state store; every implementation passes the same tests."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recserve.server.bundle.errors import RecserveError
from recserve.server.pipeline.types import UserState


class StateUnavailableError(RecserveError):
    """The store cannot answer now. Whoever can serve without it does, and says so in `degraded`."""


class StateStore(Protocol):
    """Users' features, history and recently shown items.

    Methods are called on the event loop and may be called concurrently. A store never takes longer than the caller's
    deadline on purpose: the caller cancels, and a cancelled call leaves the store usable.
    """

    def fetch(self, user_ids: Sequence[str]) -> list[UserState] | Awaitable[list[UserState]]:
        """States in the order of `user_ids`; an unknown user has `known=False` and missing columns.

        A store that has them at hand returns them. One that has to wait for them returns what is to be awaited, as a
        coroutine function does. Recently shown items belong to an unknown user's state too.

        Raises:
            StateUnavailableError: the store cannot be reached.
        """
        ...

    async def record_shown(self, user_id: str, item_keys: NDArray[np.uint64], time_us: int) -> None:
        """Remember that the items of these keys, best first, were shown to the user at `time_us`.

        Args:
            user_id: known or not.
            item_keys: [n], keys of the items, not rows.
            time_us: when they were shown by the server's clock (not the request's `Context.time`), microseconds UTC;
                the store forgets them some time after it.

        Raises:
            StateUnavailableError: the store cannot be reached.
        """
        ...

    async def close(self) -> None:
        """Release what the store holds; nothing is called afterwards."""
        ...
