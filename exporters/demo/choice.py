"""How users respond to what they are shown: click, add to the cart, buy.

A click is drawn with the probability sigmoid(bias + utility); a cart addition follows clicks, a purchase cart
additions, each with its own utility. The models of the demo never see these formulas, only what comes of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.demo.words import CATEGORIES, DEPARTMENTS, DEVICES
from recserve.exporters.demo.world import DAY_US, Codes, Floats, Times, World, category_table

_CHUNK = 1 << 18
CLICK_RATE = 0.27
"""Share of impressions that are clicked."""
_CART_BIAS = -2.1
_PURCHASE_BIAS = -0.3

NOTHING, VIEWED, CARTED, BOUGHT = -1, 0, 1, 2
"""What a user last did with an item before it is shown again; >= 0 are event codes."""


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """Items shown to users; arrays of one length.

    Attributes:
        user: rows of users.
        item: rows of items.
        device: codes.
        time_us: microseconds UTC.
        position: place on the shelf from 0.
        past: what the user last did with the item (see NOTHING).
        past_us: when; meaningless where `past` is NOTHING.
    """

    user: Codes
    item: Codes
    device: Codes
    time_us: Times
    position: Codes
    past: Codes
    past_us: Times

    def __getitem__(self, which: slice) -> Shown:
        return Shown(*(getattr(self, name)[which] for name in self.__slots__))


@dataclass(frozen=True, slots=True, eq=False)
class Responses:
    """What came of it: boolean arrays; purchases are among cart additions, these among clicks."""

    clicked: NDArray[np.bool_]
    carted: NDArray[np.bool_]
    purchased: NDArray[np.bool_]


class Shoppers:
    """The hidden model of choice of a world's users."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self._world = world
        self._hours = 0.35 * rng.standard_normal((4, len(DEPARTMENTS)))
        self._weekend = 0.3 * rng.standard_normal((2, len(DEPARTMENTS)))
        self._device = 0.25 * rng.standard_normal((len(DEVICES), len(DEPARTMENTS)))
        self._purchase_device = np.linspace(0.2, -0.4, len(DEVICES))
        self._bias: float | None = None

    def respond(self, shown: Shown, rng: np.random.Generator) -> Responses:
        """Draw the users' responses. The first call sets the bias so that CLICK_RATE of its items are clicked."""
        click, cart, purchase = self._utilities(shown)
        if self._bias is None:
            self._bias = _bias_for_rate(click, CLICK_RATE)
        clicked = _happens(click + self._bias, rng)
        carted = clicked & _happens(cart + _CART_BIAS, rng)
        return Responses(clicked, carted, carted & _happens(purchase + _PURCHASE_BIAS, rng))

    def _utilities(self, shown: Shown) -> tuple[Floats, Floats, Floats]:
        """Utilities of clicking, adding to the cart and buying, in pieces that fit the cache."""
        starts = range(0, shown.user.size, _CHUNK)
        parts = [self._piece(shown[start : start + _CHUNK]) for start in starts]
        click, cart, purchase = (np.concatenate(each) if parts else np.empty(0) for each in zip(*parts, strict=True))
        return click, cart, purchase

    def _piece(self, shown: Shown) -> tuple[Floats, Floats, Floats]:
        liking = self._liking(shown)
        fit = self._price_fit(shown)
        again = self._again(shown)
        items = self._world.items
        rating = np.nan_to_num(items.rating[shown.item], nan=3.5) - 3.9
        discount = 1 - items.price[shown.item] / items.list_price[shown.item]
        deal = discount * self._world.users.deal_sensitivity[shown.user]
        click = liking + 0.6 * fit + 0.35 * items.quality[shown.item] + 0.4 * deal + again + self._moment(shown)
        click += 0.6 * self._novelty(shown) - 0.05 * shown.position
        cart = 0.5 * liking + 0.8 * fit + 0.7 * rating + 0.6 * deal + 0.8 * again
        purchase = 0.3 * liking + 0.9 * fit + 0.5 * rating - 0.08 * items.shipping_days[shown.item]
        return click, cart, purchase + 0.5 * again + self._purchase_device[shown.device]

    def _liking(self, shown: Shown) -> Floats:
        """Taste, interest in the category, and audience."""
        users, items = self._world.users, self._world.items
        taste = np.einsum("ij,ij->i", users.taste[shown.user], items.taste[shown.item])
        category = items.category[shown.item]
        interest = np.log(users.affinity[shown.user, category] + 1e-3) + np.log(len(CATEGORIES))
        gender, audience = users.gender[shown.user], items.audience[shown.item]
        mismatch = (audience >= 0) & (gender >= 0) & (audience != gender)
        liking: Floats = 3.2 * taste.astype(np.float64) + 0.25 * interest - 0.8 * mismatch
        return liking

    def _price_fit(self, shown: Shown) -> Floats:
        """Minus the squared distance, in logarithms, from what the user likes to pay in the category; at least -3."""
        items = self._world.items
        median = category_table("price")[items.category[shown.item]]
        level = np.log(items.price[shown.item] / median) - self._world.users.price_level[shown.user]
        return np.maximum(-np.square(level), -3.0)

    def _again(self, shown: Shown) -> Floats:
        """Seen before: attractive. In the cart: more so. Bought: only when the user runs out of it."""
        cycle = category_table("cycle_days")[self._world.items.category[shown.item]]
        days = (shown.time_us - shown.past_us) / DAY_US
        due = np.square((days - cycle) / np.maximum(0.35 * cycle, 1.0))
        bought = np.where(cycle > 0, 3.5 * np.exp(-due) - 0.5, -2.5)
        fading = np.exp(-np.maximum(days, 0.0) / 10.0)
        return np.select(
            [shown.past == VIEWED, shown.past == CARTED, shown.past == BOUGHT], [0.8 * fading, 1.8 * fading, bought]
        )

    def _moment(self, shown: Shown) -> Floats:
        """What suits the time of day, the weekend and the device."""
        department = self._world.items.department[shown.item]
        quarter = (shown.time_us // (DAY_US // 4)) % 4
        weekday = (shown.time_us // DAY_US + 3) % 7  # 1970-01-01 was a Thursday
        weekend = (weekday >= 5).astype(np.int64)
        return (
            self._hours[quarter, department]
            + self._weekend[weekend, department]
            + self._device[shown.device, department]
        )

    def _novelty(self, shown: Shown) -> Floats:
        """1 on the day of the launch, halved every two weeks."""
        age = (shown.time_us - self._world.items.launch_us[shown.item]) / (14 * DAY_US)
        return np.exp2(-np.maximum(age, 0.0))


def _happens(logits: Floats, rng: np.random.Generator) -> NDArray[np.bool_]:
    return rng.random(logits.size) < 1 / (1 + np.exp(-logits))


def _bias_for_rate(logits: Floats, rate: float) -> float:
    """The b for which the mean of sigmoid(logits + b) is `rate`, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        if np.mean(1 / (1 + np.exp(-(logits + middle)))) < rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2
