"""Lists of items with scores, computed from what users did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from recserve.exporters.spec import PopularBySpec, TogetherSpec, TrendingSpec

_BLOCK: Final = 4096  # items whose pairs are in memory at once
_DAY_US: Final = 86_400_000_000

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """See `recserve.server.bundle.lists.ItemLists`."""

    offsets: NDArray[np.int64]
    rows: NDArray[np.int32]
    scores: NDArray[np.float32]

    @staticmethod
    def of(which: Rows, rows: Rows, scores: NDArray[np.floating], *, lists: int, top: int) -> Lists:
        """The best `top` entries of each list, by score descending and row ascending.

        Args:
            which: the list of each entry, 0 to `lists` - 1.
            rows: likewise, distinct within a list.
            scores: likewise, finite.
            lists: how many there are.
            top: the most entries of one.
        """
        rounded = scores.astype(np.float32)
        order = np.lexsort((rows, -rounded, which))
        which = which[order]
        starts = np.searchsorted(which, np.arange(lists))
        kept = order[np.arange(which.size) - starts[which] < top]
        sizes = np.minimum(np.bincount(which, minlength=lists), top)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        return Lists(offsets, rows[kept].astype(np.int32), rounded[kept])


def bought_together(baskets: Rows, rows: Rows, items: int, spec: TogetherSpec) -> Lists:
    """One list per item: see `TogetherSpec`.

    Args:
        baskets: of each line, any numbers.
        rows: the item of each line; repeats within a basket count once.
        items: in the catalogue.
        spec: what is kept.
    """
    basket, item = np.divmod(np.unique(np.unique(baskets, return_inverse=True)[1] * items + rows), items)
    sizes = np.bincount(basket)
    kept = sizes[basket] <= spec.max_items
    basket, item = basket[kept], item[kept]
    shape = (sizes.size, items)
    contents = scipy.sparse.csr_array((np.ones(item.size, np.int32), (basket, item)), shape=shape)
    of_items = contents.T.tocsr()
    counts = np.bincount(item, minlength=items)
    parts = [
        _partners(of_items[start : start + _BLOCK] @ contents, start, counts, spec) for start in range(0, items, _BLOCK)
    ]
    which, partners, scores = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Lists.of(which, partners, scores, lists=items, top=spec.top)


def _partners(
    both: scipy.sparse.csr_array, start: int, counts: NDArray[np.int64], spec: TogetherSpec
) -> tuple[Rows, Rows, NDArray[np.float64]]:
    """Items, partners and scores of a block of items; `both` [block, items] counts the baskets with both."""
    found = both.tocoo()
    item, partner = found.row.astype(np.int64) + start, found.col.astype(np.int64)
    kept = (item != partner) & (found.data >= spec.min_baskets)
    item, partner, together = item[kept], partner[kept], found.data[kept].astype(np.float64)
    cosine = together / np.sqrt(counts[item].astype(np.float64) * counts[partner])
    return item, partner, cosine * (together / (together + spec.shrinkage))


def trending(rows: Rows, times_us: NDArray[np.int64], items: int, spec: TrendingSpec) -> Lists:
    """One list: see `TrendingSpec`.

    Args:
        rows: the item of each event.
        times_us: when, microseconds UTC.
        items: in the catalogue.
        spec: what is recent, and how much is kept.
    """
    recent = np.bincount(rows[_lately(times_us, spec.days)], minlength=items)
    overall = np.bincount(rows, minlength=items)
    scores = (recent + spec.smoothing * recent.sum() / overall.sum()) / (overall + spec.smoothing)
    listed = np.flatnonzero(recent * overall.sum() > overall * recent.sum())  # the same in exact numbers
    return Lists.of(np.zeros(listed.size, np.int64), listed, scores[listed], lists=1, top=spec.top)


def trending_by(scores: NDArray[np.float64], spec: TrendingSpec) -> Lists:
    """One list by given scores [items]; NaN is not listed."""
    listed = np.flatnonzero(~np.isnan(scores))
    return Lists.of(np.zeros(listed.size, np.int64), listed, scores[listed], lists=1, top=spec.top)


def popular_by(
    rows: Rows,
    times_us: NDArray[np.int64],
    codes: Sequence[NDArray[np.int32]],
    cardinalities: Sequence[int],
    items: int,
    spec: PopularBySpec,
) -> Lists:
    """One list per combination of values, and a last one of all events; see `PopularBySpec`.

    Args:
        rows: the item of each event.
        times_us: when, microseconds UTC.
        codes: by column: the value's code of each event, -1 where missing.
        cardinalities: by column.
        items: in the catalogue.
        spec: what is counted, and how much is kept.
    """
    lately = _lately(times_us, spec.days) if spec.days else np.ones(rows.size, np.bool_)
    rows = rows[lately]
    everybody = int(np.prod(cardinalities, dtype=np.int64))
    group, known = np.zeros(rows.size, np.int64), np.ones(rows.size, np.bool_)
    for column, cardinality in zip(codes, cardinalities, strict=True):
        group = group * cardinality + column[lately]
        known &= column[lately] >= 0
    which = np.concatenate([group[known], np.full(rows.size, everybody)])
    entries, counts = np.unique(which * items + np.concatenate([rows[known], rows]), return_counts=True)
    which, listed = np.divmod(entries, items)
    totals = np.bincount(which, weights=counts, minlength=everybody + 1)
    return Lists.of(which, listed, counts / totals[which], lists=everybody + 1, top=spec.top)


def _lately(times_us: NDArray[np.int64], days: float) -> NDArray[np.bool_]:
    """Whether each event lies in the last days before the latest."""
    since = int(times_us.max()) - round(days * _DAY_US)
    return times_us > since
