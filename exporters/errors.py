"""Errors of an export; nothing has been written under the final name when one is raised.

RecserveError
└── ExportError            an input, or the target, cannot be used: the exporter's caller's matter
    └── TableError         a table lacks what is needed, or holds what cannot be stored
"""

from __future__ import annotations

from recserve.server.bundle.errors import RecserveError


class ExportError(RecserveError):
    """An input or the target of an export cannot be used; the message says what was found and what is expected."""


class TableError(ExportError):
    """A table lacks what is needed, or holds what cannot be stored."""
