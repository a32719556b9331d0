"""Towers into a bundle: ONNX files, or PyTorch modules converted to ONNX.

A tower is tried before an export goes on: on users or items made to be awkward (nothing known, the first and the last
category, no and many recent items) and on real ones, in batches and row by row. What it gives has to be a vector of
the space every time, the same for a row alone as within a batch, and the same as the source module's.
"""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.exporters.catalogue import ItemTable
from recserve.exporters.errors import ExportError
from recserve.exporters.spec import CatalogueSpec, InputSpec, ItemColumn, TowerSpec
from recserve.exporters.writer import BundleWriter
from recserve.kernels.features import MISSING_CODE, MISSING_TIME, ColumnValues, FeatureSchema
from recserve.server.bundle.columns import (
    CategoryColumn,
    Column,
    FlagColumn,
    IntegerColumn,
    NumberColumn,
    TimeColumn,
    Vocabulary,
)
from recserve.server.bundle.errors import BundleCorruptError
from recserve.server.bundle.extras import install_hint
from recserve.server.bundle.layout import space_file
from recserve.server.pipeline.towers import (
    TOWER_TOLERANCE,
    Feed,
    TowerOutputError,
    TowerUsers,
    check_vectors,
    input_problems,
    item_feed,
    open_session,
    run_tower,
    user_feed,
)

if TYPE_CHECKING:
    import torch

_KINDS: Final = {
    "columns": manifest_pb2.COLUMNS,
    "recent_items": manifest_pb2.RECENT_ITEMS,
    "recent_mask": manifest_pb2.RECENT_MASK,
    "recent_count": manifest_pb2.RECENT_COUNT,
}
_DTYPES: Final = {"float32": manifest_pb2.FLOAT32, "int64": manifest_pb2.INT64}
_ONNX_TYPES: Final = {
    manifest_pb2.FLOAT32: onnx.TensorProto.FLOAT,
    manifest_pb2.INT64: onnx.TensorProto.INT64,
}

_TRIALS: Final = 64
_ALONE: Final = 8
"""Rows that are also run one by one."""
_TRIAL_TIME_US: Final = 1_700_000_000_000_000
_THREE_YEARS_US: Final = 3 * 365 * 86_400_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TowerContext:
    """What the towers of a bundle can read.

    Attributes:
        schema: the feature definitions; their user columns are the user towers'.
        cardinalities: sizes of the vocabularies, by name.
        columns: item columns by name.
        items: how many there are.
        users: real users, such as those of the golden requests; None: no user tower, or no snapshot.
    """

    schema: FeatureSchema
    cardinalities: Mapping[str, int]
    columns: Mapping[str, Column]
    items: int
    users: TowerUsers | None = None

    @staticmethod
    def of(
        schema: FeatureSchema, catalogue: CatalogueSpec, table: ItemTable, users: TowerUsers | None = None
    ) -> TowerContext:
        """The context of an export whose item table has been read.

        Args:
            schema: the feature definitions.
            catalogue: what the table's columns are.
            table: the items.
            users: real users.
        """
        columns = (_column(column, table) for column in catalogue.columns)
        return TowerContext(
            schema=schema,
            cardinalities={name: len(values) for name, values in table.vocabularies.items()},
            columns={column.name: column for column in columns if column is not None},
            items=len(table.ids),
            users=users,
        )


@dataclass(frozen=True, slots=True, eq=False)
class ExportedTower:
    """A tower that has been tried and written.

    Attributes:
        spec: its entry in the manifest.
        dim: length of its vectors.
        session: of onnxruntime, over the written file.
        what: it is, for messages.
    """

    spec: manifest_pb2.Tower
    dim: int
    session: Any
    what: str

    def run(self, feed: Feed, *, normalized: bool) -> NDArray[np.float32]:
        """Checked vectors, [R, dim].

        Raises:
            ExportError: the network fails, or what it gives is no vector of its space.
        """
        vectors = _run(self.session, self.spec, feed, self.what)
        _check(vectors, feed, normalized=normalized, what=self.what)
        return vectors


