"""From a tree to the operations that give every row its leaf number, bit by bit.

A subtree's leaves get consecutive numbers. Bit p of a row's leaf number is then, at every node,

    condition ? bit p in the left subtree : bit p in the right subtree

where the bit is the same for all leaves of either subtree no operation is needed: both alike, it is that constant; left
1 and right 0, it is the condition itself. So a perfect tree of 64 leaves takes 57 operations and not 6 * 63, and which
subtree's numbers come first is chosen to make them few: exactly, by dynamic programming over (node, first number).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recserve.exporters.forest_decisions import Ref
from recserve.kernels._forest_arrays import LEAVES, PLANES

NEVER, ALWAYS = 0, 1
"""The slots that hold for no row and for every row."""
_IMPOSSIBLE = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """A tree: children of node i are nodes where >= 0, else leaf ~child; a single leaf has no nodes."""

    left: Sequence[int]
    right: Sequence[int]
    conditions: Sequence[Sequence[Ref]]
    """Of each node: a row goes left where any of them holds."""
    values: NDArray[np.float64]


@dataclass(slots=True, eq=False)
class Piece:
    """A program: operations (c, a, b), the planes of the leaf number, and the values by leaf number."""

    ops: list[tuple[Ref, Ref, Ref]] = field(default_factory=list)
    planes: list[Ref] = field(default_factory=lambda: [NEVER] * PLANES)
    values: NDArray[np.float64] = field(default_factory=lambda: np.zeros(LEAVES))


def compile_tree(tree: Tree, first_result: Ref) -> list[Piece]:
    """Compile a tree: to one piece, or to several that share its leaves where it has more than 64.

    Args:
        tree: the tree.
        first_result: the slot that a piece's first operation fills.
    """
    shape = _Shape.of(tree)
    if shape.leaves[shape.root] <= LEAVES:
        return [_compile_part(tree, shape, None, first_result)]
    return [_compile_part(tree, shape, part, first_result) for part in _parts(shape)]


@dataclass(frozen=True, slots=True, eq=False)
class _Shape:
    """The tree without nodes whose condition is a constant."""

    root: int
    order: Sequence[int]
    """Nodes that can be reached, parents first."""
    children: dict[int, tuple[int, int]]
    leaves: dict[int, int]
    """Leaves below each node and leaf."""

    @classmethod
    def of(cls, tree: Tree) -> _Shape:
        def settle(child: int) -> int:
            while child >= 0:
                refs = tree.conditions[child]
                if ALWAYS in refs:
                    child = tree.left[child]
                elif all(ref == NEVER for ref in refs):
                    child = tree.right[child]
                else:
                    break
            return child

        root = settle(0 if len(tree.left) else ~0)
        order: list[int] = []
        children: dict[int, tuple[int, int]] = {}
        open_nodes = [root] if root >= 0 else []
        while open_nodes:
            node = open_nodes.pop()
            order.append(node)
            children[node] = settle(tree.left[node]), settle(tree.right[node])
            open_nodes.extend(child for child in reversed(children[node]) if child >= 0)
        leaves = {~leaf: 1 for leaf in range(len(tree.values))}
        for node in reversed(order):
            leaves[node] = sum(leaves[child] for child in children[node])
        return cls(root, order, children, leaves)


def _parts(shape: _Shape) -> Iterator[frozenset[int]]:
    """Cut a tree: sets of subtrees with up to 63 leaves together; number 0 is left for all other leaves."""
    room = LEAVES - 1
    part: list[int] = []
    used = 0
    open_nodes = [shape.root]
    while open_nodes:
        node = open_nodes.pop()
        if shape.leaves[node] > room:
            open_nodes.extend(reversed(shape.children[node]))
            continue
        if used + shape.leaves[node] > room:
            yield frozenset(part)
            part, used = [], 0
        part.append(node)
        used += shape.leaves[node]
    yield frozenset(part)


def _compile_part(tree: Tree, shape: _Shape, part: frozenset[int] | None, first_result: Ref) -> Piece:
    """Compile the whole tree, or the given subtrees with everything else as leaf number 0."""
    piece = Piece()
    if part is not None:
        piece.values[0] = -0.0  # whatever the sum, adding this changes no bit
    sizes = _sizes(shape, part)
    first_number = _place(shape, sizes, 0 if part is None else 1)
    emitter = _Emitter(first_result)
    planes: dict[int, list[Ref]] = {}

    def planes_of(child: int) -> list[Ref]:
        if child >= 0 and sizes[child]:
            return planes[child]
        number = first_number[child] if sizes[child] else 0
        return [number >> p & 1 for p in range(PLANES)]

    for node in reversed(shape.order):
        if sizes[node]:
            left, right = shape.children[node]
            planes[node] = emitter.select_all(tree.conditions[node], planes_of(left), planes_of(right))
    for child, number in first_number.items():
        if child < 0 and sizes[child]:
            piece.values[number] = tree.values[~child]
    piece.ops, piece.planes = _by_level(emitter.ops, planes_of(shape.root), first_result)
    return piece


def _sizes(shape: _Shape, part: frozenset[int] | None) -> dict[int, int]:
    """Leaves of the part below each node and leaf."""
    if part is None:
        return shape.leaves
    sizes = dict.fromkeys(shape.leaves, 0)
    sizes.update({node: shape.leaves[node] for node in part})
    inside = set(part)
    for node in shape.order:
        if node in inside:
            for child in shape.children[node]:
                sizes[child] = shape.leaves[child]
                inside.add(child)
    for node in reversed(shape.order):
        sizes[node] = sum(sizes[child] for child in shape.children[node])
    return sizes


def _place(shape: _Shape, sizes: dict[int, int], lowest: int) -> dict[int, int]:
    """The first number of each node and leaf."""
    left_first_cost, right_first_cost = _costs()
    cost: dict[int, NDArray[np.int64]] = {}
    choice: dict[int, NDArray[np.bool_]] = {}
    nothing = np.zeros(LEAVES + 1, np.int64)
    for node in reversed(shape.order):
        if not sizes[node]:
            continue
        left, right = shape.children[node]
        a, b = sizes[left], sizes[right]
        left_cost, right_cost = cost.get(left, nothing), cost.get(right, nothing)
        starts = LEAVES + 1 - a - b
        before = left_cost[:starts] + right_cost[a : a + starts] + left_first_cost[a, b, :starts]
        after = right_cost[:starts] + left_cost[b : b + starts] + right_first_cost[a, b, :starts]
        choice[node] = before < after
        cost[node] = np.full(LEAVES + 1, _IMPOSSIBLE)
        cost[node][:starts] = np.minimum(before, after)
    first = {shape.root: lowest}
    if shape.root in cost:
        first[shape.root] = lowest + int(cost[shape.root][lowest:].argmin())
    for node in shape.order:
        if not sizes[node]:
            continue
        left, right = shape.children[node]
        start = first[node]
        left_first = bool(choice[node][start])
        first[left] = start if left_first else start + sizes[right]
        first[right] = start + sizes[left] if left_first else start
    return first


@functools.cache
def _costs() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Operations of a node with a leaves to the left and b to the right whose numbers begin at s.

    Returns:
        two int64 [65, 65, 65] over (a, b, s): the left leaves' numbers first, and the right leaves' first.
    """
    varies = np.zeros((LEAVES + 1, LEAVES + 1), np.int64)  # (count, start) -> planes that are no constant, as bits
    value = np.zeros_like(varies)
    for count in range(1, LEAVES + 1):
        starts = np.arange(LEAVES + 1 - count)
        changes = starts ^ (starts + count - 1)
        for shift in (1, 2, 4):
            changes |= changes >> shift
        varies[count, : len(starts)] = changes
        value[count, : len(starts)] = starts & ~changes
    left_first = np.full((LEAVES + 1,) * 3, _IMPOSSIBLE)
    right_first = np.full((LEAVES + 1,) * 3, _IMPOSSIBLE)
    for a in range(LEAVES + 1):
        for b in range(LEAVES + 1 - a):
            n = LEAVES + 1 - a - b
            for table, left, right in (
                (left_first, slice(0, n), slice(a, a + n)),
                (right_first, slice(b, b + n), slice(0, n)),
            ):
                selects = varies[a, left] | varies[b, right]
                negations = ~value[a, left] & value[b, right] & ~selects
                table[a, b, :n] = np.bitwise_count(selects) + (negations != 0)
    return left_first, right_first


