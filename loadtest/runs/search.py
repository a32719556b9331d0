"""Runs at rates that depend on those before: a sweep to the knee and past it, and the search for capacity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from recserve.loadtest.generator.pacing import ScheduleError
from recserve.loadtest.runs.errors import ResultError
from recserve.loadtest.runs.once import Row

OK_SHARE: Final = 0.999
"""Of the requests, answered well, in a run that holds its budget."""
LEAST_RATE: Final = 1.0
"""A search for capacity goes no lower: runs of seconds have too few requests then."""
FEW: Final = 10.0
"""Requests a second, below which a short run may have none."""
KNEE_SHARE: Final = 0.95
"""Good answers by offered requests, below which a rate lies past the knee."""

Hold = Callable[[float, int], Row]
"""Holds a rate, as the repetition of that number, and says what came of it."""


def holds_budget(row: Mapping[str, Any], budget_ms: float) -> bool:
    """Whether a run's p99 is within the budget and, but for one in a thousand, all of its answers are good.

    Lateness of the generator only makes latencies longer: a run that holds the budget in spite of it counts.
    """
    return row["p99_ms"] is not None and row["p99_ms"] <= budget_ms and row["ok_share"] >= OK_SHARE


def past_knee(row: Mapping[str, Any], budget_ms: float) -> bool:
    """Whether the target no longer keeps up: good answers fall behind what is offered, or the p99 leaves the budget."""
    behind = row["requests_per_s"] < KNEE_SHARE * row["offered_per_s"]
    return behind or row["p99_ms"] is None or row["p99_ms"] > budget_ms


def sweep(hold: Hold, rates: Iterable[float], budget_ms: float, *, past: int | None = 2) -> Iterator[Row]:
    """A run at each rate, ascending, until so many in a row lie past the knee; None: at all of them."""
    beyond = 0
    for rate in rates:
        row = hold(rate, 1)
        yield row
        beyond = beyond + 1 if past_knee(row, budget_ms) else 0
        if beyond == past:
            return


def rising_rates(start: float, factor: float, most: float) -> Iterator[float]:
    """Rates that rise by a factor, three digits each."""
    rate = start
    while rate <= most:
        yield float(f"{rate:.3g}")
        rate *= factor


def knee(rows: Iterable[Mapping[str, Any]], budget_ms: float) -> float | None:
    """The highest rate before the first one past the knee; None: the first already is."""
    found = None
    for row in sorted(rows, key=lambda each: each["params"]["rate"]):
        if past_knee(row, budget_ms):
            return found
        found = row["params"]["rate"]
    return found


@dataclass(slots=True)
class Capacity:
    """The search for the highest rate that holds a budget.

    Attributes:
        budget_ms: for the p99.
        precision: the answer is at most this share below a rate that failed; from arguments.LEAST_PRECISION.
        rows: of every run so far, in their order; it is filled while the search runs, so that an interrupted one has
            what it has.
        rate: the answer; None: not known.
        confirmed: whether a longer run held it.
        at_least: whether it is the highest rate that was to be tried, so that the target may well hold more.
    """

    budget_ms: float
    precision: float = 0.05
    rows: list[Row] = field(default_factory=list)
    rate: float | None = None
    confirmed: bool = False
    at_least: bool = False

    def search(self, hold: Hold, confirm: Hold, start: float, most: float) -> None:
        """Double or halve until the answer is enclosed, bisect, then confirm with longer runs, stepping down.

        Args:
            hold: holds a rate for a short time.
            confirm: holds one for a longer time.
            start: the first rate.
            most: no rate above it is tried.

        Raises:
            ResultError: the generator was too late to tell, or not even one request a second is answered in time.
        """
        low, high = self._enclose(hold, start, most)
        while high - low > self.precision * high:
            middle = float(f"{(low + high) / 2:.4g}")
            if self._holds(hold, middle):
                low = middle
            else:
                high = middle
        rate = low
        while rate >= LEAST_RATE:
            if self._holds(confirm, rate):
                self.rate, self.confirmed, self.at_least = rate, True, rate == most
                return
            rate = float(f"{rate * (1 - self.precision):.4g}")
        raise ResultError(self._none_from(LEAST_RATE))

    def _none_from(self, rate: float) -> str:
        unit = "request/s" if rate == 1 else "requests/s"
        return f"no rate from {rate:g} {unit} on holds a p99 of {self.budget_ms:g} ms"

    def _enclose(self, hold: Hold, start: float, most: float) -> tuple[float, float]:
        """A rate that holds, and one that does not or is `most`."""
        rate = min(max(start, LEAST_RATE), most)
        if self._holds(hold, rate):
            while rate < most:
                low, rate = rate, min(2 * rate, most)
                if not self._holds(hold, rate):
                    return low, rate
            return rate, rate
        while rate > LEAST_RATE:
            high, rate = rate, max(rate / 2, LEAST_RATE)
            if self._holds_below(high, hold, rate):
                return rate, high
        raise ResultError(self._none_from(rate))

    def _holds_below(self, failed: float, hold: Hold, rate: float) -> bool:
        """As _holds, below a rate that failed: who cannot be told of this one is told of that one."""
        try:
            return self._holds(hold, rate)
        except (ResultError, ScheduleError) as error:
            more = "; of so few requests longer runs can tell (--seconds)" if rate < FEW else ""
            raise ResultError(f"{self._none_from(failed)}, and below it cannot be told: {error}{more}") from error

    def _holds(self, hold: Hold, rate: float) -> bool:
        """What fails while the generator was late is tried once more: the lateness may have been the reason."""
        for _ in range(2):
            row = hold(rate, len(self.rows) + 1)
            row["holds"] = holds_budget(row, self.budget_ms)
            self.rows.append(row)
            if row["holds"] or row["valid"]:
                return bool(row["holds"])
        raise ResultError(f"at {rate:g} requests/s {row['problems'][0]}")