def export_user_tower(
    writer: BundleWriter, tower: TowerSpec, space: str, *, normalized: bool, context: TowerContext
) -> ExportedTower:
    """Try a user tower and write it as `spaces/<space>/user.onnx`.

    Args:
        writer: of the bundle.
        tower: the network and its inputs.
        space: name of its space.
        normalized: whether the space's vectors have length 1.
        context: what it can read.

    Raises:
        ExportError: naming everything that is wrong with the inputs at once, or the first thing that the network does.
    """
    what = f"user tower of space {space!r}"
    spec = _describe(tower, space_file(space, "user.onnx"))
    layout = context.schema.user_layout
    _refuse(what, input_problems(spec, context.columns, layout))
    users = [_awkward_users(spec, context), *([context.users] if context.users is not None else [])]
    feeds = [user_feed(spec, layout, context.columns, each) for each in users]
    return _export(writer, tower, spec, feeds, normalized=normalized, what=what)


def export_item_tower(
    writer: BundleWriter, tower: TowerSpec, space: str, *, normalized: bool, context: TowerContext
) -> ExportedTower:
    """Try an item tower and write it as `spaces/<space>/item.onnx`; see `export_user_tower`."""
    what = f"item tower of space {space!r}"
    spec = _describe(tower, space_file(space, "item.onnx"))
    _refuse(what, input_problems(spec, context.columns, None))
    names = [name for each in spec.inputs for name in each.columns]
    feed = item_feed(spec, context.columns, _telling_rows(names, context, np.random.default_rng(0)))
    return _export(writer, tower, spec, [feed], normalized=normalized, what=what)


def user_vectors(tower: ExportedTower, context: TowerContext, users: TowerUsers) -> NDArray[np.float32]:
    """The raw vectors of some users, [R, dim]."""
    return _run(
        tower.session, tower.spec, user_feed(tower.spec, context.schema.user_layout, context.columns, users), tower.what
    )


def _column(spec: ItemColumn, table: ItemTable) -> Column | None:
    """A column of the table as the catalogue will have it; None for kinds that no tower reads."""
    values: NDArray[Any] = table.columns[spec.name].get("", np.empty(0))
    match spec.kind:
        case "number":
            return NumberColumn(spec.name, values)
        case "integer":
            return IntegerColumn(spec.name, values)
        case "time":
            return TimeColumn(spec.name, values)
        case "flag":
            return FlagColumn(spec.name, values)
        case "category":
            vocabulary = spec.vocabulary or spec.name
            return CategoryColumn(spec.name, values, Vocabulary(vocabulary, table.vocabularies[vocabulary]))
        case _:
            return None


# -------------------------------------------------------------------------------------------------------------- steps


def _export(
    writer: BundleWriter,
    tower: TowerSpec,
    spec: manifest_pb2.Tower,
    feeds: Sequence[Feed],
    *,
    normalized: bool,
    what: str,
) -> ExportedTower:
    if isinstance(tower.model, Path):
        module, model = None, _load(tower.model, what)
    else:
        module = _module(tower.model, spec, what)
        model = _convert(module, feeds[0], tower.output or "vector", what)
    spec.output = _output_name(model, tower.output, what)
    _refuse(what, interface_problems(model, spec))
    path = writer.path(spec.file)
    path.write_bytes(_serialize(model, what))
    try:
        session = open_session(path, "cpu", spec.file)
    except BundleCorruptError as error:
        raise ExportError(f"{what}: {error}") from error
    dim = _run(session, spec, feeds[0], what).shape[1]
    exported = ExportedTower(spec, dim, session, what)
    vectors = [exported.run(feed, normalized=normalized) for feed in feeds]
    for feed, together in zip(feeds, vectors, strict=True):
        _check_alone(exported, feed, together)
    if module is not None:
        spec.max_abs_difference = _difference(module, feeds, vectors, what)
    return exported


def _describe(tower: TowerSpec, file: str) -> manifest_pb2.Tower:
    return manifest_pb2.Tower(file=file, inputs=[_describe_input(spec) for spec in tower.inputs])


