"""The demo's feature schema: every source and every operation, on what a shop knows."""

from __future__ import annotations

from collections.abc import Iterator

from recserve.exporters.demo.words import EVENT_TYPES
from recserve.kernels.features import ColumnSpec, ColumnType, FeatureSchema, FeatureSpec

SOURCES = ("ann", "als", "popular", "again")

USER_COLUMNS = (
    *(
        ColumnSpec(name, "number")
        for name in (
            "age", "views_30d", "carts_30d", "purchases_30d", "cart_rate", "purchase_rate", "mean_price", "mean_paid",
            "price_level", "mean_discount", "mean_rating", "evening_share", "weekend_share", "new_item_share",
            "app_share",
        )
    ),
    ColumnSpec("gender", "category"),
    ColumnSpec("home_country", "category", "country"),
    ColumnSpec("tier", "category"),
    ColumnSpec("favourite_category", "category", "category"),
    ColumnSpec("favourite_department", "category", "department"),
    ColumnSpec("favourite_brand", "category", "brand"),
    ColumnSpec("favourite_style", "category", "style"),
    ColumnSpec("favourite_colour", "category", "colour"),
    ColumnSpec("usual_device", "category", "device"),
    ColumnSpec("signup_time", "time"),
    ColumnSpec("last_seen", "time"),
    ColumnSpec("last_order", "time"),
    ColumnSpec("top_categories", "categories", "category"),
    ColumnSpec("top_brands", "categories", "brand"),
    ColumnSpec("top_styles", "categories", "style"),
    ColumnSpec("top_colours", "categories", "colour"),
)  # fmt: skip

CONTEXT_COLUMNS = (
    ColumnSpec("device", "category"),
    ColumnSpec("country", "category"),
    ColumnSpec("language", "category"),
    ColumnSpec("basket_value", "number"),
)

ITEM_COLUMNS = (
    *(
        ColumnSpec(name, "number")
        for name in (
            "price", "list_price", "discount", "price_level", "rating", "rating_count", "shipping_days", "weight_kg",
            "image_count", "views_7d", "views_30d", "carts_30d", "purchases_30d", "cart_rate", "purchase_rate",
            "trend", "popularity",
        )
    ),
    ColumnSpec("category", "category"),
    ColumnSpec("department", "category"),
    ColumnSpec("brand", "category"),
    ColumnSpec("style", "category"),
    ColumnSpec("colour", "category"),
    ColumnSpec("seller", "category"),
    ColumnSpec("audience", "category", "gender"),
    ColumnSpec("launch_time", "time"),
    ColumnSpec("last_sold", "time"),
)  # fmt: skip

_COUNTED = frozenset({"rating_count", "views_7d", "views_30d", "carts_30d", "purchases_30d", "popularity"})
"""Item and user numbers with long tails."""


def demo_schema() -> FeatureSchema:
    """The schema of the demo's rankers."""
    features = (*_item(), *_user(), *_context(), *_crosses(), *_sources(), *_history(), *_similarities())
    return FeatureSchema(
        user=USER_COLUMNS, context=CONTEXT_COLUMNS, item=ITEM_COLUMNS, event_types=EVENT_TYPES, features=features
    )


def _item() -> Iterator[FeatureSpec]:
    yield from _plain("item", ITEM_COLUMNS)
    yield FeatureSpec("item_log_price", "log1p", ("item.price",))


def _user() -> Iterator[FeatureSpec]:
    yield from _plain("user", USER_COLUMNS)


def _plain(scope: str, columns: tuple[ColumnSpec, ...]) -> Iterator[FeatureSpec]:
    """Each column by itself; lists are for crosses only."""
    ops: dict[ColumnType, str] = {"number": "value", "category": "value", "time": "days_since"}
    for column in columns:
        if column.type in ops:
            op = "log1p" if column.name in _COUNTED else ops[column.type]
            yield FeatureSpec(f"{scope}_{column.name}", op, (f"{scope}.{column.name}",))


