"""Why an item was recommended, as codes with parameters that a client can phrase in its own language."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from recserve.server.bundle.catalogue import Catalogue
from recserve.server.bundle.columns import CategoryColumn
from recserve.server.pipeline.assemble import Subject
from recserve.server.pipeline.sources import Source
from recserve.server.pipeline.types import Reason, Rows

_TELLING: Final = (
    "bought_together",
    "similar_to_recent",
    "near_taste",
    "trending",
    "popular_with",
    "popular_in_category",
    "new",
    "popular",
)
"""The sources' reasons, the most telling first."""


class Reasons:
    """Finds reasons for one user's items.

    Codes: `bought_before` and `seen_before` (the item is in the user's history), `category_affinity` with the
    `category` that the history shares with the item, and those of the sources that proposed it.

    Args:
        catalogue: the items.
        subject: the user.
        purchase_code: code of the event type "purchase".
        sources: by name.
    """

    def __init__(
        self, catalogue: Catalogue, subject: Subject, purchase_code: int, sources: Mapping[str, Source]
    ) -> None:
        self._subject = subject
        self._sources = sources
        rows = subject.history_rows
        self._dealt = set(rows[rows >= 0].tolist())
        self._bought = set(rows[(rows >= 0) & (subject.history.events == purchase_code)].tolist())
        column = catalogue.role("category")
        self._categories = column if isinstance(column, CategoryColumn) else None
        self._affine: set[int] = set()
        if self._categories is not None:
            self._affine = set(self._categories.codes[rows[rows >= 0]].tolist()) - {-1}

    def of(self, row: int, sources: tuple[str, ...]) -> tuple[Reason, ...]:
        """Reasons for the item in `row` that `sources` proposed, the most telling first."""
        reasons = []
        if row in self._bought:
            reasons.append(Reason("bought_before"))
        elif row in self._dealt:
            reasons.append(Reason("seen_before"))
        if (category := self._shared_category(row)) is not None:
            reasons.append(Reason("category_affinity", {"category": category}))
        given = (self._sources[name].reason(self._subject, row) for name in sources)
        reasons += sorted((reason for reason in given if reason), key=lambda reason: _TELLING.index(reason.code))
        return tuple(reason for place, reason in enumerate(reasons) if reason not in reasons[:place])

    def _shared_category(self, row: int) -> str | None:
        if self._categories is None or int(self._categories.codes[row]) not in self._affine:
            return None
        return str(self._categories.value(row))


def reasons_for(
    reasons: Reasons, rows: Rows, sources: tuple[str, ...], ranks: np.ndarray[tuple[int, int], np.dtype[np.int32]]
) -> tuple[tuple[Reason, ...], ...]:
    """Reasons of a whole list; `ranks` [k, sources] tells who proposed what."""
    return tuple(
        reasons.of(int(row), tuple(name for name, rank in zip(sources, mine, strict=True) if rank > 0))
        for row, mine in zip(rows, ranks, strict=True)
    )
