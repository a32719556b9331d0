"""What a schema demands of the arrays that features are computed from, in words.

The kernel looks at the same (_buffers.pxi, _checks.pxi) in a fraction of the time and says no more than that something
does not fit: then `InputChecks` says what.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from recserve.kernels._arrays import check_array
from recserve.kernels.features._program import first_bad_code, first_bad_list_code, first_descent, first_outside
from recserve.kernels.features.batch import ColumnValues, FeatureBatch, ItemArrays
from recserve.kernels.features.definition import FeatureSchema
from recserve.kernels.features.specs import ColumnLayout, ColumnSizes


class InputChecks:
    """What a schema asks of its inputs. Immutable, shared by threads."""

    def __init__(self, schema: FeatureSchema, cardinalities: Mapping[str, int]) -> None:
        self._schema = schema
        self._events = len(schema.event_types)
        self._sources = len(schema.sources)
        self._user = _ColumnChecks("batch.user", schema.user_layout, cardinalities)
        self._context = _ColumnChecks("batch.context", schema.context_layout, cardinalities)

    def check(self, items: ItemArrays, batch: FeatureBatch) -> int:
        """Check everything that is read.

        Returns:
            How many candidates the batch has.

        Raises:
            TypeError: no NumPy array, or of another dtype; as all of these, it names the array.
            ValueError: of another shape, not C-contiguous, an index out of range, or offsets that do not fit.
        """
        item_count = self._check_items(items)
        requests = self._check_times(batch)
        check_array("batch.rows", batch.rows, np.int64, (None,))
        candidates = len(batch.rows)
        _offsets("batch.offsets", batch.offsets, requests, candidates)
        _within("batch.rows", batch.rows, 0, item_count)
        check_array("batch.known", batch.known, _flag_dtype(batch.known), (requests,))
        self._check_columns(batch, requests)
        self._check_history(batch, requests, item_count)
        check_array("batch.recent_rows", batch.recent_rows, np.int64, (None,))
        _offsets("batch.recent_offsets", batch.recent_offsets, requests, len(batch.recent_rows))
        _within("batch.recent_rows", batch.recent_rows, -1, item_count)
        check_array("batch.source_scores", batch.source_scores, np.float32, (candidates, self._sources))
        check_array("batch.source_ranks", batch.source_ranks, np.float32, (candidates, self._sources))
        self._check_user_vectors(items, batch, requests)
        return candidates

    def check_requests(self, batch: FeatureBatch) -> None:
        """Check what is read where no feature depends on the candidate; errors are those of `check`."""
        self._check_columns(batch, self._check_times(batch))

    def _check_times(self, batch: FeatureBatch) -> int:
        check_array("batch.time_us", batch.time_us, np.int64, (None,))
        return len(batch.time_us)

    def _check_columns(self, batch: FeatureBatch, requests: int) -> None:
        self._user.check(batch.user, requests)
        self._context.check(batch.context, requests)

    def _check_items(self, items: ItemArrays) -> int:
        check_array("items.features", items.features, np.float32, (None, len(self._schema.item_feature_columns)))
        count = len(items.features)
        check_array("items.times", items.times, np.int64, (count, len(self._schema.item_time_columns)))
        for space in self._schema.spaces:
            name = f'items.vectors["{space}"]'
            check_array(name, _entry(name, items.vectors, space), np.float32, (count, None))
        return count

    def _check_user_vectors(self, items: ItemArrays, batch: FeatureBatch, requests: int) -> None:
        for space in self._schema.dot_spaces:
            name = f'batch.user_vectors["{space}"]'
            dim = items.vectors[space].shape[1]
            check_array(name, _entry(name, batch.user_vectors, space), np.float32, (requests, dim))

    def _check_history(self, batch: FeatureBatch, requests: int, item_count: int) -> None:
        check_array("batch.history_rows", batch.history_rows, np.int64, (None,))
        entries = len(batch.history_rows)
        _offsets("batch.history_offsets", batch.history_offsets, requests, entries)
        _within("batch.history_rows", batch.history_rows, -1, item_count)
        check_array("batch.history_events", batch.history_events, np.int32, (entries,))
        _within("batch.history_events", batch.history_events, 0, self._events)
        check_array("batch.history_counts", batch.history_counts, np.float64, (entries,))
        check_array("batch.history_last_us", batch.history_last_us, np.int64, (entries,))


class _ColumnChecks:
    def __init__(self, name: str, layout: ColumnLayout, cardinalities: Mapping[str, int]) -> None:
        self._name = name
        self._layout = layout
        self._sizes = ColumnSizes.of(layout, cardinalities)

    def check(self, values: ColumnValues, requests: int) -> None:
        name, layout = self._name, self._layout
        check_array(f"{name}.numbers", values.numbers, np.float64, (requests, len(layout.numbers)))
        check_array(f"{name}.codes", values.codes, np.int32, (requests, len(layout.codes)))
        check_array(f"{name}.times", values.times, np.int64, (requests, len(layout.times)))
        check_array(f"{name}.list_codes", values.list_codes, np.int32, (None,))
        _offsets(f"{name}.list_offsets", values.list_offsets, requests * len(layout.lists), len(values.list_codes))
        self._check_codes(values)

    def _check_codes(self, values: ColumnValues) -> None:
        bad = first_bad_code(values.codes, self._sizes.codes)
        if bad is not None:
            column = self._layout.codes[bad[1]]
            raise ValueError(
                f'{self._name}.codes{list(bad)} of column "{column.name}" is {values.codes[bad]}; vocabulary '
                f'"{column.vocabulary}" has codes below {self._sizes.codes[bad[1]]}, and -1 is missing'
            )
        at = first_bad_list_code(values.list_codes, values.list_offsets, self._sizes.lists)
        if at >= 0:
            raise ValueError(
                f"{self._name}.list_codes[{at}] is {values.list_codes[at]}, which is no code of its column's vocabulary"
            )


def _entry(name: str, vectors: Mapping[str, NDArray[np.float32]], space: str) -> NDArray[np.float32]:
    if space not in vectors:
        raise ValueError(f"{name} is missing: the feature schema reads this space; there are {list(vectors)}")
    return vectors[space]


def _offsets(name: str, offsets: NDArray[np.int64], parts: int, total: int) -> None:
    """Check offsets that cut an array of `total` entries into `parts`."""
    check_array(name, offsets, np.int64, (parts + 1,))
    if offsets[0] != 0 or offsets[-1] != total:
        raise ValueError(f"{name}: must run from 0 to {total}, found {offsets[0]} to {offsets[-1]}")
    at = first_descent(offsets)
    if at >= 0:
        raise ValueError(f"{name}: must not descend, but [{at}] is {offsets[at]} after {offsets[at - 1]}")


def _within(name: str, values: NDArray[np.int32] | NDArray[np.int64], low: int, high: int) -> None:
    at = first_outside(values, low, high)
    if at >= 0:
        raise ValueError(f"{name}[{at}] is {values[at]}; expected {low} <= value < {high}")


def _flag_dtype(flags: NDArray[np.bool_] | NDArray[np.uint8]) -> type[np.bool_] | type[np.uint8]:
    return np.uint8 if getattr(flags, "dtype", None) == np.uint8 else np.bool_
