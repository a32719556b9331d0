from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recserve.kernels.features import MISSING_TIME
from recserve.server.bundle.errors import BundleCorruptError, BundleError, BundleMismatchError, BundleNotFoundError
from recserve.server.bundle.reader import open_bundle
from recserve.server.bundle.snapshot import open_snapshot
from recserve.server.bundle.strings import key_of

Make = Callable[..., Path]
Resign = Callable[[Path], None]


def test_users_have_the_columns_of_their_table(tiny_snapshot: Make, tiny_bundle: Make, tiny_users: Any) -> None:
    snapshot, bundle = open_snapshot(tiny_snapshot()), open_bundle(tiny_bundle())
    for row, expected in enumerate(tiny_users.to_pylist()):
        columns = snapshot.state(row).columns
        assert snapshot.row_of(expected["user_id"]) == row
        np.testing.assert_array_equal(columns.numbers, [[np.nan if expected["age"] is None else expected["age"]]])
        gender = expected["gender"]
        assert columns.codes.tolist() == [[-1 if gender is None else bundle.vocabularies["gender"].code(gender)]]
        top = [bundle.vocabularies["category"].code(value) for value in expected["top_categories"]]
        assert columns.list_codes.tolist() == top
        assert columns.list_offsets.tolist() == [0, len(top)]
        assert columns.times[0, 0] != MISSING_TIME


def test_histories_are_those_of_their_table_latest_first(tiny_snapshot: Make, tiny_history: Any) -> None:
    snapshot = open_snapshot(tiny_snapshot())
    events = ("view", "cart", "purchase")
    expected: dict[str, list[tuple[int, int, int, float]]] = {}
    for entry in tiny_history.to_pylist():
        time_us = int(np.datetime64(entry["last_time"].replace(tzinfo=None), "us").astype(np.int64))
        line = (-time_us, key_of(entry["item_id"]), events.index(entry["event_type"]), float(entry["count"]))
        expected.setdefault(entry["user_id"], []).append(line)
    for row, user_id in enumerate(snapshot.user_ids(np.arange(snapshot.size))):
        user = snapshot.state(row)
        found = list(zip((-user.last_us).tolist(), user.keys.tolist(), user.events.tolist(), user.counts, strict=True))
        assert found == sorted(expected.get(user_id, []))


def test_unknown_users_have_no_row(tiny_snapshot: Make) -> None:
    snapshot = open_snapshot(tiny_snapshot())
    assert snapshot.row_of("nobody") == -1
    assert snapshot.rows_of(["user-03", "", "user-00"]).tolist() == [3, -1, 0]
    with pytest.raises(IndexError):
        snapshot.state(-1)


def test_a_snapshot_fits_bundles_of_its_feature_definitions(
    tiny_snapshot: Make, tiny_bundle: Make, tiny_schema: dict[str, Any], tmp_path: Path
) -> None:
    snapshot = open_snapshot(tiny_snapshot())
    snapshot.check_fits(open_bundle(tiny_bundle()))
    tiny_schema["features"].pop()  # users do not depend on what is computed from them
    snapshot.check_fits(open_bundle(tiny_bundle(schema=tiny_schema, target=tmp_path / "fewer")))
    tiny_schema["event_types"].append("return")
    with pytest.raises(BundleMismatchError, match=r"user_hash"):
        snapshot.check_fits(open_bundle(tiny_bundle(schema=tiny_schema, target=tmp_path / "other")))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("users/codes.npy", lambda a: np.full_like(a, 9)),
        ("users/lists.codes.npy", lambda a: np.full_like(a, 9)),
        ("users/numbers.npy", lambda a: np.hstack([a, a])),
    ],
)
def test_columns_that_the_hash_does_not_promise(
    tiny_snapshot: Make, tiny_bundle: Make, resign: Resign, file: str, change: Callable[[Any], Any]
) -> None:
    path = tiny_snapshot()
    np.save(path / file, change(np.load(path / file)))
    resign(path)
    with pytest.raises(BundleError) as caught:
        open_snapshot(path).check_fits(open_bundle(tiny_bundle()))
    assert caught.value.file == file


