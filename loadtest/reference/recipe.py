"""Which workloads there are, and what makes two of them the same."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import lightgbm
import numpy as np

from recserve.loadtest.forest.recipe import GROUP
from recserve.loadtest.reference.schema import reference_schema
from recserve.server.bundle.layout import SCHEMA_VERSION

GENERATION: Final = 1
"""Raise it whenever the same recipe makes another workload, so that folders of before are not taken for it."""
NOW: Final = datetime.datetime(2026, 3, 4, 12, tzinfo=datetime.UTC)
"""The moment that the workloads' users live in: behind all of their history, and the server's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One workload.

    Attributes:
        name: of the workload and its bundle.
        items, users: how many.
        trees: of the forest, of 64 leaves.
        groups: of 100 rows that it is trained on.
        held_out: groups that calibrate it.
        seed: of everything random.
        recall: that the index is tuned to, for as many answers as there are candidates.
    """

    name: str
    items: int
    users: int
    trees: int
    groups: int = 600
    held_out: int = 60
    seed: int = 1
    recall: float = 0.95

    def __post_init__(self) -> None:
        needed = self.groups + self.held_out
        if self.users < needed:
            raise ValueError(f"{self.users} users are fewer than the {needed} that the forest learns from")
        if self.items < GROUP:
            raise ValueError(f"{self.items} items are fewer than the {GROUP} of a training group")

    def config(self) -> str:
        """The server's configuration; paths are relative to the file."""
        return _CONFIG.format(name=self.name, clock=f"{NOW:%Y-%m-%dT%H:%M:%SZ}")

    def scenario(self) -> str:
        """What is asked, and by whom."""
        return _SCENARIO.format(name=self.name)

    def document(self) -> dict[str, Any]:
        """All that the workload depends on, for JSON."""
        return {
            **asdict(self),
            "generation": GENERATION,
            "bundle_format": SCHEMA_VERSION,
            "config": self.config(),
            "scenario": self.scenario(),
            "features": json.loads(reference_schema().to_json()),
            "versions": {"lightgbm": lightgbm.__version__, "numpy": np.__version__},
        }

    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the document: folders of the same digest hold the same workload."""
        return hashlib.sha256(json.dumps(self.document(), sort_keys=True).encode()).hexdigest()


RECIPES: Final[Mapping[str, Recipe]] = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="small", items=100_000, users=100_000, trees=300),
        Recipe(name="reference", items=1_000_000, users=100_000, trees=1000),
        Recipe(name="large", items=10_000_000, users=1_000_000, trees=1000),
    )
}

_CONFIG: Final = """\
# The reference workload "{name}". `recserve serve --config recserve.toml`

# Behind all that the users have done; ages and hours are the same whenever it is measured.
[server]
clock = {clock}

[[bundles]]
name = "{name}"
path = "bundle"

[state]
snapshot = "snapshot"

# The user tower runs for every request.
[user_vector_cache]
entries = 0

[placements.default]
candidates = 500
sources = [{{ name = "ann", weight = 1.0 }}]
caps = [{{ attribute = "category", max = 3 }}]
mmr_weight = 0.8
diversity_space = "ann"
"""

_SCENARIO: Final = """\
description = "The reference workload {name}: Recommend alone, 20 items, in the default placement."

[users]
zipf = 1.0

[[requests]]
method = "Recommend"
count = 20
device = "phone"
countries = ["AT", "CH", "DE", "FR", "GB", "IT"]
deadline_ms = 1000
"""
