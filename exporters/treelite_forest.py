"""Treelite models in the common form, and what they answer by themselves.

Treelite holds what XGBoost and scikit-learn decide; how they add leaves up follows from where the model comes from:

    float32 leaves (XGBoost)       inputs, leaves and sums are float32; a sum begins with the base score
    float64 leaves (scikit-learn)  sums are float64; boosting begins with the initial prediction, forests divide by
                                   their trees at the end; inputs are rounded to float32, but for histogram boosting

Treelite's own predictor, GTIL, finds the same leaves and adds the base score last, which ends in other bits; so
`margins` takes the leaves from GTIL and adds them in the source library's order.

Models that `exporters.source_models` converted carry a note of it in their attributes. Others may be LightGBM's, whose
meaning Treelite does not hold completely; see `_check_origin`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.errors import ExportError
from recserve.exporters.forest_decisions import NUMERIC, ZERO_AS_IS, Nodes, single_threshold
from recserve.exporters.forest_source import Output, SourceForest, TreeShape
from recserve.exporters.lightgbm_text import reaches_each_once
from recserve.kernels._forest_arrays import round_down
from recserve.kernels.limits import LARGEST_EXACT_INTEGER

if TYPE_CHECKING:
    import treelite

Array = NDArray[Any]

NOTE: Final = "recserve"
"""Key of our note among a model's attributes."""
_LEAF, _CATEGORICAL = 0, 2
"""Treelite's TreeNodeType."""
_LESS, _LESS_OR_EQUAL = 2, 3
"""Its Operator."""
_LINK_OF_PROBABILITIES: Final = "identity_multiclass"
_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class Note:
    """What a converted model remembers of its source."""

    source: str
    """Such as "scikit-learn RandomForestClassifier"."""
    single_inputs: bool
    """Whether the library rounds its inputs to float32."""
    names: tuple[str, ...] = ()
    """Of its features; empty: it was trained without names."""


def write_note(model: treelite.Model, note: Note) -> None:
    """Let a model remember where it comes from, in its checkpoints too."""
    entry = {"source": note.source, "single_inputs": note.single_inputs, "names": list(note.names)}
    model.get_header_accessor().set_field("attributes", json.dumps({**_attributes(model), NOTE: entry}))


def read_note(model: treelite.Model) -> Note | None:
    """The note that `write_note` left, if any."""
    entry = _attributes(model).get(NOTE)
    if entry is None:
        return None
    return Note(str(entry["source"]), bool(entry["single_inputs"]), tuple(map(str, entry["names"])))


def _attributes(model: treelite.Model) -> dict[str, Any]:
    return dict(json.loads(str(model.get_header_accessor().get_field("attributes")) or "{}"))


