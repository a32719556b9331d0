"""Two towers distilled from ALS factors: small networks that know users and items by what is known of them.

The user tower reads the user's columns and the mean content vector of the last items; the item tower reads the item's
columns. Both are scikit-learn networks that learn where the ALS factors lie, so they also place users and items that
had too few events for factors of their own. As ONNX, each is one graph:

    inputs -> encoder (missing values, scaling, one-hot codes, mean of recent items) -> network -> length 1
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.neural_network import MLPRegressor
from threadpoolctl import threadpool_limits

from recserve.exporters.demo.sizes import DemoSizes
from recserve.exporters.demo.state import Column, Columns
from recserve.exporters.demo.words import VOCABULARIES
from recserve.exporters.demo.world import DAY_US, Items
from recserve.exporters.spec import InputSpec, TowerSpec
from recserve.kernels.features import MISSING_TIME

RECENT_LENGTH = 20
"""How many of the last items the user tower looks at."""
CONTENT_DIM = 32

USER_NUMBERS = (
    "age", "views_30d", "purchases_30d", "cart_rate", "purchase_rate", "mean_price", "price_level", "mean_discount",
    "evening_share", "weekend_share", "new_item_share", "app_share", "last_seen",
)  # fmt: skip
"""Numbers, and times as days since."""
USER_CODES = {
    "gender": "gender",
    "home_country": "country",
    "tier": "tier",
    "favourite_category": "category",
    "favourite_department": "department",
    "favourite_style": "style",
    "favourite_brand": "brand",
}
"""Vocabularies by column."""
ITEM_NUMBERS = ("price", "discount", "price_level", "rating", "views_30d", "purchases_30d", "purchase_rate")
ITEM_CODES = {
    "category": "category",
    "department": "department",
    "audience": "gender",
    "brand": "brand",
    "style": "style",
    "colour": "colour",
}

_OPSET = 17
_CLIP = 4.0  # standard deviations: long tails must not drown the rest
_HIDDEN = (128, 64)
_BATCH = 256

Floats32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """A tower's inputs for n rows.

    Attributes:
        numbers: float32 [n, numbers], NaN where missing.
        codes: int64 [n, columns], code + 1; 0 where missing.
        recent: int64 [n, RECENT_LENGTH], row + 1 of the last items, latest first, 0 behind them; None for items.
    """

    numbers: Floats32
    codes: NDArray[np.int64]
    recent: NDArray[np.int64] | None = None

    def __getitem__(self, rows: NDArray[np.intp] | slice) -> Inputs:
        return Inputs(self.numbers[rows], self.codes[rows], None if self.recent is None else self.recent[rows])

    def feed(self) -> dict[str, Floats32 | NDArray[np.int64]]:
        """By the names of the ONNX inputs."""
        if self.recent is None:
            return {"numbers": self.numbers, "codes": self.codes}
        count = (self.recent > 0).sum(axis=1, keepdims=True).astype(np.float32)
        return {"numbers": self.numbers, "codes": self.codes, "recent": self.recent, "recent_count": count}


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """From a tower's inputs to the network's: what the first part of the ONNX graph computes, and its oracle.

    Attributes:
        mean, scale: float32 [numbers]; a missing number counts as the mean.
        vocabularies: of the code columns.
        content: float32 [items + 1, CONTENT_DIM] with zeros for padding; None for items.
    """

    mean: Floats32
    scale: Floats32
    vocabularies: tuple[str, ...]
    content: Floats32 | None = None

    @staticmethod
    def fit(inputs: Inputs, vocabularies: Sequence[str], content: Floats32 | None = None) -> Encoder:
        """Learn means and scales."""
        mean = np.nan_to_num(np.nanmean(inputs.numbers, axis=0, dtype=np.float64)).astype(np.float32)
        deviation = np.nanstd(inputs.numbers, axis=0, dtype=np.float64)
        scale = np.where(deviation > 0, 1 / np.maximum(deviation, 1e-9), 0.0).astype(np.float32)
        padded = None if content is None else np.concatenate([np.zeros((1, content.shape[1]), np.float32), content])
        return Encoder(mean, scale, tuple(vocabularies), padded)

    @property
    def width(self) -> int:
        """Columns of the encoded matrix."""
        codes = sum(len(VOCABULARIES[name]) + 1 for name in self.vocabularies)
        return self.mean.size + codes + (0 if self.content is None else self.content.shape[1])

    def encode(self, inputs: Inputs) -> Floats32:
        """float32 [n, width]."""
        filled = np.where(np.isnan(inputs.numbers), self.mean, inputs.numbers)
        parts = [np.clip((filled - self.mean) * self.scale, -_CLIP, _CLIP)]
        for column, name in enumerate(self.vocabularies):
            parts.append(_one_hot(name)[inputs.codes[:, column]])
        if self.content is not None and inputs.recent is not None:
            count = np.maximum((inputs.recent > 0).sum(axis=1, keepdims=True), 1).astype(np.float32)
            parts.append(self.content[inputs.recent].sum(axis=1) / count)
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def graph(self) -> onnx.ModelProto:
        """The same as an ONNX model with output "encoded"."""
        return _EncoderGraph(self).model()


@dataclass(frozen=True, slots=True, eq=False)
class Tower:
    """A trained tower: `vectors` is the oracle of the ONNX model that `save` writes."""

    encoder: Encoder
    network: MLPRegressor
    inputs: Sequence[InputSpec]

    def vectors(self, inputs: Inputs) -> Floats32:
        """float32 [n, dim] of length 1, computed by scikit-learn.

        In double, rounded once: BLAS adds up in another order for other numbers of rows, and in float32 a user's vector
        would tell who else was asked for.
        """
        with threadpool_limits(1, "blas"):
            return unit(self.network.predict(self.encoder.encode(inputs).astype(np.float64)).astype(np.float32))

    def onnx_model(self) -> onnx.ModelProto:
        """Encoder, network and normalisation as one graph, from the named inputs to "vector"."""
        x = [("encoded", FloatTensorType([None, self.encoder.width]))]
        network = to_onnx(self.network, initial_types=x, target_opset=_OPSET)
        network = compose.add_prefix(network, "network_")
        encoder = _like(self.encoder.graph(), network)
        joined = compose.merge_models(encoder, network, io_map=[("encoded", network.graph.input[0].name)])
        model = _normalised(joined, self.network.n_outputs_)
        onnx.checker.check_model(model, full_check=True)
        return model

    def save(self, path: Path) -> TowerSpec:
        """Write the ONNX file and say where its inputs come from."""
        onnx.save(self.onnx_model(), path)
        return TowerSpec(model=path, inputs=self.inputs, output="vector")


def unit(vectors: Floats32) -> Floats32:
    """Vectors of length 1; zero vectors stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = np.zeros_like(vectors)
    np.divide(vectors, length, out=directions, where=length > 0)
    return directions


