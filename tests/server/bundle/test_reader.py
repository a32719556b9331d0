from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.kernels.features import MISSING_TIME
from recserve.server.bundle.errors import (
    BundleCorruptError,
    BundleError,
    BundleMismatchError,
    BundleNotFoundError,
    BundleSchemaError,
)
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.strings import key_of, keys_of

Make = Callable[..., Path]
Resign = Callable[[Path], None]


def files_of(path: Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def rewrite_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def change_array(file: Path, change: Callable[[NDArray[Any]], NDArray[Any] | None]) -> None:
    values = np.load(file)
    changed = change(values)
    np.save(file, values if changed is None else changed)


def put(index: Any, value: Any) -> Callable[[NDArray[Any]], None]:
    def change(values: NDArray[Any]) -> None:
        values[index] = value

    return change


# ------------------------------------------------------------------------------------------------------ a whole bundle


def test_items_have_their_ids_keys_rows_and_attributes(tiny_bundle: Make) -> None:
    catalogue = open_bundle(tiny_bundle()).catalogue
    rows = np.array([0, 7, 199])
    assert catalogue.size == 200
    assert catalogue.ids_of_rows(rows) == ["item-000", "item-007", "item-199"]
    assert catalogue.rows_of_ids(["item-199", "unknown", "", "item-007"]).tolist() == [199, -1, -1, 7]
    assert catalogue.keys_of_rows(rows).tolist() == [key_of(each) for each in catalogue.ids_of_rows(rows)]
    assert catalogue.rows_of_keys(keys_of(["item-007", "unknown"])).tolist() == [7, -1]


def test_attributes_have_python_values_and_leave_out_what_is_missing(tiny_bundle: Make, tiny_items: Any) -> None:
    catalogue = open_bundle(tiny_bundle()).catalogue
    for row, stored in enumerate(tiny_items.drop_columns(["item_id"]).to_pylist()):
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
        expected = {name: value for name, value in values.items() if value not in (None, ())}
        assert catalogue.attributes(row, catalogue.columns) == expected
    with pytest.raises(KeyError, match="colour"):
        catalogue.attributes(0, ["colour"])


def test_item_arrays_are_those_of_the_feature_definitions(tiny_bundle: Make) -> None:
    bundle = open_bundle(tiny_bundle())
    columns: Any = bundle.catalogue.columns
    assert bundle.schema.item_feature_columns == ("price", "category", "popularity")
    np.testing.assert_array_equal(bundle.catalogue.features[:, 0], columns["price"].values.astype(np.float32))
    codes = bundle.catalogue.features[:, 1]
    np.testing.assert_array_equal(np.where(np.isnan(codes), -1, codes), columns["category"].codes)
    np.testing.assert_array_equal(bundle.catalogue.times[:, 0], columns["launch_time"].values)


def test_popular_rows_descend_and_ties_keep_their_order(tiny_bundle: Make) -> None:
    catalogue = open_bundle(tiny_bundle()).catalogue
    popularity: Any = catalogue.role("popularity")
    expected = sorted(range(200), key=lambda row: (-popularity.values[row], row))
    assert catalogue.popular_rows.tolist() == expected


def test_roles_that_the_catalogue_lacks_are_none(tiny_bundle: Make, tiny_roles: Any) -> None:
    catalogue = open_bundle(tiny_bundle(roles=tiny_roles(price="", regions=""))).catalogue
    assert catalogue.role("price") is None
    assert catalogue.role("regions") is None
    assert catalogue.role("category") is catalogue.columns["category"]


def test_spaces_find_the_vectors_of_users(tiny_bundle: Make) -> None:
    space = open_bundle(tiny_bundle()).space("als")
    assert (space.dim, space.normalized, space.serves_users, space.has_user_tower) == (8, False, True, False)
    rows = [space.user_row(f"user-{user:02d}") for user in range(50)]
    assert sorted(rows) == [-1] * 10 + list(range(40))
    assert space.user_row("") == space.user_row("nobody") == -1


def test_a_space_or_file_that_is_not_there(tiny_bundle: Make) -> None:
    bundle = open_bundle(tiny_bundle())
    with pytest.raises(BundleMismatchError, match="no such space"):
        bundle.space("other")
    with pytest.raises(BundleMismatchError, match=r"ranker/model\.txt"):
        bundle.file("ranker/model.txt")


def test_codes_and_cardinalities_follow_the_vocabularies(tiny_bundle: Make) -> None:
    bundle = open_bundle(tiny_bundle())
    assert bundle.cardinalities["category"] == 8
    assert bundle.vocabularies["country"].code("NA") == 4
    assert bundle.vocabularies["country"].code("XX") == -1


def test_arrays_are_mapped_read_only(tiny_bundle: Make) -> None:
    bundle = open_bundle(tiny_bundle())
    for array in (bundle.catalogue.features, bundle.spaces["als"].vectors, bundle.catalogue.popular_rows):
        assert not array.flags.writeable
        assert isinstance(array.base, np.memmap)


def test_a_link_to_a_bundle_is_followed_once(tiny_bundle: Make, tmp_path: Path) -> None:
    first, second = tiny_bundle(), tiny_bundle(target=tmp_path / "second", version="2")
    (tmp_path / "current").symlink_to(first)
    bundle = open_bundle(tmp_path / "current")
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to(second)
    assert bundle.file("features.json") == first / "features.json"


# ------------------------------------------------------------------------------------------------- files and manifest


def test_no_directory_and_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="no such directory"):
        open_bundle(tmp_path / "absent")
    with pytest.raises(BundleNotFoundError, match=r"file manifest\.json"):
        open_bundle(tmp_path)


