"""Texts from outside on their way to a terminal or a log."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with control characters escaped: ids are any UTF-8, and a terminal obeys what it is sent."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
