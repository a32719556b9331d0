"""The life of a server: listen, load, serve, drain, stop.

It listens before it loads. A taken port is an error at once, not after minutes of checksums, and whoever asks for the
health of a server that is still loading is told NOT_SERVING; requests are UNAVAILABLE until then.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime
import gc
import logging
import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
import uvloop

from recserve.server.address import joined
from recserve.server.bundle.registry import BundleRegistry
from recserve.server.config import Settings
from recserve.server.loading import Loaded, load
from recserve.server.pipeline.pipeline import Pipeline
from recserve.server.rpc.app import RpcServer
from recserve.server.rpc.servicer import RecommenderService
from recserve.server.signals import end_at_once, heeded, hurries
from recserve.server.state.embedded import EmbeddedStore
from recserve.server.text import announce, own_command, pinned_clock, printable
from recserve.server.version import this_version

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Owner(Protocol):
    """Who runs a server. Made on the running event loop."""

    stop: asyncio.Future[None]
    """Done when the server shall drain and stop."""

    def announce(self, text: str) -> None:
        """The server serves, and this is what a person should know of it."""
        ...


def serve(settings: Settings, owner: Callable[[], Owner] | None = None) -> None:
    """Serve until its owner wants it to stop.

    Args:
        settings: the configuration.
        owner: makes who runs it; left out: SIGTERM, SIGINT and SIGHUP stop it, and a second one ends the process at
            once.

    Raises:
        ListenError: the address cannot be listened on.
        FrontError: the configured front cannot be had.
        LoadError: a bundle or the snapshot cannot be served.
        PlacementError: what is configured asks for what a bundle does not have.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        at_rest = runner.run(_live(settings, owner or _Terminal))
    if not at_rest:
        # The interpreter's own way out would end a thread in the middle of a kernel, and C++ answers that by aborting.
        os._exit(0)


async def _live(settings: Settings, made_owner: Callable[[], Owner]) -> bool:
    """Whether nothing is at work any more once it has ended."""
    owner = made_owner()
    registry: BundleRegistry[Pipeline] = BundleRegistry()
    store = EmbeddedStore.from_settings(settings.state)
    service = RecommenderService(registry, store, settings)
    server = RpcServer(service, settings.server)
    address = joined(settings.server.host, await server.listen())
    logger.info("listening on %s", address)
    if settings.server.clock is not None:
        logger.warning("%s", pinned_clock(settings.server.clock))
    loading, loader = _in_thread(lambda: load(settings))
    try:
        either: tuple[asyncio.Future[Any], ...] = (loading, owner.stop)
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            _put_into_service(loading.result(), registry, store)
            _keep_for_good()
            await server.set_serving(True)
            logger.info("serving on %s", address)
            owner.announce("\n".join(_announcement(loading.result(), address, settings.server.clock)))
            await owner.stop
        logger.info("draining for up to %g s", settings.server.drain_seconds)
    finally:
        loading.cancel()
        at_rest = await server.drain(settings.server.drain_seconds) and not loader.is_alive()
        await store.close()
        _log_caches(service)
        logger.info("stopped")
    return at_rest


def _put_into_service(loaded: Loaded, registry: BundleRegistry[Pipeline], store: EmbeddedStore) -> None:
    store.serve(loaded.users)
    for name, pipeline in loaded.pipelines.items():
        registry.add(name, pipeline)


def _keep_for_good() -> None:
    """Take all that has been loaded out of the garbage collector's sight.

    It lives as long as the server, and a collection that goes through it stops every request for tens of milliseconds.
    """
    gc.collect()
    gc.freeze()


def _log_caches(service: RecommenderService) -> None:
    for name, stats in service.cache_stats().items():
        logger.info(
            "cache of %s: %d hits, %d misses, %d entries, %d evicted",
            name, stats.hits, stats.misses, stats.entries, stats.evicted,
        )  # fmt: skip


class _Terminal:
    """A terminal, or whatever sends signals; see `Owner`. Made in the main thread."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.stop: asyncio.Future[None] = loop.create_future()
        for number in heeded():
            loop.add_signal_handler(number, self._received, number)

    def announce(self, text: str) -> None:
        """See `Owner`."""
        announce(text)

    def _received(self, number: signal.Signals) -> None:
        if not self.stop.done():
            logger.info("received %s", number.name)
            self.stop.set_result(None)
        elif hurries(number):
            logger.warning("received %s again: stopping at once, requests in flight are cut off", number.name)
            end_at_once(number)


def _in_thread(work: Callable[[], T]) -> tuple[asyncio.Future[T], threading.Thread]:
    """The outcome of `work`, done in a thread that a process which is told to stop does not wait for, and the thread.

    Cancelling the outcome does not end the thread.
    """
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    outcome.set_running_or_notify_cancel()  # nothing can call the work back: cancelling only drops its outcome

    def run() -> None:
        try:
            outcome.set_result(work())
        except Exception as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="load", daemon=True)
    thread.start()
    return asyncio.wrap_future(outcome), thread


def _announcement(loaded: Loaded, address: str, clock: datetime.datetime | None) -> Iterator[str]:
    """What a person at the terminal reads once the server is ready."""
    bundles = ", ".join(
        f"{name} ({pipeline.bundle.name} {pipeline.bundle.version})" for name, pipeline in loaded.pipelines.items()
    )
    yield f"recserve {this_version()} is ready on {address}: {bundles}"
    if clock is not None:
        yield f"Note: {pinned_clock(clock)}"
    snapshot = loaded.users.snapshot
    user = snapshot.user_ids(np.zeros(1, np.int64))[0] if snapshot is not None else "anybody"
    quoted = shlex.quote(printable(user))
    yield f"Try: {own_command()} call recommend --user {quoted} --count 10 --address {_reachable(address)}"


def _reachable(address: str) -> str:
    """An address that a client on this machine can connect to."""
    host, _, port = address.rpartition(":")
    return joined({"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]")), int(port))