def test_a_directory_that_holds_a_bundle_names_it(tiny_bundle: Make) -> None:
    """As an export's own directory does."""
    bundle = tiny_bundle()
    shutil.copytree(bundle, bundle.with_name(".bundle.exporting-00000000"))
    with pytest.raises(BundleNotFoundError, match=re.escape(f"; give the bundle in it: {bundle} (")):
        open_bundle(bundle.parent)


@pytest.mark.parametrize("verify", [True, False])
def test_every_missing_file_is_named(tiny_bundle: Make, verify: bool) -> None:
    path = tiny_bundle()
    for relative in files_of(path):
        if relative != "manifest.json":
            (path / relative).rename(path.parent / "aside")
            with pytest.raises(BundleCorruptError, match=f"missing.*{relative}"):
                open_bundle(path, verify=verify)
            (path.parent / "aside").rename(path / relative)
    open_bundle(path)


@pytest.mark.parametrize("verify", [True, False])
def test_every_truncated_file_is_named(tiny_bundle: Make, verify: bool) -> None:
    path = tiny_bundle()
    for relative in files_of(path):
        if relative != "manifest.json":
            content = (path / relative).read_bytes()
            (path / relative).write_bytes(content[:-1])
            with pytest.raises(BundleCorruptError) as caught:
                open_bundle(path, verify=verify)
            assert (caught.value.file, caught.value.expected, caught.value.found) == (
                relative,
                len(content),
                len(content) - 1,
            )
            (path / relative).write_bytes(content)


def test_a_flipped_bit_in_any_file_is_found(tiny_bundle: Make) -> None:
    path = tiny_bundle()
    for relative in files_of(path):
        if relative != "manifest.json":
            content = (path / relative).read_bytes()
            flip_bit(path / relative)
            with pytest.raises(BundleCorruptError, match="not those of the export") as caught:
                open_bundle(path)
            assert caught.value.file == relative
            (path / relative).write_bytes(content)


def test_a_column_that_features_and_filters_read_differently(tiny_bundle: Make, resign: Resign) -> None:
    path = tiny_bundle()
    change_array(path / "items/columns/price.npy", put(7, 0.5))
    resign(path)
    with pytest.raises(
        BundleMismatchError, match=r"column 0 contradicts .* in row 7 .*items/features\.npy.*expected 0\.5"
    ):
        open_bundle(path)


def test_a_time_that_answers_cannot_hold(tiny_bundle: Make, resign: Resign) -> None:
    path = tiny_bundle()
    for file in ("items/columns/launch_time.npy", "items/times.npy"):
        change_array(path / file, put(3, 253_402_300_800_000_000))
    resign(path)
    with pytest.raises(BundleCorruptError, match=r"entry 3 is no time.*launch_time.*years 1 to 9999"):
        open_bundle(path)


