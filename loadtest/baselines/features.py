"""The model's 100 features by hand: 40 of user and request, 50 of items, 10 crosses.

Sums and products are made in double and rounded once, as the model was trained, so that its trees see the same values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recserve.loadtest.baselines.data import MISSING_TIME, Data, Floats

REQUEST, ITEM, CROSS = slice(0, 40), slice(40, 90), slice(90, 100)
RECENT: Final = 10
"""Items of the history that candidates are compared with."""
HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """One request: the user's row, -1: unknown; codes of device and country, -1: unknown; and when."""

    user: int
    device: int
    country: int
    time_us: int


class Features:
    """Computes the model's rows.

    Args:
        data: of the service.
    """

    def __init__(self, data: Data) -> None:
        self._items = data.items
        self._users = data.users

    def matrix(
        self, asked: Asked, rows: NDArray[np.int64], vectors: Floats, user_vector: Floats, scores: Floats
    ) -> Floats:
        """float32 [n, 100].

        Args:
            asked: the request.
            rows: [n], candidates, the nearest first.
            vectors: [n, 128], theirs.
            user_vector: [128]; NaN: none.
            scores: [n], what the index says of them; NaN: they are not from there.
        """
        matrix, doubles = np.empty((len(rows), 100), np.float32), vectors.astype(np.float64)
        matrix[:, REQUEST] = self._of_request(asked)
        matrix[:, ITEM] = self._items.features[rows]
        crosses = matrix[:, CROSS]
        crosses[:, 0] = scores
        crosses[:, 1] = np.arange(1, len(rows) + 1) if not np.isnan(scores[0]) else np.nan
        crosses[:, 2:6] = self._of_pairs(asked.user, rows, doubles @ user_vector.astype(np.float64))
        crosses[:, 6:8] = self._of_category_history(asked, self._items.categories[rows])
        crosses[:, 8:10] = self._of_recent_items(asked.user, doubles)
        return matrix

    def _of_request(self, asked: Asked) -> Floats:
        """What the user and the situation are, [40]."""
        users, user = self._users, asked.user
        hour, weekday = asked.time_us // HOUR_US % 24, (asked.time_us // DAY_US + 3) % 7
        home = users.home_country[user]
        row = np.empty(40, np.float32)
        row[:30] = users.features[user]
        row[30:] = (
            _days(users.signup[user], asked.time_us),
            _days(users.last_order[user], asked.time_us),
            _number(asked.device),
            _number(asked.country),
            math.sin(2 * math.pi * hour / 24),
            math.cos(2 * math.pi * hour / 24),
            math.sin(2 * math.pi * weekday / 7),
            math.cos(2 * math.pi * weekday / 7),
            _number(asked.device) * 7 + weekday,
            math.nan if asked.country < 0 or home < 0 else asked.country == home,
        )
        return row

    def _of_pairs(self, user: int, rows: NDArray[np.int64], dots: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n, 4]: inner product, price by the user's typical one, favourite brand, rank of the category."""
        items, users = self._items, self._users
        price, brand = users.typical_price[user], users.favourite_brand[user]
        brands = items.brands[rows]
        ranks = np.full(items.category_count + 1, np.nan)  # the last one is of items without a category
        best = users.top_categories[user]
        ranks[best[::-1]] = np.arange(len(best), 0, -1)
        ratio = items.prices[rows] / price if price else np.full(len(rows), np.nan)
        same = np.where(brands < 0, np.nan, brands == brand) if brand >= 0 else np.full(len(rows), np.nan)
        return np.stack((dots, ratio, same, ranks[items.categories[rows]]), axis=1)

    def _of_category_history(self, asked: Asked, categories: NDArray[np.int32]) -> NDArray[np.float64]:
        """[n, 2]: the user's views of the item's category, and days since any event in it."""
        users = self._users
        if asked.user < 0:
            return np.full((len(categories), 2), np.nan)
        mine = slice(users.history[asked.user], users.history[asked.user + 1])
        seen, size = users.item_categories[mine], self._items.category_count + 1
        viewed = users.views[mine] & (seen >= 0)
        views = np.bincount(seen[viewed], users.counts[mine][viewed], minlength=size)
        views[-1] = np.nan  # of items without a category; likewise below
        last = np.full(size, MISSING_TIME)
        last[seen[::-1]] = users.last_us[mine][::-1]  # the latest ones are written last
        last[-1] = MISSING_TIME
        found = last[categories]
        days = np.where(found == MISSING_TIME, np.nan, (float(asked.time_us) - found.astype(np.float64)) / DAY_US)
        return np.stack((views[categories], days), axis=1)

    def _of_recent_items(self, user: int, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n, 2]: highest and mean similarity to the user's latest items."""
        users = self._users
        rows = users.item_rows[users.history[user] : users.history[user + 1]] if user >= 0 else users.item_rows[:0]
        recent = list(dict.fromkeys(rows[rows >= 0].tolist()))[:RECENT]
        if not recent:
            return np.full((len(vectors), 2), np.nan)
        similarity = vectors @ self._items.vectors[recent].astype(np.float64).T
        return np.stack((similarity.max(axis=1), similarity.mean(axis=1)), axis=1)


def _days(earlier: int, later: int) -> float:
    return math.nan if earlier == MISSING_TIME else (float(later) - float(earlier)) / DAY_US


def _number(code: int) -> float:
    return math.nan if code < 0 else float(code)
