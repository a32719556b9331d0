"""Bundles in service, by name: default, canary, shadow."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Generic, TypeVar

ReadyT = TypeVar("ReadyT")


class BundleRegistry(Generic[ReadyT]):
    """What answers under each name. The first name added is the default.

    Everything that depends on a bundle hangs off the object held here, so swapping a bundle is replacing one
    reference: whoever got the old object finishes with it. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held by who changes; the mapping is replaced, so readers need none
        self._ready: Mapping[str, ReadyT] = {}

    @property
    def ready(self) -> Mapping[str, ReadyT]:
        """What is in service by name, the default first: as of now, whatever happens next."""
        return self._ready

    def add(self, name: str, ready: ReadyT) -> None:
        """Put a new name into service.

        Raises:
            ValueError: the name is empty or taken; `replace` swaps.
        """
        if not name:
            raise ValueError("a bundle needs a name")
        with self._lock:
            if name in self._ready:
                raise ValueError(f"a bundle named {name!r} is in service: replace it, or take another name")
            self._ready = {**self._ready, name: ready}

    def replace(self, name: str, ready: ReadyT) -> ReadyT:
        """Swap what answers under a name.

        Returns:
            What answered before.

        Raises:
            KeyError: nothing is in service under that name.
        """
        with self._lock:
            old = self._ready[name]
            self._ready = {**self._ready, name: ready}
            return old

    def remove(self, name: str) -> ReadyT:
        """Take a name out of service; the next name added longest ago becomes the default where it was the default.

        Raises:
            KeyError: nothing is in service under that name.
        """
        with self._lock:
            old = self._ready[name]
            self._ready = {each: ready for each, ready in self._ready.items() if each != name}
            return old