def test_two_files_exchanged(tiny_bundle: Make) -> None:
    path = tiny_bundle()
    a, b = path / "items/columns/price.npy", path / "items/columns/popularity.npy"
    a.rename(path / "aside")
    b.rename(a)
    (path / "aside").rename(b)
    with pytest.raises(BundleCorruptError, match=r"but those of items/columns/p") as caught:
        open_bundle(path)
    assert caught.value.file in ("items/columns/price.npy", "items/columns/popularity.npy")


@pytest.mark.parametrize("extra", ["note.txt", "items/.hidden", "golden/old/requests.json"])
def test_a_file_too_many(tiny_bundle: Make, extra: str) -> None:
    path = tiny_bundle()
    (path / extra).parent.mkdir(parents=True, exist_ok=True)
    (path / extra).touch()
    with pytest.raises(BundleCorruptError, match="nothing may be added") as caught:
        open_bundle(path, verify=False)
    assert caught.value.file == extra


def test_links_within_a_bundle_are_refused(tiny_bundle: Make) -> None:
    path = tiny_bundle()
    (path / "features.json").rename(path.parent / "features.json")
    (path / "features.json").symlink_to(path.parent / "features.json")
    with pytest.raises(BundleCorruptError, match=r"features\.json.*symbolic link"):
        open_bundle(path)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "items/../../secret", "", "items//ids", "./a", "a\\b", "a\0b", "manifest.json"]
)
def test_paths_that_lead_elsewhere_are_refused(tiny_bundle: Make, name: str) -> None:
    path = tiny_bundle()
    rewrite_manifest(path, lambda manifest: manifest["files"].update({name: {"bytes": "1", "sha256": "0"}}))
    with pytest.raises(BundleCorruptError, match="plain relative") as caught:
        open_bundle(path)
    assert caught.value.found == name


def test_a_newer_format_is_refused_before_its_unknown_fields(tiny_bundle: Make) -> None:
    path = tiny_bundle()
    rewrite_manifest(path, lambda manifest: manifest.update(schema_version=2, invented="later"))
    with pytest.raises(BundleSchemaError, match=r"upgrade recserve.*schema_version.*found 2"):
        open_bundle(path)


@pytest.mark.timeout(20)
def test_a_named_pipe_is_no_manifest(tiny_bundle: Make) -> None:
    """Opening one for reading waits until somebody writes."""
    path = tiny_bundle()
    (path / "manifest.json").unlink()
    os.mkfifo(path / "manifest.json")
    with pytest.raises(BundleCorruptError, match=r"manifest\.json.*regular file"):
        open_bundle(path)


def test_a_link_or_directory_is_no_manifest(tiny_bundle: Make) -> None:
    path = tiny_bundle()
    (path / "manifest.json").rename(path.parent / "manifest.json")
    (path / "manifest.json").symlink_to(path.parent / "manifest.json")
    with pytest.raises(BundleCorruptError, match=r"manifest\.json.*regular file"):
        open_bundle(path)
    (path / "manifest.json").unlink()
    (path / "manifest.json").mkdir()
    with pytest.raises(BundleCorruptError, match=r"manifest\.json.*regular file"):
        open_bundle(path)


def test_a_manifest_of_any_length_is_not_read(tiny_bundle: Make) -> None:
    path = tiny_bundle()
    with (path / "manifest.json").open("ab") as file:
        file.truncate(2**30)  # a hole: it takes no room on disk
    with pytest.raises(BundleCorruptError, match=r"too long.*expected 'at most 67108864', found 1073741824"):
        open_bundle(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "a JSON object"),
        (b"\xff\xfe", "cannot be read"),
        (b"{}", "schema version"),
        (b'{"schema_version": "1"}', "schema version"),
        (b'{"schema_version": true}', "schema version"),
        (b'{"schema_version": 0}', "schema version"),
        (b'{"schema_version": 1, "naem": "x"}', "naem"),
        (b'{"schema_version": 1, "name": 5}', "malformed"),
        (b'{"schema_version": 1, "spaces": [{"metric": "COSINE"}]}', "COSINE"),
        (b'{"schema_version": 1, "name": "a", "name": "b"}', "malformed"),
    ],
)
def test_manifests_that_cannot_be_read(tiny_bundle: Make, text: bytes, message: str) -> None:
    path = tiny_bundle()
    (path / "manifest.json").write_bytes(text)
    with pytest.raises(BundleCorruptError, match=message) as caught:
        open_bundle(path)
    assert caught.value.file == "manifest.json"


