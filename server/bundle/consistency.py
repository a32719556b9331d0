"""Whether the parts of a bundle fit one another, as far as the manifest and the feature definitions tell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from recserve.bundle.v1 import manifest_pb2
from recserve.kernels.features import FeatureSchema, FeatureSchemaError
from recserve.server.bundle import layout
from recserve.server.bundle.columns import Vocabulary
from recserve.server.bundle.errors import BundleMismatchError
from recserve.server.bundle.files import ArtifactFiles

ROLE_TYPES: Final[dict[str, int]] = {
    "category": manifest_pb2.CATEGORY,
    "price": manifest_pb2.NUMBER,
    "in_stock": manifest_pb2.FLAG,
    "regions": manifest_pb2.CATEGORIES,
    "flags": manifest_pb2.CATEGORIES,
    "launch_time": manifest_pb2.TIME,
    "popularity": manifest_pb2.NUMBER,
}
"""The column type that each part of a catalogue must have."""

FEATURE_TYPES: Final[dict[str, tuple[int, ...]]] = {
    "number": (manifest_pb2.NUMBER, manifest_pb2.INTEGER, manifest_pb2.FLAG),
    "category": (manifest_pb2.CATEGORY,),
    "time": (manifest_pb2.TIME,),
}
"""By type of an item column in the feature definitions: the types that it may have in the catalogue."""


def mismatch(message: str, field: str, expected: object, found: object) -> BundleMismatchError:
    """A contradiction within the manifest, or of the manifest with something else."""
    return BundleMismatchError(message, file=layout.MANIFEST, field=field, expected=expected, found=found)


def check_manifest(manifest: manifest_pb2.Manifest, files: ArtifactFiles) -> None:
    """Refuse a manifest that leaves out what is needed, or that contradicts itself or the list of files.

    Raises:
        BundleMismatchError: naming the field.
    """
    _require("name", manifest.name)
    _require("version", manifest.version)
    _check_catalogue(manifest.catalogue, files)
    _check_unique("spaces", [space.name for space in manifest.spaces])
    for space in manifest.spaces:
        if space.name in layout.SOURCE_NAMES:
            raise mismatch(
                "a space has the name of another candidate source", "spaces", "a name of its own", space.name
            )
        _check_space(space, files)
    if manifest.HasField("candidate_sources"):
        _check_sources(manifest)
    _check_unique("forests", [forest.objective for forest in manifest.forests])
    for forest in manifest.forests:
        _check_forest(forest, manifest.features.count, files)
    if manifest.HasField("forest_set"):
        _check_forest_set(manifest, files)


def check_schema(
    manifest: manifest_pb2.Manifest, schema: FeatureSchema, vocabularies: Mapping[str, Vocabulary]
) -> None:
    """Refuse feature definitions that do not fit the rest of the bundle.

    Raises:
        BundleMismatchError: another number of features than the manifest's, other columns or vocabularies than the
            catalogue's, a space that the bundle lacks, or another hash.
    """
    _check_feature_count(manifest, schema)
    _check_item_columns(manifest.catalogue, schema)
    values = _schema_vocabularies(schema, vocabularies)
    _check_list_columns(manifest.candidate_sources, schema, vocabularies)
    spaces = [space.name for space in manifest.spaces]
    for name in schema.spaces:
        if name not in spaces:
            raise mismatch("the feature definitions name a space that the bundle lacks", "spaces", name, spaces)
    try:
        schema.check_cardinalities({name: len(vocabulary) for name, vocabulary in vocabularies.items()})
    except FeatureSchemaError as error:
        raise BundleMismatchError(str(error), file=layout.FEATURES) from error
    for field, found in (("schema_hash", schema.schema_hash(values)), ("user_hash", schema.user_hash(values))):
        stored = getattr(manifest.features, field)
        if found != stored:
            raise mismatch(
                "features.json or a vocabulary is not what the rest of the bundle was made with: export again",
                f"features.{field}",
                stored,
                found,
            )


def _require(field: str, value: str) -> None:
    if not value:
        raise mismatch("the manifest leaves a field empty", field, "a value", value)


def _check_unique(field: str, names: Iterable[str]) -> None:
    """Names are not repeated, and are fit for file names."""
    seen: set[str] = set()
    for name in names:
        if not layout.is_name(name):
            raise mismatch("a name cannot be part of a file name", field, layout.NAME_RULE, name)
        if name in seen:
            raise mismatch("a name stands for two things", field, "distinct names", name)
        seen.add(name)


def _check_choice(field: str, value: int, choices: Iterable[tuple[str, int]]) -> None:
    """An enum holds one of its known values; 0 always means that nobody chose."""
    names = {number: name for name, number in choices}
    if value == 0 or value not in names:
        known = [name for number, name in names.items() if number != 0]
        raise mismatch("the manifest does not say what was chosen", field, known, names.get(value, value))


def _check_catalogue(catalogue: manifest_pb2.Catalogue, files: ArtifactFiles) -> None:
    if not catalogue.items:
        raise mismatch("the catalogue is empty", "catalogue.items", "at least 1", 0)
    _check_unique("catalogue.columns", [column.name for column in catalogue.columns])
    for column in catalogue.columns:
        field = f"catalogue.columns[{column.name}]"
        _check_choice(f"{field}.type", column.type, manifest_pb2.ColumnType.items())
        if column.type in (manifest_pb2.CATEGORY, manifest_pb2.CATEGORIES):
            files.path(layout.vocabulary_file(column.vocabulary), field=f"{field}.vocabulary")
    _check_roles(catalogue)


def _check_roles(catalogue: manifest_pb2.Catalogue) -> None:
    types = {column.name: column.type for column in catalogue.columns}
    for part, expected in ROLE_TYPES.items():
        name = getattr(catalogue.roles, part)
        if name and types.get(name) != expected:
            found = f"{_type_name(types[name])} {name}" if name in types else f"no column {name}"
            raise mismatch("a role needs a column of its type", f"catalogue.roles.{part}", _type_name(expected), found)
    _require("catalogue.roles.popularity", catalogue.roles.popularity)


def _check_space(space: manifest_pb2.Space, files: ArtifactFiles) -> None:
    field = f"spaces[{space.name}]"
    if not space.dim:
        raise mismatch("a space has no dimension", f"{field}.dim", "at least 1", 0)
    _check_choice(f"{field}.metric", space.metric, manifest_pb2.Metric.items())
    _check_choice(f"{field}.index.kind", space.index.kind, manifest_pb2.IndexKind.items())
    _check_index(f"{field}.index", space.index)
    for tower in ("user_tower", "item_tower"):
        if space.HasField(tower):
            _check_tower(f"{field}.{tower}", getattr(space, tower), files)


def _check_index(field: str, index: manifest_pb2.Index) -> None:
    """Its parameters and arrays are checked where it is searched."""
    if not (0.0 <= index.recall_target <= 1.0 and 0.0 <= index.recall_low <= 1.0):
        found = [index.recall_target, index.recall_low]
        raise mismatch("a recall is a share", f"{field}.recall_target, recall_low", "0 to 1", found)
    if index.recall_low < index.recall_target:
        raise mismatch(
            "the index does not reach its own target: export it again",
            f"{field}.recall_low",
            f"at least {index.recall_target}",
            index.recall_low,
        )


def _check_sources(manifest: manifest_pb2.Manifest) -> None:
    """Candidate sources have names of their own and what they need of the rest."""
    sources = manifest.candidate_sources
    comparable = [space.name for space in manifest.spaces if space.normalized]
    if sources.similar_space and sources.similar_space not in comparable:
        raise mismatch(
            "similar items need a normalised space",
            "candidate_sources.similar_space",
            comparable,
            sources.similar_space,
        )
    if sources.similar_space and not sources.similar_items:
        raise mismatch("similar items have no seeds", "candidate_sources.similar_items", "at least 1", 0)
    if not 0 < sources.new_days <= layout.MAX_DAYS:  # also true of NaN
        allowed = f"more than 0, at most {layout.MAX_DAYS:,}"
        raise mismatch("new items have no age", "candidate_sources.new_days", allowed, sources.new_days)
    taken = [*layout.SOURCE_NAMES, *(space.name for space in manifest.spaces)]
    _check_unique("candidate_sources.lists", [each.name for each in sources.lists])
    for lists in sources.lists:
        field = f"candidate_sources.lists[{lists.name}]"
        if lists.name in taken:
            raise mismatch("a candidate source has the name of another", field, "a name of its own", lists.name)
        _check_choice(f"{field}.kind", lists.kind, manifest_pb2.ListsKind.items())
        expected = {manifest_pb2.TOGETHER: manifest.catalogue.items, manifest_pb2.TRENDING: 1}.get(lists.kind)
        if expected is not None and lists.lists != expected:
            raise mismatch("a source has another number of lists", f"{field}.lists", expected, lists.lists)


def _check_list_columns(
    sources: manifest_pb2.CandidateSources, schema: FeatureSchema, vocabularies: Mapping[str, Vocabulary]
) -> None:
    """Popular lists belong to values of user or context columns, and there is one for each combination."""
    columns = {column.name: column for column in (*schema.user_layout.codes, *schema.context_layout.codes)}
    for lists in sources.lists:
        if lists.kind != manifest_pb2.POPULAR_BY:
            continue
        field = f"candidate_sources.lists[{lists.name}]"
        unknown = [name for name in lists.columns if name not in columns]
        if unknown or not lists.columns:
            expected = f"some of the user and context categories {sorted(columns)}"
            raise mismatch("popular lists have no columns", f"{field}.columns", expected, list(lists.columns))
        sizes = [len(vocabularies[columns[name].vocabulary]) for name in lists.columns]
        if lists.lists != math.prod(sizes) + 1:
            raise mismatch("a source has another number of lists", f"{field}.lists", math.prod(sizes) + 1, lists.lists)


def _check_tower(field: str, tower: manifest_pb2.Tower, files: ArtifactFiles) -> None:
    files.path(tower.file, field=f"{field}.file")
    _require(f"{field}.output", tower.output)
    for each in tower.inputs:
        where = f"{field}.inputs[{each.name}]"
        _check_choice(f"{where}.kind", each.kind, manifest_pb2.TowerInputKind.items())
        _check_choice(f"{where}.dtype", each.dtype, manifest_pb2.TowerDtype.items())


def _check_forest(forest: manifest_pb2.Forest, features: int, files: ArtifactFiles) -> None:
    field = f"forests[{forest.objective}]"
    if forest.features != features:
        raise mismatch(
            "a forest reads another number of features than there are", f"{field}.features", features, forest.features
        )
    if not 0 <= forest.weight <= layout.MAX_WEIGHT:  # also true of NaN
        expected = f"0 to {layout.MAX_WEIGHT:g}"
        raise mismatch("a forest has no usable weight", f"{field}.weight", expected, forest.weight)
    files.path(forest.model, field=f"{field}.model")
    _check_choice(f"{field}.kind", forest.kind, manifest_pb2.ModelKind.items())
    for native in forest.native:
        files.path(native.file, field=f"{field}.native.file")
        _require(f"{field}.native.machine", native.machine)
    _check_calibration(f"{field}.calibration", forest.calibration)


def _check_forest_set(manifest: manifest_pb2.Manifest, files: ArtifactFiles) -> None:
    """What its arrays say is checked where they are opened, with the ranker."""
    forest_set = manifest.forest_set
    if not manifest.forests:
        raise mismatch("compiled forests have no objectives", "forest_set", "entries in forests", [])
    files.path(f"{forest_set.folder}/version.npy", field="forest_set.folder")
    _require("forest_set.set_hash", forest_set.set_hash)
    features = list(forest_set.item_features)
    if features != sorted(set(features)) or (features and features[-1] >= manifest.features.count):
        expected = f"ascending, below {manifest.features.count}"
        raise mismatch("item features do not exist or repeat", "forest_set.item_features", expected, features)


def _check_calibration(field: str, calibration: manifest_pb2.Calibration) -> None:
    _check_choice(f"{field}.kind", calibration.kind, manifest_pb2.CalibrationKind.items())
    x, y = list(calibration.x), list(calibration.y)
    if not all(map(math.isfinite, [*x, *y])):
        raise mismatch("a calibration is not finite", field, "finite numbers", [*x, *y])
    if calibration.kind == manifest_pb2.SIGMOID and (len(x) != 2 or x[0] <= 0 or y):
        raise mismatch("a sigmoid has a positive slope and an intercept", field, "2 numbers in x, none in y", [x, y])
    if calibration.kind == manifest_pb2.ISOTONIC:
        if not x or len(x) != len(y):
            raise mismatch("an isotonic map has a relevance at each knot", f"{field}.y", len(x), len(y))
        if x != sorted(set(x)) or y != sorted(y):
            raise mismatch("an isotonic map ascends", field, "strictly ascending knots, ascending relevances", [x, y])
        _check_slopes(field, x, y)


def _check_slopes(field: str, x: Sequence[float], y: Sequence[float]) -> None:
    """Between knots, interpolation divides: neither steps nor slopes may be more than a double holds."""
    for (x0, y0), (x1, y1) in itertools.pairwise(zip(x, y, strict=True)):
        if not (math.isfinite(x1 - x0) and math.isfinite((y1 - y0) / (x1 - x0))):
            raise mismatch("an isotonic map has an infinite slope or step", field, "finite ones", [(x0, y0), (x1, y1)])


def _check_feature_count(manifest: manifest_pb2.Manifest, schema: FeatureSchema) -> None:
    """A bundle without a ranker may leave the count at 0: nothing reads its features."""
    count = manifest.features.count
    if (count or manifest.forests) and count != len(schema.features):
        raise mismatch(
            "features.json defines another number of features than the manifest says",
            "features.count",
            len(schema.features),
            count,
        )


def _check_item_columns(catalogue: manifest_pb2.Catalogue, schema: FeatureSchema) -> None:
    for field, arrays, expected in (
        ("feature_columns", catalogue.feature_columns, schema.item_feature_columns),
        ("time_columns", catalogue.time_columns, schema.item_time_columns),
    ):
        if tuple(arrays) != expected:
            raise mismatch(
                "an item array has other columns than the feature definitions",
                f"catalogue.{field}",
                list(expected),
                list(arrays),
            )
    columns = {column.name: column for column in catalogue.columns}
    for wanted in schema.item:
        column = columns.get(wanted.name)
        if column is None or column.type not in FEATURE_TYPES[wanted.type] or column.vocabulary != wanted.vocabulary:
            found = "no such column" if column is None else f"{_type_name(column.type)} {column.vocabulary}".strip()
            raise mismatch(
                "the feature definitions need another item column than the catalogue has",
                f"catalogue.columns[{wanted.name}]",
                f"{wanted.type} {wanted.vocabulary}".strip(),
                found,
            )


def _schema_vocabularies(schema: FeatureSchema, vocabularies: Mapping[str, Vocabulary]) -> dict[str, tuple[str, ...]]:
    for name in schema.vocabularies:
        if name not in vocabularies:
            raise BundleMismatchError(
                "the feature definitions name a vocabulary that the bundle lacks: export it",
                file=layout.vocabulary_file(name),
                field=layout.FEATURES,
            )
    return {name: vocabularies[name].values for name in schema.vocabularies}


def _type_name(column_type: int) -> str:
    names: dict[int, str] = {number: name for name, number in manifest_pb2.ColumnType.items()}
    return names[column_type]
