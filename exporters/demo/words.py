"""The words of the simulated marketplace: what it sells, what things are called, where its users live."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Category:
    """A product category.

    Attributes:
        name: as the catalogue calls it; unique.
        department: the group that it belongs to.
        price: median price of its items.
        cycle_days: after how long a buyer needs the same item again; 0: never.
        audience: the gender that it is made for; empty: everybody.
        adult: its items carry the flag "adult".
    """

    name: str
    department: str
    price: float
    cycle_days: float = 0.0
    audience: str = ""
    adult: bool = False


CATEGORIES = (
    Category("bedding", "home", 45),
    Category("kitchenware", "home", 28),
    Category("lighting", "home", 60),
    Category("storage", "home", 22),
    Category("rugs", "home", 120),
    Category("sofas", "furniture", 750),
    Category("chairs", "furniture", 110),
    Category("tables", "furniture", 240),
    Category("shelves", "furniture", 130),
    Category("beds", "furniture", 420),
    Category("phones", "electronics", 520),
    Category("headphones", "electronics", 90),
    Category("laptops", "electronics", 900),
    Category("cameras", "electronics", 480),
    Category("chargers", "electronics", 18),
    Category("dresses", "womenswear", 55, audience="female"),
    Category("heels", "womenswear", 70, audience="female"),
    Category("handbags", "womenswear", 85, audience="female"),
    Category("jewellery", "womenswear", 60, audience="female"),
    Category("blouses", "womenswear", 38, audience="female"),
    Category("shirts", "menswear", 38, audience="male"),
    Category("suits", "menswear", 260, audience="male"),
    Category("jackets", "menswear", 110, audience="male"),
    Category("watches", "menswear", 160, audience="male"),
    Category("jeans", "menswear", 58, audience="male"),
    Category("skincare", "beauty", 24, cycle_days=28),
    Category("make-up", "beauty", 16, cycle_days=35, audience="female"),
    Category("fragrance", "beauty", 62, cycle_days=45),
    Category("haircare", "beauty", 14, cycle_days=25),
    Category("shaving", "beauty", 19, cycle_days=21, audience="male"),
    Category("coffee", "grocery", 12, cycle_days=14),
    Category("tea", "grocery", 8, cycle_days=18),
    Category("snacks", "grocery", 5, cycle_days=9),
    Category("wine", "grocery", 14, cycle_days=16, adult=True),
    Category("pantry", "grocery", 9, cycle_days=12),
    Category("running", "sports", 75),
    Category("yoga", "sports", 32),
    Category("cycling", "sports", 140),
    Category("camping", "sports", 95),
    Category("fitness", "sports", 65),
    Category("puzzles", "toys", 16),
    Category("board games", "toys", 30),
    Category("building sets", "toys", 48),
    Category("dolls", "toys", 26),
    Category("outdoor toys", "toys", 35),
    Category("novels", "books", 12),
    Category("cookbooks", "books", 24),
    Category("travel guides", "books", 18),
    Category("children's books", "books", 11),
    Category("comics", "books", 14),
    Category("plants", "garden", 19),
    Category("garden tools", "garden", 42),
    Category("pots", "garden", 21),
    Category("barbecues", "garden", 210),
    Category("garden furniture", "garden", 180),
    Category("dog food", "pets", 32, cycle_days=20),
    Category("cat food", "pets", 28, cycle_days=18),
    Category("pet treats", "pets", 7, cycle_days=12),
    Category("cat litter", "pets", 13, cycle_days=15),
    Category("pet beds", "pets", 46),
)

DEPARTMENTS = tuple(sorted({category.department for category in CATEGORIES}))

BRANDS = tuple(
    sorted(
        first + second
        for first in (
            "Al", "Bor", "Cal", "Dun", "Elm", "Fjor", "Gal", "Hav", "Iver", "Jun",
            "Kes", "Lum", "Mar", "Nor", "Oak", "Pel", "Quil", "Ros", "Sol", "Tor",
        )
        for second in ("berg", "dale", "den", "field", "ia", "ka", "land", "mont", "o", "stad", "ton", "wick")
    )
)  # fmt: skip

STYLES = tuple(
    sorted(
        (
            "artisan", "basic", "bold", "botanical", "breezy", "bright", "chic", "classic", "clever", "compact",
            "cosy", "crisp", "daring", "elegant", "everyday", "festive", "fresh", "gentle", "heritage", "industrial",
            "light", "luxe", "mellow", "minimal", "modern", "nordic", "organic", "playful", "premium", "pure",
            "quiet", "retro", "robust", "rustic", "sleek", "smart", "soft", "timeless", "urban", "vivid",
        )
    )
)  # fmt: skip

COLOURS = tuple(
    sorted(("amber", "black", "blue", "cream", "green", "grey", "ochre", "pink", "red", "silver", "violet", "white"))
)

SELLERS = tuple(f"seller-{number:03d}" for number in range(120))

COUNTRIES = ("AT", "CH", "DE", "ES", "FR", "GB", "IT", "NL", "PL", "SE")
COUNTRY_SHARES = (0.05, 0.04, 0.28, 0.08, 0.16, 0.17, 0.08, 0.06, 0.05, 0.03)
COUNTRY_LANGUAGES = ("de", "de", "de", "es", "fr", "en", "it", "nl", "pl", "sv")
LANGUAGES = tuple(sorted(set(COUNTRY_LANGUAGES)))

GENDERS = ("female", "male", "other")
TIERS = ("basic", "gold", "silver")
DEVICES = ("app", "desktop", "mobile", "tablet")
DEVICE_SHARES = (0.34, 0.24, 0.36, 0.06)
FLAGS = ("adult", "bulky", "refurbished")
EVENT_TYPES = ("view", "cart", "purchase")

VOCABULARIES: dict[str, tuple[str, ...]] = {
    "brand": BRANDS,
    "category": tuple(category.name for category in CATEGORIES),
    "colour": COLOURS,
    "country": COUNTRIES,
    "department": DEPARTMENTS,
    "device": DEVICES,
    "flag": FLAGS,
    "gender": GENDERS,
    "language": LANGUAGES,
    "seller": SELLERS,
    "style": STYLES,
    "tier": TIERS,
}
"""The code of a value is its place here."""
