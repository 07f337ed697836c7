"""`torchenv` and `python -m torchenv_magic`: the shell in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one word; return its exit status."""
    texts = sys.argv[1:] if arguments is None else list(arguments)
    if texts[:1] == ["preinstall"]:
        # Before each start of a server: of all words this one alone needs no other module of ours.
        from torchenv_magic.preinstall.wrapper import main as preinstall

        return preinstall(texts[1:])
    from torchenv_magic.cli import main as run

    return run(texts)


if __name__ == "__main__":
    sys.exit(main())
