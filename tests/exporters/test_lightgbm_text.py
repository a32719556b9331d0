from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import lightgbm
import numpy as np
import pytest

from recserve.exporters.errors import ExportError
from recserve.exporters.lightgbm_text import InputRules, MissingType, input_rules, parse_forest

NONE, ZERO, NAN = (kind << 2 for kind in MissingType)
HEADER = """tree
version=v4
num_class=1
num_tree_per_iteration=1
label_index=0
max_feature_idx=1
objective=regression
feature_names=a b
feature_infos=[-1:1] [-1:1]
"""


def stump(number: int, feature: int, threshold: float, decision: int, categories: str = "") -> str:
    sets = f"cat_boundaries=0 {len(categories.split())}\ncat_threshold={categories}\n" if categories else ""
    return (
        f"Tree={number}\nnum_leaves=2\nnum_cat={int(bool(categories))}\nsplit_feature={feature}\nsplit_gain=1\n"
        f"threshold={threshold}\ndecision_type={decision}\nleft_child=-1\nright_child=-2\nleaf_value=1 2\n"
        f"leaf_weight=1 1\nleaf_count=1 1\ninternal_value=0\ninternal_weight=0\ninternal_count=2\n{sets}"
        "is_linear=0\nshrinkage=1\n\n\n"
    )


def text_of(*trees: str) -> str:
    sizes = " ".join(str(len(tree)) for tree in trees)
    return f"{HEADER}tree_sizes={sizes}\n\n{''.join(trees)}end of trees\n\npandas_categorical:null\n"


def rules_of(*nodes: tuple[int, float, int]) -> InputRules:
    return input_rules(parse_forest(text_of(*(stump(number, *node) for number, node in enumerate(nodes)))))


@pytest.fixture(scope="module")
def trained() -> lightgbm.Booster:
    random = np.random.default_rng(1)
    rows = random.normal(size=(1000, 3))
    rows[:, 2] = random.integers(0, 90, 1000)
    labels = rows[:, 0] + (rows[:, 2] % 3)
    data = lightgbm.Dataset(rows, labels, feature_name=["one", "zwei drei", "четыре"], categorical_feature=[2])
    return lightgbm.train({"objective": "regression", "verbose": -1, "num_threads": 1}, data, 4)


def test_reads_what_lightgbm_dumps(trained: lightgbm.Booster) -> None:
    forest = parse_forest(trained.model_to_string())
    assert forest.features == 3
    assert forest.feature_names == trained.feature_name()
    assert len(forest.trees) == trained.num_trees()

    for tree, dumped in zip(forest.trees, trained.dump_model()["tree_info"], strict=True):
        sets = ["||".join(map(str, categories)) for _, categories in tree.category_sets()]
        numbers = [float(threshold) for threshold in tree.thresholds[~tree.categorical]]
        nodes = [*zip(tree.features[tree.categorical], sets, strict=True)]
        nodes += zip(tree.features[~tree.categorical], numbers, strict=True)
        assert Counter((int(feature), decision) for feature, decision in nodes) == Counter(
            dumped_nodes(dumped["tree_structure"])
        )


