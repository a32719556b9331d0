"""Who lives in the simulated marketplace and what it sells, with what nobody can observe: tastes and qualities."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.demo.sizes import DemoSizes
from recserve.exporters.demo.words import (
    BRANDS,
    CATEGORIES,
    COLOURS,
    COUNTRIES,
    COUNTRY_LANGUAGES,
    COUNTRY_SHARES,
    DEPARTMENTS,
    FLAGS,
    GENDERS,
    LANGUAGES,
    SELLERS,
    STYLES,
    TIERS,
)

END = datetime(2026, 7, 1, tzinfo=UTC)
"""When the simulation ends: fixed, so that a seed says everything."""

DAY_US = 86_400_000_000
ZIPF_EXPONENT = 1.0
_ZIPF_OFFSET = 8  # flattens the head (Mandelbrot), so that no single item takes a tenth of all views
_LATENT = 16

Floats = NDArray[np.float64]
Codes = NDArray[np.int32]
Times = NDArray[np.int64]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Items:
    """What is sold; every array has one entry an item.

    Attributes:
        taste: float32 [items, latent], length 1; hidden.
        quality: standard normal; hidden, but ratings follow it.
        weight: Zipf weight of being put on a shelf; hidden.
        regions: bool [items, countries]; a row without any is sold everywhere.
        flags: bool [items, flags].
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    category: Codes
    department: Codes
    brand: Codes
    style: Codes
    colour: Codes
    seller: Codes
    audience: Codes
    price: Floats
    list_price: Floats
    rating: Floats
    rating_count: Floats
    shipping_days: Floats
    weight_kg: Floats
    image_count: Floats
    stock: NDArray[np.int64]
    launch_us: Times
    regions: NDArray[np.bool_]
    flags: NDArray[np.bool_]
    taste: Vectors
    quality: Floats
    weight: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Users:
    """Who buys; every array has one entry a user.

    Attributes:
        gender: code, -1 where unknown.
        age: years, NaN where unknown.
        taste: float32 [users, latent], length 1; hidden.
        affinity: float32 [users, categories], rows sum to 1; hidden.
        price_level: how much above the category's median price (in logarithms) the user likes to buy; hidden.
        deal_sensitivity: how much discounts attract; hidden.
        activity: share of all sessions; hidden.
        peak_hour: of the day, UTC; hidden.
    """

    ids: tuple[str, ...]
    country: Codes
    language: Codes
    gender: Codes
    tier: Codes
    age: Floats
    signup_us: Times
    taste: Vectors
    affinity: Vectors
    price_level: Floats
    deal_sensitivity: Floats
    activity: Floats
    peak_hour: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """Items and users between `start_us` and `end_us`, microseconds UTC."""

    start_us: int
    end_us: int
    items: Items
    users: Users


def make_world(sizes: DemoSizes, rng: np.random.Generator) -> World:
    """Draw items and users."""
    end_us = int(END.timestamp()) * 1_000_000
    start_us = end_us - sizes.days * DAY_US
    centres = _unit(rng.standard_normal((len(CATEGORIES), _LATENT)))
    items = _make_items(sizes.items, centres, start_us, end_us, rng)
    users = _make_users(sizes.users, centres, start_us, end_us, rng)
    return World(start_us=start_us, end_us=end_us, items=items, users=users)


def category_table(attribute: str) -> Floats:
    """A number of every category, by category code."""
    return np.array([getattr(category, attribute) for category in CATEGORIES], np.float64)


