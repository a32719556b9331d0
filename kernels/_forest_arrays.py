"""The arrays of a forest: what they are, and the checks that let the kernel trust every index in them.

    features        int64 [1]              how many columns the input has
    column_features int32 [columns]        the feature that a bin column is computed from
    threshold_bounds int64 [columns + 1]   column c compares with thresholds[bounds[c] : bounds[c + 1]], ascending
    thresholds      float64 [*]            at most 254 a column; a bin is how many of them are below the value
    range_bounds    int64 [columns + 1]    conditions of column c that are ranges of bins
    range_lows, range_widths uint8 [ranges]  left: (bin - low) mod 256 <= width
    set_bounds      int64 [columns + 1]    conditions of column c that are sets of bins
    set_bits        uint8 [sets, 32]       left: bit bin % 8 of byte bin // 8
    op_bounds       int64 [pieces + 1]     operations of each piece
    ops             uint32 [*, 3]          slots c, a, b; the result is c ? a : b and fills the piece's next slot
    planes          uint32 [pieces, 6]     slots of the bits of the leaf's number
    leaves          float64 [pieces, 64]   values by leaf number
    output_bounds   int64 [outputs + 1]    the pieces that each output adds
    forest_bounds   int64 [forests + 1]    the outputs of each forest
    initials        float64 [outputs]      what each output's sum begins with
    divisors        float64 [outputs]      what the sum is divided by at the end
    singles         uint8 [outputs]        1: leaves and sums are float32, as XGBoost's; 0: float64

Slot 0 is false and slot 1 true for every row, then come the ranges, the sets, and the results of a piece's operations.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recserve.kernels._arrays import check_array

FORMAT_VERSION: Final = 2
MAX_THRESHOLDS: Final = 254
"""Of one column: their bins, and one for NaN, fill a byte."""
NAN_BIN: Final = 255
PLANES: Final = 6
LEAVES: Final = 2**PLANES
SET_BYTES: Final = 32
FIRST_CONDITION: Final = 2
STEPS: Final = 256
MAX_FEATURES: Final = 2**24
MAX_SLOTS: Final = 2**24
"""Bounds the memory of a call: 64 bytes a slot."""

VERSION_NAME: Final = "version"
"""int64 [1] beside the others where they are saved."""

Arrays = Mapping[str, NDArray[Any]]

_SHAPES: Final[Mapping[str, tuple[type[np.generic], tuple[int | None, ...]]]] = {
    "features": (np.int64, (1,)),
    "column_features": (np.int32, (None,)),
    "threshold_bounds": (np.int64, (None,)),
    "thresholds": (np.float64, (None,)),
    "range_bounds": (np.int64, (None,)),
    "range_lows": (np.uint8, (None,)),
    "range_widths": (np.uint8, (None,)),
    "set_bounds": (np.int64, (None,)),
    "set_bits": (np.uint8, (None, SET_BYTES)),
    "op_bounds": (np.int64, (None,)),
    "ops": (np.uint32, (None, 3)),
    "planes": (np.uint32, (None, PLANES)),
    "leaves": (np.float64, (None, LEAVES)),
    "output_bounds": (np.int64, (None,)),
    "forest_bounds": (np.int64, (None,)),
    "initials": (np.float64, (None,)),
    "divisors": (np.float64, (None,)),
    "singles": (np.uint8, (None,)),
}
NAMES: Final = tuple(_SHAPES)


def check_forest(arrays: Arrays) -> None:
    """Refuse arrays that are no forest.

    Raises:
        TypeError: an array is of another dtype.
        ValueError: an array is missing or unknown, has another shape, or refers to what does not exist.
    """
    if unlike := set(arrays) ^ set(NAMES):
        raise ValueError(f"a forest has the arrays {', '.join(NAMES)}; missing or unknown: {', '.join(sorted(unlike))}")
    for name, (dtype, shape) in _SHAPES.items():
        check_array(name, arrays[name], dtype, shape)
    features, columns = int(arrays["features"][0]), len(arrays["column_features"])
    if not 1 <= features <= MAX_FEATURES:
        raise ValueError(f"features: expected 1 to {MAX_FEATURES}, found {features}")
    _check_below("column_features", arrays["column_features"], features)
    _check_thresholds(arrays, columns)
    _check_bounds(arrays, "range_bounds", columns, "range_lows")
    _check_bounds(arrays, "range_bounds", columns, "range_widths")
    _check_bounds(arrays, "set_bounds", columns, "set_bits")
    _check_programs(arrays)
    outputs = len(arrays["output_bounds"]) - 1
    _check_bounds(arrays, "output_bounds", None, "planes")
    check_spans("forest_bounds", arrays["forest_bounds"], None, outputs)
    if outputs < 1 or (np.diff(arrays["forest_bounds"]) < 1).any():
        raise ValueError("forest_bounds: expected at least one forest, each with at least one output")
    _check_sums(arrays, outputs)


def save_arrays(arrays: Arrays, folder: str | os.PathLike[str]) -> None:
    """Write each array as <name>.npy into a new folder."""
    root = Path(folder)
    root.mkdir()
    for name in NAMES:
        np.save(root / f"{name}.npy", arrays[name])
    np.save(root / f"{VERSION_NAME}.npy", np.array([FORMAT_VERSION], np.int64))


def load_arrays(folder: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Map the arrays of a folder, as yet unchecked but for the version.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a file is no array, or the forest is of another version.
    """
    root = Path(folder)
    version = _map(root, VERSION_NAME)
    if version.dtype != np.int64 or version.shape != (1,) or version[0] != FORMAT_VERSION:
        raise ValueError(
            f"{root}: expected a forest of version {FORMAT_VERSION}, found {version.tolist()}: export it again"
        )
    return {name: _map(root, name) for name in NAMES}


