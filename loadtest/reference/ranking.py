"""The forest of a reference workload: lambdarank over candidates that the space really retrieves.

A group is 100 of a user's 500 nearest items, with features computed by the product's own program; labels come from the
same truth as those of the forest benchmark, over the standardised features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import lightgbm
import numpy as np
from numpy.typing import NDArray

from recserve.exporters.catalogue import read_items
from recserve.exporters.snapshot import UserTable, read_users
from recserve.exporters.spec import CalibrationData, RankerSpec
from recserve.exporters.strings import make_string_table
from recserve.kernels import ids
from recserve.kernels.features import ColumnValues, FeatureProgram, FeatureSchema, ItemArrays, recent_items
from recserve.kernels.vectors import search
from recserve.loadtest.clusters import DIM
from recserve.loadtest.forest.recipe import GROUP, Truth, lambdarank
from recserve.loadtest.reference.market import DAY_US, NOW_US, SIZES, Items, Users, catalogue_spec
from recserve.loadtest.reference.recipe import Recipe
from recserve.loadtest.reference.schema import SPACE
from recserve.loadtest.reference.tower import UserTower
from recserve.server.pipeline.assemble import Candidates, Subject, assemble
from recserve.server.pipeline.candidates import with_origins
from recserve.server.pipeline.sources import Proposal
from recserve.server.pipeline.types import History, no_rows

CANDIDATES: Final = 500
LEAVES: Final = 64
OBJECTIVE: Final = "purchase"

_BATCH: Final = 64  # users that are searched for together
_GOOD: Final = 2  # labels from it on count as a purchase in the calibration
_STREAM: Final = 100  # of random numbers; market.py has its own


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Rows in groups of 100: features float32 [n, 100], labels int64 [n] from 0 to 4."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


class ExampleMaker:
    """Makes examples of users.

    Args:
        schema: of the features.
        items: of the workload.
        vectors: float32 [items, 128]; may be mapped.
        users: of the workload.
        tower: their tower.
    """

    def __init__(
        self, schema: FeatureSchema, items: Items, vectors: NDArray[np.float32], users: Users, tower: UserTower
    ) -> None:
        known = read_items(catalogue_spec(items), schema)
        table = make_string_table(known.ids, known.ids_name)
        self._keys, self._slots = table.keys, table.slots
        self._schema = schema
        self._items = ItemArrays(known.features, known.times, {SPACE: vectors})
        self._program = FeatureProgram(schema, {name: len(values) for name, values in known.vocabularies.items()})
        self._vocabularies = known.vocabularies
        self._users = users
        self._tower = tower

    def features(self, count: int, random: np.random.Generator, advance: Callable[[int], None]) -> NDArray[np.float32]:
        """float32 [100 * count, 100]: a group for each of the first users."""
        known = read_users(self._users.first(count), self._schema, self._vocabularies)
        vectors = self._tower.vectors(self._users.tastes[:count])
        parts = []
        for start in range(0, count, _BATCH):
            rows = range(start, min(start + _BATCH, count))
            subjects = [self._subject(known, row, vectors[row], random) for row in rows]
            found = search(self._items.vectors[SPACE], vectors[rows.start : rows.stop], CANDIDATES, None)
            chosen = [_some(with_origins((SPACE,), (Proposal(*each),), each[0]), random) for each in found]
            batch = assemble(self._schema, subjects, chosen, {SPACE: DIM})
            parts.append(self._program.compute(self._items, batch))
            advance(len(rows))
        return np.concatenate(parts)

    def _subject(self, known: UserTable, row: int, vector: NDArray[np.float32], random: np.random.Generator) -> Subject:
        part = slice(int(known.history.offsets[row]), int(known.history.offsets[row + 1]))
        history = History(known.history.keys, known.history.events, known.history.counts, known.history.last_us)
        mine = history.slice(part)
        rows = ids.lookup(self._keys, self._slots, np.ascontiguousarray(mine.keys))
        return Subject(
            time_us=NOW_US + int(random.uniform(0, 7) * DAY_US),
            known=True,
            user=known.columns.row(row),
            context=self._context(random),
            history=mine,
            history_rows=rows,
            recent_rows=recent_items(no_rows(), rows),
            vectors={SPACE: vector},
        )

    def _context(self, random: np.random.Generator) -> ColumnValues:
        layout = self._schema.context_layout
        chosen = {column.name: int(random.integers(SIZES[column.vocabulary])) for column in layout.codes}
        return ColumnValues.missing(layout, 1).with_overrides(layout, chosen)


def make_examples(maker: ExampleMaker, recipe: Recipe, advance: Callable[[int], None]) -> tuple[Examples, Examples]:
    """What the forest learns from, and what calibrates it."""
    random = np.random.default_rng([recipe.seed, _STREAM])
    features = maker.features(recipe.groups + recipe.held_out, random, advance)
    labels = Truth.draw(random).labels(standardised(features), random)
    learned = GROUP * recipe.groups
    return Examples(features[:learned], labels[:learned]), Examples(features[learned:], labels[learned:])


def train(recipe: Recipe, examples: Examples, names: Sequence[str], advance: Callable[[], None]) -> lightgbm.Booster:
    """The forest; `advance` is called after each tree."""
    return lambdarank(
        examples.features,
        examples.labels,
        trees=recipe.trees,
        leaves=LEAVES,
        seed=recipe.seed,
        names=names,
        advance=advance,
    )


def ranker_spec(booster: lightgbm.Booster, held_out: Examples) -> RankerSpec:
    """The forest with its calibration: lambdarank's margins have no scale of their own."""
    labels = (held_out.labels >= _GOOD).astype(np.float64)
    data = CalibrationData(features=held_out.features, labels=labels)
    return RankerSpec(objective=OBJECTIVE, model=booster, calibration="platt", calibration_data=data)


def standardised(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Columns of mean 0 and standard deviation 1, cut at 3 of them; missing values and constants are 0."""
    wide = features.astype(np.float64)
    centred = wide - np.nanmean(wide, axis=0)
    scale = np.nanstd(wide, axis=0)
    scaled = np.divide(centred, scale, out=np.zeros_like(centred), where=scale > 0)
    unit: NDArray[np.float32] = np.clip(np.nan_to_num(scaled), -3, 3).astype(np.float32)
    return unit


def _some(candidates: Candidates, random: np.random.Generator) -> Candidates:
    """A group's worth of them."""
    chosen = random.choice(len(candidates.rows), GROUP, replace=False)
    return Candidates(candidates.rows[chosen], candidates.sources, candidates.scores[chosen], candidates.ranks[chosen])