def _describe_input(spec: InputSpec) -> manifest_pb2.TowerInput:
    return manifest_pb2.TowerInput(
        name=spec.name,
        kind=_KINDS[spec.kind],
        columns=spec.columns,
        dtype=_DTYPES[spec.dtype],
        length=spec.length,
        offset=spec.offset,
        missing=spec.missing,
        rank=spec.rank,
    )


def _refuse(what: str, problems: Sequence[str]) -> None:
    """Raise all problems at once, if there are any."""
    if problems:
        raise ExportError(f"{what}: " + "; ".join(problems))


# --------------------------------------------------------------------------------------------------------- the network


def _load(path: Path, what: str) -> onnx.ModelProto:
    """Read and check an ONNX file; tensors that it keeps in other files become part of it."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's, onnx's and the file system's errors share no narrower class
        raise ExportError(f"{what}: {path} is not a readable ONNX model: {error}") from error
    return model


def _serialize(model: onnx.ModelProto, what: str) -> bytes:
    try:
        content: bytes = model.SerializeToString()
    except ValueError as error:  # protobuf's limit
        raise ExportError(
            f"{what}: the network is larger than 2 GiB, which one ONNX file cannot hold; move large embedding tables "
            f"into item or user columns, or export their vectors without a tower"
        ) from error
    return content


def _output_name(model: onnx.ModelProto, wanted: str, what: str) -> str:
    names = [output.name for output in model.graph.output]
    if wanted in names or (not wanted and len(names) == 1):
        return wanted or names[0]
    problem = f"has no output {wanted!r}" if wanted else "has several outputs, and the spec names none"
    raise ExportError(f"{what}: the network {problem}; its outputs are: {', '.join(names)}")


def interface_problems(model: onnx.ModelProto, spec: manifest_pb2.Tower) -> list[str]:
    """Everything in which a network's inputs and output differ from their description; empty: nothing.

    Args:
        model: the network.
        spec: with inputs and the name of the output.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    found = {value.name: value for value in model.graph.input if value.name not in constants}
    described = {each.name: each for each in spec.inputs}
    has = ", ".join(found) or "none"
    problems = [f"the network has no input {name!r}; it has: {has}" for name in described if name not in found]
    problems += [f"the network's input {name!r} is not described" for name in found if name not in described]
    for name, each in described.items():
        if name in found:
            width = {manifest_pb2.COLUMNS: len(each.columns), manifest_pb2.RECENT_COUNT: 1}.get(each.kind, each.length)
            shape = (None, width)[: each.rank]
            problems += _tensor_problems(f"input {name!r}", found[name], _ONNX_TYPES[each.dtype], shape)
    output = next(value for value in model.graph.output if value.name == spec.output)
    return problems + _tensor_problems(f"output {spec.output!r}", output, onnx.TensorProto.FLOAT, (None, None))


def _tensor_problems(what: str, value: onnx.ValueInfoProto, dtype: int, shape: tuple[int | None, ...]) -> list[str]:
    """Differences in element type, rank, and those lengths that the network fixes; it must not fix the first."""
    tensor = value.type.tensor_type
    problems = []
    if tensor.elem_type != dtype:
        names = [onnx.TensorProto.DataType.Name(each).lower() for each in (dtype, tensor.elem_type)]
        problems.append(f"{what} is described as {names[0]}, the network's is {names[1]}")
    fixed = [each.dim_value if each.HasField("dim_value") else None for each in tensor.shape.dim]
    if len(fixed) != len(shape):
        return [*problems, f"{what} is described as having rank {len(shape)}, the network's has rank {len(fixed)}"]
    if fixed[0] is not None:
        problems.append(f"{what} has a fixed batch of {fixed[0]}; export the network with a dynamic first dimension")
    if len(shape) == 2 and None not in (shape[1], fixed[1]) and shape[1] != fixed[1]:
        problems.append(f"{what} is described as having {shape[1]} columns, the network's has {fixed[1]}")
    return problems


def _run(session: Any, spec: manifest_pb2.Tower, feed: Feed, what: str) -> NDArray[np.float32]:
    try:
        return run_tower(session, spec.output, feed)
    except Exception as error:  # onnxruntime's errors share no narrower class
        raise ExportError(f"{what}: the network fails: {error}") from error


