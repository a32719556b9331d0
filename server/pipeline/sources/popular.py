"""Sources that order items by how popular they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from recserve.kernels import bitmaps
from recserve.kernels.features import ColumnLayout
from recserve.server.bundle.catalogue import Catalogue
from recserve.server.bundle.columns import CategoryColumn, NumberColumn, Vocabulary
from recserve.server.bundle.layout import POPULAR, POPULAR_IN_CATEGORY
from recserve.server.bundle.lists import ItemLists
from recserve.server.pipeline.assemble import Subject
from recserve.server.pipeline.orders import RowsByCode
from recserve.server.pipeline.sources.base import Proposal, Request, first_passing
from recserve.server.pipeline.types import Reason, Rows, no_rows

FEW_SHARE: Final = 64
"""Where at most one item in this many passes, the passing items are sorted instead of the order searched for them."""
CATEGORIES: Final = 3
"""The user's latest categories that are looked into."""


class PopularSource:
    """The most popular items; its list covers the whole catalogue, so it never runs short of passing items."""

    name = POPULAR

    def __init__(self, catalogue: Catalogue) -> None:
        self._order = catalogue.popular_rows
        popularity = catalogue.role("popularity")
        if not isinstance(popularity, NumberColumn):
            raise TypeError(f"the role 'popularity' must be a number column; the catalogue has {popularity!r}")
        self._popularity = popularity.values

    def propose(self, requests: Sequence[Request], k: int) -> list[Proposal]:
        """The first `k` passing items of the stored order."""
        return [self._first(request, k) for request in requests]

    def reason(self, subject: Subject, row: int) -> Reason | None:  # noqa: ARG002  the same for all
        """Popular with everybody."""
        return Reason("popular")

    def _first(self, request: Request, k: int) -> Proposal:
        rows = self._order[first_passing(request, self._order[: 4 * k], k)]
        if rows.size < k:
            rows = self._first_of_all(request, k)
        return Proposal(rows, self._popularity[rows].astype(np.float32))

    def _first_of_all(self, request: Request, k: int) -> Rows:
        """For filters that the top does not satisfy."""
        mask = request.mask
        if mask is None or bitmaps.count(mask) * FEW_SHARE > self._order.size:
            return self._order[first_passing(request, self._order, k)]
        rows = np.flatnonzero(bitmaps.unpack(mask, self._order.size))
        return rows[np.lexsort((rows, -self._popularity[rows]))[:k]]


class PopularInCategorySource:
    """The most popular items of the categories that the user has dealt with last, of the session first.

    Args:
        catalogue: the items; it has the roles category and popularity.
        by_category: rows by category, the most popular first.
    """

    name = POPULAR_IN_CATEGORY

    def __init__(self, catalogue: Catalogue, by_category: RowsByCode) -> None:
        category, popularity = catalogue.role("category"), catalogue.role("popularity")
        if not (isinstance(category, CategoryColumn) and isinstance(popularity, NumberColumn)):
            raise TypeError(f"needs a category and a popularity; the catalogue has {category!r} and {popularity!r}")
        self._category = category
        self._popularity = popularity.values
        self._by_category = by_category

    def propose(self, requests: Sequence[Request], k: int) -> list[Proposal]:
        """The best `k` of all its categories together."""
        return [self._of(request, k) for request in requests]

    def reason(self, subject: Subject, row: int) -> Reason | None:  # noqa: ARG002  told by the row
        """Popular in its category."""
        category = self._category.value(row)
        return None if category is None else Reason("popular_in_category", {"category": category})

    def _of(self, request: Request, k: int) -> Proposal:
        parts = [no_rows()]
        for code in self._latest(request.subject.recent_rows):
            listed = self._by_category.rows(code)
            parts.append(listed[first_passing(request, listed, k)].astype(np.int64))
        rows = np.concatenate(parts)
        popularity = self._popularity[rows]
        order = np.lexsort((rows, -popularity))[:k]
        return Proposal(rows[order], popularity[order].astype(np.float32))

    def _latest(self, rows: Rows) -> list[int]:
        """The distinct categories of rows, in their order."""
        codes = dict.fromkeys(self._category.codes[rows].tolist())
        return [code for code in codes if code >= 0][:CATEGORIES]


class PopularBySource:
    """The most popular items among the users or in the situations that share values of some columns with the request.

    Where a value is missing, or nobody with these values has done anything, the list of everybody stands in.

    Args:
        lists: of kind POPULAR_BY.
        user: the schema's user columns.
        context: the schema's context columns; of a name that both have, the context's counts.
        vocabularies: by name.
    """

    def __init__(
        self,
        lists: ItemLists,
        user: ColumnLayout,
        context: ColumnLayout,
        vocabularies: Mapping[str, Vocabulary],
    ) -> None:
        self.name = lists.name
        self._lists = lists
        self._places = [
            (name in context, (context if name in context else user)[name][1]) for name in lists.spec.columns
        ]
        columns = {column.name: column for column in (*user.codes, *context.codes)}
        self._values = [vocabularies[columns[name].vocabulary] for name in lists.spec.columns]

    def propose(self, requests: Sequence[Request], k: int) -> list[Proposal]:
        """The first `k` passing items of each request's list."""
        return [self._of(request, k) for request in requests]

    def reason(self, subject: Subject, row: int) -> Reason | None:  # noqa: ARG002  the same for all
        """Popular with users or in situations like this one."""
        codes = self._codes(subject)
        if self._index(codes) == self._lists.spec.lists - 1:
            return Reason("popular")
        named = zip(self._lists.spec.columns, self._values, codes, strict=True)
        return Reason("popular_with", {name: values.values[code] for name, values, code in named})

    def _of(self, request: Request, k: int) -> Proposal:
        rows, scores = self._lists.at(self._index(self._codes(request.subject)))
        chosen = first_passing(request, rows, k)
        return Proposal(rows[chosen], scores[chosen])

    def _codes(self, subject: Subject) -> list[int]:
        sides = (subject.user, subject.context)
        return [int(sides[in_context].codes[0, index]) for in_context, index in self._places]

    def _index(self, codes: Sequence[int]) -> int:
        """Of the list of these values, or of everybody's."""
        index, everybody = 0, int(self._lists.spec.lists) - 1
        for code, values in zip(codes, self._values, strict=True):
            if code < 0:
                return everybody
            index = index * len(values) + code
        offsets = self._lists.offsets
        return index if offsets[index] < offsets[index + 1] else everybody
