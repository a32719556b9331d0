"""Errors of an export; nothing has been written under the final name when one is raised.

RecserveError
└── ExportError            an input, or the target, cannot be used: the exporter's caller's matter
    ├── TableError         a table lacks what is needed, or holds what cannot be stored
    └── QualityError       too little of a table of events is fit to be learned from
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recserve.server.bundle.errors import RecserveError

if TYPE_CHECKING:
    from recserve.exporters.quality import QualityReport


class ExportError(RecserveError):
    """An input or the target of an export cannot be used; the message says what was found and what is expected."""


class TableError(ExportError):
    """A table lacks what is needed, or holds what cannot be stored."""


class QualityError(ExportError):
    """Too little of a table of events is fit to be learned from.

    Attributes:
        report: what each rule dropped.
    """

    def __init__(self, message: str, report: QualityReport) -> None:
        super().__init__(message)
        self.report = report