def _check(vectors: NDArray[np.float32], feed: Feed, *, normalized: bool, what: str) -> None:
    try:
        check_vectors(vectors, normalized=normalized, what=what)
    except TowerOutputError as error:
        raise ExportError(f"{error}{_nan_hint(vectors, feed)}") from error


def _nan_hint(vectors: NDArray[np.float32], feed: Feed) -> str:
    """Which missing values the first vector that is not finite may come from."""
    bad = ~np.isfinite(vectors).all(axis=1)
    if not bad.any():
        return ""
    row = int(np.argmax(bad))
    missing = [name for name, values in feed.items() if values.dtype == np.float32 and np.isnan(values[row]).any()]
    if not missing:
        return ""
    return f", where {', '.join(missing)} hold NaN for missing values: give these inputs `missing`"


def _check_alone(tower: ExportedTower, feed: Feed, together: NDArray[np.float32]) -> None:
    """A row's vector may not depend on its batch-mates, as it would with batch statistics."""
    rows = np.linspace(0, len(together) - 1, min(_ALONE, len(together)), dtype=int)
    for row in rows:
        one = _run(
            tower.session, tower.spec, {name: values[row : row + 1] for name, values in feed.items()}, tower.what
        )
        difference = float(np.abs(one[0] - together[row]).max())
        if difference > TOWER_TOLERANCE * _scale(together):
            raise ExportError(
                f"{tower.what}: row {row} alone gives another vector than in a batch of {len(together)} (largest "
                f"difference {difference:.3g}); the network mixes the rows of a batch"
            )


def _scale(vectors: NDArray[np.float32]) -> float:
    """The root mean square length: differences are measured against it."""
    return float(np.sqrt(np.mean(np.sum(np.square(vectors, dtype=np.float64), axis=1))))


# -------------------------------------------------------------------------------------------------------------- PyTorch


def _module(source: object, spec: manifest_pb2.Tower, what: str) -> torch.nn.Module:
    """A copy of the module for inference on the CPU, so that the caller's stays as it is."""
    try:
        import torch  # noqa: PLC0415  large, and only needed for those who bring modules
    except ImportError as error:
        raise ExportError(f"{what}: a PyTorch module needs PyTorch ({error}): {install_hint('torch')}") from error
    if not isinstance(source, torch.nn.Module):
        raise ExportError(f"{what}: expected the path of an ONNX file or a torch.nn.Module, found {type(source)}")
    _refuse(what, _signature_problems(source, [each.name for each in spec.inputs]))
    return copy.deepcopy(source).cpu().eval()


def _signature_problems(module: torch.nn.Module, names: Sequence[str]) -> list[str]:
    """Inputs are handed over by name, so that none can take another's place."""
    parameters = inspect.signature(module.forward).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return []
    takes = ", ".join(parameters) or "nothing"
    problems = [f"forward() takes no input {name!r}; it takes: {takes}" for name in names if name not in parameters]
    required = [name for name, each in parameters.items() if each.default is inspect.Parameter.empty]
    return problems + [f"forward() needs {name!r}, which is not described" for name in required if name not in names]


def _tensors(feed: Feed) -> dict[str, torch.Tensor]:
    import torch  # noqa: PLC0415  see _module

    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in feed.items()}


