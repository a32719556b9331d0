"""Real bundles with real native forests; LightGBM is the oracle. tests/exporters has the other engine's."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
from google.protobuf import json_format
from numpy.typing import NDArray

from recserve.bundle.v1.manifest_pb2 import Forest
from recserve.exporters.ranker import compile_ranker
from recserve.exporters.spec import CalibrationData, RankerSpec
from recserve.server.bundle.errors import BundleMismatchError, BundleUnsupportedError
from recserve.server.bundle.reader import Bundle, open_bundle
from recserve.server.pipeline.ranker import Ranker, open_ranker

FEATURES = 8  # of the tiny bundle's schema
NAMES = [f"feature {number}" for number in range(FEATURES)]
WEIGHTS = {"click": 1.0, "purchase": 3.0}


def rows_of(seed: int, n: int = 1200) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(n, FEATURES)).astype(np.float32)
    rows[random.random(rows.shape) < 0.1] = np.nan
    return rows


def train(column: int, features: int = FEATURES) -> lightgbm.Booster:
    rows = rows_of(1)[:, :features]
    labels = np.nan_to_num(rows[:, column]) + np.random.default_rng(2).normal(size=len(rows)) > 0
    settings = {"objective": "binary", "num_leaves": 7, "verbose": -1, "num_threads": 1}
    return lightgbm.train(settings, lightgbm.Dataset(rows, labels.astype(float)), 5)


@pytest.fixture(scope="module")
def boosters() -> dict[str, lightgbm.Booster]:
    return {"click": train(0), "purchase": train(1)}


@pytest.fixture(scope="module")
def ranker_files(
    boosters: dict[str, lightgbm.Booster], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Forest]]:
    """A bundle's ranker/ and the manifest's forests: one calibrated by its own sigmoid, one by isotonic regression."""
    directory = tmp_path_factory.mktemp("exported") / "ranker"
    labels = (np.nan_to_num(rows_of(3)[:, 1]) > 0).astype(float)
    data = CalibrationData(features=rows_of(3), labels=labels)
    click = RankerSpec(objective="click", model=boosters["click"], weight=WEIGHTS["click"], tl2cgen=True)
    purchase = RankerSpec(
        objective="purchase",
        model=boosters["purchase"],
        weight=WEIGHTS["purchase"],
        tl2cgen=True,
        calibration="isotonic",
        calibration_data=data,
    )
    return directory, [compile_ranker(spec, NAMES, directory).forest for spec in (click, purchase)]


@pytest.fixture
def make_bundle(
    tiny_bundle: Callable[..., Path], resign: Callable[[Path], None], ranker_files: tuple[Path, list[Forest]]
) -> Callable[..., Bundle]:
    """Opens the tiny bundle with these forests in it, after `edit` has changed their entries in the manifest."""

    def make(edit: Callable[[list[dict[str, Any]]], object] = lambda _forests: None) -> Bundle:
        directory, forests = ranker_files
        root = tiny_bundle()
        (root / "ranker").mkdir()
        for file in directory.iterdir():
            (root / "ranker" / file.name).write_bytes(file.read_bytes())
        manifest = json.loads((root / "manifest.json").read_text())
        manifest["forests"] = [json_format.MessageToDict(forest) for forest in forests]
        edit(manifest["forests"])
        (root / "manifest.json").write_text(json.dumps(manifest))
        resign(root)
        return open_bundle(root)

    return make


@pytest.fixture
def ranker(make_bundle: Callable[..., Bundle]) -> Ranker:
    found = open_ranker(make_bundle(), engine="tl2cgen", allow_native_code=True)
    assert found is not None
    return found


def test_margins_equal_lightgbm_by_objective(ranker: Ranker, boosters: dict[str, lightgbm.Booster]) -> None:
    rows = rows_of(4, 300)
    assert ranker.objectives == ("click", "purchase")
    assert ranker.weights == (1.0, 3.0)
    expected = np.stack([boosters[name].predict(rows, raw_score=True) for name in ranker.objectives], axis=1)
    np.testing.assert_array_equal(ranker.margins(rows).view(np.int64), expected.view(np.int64))


def test_relevance_is_each_objectives_own(ranker: Ranker, boosters: dict[str, lightgbm.Booster]) -> None:
    rows = rows_of(5, 300)
    margins = ranker.margins(rows)
    relevance = ranker.relevance(margins)
    assert relevance.shape == (300, 2)
    assert relevance.min() > 0
    assert relevance.max() < 1
    np.testing.assert_array_max_ulp(relevance[:, 0], boosters["click"].predict(rows), maxulp=1)
    assert (np.diff(relevance[np.argsort(margins[:, 1]), 1]) >= 0).all()


def test_a_batch_equals_its_rows(ranker: Ranker) -> None:
    rows = rows_of(6, 40)
    together = ranker.relevance(ranker.margins(rows))
    alone = [ranker.relevance(ranker.margins(rows[i : i + 1]))[0] for i in range(40)]
    np.testing.assert_array_equal(together, alone)
    assert ranker.relevance(ranker.margins(rows[:0])).shape == (0, 2)


def test_a_bundle_without_forests_has_no_ranker(tiny_bundle: Callable[..., Path]) -> None:
    bundle = open_bundle(tiny_bundle())
    assert open_ranker(bundle, engine="tl2cgen", allow_native_code=False) is None


def test_native_code_must_be_allowed(make_bundle: Callable[..., Bundle]) -> None:
    with pytest.raises(
        BundleUnsupportedError, match=r"native code of bundle 'tiny'.*allow_native_code = true under \[compute\]"
    ):
        open_ranker(make_bundle(), engine="tl2cgen", allow_native_code=False)


def test_an_engine_that_the_bundle_lacks_is_not_replaced(make_bundle: Callable[..., Bundle]) -> None:
    with pytest.raises(BundleUnsupportedError, match='no forests for the engine "bitsliced": export it again'):
        open_ranker(make_bundle(), engine="bitsliced", allow_native_code=True)


def test_a_library_for_another_machine_is_refused(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle(lambda forests: forests[1]["native"][0].update(machine="riscv64"))
    with pytest.raises(BundleUnsupportedError, match=f"'purchase' is not compiled.*'{platform.machine()}'.*'riscv64'"):
        open_ranker(bundle, engine="tl2cgen", allow_native_code=True)


def test_a_file_that_is_no_library_is_refused(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle(lambda forests: forests[0]["native"][0].update(file="ranker/model.click.txt"))
    with pytest.raises(BundleUnsupportedError, match=r"'click' does not load here.*file ranker/model\.click\.txt"):
        open_ranker(bundle, engine="tl2cgen", allow_native_code=True)


def test_a_library_of_another_width_is_refused(
    make_bundle: Callable[..., Bundle], ranker_files: tuple[Path, list[Forest]], tmp_path: Path
) -> None:
    spec = RankerSpec(objective="narrow", model=train(0, features=5), tl2cgen=True)
    narrow = compile_ranker(spec, NAMES[:5], tmp_path / "narrow").library
    assert narrow is not None
    directory, _ = ranker_files
    target = directory / narrow.name
    target.write_bytes(narrow.read_bytes())
    try:
        bundle = make_bundle(lambda entries: entries[0]["native"][0].update(file=f"ranker/{narrow.name}"))
    finally:
        target.unlink()
    with pytest.raises(
        BundleMismatchError, match=r"'click' is not what the manifest says.*features: expected 8, found 5"
    ):
        open_ranker(bundle, engine="tl2cgen", allow_native_code=True)


def test_a_forest_of_another_width_than_the_schema_is_refused(make_bundle: Callable[..., Bundle]) -> None:
    with pytest.raises(BundleMismatchError, match="expected 8, found 7"):
        make_bundle(lambda forests: forests[0].update(features=7))


def test_some_objective_must_have_a_weight(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle(lambda forests: [forest.update(weight=0.0) for forest in forests])
    with pytest.raises(BundleMismatchError, match="no objective has a weight"):
        open_ranker(bundle, engine="tl2cgen", allow_native_code=True)