def dumped_nodes(node: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    if "split_feature" in node:
        yield node["split_feature"], node["threshold"]
        yield from dumped_nodes(node["left_child"])
        yield from dumped_nodes(node["right_child"])


def test_names_input_rules() -> None:
    assert rules_of((0, 0.5, NONE), (1, 0.5, NAN)) == InputRules(nan_to_zero=(0,), categorical=())
    forest = parse_forest(text_of(stump(0, 1, 0, 1, categories="5 1")))
    assert input_rules(forest) == InputRules(nan_to_zero=(), categorical=(1,))
    ((feature, categories),) = forest.trees[0].category_sets()
    assert (feature, categories.tolist()) == (1, [0, 2, 32])


def test_a_feature_that_some_nodes_read_as_missing_stays_missing() -> None:
    assert rules_of((0, 9.0, NONE), (0, 0.5, NAN), (1, 0.5, NONE)).nan_to_zero == (1,)


def test_a_feature_that_is_number_and_category_is_refused() -> None:
    with pytest.raises(ExportError, match=r"feature 0 \(a\) is a number in some trees and a category in others"):
        input_rules(parse_forest(text_of(stump(0, 0, 0.5, NAN), stump(1, 0, 0, 1, categories="6"))))


def test_zero_as_missing_is_refused_in_any_node() -> None:
    with pytest.raises(ExportError, match=r"feature 1 \(b\) takes zeros for missing"):
        rules_of((0, 0.5, NAN), (1, 0.5, NAN), (1, 0.5, ZERO))


def test_huge_categories_are_refused() -> None:
    words = " ".join(["0"] * (2**24 // 32) + ["2"])  # the bit of category 2**24 + 1
    with pytest.raises(ExportError, match=r"feature 1 \(b\): category 16777217 of tree 0 is above 2\*\*24"):
        input_rules(parse_forest(text_of(stump(0, 1, 0, 1, categories=words))))


WHOLE = text_of(stump(0, 0, 0.5, NAN), stump(1, 1, 0.5, NAN))
BROKEN = {
    "empty": ("", "not a LightGBM model text"),
    "another format": ('{"trees": []}', "not a LightGBM model text"),
    "no sizes": (WHOLE.replace("tree_sizes", "sizes"), "not a LightGBM model text"),
    "cut in a tree": (WHOLE[: WHOLE.index("Tree=1") + 40], "tree 1 of the model text cannot be read"),
    "cut between trees": (WHOLE[: WHOLE.index("Tree=1")], "tree 1 of the model text cannot be read"),
    "cut after the trees": (WHOLE[: WHOLE.index("end of")], "does not end after its 2 trees"),
    "edited": (WHOLE.replace("leaf_value=1 2", "leaf_value=1.5 2"), "tree 1 of the model text is not whole"),
    "a leaf too many": (WHOLE.replace("leaf_value=1 2", "leaf_value=1 2 3"), "tree 0 of the model text is not whole"),
    "no number": (WHOLE.replace("threshold=0.5", "threshold=x.5"), "tree 0 of the model text cannot be read"),
    "Windows line ends": (WHOLE.replace("\n", "\r\n"), "not a LightGBM model text"),
    "a number in Python's way": (WHOLE.replace("split_feature=1", "split_feature=0_1"), "tree 1 .* cannot be read"),
    "a name too few": (WHOLE.replace("feature_names=a b", "feature_names=a"), "header .* contradicts itself"),
    "features that are no number": (
        WHOLE.replace("max_feature_idx=1", "max_feature_idx=abc"),
        "header of the model text cannot be read.*'abc' is no whole number",
    ),
    "two numbers of features": (WHOLE.replace("max_feature_idx=1", "max_feature_idx=1 1"), "header .* cannot be read"),
    "sizes that are no numbers": (re.sub("tree_sizes=.*", "tree_sizes=abc", WHOLE), "header .* cannot be read.*'abc'"),
    "a negative size": (re.sub("tree_sizes=.*", "tree_sizes=-5 9", WHOLE), "header .* contradicts itself"),
    "a huge size": (re.sub("tree_sizes=.*", f"tree_sizes={10**30}", WHOLE), "header .* cannot be read"),
    "a decision of no meaning": (WHOLE.replace("decision_type=8", "decision_type=12", 1), "tree 0 .* is not whole"),
    "feature out of range": (WHOLE.replace("split_feature=1", "split_feature=2"), "tree 1 .* is not whole"),
}


def tree_of(left: Sequence[int], right: Sequence[int]) -> str:
    nodes = len(left)

    def row(value: object, count: int = nodes) -> str:
        return " ".join([str(value)] * count)

    block = (
        f"Tree=0\nnum_leaves={nodes + 1}\nnum_cat=0\nsplit_feature={row(0)}\nsplit_gain={row(1)}\n"
        f"threshold={row(0.5)}\ndecision_type={row(NAN)}\nleft_child={' '.join(map(str, left))}\n"
        f"right_child={' '.join(map(str, right))}\nleaf_value={row(1, nodes + 1)}\nleaf_weight={row(1, nodes + 1)}\n"
        f"leaf_count={row(1, nodes + 1)}\ninternal_value={row(0)}\ninternal_weight={row(0)}\n"
        f"internal_count={row(2)}\nis_linear=0\nshrinkage=1\n\n\n"
    )
    return text_of(block)


NO_TREES = {
    "node that is not there": ([1, 2], [-1, -2]),
    "leaf that is not there": ([-1], [-3]),
    "far outside": ([10**9], [-1]),
    "leaf twice, another never": ([1, -1], [-2, -1]),
    "node that leads to itself": ([0], [-1]),
    "back to the root": ([1, 0], [-1, -2]),
    "circle apart from the root": ([-1, 2, 1], [-2, -3, -4]),
    "node with two parents": ([1, -1, -2], [1, -3, -4]),
    "children missing": ([], [-1]),
}


@pytest.mark.parametrize(("left", "right"), NO_TREES.values(), ids=NO_TREES.keys())
def test_nodes_that_form_no_tree_are_refused(left: list[int], right: list[int]) -> None:
    with pytest.raises(ExportError, match="tree 0 of the model text is not whole"):
        parse_forest(tree_of(left, right))


def test_nodes_may_be_numbered_in_any_order() -> None:
    text = tree_of([2, -1, 1], [-4, -3, -2])
    assert parse_forest(text).trees[0].left.tolist() == [2, -1, 1]
    assert lightgbm.Booster(model_str=text).num_trees() == 1


BROKEN_SETS = {
    "no sets": ("cat_boundaries=0 2\ncat_threshold=5 1\n", ""),
    "another number of sets": ("num_cat=1", "num_cat=2"),
    "set that is not there": ("threshold=0\n", "threshold=1\n"),
    "negative set": ("threshold=0\n", "threshold=-1\n"),
    "half a set": ("threshold=0\n", "threshold=0.5\n"),
    "NaN for a set": ("threshold=0\n", "threshold=nan\n"),
    "words that are not there": ("cat_boundaries=0 2", "cat_boundaries=0 3"),
    "words that no set has": ("cat_boundaries=0 2", "cat_boundaries=0 1"),
    "words before the first": ("cat_boundaries=0 2", "cat_boundaries=1 2"),
    "bounds that fall": ("num_cat=1", "num_cat=2", "cat_boundaries=0 2", "cat_boundaries=0 3 2"),
    "more than 32 bits": ("cat_threshold=5 1", f"cat_threshold=5 {2**32}"),
    "negative bits": ("cat_threshold=5 1", "cat_threshold=5 -1"),
}


@pytest.mark.parametrize("edits", BROKEN_SETS.values(), ids=BROKEN_SETS.keys())
def test_category_sets_that_do_not_fit_are_refused(edits: tuple[str, ...]) -> None:
    block = stump(0, 1, 0, 1, categories="5 1")
    parse_forest(text_of(block))
    for old, new in zip(edits[::2], edits[1::2], strict=True):
        assert old in block
        block = block.replace(old, new)
    with pytest.raises(ExportError, match="tree 0 of the model text is not whole"):
        parse_forest(text_of(block))


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        parse_forest(text)


def test_every_truncation_is_refused(trained: lightgbm.Booster) -> None:
    text = trained.model_to_string()
    whole = text.index("end of trees") + len("end of trees")
    for end in range(0, whole, 97):
        with pytest.raises(ExportError):
            parse_forest(text[:end])
