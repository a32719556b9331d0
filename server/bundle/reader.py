"""Opening a bundle: the manifest is parsed, every part is checked against it, and arrays are mapped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.kernels.features import FeatureSchema, FeatureSchemaError
from recserve.server.bundle import checks, layout
from recserve.server.bundle.catalogue import Catalogue
from recserve.server.bundle.columns import (
    CategoriesColumn,
    CategoryColumn,
    Column,
    FlagColumn,
    IntegerColumn,
    NumberColumn,
    StringColumn,
    TimeColumn,
    Vocabulary,
)
from recserve.server.bundle.consistency import check_manifest, check_schema
from recserve.server.bundle.errors import BundleCorruptError, BundleMismatchError
from recserve.server.bundle.files import ANY, ArtifactFiles, read_manifest
from recserve.server.bundle.lists import ItemLists
from recserve.server.bundle.strings import StringTable, key_of


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """A vector space over the items, and its users' vectors where they are stored.

    Attributes:
        spec: its entry in the manifest.
        vectors: float32 [items, dim], mapped: the one copy of the vectors.
        user_vectors: float32 [users, dim], mapped; None where the space stores none.
        user_keys: uint64 [users], ascending: whose vectors they are.
        index_path: the FAISS index, where the space has one.
        index_arrays: the arrays of an IVF_PQ4 index by part, mapped, where the space has one.
    """

    spec: manifest_pb2.Space
    vectors: NDArray[np.float32]
    user_vectors: NDArray[np.float32] | None = None
    user_keys: NDArray[np.uint64] | None = None
    index_path: Path | None = None
    index_arrays: Mapping[str, NDArray[Any]] | None = None

    @property
    def name(self) -> str:
        """Also the name of the candidate source."""
        return self.spec.name

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.spec.dim

    @property
    def normalized(self) -> bool:
        """Whether item and user vectors have length 1."""
        return self.spec.normalized

    @property
    def lowest_product(self) -> float:
        """No inner product of two vectors is below it."""
        return checks.LOWEST_PRODUCT if self.normalized else -math.inf

    @property
    def has_user_tower(self) -> bool:
        """Whether user vectors are computed."""
        return self.spec.HasField("user_tower")

    @property
    def serves_users(self) -> bool:
        """Whether a user can have a vector here; otherwise the space serves similarity only."""
        return self.has_user_tower or self.user_vectors is not None

    def user_row(self, user_id: str) -> int:
        """The row of a user in `user_vectors`, -1 where the space stores none for the user's key."""
        if self.user_keys is None:
            return -1
        key = key_of(user_id)
        row = int(np.searchsorted(self.user_keys, np.uint64(key)))
        return row if row < len(self.user_keys) and int(self.user_keys[row]) == key else -1


