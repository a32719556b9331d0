"""The class of machine that this is: on one class, whole lists are bit-equal."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

from recserve.bundle.v1.manifest_pb2 import Host


@cache
def this_host() -> Host:
    """Architecture and CPU model; the model is empty where the system does not tell."""
    return Host(machine=platform.machine(), cpu=_cpu_model())


def _cpu_model() -> str:
    """Model name with family, model and stepping: virtual machines often share a name among generations."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n", 1)[0].splitlines()
    except OSError:
        return platform.processor()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = [facts.get(key, "") for key in ("cpu family", "model", "stepping")]
    return " ".join(part for part in (facts.get("model name", ""), "/".join(numbers).strip("/")) if part)
