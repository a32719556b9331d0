"""Item features as the bins of a forest: computed once at export, and again to see that a bundle's are the right ones.

Wrong bins would be wrong scores with nothing else amiss, and a bundle's checksums only say that nobody changed them.
Loading recomputes those of SAMPLE items, spread over the catalogue, at the same cost whatever its size, and any mistake
that is not confined to a few items shows. `recserve check` and `recserve-export verify` recompute all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from recserve.kernels.features import ColumnValues, FeatureProgram, FeatureSchema, ItemArrays
from recserve.kernels.features.operations import Scope
from recserve.kernels.forest import Forest
from recserve.server.bundle import layout
from recserve.server.bundle.errors import BundleMismatchError
from recserve.server.pipeline.assemble import Candidates, Subject, assemble
from recserve.server.pipeline.types import History, no_rows

if TYPE_CHECKING:
    from recserve.server.bundle.reader import Bundle

BLOCK: Final = 65_536
"""Items that are binned at once."""
SAMPLE: Final = 512
"""Items whose bins are compared whenever a bundle is loaded."""


def features_read(forest: Forest, schema: FeatureSchema, scope: Scope) -> list[int]:
    """The features of one scope that some tree reads, ascending."""
    read = set(forest.column_features.tolist())
    return [feature for feature, its in enumerate(schema.scopes) if its == scope and feature in read]


def nobody(schema: FeatureSchema) -> Subject:
    """A request of a user whom nobody knows, at the beginning of time."""
    return Subject(
        time_us=0,
        known=False,
        user=ColumnValues.missing(schema.user_layout, 1),
        context=ColumnValues.missing(schema.context_layout, 1),
        history=History.empty(),
        history_rows=no_rows(),
        recent_rows=no_rows(),
    )


def item_bins(
    forest: Forest,
    schema: FeatureSchema,
    cardinalities: Mapping[str, int],
    items: ItemArrays,
    rows: NDArray[np.int64] | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """The bins of items, block by block: uint8 [n, columns], of the item features that the forest reads.

    Args:
        forest: reads the schema's features.
        schema: the feature definitions.
        cardinalities: the size of every vocabulary that the schema names.
        items: the catalogue's side of the features; vectors are not read.
        rows: which items, distinct; None: all.
    """
    features = features_read(forest, schema, "item")
    part = schema.select(features)
    program = FeatureProgram(part, cardinalities)
    wanted = np.arange(len(items.features)) if rows is None else rows
    for start in range(0, len(wanted), BLOCK):
        candidates = Candidates.given(wanted[start : start + BLOCK])
        values = program.compute(items, assemble(part, [nobody(schema)], [candidates], {}))
        yield forest.bin_matrix(values, features)


def check_item_bins(bundle: Bundle, forest: Forest, *, complete: bool) -> None:
    """Compare the bundle's bins with those of its catalogue.

    Args:
        bundle: has a forest set.
        forest: the set, which fits the bundle.
        complete: all items, or SAMPLE of them.

    Raises:
        BundleMismatchError: names the first item whose bins are others.
    """
    if bundle.item_bins is None:
        return
    size = bundle.catalogue.size
    rows = np.unique(np.linspace(0, size - 1, size if complete else min(SAMPLE, size)).astype(np.int64))
    items = ItemArrays(features=bundle.catalogue.features, times=bundle.catalogue.times, vectors={})
    start = 0
    for expected in item_bins(forest, bundle.schema, bundle.cardinalities, items, rows):
        block = rows[start : start + len(expected)]
        found = bundle.item_bins[block]
        different = np.flatnonzero((found != expected).any(axis=1))
        if different.size:
            first = int(different[0])
            raise BundleMismatchError(
                "the items' bins are not those of the catalogue's features: export the bundle again",
                file=layout.ITEM_BINS,
                field=f"row {block[first]}",
                expected=expected[first].tolist(),
                found=found[first].tolist(),
            )
        start += len(expected)
