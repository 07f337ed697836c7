"""`torchenv` and `python -m torchenv_magic`: the shell in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one word; return its exit status."""
    texts = sys.argv[1:] if arguments is None else list(arguments)
    from torchenv_magic.cli import main as run

    return run(texts)


if __name__ == "__main__":
    sys.exit(main())
