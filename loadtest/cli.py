"""The command `recserve-loadtest`, also where what it needs is not installed: then it says what to install."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

INTERRUPTED: Final = 130
"""As ending.INTERRUPTED, which is in what may not be imported yet."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the result is its exit status."""
    try:
        from recserve.loadtest.commands import execute  # noqa: PLC0415  what it imports is in extras

        return execute(arguments)
    except KeyboardInterrupt:  # while all of that is imported, too, which takes a second
        print("recserve-loadtest: interrupted; nothing is left of what was not complete", file=sys.stderr)
        return INTERRUPTED
    except ImportError as error:
        from recserve.server.bundle.extras import install_hint  # noqa: PLC0415  only here, for who presses Ctrl-C early

        print(f"recserve-loadtest: {error}; it needs {install_hint('cpu,loadtest')}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
