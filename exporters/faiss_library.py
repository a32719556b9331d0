"""FAISS, where it is installed."""

from __future__ import annotations

import os
from typing import Any

from recserve.exporters.errors import ExportError
from recserve.server.bundle.extras import install_hint


def faiss_library() -> Any:
    """The module, set to use all cores.

    Raises:
        ExportError: it is not installed.
    """
    try:
        import faiss  # noqa: PLC0415  in the extras [cpu] and [gpu]; exact search does not need it
    except ImportError as error:
        raise ExportError(f"an index needs faiss ({error}): {install_hint('cpu')}") from error
    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    return faiss
