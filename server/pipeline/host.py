"""The class of machine that this is: on one class, whole lists are bit-equal."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from recserve.bundle.v1.manifest_pb2 import Host


@cache
def this_host() -> Host:
    """Architecture, CPU model, and the libraries whose results may differ in the last bit from version to version."""
    return Host(machine=platform.machine(), cpu=_cpu_model(), libraries=_libraries())


def _cpu_model() -> str:
    """Model name with family, model and stepping: virtual machines often share a name among generations.

    Empty where the system does not tell.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n", 1)[0].splitlines()
    except OSError:
        return platform.processor()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = [facts.get(key, "") for key in ("cpu family", "model", "stepping")]
    return " ".join(part for part in (facts.get("model name", ""), "/".join(numbers).strip("/")) if part)


def _libraries() -> Iterator[str]:
    """The C library (exp, log1p, sin) and onnxruntime (towers), as far as they are there and say what they are."""
    name, version = platform.libc_ver()
    if version:
        yield f"{name} {version}"
    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            yield f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