def unit_targets(users: Floats32, items: Floats32) -> tuple[Floats32, Floats32]:
    """Vectors of length 1 that order a user's items as the factors' inner products do.

    Items are scaled into the unit ball and lifted onto the sphere by one more coordinate, which is 0 for users
    (Bachrach et al. 2014). Plain directions would forget the factors' lengths, and with them popularity.

    Returns:
        float32 [users, factors + 1] and [items, factors + 1].
    """
    longest = max(float(np.linalg.norm(items, axis=1).max()), float(np.finfo(np.float32).tiny))
    scaled = items / np.float32(longest)
    height = np.sqrt(np.maximum(1 - np.square(scaled).sum(axis=1, keepdims=True), 0))
    flat = np.zeros((users.shape[0], 1), np.float32)
    return np.concatenate([unit(users), flat], axis=1), np.concatenate([scaled, height], axis=1)


def content_vectors(items: Items, rng: np.random.Generator) -> Floats32:
    """float32 [items, CONTENT_DIM] of length 1: random directions of what an item is, summed by importance."""
    total = np.zeros((items.category.size, CONTENT_DIM), np.float32)
    for name, importance in (("category", 1.0), ("department", 0.6), ("style", 0.7), ("brand", 0.6), ("colour", 0.2)):
        directions = rng.standard_normal((len(VOCABULARIES[name]), CONTENT_DIM)).astype(np.float32)
        total += importance * unit(directions)[getattr(items, name)]
    return unit(total)


