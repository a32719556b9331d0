"""The ranker's features: the schema from which both its training matrix and the server's rows are computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from examples.online_retail import items, users
from recserve.kernels.features import FeatureSchema, FeatureSpec

SPACES: Final = ("ann", "als", "content")
SOURCES: Final = ("ann", "als", "popular", "again")


def retail_schema() -> FeatureSchema:
    """Columns of users and items, and every feature in order."""
    return FeatureSchema(
        user=users.USER_COLUMNS,
        item=items.ITEM_COLUMNS,
        event_types=(users.EVENT,),
        features=(*_of_users(), *_of_items(), *_of_pairs(), *_of_retrieval()),
    )


def _of_users() -> Iterator[FeatureSpec]:
    for name in users.NUMBERS:
        yield FeatureSpec(f"user_{name}", "value", (f"user.{name}",))
    for name in users.TIMES:
        yield FeatureSpec(f"user_days_since_{name}", "days_since", (f"user.{name}",))


def _of_items() -> Iterator[FeatureSpec]:
    for name in items.NUMBERS:
        yield FeatureSpec(f"item_{name}", "value", (f"item.{name}",))
    for name in items.TIMES:
        yield FeatureSpec(f"item_days_since_{name}", "days_since", (f"item.{name}",))
    yield FeatureSpec("item_trend_week", "ratio", ("item.buyers_7d", "item.buyers_28d"))
    yield FeatureSpec("item_trend_month", "ratio", ("item.buyers_28d", "item.buyers_91d"))
    yield FeatureSpec("item_trend_year", "ratio", ("item.buyers_91d", "item.buyers_365d"))


def _of_pairs() -> Iterator[FeatureSpec]:
    """What the user has to do with the item, or with items like it."""
    for key in ("item", "category"):
        for op in ("count", "share", "days_since"):
            yield FeatureSpec(f"{key}_{op}", op, (f"history.{key}",), event=users.EVENT)
    yield FeatureSpec("price_ratio", "ratio", ("item.price", "user.mean_price"))
    for space, last in (("content", 5), ("content", 30), ("ann", 5), ("ann", 30), ("als", 30)):
        yield FeatureSpec(f"{space}_max_of_{last}", "max_similarity", (f"space.{space}",), last=last)
        yield FeatureSpec(f"{space}_mean_of_{last}", "mean_similarity", (f"space.{space}",), last=last)


def _of_retrieval() -> Iterator[FeatureSpec]:
    for space in SPACES:
        yield FeatureSpec(f"{space}_dot", "dot", (f"space.{space}",))
    for source in SOURCES:
        yield FeatureSpec(f"{source}_rank", "value", (f"source.{source}.rank",))
