"""Which variant of a kernel runs on this CPU; the one place that gives RECSERVE_CPU its meaning."""

from __future__ import annotations

from collections.abc import Sequence


def choose_variant(wanted: str, variants: Sequence[str]) -> str:
    """The variant to use.

    Args:
        wanted: the value of RECSERVE_CPU, or empty for the widest variant.
        variants: those that this build and CPU have, the narrowest first.

    Raises:
        RuntimeError: `wanted` is not among them.
    """
    if not wanted:
        return variants[-1]
    if wanted not in variants:
        raise RuntimeError(
            f"RECSERVE_CPU={wanted}: expected one of {', '.join(variants)}, which this build and CPU have; "
            "unset it to let the CPU decide"
        )
    return wanted