def _context() -> Iterator[FeatureSpec]:
    for column in CONTEXT_COLUMNS:
        yield FeatureSpec(f"context_{column.name}", "value", (f"context.{column.name}",))
    for op in ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos"):
        yield FeatureSpec(op, op, ("context.time",))
    yield FeatureSpec("device_x_weekday", "pair", ("context.device", "context.weekday"))
    yield FeatureSpec("device_x_hour", "pair", ("context.device", "context.hour"))


def _crosses() -> Iterator[FeatureSpec]:
    yield FeatureSpec("price_to_mean_price", "ratio", ("item.price", "user.mean_price"))
    yield FeatureSpec("price_to_mean_paid", "ratio", ("item.price", "user.mean_paid"))
    yield FeatureSpec("price_to_basket", "ratio", ("item.price", "context.basket_value"))
    yield FeatureSpec("price_level_ratio", "ratio", ("item.price_level", "user.price_level"))
    yield FeatureSpec("price_level_difference", "difference", ("item.price_level", "user.price_level"))
    yield FeatureSpec("discount_difference", "difference", ("item.discount", "user.mean_discount"))
    yield FeatureSpec("rating_difference", "difference", ("item.rating", "user.mean_rating"))
    yield FeatureSpec("discount_product", "product", ("item.discount", "user.mean_discount"))
    yield FeatureSpec("purchase_rate_product", "product", ("item.purchase_rate", "user.purchase_rate"))
    yield FeatureSpec("for_my_gender", "equal", ("item.audience", "user.gender"))
    for name in ("category", "department", "brand", "style", "colour"):
        yield FeatureSpec(f"favourite_{name}_matches", "equal", (f"item.{name}", f"user.favourite_{name}"))
    for name, plural in (
        ("category", "categories"),
        ("brand", "brands"),
        ("style", "styles"),
        ("colour", "colours"),
    ):
        yield FeatureSpec(f"{name}_rank", "rank_in", (f"item.{name}", f"user.top_{plural}"))
    yield FeatureSpec("at_home", "equal", ("context.country", "user.home_country"))
    yield FeatureSpec("on_usual_device", "equal", ("context.device", "user.usual_device"))
    yield FeatureSpec("department_x_device", "pair", ("item.department", "context.device"))
    yield FeatureSpec("department_x_hour", "pair", ("item.department", "context.hour"))
    yield FeatureSpec("department_x_weekday", "pair", ("item.department", "context.weekday"))


def _sources() -> Iterator[FeatureSpec]:
    for source in SOURCES:
        yield FeatureSpec(f"{source}_score", "value", (f"source.{source}.score",))
        yield FeatureSpec(f"{source}_rank", "value", (f"source.{source}.rank",))


def _history() -> Iterator[FeatureSpec]:
    for event in EVENT_TYPES:
        for key in ("item", "category"):
            for op in ("count", "days_since", "share"):
                yield FeatureSpec(f"{key}_{event}_{op}", op, (f"history.{key}",), event=event)
    for key in ("brand", "style", "department", "seller"):
        yield FeatureSpec(f"{key}_count", "count", (f"history.{key}",))
        yield FeatureSpec(f"{key}_share", "share", (f"history.{key}",))
    yield FeatureSpec("item_any_days_since", "days_since", ("history.item",))


def _similarities() -> Iterator[FeatureSpec]:
    yield FeatureSpec("ann_dot", "dot", ("space.ann",))
    yield FeatureSpec("als_dot", "dot", ("space.als",))
    for space in ("ann", "content"):
        for last in (5, 20):
            yield FeatureSpec(f"{space}_max_similarity_{last}", "max_similarity", (f"space.{space}",), last=last)
            yield FeatureSpec(f"{space}_mean_similarity_{last}", "mean_similarity", (f"space.{space}",), last=last)


CATEGORICAL_FEATURES = ("item_category", "item_department", "user_tier", "device_x_weekday")
"""Features that LightGBM splits by sets of categories; the other codes take part as numbers."""
