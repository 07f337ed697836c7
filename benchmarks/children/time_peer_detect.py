"""Print the seconds that torchruntime takes to name the GPUs, once it is imported."""

from __future__ import annotations

import time

from torchruntime.device_db import get_gpus  # type: ignore[import-not-found]  # a peer

started = time.perf_counter()
get_gpus()
print(time.perf_counter() - started)
