"""Names within bundles and snapshots: the one place that says which file holds what.

`docs/bundle.md` describes each of them for readers that are not this program.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from recserve.bundle.v1 import manifest_pb2
from recserve.kernels.features import operations
from recserve.server.bundle.errors import BundleCorruptError

SCHEMA_VERSION: Final = 1
"""Newest format of bundles and snapshots that this build reads, and the one that it writes."""

MANIFEST: Final = "manifest.json"
SNAPSHOT_MANIFEST: Final = "snapshot.json"
FEATURES: Final = "features.json"

ITEM_IDS: Final = "items/ids"
ITEM_FEATURES: Final = "items/features.npy"
ITEM_TIMES: Final = "items/times.npy"
ITEM_POPULAR: Final = "items/popular.npy"
ITEM_BINS: Final = "items/bins.npy"

FOREST_SET: Final = "ranker/forest"
"""Where exports put the arrays of the compiled forests; the manifest says where they are."""

USER_IDS: Final = "ids"
USER_NUMBERS: Final = "users/numbers.npy"
USER_CODES: Final = "users/codes.npy"
USER_TIMES: Final = "users/times.npy"
USER_LIST_OFFSETS: Final = "users/lists.offsets.npy"
USER_LIST_CODES: Final = "users/lists.codes.npy"
HISTORY_OFFSETS: Final = "history/offsets.npy"
HISTORY_KEYS: Final = "history/keys.npy"
HISTORY_EVENTS: Final = "history/events.npy"
HISTORY_COUNTS: Final = "history/counts.npy"
HISTORY_LAST: Final = "history/last_us.npy"

MAX_ID_BYTES: Final = 256
"""Longest item or user id, in UTF-8."""

COLUMN_PARTS: Final[dict[int, dict[str, np.dtype[np.generic]]]] = {
    manifest_pb2.NUMBER: {"": np.dtype("<f8")},
    manifest_pb2.INTEGER: {"": np.dtype("<i8")},
    manifest_pb2.CATEGORY: {"": np.dtype("<i4")},
    manifest_pb2.TIME: {"": np.dtype("<i8")},
    manifest_pb2.FLAG: {"": np.dtype("<u1")},
    manifest_pb2.CATEGORIES: {"offsets": np.dtype("<i8"), "codes": np.dtype("<i4")},
    manifest_pb2.STRING: {"offsets": np.dtype("<i8"), "utf8": np.dtype("<u1")},
}
"""By column type: its parts with their dtypes; the part "" stands for the column's only file."""

INDEX_PARTS: Final[dict[str, tuple[np.dtype[np.generic], int]]] = {
    "projection": (np.dtype("<f4"), 2),
    "centroids": (np.dtype("<f4"), 3),
    "codewords": (np.dtype("<f4"), 3),
    "starts": (np.dtype("<i8"), 1),
    "rows": (np.dtype("<i4"), 2),
    "codes": (np.dtype("<u1"), 3),
}
"""The arrays of an IVF_PQ4 index with their dtypes and numbers of dimensions; see `recserve.kernels.ivf`."""

LISTS_PARTS: Final[dict[str, np.dtype[np.generic]]] = {
    "offsets": np.dtype("<i8"),
    "rows": np.dtype("<i4"),
    "scores": np.dtype("<f4"),
}
"""The parts of a candidate source's lists with their dtypes."""

AGAIN: Final = "again"
NEW: Final = "new"
POPULAR: Final = "popular"
POPULAR_IN_CATEGORY: Final = "popular_in_category"
SIMILAR: Final = "similar"
SOURCE_NAMES: Final = frozenset({AGAIN, NEW, POPULAR, POPULAR_IN_CATEGORY, SIMILAR})
"""Candidate sources that bundles have without lists; neither spaces nor lists may take these names."""

TOGETHER: Final = "together"
TRENDING: Final = "trending"
"""What exports call the lists of these kinds."""

MAX_WEIGHT: Final = 1e6
"""The largest weight of a source or objective, also in the configuration and in requests: sums and products of them
stay finite."""

MAX_DAYS: Final = 3_652_059
"""From the year 1 to the year 9999."""

NAME_RULE: Final = operations.NAME_RULE


def is_name(name: str) -> bool:
    """Whether a column, space, vocabulary or objective may have this name, which becomes part of file names."""
    return operations.NAME.fullmatch(name) is not None


def column_file(name: str, part: str = "") -> str:
    """The file of one part of an item column."""
    return f"items/columns/{name}.{part}.npy" if part else f"items/columns/{name}.npy"


def vocabulary_file(name: str) -> str:
    """The file of a vocabulary: a JSON list of strings in the order of their codes."""
    return f"vocab/{name}.json"


def string_table_file(stem: str, part: str) -> str:
    """The file of one part (utf8, offsets, keys, slots) of a string table."""
    return f"{stem}.{part}.npy"


def space_file(space: str, name: str) -> str:
    """A file of a vector space, such as `vectors.npy`."""
    return f"spaces/{space}/{name}"


def index_file(space: str, part: str) -> str:
    """The file of one part of a space's IVF_PQ4 index."""
    return space_file(space, f"index/{part}.npy")


def lists_file(source: str, part: str) -> str:
    """The file of one part (offsets, rows, scores) of a candidate source's lists."""
    return f"sources/{source}/{part}.npy"


def check_relative(path: str, *, manifest: str) -> None:
    """Refuse a path that could leave the bundle, or that names the manifest itself.

    Args:
        path: as the manifest lists it, with forward slashes.
        manifest: name of the manifest's file, for the message.

    Raises:
        BundleCorruptError: the path is empty, absolute, not normalised, or holds `..`, a backslash or NUL.
    """
    parts = path.split("/")
    if path == manifest or "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise BundleCorruptError(
            "the manifest lists a path that is not a plain relative one within the bundle: export it again",
            file=manifest,
            field="files",
            expected="such as items/features.npy",
            found=path,
        )
