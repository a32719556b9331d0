"""The programs of a forest's pieces, divided by what varies within a request.

An operation `c ? a : b` whose condition c looks at a column that is the same for all rows of a request, such as a
user's, has a result that is another name for a or for b. It is a *choice*: made once a block of rows, among the numbers
of slots, before the other operations of its piece, which alone have masks. Whether an operation is a choice depends on
the columns only, so it is settled here, when a plan is made.

Names are slots, with the results of operations renumbered: those of each piece's operations from the first result on,
then, from `first_choice` on, those of its choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recserve.kernels._forest_arrays import FIRST_CONDITION, Arrays

Numbers = NDArray[np.uint16] | NDArray[np.uint32]

_ALWAYS: Final = 1
"""The slot that is true for every row."""

_MOST_SORTED: Final = 4096
"""Operations of a piece that are put in order: 64 leaves have 378, and more only with large sets of categories."""


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """What a forest computes in requests in which some columns are the same for all rows.

    Attributes:
        choice_bounds: int64 [pieces + 1] into `choices`.
        choices: [*, 3], the names c, a and b; c is a condition on a fixed column.
        op_bounds: int64 [pieces + 1] into `ops`.
        ops: [*, 3], the slot c and the names a and b; fills the piece's next result.
        planes: uint32 [pieces, 6], names of the bits of the leaf's number.
        first_choice: the name of a piece's first choice; equals the number of slots.
        name_count: how many names there are. Where they fit, choices and ops are of 16 bits, otherwise of 32.
    """

    choice_bounds: NDArray[np.int64]
    choices: Numbers
    op_bounds: NDArray[np.int64]
    ops: Numbers
    planes: NDArray[np.uint32]
    first_choice: int
    name_count: int


def divide(arrays: Arrays, columns: NDArray[np.int32]) -> Program:
    """The program of a checked forest for requests in which `columns` are the same for all rows."""
    saved, bounds = arrays["ops"].astype(np.int64), arrays["op_bounds"]
    pieces = len(bounds) - 1
    piece = np.repeat(np.arange(pieces), np.diff(bounds))
    fixed = _fixed_conditions(arrays, columns)
    first = len(fixed)
    is_choice = (saved[:, 0] < first) & fixed[np.minimum(saved[:, 0], first - 1)]
    level = _levels(saved - first, bounds)
    start = bounds[piece] - first  # the slot s of a result is that of the saved operation start + s
    copied, before = _copies(saved[:, 0], is_choice, level, start, first)

    kept, chosen = np.flatnonzero(~is_choice), np.flatnonzero(is_choice)
    origin = np.concatenate((kept, copied))  # of what stays an operation
    order = np.lexsort((np.concatenate((2 * level[kept] + 1, 2 * before)), piece[origin]))
    origin, is_copy = origin[order], order >= len(kept)
    chosen = chosen[np.lexsort((level[chosen], piece[chosen]))]
    op_bounds, places = _places(piece[origin], pieces)
    choice_bounds, choice_places = _places(piece[chosen], pieces)
    first_choice = first + int(np.diff(op_bounds).max(initial=0))
    name_count = first_choice + int(np.diff(choice_bounds).max(initial=0))

    names = np.empty(len(saved), np.int64)  # of each saved operation's result
    names[origin[~is_copy]] = first + places[~is_copy]
    names[chosen] = first_choice + choice_places
    masks = names.copy()  # the slot that holds it
    masks[origin[is_copy]] = first + places[is_copy]

    known_as = (masks, names, names)  # of c, a and b
    operands = np.column_stack([_renamed(saved[:, i], known_as[i], start, first) for i in range(3)])
    ops = operands[origin]
    ops[is_copy] = np.column_stack([np.full(len(copied), _ALWAYS), *[names[origin[is_copy]]] * 2])
    planes = [_renamed(plane.astype(np.int64), names, bounds[:-1] - first, first) for plane in arrays["planes"].T]
    return Program(
        choice_bounds=choice_bounds,
        choices=_numbers(operands[chosen], name_count),
        op_bounds=op_bounds,
        ops=_numbers(ops, name_count),
        planes=np.column_stack(planes).astype(np.uint32),
        first_choice=first_choice,
        name_count=name_count,
    )


def _copies(
    conditions: NDArray[np.int64],
    is_choice: NDArray[np.bool_],
    level: NDArray[np.int64],
    start: NDArray[np.int64],
    first: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choices that operations ask, and the lowest level of those that do.

    An operation asks a mask, not a name, so a copy of what was chosen has to stand before it. Nodes of trees ask
    conditions and joins of conditions, and only joins are results.
    """
    asking = np.flatnonzero(~is_choice & (conditions >= first))
    asking = asking[is_choice[start[asking] + conditions[asking]]]
    copied, which = np.unique(start[asking] + conditions[asking], return_inverse=True)
    before = np.full(len(copied), np.iinfo(np.int64).max)
    np.minimum.at(before, which, level[asking])
    return copied, before


def _fixed_conditions(arrays: Arrays, columns: NDArray[np.int32]) -> NDArray[np.bool_]:
    """[FIRST_CONDITION + conditions]: whether each slot is a condition on one of the columns."""
    of_fixed = np.zeros(len(arrays["column_features"]), np.bool_)
    of_fixed[columns] = True
    conditions = [np.repeat(of_fixed, np.diff(arrays[f"{kind}_bounds"])) for kind in ("range", "set")]
    return np.concatenate([np.zeros(FIRST_CONDITION, np.bool_), *conditions])


def _levels(results: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers that rise from every operation to those that ask its result: how many lie below it, as a chain.

    In their order, neighbours need not wait for each other. Where a piece is very long they are the saved order, as
    finding chains takes time for every operation of the longest.

    Args:
        results: [operations, 3], each operand's place in its piece; negative: no result.
        bounds: [pieces + 1] into the operations.
    """
    counts = np.diff(bounds)
    if counts.max(initial=0) > _MOST_SORTED:
        return np.arange(len(results)) - np.repeat(bounds[:-1], counts)
    levels = np.zeros(len(results), np.int64)
    for place in range(int(counts.max(initial=0))):
        start = bounds[:-1][counts > place]
        operands = results[start + place]
        below = levels[start[:, np.newaxis] + np.maximum(operands, 0)]
        levels[start + place] = np.where(operands >= 0, below + 1, 0).max(axis=1)
    return levels


def _numbers(names: NDArray[np.int64], count: int) -> Numbers:
    """Of 16 bits, if all `count` of them fit."""
    return names.astype(np.uint16) if count <= np.iinfo(np.uint16).max + 1 else names.astype(np.uint32)


def _places(piece: NDArray[np.int64], pieces: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bounds [pieces + 1] of operations in the order of their pieces, and each one's place within its own."""
    bounds = np.concatenate((np.zeros(1, np.int64), np.cumsum(np.bincount(piece, minlength=pieces))))
    return bounds, np.arange(len(piece)) - bounds[piece]


def _renamed(
    slots: NDArray[np.int64], names: NDArray[np.int64], start: NDArray[np.int64], first: int
) -> NDArray[np.int64]:
    """Slots with the names of results: that of a slot s from `first` on is `names[start + s]`."""
    found = slots.copy()
    inner = slots >= first
    found[inner] = names[start[inner] + slots[inner]]
    return found
