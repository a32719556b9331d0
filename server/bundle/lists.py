"""Lists of items with scores that candidate sources propose from: mapped arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1 import manifest_pb2
from recserve.server.bundle import checks, layout
from recserve.server.bundle.errors import BundleCorruptError
from recserve.server.bundle.files import ArtifactFiles


@dataclass(frozen=True, slots=True, eq=False)
class ItemLists:
    """The lists of one candidate source, each best first: score descending, ties by row ascending.

    Attributes:
        spec: the entry in the manifest.
        offsets: int64 [lists + 1]: list i is rows[offsets[i]:offsets[i + 1]], likewise its scores.
        rows: int32, distinct within a list.
        scores: float32, finite.
    """

    spec: manifest_pb2.ItemLists
    offsets: NDArray[np.int64]
    rows: NDArray[np.int32]
    scores: NDArray[np.float32]

    @property
    def name(self) -> str:
        """Also the candidate source's."""
        return self.spec.name

    def at(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and scores of one list."""
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.rows[part].astype(np.int64), self.scores[part]

    @staticmethod
    def open(files: ArtifactFiles, spec: manifest_pb2.ItemLists) -> ItemLists:
        """Map the arrays; their ends are checked here, their contents by `check`.

        Raises:
            BundleCorruptError, BundleMismatchError: a file is missing, or not of the shape that the manifest says.
        """
        lengths = {"offsets": spec.lists + 1, "rows": spec.entries, "scores": spec.entries}
        parts = {
            part: files.array(layout.lists_file(spec.name, part), dtype, (lengths[part],))
            for part, dtype in layout.LISTS_PARTS.items()
        }
        lists = ItemLists(spec, **parts)  # type: ignore[arg-type]  # LISTS_PARTS settles the element types
        checks.check_ends(lists.offsets, len(lists.rows), layout.lists_file(spec.name, "offsets"))
        return lists

    def check(self, items: int) -> None:
        """Refuse lists with rows outside a catalogue of `items` items, with repeated rows, or in another order.

        Raises:
            BundleCorruptError: naming the file.
        """
        checks.check_monotone(self.offsets, layout.lists_file(self.name, "offsets"))
        checks.check_between(self.rows, 0, items, layout.lists_file(self.name, "rows"))
        for part in _whole_lists(self.offsets):
            self._check_order(part)

    def _check_order(self, part: slice) -> None:
        """Order and distinctness of the lists `part` of the offsets."""
        start, stop = int(self.offsets[part.start]), int(self.offsets[part.stop])
        rows, scores = self.rows[start:stop].astype(np.int64), self.scores[start:stop]
        which = np.repeat(np.arange(part.stop - part.start), np.diff(self.offsets[part.start : part.stop + 1]))
        if not np.isfinite(scores).all():
            at = start + int(np.argmin(np.isfinite(scores)))
            raise BundleCorruptError(f"entry {at} is not finite", file=layout.lists_file(self.name, "scores"))
        within = which[1:] == which[:-1]
        wrong = within & ((scores[1:] > scores[:-1]) | ((scores[1:] == scores[:-1]) & (rows[1:] <= rows[:-1])))
        if wrong.any():
            raise BundleCorruptError(
                f"a list is not in order of score and row at entry {start + int(wrong.argmax()) + 1}",
                file=layout.lists_file(self.name, "scores"),
            )
        pairs = np.sort(which * (1 << 32) + rows)
        again = pairs[1:] == pairs[:-1]
        if again.any():
            row = int(pairs[1:][again][0] & 0xFFFFFFFF)
            raise BundleCorruptError(
                f"a list holds row {row} twice", file=layout.lists_file(self.name, "rows"), expected="distinct rows"
            )


def _whole_lists(offsets: NDArray[np.int64]) -> list[slice]:
    """Runs of whole lists of about `checks.BLOCK` entries, or of one longer list."""
    ends, runs, start = offsets[1:], [], 0
    while start < len(ends):
        stop = int(np.searchsorted(ends, offsets[start] + checks.BLOCK, side="right"))
        stop = max(stop, start + 1)
        runs.append(slice(start, stop))
        start = stop
    return runs