def _make_items(count: int, centres: Floats, start_us: int, end_us: int, rng: np.random.Generator) -> Items:
    category = _draw_categories(count, rng)
    department = _department_codes()[category]
    brand = _draw_brands(department, rng)
    style = rng.integers(len(STYLES), size=count, dtype=np.int32)
    quality = rng.standard_normal(count)
    price, list_price = _draw_prices(category, brand, quality, rng)
    rating_count = np.floor(rng.lognormal(3.0, 1.4, count))
    stock = np.where(rng.random(count) < 0.06, 0, rng.geometric(0.02, count))
    launch_us = _draw_launches(count, start_us, end_us, rng)
    adult, audience = category_table("adult")[category] > 0, _audience_codes()[category]
    weight_kg = np.round(0.05 + 0.02 * price * rng.lognormal(0.0, 0.8, count), 2)
    return Items(
        ids=tuple(f"item-{row:05d}" for row in range(count)),
        titles=_titles(category, brand, style),
        category=category,
        department=department,
        brand=brand,
        style=style,
        colour=rng.integers(len(COLOURS), size=count, dtype=np.int32),
        seller=rng.integers(len(SELLERS), size=count, dtype=np.int32),
        audience=audience,
        price=price,
        list_price=list_price,
        rating=_draw_ratings(quality, rating_count, rng),
        rating_count=rating_count,
        shipping_days=rng.integers(1, 8, count).astype(np.float64),
        weight_kg=weight_kg,
        image_count=rng.integers(1, 9, count).astype(np.float64),
        stock=stock.astype(np.int64),
        launch_us=launch_us,
        regions=_draw_regions(count, rng),
        flags=np.stack([adult, weight_kg > 15.0, rng.random(count) < 0.03], axis=1)[:, : len(FLAGS)],
        taste=_item_tastes(centres[category], brand, style, rng),
        quality=quality,
        weight=_zipf_weights(quality, rng),
    )


def _make_users(count: int, centres: Floats, start_us: int, end_us: int, rng: np.random.Generator) -> Users:
    taste = _unit(rng.standard_normal((count, centres.shape[1])))
    gender = rng.choice(np.array([0, 1, 2, -1], np.int32), size=count, p=[0.45, 0.42, 0.03, 0.10])
    country = rng.choice(len(COUNTRIES), size=count, p=COUNTRY_SHARES).astype(np.int32)
    price_level = 0.45 * rng.standard_normal(count)
    languages = np.array([LANGUAGES.index(language) for language in COUNTRY_LANGUAGES], np.int32)
    activity = rng.lognormal(0.0, 0.9, count)
    return Users(
        ids=tuple(f"user-{row:05d}" for row in range(count)),
        country=country,
        language=languages[country],
        gender=gender,
        tier=_draw_tiers(price_level, rng),
        age=np.where(rng.random(count) < 0.15, np.nan, np.clip(np.round(rng.normal(41, 14, count)), 18, 90)),
        signup_us=_draw_signups(count, start_us, end_us, rng),
        taste=taste.astype(np.float32),
        affinity=_draw_affinities(taste @ centres.T, gender, rng),
        price_level=price_level,
        deal_sensitivity=rng.gamma(2.0, 1.0, count),
        activity=activity / activity.sum(),
        peak_hour=rng.choice(np.array([8.0, 12.5, 19.5, 21.5]), size=count, p=[0.2, 0.2, 0.35, 0.25]),
    )


def _unit(vectors: Floats) -> Floats:
    length: Floats = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / length


def _department_codes() -> Codes:
    """Department code by category code."""
    return np.array([DEPARTMENTS.index(category.department) for category in CATEGORIES], np.int32)


def _audience_codes() -> Codes:
    """Gender code by category code, -1 where the category is for everybody."""
    return np.array([GENDERS.index(each.audience) if each.audience else -1 for each in CATEGORIES], np.int32)


def _draw_categories(count: int, rng: np.random.Generator) -> Codes:
    """A few large categories and many small ones, each with at least one item."""
    shares = rng.dirichlet(np.full(len(CATEGORIES), 3.0))
    rest = rng.choice(len(CATEGORIES), size=count - len(CATEGORIES), p=shares)
    return rng.permutation(np.concatenate([np.arange(len(CATEGORIES)), rest])).astype(np.int32)


def _draw_brands(department: Codes, rng: np.random.Generator) -> Codes:
    """Each department has its own brands, a few of them large."""
    per_department = len(BRANDS) // len(DEPARTMENTS)
    shares = 1.0 / np.arange(1, per_department + 1)
    place = rng.choice(per_department, size=department.size, p=shares / shares.sum())
    brands = rng.permutation(len(BRANDS))
    return np.take(brands, department * per_department + place).astype(np.int32)


