"""Print the seconds that detection takes once it is imported, in a process where nothing ran yet.

Arguments: the root below which the devices' files lie.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from torchenv_magic.accelerators import detect

started = time.perf_counter()
host = detect(root=Path(sys.argv[1]), environ=dict(os.environ))
seconds = time.perf_counter() - started
if not host.accelerators:
    sys.exit(f"no accelerator was found: {host}")
print(seconds)
