"""Reading what a bundle stores of its golden requests: whatever is wrong with the file, the error says whose it is."""

from __future__ import annotations

import io
import json
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recserve.server.bundle.errors import BundleCorruptError
from recserve.server.bundle.reader import Bundle, open_bundle
from recserve.server.pipeline.golden_set import REQUESTS_FILE, STAGES_FILE, GoldenSet

HEADER = "{'descr': '<f8', 'fortran_order': False, 'shape': (10,), }"


@pytest.fixture
def bundle(tiny_bundle: Callable[..., Path], resign: Callable[[Path], None]) -> Bundle:
    """A bundle without golden requests, and room for their arrays."""
    path = tiny_bundle()
    (path / "golden").mkdir()
    (path / REQUESTS_FILE).write_text(json.dumps([]))
    (path / STAGES_FILE).touch()
    resign(path)
    return open_bundle(path)


def archive_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def array_file(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header.encode() + b"\n" + bytes(80)


def with_shape(shape: str) -> bytes:
    return archive_of(known=array_file(HEADER.replace("(10,)", shape)))


def encrypted() -> bytes:
    content = bytearray(with_shape("(10,)"))
    content[6] |= 1  # the flags of the member, then of its entry in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def badly_compressed() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, known=np.arange(1000.0))
    content = bytearray(buffer.getvalue())
    content[100:130] = bytes(30)
    return bytes(content)


DAMAGED = {
    "compressed data": badly_compressed(),
    "encrypted": encrypted(),
    "more than an integer holds": with_shape(f"({2**70},)"),
    "more than memory holds": with_shape(f"({10**17},)"),
    "more than 64 bits of bytes": with_shape(f"({2**62},)"),
    "a header that does not end": with_shape("(" * 900),
    "another Python": archive_of(known=array_file(HEADER.replace("<f8", ",f8"))),
    "no header": archive_of(known=b"\x93NUMPY\x01\x00\xff\xff"),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_stages(bundle: Bundle, content: bytes) -> None:
    bundle.file(STAGES_FILE).write_bytes(content)
    with pytest.raises(BundleCorruptError, match=r"golden stages are malformed.*golden/stages\.npz"):
        GoldenSet.load(bundle)


def test_stages_with_any_bytes_changed(bundle: Bundle) -> None:
    """Either nothing that is read has changed, and the stages lack what they always lacked, or they are malformed."""
    originals = []
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, known=np.arange(50.0), rows=np.arange(12, dtype=np.int32).reshape(3, 4))
        originals.append(buffer.getvalue())
    changes = random.Random(1)
    for number in range(400):
        content = bytearray(originals[number % 2])
        for _ in range(changes.randint(1, 3)):
            content[changes.randrange(len(content))] = changes.randrange(256)
        bundle.file(STAGES_FILE).write_bytes(content)
        with (
            warnings.catch_warnings(action="ignore"),  # NumPy's, about headers that Python 2 might have written
            pytest.raises(BundleCorruptError, match="golden stages are malformed"),
        ):
            GoldenSet.load(bundle)


def test_numbers_in_another_byte_order() -> None:
    """Kernels would refuse them, or read other numbers."""
    stored = np.arange(3, dtype=np.dtype(np.int64).newbyteorder())
    golden = GoldenSet((), (), (), {"rows": stored, "names": np.array(["a", "long"])})
    with pytest.raises(BundleCorruptError, match=r"expected 'int64 \[3\]', found '.i8"):
        golden.array("rows", np.int64, 3)
    assert golden.array("names", np.str_, 2).tolist() == ["a", "long"]