def _map(root: Path, name: str) -> NDArray[Any]:
    path = root / f"{name}.npy"
    size = path.stat().st_size
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # the header is a Python literal: a damaged one fails in NumPy's parser in many ways
        raise ValueError(f"{path} is no array: {error}") from error
    if not isinstance(found, np.ndarray) or found.nbytes > size:
        raise ValueError(f"{path} is no array, or is shorter than its header says")
    return np.asarray(found)


def set_hash(arrays: Arrays) -> str:
    """SHA-256 over all arrays; bins made for one forest set fit no other."""
    digest = hashlib.sha256(f"recserve forest {FORMAT_VERSION}".encode())
    for name in NAMES:
        array = np.ascontiguousarray(arrays[name])
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {array.dtype.name} {array.shape}".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


def steps_of(arrays: Arrays) -> NDArray[np.float64]:
    """Each column's thresholds, padded with infinity, which no value is above: float64 [columns, 256]."""
    bounds = arrays["threshold_bounds"]
    steps = np.full((len(bounds) - 1, STEPS), np.inf)
    counts = np.diff(bounds)
    within = np.arange(len(arrays["thresholds"])) - np.repeat(bounds[:-1], counts)
    steps[np.repeat(np.arange(len(counts)), counts), within] = arrays["thresholds"]
    return steps


