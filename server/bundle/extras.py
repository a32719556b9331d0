"""Optional dependencies: who misses one is told how to install it."""

from __future__ import annotations


def install_hint(extras: str) -> str:
    """How to install the extras named, such as "cpu,export": published packages and checkouts have different ways."""
    return f"pip install 'recserve[{extras}]', or in a checkout: make install EXTRAS={extras}"
