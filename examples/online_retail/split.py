"""The cut-offs: what is known before them, and the weeks behind them that are to be foretold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from examples.online_retail.clean import Events
from recserve.exporters.errors import TableError

SECOND_US: Final = 1_000_000
DAY_US: Final = 86_400 * SECOND_US
WINDOW_DAYS: Final = 28
"""Lists are made at a cut-off for the four weeks behind it."""
WINDOW_US: Final = WINDOW_DAYS * DAY_US

_LEAST_USERS: Final = 20
_LEAST_ITEMS: Final = 50


@dataclass(frozen=True, slots=True)
class Split:
    """Where the data is cut, all microseconds UTC. A window reaches from its cut-off to WINDOW_US behind it.

    Attributes:
        test: the last window begins here.
        validation: the window before it.
        training: cut-offs whose windows end at `validation` or before, latest first.
    """

    test: int
    validation: int
    training: tuple[int, ...]


def split(events: Events, training_windows: int) -> Split:
    """Cut so that the last window ends with the second of the last event.

    Raises:
        TableError: the events span too little time, or there is too little of anything to learn from.
    """
    for what, names, least in (("customers", events.users, _LEAST_USERS), ("items", events.items, _LEAST_ITEMS)):
        if len(names) < least:
            raise TableError(f"the transactions have {len(names)} {what}: expected at least {least} to learn from")
    end = (int(events.time_us[-1]) // SECOND_US + 1) * SECOND_US
    test, *others = (end - (n + 1) * WINDOW_US for n in range(training_windows + 2))
    first = int(events.time_us[0])
    if others[-1] - 2 * WINDOW_US < first:
        days = (end - first) / DAY_US
        needed = (training_windows + 4) * WINDOW_DAYS
        raise TableError(
            f"the transactions span {days:.0f} days: expected at least {needed}, for {training_windows} training "
            f"windows, validation and test of {WINDOW_DAYS} days each, and some history before them"
        )
    return Split(test, others[0], tuple(others[1:]))
