"""What a benchmark writes down: figures with the machine and the versions that they belong to."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.table import Table

from recserve.loadtest.runs.errors import ResultError
from recserve.server.bundle.replacing import is_replaceable, partial_of, replace_text
from recserve.server.pipeline.host import this_host

CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni")
PICTURES: Final = (".html", ".svg", ".png")
"""Ends of names of what is drawn beside a result file, which would overwrite it."""
PACKAGES = (
    "recserve",
    "numpy",
    "grpcio",
    "pygrpc-native",
    "protobuf",
    "faiss-cpu",
    "onnxruntime",
    "lightgbm",
    "tl2cgen",
    "treelite",
    "lleaves",
    "llvmlite",
    "scann",
    "fastapi",
    "uvicorn",
    "httptools",
    "orjson",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One row of a result file.

    Attributes:
        name: what was measured; `recserve` for our own part.
        params: the size of the work.
        milliseconds: the runs, one latency each; empty where latency was not measured.
        extra: further figures, such as requests_per_s or ratio_to.
    """

    name: str
    params: Mapping[str, int | float | str]
    milliseconds: Sequence[float]
    extra: Mapping[str, float | int | str] = field(default_factory=dict)

    def row(self) -> dict[str, object]:
        """As written to JSON."""
        return {
            "name": self.name,
            "params": dict(self.params),
            "p50_ms": self._percentile(50),
            "p99_ms": self._percentile(99),
            "runs": len(self.milliseconds),
            **self.extra,
        }

    def _percentile(self, percent: int) -> float | None:
        return round(float(np.percentile(self.milliseconds, percent)), 5) if self.milliseconds else None


def time_call(call: Callable[[], object], *, runs: int, warmup: int = 3) -> list[float]:
    """Milliseconds of each of `runs` calls, after `warmup` calls that are not counted."""
    for _ in range(warmup):
        call()
    times = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def document(workload: str, measurements: Sequence[Measurement]) -> dict[str, Any]:
    """A result file's content."""
    return document_of_rows(workload, [each.row() for each in measurements])


def document_of_rows(workload: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The same of rows that are made already; each has at least what Measurement.row gives."""
    return {
        "workload": workload,
        "host": host(),
        "commit": commit(),
        "versions": versions(),
        "results": list(rows),
    }


def check_writable(path: Path, *beside: Path) -> None:
    """What takes minutes to measure must not be lost in the end: whether it can be written is asked before.

    Args:
        path: of the result file.
        beside: what else will be written, such as its page.

    Raises:
        ResultError: one cannot be written, or the result file has a name that a picture of it would take.
    """
    if path.suffix in PICTURES:
        raise ResultError(f"--out {path}: results are JSON, and {path.suffix} is their picture's: name it *.json")
    for each in (path, *beside):
        try:
            _probe(each)
        except OSError as error:
            raise ResultError(f"--out: {each} cannot be written: {error.strerror}; give another path") from error


def _probe(path: Path) -> None:
    """Do what `replace_text` will do, but leave what is there as it is and nothing where nothing was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with path.open("ab"):
            pass
    if is_replaceable(path):
        partial = partial_of(path)
        partial.touch()
        partial.unlink()


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a result file; each result has a line of its own, so that versions of the file compare well."""
    rest = {name: value for name, value in content.items() if name != "results"}
    head = json.dumps({**rest, "results": []}, indent=1).removesuffix("]\n}")
    rows = ",\n".join(f"  {json.dumps(row)}" for row in content["results"])
    replace_text(path, f"{head}\n{rows}\n ]\n}}\n")


def table(title: str, measurements: Sequence[Measurement]) -> Table:
    """For the terminal."""
    shown = Table(title=title)
    for heading in ("what", "size", "p50 ms", "p99 ms", "runs", "further"):
        is_text = heading in ("what", "size", "further")
        shown.add_column(heading, justify="left" if is_text else "right", no_wrap=not is_text)
    for each in measurements:
        row = each.row()
        size = ", ".join(f"{name} {value}" for name, value in each.params.items())
        further = ", ".join(f"{name} {value}" for name, value in each.extra.items())
        shown.add_row(each.name, size, _shown(row["p50_ms"]), _shown(row["p99_ms"]), f"{row['runs']}", further)
    return shown


def _shown(milliseconds: object) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.3g}"


def host() -> dict[str, object]:
    """The machine: CPU model, the flags that matter here, cores that this process may use, memory."""
    return {
        "cpu": this_host().cpu,
        "machine": this_host().machine,
        "flags": _flags(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Installed versions of what takes part; a missing package is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the checkout that this package runs from; empty outside of one."""
    folder = Path(__file__).resolve().parent
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.decode().strip()


def _flags() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return []
    present = next((set(line.split(":")[1].split()) for line in lines if line.startswith("flags")), set())
    return [flag for flag in CPU_FLAGS if flag in present]
