"""The features of the reference workloads, in the order of `recserve.loadtest.forest.recipe`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from recserve.kernels.features import ColumnSpec, FeatureSchema, FeatureSpec
from recserve.loadtest.clusters import INNER_DIM

SPACE: Final = "ann"
RECENT: Final = 10
"""Items of the history that candidates are compared with."""
VIEW, PURCHASE = EVENT_TYPES = ("view", "purchase")

TASTES: Final = tuple(f"taste_{number:02}" for number in range(INNER_DIM))
"""User columns that the user tower reads; the first of them are features as well."""
_TASTE_FEATURES: Final = TASTES[:16]
CONTENTS: Final = tuple(f"content_{number:02}" for number in range(24))

USER_NUMBERS: Final = (
    "age", "typical_price", "mean_discount", "mean_rating", "views_30d", "orders_30d", "purchase_rate", "return_rate",
    "evening_share", "weekend_share", "new_item_share", "app_share",
)  # fmt: skip
ITEM_NUMBERS: Final = (
    "price", "list_price", "discount", "rating", "rating_count", "views_7d", "views_30d", "carts_30d", "sales_7d",
    "sales_30d", "cart_rate", "purchase_rate", "return_rate", "trend", "popularity", "stock", "seller_rating",
    "shipping_days", "weight_kg", "image_count", "title_words",
)  # fmt: skip
ITEM_CATEGORIES: Final = ("category", "brand", "seller", "colour", "material")

USER_COLUMNS: Final = (
    *(ColumnSpec(name, "number") for name in (*TASTES, *USER_NUMBERS)),
    ColumnSpec("tier", "category"),
    ColumnSpec("home_country", "category", "country"),
    ColumnSpec("favourite_brand", "category", "brand"),
    ColumnSpec("signup_time", "time"),
    ColumnSpec("last_order", "time"),
    ColumnSpec("top_categories", "categories", "category"),
)
CONTEXT_COLUMNS: Final = (ColumnSpec("device", "category"), ColumnSpec("country", "category"))
ITEM_COLUMNS: Final = (
    *(ColumnSpec(name, "number") for name in (*ITEM_NUMBERS, *CONTENTS)),
    *(ColumnSpec(name, "category") for name in ITEM_CATEGORIES),
)

_COUNTED: Final = frozenset(
    {"rating_count", "views_7d", "views_30d", "carts_30d", "sales_7d", "sales_30d", "popularity", "orders_30d", "stock"}
)
"""Numbers with long tails."""


def reference_schema() -> FeatureSchema:
    """32 features of users, 8 of requests, 50 of items and 10 crosses."""
    return FeatureSchema(
        user=USER_COLUMNS,
        context=CONTEXT_COLUMNS,
        item=ITEM_COLUMNS,
        event_types=EVENT_TYPES,
        features=(*_user(), *_context(), *_item(), *_crosses()),
    )


def _user() -> Iterator[FeatureSpec]:
    for name in (*_TASTE_FEATURES, *USER_NUMBERS, "tier", "home_country"):
        yield _plain("user", name)
    yield FeatureSpec("user_days_since_signup", "days_since", ("user.signup_time",))
    yield FeatureSpec("user_days_since_order", "days_since", ("user.last_order",))


def _context() -> Iterator[FeatureSpec]:
    yield _plain("context", "device")
    yield _plain("context", "country")
    for op in ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos"):
        yield FeatureSpec(op, op, ("context.time",))
    yield FeatureSpec("device_x_weekday", "pair", ("context.device", "context.weekday"))
    yield FeatureSpec("at_home", "equal", ("context.country", "user.home_country"))


def _item() -> Iterator[FeatureSpec]:
    for column in ITEM_COLUMNS:
        yield _plain("item", column.name)


def _crosses() -> Iterator[FeatureSpec]:
    yield FeatureSpec("ann_score", "value", (f"source.{SPACE}.score",))
    yield FeatureSpec("ann_rank", "value", (f"source.{SPACE}.rank",))
    yield FeatureSpec("ann_dot", "dot", (f"space.{SPACE}",))
    yield FeatureSpec("price_to_typical", "ratio", ("item.price", "user.typical_price"))
    yield FeatureSpec("favourite_brand_matches", "equal", ("item.brand", "user.favourite_brand"))
    yield FeatureSpec("category_rank", "rank_in", ("item.category", "user.top_categories"))
    yield FeatureSpec("category_views", "count", ("history.category",), event=VIEW)
    yield FeatureSpec("category_days_since", "days_since", ("history.category",))
    yield FeatureSpec("recent_max_similarity", "max_similarity", (f"space.{SPACE}",), last=RECENT)
    yield FeatureSpec("recent_mean_similarity", "mean_similarity", (f"space.{SPACE}",), last=RECENT)


def _plain(scope: str, name: str) -> FeatureSpec:
    """A column by itself."""
    return FeatureSpec(f"{scope}_{name}", "log1p" if name in _COUNTED else "value", (f"{scope}.{name}",))
