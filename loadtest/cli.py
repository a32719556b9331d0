"""The command `recserve-loadtest`, also where what it needs is not installed: then it says what to install."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the result is its exit status."""
    try:
        from recserve.loadtest.commands import execute  # noqa: PLC0415  what it imports is in extras

        return execute(arguments)
    except ImportError as error:
        needed = "pip install 'recserve[cpu,loadtest]', or in a checkout pip install -e '.[cpu,loadtest]'"
        print(f"recserve-loadtest: {error}; it needs {needed}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
