"""Errors of bundles and snapshots; they know nothing of gRPC.

The tree, with the rest of the server's errors (recserve.server.pipeline.errors):

    RecserveError
    ├── BundleError                 a bundle or snapshot cannot be used: the exporter's or operator's matter
    │   ├── BundleNotFoundError     no such directory, or no manifest in it
    │   ├── BundleCorruptError      a file is missing, truncated, changed, swapped, or malformed
    │   ├── BundleSchemaError       written by a newer format than this build reads
    │   ├── BundleMismatchError     its parts contradict one another: dimension, metric, feature count, hash
    │   ├── BundleGoldenError       a golden request is not answered as it was at export
    │   └── BundleUnsupportedError  this build or configuration lacks what it needs: an extra, a device, native code
    └── RequestError                see recserve.server.pipeline.errors
"""

from __future__ import annotations


class RecserveError(Exception):
    """Root of every error that recserve raises on purpose."""


class BundleError(RecserveError):
    """A bundle or snapshot cannot be used.

    Args:
        message: what was wrong, what was expected, and what to do.
        file: the path within the bundle, where one file is to blame.
        field: the manifest field or array, where one is to blame.
        expected: what should have been there.
        found: what was there.
    """

    def __init__(
        self, message: str, *, file: str = "", field: str = "", expected: object = None, found: object = None
    ) -> None:
        self.file = file
        self.field = field
        self.expected = expected
        self.found = found
        details = [f"file {file}" if file else "", f"field {field}" if field else ""]
        details += [
            f"{name} {value!r}" for name, value in (("expected", expected), ("found", found)) if value is not None
        ]
        suffix = ", ".join(part for part in details if part)
        super().__init__(f"{message} ({suffix})" if suffix else message)


class BundleNotFoundError(BundleError):
    """No such directory, or no manifest in it."""


class BundleCorruptError(BundleError):
    """A file is missing, truncated, changed, swapped, or malformed."""


class BundleSchemaError(BundleError):
    """The bundle was written by a newer format than this build reads."""


class BundleMismatchError(BundleError):
    """Parts of the bundle, or a bundle and a snapshot, contradict one another."""


class BundleGoldenError(BundleError):
    """A golden request is not answered as it was at export."""


class BundleUnsupportedError(BundleError):
    """This build or configuration lacks what the bundle needs."""