class TreeliteForest:
    """A Treelite model, checked, and read into arrays.

    Args:
        model: of XGBoost or scikit-learn origin.

    Raises:
        ExportError: the model cannot be followed exactly; says why.
    """

    def __init__(self, model: treelite.Model) -> None:
        self.model = model
        self.note = read_note(model)
        self.features = int(model.num_feature)
        self._header = model.get_header_accessor()
        self._trees = [_Tree.read(model.get_tree_accessor(number)) for number in range(model.num_tree)]
        self.single = model.output_type == "float32"
        self.single_inputs = self.note.single_inputs if self.note else self.single or self._averages
        self._check()
        self.forest = SourceForest(
            features=self.features,
            nodes=self._nodes(),
            trees=[tree.shape() for tree in self._trees],
            outputs=[self._output(output) for output in range(self.outputs)],
            single=self.single,
        )

    @property
    def outputs(self) -> int:
        """Margins of a row: of every target, or of every class."""
        targets, classes = self._shape
        return targets * classes

    @property
    def probabilities(self) -> bool:
        """Whether margins are the classes' probabilities, as in forests of classifiers."""
        return str(self._header.get_field("postprocessor")) == _LINK_OF_PROBABILITIES

    @property
    def sigmoid(self) -> float | None:
        """The slope of a binary model's own sigmoid; None where it has none."""
        if str(self._header.get_field("postprocessor")) != "sigmoid":
            return None
        return float(self._field("sigmoid_alpha")[0])

    def gains(self) -> NDArray[np.float64]:
        """How much the splits on each feature gained in training, together: float64 [features]."""
        total = np.zeros(self.features)
        for tree in self._trees:
            np.add.at(total, tree.features[tree.inner], tree.gains[tree.inner])
        return total

    def margins(self, rows: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
        """What the model answers: leaves as GTIL finds them, added in the source library's order and precision.

        Args:
            rows: [n, features].

        Returns:
            float64 [n, outputs].
        """
        found = np.empty((len(rows), self.outputs))
        for start in range(0, len(rows), _BLOCK):
            found[start : start + _BLOCK] = self._sums(rows[start : start + _BLOCK])
        return found

    def _sums(self, rows: Array) -> Array:
        import treelite  # noqa: PLC0415  slow to import

        with np.errstate(over="ignore"):
            inputs = rows.astype(np.float32) if self.single_inputs else rows
        wanted = np.float32 if self.single else np.float64
        leaves = treelite.gtil.predict_leaf(self.model, np.ascontiguousarray(inputs, wanted), nthread=1)
        leaves = np.asarray(leaves).reshape(len(rows), len(self._trees)).astype(np.int64)
        sums = np.empty((len(rows), self.outputs), wanted)
        sums[:] = self._initials()
        for number, tree in enumerate(self._trees):
            for output in self._outputs_of(number):
                sums[:, output] += tree.value_of(leaves[:, number], self._column(output))
        return sums.astype(np.float64) / self._divisor

    # -------------------------------------------------------------------------------------------------------- header

    def _field(self, name: str) -> Array:
        return np.array(self._header.get_field(name))

    @property
    def _shape(self) -> tuple[int, int]:
        return int(self._field("num_target")[0]), int(self._field("num_class").max(initial=1))

    @property
    def _averages(self) -> bool:
        return bool(self._field("average_tree_output")[0])

    @property
    def _divisor(self) -> float:
        return float(len(self._trees)) if self._averages else 1.0

    def _initials(self) -> Array:
        base = self._field("base_scores").astype(np.float64)
        # The log-odds of 0.5 are -0.0, and adding +0.0 changes nothing else: sums that start at +0.0 never become -0.0.
        return (base.astype(np.float32).astype(np.float64) if self.single else base) + 0.0

    def _outputs_of(self, number: int) -> Sequence[int]:
        """The outputs that a tree has a part in."""
        target, kind = (int(self._field(name)[number]) for name in ("target_id", "class_id"))
        every = range(self.outputs)
        if self._shape[0] > 1:
            return every if target < 0 else [target]
        return every if kind < 0 else [kind]

    def _column(self, output: int) -> int:
        """Where an output's value stands in the leaves that hold several."""
        return output if len(self._trees) and self._wide else 0

    @property
    def _wide(self) -> bool:
        return int(self._field("leaf_vector_shape").prod()) > 1

    # -------------------------------------------------------------------------------------------------- the common form

    def _output(self, output: int) -> Output:
        trees = [
            (number, tree.value_of(tree.leaves, self._column(output)).astype(np.float64))
            for number, tree in enumerate(self._trees)
            if output in self._outputs_of(number)
        ]
        return Output(trees, float(self._initials()[output]), self._divisor)

    def _nodes(self) -> Nodes:
        def join(name: str, dtype: type[np.generic]) -> Array:
            parts = [getattr(tree, name)[tree.inner].astype(dtype) for tree in self._trees]
            return np.concatenate([np.zeros(0, dtype), *parts])

        categorical = join("categorical", np.bool_)
        sets = np.full(len(categorical), NUMERIC)
        sets[categorical] = np.arange(int(categorical.sum()))
        return Nodes(
            features=join("features", np.int64),
            thresholds=np.where(
                categorical, 0.0, self._thresholds(join("thresholds", np.float64), join("cmp", np.int64))
            ),
            nan_left=join("default_left", np.bool_) != join("swapped", np.bool_),
            zero=np.full(len(categorical), ZERO_AS_IS),
            sets=sets,
            categories=[found for tree in self._trees for found in tree.category_sets()],
            single=np.ones(len(categorical), np.bool_),
        )

    def _thresholds(self, thresholds: Array, cmp: Array) -> Array:
        """As `value <= threshold` of a double."""
        if not self.single_inputs:
            return np.where(cmp == _LESS, np.nextafter(thresholds, -np.inf), thresholds)
        nearest = round_down(thresholds)
        exact = nearest.astype(np.float64) == thresholds
        below = np.where((cmp == _LESS) & exact, np.nextafter(nearest, np.float32(-np.inf)), nearest)
        return single_threshold(below.astype(np.float32))

    # --------------------------------------------------------------------------------------------------------- checks

    def _check(self) -> None:
        if not self._trees:
            raise ExportError("the model has no trees: train it before it is exported")
        self._check_origin()
        if min(self._shape) < 1 or (self._shape[0] > 1 and self._shape[1] > 1):
            raise ExportError("the model has several targets of several classes each: train a model for each target")
        if self.single and self._averages:
            raise ExportError(
                "the model averages trees of float32 leaves, which neither XGBoost nor scikit-learn does, so the order "
                "of its sums is not known"
            )
        if not np.isfinite(self._initials()).all() or len(self._initials()) != self.outputs:
            raise ExportError(f"the model has no finite base score for each of its {self.outputs} outputs")
        for number, tree in enumerate(self._trees):
            for problem in self._problems(tree):
                raise ExportError(f"tree {number} {problem}")

    def _check_origin(self) -> None:
        """Refuse what may be LightGBM's.

        Its trees look like those of scikit-learn's histogram gradient boosting (float64, without sums of Hessians or
        samples), but have no base score. Treelite does not hold which zeros LightGBM takes for missing.
        """
        if str(self._header.get_field("postprocessor")) == "exponential_standard_ratio":
            raise ExportError("the model is an isolation forest, whose path lengths are no margins")
        if self.note or self.single or any(tree.weighted for tree in self._trees):
            return
        if not self._field("base_scores").any() or any(tree.categorical.any() for tree in self._trees):
            raise ExportError(
                "the Treelite model may come from LightGBM, whose missing values and categories it does not hold "
                "exactly: give the LightGBM model itself; a model of scikit-learn's histogram gradient boosting must "
                "be converted by recserve.exporters.source_models.to_treelite"
            )

    def _problems(self, tree: _Tree) -> Iterator[str]:
        if not tree.whole(self.features, self.outputs if self._wide else 1):
            yield "is no tree, or refers to what does not exist"
            return
        numeric = tree.inner[~tree.categorical[tree.inner]]
        if not np.isin(tree.cmp[numeric], (_LESS, _LESS_OR_EQUAL)).all():
            yield 'compares otherwise than by "<" or "<="'
        unordered = np.isnan(tree.thresholds[numeric]) | (
            (tree.cmp[numeric] == _LESS) & np.isneginf(tree.thresholds[numeric])
        )
        if unordered.any():
            yield "has a threshold that no number is below: train it again on finite features"
        if tree.categorical.any() and not self.single:
            yield (
                "has category sets in the way of scikit-learn's histogram gradient boosting, which takes unseen "
                "categories for missing, and Treelite does not hold that: train with LightGBM or XGBoost"
            )
        if tree.largest_category >= LARGEST_EXACT_INTEGER:
            yield f"has category {tree.largest_category}, which XGBoost does not accept: number them from 0"


def _within(numbers: Array, end: int) -> bool:
    return bool(((numbers >= 0) & (numbers < end)).all())


@dataclass(frozen=True, slots=True, eq=False)
class _Tree:
    """Treelite's arrays by node, copied: theirs live no longer than the model."""

    left: Array
    right: Array
    features: Array
    thresholds: Array
    cmp: Array
    default_left: Array
    categorical: Array
    swapped: Array
    """Category nodes whose set goes right."""
    values: Array
    vectors: Array
    vector_bounds: Array
    gains: Array
    categories: Array
    category_bounds: Array
    weighted: bool
    inner: Array
    """Nodes with children."""
    leaves: Array

    @classmethod
    def read(cls, accessor: treelite.model.TreeAccessor) -> _Tree:
        def field(name: str) -> Array:
            return np.array(accessor.get_field(name))

        def bounds(name: str) -> Array:
            return np.stack((field(f"{name}_begin"), field(f"{name}_end")), axis=1).astype(np.int64)

        kinds = field("node_type")
        gains = field("gain").astype(np.float64)
        right = field("category_list_right_child").astype(bool)
        return cls(
            left=field("cleft").astype(np.int64),
            right=field("cright").astype(np.int64),
            features=field("split_index").astype(np.int64),
            thresholds=field("threshold"),
            cmp=field("cmp").astype(np.int64),
            default_left=field("default_left").astype(bool),
            categorical=kinds == _CATEGORICAL,
            swapped=(kinds == _CATEGORICAL) & right,
            values=field("leaf_value"),
            vectors=field("leaf_vector"),
            vector_bounds=bounds("leaf_vector"),
            gains=gains if len(gains) else np.zeros(len(kinds)),
            categories=field("category_list").astype(np.int64),
            category_bounds=bounds("category_list"),
            weighted=len(field("sum_hess")) > 0,
            inner=np.flatnonzero(kinds != _LEAF),
            leaves=np.flatnonzero(kinds == _LEAF),
        )

    @property
    def largest_category(self) -> int:
        """-1 where there is none."""
        return int(self.categories.max(initial=-1))

    def whole(self, features: int, width: int) -> bool:
        """Whether it is a tree over so many features, with so many values at each leaf."""
        own = self.features[self.inner]
        children = np.concatenate((self.left[self.inner], self.right[self.inner]))
        if not (_within(own, features) and _within(children, len(self.left))):
            return False
        shape = self.shape()
        has_values = width == 1 or bool((np.diff(self.vector_bounds[self.leaves], axis=1) == width).all())
        return has_values and reaches_each_once(shape.left.tolist(), shape.right.tolist())

    def shape(self) -> TreeShape:
        """Inner nodes and leaves numbered apart; what goes left of a category node is its set."""
        number = np.empty(len(self.left), np.int64)
        number[self.inner] = np.arange(len(self.inner))
        number[self.leaves] = ~np.arange(len(self.leaves))
        left, right = number[self.left[self.inner]], number[self.right[self.inner]]
        swapped = self.swapped[self.inner]
        return TreeShape(np.where(swapped, right, left), np.where(swapped, left, right))

    def value_of(self, nodes: Array, column: int) -> Array:
        """The values of some leaves."""
        wide = len(self.vectors) > 0
        found: Array = self.vectors[self.vector_bounds[nodes, 0] + column] if wide else self.values[nodes]
        return found

    def category_sets(self) -> Iterator[Array]:
        """Of each category node, ascending."""
        for node in np.flatnonzero(self.categorical):
            start, end = self.category_bounds[node]
            yield np.unique(self.categories[start:end])