class _Emitter:
    """Operations without repetition."""

    def __init__(self, first_result: Ref) -> None:
        self.ops: list[tuple[Ref, Ref, Ref]] = []
        self.first = first_result
        self.known: dict[tuple[Ref, Ref, Ref], Ref] = {}

    def select_all(self, conditions: Sequence[Ref], left: Sequence[Ref], right: Sequence[Ref]) -> list[Ref]:
        """The planes of a node from those of its children."""
        condition = conditions[0]
        for other in conditions[1:]:
            condition = self.select(other, ALWAYS, condition)
        return [self.select(condition, a, b) for a, b in zip(left, right, strict=True)]

    def select(self, c: Ref, a: Ref, b: Ref) -> Ref:
        """The slot of c ? a : b."""
        if a == b:
            return a
        if (a, b) == (ALWAYS, NEVER):
            return c
        op = (c, a, b)
        found = self.known.get(op)
        if found is None:
            found = self.known[op] = self.first + len(self.ops)
            self.ops.append(op)
        return found


def _by_level(
    ops: Sequence[tuple[Ref, Ref, Ref]], planes: Sequence[Ref], first: Ref
) -> tuple[list[tuple[Ref, Ref, Ref]], list[Ref]]:
    """Order operations by their depth, so that neighbours do not wait for each other's results."""
    levels: list[int] = []
    for op in ops:
        levels.append(1 + max((levels[ref - first] for ref in op if ref >= first), default=0))
    order = sorted(range(len(ops)), key=levels.__getitem__)
    renamed = {first + old: first + new for new, old in enumerate(order)}
    moved = [tuple(renamed.get(ref, ref) for ref in ops[old]) for old in order]
    return [(c, a, b) for c, a, b in moved], [renamed.get(ref, ref) for ref in planes]
