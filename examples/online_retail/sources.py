"""Candidate sources beside the spaces: lists of items, computed from nothing but what lies before the cut-off."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from examples.online_retail.clean import Events
from examples.online_retail.split import DAY_US
from recserve.exporters.spec import EventsSpec, SourcesSpec, TogetherSpec, TrendingSpec

_SEASON_US: Final = 91 * DAY_US
"""What `together` and `trending` look at: what went together or well a season ago is hardly sold any longer."""
_WHOLESALE: Final = 1000
"""Distinct items of the largest baskets that count: customers here order hundreds."""


def sources_at(events: Events, time_us: int) -> SourcesSpec:
    """`together` and `trending` from the last season before a cut-off, and `new`, which orders all items by age.

    Args:
        events: all of them; what is later is not looked at.
        time_us: the cut-off.
    """
    season = events.between(time_us - _SEASON_US, time_us)
    table = pa.table(
        {
            "basket_id": pa.array(season.invoice).cast(pa.string()),
            "item_id": pa.array(events.items).take(pa.array(season.item)),
            "time": pa.array(season.time_us, pa.timestamp("us", "UTC")),
        }
    )
    return SourcesSpec(
        new_days=3650,
        events=EventsSpec(table=table),
        trending=TrendingSpec(days=7, smoothing=5),
        together=TogetherSpec(table=table, top=200, max_items=_WHOLESALE),
    )
