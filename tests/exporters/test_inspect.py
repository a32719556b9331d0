from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console, RenderableType

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters.inspect import diff_bundles, human_bytes, inspect_artifact, inspect_bundle, verify_bundle
from recserve.server.bundle.errors import BundleCorruptError, BundleNotFoundError
from recserve.server.bundle.snapshot import open_snapshot

Make = Callable[..., Path]


def shown(what: RenderableType, width: int = 160) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(what)
    return console.export_text()


def add_forest(manifest: manifest_pb2.Manifest) -> None:
    calibration = manifest_pb2.Calibration(kind=manifest_pb2.SIGMOID, x=[1, 0])
    manifest.forests.add(
        objective="click",
        weight=0.5,
        features=8,
        trees=31,
        model="features.json",
        kind=manifest_pb2.XGBOOST,
        source="XGBoost",
        calibration=calibration,
    )
    manifest.offline_metrics["ndcg@20"] = 0.4125
    manifest.made_from.add(role="items", path="[red].parquet")


def test_inspect_shows_what_is_there(tiny_bundle: Make) -> None:
    text = shown(inspect_bundle(tiny_bundle(edit=add_forest)))
    for part in ("tiny 1", "200", "launch_time", "country (5)", "content", "inner product, length 1", "40 vectors"):
        assert part in text
    for part in ("click", "31", "sigmoid", "ndcg@20", "0.4125", "[red].parquet"):
        assert part in text


def cells_of(text: str) -> set[tuple[str, ...]]:
    """The rows of a table."""
    rows = (line.strip("│") for line in text.splitlines() if line.startswith("│"))
    return {tuple(cell.strip() for cell in row.split("│")) for row in rows}


def test_inspect_tells_a_snapshot_from_a_bundle(tiny_bundle: Make, tiny_snapshot: Make) -> None:
    bundle, snapshot = shown(inspect_artifact(tiny_bundle())), shown(inspect_artifact(tiny_snapshot()))
    assert bundle.startswith("bundle tiny 1 ")
    assert snapshot.startswith("user snapshot 1 ")
    assert cells_of(snapshot) >= {
        ("users", "50"),
        ("columns", "1 number, 1 category, 1 time, 1 categories"),
        ("event types", "view, cart, purchase"),
    }
    assert {row for row in cells_of(snapshot) if row[0] == "user part of the definitions"} <= cells_of(bundle)


def test_what_is_of_bundles_only_says_that_it_got_a_snapshot(tiny_bundle: Make, tiny_snapshot: Make) -> None:
    snapshot = tiny_snapshot()
    for work in (lambda: verify_bundle(snapshot, allow_native_code=False), lambda: diff_bundles(snapshot, snapshot)):
        with pytest.raises(BundleNotFoundError, match=f"{snapshot} is a user snapshot, not a bundle: give the dir"):
            work()
    bundle = tiny_bundle()
    with pytest.raises(BundleNotFoundError, match=f"{bundle} is a bundle, not a user snapshot: give the dir"):
        open_snapshot(bundle)


def test_verify_names_what_is_wrong(tiny_bundle: Make) -> None:
    path = tiny_bundle()
    assert "tiny 1 is whole: 33 files" in shown(verify_bundle(path, allow_native_code=False))
    (path / "features.json").write_bytes((path / "features.json").read_bytes().replace(b"price", b"Price"))
    with pytest.raises(BundleCorruptError, match=r"features\.json"):
        verify_bundle(path, allow_native_code=False)
    inspect_bundle(tiny_bundle(target=path.parent / "other"))


def test_diff_tells_what_was_removed_added_and_changed(
    tiny_bundle: Make, tiny_items: pa.Table, tiny_schema: dict[str, Any], tmp_path: Path
) -> None:
    ids = ["[bold]new", *tiny_items.column("item_id").to_pylist()[1:]]
    items = tiny_items.set_column(0, "item_id", pa.array(ids))
    tiny_schema["features"][0]["name"] = "cost"
    other = tiny_bundle(items=items, schema=tiny_schema, version="2", edit=add_forest, target=tmp_path / "other")
    cells = cells_of(shown(diff_bundles(tiny_bundle(), other)))
    assert ("version", "1 → 2") in cells
    assert cells >= {("items", "-1: item-000"), ("", "+1: [bold]new")}
    assert cells >= {("features", "-1: price"), ("", "+1: cost")}
    assert ("forest click", "— → XGBoost, 31 trees, 8 features, 0.5") in cells
    assert ("metric ndcg@20", "— → 0.4125") in cells
    assert any(what == "feature definitions" for what, *_ in cells)


def test_names_of_files_are_whole_in_a_narrow_terminal(tiny_bundle: Make, tiny_items: pa.Table, tmp_path: Path) -> None:
    found = diff_bundles(tiny_bundle(), tiny_bundle(items=tiny_items[::-1], target=tmp_path / "other"))
    names = re.findall(r"[\w/]+\.\w+", shown(found))
    assert len(names) > 2
    assert [name for name in names if name not in shown(found, width=62)] == []


def test_a_bundle_does_not_differ_from_itself(tiny_bundle: Make) -> None:
    path = tiny_bundle()
    assert "do not differ" in shown(diff_bundles(path, path))


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (5 * 2**30, "5 GiB"), (3 * 2**40, "3 TiB")]
)
def test_human_bytes(size: int, text: str) -> None:
    assert human_bytes(size) == text