# ------------------------------------------------------------------------------------------------------ contradictions


def forest(**changes: Any) -> manifest_pb2.Forest:
    fields: dict[str, Any] = {
        "objective": "click",
        "weight": 1.0,
        "features": 8,
        "model": "features.json",  # any listed file
        "kind": manifest_pb2.LIGHTGBM,
        "calibration": manifest_pb2.Calibration(kind=manifest_pb2.SIGMOID, x=[1, 0]),
    }
    return manifest_pb2.Forest(**{**fields, **changes})


def calibration(kind: int, x: list[float], y: list[float] | None = None) -> manifest_pb2.Calibration:
    return manifest_pb2.Calibration(kind=kind, x=x, y=y or [])


Edit = Callable[[manifest_pb2.Manifest], object]

CONTRADICTIONS: list[tuple[str, Edit, str]] = [
    ("no name", lambda m: m.ClearField("name"), "name"),
    ("no version", lambda m: m.ClearField("version"), "version"),
    ("no items", lambda m: setattr(m.catalogue, "items", 0), "catalogue.items"),
    ("column type unknown", lambda m: setattr(m.catalogue.columns[0], "type", 0), "catalogue.columns[category].type"),
    ("column twice", lambda m: m.catalogue.columns.append(m.catalogue.columns[0]), "catalogue.columns"),
    ("column name is a path", lambda m: setattr(m.catalogue.columns[0], "name", "../x"), "catalogue.columns"),
    ("vocabulary absent", lambda m: setattr(m.catalogue.columns[0], "vocabulary", "x"), "catalogue.columns[category]"),
    (
        "vocabulary of another column",
        lambda m: setattr(m.catalogue.columns[0], "vocabulary", "country"),
        "catalogue.columns[category]",
    ),
    ("role of no column", lambda m: setattr(m.catalogue.roles, "price", "cost"), "catalogue.roles.price"),
    ("role of wrong type", lambda m: setattr(m.catalogue.roles, "price", "title"), "catalogue.roles.price"),
    ("no popularity", lambda m: m.catalogue.roles.ClearField("popularity"), "catalogue.roles.popularity"),
    ("other item columns", lambda m: m.catalogue.feature_columns.reverse(), "catalogue.feature_columns"),
    ("metric unspecified", lambda m: m.spaces[0].ClearField("metric"), "spaces[als].metric"),
    ("metric of the future", lambda m: setattr(m.spaces[0], "metric", 9), "spaces[als].metric"),
    ("search unspecified", lambda m: m.spaces[0].ClearField("index"), "spaces[als].index.kind"),
    (
        "recall below its target",
        lambda m: setattr(m.spaces[0].index, "recall_target", 0.9),
        "spaces[als].index.recall_low",
    ),
    ("recall above 1", lambda m: setattr(m.spaces[0].index, "recall_low", 1.5), "spaces[als].index.recall_target"),
    ("no dimension", lambda m: setattr(m.spaces[0], "dim", 0), "spaces[als].dim"),
    ("space twice", lambda m: m.spaces.append(m.spaces[0]), "spaces"),
    ("new for longer than time lasts", lambda m: setattr(m.candidate_sources, "new_days", 1e308), "candidate_sources"),
    ("space named as another source", lambda m: setattr(m.spaces[1], "name", "popular"), "spaces"),
    ("space that features read is absent", lambda m: m.spaces.pop(0), "spaces"),
    ("tower is no file", lambda m: m.spaces[0].user_tower.SetInParent(), "spaces[als].user_tower.file"),
    ("feature count", lambda m: setattr(m.features, "count", 7), "features.count"),
    ("forest's feature count", lambda m: m.forests.append(forest(features=9)), "forests[click].features"),
    ("forest twice", lambda m: m.forests.extend([forest(), forest()]), "forests"),
    ("weight", lambda m: m.forests.append(forest(weight=float("nan"))), "forests[click].weight"),
    ("weight that sums cannot hold", lambda m: m.forests.append(forest(weight=1e308)), "forests[click].weight"),
    ("model absent", lambda m: m.forests.append(forest(model="x.txt")), "forests[click].model"),
    ("model of no kind", lambda m: m.forests.append(forest(kind=0)), "forests[click].kind"),
    (
        "calibration unspecified",
        lambda m: m.forests.append(forest(calibration=calibration(0, []))),
        "forests[click].calibration.kind",
    ),
    (
        "sigmoid with one number",
        lambda m: m.forests.append(forest(calibration=calibration(manifest_pb2.SIGMOID, [1.0]))),
        "forests[click].calibration",
    ),
    (
        "sigmoid that descends",
        lambda m: m.forests.append(forest(calibration=calibration(manifest_pb2.SIGMOID, [-1.0, 0.0]))),
        "forests[click].calibration",
    ),
    (
        "isotonic with a knot twice",
        lambda m: m.forests.append(forest(calibration=calibration(manifest_pb2.ISOTONIC, [1.0, 1.0], [0.2, 0.3]))),
        "forests[click].calibration",
    ),
    (
        "isotonic that descends",
        lambda m: m.forests.append(forest(calibration=calibration(manifest_pb2.ISOTONIC, [1, 2], [0.5, 0.4]))),
        "forests[click].calibration",
    ),
    (
        "isotonic with an infinite slope",
        lambda m: m.forests.append(forest(calibration=calibration(manifest_pb2.ISOTONIC, [0.0, 5e-324], [0.2, 0.9]))),
        "forests[click].calibration",
    ),
    (
        "isotonic with an infinite step",
        lambda m: m.forests.append(forest(calibration=calibration(manifest_pb2.ISOTONIC, [-1.7e308, 1.7e308], [0, 1]))),
        "forests[click].calibration",
    ),
    (
        "native code absent",
        lambda m: m.forests.append(forest(native=[manifest_pb2.NativeForest(file="x.so", machine="x86_64")])),
        "forests[click].native.file",
    ),
    ("schema hash", lambda m: setattr(m.features, "schema_hash", "0"), "features.schema_hash"),
    ("user hash", lambda m: setattr(m.features, "user_hash", "0"), "features.user_hash"),
]