def test_list_codes_are_those_of_their_own_column(
    tiny_snapshot: Make, tiny_bundle: Make, tiny_schema: dict[str, Any], tiny_users: Any, resign: Resign
) -> None:
    """Users' three genders and eight categories: a code of 5 is a category, but no gender."""
    tiny_schema["user"].append({"name": "shared_with", "type": "categories", "vocabulary": "gender"})
    users = tiny_users.append_column("shared_with", [[["f", "x"]] * len(tiny_users)])
    path = tiny_snapshot(schema=tiny_schema, users=users)
    bundle = open_bundle(tiny_bundle(schema=tiny_schema))
    open_snapshot(path).check_fits(bundle)
    codes, offsets = (np.load(path / f"users/lists.{part}.npy") for part in ("codes", "offsets"))
    codes[offsets[7]] = 5  # the first of the second list of user 3
    np.save(path / "users/lists.codes.npy", codes)
    resign(path)
    with pytest.raises(BundleCorruptError, match=r"of list column 1.*lists\.codes\.npy.*'0 to 2', found 5"):
        open_snapshot(path).check_fits(bundle)


def test_lists_of_a_snapshot_that_was_not_verified(tiny_snapshot: Make, tiny_bundle: Make) -> None:
    path = tiny_snapshot()
    offsets = np.load(path / "users/lists.offsets.npy")
    offsets[5] = 2**40
    np.save(path / "users/lists.offsets.npy", offsets)
    snapshot = open_snapshot(path, verify=False)
    with pytest.raises(BundleCorruptError, match=r"decrease.*lists\.offsets\.npy"):
        snapshot.check_fits(open_bundle(tiny_bundle()))


def test_every_changed_file_is_named(tiny_snapshot: Make) -> None:
    path = tiny_snapshot()
    for file in [each for each in path.rglob("*") if each.is_file() and each.name != "snapshot.json"]:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(BundleCorruptError) as caught:
            open_snapshot(path)
        assert caught.value.file == file.relative_to(path).as_posix()
        file.write_bytes(content)
    open_snapshot(path)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("history/offsets.npy", lambda a: np.concatenate([a[:5], [10**6], a[6:]])),
        ("history/offsets.npy", lambda a: np.concatenate([a[:5], a[6:7], a[5:6], a[7:]])),
        ("history/offsets.npy", lambda a: np.concatenate([a[:1], [2**63 - 1, -(2**63), -1], a[4:]])),
        ("history/events.npy", lambda a: a + 3),
        ("history/counts.npy", lambda a: np.concatenate([a[:5], [np.nan], a[6:]])),
        ("history/counts.npy", lambda a: a - a),
        ("history/last_us.npy", lambda a: np.concatenate([a[:5], [MISSING_TIME], a[6:]])),
        ("history/last_us.npy", lambda a: a * 1000),
        ("users/times.npy", lambda a: a * 1000),
        ("users/lists.offsets.npy", lambda a: np.concatenate([a[:1], a[-2:0:-1], a[-1:]])),
        ("history/keys.npy", lambda a: a[:-1]),
        ("users/lists.offsets.npy", lambda a: a[:-1]),
        ("ids.keys.npy", lambda a: a[::-1].copy()),
    ],
)
def test_impossible_contents(tiny_snapshot: Make, resign: Resign, file: str, change: Callable[[Any], Any]) -> None:
    path = tiny_snapshot()
    np.save(path / file, change(np.load(path / file)))
    resign(path)
    with pytest.raises(BundleError) as caught:
        open_snapshot(path)
    assert caught.value.file == file


@pytest.mark.parametrize("field", ["version", "user_hash", "users"])
def test_a_manifest_that_leaves_out_what_is_needed(tiny_snapshot: Make, field: str) -> None:
    path = tiny_snapshot()
    manifest = json.loads((path / "snapshot.json").read_text())
    del manifest[field]
    (path / "snapshot.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleMismatchError, match=field):
        open_snapshot(path)


def test_a_bundle_is_no_snapshot(tiny_bundle: Make) -> None:
    with pytest.raises(BundleNotFoundError, match=r"snapshot\.json"):
        open_snapshot(tiny_bundle())