def _draw_prices(category: Codes, brand: Codes, quality: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Prices and list prices, both positive with two decimals; a third of the items are reduced."""
    premium = 0.3 * rng.standard_normal(len(BRANDS))
    noise = 0.35 * rng.standard_normal(category.size)
    list_price = category_table("price")[category] * np.exp(premium[brand] + 0.1 * quality + noise)
    reduced = rng.random(category.size) < 0.35
    discount = np.where(reduced, rng.choice([0.1, 0.2, 0.3, 0.5], size=category.size, p=[0.4, 0.3, 0.2, 0.1]), 0.0)
    list_price = np.maximum(np.round(list_price, 2), 0.5)
    return np.maximum(np.round(list_price * (1 - discount), 2), 0.25), list_price


def _draw_ratings(quality: Floats, counts: Floats, rng: np.random.Generator) -> Floats:
    """One to five stars around the quality, less certain with few ratings; NaN without any."""
    noise = rng.standard_normal(quality.size) / np.sqrt(np.maximum(counts, 1))
    stars = np.round(np.clip(3.9 + 0.45 * quality + noise, 1.0, 5.0), 1)
    return np.where(counts > 0, stars, np.nan)


def _draw_launches(count: int, start_us: int, end_us: int, rng: np.random.Generator) -> Times:
    """Most items are up to three years old at the start; an eighth is launched during the simulation."""
    old = start_us - rng.integers(0, 3 * 365 * DAY_US, count)
    new = rng.integers(start_us, end_us - 2 * DAY_US, count)
    return np.where(rng.random(count) < 0.125, new, old)


def _draw_regions(count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A quarter of the items is sold in some countries only."""
    restricted = rng.random(count) < 0.25
    return restricted[:, None] & (rng.random((count, len(COUNTRIES))) < 0.6)


def _titles(category: Codes, brand: Codes, style: Codes) -> tuple[str, ...]:
    parts = zip(brand.tolist(), style.tolist(), category.tolist(), strict=True)
    return tuple(f"{BRANDS[b]} {STYLES[s]} {CATEGORIES[c].name}" for b, s, c in parts)


def _item_tastes(centres: Floats, brand: Codes, style: Codes, rng: np.random.Generator) -> Vectors:
    """Mostly what category, brand and style say, partly the item's own."""
    brands = _unit(rng.standard_normal((len(BRANDS), centres.shape[1])))
    styles = _unit(rng.standard_normal((len(STYLES), centres.shape[1])))
    own = _unit(rng.standard_normal(centres.shape))
    return _unit(0.7 * centres + 0.45 * brands[brand] + 0.55 * styles[style] + 0.5 * own).astype(np.float32)


def _zipf_weights(quality: Floats, rng: np.random.Generator) -> Floats:
    """Weights 1 / (rank + offset)^s, ranks random with better items somewhat ahead; they sum to 1."""
    rank = np.empty(quality.size)
    rank[np.argsort(rng.standard_normal(quality.size) - 0.4 * quality, kind="stable")] = np.arange(quality.size)
    weights: Floats = (rank + 1 + _ZIPF_OFFSET) ** -ZIPF_EXPONENT
    return weights / np.sum(weights)


def _draw_tiers(price_level: Floats, rng: np.random.Generator) -> Codes:
    """Those who like it expensive are more often gold or silver."""
    standing = price_level + 0.5 * rng.standard_normal(price_level.size)
    names = np.where(standing > 0.9, "gold", np.where(standing > 0.4, "silver", "basic"))
    return np.array([TIERS.index(name) for name in names], np.int32)


def _draw_signups(count: int, start_us: int, end_us: int, rng: np.random.Generator) -> Times:
    """Midnights; a sixth of the users joins during the simulation."""
    days = (end_us - start_us) // DAY_US
    before = -rng.integers(0, 1500, count)
    during = rng.integers(1, days - 5, count)
    return start_us + np.where(rng.random(count) < 1 / 6, during, before) * DAY_US


def _draw_affinities(similarity: Floats, gender: Codes, rng: np.random.Generator) -> Vectors:
    """Shares of interest by category: tastes, audience and chance."""
    audience = _audience_codes()[None, :]
    mismatch = (audience >= 0) & (gender[:, None] >= 0) & (audience != gender[:, None])
    logits = 4.0 * similarity - 2.5 * mismatch + 0.8 * rng.gumbel(size=similarity.shape)
    shares: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= np.sum(shares, axis=1, keepdims=True)
    return shares.astype(np.float32)
