"""LightGBM's model text: what other readers of it drop, and what cannot be followed exactly.

The text is a header of `key=value` lines, then one block of such lines for each tree, whose sizes in bytes the header
lists. It is read here before LightGBM sees it, because a truncated or edited text makes LightGBM end the process.

A node's decision_type is a bit field: bit 0 a category set instead of a threshold, bit 1 missing values go left, bits 2
and 3 the missing type (`MissingType`).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.errors import ExportError
from recserve.kernels.limits import LARGEST_EXACT_INTEGER

_INTEGER = re.compile(r"-?[0-9]{1,18}")


class MissingType(enum.IntEnum):
    """What a numeric node takes for missing."""

    NONE = 0
    """Nothing: NaN is read as 0.0."""
    ZERO = 1
    """Zero and NaN."""
    NAN = 2
    """NaN."""


_LARGEST_DECISION = MissingType.NAN << 2 | 3


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """The decisions of one tree: arrays by node, empty where it is a single leaf."""

    features: NDArray[np.int64]
    thresholds: NDArray[np.float64]
    """Of category nodes: the number of the node's set."""
    decisions: NDArray[np.int64]
    left: NDArray[np.int64]
    """The child: a node, or where it is negative the leaf ~child."""
    right: NDArray[np.int64]
    set_bounds: NDArray[np.int64]
    """Set i is `set_words[set_bounds[i] : set_bounds[i + 1]]`."""
    set_words: NDArray[np.int64]
    """Words of 32 bits. Bit b of word w: category 32 * w + b goes left."""
    leaf_values: NDArray[np.float64]
    linear: bool

    @property
    def categorical(self) -> NDArray[np.bool_]:
        """Which nodes ask for a category set."""
        return (self.decisions & 1).astype(bool)

    @property
    def missing_types(self) -> NDArray[np.int64]:
        """`MissingType` of each node; without meaning for category nodes."""
        return self.decisions >> 2 & 3

    def category_sets(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """(feature, the categories that go left) of each category node."""
        for node in np.flatnonzero(self.categorical):
            number = int(self.thresholds[node])
            words = self.set_words[self.set_bounds[number] : self.set_bounds[number + 1]]
            bits = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little")
            yield int(self.features[node]), np.flatnonzero(bits)


@dataclass(frozen=True, slots=True, eq=False)
class ForestText:
    """A model text, parsed as far as its decisions."""

    header: Mapping[str, str]
    """Lines without a value, such as average_output, have an empty one."""
    trees: Sequence[Tree]

    @property
    def features(self) -> int:
        """How many columns the model was trained on."""
        return int(self.header["max_feature_idx"]) + 1

    @property
    def feature_names(self) -> list[str]:
        """Their names, blanks replaced by underscores; Column_0, Column_1, … where it was trained without names."""
        return self.header["feature_names"].split()


@dataclass(frozen=True, slots=True)
class InputRules:
    """How the features have to be prepared for compiled code; see NativeForest in manifest.proto."""

    nan_to_zero: tuple[int, ...]
    categorical: tuple[int, ...]


def parse_forest(text: str) -> ForestText:
    """Parse a model text.

    Returns:
        The forest. Its trees are trees, and every number of a feature, node, leaf or set is one that there is.

    Raises:
        ExportError: it is no LightGBM model text, or it was truncated or edited.
    """
    head, _, body = text.encode().partition(b"\n\n")
    header = _fields(head.decode())
    if not head.startswith(b"tree\n") or not {"max_feature_idx", "feature_names", "tree_sizes"} <= header.keys():
        raise ExportError("not a LightGBM model text: expected the line 'tree', then a header that ends in tree_sizes")
    features, sizes = _header_numbers(header)
    trees = []
    for number, size in enumerate(sizes):
        block, body = body[:size], body[size:]
        trees.append(_parse_tree(number, block, features))
    if not body.lstrip(b"\n").startswith(b"end of trees"):
        raise ExportError(f"the model text does not end after its {len(trees)} trees: it was truncated or edited")
    return ForestText(header, trees)


def check_ranker(forest: ForestText) -> None:
    """Refuse what cannot rank: forests that do not sum plain leaves of float32 features to one output.

    Raises:
        ExportError: several outputs, no trees, linear leaves, or categories beyond float32; the message tells what to
            train instead.
    """
    outputs = forest.header.get("num_tree_per_iteration", "1")
    if outputs != "1":
        raise ExportError(
            f"the model has {outputs} outputs ({forest.header.get('objective')}), a ranker has one per objective: "
            "train a booster for each"
        )
    if not forest.trees:
        raise ExportError("the model has no trees: train it before it is exported")
    for number, tree in enumerate(forest.trees):
        if tree.linear:
            raise ExportError(f"tree {number} has linear leaves, which no engine follows: train with linear_tree=false")
        for feature, categories in tree.category_sets():
            if categories.size and categories[-1] > LARGEST_EXACT_INTEGER:
                raise ExportError(
                    f"feature {_named(forest, feature)}: category {categories[-1]} of tree {number} is above 2**24, "
                    "where float32 no longer tells neighbours apart: number the categories from 0"
                )


def input_rules(forest: ForestText) -> InputRules:
    """Check that TL2cgen's code can follow the forest exactly, and say how it wants its inputs.

    Raises:
        ExportError: what `check_ranker` refuses, averaged trees, zeros taken for missing, or a feature that is both
            number and category; the message tells what to train instead.
    """
    check_ranker(forest)
    if "average_output" in forest.header:
        raise ExportError(
            "the model averages its trees (boosting=rf), while LightGBM's raw score is their sum: train with "
            "boosting=gbdt or dart"
        )
    nodes = _Nodes.of(forest)
    categorical = np.unique(nodes.features[nodes.categorical])
    numeric = np.unique(nodes.features[~nodes.categorical])
    for feature in np.intersect1d(categorical, numeric):
        raise ExportError(f"feature {_named(forest, feature)} is a number in some trees and a category in others")
    takes_zero = ~nodes.categorical & (nodes.missing_types == MissingType.ZERO)
    for feature in nodes.features[takes_zero]:
        raise ExportError(
            f"feature {_named(forest, feature)} takes zeros for missing, which compiled code does not follow: train "
            "with zero_as_missing=false and NaN for what is missing"
        )
    # A feature may have nodes of both types left, where training went on with other data. It stays missing: in a node
    # that reads NaN as 0.0, Treelite sends missing values the way of 0.0.
    takes_nan = ~nodes.categorical & (nodes.missing_types == MissingType.NAN)
    nan_to_zero = np.setdiff1d(numeric, nodes.features[takes_nan])
    return InputRules(tuple(map(int, nan_to_zero)), tuple(map(int, categorical)))


def _fields(lines: str) -> dict[str, str]:
    return {key: value for key, _, value in (line.partition("=") for line in lines.split("\n"))}


def _integers(text: str) -> NDArray[np.int64]:
    """Whole numbers as LightGBM writes them; Python would read more than LightGBM does, such as 1_000."""
    for word in text.split():
        if not _INTEGER.fullmatch(word):
            raise ValueError(f"{word!r} is no whole number")
    return np.array(text.split(), np.int64)


def _header_numbers(header: Mapping[str, str]) -> tuple[int, list[int]]:
    """How many features there are, and the size of each tree's block in bytes."""
    try:
        (last,), sizes = _integers(header["max_feature_idx"]), _integers(header["tree_sizes"])
    except ValueError as error:
        raise ExportError(f"the header of the model text cannot be read: it was edited ({error})") from error
    if len(header["feature_names"].split()) != last + 1 or (sizes < 0).any():
        raise ExportError(
            f"the header of the model text contradicts itself: it was edited (max_feature_idx={last} and "
            f"{len(header['feature_names'].split())} feature names, tree_sizes={header['tree_sizes']})"
        )
    return int(last) + 1, sizes.tolist()


def _parse_tree(number: int, block: bytes, features: int) -> Tree:
    """One tree's block; refuses blocks whose arrays are not those of a tree over so many features."""
    fields = _fields(block.decode(errors="replace"))
    try:
        leaves, sets = int(fields["num_leaves"]), int(fields["num_cat"])
        tree = Tree(
            features=_integers(fields["split_feature"]),
            thresholds=np.array(fields["threshold"].split(), np.float64),
            decisions=_integers(fields["decision_type"]),
            left=_integers(fields["left_child"]),
            right=_integers(fields["right_child"]),
            set_bounds=_integers(fields.get("cat_boundaries", "0")),
            set_words=_integers(fields.get("cat_threshold", "")),
            leaf_values=np.array(fields["leaf_value"].split(), np.float64),
            linear=fields.get("is_linear", "0") != "0",
        )
    except (KeyError, ValueError) as error:
        raise ExportError(
            f"tree {number} of the model text cannot be read: it was truncated or edited ({error})"
        ) from error
    named = block.startswith(f"Tree={number}\n".encode())
    if not (named and len(tree.leaf_values) == leaves and _is_tree(tree, leaves, features) and _has_sets(tree, sets)):
        raise ExportError(f"tree {number} of the model text is not whole: it was truncated or edited")
    return tree


def _is_tree(tree: Tree, leaves: int, features: int) -> bool:
    """Whether the arrays have an entry per node, features and decisions exist, and the nodes form a tree."""
    arrays = (tree.features, tree.thresholds, tree.decisions, tree.left, tree.right)
    return (
        {len(array) for array in arrays} == {leaves - 1}
        and bool(((tree.features >= 0) & (tree.features < features)).all())
        and bool(((tree.decisions >= 0) & (tree.decisions <= _LARGEST_DECISION)).all())
        and reaches_each_once(tree.left.tolist(), tree.right.tolist())
    )


def reaches_each_once(left: Sequence[int], right: Sequence[int]) -> bool:
    """Whether one way leads from the root to each node and each leaf, and nowhere else."""
    nodes = len(left)
    waiting = [0 if nodes else ~0]
    reached: list[int] = []
    while waiting and len(reached) <= 2 * nodes + 1:  # no longer than a tree's walk, should there be a circle
        at = waiting.pop()
        reached.append(at)
        if 0 <= at < nodes:
            waiting += (left[at], right[at])
    return sorted(reached) == list(range(~nodes, nodes))


def _has_sets(tree: Tree, sets: int) -> bool:
    """Whether there are so many category sets, and each category node names one of them."""
    bounds, words, numbers = tree.set_bounds, tree.set_words, tree.thresholds[tree.categorical]
    return (
        len(bounds) == sets + 1
        and bounds[0] == 0
        and bounds[-1] == len(words)
        and bool((bounds[1:] >= bounds[:-1]).all())
        and bool(((words >= 0) & (words < 2**32)).all())
        and bool(((numbers >= 0) & (numbers < sets) & (numbers == np.floor(numbers))).all())
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Nodes:
    """The nodes of all trees, end to end."""

    features: NDArray[np.int64]
    categorical: NDArray[np.bool_]
    missing_types: NDArray[np.int64]

    @classmethod
    def of(cls, forest: ForestText) -> _Nodes:
        trees = forest.trees
        return cls(
            np.concatenate([tree.features for tree in trees]),
            np.concatenate([tree.categorical for tree in trees]),
            np.concatenate([tree.missing_types for tree in trees]),
        )


def _named(forest: ForestText, feature: int) -> str:
    return f"{feature} ({forest.feature_names[feature]})"