def round_down(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 not above each threshold: for every float32 x, x <= threshold stays what it was."""
    with np.errstate(over="ignore"):
        nearest = thresholds.astype(np.float32)
    below = np.nextafter(nearest, np.float32(-np.inf))
    return np.where(nearest > thresholds, below, nearest)


def to_float32(leaves: NDArray[np.float64]) -> NDArray[np.float32]:
    """The nearest float32, infinite where there is none."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(leaves).astype(np.float32)


def float_error_bounds(arrays: Arrays) -> NDArray[np.float64]:
    """How far float32 sums may be from the exact margins: float64 [outputs].

    Rounding n leaves and adding them rounds each at most n times, by 2**-24 of its size or 2**-150, so the sum errs by
    up to g * sum |leaf| + n * 2**-150 with g = n u / (1 - n u), u = 2**-24 (Higham, Accuracy and Stability of Numerical
    Algorithms, section 4.2); the double sums err by far less than the one term that is added to n for them. The initial
    value is one more term, and an output whose exact sums are float32 has no other.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        largest = np.abs(arrays["leaves"]).max(axis=1, initial=0.0)
        bounds = arrays["output_bounds"]
        pairs = list(itertools.pairwise(bounds.tolist()))
        sizes = np.array([float(np.sum(largest[start:end])) for start, end in pairs]) + np.abs(arrays["initials"])
    terms = np.diff(bounds) + 2.0
    rounding = terms * 2.0**-24
    growth = np.where(rounding < 1, rounding / np.maximum(1 - rounding, 2.0**-24), np.inf)
    overflows = ~(sizes < np.finfo(np.float32).max / 2)
    with np.errstate(invalid="ignore"):
        found = np.where(overflows, np.inf, (growth * sizes + terms * 2.0**-150) / arrays["divisors"])
    return np.where(arrays["singles"] == 1, 0.0, found)


def max_ops(arrays: Arrays) -> int:
    """Operations of the longest piece."""
    return int(np.diff(arrays["op_bounds"]).max(initial=0))


def _check_thresholds(arrays: Arrays, columns: int) -> None:
    _check_bounds(arrays, "threshold_bounds", columns, "thresholds")
    bounds, thresholds = arrays["threshold_bounds"], arrays["thresholds"]
    if (np.diff(bounds) > MAX_THRESHOLDS).any():
        raise ValueError(f"threshold_bounds: a column has more than {MAX_THRESHOLDS} thresholds")
    ascending = thresholds[1:] > thresholds[:-1]
    starts = bounds[(bounds > 0) & (bounds < len(thresholds))]
    ascending[starts - 1] = True
    if np.isnan(thresholds).any() or not ascending.all():
        raise ValueError("thresholds: expected ascending numbers within each column")


def _check_programs(arrays: Arrays) -> None:
    """Every operand is a condition or an earlier result of the same piece."""
    pieces = len(arrays["planes"])
    _check_bounds(arrays, "op_bounds", pieces, "ops")
    if len(arrays["leaves"]) != pieces:
        raise ValueError(f"leaves: expected {pieces} pieces as in planes, found {len(arrays['leaves'])}")
    first = FIRST_CONDITION + len(arrays["range_lows"]) + len(arrays["set_bits"])
    if first + max_ops(arrays) > MAX_SLOTS:
        raise ValueError(f"op_bounds: the forest needs {first + max_ops(arrays)} slots, more than {MAX_SLOTS}")
    bounds = arrays["op_bounds"]
    counts = np.diff(bounds)
    own = first + np.arange(len(arrays["ops"])) - np.repeat(bounds[:-1], counts)
    if (arrays["ops"] >= own[:, np.newaxis]).any():
        raise ValueError("ops: an operand is neither a condition nor an earlier result of its piece")
    if (arrays["planes"] >= (first + counts)[:, np.newaxis]).any():
        raise ValueError("planes: a slot is neither a condition nor a result of its piece")


def _check_sums(arrays: Arrays, outputs: int) -> None:
    for name in ("initials", "divisors", "singles"):
        check_array(name, arrays[name], _SHAPES[name][0], (outputs,))
    if not np.isfinite(arrays["initials"]).all():
        raise ValueError("initials: expected finite numbers")
    if not np.isfinite(arrays["leaves"]).all():
        raise ValueError("leaves: expected finite numbers")
    if not (np.isfinite(arrays["divisors"]) & (arrays["divisors"] > 0)).all():
        raise ValueError("divisors: expected finite numbers above 0")
    if (arrays["singles"] > 1).any():
        raise ValueError("singles: expected 0 or 1")


def _check_bounds(arrays: Arrays, name: str, count: int | None, target: str) -> None:
    check_spans(name, arrays[name], count, len(arrays[target]))


def check_spans(name: str, bounds: NDArray[np.int64], count: int | None, end: int) -> None:
    """Bounds start at 0, never fall, and end where their target ends."""
    if len(bounds) < 1 or (count is not None and len(bounds) != count + 1):
        raise ValueError(f"{name}: expected {'at least 1' if count is None else count + 1} bounds, found {len(bounds)}")
    if bounds[0] != 0 or bounds[-1] != end or (bounds[1:] < bounds[:-1]).any():
        raise ValueError(f"{name}: expected bounds that rise from 0 to {end}")


def _check_below(name: str, values: NDArray[Any], end: int) -> None:
    if values.size and (values.min() < 0 or values.max() >= end):
        raise ValueError(f"{name}: expected numbers from 0 to {end - 1}, found {values.min()} to {values.max()}")