def _convert(module: torch.nn.Module, feed: Feed, output: str, what: str) -> onnx.ModelProto:
    import torch  # noqa: PLC0415  see _module

    batch = torch.export.Dim("batch")
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                kwargs=_tensors({name: values[:4] for name, values in feed.items()}),
                dynamo=True,
                output_names=[output],
                dynamic_shapes={name: {0: batch} for name in feed},
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # whatever the module's own code and the exporter raise
        raise ExportError(f"{what}: PyTorch cannot convert the module to ONNX: {error}") from error
    if program is None:
        raise ExportError(f"{what}: PyTorch converted the module to nothing; use a release from 2.6 on")
    model: onnx.ModelProto = program.model_proto
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about its own dependencies from the user, who can do nothing about them."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _difference(
    module: torch.nn.Module, feeds: Sequence[Feed], vectors: Sequence[NDArray[np.float32]], what: str
) -> float:
    """The largest absolute difference between the module's vectors and the network's.

    Raises:
        ExportError: it is more than TOWER_TOLERANCE of the vectors' length.
    """
    largest = 0.0
    for feed, found in zip(feeds, vectors, strict=True):
        expected = _run_module(module, feed, what)
        if expected.shape != found.shape:
            raise ExportError(f"{what}: the module gives {list(expected.shape)}, its ONNX {list(found.shape)}")
        difference = float(np.abs(expected - found).max())
        # `not <=` also refuses NaN, which the module may give where its ONNX does not.
        if not difference <= TOWER_TOLERANCE * _scale(expected):
            raise ExportError(
                f"{what}: the converted network differs from the module by up to {difference:.3g}, more than "
                f"{TOWER_TOLERANCE:g} of the vectors' length {_scale(expected):.3g}"
            )
        largest = max(largest, difference)
    return largest


def _run_module(module: torch.nn.Module, feed: Feed, what: str) -> NDArray[np.float32]:
    import torch  # noqa: PLC0415  see _module

    with torch.inference_mode():
        result = module(**_tensors(feed))
    if not isinstance(result, torch.Tensor):
        raise ExportError(f"{what}: the module must return one tensor, found {type(result)}")
    vectors: NDArray[np.float32] = result.numpy()
    return vectors


# --------------------------------------------------------------------------------------------------------------- trials


def _awkward_users(spec: manifest_pb2.Tower, context: TowerContext) -> TowerUsers:
    """Random users between extremes; the first is one of whom nothing is known."""
    rng = np.random.default_rng(0)
    names = [name for each in spec.inputs if each.kind == manifest_pb2.RECENT_ITEMS for name in each.columns]
    longest = max((each.length for each in spec.inputs), default=0)
    telling = _telling_rows(names, context, rng)
    recent = [rng.permutation(telling)[:count] for count in (0, longest, *rng.integers(0, longest + 3, _TRIALS - 2))]
    return TowerUsers(
        user=_awkward_columns(context, rng),
        recent_offsets=np.cumsum([0, *(rows.size for rows in recent)], dtype=np.int64),
        recent_rows=np.concatenate(recent),
        time_us=np.full(_TRIALS, _TRIAL_TIME_US, np.int64),
    )


def _awkward_columns(context: TowerContext, rng: np.random.Generator) -> ColumnValues:
    """Row 0 is all missing, rows 1 and 2 have the last and the first category, others are random, with gaps."""
    layout = context.schema.user_layout
    gaps = ColumnValues.missing(layout, _TRIALS)
    numbers = rng.standard_normal(gaps.numbers.shape) * 10.0 ** rng.uniform(-1, 2, gaps.numbers.shape)
    last = np.array([context.cardinalities[column.vocabulary] - 1 for column in layout.codes], np.int64)
    codes = rng.integers(MISSING_CODE, last + 1, gaps.codes.shape).astype(np.int32)
    codes[1], codes[2] = last, np.minimum(last, 0)
    times = _TRIAL_TIME_US - rng.integers(0, _THREE_YEARS_US, gaps.times.shape)
    for values, missing in ((numbers, np.nan), (codes, MISSING_CODE), (times, MISSING_TIME)):
        values[0] = missing
        values[3:][rng.random(values[3:].shape) < 0.2] = missing
    return ColumnValues(numbers, codes, times, gaps.list_codes, gaps.list_offsets)


def _telling_rows(names: Sequence[str], context: TowerContext, rng: np.random.Generator) -> NDArray[np.int64]:
    """Item rows that try the ends of embedding tables (extreme codes, integers and rows), and random ones."""
    extremes = [0, context.items - 1]
    for name in names:
        column = context.columns[name]
        if isinstance(column, (CategoryColumn, IntegerColumn)):
            values = column.codes if isinstance(column, CategoryColumn) else column.values
            extremes += [int(np.argmin(values)), int(np.argmax(values))]
    return np.unique(np.array([*extremes, *rng.integers(0, context.items, 2 * _TRIALS)], np.int64))
