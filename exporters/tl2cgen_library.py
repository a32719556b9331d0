"""Forests as shared libraries: TL2cgen writes C, the system's compiler builds it.

Trees are spread over translation units of a few trees each, because compilers take more than proportional time for long
functions. Every unit adds its leaves to the same running sum, one unit after the other, so the order of additions, and
with it the bits of a margin, is that of the trees.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from recserve.exporters.errors import ExportError
from recserve.exporters.quiet import notes_discarded

if TYPE_CHECKING:
    import lightgbm

Progress = Callable[[int, int], None]
"""Called with the compiler's finished and total runs."""

TREES_PER_UNIT = 8
COMPILERS = ("cc", "gcc", "clang")
# Strict IEEE arithmetic on any CPU of the architecture: no contraction to fused multiply-add, no -march, no fast-math.
# -O2 takes twice as long as -O1 and makes trees only a few percent faster.
COMPILE_FLAGS = ("-std=c99", "-O1", "-fPIC", "-ffp-contract=off")
# Calls within the library are bound to it, whatever other libraries in the process are called alike.
LINK_FLAGS = ("-shared", "-s", "-Wl,-Bsymbolic")


def compile_library(
    booster: lightgbm.Booster, library: Path, *, quantize: bool = False, on_progress: Progress | None = None
) -> None:
    """Compile a forest to `library`, replacing what is there.

    Args:
        booster: a forest that `lightgbm_text.input_rules` accepts.
        library: the file to write; its directory must exist.
        quantize: compare ranks among the thresholds instead of numbers, as TL2cgen's parameter of that name.
        on_progress: told of each finished compiler run.

    Raises:
        ExportError: there is no C compiler, or Treelite, TL2cgen or the compiler fails.
    """
    compiler = _find_compiler()
    with TemporaryDirectory(prefix="recserve-forest-") as folder:
        sources = _generate(booster, Path(folder), quantize)
        _build(compiler, sources, library, on_progress or (lambda _done, _total: None))


def _find_compiler() -> str:
    for name in COMPILERS:
        if path := shutil.which(name):
            return path
    raise ExportError(
        f"compiling a forest needs a C compiler, and none of {', '.join(COMPILERS)} is on PATH: install one, for "
        "instance with `apt-get install gcc libc6-dev`"
    )


def _generate(booster: lightgbm.Booster, folder: Path, quantize: bool) -> list[Path]:
    """Write the C sources of the forest."""
    import tl2cgen  # noqa: PLC0415  slow to import, and only an export with a ranker needs them
    import treelite  # noqa: PLC0415

    units = -(-booster.num_trees() // TREES_PER_UNIT)
    try:
        with notes_discarded():
            model = treelite.frontend.from_lightgbm(booster)
            tl2cgen.generate_c_code(model, dirpath=folder, params={"quantize": int(quantize), "parallel_comp": units})
    except (treelite.TreeliteError, tl2cgen.TL2cgenError) as error:
        raise ExportError(f"the forest cannot be turned into C: {error}") from error
    return sorted(folder.glob("*.c"))


def _build(compiler: str, sources: list[Path], library: Path, on_progress: Progress) -> None:
    """Compile the sources on all cores, then link."""
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        runs = [pool.submit(_run, [compiler, *COMPILE_FLAGS, "-c", source.name], source.parent) for source in sources]
        for done, run in enumerate(as_completed(runs), start=1):
            run.result()
            on_progress(done, len(sources) + 1)
    finally:  # after a failure or Ctrl-C, a large forest's other units would take minutes for nothing
        pool.shutdown(cancel_futures=True)
    objects = [source.with_suffix(".o").name for source in sources]
    _run([compiler, *LINK_FLAGS, "-o", str(library.absolute()), *objects, "-lm"], sources[0].parent)
    on_progress(len(sources) + 1, len(sources) + 1)


def _run(command: list[str], folder: Path) -> None:
    """Run the compiler in `folder`, so that no path of this machine gets into the library."""
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise ExportError(f"`{' '.join(command)}` failed with status {finished.returncode}: {finished.stderr[-2000:]}")
