"""From settings to what is served: bundles opened, golden requests replayed, placements checked, users tied to them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from recserve.server.bundle.errors import BundleError, RecserveError
from recserve.server.bundle.reader import open_bundle
from recserve.server.config import BundleSettings, Settings, UserVectorCacheSettings
from recserve.server.pipeline.pipeline import Pipeline, open_pipeline
from recserve.server.rpc.placements import check_placements
from recserve.server.state.embedded import Users, open_users

logger = logging.getLogger(__name__)


_WARMED_TOGETHER: Final = 256
"""Users; their inputs are held at the same time."""


class LoadError(RecserveError):
    """A configured bundle or snapshot cannot be served; the message names it, its path, and why."""


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """Everything that is served."""

    pipelines: Mapping[str, Pipeline]
    """By the name under which each bundle is served, the default first."""
    users: Users


def load(settings: Settings) -> Loaded:
    """Load every bundle, then the users.

    Raises:
        LoadError: a bundle or the snapshot cannot be used.
        PlacementError: what is configured asks for what a bundle does not have.
    """
    pipelines = {bundle.name: load_pipeline(bundle, settings) for bundle in settings.bundles}
    users = load_users(pipelines, settings)
    for name, pipeline in pipelines.items():
        warm(name, pipeline, users, settings.user_vector_cache)
    return Loaded(pipelines, users)


def load_pipeline(source: BundleSettings, settings: Settings, *, every_item: bool = False) -> Pipeline:
    """Open and verify one bundle, replay its golden requests, and check the placements against it.

    Args:
        source: the bundle.
        settings: all of them.
        every_item: recompute what the forests store of all items, not of a sample; time grows with the catalogue.

    Raises:
        LoadError: the bundle cannot be used.
        PlacementError: what is configured asks for what the bundle does not have.
    """
    started = time.monotonic()
    logger.info('loading bundle "%s" from %s', source.name, source.path)
    try:
        bundle = open_bundle(source.path)
        compute = settings.compute
        pipeline = open_pipeline(
            bundle,
            device=compute.device,
            ranker_engine=compute.ranker_engine,
            allow_native_code=compute.allow_native_code,
            every_item=every_item,
            user_vectors=settings.user_vector_cache.limits,
        )
    except (BundleError, OSError) as error:
        raise LoadError(f'bundle "{source.name}" at {source.path}: {error}') from error
    check_placements(settings, source.name, pipeline)
    logger.info(
        'bundle "%s" is %s %s: %d items, sources %s, %d golden requests answered as at export, in %.1f s',
        source.name,
        bundle.name,
        bundle.version,
        bundle.catalogue.size,
        ", ".join(pipeline.sources),
        bundle.manifest.golden.requests,
        time.monotonic() - started,
    )
    return pipeline


def warm(name: str, pipeline: Pipeline, users: Users, settings: UserVectorCacheSettings) -> None:
    """Make the vectors of the most active users before they come.

    Args:
        name: under which the bundle is served.
        pipeline: over the bundle.
        users: of the snapshot.
        settings: how many.
    """
    for space, tower in pipeline.engines.towers.items():
        if settings.entries and not tower.keeps:
            logger.info('bundle "%s": the user tower of "%s" reads times, so none of its vectors are kept', name, space)
    if not pipeline.kept_vectors:
        return
    started = time.monotonic()
    active = users.most_active(min(settings.warm_users, settings.entries))
    asked = 0
    failed: list[str] = []
    while some := list(islice(active, _WARMED_TOGETHER)):
        errors = pipeline.warm([state for _, state in some])
        failed += [f"{some[place][0]!r}: {error}" for place, error in errors.items()]
        asked += len(some)
    seconds = time.monotonic() - started
    logger.info('bundle "%s": made the vectors of the %d most active users in %.1f s', name, asked, seconds)
    if failed:
        text = 'bundle "%s": there is no vector of %d of these users, and their requests will fail; the first is %s'
        logger.warning(text, name, len(failed), failed[0])


def load_users(pipelines: Mapping[str, Pipeline], settings: Settings) -> Users:
    """Open the user snapshot, if there is one, and check that it fits every bundle.

    Raises:
        LoadError: the snapshot cannot be used, or it or the bundles differ in what they know of users.
    """
    path = settings.state.snapshot
    try:
        users = open_users(path, {name: pipeline.bundle for name, pipeline in pipelines.items()})
    except (BundleError, OSError) as error:
        raise LoadError(f"user snapshot at {path}: {error}" if path else str(error)) from error
    if users.snapshot is None:
        logger.warning("no user snapshot is configured (state.snapshot): every user is unknown and gets a cold start")
    else:
        logger.info("user snapshot %s from %s: %d users", users.snapshot.version, path, users.snapshot.size)
    return users
