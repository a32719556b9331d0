"""What a soak looks for: memory that grows, and latency that creeps up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def trend(row: Mapping[str, Any]) -> dict[str, Any]:
    """How memory and p99 changed over a run.

    Returns:
        `memory_mib_per_hour`: the slope of the proportional set size by least squares, over the run's second half, when
        what is filled once is full; `p99_first_ms` and `p99_last_ms`: medians of the p99 of the first and the last
        quarter's windows; and `words` for a person. None where the run was too short to tell.
    """
    at, pss = np.array(row["server"]["pss_at_s"]), np.array(row["server"]["pss_mib"])
    later = at >= at[-1] / 2 if at.size else np.zeros(0, bool)
    slope = float(np.polyfit(at[later], pss[later], 1)[0] * 3600) if later.sum() >= 3 else None
    windows = [value for value in row["timeline"]["p99_ms"] if value is not None]
    quarter = len(windows) // 4
    first = float(np.median(windows[:quarter])) if quarter else None
    last = float(np.median(windows[-quarter:])) if quarter else None
    return {
        "memory_mib_per_hour": None if slope is None else round(slope, 2),
        "p99_first_ms": first,
        "p99_last_ms": last,
        "words": [
            "memory: too few readings to tell"
            if slope is None
            else f"memory: {pss[0]:.1f} MiB at first, {pss[-1]:.1f} MiB at the end, {slope:+.1f} MiB an hour lately",
            "p99: the run was too short to tell"
            if first is None
            else f"p99: {first:.3g} ms in the first quarter, {last:.3g} ms in the last",
        ],
    }
