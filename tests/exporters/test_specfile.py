"""TOML specifications: what is read, and everything that is wrong, at once."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic.fields import FieldInfo

from recserve.exporters import spec as parts
from recserve.exporters import specfile
from recserve.exporters.errors import ExportError
from recserve.exporters.spec import HistorySpec, IndexSpec, InputSpec, ItemColumn, Roles
from recserve.exporters.specfile import read_spec

Edit = Callable[[str], str]


@pytest.fixture
def problems(shop: Any) -> Callable[[Edit], list[str]]:
    """What is said of an edited shop.toml, line by line, without the heading."""

    def read(edit: Edit) -> list[str]:
        path = shop.root / "edited.toml"
        path.write_text(edit((shop.root / "shop.toml").read_text()))
        with pytest.raises(ExportError) as caught:
            read_spec(path)
        heading, *lines = str(caught.value).split("\n  ")
        assert heading == f"{path} is not a valid export:"
        return lines

    return read


def swap(old: str, new: str) -> Edit:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return edit


def test_everything_is_read(shop: Any) -> None:
    spec, users = shop.spec, shop.users
    assert (spec.name, spec.version, spec.golden_requests) == ("shop", "2025-06-01", 12)
    assert spec.golden_time_us == 1_748_779_200_000_000
    assert spec.catalogue.items == shop.root / "items.parquet"
    assert spec.catalogue.columns[5] == ItemColumn(name="regions", kind="categories", vocabulary="country")
    assert spec.catalogue.roles == Roles(
        category="category",
        price="price",
        in_stock="in_stock",
        regions="regions",
        launch_time="launch_time",
        popularity="popularity",
    )
    assert spec.catalogue.vocabularies["country"] == ["AT", "CH", "DE", "FR"]
    ann, als, content = spec.spaces
    assert ann.item_tower.model == shop.root / "item.onnx"
    assert ann.item_tower.inputs[1] == InputSpec(
        name="category", columns=["category"], dtype="int64", rank=1, offset=1, missing=0
    )
    assert [each.kind for each in ann.user_tower.inputs] == ["columns", "columns", "recent_mask", "recent_items"]
    assert (als.normalized, als.item_vectors, als.user_vectors) == (
        False,
        shop.root / "als_items.npy",
        shop.root / "als_users.npy",
    )
    assert als.user_ids == [f"user-{row:03d}" for row in range(100)]
    assert (content.user_ids, content.index) == (None, IndexSpec())
    click, purchase = spec.rankers
    assert (click.objective, click.calibration, click.calibration_data) == ("click", "model", None)
    assert (purchase.weight, purchase.calibration) == (2.0, "isotonic")
    assert purchase.calibration_data.features.dtype == np.float32
    assert purchase.calibration_data.labels.dtype == np.float64
    assert spec.offline_metrics == {"click_ndcg@10": 0.4321}
    assert users.users == shop.root / "users.parquet"
    assert users.history == HistorySpec(table=shop.root / "history.parquet")


def test_a_user_id_may_hold_anything_but_a_line_end(shop: Any) -> None:
    ids = [f"user {row} \r\u2028\x0b\x85" for row in range(100)]
    (shop.root / "odd.txt").write_bytes("\n".join(ids).encode())
    path = shop.root / "odd.toml"
    path.write_text((shop.root / "shop.toml").read_text().replace("als_users.txt", "odd.txt"))
    assert read_spec(path)[0].spaces[1].user_ids == ids


@pytest.mark.parametrize("last", [b"", b"\r\n"], ids=["last line as it is", "last line ended"])
def test_user_ids_with_line_ends_of_windows_are_refused(
    shop: Any, problems: Callable[[Edit], list[str]], last: bytes
) -> None:
    path = shop.root / "windows.txt"
    path.write_bytes((shop.root / "als_users.txt").read_bytes().rstrip(b"\n").replace(b"\n", b"\r\n") + last)
    (told,) = problems(swap("als_users.txt", "windows.txt"))
    assert told.startswith(f"spaces[1].user_ids: the lines of {path} end with CR LF")


@pytest.mark.parametrize("name", ["calibration_features", "calibration_labels"])
def test_calibration_data_that_is_no_numbers(shop: Any, problems: Callable[[Edit], list[str]], name: str) -> None:
    np.save(shop.root / "words.npy", np.array(["yes", "no"]))
    (told,) = problems(swap(f"{name}.npy", "words.npy"))
    assert told == f"rankers[1]: {name}: expected an array of numbers, found <U3"


MISTAKES = {
    'nmae: unknown key; did you mean "name"?': ('name = "shop"', 'nmae = "shop"'),
    'catalogue.roles.prize: unknown key; did you mean "price"?': ('price = "price"', 'prize = "price"'),
    'catalogue.columns[2].knd: unknown key; did you mean "kind"?': ('"price", kind', '"price", knd'),
    'spaces[0].user_tower.inputs[2].lenght: unknown key; did you mean "length"?': ("length = 5", "lenght = 5"),
    'spaces[0].user_tover: unknown key; did you mean "user_tower"?': ("[spaces.user_tower]", "[spaces.user_tover]"),
    'snapshot.history.tabel: unknown key; did you mean "table"?': ("{ table", "{ tabel"),
    "version: missing": ('version = "2025-06-01"\n', ""),
    "catalogue.columns[2].kind: missing": ('{ name = "price", kind = "number" }', '{ name = "price" }'),
    "catalogue.columns[4].kind: expected 'number', 'integer', 'category', 'categories', 'time', 'flag' or 'string', "
    "found 'flga'": ('kind = "flag"', 'kind = "flga"'),
    "spaces[0].normalized: expected a valid boolean, unable to interpret input, found 'maybe'": (
        "normalized = true",
        'normalized = "maybe"',
    ),
    "golden_requests: expected greater than or equal to 1, found 0": ("golden_requests = 12", "golden_requests = 0"),
    "golden_time: expected timezone info": ("12:00:00Z", "12:00:00"),
    "spaces[0].item_tower.model: expected the path of a file, found 7": ('"item.onnx"', "7"),
    "rankers[1]: calibration_features and calibration_labels belong together": (
        'calibration_labels = "calibration_labels.npy"\n',
        "",
    ),
}


@pytest.mark.parametrize("problem", MISTAKES)
def test_one_mistake(problems: Callable[[Edit], list[str]], problem: str) -> None:
    assert problem in problems(swap(*MISTAKES[problem]))


def test_every_mistake_at_once(problems: Callable[[Edit], list[str]], shop: Any) -> None:
    document = json.loads((shop.root / "features.json").read_text())
    document["features"][0]["op"] = "vlaue"
    document["features"][1]["inputs"] = ["item.categry"]
    (shop.root / "wrong.json").write_text(json.dumps(document))

    def edit(text: str) -> str:
        for old, new in (
            ("features.json", "wrong.json"),
            ("items.parquet", "things.parquet"),
            ("als_items.npy", "als.npz"),
            ("golden_requests", "golden_request"),
            ("calibration_features.npy", "shop.toml"),
            ('kind = "integer"', "kind = 5"),
        ):
            text = swap(old, new)(text)
        return text

    found = problems(edit)
    assert len(found) == 7
    for part in (
        'features: features[0] "price": unknown op "vlaue"',
        'features: features[1] "category": inputs[0]: unknown item column "categry"; did you mean "category"?',
        f"catalogue.items: there is no file {shop.root / 'things.parquet'}",
        f"spaces[1].item_vectors: there is no file {shop.root / 'als.npz'}",
        'golden_request: unknown key; did you mean "golden_requests"?',
        f"rankers[1].calibration_features: {shop.root / 'shop.toml'} is not a NumPy array",
        "catalogue.columns[8].kind: expected",
    ):
        assert any(line.startswith(part) for line in found), (part, found)


@pytest.mark.parametrize(("content", "message"), [(b"name = ", "Invalid value"), (b"\xff", "utf-8"), (None, "No such")])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "shop.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=rf"shop\.toml cannot be read: .*{message}"):
        read_spec(path)


def test_an_archive_of_arrays_is_no_array(shop: Any, problems: Callable[[Edit], list[str]]) -> None:
    np.savez(shop.root / "both.npz", a=np.zeros(2))
    (line,) = problems(swap("calibration_labels.npy", "both.npz"))
    assert line.endswith("both.npz is an archive, not a single NumPy array (.npy)")


def test_without_a_snapshot(shop: Any) -> None:
    text = (shop.root / "shop.toml").read_text()
    path = shop.root / "alone.toml"
    path.write_text(text[: text.index("[snapshot]")] + text[text.index("[offline_metrics]") :])
    assert "snapshot" not in tomllib.loads(path.read_text())
    spec, users = read_spec(path)
    assert users is None
    assert replace(spec, rankers=()).name == "shop"


SECTIONS = {
    specfile._File: parts.BundleSpec,
    specfile._Catalogue: parts.CatalogueSpec,
    specfile._Tower: parts.TowerSpec,
    specfile._Space: parts.SpaceSpec,
    specfile._Ranker: parts.RankerSpec,
    specfile._History: parts.HistorySpec,
    specfile._Snapshot: parts.SnapshotSpec,
    specfile._Events: parts.EventsSpec,
    specfile._Together: parts.TogetherSpec,
    specfile._Sources: parts.SourcesSpec,
    specfile._Evaluation: parts.EvaluationSpec,
}
OTHERWISE = {
    # In the file                               in the specification
    "snapshot": None,  # beside the bundle's
    "calibration_features": "calibration_data",
    "calibration_labels": "calibration_data",
    "time": "time_us",
    "golden_time": "golden_time_us",
}


def default_of(field: dataclasses.Field[Any] | FieldInfo) -> object:
    """What stands for a field that is left out, in one form for both; `MISSING` where it must not be."""
    if isinstance(field, FieldInfo):
        value = dataclasses.MISSING if field.is_required() else field.get_default(call_default_factory=True)
    else:
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if isinstance(value, specfile._Part):
        value = SECTIONS[type(value)]()
    return tuple(value) if isinstance(value, list) else value


def test_every_section_is_held_against_its_part() -> None:
    assert set(SECTIONS) == set(specfile._Part.__subclasses__())


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_what_a_file_leaves_out_is_what_a_program_leaves_out(section: type[specfile._Part]) -> None:
    fields = {field.name: field for field in dataclasses.fields(SECTIONS[section])}
    ours = {name: default_of(field) for name, field in section.model_fields.items() if name not in OTHERWISE}
    assert ours == {name: default_of(fields[name]) for name in ours}
    assert set(fields) == {OTHERWISE.get(name, name) for name in section.model_fields} - {None}