@dataclass(frozen=True, eq=False)
class Bundle:
    """An open bundle. Immutable, and safe to read from several threads.

    Attributes:
        files: its files.
        manifest: as stored.
        schema: the feature definitions.
        vocabularies: by name.
        catalogue: the items.
        spaces: by name, in the manifest's order.
        item_bins: uint8 [items, columns], mapped: the item features as the manifest's `forest_set` reads them; None
            where there is no such set.
        lists: of candidate sources, by name, in the manifest's order.
    """

    files: ArtifactFiles
    manifest: manifest_pb2.Manifest
    schema: FeatureSchema
    vocabularies: Mapping[str, Vocabulary]
    catalogue: Catalogue
    spaces: Mapping[str, Space]
    item_bins: NDArray[np.uint8] | None = None
    lists: Mapping[str, ItemLists] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Its directory, links resolved."""
        return self.files.root

    @property
    def name(self) -> str:
        """What it is a version of."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """Its version."""
        return self.manifest.version

    @cached_property
    def cardinalities(self) -> dict[str, int]:
        """How many values each vocabulary has, by name."""
        return {name: len(vocabulary) for name, vocabulary in self.vocabularies.items()}

    def file(self, relative: str) -> Path:
        """The absolute path of one of its files.

        Raises:
            BundleMismatchError: the manifest does not list it.
        """
        return self.files.path(relative)

    def space(self, name: str) -> Space:
        """The space of that name.

        Raises:
            BundleMismatchError: the bundle has no such space.
        """
        if name not in self.spaces:
            raise BundleMismatchError(
                "the bundle has no such space: export it",
                file=layout.MANIFEST,
                field="spaces",
                expected=name,
                found=list(self.spaces),
            )
        return self.spaces[name]


def open_bundle(path: Path, *, verify: bool = True) -> Bundle:
    """Open the bundle in a directory.

    The manifest, the list of files with their sizes, and every array's type and shape are always checked. Checksums
    and the contents of arrays are read in a stream, so that nothing but the mapped files stays in memory.

    Args:
        path: the bundle's directory; it may be a link to one.
        verify: also compare checksums and check the contents of arrays: indexes (offsets, codes, keys), times, vectors,
            and that arrays made of item columns hold their values.

    Raises:
        BundleNotFoundError: no such directory, or no manifest in it.
        BundleSchemaError: written by a newer format.
        BundleCorruptError: a file is missing, extra, truncated, changed, swapped or malformed.
        BundleMismatchError: parts contradict one another.
    """
    path = path.resolve()
    manifest = read_manifest(path, layout.MANIFEST, manifest_pb2.Manifest())
    files = ArtifactFiles(path, manifest.files, layout.MANIFEST)
    if verify:
        files.check_sums()
    check_manifest(manifest, files)
    vocabularies = _open_vocabularies(files)
    schema = _open_schema(files)
    check_schema(manifest, schema, vocabularies)
    catalogue = _open_catalogue(files, manifest.catalogue, vocabularies)
    spaces = {spec.name: _open_space(files, spec, catalogue.size) for spec in manifest.spaces}
    lists = {spec.name: ItemLists.open(files, spec) for spec in manifest.candidate_sources.lists}
    if verify:
        for each in lists.values():
            each.check(catalogue.size)
        _check_catalogue(catalogue)
        _check_matrices(catalogue, manifest.catalogue)
        for space in spaces.values():
            _check_space(space)
    return Bundle(files, manifest, schema, vocabularies, catalogue, spaces, _open_item_bins(files, manifest), lists)


def _open_item_bins(files: ArtifactFiles, manifest: manifest_pb2.Manifest) -> NDArray[np.uint8] | None:
    if not manifest.HasField("forest_set"):
        return None
    shape = (manifest.catalogue.items, manifest.forest_set.columns)
    return cast("NDArray[np.uint8]", files.array(layout.ITEM_BINS, np.dtype("<u1"), shape))


def _open_schema(files: ArtifactFiles) -> FeatureSchema:
    try:
        return FeatureSchema.from_json(files.text(layout.FEATURES))
    except FeatureSchemaError as error:
        raise BundleCorruptError(f"the feature definitions are malformed: {error}", file=layout.FEATURES) from error


def _open_vocabularies(files: ArtifactFiles) -> dict[str, Vocabulary]:
    stems = [Path(file).stem for file in files.listed]
    return {stem: _open_vocabulary(files, stem) for stem in sorted(stems) if layout.vocabulary_file(stem) in files}


def _open_vocabulary(files: ArtifactFiles, name: str) -> Vocabulary:
    file = layout.vocabulary_file(name)
    try:
        values = json.loads(files.text(file))
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise BundleCorruptError("a vocabulary is malformed", file=file, expected="a JSON list of strings")
        "".join(values).encode()  # JSON can escape half a surrogate pair, which no answer could carry
        return Vocabulary(name, values)
    except (ValueError, RecursionError) as error:
        raise BundleCorruptError(f"a vocabulary is malformed: {error}", file=file) from error


def _open_catalogue(
    files: ArtifactFiles, spec: manifest_pb2.Catalogue, vocabularies: Mapping[str, Vocabulary]
) -> Catalogue:
    features = files.array(layout.ITEM_FEATURES, np.dtype("<f4"), (spec.items, len(spec.feature_columns)))
    times = files.array(layout.ITEM_TIMES, np.dtype("<i8"), (spec.items, len(spec.time_columns)))
    popular = files.array(layout.ITEM_POPULAR, np.dtype("<i8"), (spec.items,))
    return Catalogue(
        ids=StringTable.open(files, layout.ITEM_IDS, spec.items),
        features=cast("NDArray[np.float32]", features),
        times=cast("NDArray[np.int64]", times),
        columns={column.name: _open_column(files, column, spec.items, vocabularies) for column in spec.columns},
        roles={field.name: str(name) for field, name in spec.roles.ListFields()},
        popular_rows=cast("NDArray[np.int64]", popular),
    )


def _open_column(
    files: ArtifactFiles, spec: manifest_pb2.Column, items: int, vocabularies: Mapping[str, Vocabulary]
) -> Column:
    parts = {
        part: files.array(layout.column_file(spec.name, part), dtype, (_part_length(part, items),))
        for part, dtype in layout.COLUMN_PARTS[spec.type].items()
    }
    match spec.type:
        case manifest_pb2.CATEGORY:
            return CategoryColumn(spec.name, cast("NDArray[np.int32]", parts[""]), vocabularies[spec.vocabulary])
        case manifest_pb2.CATEGORIES | manifest_pb2.STRING:
            return _open_lists(spec, parts, vocabularies)
        case _:
            return _SCALAR_COLUMNS[spec.type](spec.name, parts[""])


def _open_lists(
    spec: manifest_pb2.Column, parts: Mapping[str, NDArray[np.generic]], vocabularies: Mapping[str, Vocabulary]
) -> Column:
    offsets = cast("NDArray[np.int64]", parts["offsets"])
    file = layout.column_file(spec.name, "offsets")
    if spec.type == manifest_pb2.STRING:
        utf8 = cast("NDArray[np.uint8]", parts["utf8"])
        checks.check_ends(offsets, len(utf8), file)
        return StringColumn(spec.name, offsets, utf8)
    codes = cast("NDArray[np.int32]", parts["codes"])
    checks.check_ends(offsets, len(codes), file)
    return CategoriesColumn(spec.name, offsets, codes, vocabularies[spec.vocabulary])


_SCALAR_COLUMNS: Final[Mapping[int, Callable[[str, Any], Column]]] = {
    manifest_pb2.NUMBER: NumberColumn,
    manifest_pb2.INTEGER: IntegerColumn,
    manifest_pb2.TIME: TimeColumn,
    manifest_pb2.FLAG: FlagColumn,
}
"""By column type; the element type of each is settled by `layout.COLUMN_PARTS`."""


def _part_length(part: str, items: int) -> int:
    """Length of a column's part: one value per item, one offset more, or as many as the offsets say."""
    return {"": items, "offsets": items + 1}.get(part, ANY)


