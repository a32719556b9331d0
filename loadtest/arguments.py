"""What arguments of the command line may be."""

from __future__ import annotations

import argparse
from typing import Final

from recserve.loadtest.generator.wire import MAX_TIMEOUT_S


def positive(text: str) -> float:
    """A number above 0."""
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return value


LEAST_FACTOR: Final = 1.01
"""Rates have three digits: by less, one could be equal to the one before."""


def rising(text: str) -> float:
    """A factor from rate to rate."""
    value = _number(text)
    if not LEAST_FACTOR <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a factor from {LEAST_FACTOR}, so that rates rise, found {text!r}")
    return value


def share(text: str) -> float:
    """A number above 0 and below 1."""
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0 and below 1, found {text!r}")
    return value


LEAST_PRECISION: Final = 0.001
"""Rates have four digits: by less, there is none between two of them, and a search would try the same one for ever."""


def precision(text: str) -> float:
    """A share of a rate, to which another one is found."""
    value = share(text)
    if value < LEAST_PRECISION:
        raise argparse.ArgumentTypeError(
            f"expected a share from {LEAST_PRECISION}, as rates have four digits, found {text!r}"
        )
    return value


def share_or_all(text: str) -> float:
    """A number above 0 and at most 1."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0 and at most 1, found {text!r}")
    return value


def not_negative(text: str) -> float:
    """A number from 0."""
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number from 0, found {text!r}")
    return value


def pause(text: str) -> float:
    """Seconds, from 0 to what a deadline can be."""
    value = _number(text)
    if not 0 <= value <= MAX_TIMEOUT_S:
        raise argparse.ArgumentTypeError(f"expected 0 to {MAX_TIMEOUT_S:g} seconds, found {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, found {text!r}") from None


def whole(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)


def natural(text: str) -> int:
    """A whole number from 0, such as a seed."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, found {text!r}")
    return int(text)


def cores(text: str) -> tuple[int, ...]:
    """Numbers with commas between them."""
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected numbers of cores, such as 0,1; found {text!r}")
    return tuple(map(int, parts))
