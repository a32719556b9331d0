from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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
    "feature out of range": (WHOLE.replace("split_feature=1", "split_feature=2"), "tree 1 .* is not whole"),
}


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
