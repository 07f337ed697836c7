"""Be the target of `torchrun`, so that a made torch leaves a script outside site-packages too."""

from __future__ import annotations

import sys


def main() -> int:
    sys.stderr.write("torchrun: this torch was made for tests\n")
    return 0