@pytest.mark.parametrize(("edit", "field"), [case[1:] for case in CONTRADICTIONS], ids=[c[0] for c in CONTRADICTIONS])
def test_manifests_that_contradict_themselves(tiny_bundle: Make, edit: Edit, field: str) -> None:
    path = tiny_bundle(edit=edit)
    for verify in (True, False):
        with pytest.raises(BundleMismatchError) as caught:
            open_bundle(path, verify=verify)
        assert caught.value.field.startswith(field)


def test_a_forest_that_fits_is_accepted(tiny_bundle: Make) -> None:
    isotonic = calibration(manifest_pb2.ISOTONIC, [-1, 1], [0.1, 0.9])
    open_bundle(tiny_bundle(edit=lambda m: m.forests.extend([forest(), forest(objective="b", calibration=isotonic)])))


SHAPES: list[tuple[str, Callable[[NDArray[Any]], NDArray[Any]], str]] = [
    ("spaces/als/vectors.npy", lambda a: a[:, :7], "shape"),
    ("spaces/als/vectors.npy", lambda a: a[:-1], "shape"),
    ("spaces/als/vectors.npy", lambda a: a.astype(np.float64), "dtype"),
    ("spaces/als/vectors.npy", lambda a: a.astype(">f4"), "dtype"),
    ("spaces/als/vectors.npy", np.asfortranarray, "dtype"),
    ("spaces/als/user_vectors.npy", lambda a: a[:-1], "shape"),
    ("spaces/als/user_keys.npy", lambda a: a.reshape(2, -1), "shape"),
    ("items/features.npy", lambda a: a[:, :2], "shape"),
    ("items/times.npy", lambda a: a.astype(np.int32), "dtype"),
    ("items/popular.npy", lambda a: a[:10], "shape"),
    ("items/ids.keys.npy", lambda a: a[:-1], "shape"),
    ("items/columns/price.npy", lambda a: a[:-1], "shape"),
    ("items/columns/regions.offsets.npy", lambda a: a[:-1], "shape"),
]


