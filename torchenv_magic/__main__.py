"""`python -m torchenv_magic` is the `torchenv` command."""

from __future__ import annotations

import sys

from torchenv_magic.cli import main

if __name__ == "__main__":
    sys.exit(main())