def _open_space(files: ArtifactFiles, spec: manifest_pb2.Space, items: int) -> Space:
    float32 = np.dtype("<f4")
    vectors = files.array(layout.space_file(spec.name, "vectors.npy"), float32, (items, spec.dim))
    space = Space(spec, cast("NDArray[np.float32]", vectors), **_open_index(files, spec))
    if not spec.user_vectors:
        return space
    shape = (spec.user_vectors, spec.dim)
    users = files.array(layout.space_file(spec.name, "user_vectors.npy"), float32, shape)
    keys = files.array(layout.space_file(spec.name, "user_keys.npy"), np.dtype("<u8"), shape[:1])
    return replace(space, user_vectors=cast("NDArray[np.float32]", users), user_keys=cast("NDArray[np.uint64]", keys))


def _open_index(files: ArtifactFiles, spec: manifest_pb2.Space) -> dict[str, Any]:
    """The space's index, as arguments of `Space`; its contents are checked where it is searched."""
    if spec.index.kind == manifest_pb2.EXACT:
        return {}
    if spec.index.kind != manifest_pb2.IVF_PQ4:
        return {"index_path": files.path(layout.space_file(spec.name, "index.faiss"))}
    parts = layout.INDEX_PARTS.items()
    return {
        "index_arrays": {
            part: files.array(layout.index_file(spec.name, part), dtype, (ANY,) * dimensions)
            for part, (dtype, dimensions) in parts
        }
    }


def _check_catalogue(catalogue: Catalogue) -> None:
    catalogue.ids.check(layout.ITEM_IDS)
    checks.check_permutation(catalogue.popular_rows, layout.ITEM_POPULAR)
    popularity = catalogue.role("popularity")
    if isinstance(popularity, NumberColumn):
        checks.check_falling(popularity.values, catalogue.popular_rows, layout.ITEM_POPULAR)
    for column in catalogue.columns.values():
        _check_column(column)


def _check_column(column: Column) -> None:
    name = column.name
    match column:
        case CategoryColumn():
            checks.check_between(column.codes, -1, len(column.vocabulary), layout.column_file(name))
        case CategoriesColumn():
            checks.check_monotone(column.offsets, layout.column_file(name, "offsets"))
            checks.check_between(column.codes, 0, len(column.vocabulary), layout.column_file(name, "codes"))
        case FlagColumn():
            checks.check_between(column.values, 0, 2, layout.column_file(name))
        case StringColumn():
            checks.check_monotone(column.offsets, layout.column_file(name, "offsets"))
            checks.check_utf8(column.utf8, column.offsets, layout.column_file(name, "utf8"))
        case TimeColumn():
            checks.check_times(column.values, layout.column_file(name))
        case NumberColumn() | IntegerColumn():
            pass  # every bit pattern is a value


def _check_matrices(catalogue: Catalogue, spec: manifest_pb2.Catalogue) -> None:
    """What features read of the items, and what filters and answers read, are the same."""
    for matrix, names, file in (
        (catalogue.features, spec.feature_columns, layout.ITEM_FEATURES),
        (catalogue.times, spec.time_columns, layout.ITEM_TIMES),
    ):
        for index, name in enumerate(names):
            column: Any = catalogue.columns[name]  # of one value per item: check_schema has seen to that
            values = column.codes if isinstance(column, CategoryColumn) else column.values
            checks.check_column(matrix, index, values, file)


def _check_space(space: Space) -> None:
    checks.check_vectors(space.vectors, layout.space_file(space.name, "vectors.npy"), normalized=space.normalized)
    if space.user_vectors is not None and space.user_keys is not None:
        file = layout.space_file(space.name, "user_vectors.npy")
        checks.check_vectors(space.user_vectors, file, normalized=space.normalized)
        checks.check_ascending(space.user_keys, layout.space_file(space.name, "user_keys.npy"))