@pytest.mark.parametrize(("file", "change", "field"), SHAPES)
def test_arrays_of_other_shapes_and_types(
    tiny_bundle: Make, resign: Resign, file: str, change: Callable[..., Any], field: str
) -> None:
    path = tiny_bundle()
    change_array(path / file, change)
    resign(path)
    for verify in (True, False):
        with pytest.raises(BundleMismatchError) as caught:
            open_bundle(path, verify=verify)
        assert (caught.value.file, caught.value.field) == (file, field)
        assert caught.value.expected != caught.value.found


CONTENTS: list[tuple[str, Callable[[NDArray[Any]], Any]]] = [
    ("items/columns/category.npy", put(5, 8)),
    ("items/columns/category.npy", put(5, -2)),
    ("items/columns/in_stock.npy", put(5, 2)),
    ("items/columns/regions.codes.npy", put(0, 5)),
    ("items/columns/regions.offsets.npy", put(5, 10**6)),
    ("items/columns/regions.offsets.npy", put(0, 1)),
    ("items/columns/title.offsets.npy", put(-1, 0)),
    ("items/columns/title.utf8.npy", put(0, 0xFF)),
    ("items/popular.npy", put(0, 200)),
    ("items/popular.npy", lambda a: put(0, a[1])(a)),
    ("items/popular.npy", lambda a: a[::-1].copy()),
    ("items/popular.npy", lambda a: put([4, 5], a[[5, 4]])(a)),
    ("items/ids.offsets.npy", put(1, 10**9)),
    ("items/ids.utf8.npy", put(3, 0x80)),
    ("items/ids.keys.npy", lambda a: put(7, a[6])(a)),
    ("items/ids.slots.npy", put(slice(None), 0)),
    ("items/ids.slots.npy", put(0, 10**6)),
    ("items/ids.slots.npy", lambda a: a[:500]),
    ("spaces/als/user_keys.npy", lambda a: a[::-1].copy()),
    ("spaces/als/user_keys.npy", lambda a: put(1, a[0])(a)),
    ("spaces/als/vectors.npy", put((7, 3), np.nan)),
    ("spaces/als/vectors.npy", put((7, 3), np.inf)),
    ("spaces/als/user_vectors.npy", put((7, 3), np.nan)),
    ("spaces/content/vectors.npy", lambda a: put(199, a[199] * np.float32(1.001))(a)),
    ("spaces/content/vectors.npy", put(0, 0)),
    ("spaces/content/user_vectors.npy", lambda a: put(0, a[0] * np.float32(0.999))(a)),
    ("items/columns/launch_time.npy", put(3, 2**62)),
    ("items/columns/launch_time.npy", put(3, MISSING_TIME + 1)),
    ("items/features.npy", lambda a: put((5, 0), a[5, 0] + 1)(a)),
    ("items/features.npy", put((5, 1), np.nan)),
    ("items/features.npy", put((36, 1), -1)),
    ("items/times.npy", lambda a: put((5, 0), a[5, 0] + 1)(a)),
    ("items/times.npy", put((5, 0), MISSING_TIME)),
]


@pytest.mark.parametrize(("file", "change"), CONTENTS)
def test_arrays_of_impossible_contents(
    tiny_bundle: Make, resign: Resign, file: str, change: Callable[..., Any]
) -> None:
    path = tiny_bundle()
    change_array(path / file, change)
    resign(path)
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    stem = Path(file).name.split(".")[0]
    assert Path(caught.value.file).name.split(".")[0] == stem


