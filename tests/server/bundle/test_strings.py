from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters.strings import make_string_table, write_string_table
from recserve.exporters.writer import BundleWriter
from recserve.kernels.ids import build_slots
from recserve.server.bundle.errors import BundleCorruptError
from recserve.server.bundle.files import ArtifactFiles
from recserve.server.bundle.strings import StringTable, key_of, keys_of


def write_table(target: Path, ids: list[str]) -> ArtifactFiles:
    manifest = manifest_pb2.SnapshotManifest()
    with BundleWriter(target) as writer:
        write_string_table(writer, "ids", make_string_table(ids, "ids"))
        writer.commit(manifest)
    return ArtifactFiles(target, manifest.files, "snapshot.json")


def in_memory(strings: list[str], keys: list[int]) -> StringTable:
    encoded = [each.encode() for each in strings]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    stored = np.array(keys, np.uint64)
    return StringTable(np.frombuffer(b"".join(encoded), np.uint8), offsets, stored, build_slots(stored))


IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64).filter(
    lambda s: len(s.encode()) <= 256
)


@given(ids=st.lists(IDS, min_size=1, max_size=40, unique=True), others=st.lists(IDS, max_size=20))
@settings(max_examples=40, deadline=None)
def test_any_utf8_ids_are_found_again_and_others_are_not(ids: list[str], others: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        table = StringTable.open(write_table(Path(directory, "t"), ids), "ids", len(ids))
        table.check("ids")
        rows = np.arange(len(ids))
        assert len(table) == len(ids)
        assert table.rows_of(ids).tolist() == rows.tolist()
        assert table.strings(rows) == ids
        assert table.rows_of_keys(table.keys(rows)).tolist() == rows.tolist()
        assert table.rows_of(others).tolist() == [ids.index(each) if each in ids else -1 for each in others]


def test_key_is_xxh3_of_the_utf8_bytes() -> None:
    assert key_of("товар-7") == xxhash.xxh3_64_intdigest("товар-7".encode())
    assert keys_of(["a", "b"]).tolist() == [key_of("a"), key_of("b")]
    assert keys_of([]).dtype == np.uint64


def test_an_id_whose_key_collides_with_a_known_one_stays_unknown() -> None:
    table = in_memory(["known"], [key_of("unknown")])
    assert table.rows_of_keys(keys_of(["unknown"])).tolist() == [0]
    assert table.rows_of(["unknown"]).tolist() == [-1]


@pytest.mark.parametrize("row", [-1, 2])
def test_rows_outside_the_table_are_refused(row: int) -> None:
    table = in_memory(["a", "b"], [key_of("a"), key_of("b")])
    with pytest.raises(IndexError, match="0 to 1"):
        table.strings(np.array([row]))
    with pytest.raises(IndexError, match="0 to 1"):
        table.keys(np.array([row]))


@pytest.mark.parametrize("row", range(8))
def test_a_key_that_leads_to_another_row_is_found_in_every_block(row: int) -> None:
    ids = [f"id-{number}" for number in range(8)]
    table = in_memory(ids, keys_of(ids).tolist())
    table.check("ids", block=3)
    table._keys[row] = table._keys[row - 1]
    with pytest.raises(BundleCorruptError, match="does not lead to it") as caught:
        table.check("ids", block=3)
    assert (caught.value.expected, caught.value.found) == (row, (row - 1) % 8)


def test_keys_of_another_hash_are_refused() -> None:
    table = in_memory(["a", "b"], [1, 2])
    with pytest.raises(BundleCorruptError, match=r"not the XXH3.*items/ids\.keys\.npy"):
        table.check("items/ids")