def user_inputs(columns: Columns, recent: Sequence[NDArray[np.int64]], time_us: int | NDArray[np.int64]) -> Inputs:
    """The user tower's inputs.

    Args:
        columns: of n users.
        recent: rows of each user's recent items, latest first.
        time_us: of the requests, microseconds UTC: one for all, or [n].
    """
    padded = np.zeros((len(recent), RECENT_LENGTH), np.int64)
    for row, items in enumerate(recent):
        latest = items[:RECENT_LENGTH]
        padded[row, : latest.size] = latest + 1
    return Inputs(_numbers(columns, USER_NUMBERS, time_us), _codes(columns, USER_CODES), padded)


def item_inputs(columns: Columns) -> Inputs:
    """The item tower's inputs; it reads no times."""
    return Inputs(_numbers(columns, ITEM_NUMBERS, 0), _codes(columns, ITEM_CODES))


def train_user_tower(
    inputs: Inputs, targets: Floats32, content: Floats32, *, sizes: DemoSizes, seed: int, advance: Callable[[], None]
) -> Tower:
    """Learn `targets` [n, dim] (see `unit_targets`); `advance` is called after each epoch."""
    encoder = Encoder.fit(inputs, tuple(USER_CODES.values()), content)
    network = _fit(encoder.encode(inputs), targets, sizes.tower_epochs, seed, advance)
    recent = InputSpec(name="recent", kind="recent_items", dtype="int64", length=RECENT_LENGTH, offset=1, missing=0)
    count = InputSpec(name="recent_count", kind="recent_count", length=RECENT_LENGTH)
    return Tower(encoder, network, [*_column_inputs(USER_NUMBERS, USER_CODES), recent, count])


def train_item_tower(
    inputs: Inputs, targets: Floats32, *, sizes: DemoSizes, seed: int, advance: Callable[[], None]
) -> Tower:
    """Learn `targets` [n, dim] (see `unit_targets`); `advance` is called after each epoch."""
    encoder = Encoder.fit(inputs, tuple(ITEM_CODES.values()))
    network = _fit(encoder.encode(inputs), targets, sizes.tower_epochs, seed, advance)
    return Tower(encoder, network, _column_inputs(ITEM_NUMBERS, ITEM_CODES))


def _column_inputs(numbers: Sequence[str], codes: Mapping[str, str]) -> list[InputSpec]:
    return [
        InputSpec(name="numbers", columns=tuple(numbers)),
        InputSpec(name="codes", columns=tuple(codes), dtype="int64", offset=1, missing=0),
    ]


def _fit(x: Floats32, y: Floats32, epochs: int, seed: int, advance: Callable[[], None]) -> MLPRegressor:
    network = MLPRegressor(
        hidden_layer_sizes=_HIDDEN,
        batch_size=min(_BATCH, x.shape[0]),
        learning_rate_init=2e-3,
        random_state=seed,
    )
    # One BLAS thread: a sum's order, and with it the network, must not depend on the number of cores.
    with threadpool_limits(1, "blas"):
        for _ in range(epochs):
            network.partial_fit(x, y)
            advance()
    return network


def _numbers(columns: Columns, names: Sequence[str], time_us: int | NDArray[np.int64]) -> Floats32:
    return np.stack([_number(columns[name], time_us) for name in names], axis=1).astype(np.float32)