def test_colliding_keys_are_found_at_load(tiny_bundle: Make, resign: Resign) -> None:
    path = tiny_bundle()
    change_array(path / "items/ids.keys.npy", lambda a: put(7, a[6])(a))
    resign(path)
    with pytest.raises(BundleCorruptError, match=r"collide.*items/ids\.keys\.npy.*expected 7, found 6"):
        open_bundle(path)


def npy(header: str, values: bytes = b"", version: bytes = b"\x01\x00", align: int = 64) -> bytes:
    """A .npy file with a header of one's own, which is padded to a multiple of `align` less one byte."""
    padded = header.encode() + b" " * (-(10 + len(header) + 1) % align) + b"\n"
    return b"\x93NUMPY" + version + len(padded).to_bytes(2, "little") + padded + values


def npy_header(shape: str = "(200,)", descr: str = "'<i8'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


ROWS = np.arange(200).tobytes()
NO_ARRAYS = {
    "empty": b"",
    "magic number only": b"\x93NUMPY",
    "cut header": b"\x93NUMPY\x01\x00v\x00{",
    "zip archive": b"PK\x03\x04" + b"\0" * 200,
    "another format": npy(npy_header(), ROWS, version=b"\x04\x00"),
    "no dictionary": npy("[1, 2]", ROWS),
    "Python 2 integers": npy(npy_header("(200L,)"), ROWS),
    "deep nesting": npy("(" * 9000, ROWS),
    "many digits": npy(npy_header("(" + "1" * 60_000 + ",)"), ROWS),
    "a boolean length": npy(npy_header("(True,)"), ROWS[:8]),
    "a negative length": npy(npy_header("(-1,)"), ROWS),
    "Python objects": npy(npy_header(descr="'|O'").replace("}", "'x': 1}"), ROWS),
    "fields": npy(npy_header(descr="[('a', '<i8')]"), ROWS),
}


@pytest.mark.parametrize("content", NO_ARRAYS.values(), ids=NO_ARRAYS.keys())
def test_what_is_no_array(tiny_bundle: Make, resign: Resign, content: bytes) -> None:
    path = tiny_bundle()
    (path / "items/popular.npy").write_bytes(content)
    resign(path)
    with pytest.raises(BundleCorruptError, match=r"not a \.npy array.*items/popular\.npy"):
        open_bundle(path)


@pytest.mark.parametrize("length", [2**60, 2**61, 2**62, 2**63, 2**64, 2**70])
@pytest.mark.parametrize(
    ("file", "fixed"), [("items/popular.npy", True), ("items/columns/title.utf8.npy", False)], ids=["fixed", "any"]
)
def test_lengths_beyond_every_file(tiny_bundle: Make, resign: Resign, file: str, fixed: bool, length: int) -> None:
    """Their bytes, counted in 64 bits, would wrap around."""
    path = tiny_bundle()
    (path / file).write_bytes(npy(npy_header(f"({length},)", descr="'<i8'" if fixed else "'|u1'")))
    resign(path)
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    assert caught.value.file == file
    if fixed:
        assert (caught.value.field, caught.value.expected, caught.value.found) == ("shape", (200,), (length,))
    else:
        assert caught.value.expected == 128 + length


def test_an_array_that_is_not_aligned(tiny_bundle: Make, resign: Resign) -> None:
    """Kernels load values in one instruction; whatever writes such a header, it is not NumPy."""
    path = tiny_bundle()
    rows = np.load(path / "items/popular.npy").tobytes()
    (path / "items/popular.npy").write_bytes(npy(npy_header(), rows, align=64))
    resign(path)
    open_bundle(path)
    (path / "items/popular.npy").write_bytes(npy(npy_header() + " ", rows, align=1))
    resign(path)
    with pytest.raises(BundleCorruptError, match=r"not aligned.*items/popular\.npy"):
        open_bundle(path)


def test_an_array_longer_than_its_header_says(tiny_bundle: Make, resign: Resign) -> None:
    path = tiny_bundle()
    with (path / "items/popular.npy").open("ab") as file:
        file.write(b"\0" * 8)
    resign(path)
    with pytest.raises(BundleCorruptError, match="header contradicts"):
        open_bundle(path)


@pytest.mark.parametrize("text", ["{}", "[1]", '["a", "a"]', "[", '["\\ud800"]'])
def test_vocabularies_that_are_none(tiny_bundle: Make, resign: Resign, text: str) -> None:
    path = tiny_bundle()
    (path / "vocab/device.json").write_text(text)
    resign(path)
    with pytest.raises(BundleCorruptError, match=r"vocab/device\.json"):
        open_bundle(path)


def test_a_vocabulary_in_another_order(tiny_bundle: Make, resign: Resign) -> None:
    path = tiny_bundle()
    values = json.loads((path / "vocab/device.json").read_text())
    (path / "vocab/device.json").write_text(json.dumps(values[::-1]))
    resign(path)
    with pytest.raises(BundleMismatchError, match="schema_hash"):
        open_bundle(path)


def test_feature_definitions_that_are_none(tiny_bundle: Make, resign: Resign) -> None:
    path = tiny_bundle()
    (path / "features.json").write_text('{"schema_version": 1, "features": [{"name": "x", "op": "cube"}]}')
    resign(path)
    with pytest.raises(BundleCorruptError, match=r"cube.*\n*.*features\.json"):
        open_bundle(path)


# -------------------------------------------------------------------------------------------------------------- memory


def test_loading_half_a_gigabyte_keeps_nothing_of_it(tiny_bundle: Make, resign: Resign) -> None:
    """In a process of its own: what it allocates for itself must not grow with the vectors."""
    dim = 512 * 2**20 // (200 * 4)

    def widen(manifest: manifest_pb2.Manifest) -> None:
        manifest.spaces[1].dim, manifest.spaces[1].normalized = dim, False
        manifest.spaces[1].ClearField("user_vectors")

    path = tiny_bundle(edit=widen)
    np.lib.format.open_memmap(path / "spaces/content/vectors.npy", "w+", np.float32, (200, dim)).flush()
    for name in ("user_vectors", "user_keys"):
        (path / f"spaces/content/{name}.npy").unlink()
    resign(path)
    script = """
        import resource
        import sys
        from pathlib import Path
        from recserve.server.bundle.reader import open_bundle

        def kib(file, field):
            lines = Path("/proc/self", file).read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))

        # Private writable memory may not grow by more at any moment, not even while a checksum is taken.
        limit = (kib("status", "VmData") + 64 * 1024) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        before = kib("smaps_rollup", "Anonymous")
        bundle = open_bundle(Path(sys.argv[1]), verify=True)
        total = float(bundle.spaces["content"].vectors.sum())
        print(kib("smaps_rollup", "Anonymous") - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 16 * 1024  # KiB


# --------------------------------------------------------------------------------------------------------------- docs


def test_the_documents_manifest_is_one() -> None:
    text = (Path(__file__).parents[3] / "docs" / "bundle.md").read_text(encoding="utf-8")
    example = text.split("```json\n")[1].split("```")[0]
    manifest = json_format.Parse(example, manifest_pb2.Manifest())
    assert manifest.catalogue.items == 20000


def test_every_file_of_a_bundle_and_a_snapshot_is_documented(tiny_bundle: Make, tiny_snapshot: Make) -> None:
    text = (Path(__file__).parents[3] / "docs" / "bundle.md").read_text(encoding="utf-8")
    documented = [re.escape(name) for name in re.findall(r"`([^`\s]+\.(?:json|npy|\*)|[a-z/]+\*)`", text)]
    patterns = [re.sub(r"<\w+>", "[^/.]+", name).replace(r"\*", ".*") for name in documented]
    for file in files_of(tiny_bundle()) + files_of(tiny_snapshot()):
        assert any(re.fullmatch(pattern, file) for pattern in patterns), file


def test_an_error_names_only_what_is_known() -> None:
    assert str(BundleNotFoundError("gone", expected="a folder")) == "gone (expected 'a folder')"
    assert str(BundleNotFoundError("gone", field="x", found=0)) == "gone (field x, found 0)"
    assert str(BundleNotFoundError("gone", expected=1, found=2)) == "gone (expected 1, found 2)"
    assert str(BundleNotFoundError("gone")) == "gone"
