"""The user tower: a network from what is known of a user's taste to a vector of the reference workloads.

Its columns hold a user's mixture of centres with its noise, x in 32 dimensions. Two layers see x: a linear one projects
it as items are projected, and 128 sine units, turned by an orthogonal matrix, give noise of variance 1 in every one of
the 128 directions. The units' frequencies are high, so that they have nothing to do with one another or with the
projection (random Fourier features; Rahimi and Recht, NIPS 2007), yet the same user always gets the same vector.

    v = x P + sqrt(2) sin(x W + b) Q,    divided by its length
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from recserve.exporters.spec import InputSpec, TowerSpec
from recserve.loadtest.clusters import DIM, INNER_DIM, Clusters
from recserve.loadtest.reference.schema import TASTES

_NETWORK: Final = f"""<ir_version: 8, opset_import: ["": 17]>
user_tower (float[n, {INNER_DIM}] taste) => (float[n, {DIM}] vector) {{
    signal = MatMul(taste, projection)
    turned = MatMul(taste, frequencies)
    phase = Add(turned, phases)
    wave = Sin(phase)
    noise = MatMul(wave, directions)
    sum = Add(signal, noise)
    vector = LpNormalization<axis = 1, p = 2>(sum)
}}"""


@dataclass(frozen=True, slots=True, eq=False)
class UserTower:
    """The network's weights, float32.

    Attributes:
        projection: P [32, 128].
        frequencies: W [32, 128].
        phases: b [128].
        directions: sqrt(2) Q [128, 128].
    """

    projection: NDArray[np.float32]
    frequencies: NDArray[np.float32]
    phases: NDArray[np.float32]
    directions: NDArray[np.float32]

    @staticmethod
    def draw(clusters: Clusters, random: np.random.Generator) -> UserTower:
        """A random one beside the items of `clusters`."""
        orthogonal, _ = np.linalg.qr(random.standard_normal((DIM, DIM)))
        return UserTower(
            clusters.projection.astype(np.float32),
            random.standard_normal((INNER_DIM, DIM), np.float32),
            random.uniform(0, 2 * np.pi, DIM).astype(np.float32),
            (np.sqrt(2) * orthogonal).astype(np.float32),
        )

    def vectors(self, taste: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [n, 128] of length 1: what the network makes of taste [n, 32], by NumPy."""
        noise = np.sin(taste @ self.frequencies + self.phases) @ self.directions
        summed = taste @ self.projection + noise
        unit: NDArray[np.float32] = summed / np.linalg.norm(summed, axis=1, keepdims=True)
        return unit

    def save(self, path: Path) -> TowerSpec:
        """Write the network, and say where its input comes from; nothing known is the middle of all tastes."""
        model = onnx.parser.parse_model(_NETWORK)
        for name in ("projection", "frequencies", "phases", "directions"):
            model.graph.initializer.append(numpy_helper.from_array(getattr(self, name), name))
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        return TowerSpec(model=path, inputs=[InputSpec(name="taste", columns=TASTES, missing=0.0)])