def _number(column: Column, time_us: int | NDArray[np.int64]) -> Column:
    """Numbers as they are; days since a time, NaN where it is missing."""
    if column.dtype != np.int64:
        return column
    missing = column == MISSING_TIME
    return np.where(missing, np.nan, (time_us - np.where(missing, time_us, column)) / DAY_US)


def _codes(columns: Columns, names: Mapping[str, str]) -> NDArray[np.int64]:
    return np.stack([columns[name] for name in names], axis=1).astype(np.int64) + 1


def _one_hot(vocabulary: str) -> Floats32:
    """float32 [codes + 1, codes + 1]: row 0 stands for missing."""
    return np.eye(len(VOCABULARIES[vocabulary]) + 1, dtype=np.float32)


class _EncoderGraph:
    """Builds the encoder's ONNX graph, node by node in the order of `Encoder.encode`."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def model(self) -> onnx.ModelProto:
        encoder = self._encoder
        inputs = [
            helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["batch", encoder.mean.size]),
            helper.make_tensor_value_info("codes", TensorProto.INT64, ["batch", len(encoder.vocabularies)]),
        ]
        parts = [self._scaled_numbers(), *(self._one_hot(*each) for each in enumerate(encoder.vocabularies))]
        if encoder.content is not None:
            inputs.append(helper.make_tensor_value_info("recent", TensorProto.INT64, ["batch", RECENT_LENGTH]))
            inputs.append(helper.make_tensor_value_info("recent_count", TensorProto.FLOAT, ["batch", 1]))
            parts.append(self._recent_content(encoder.content))
        self._node("Concat", parts, "encoded", axis=1)
        output = helper.make_tensor_value_info("encoded", TensorProto.FLOAT, ["batch", encoder.width])
        graph = helper.make_graph(self._nodes, "encoder", inputs, [output], self._constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])

    def _scaled_numbers(self) -> str:
        mean = self._constant("mean", self._encoder.mean)
        missing = self._node("IsNaN", ["numbers"], "numbers_missing")
        filled = self._node("Where", [missing, mean, "numbers"], "numbers_filled")
        centred = self._node("Sub", [filled, mean], "numbers_centred")
        scaled = self._node("Mul", [centred, self._constant("scale", self._encoder.scale)], "numbers_scaled")
        low, high = (self._constant(f"clip_{x:+}", np.array(x, np.float32)) for x in (-_CLIP, _CLIP))
        return self._node("Clip", [scaled, low, high], "numbers_clipped")

    def _one_hot(self, column: int, vocabulary: str) -> str:
        index = self._constant(f"column_{column}", np.array(column, np.int64))
        codes = self._node("Gather", ["codes", index], f"codes_{column}", axis=1)
        table = self._constant(f"one_hot_{column}", _one_hot(vocabulary))
        return self._node("Gather", [table, codes], f"hot_{column}", axis=0)

    def _recent_content(self, content: Floats32) -> str:
        rows = self._node("Gather", [self._constant("content", content), "recent"], "recent_content", axis=0)
        axes = self._constant("recent_axis", np.array([1], np.int64))
        total = self._node("ReduceSum", [rows, axes], "recent_total", keepdims=0)
        count = self._node("Max", ["recent_count", self._constant("one", np.array(1, np.float32))], "recent_divisor")
        return self._node("Div", [total, count], "recent_mean")

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        self._constants.append(numpy_helper.from_array(values, name))
        return name

    def _node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output


def _like(model: onnx.ModelProto, other: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the file format version of the other, as joining them asks for."""
    model.ir_version = other.ir_version
    return model


def _normalised(model: onnx.ModelProto, dim: int) -> onnx.ModelProto:
    """The model with its output divided by its length, as "vector".

    The converter flattens what a network with several outputs predicts to one column: it is given its shape back.
    """
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array([-1, dim], np.int64), "vector_shape"))
    graph.node.append(helper.make_node("Reshape", [graph.output[0].name, "vector_shape"], ["direction"]))
    graph.node.append(helper.make_node("LpNormalization", ["direction"], ["vector"], axis=1, p=2))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", dim]))
    return model
