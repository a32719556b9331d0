"""How large the demo is."""

from __future__ import annotations

from dataclasses import dataclass

from recserve.exporters.demo.words import CATEGORIES

_RANGES = {
    "items": (5 * len(CATEGORIES), 1_000_000),
    "users": (50, 1_000_000),
    "events": (1_000, 50_000_000),
    "days": (30, 3650),
    "factors": (4, 512),
    "als_iterations": (1, 100),
    "tower_epochs": (1, 1000),
    "train_requests": (50, 1_000_000),
    "held_out_requests": (50, 1_000_000),
    "trees": (1, 5000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSizes:
    """Sizes of the simulated marketplace and of its models; the defaults are the demo's.

    Raises:
        ValueError: one or more sizes are out of range; all of them are named.
    """

    items: int = 20_000
    users: int = 10_000
    events: int = 1_000_000
    """Views, cart additions and purchases, roughly."""
    days: int = 90
    factors: int = 32
    """Dimension of the spaces "als" and "ann"."""
    als_iterations: int = 12
    tower_epochs: int = 15
    train_requests: int = 5_000
    """Sessions whose impressions and candidates the rankers learn from."""
    held_out_requests: int = 1_500
    """Later sessions: half of them calibrate, half measure."""
    trees: int = 100
    """Per ranker, of 31 leaves."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {getattr(self, name)}, must be {low} to {high}"
            for name, (low, high) in _RANGES.items()
            if not low <= getattr(self, name) <= high
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
