"""Lists of candidate sources in a bundle: what is read of them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters.writer import BundleWriter
from recserve.server.bundle import checks
from recserve.server.bundle.errors import BundleCorruptError, BundleMismatchError
from recserve.server.bundle.reader import open_bundle
from recserve.server.pipeline.pipeline import open_pipeline

ITEMS = 200
Arrays = dict[str, NDArray[Any]]


def lists(kind: int, count: int, **changes: Any) -> manifest_pb2.ItemLists:
    return manifest_pb2.ItemLists(
        **{"name": "together", "kind": kind, "lists": count, "entries": 3, **changes},  # type: ignore[arg-type]
    )


def arrays(count: int) -> Arrays:
    """Two entries in the first list and one in the last."""
    offsets = np.full(count + 1, 2, np.int64)
    offsets[0], offsets[-1] = 0, 3
    return {
        "offsets": offsets,
        "rows": np.array([4, 7, 4], np.int32),
        "scores": np.array([0.5, 0.5, 1.0], np.float32),
    }


@pytest.fixture(name="bundle")
def fixture_bundle(tiny_bundle: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Makes a bundle with one source of lists."""

    def make(entry: manifest_pb2.ItemLists, parts: Arrays, **changes: Any) -> Path:
        sources = manifest_pb2.CandidateSources(**{"similar_items": 5, "new_days": 30.0, **changes}, lists=[entry])
        root = tiny_bundle(edit=lambda manifest: manifest.candidate_sources.CopyFrom(sources))
        manifest = open_manifest(root)
        with BundleWriter(tmp_path / "with lists") as writer:
            for file in root.rglob("*"):
                if file.is_file() and file.name != "manifest.json":
                    writer.path(file.relative_to(root).as_posix()).write_bytes(file.read_bytes())
            for part, values in parts.items():
                writer.array(f"sources/{entry.name}/{part}.npy", values)
            return writer.commit(manifest)

    return make


def open_manifest(root: Path) -> manifest_pb2.Manifest:
    from google.protobuf import json_format  # noqa: PLC0415

    return json_format.Parse((root / "manifest.json").read_text(), manifest_pb2.Manifest())


def test_lists_are_mapped_and_cut(bundle: Callable[..., Path]) -> None:
    opened = open_bundle(bundle(lists(manifest_pb2.TOGETHER, ITEMS), arrays(ITEMS)))
    found = opened.lists["together"]
    assert isinstance(found.rows.base, np.memmap | memoryview) or not found.rows.flags.owndata
    for index, expected in ((0, [4, 7]), (1, []), (ITEMS - 1, [4])):
        rows, scores = found.at(index)
        assert rows.tolist() == expected
        assert rows.dtype == np.int64
        assert scores.size == rows.size
    assert open_pipeline(opened).sources == (
        "als",
        "content",
        "popular",
        "again",
        "popular_in_category",
        "new",
        "together",
    )


DAMAGES: dict[str, tuple[str, Any, str]] = {
    "decreasing offsets": ("offsets", lambda a: a.__setitem__(3, 1), "offsets decrease"),
    "ends": ("offsets", lambda a: a.__setitem__(-1, 2), "offsets do not span"),
    "row beyond the catalogue": ("rows", lambda a: a.__setitem__(1, ITEMS), "out of range"),
    "negative row": ("rows", lambda a: a.__setitem__(1, -1), "out of range"),
    "repeated row": ("rows", lambda a: a.__setitem__(1, 4), "not in order|twice"),
    "ascending scores": ("scores", lambda a: a.__setitem__(1, 0.75), "not in order of score and row at entry 1"),
    "ties not by row": ("rows", lambda a: a.__setitem__(1, 3), "not in order of score and row at entry 1"),
    "NaN": ("scores", lambda a: a.__setitem__(2, np.nan), "entry 2 is not finite"),
}


@pytest.mark.parametrize("block", [1, checks.BLOCK])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_lists_are_refused(
    bundle: Callable[..., Path], damage: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "BLOCK", block)
    part, change, message = DAMAGES[damage]
    parts = arrays(ITEMS)
    change(parts[part])
    with pytest.raises(BundleCorruptError, match=message):
        open_bundle(bundle(lists(manifest_pb2.TOGETHER, ITEMS), parts))


def test_a_row_that_stands_twice_among_other_scores(bundle: Callable[..., Path]) -> None:
    parts = arrays(ITEMS)
    parts["rows"][:2], parts["scores"][:2] = 4, [0.5, 0.25]
    with pytest.raises(BundleCorruptError, match="holds row 4 twice"):
        open_bundle(bundle(lists(manifest_pb2.TOGETHER, ITEMS), parts))


@pytest.mark.parametrize(
    ("entry", "changes", "field"),
    [
        (lists(manifest_pb2.TOGETHER, 5), {}, r"lists\[together\]\.lists"),
        (lists(manifest_pb2.TRENDING, 5), {}, r"lists\[together\]\.lists"),
        (lists(manifest_pb2.LISTS_KIND_UNSPECIFIED, 5), {}, r"lists\[together\]\.kind"),
        (lists(manifest_pb2.TOGETHER, ITEMS, name="als"), {}, r"lists\[als\]"),
        (lists(manifest_pb2.TOGETHER, ITEMS, name="new"), {}, r"lists\[new\]"),
        (lists(manifest_pb2.POPULAR_BY, 4, columns=["gender", "device"]), {}, r"lists\[together\]\.lists"),
        (lists(manifest_pb2.POPULAR_BY, 4, columns=["age"]), {}, r"lists\[together\]\.columns"),
        (lists(manifest_pb2.POPULAR_BY, 4), {}, r"lists\[together\]\.columns"),
        (lists(manifest_pb2.TOGETHER, ITEMS), {"similar_space": "als"}, "similar_space"),
        (lists(manifest_pb2.TOGETHER, ITEMS), {"similar_space": "content", "similar_items": 0}, "similar_items"),
        (lists(manifest_pb2.TOGETHER, ITEMS), {"new_days": 0.0}, "new_days"),
    ],
)
def test_contradictions_are_refused(
    bundle: Callable[..., Path], entry: manifest_pb2.ItemLists, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(BundleMismatchError, match=field):
        open_bundle(bundle(entry, arrays(entry.lists), **changes))
