"""Stand in for the PyTorch index: real uv, unmodified flags, nothing but the loopback interface.

>>> with StandIn() as standin:  # doctest: +SKIP
...     child = standin.environment(cache, hermetic=True).apply(os.environ)
...     subprocess.run([uv, "pip", "install", "--torch-backend=cu126", "torch"], env=child)
"""

from __future__ import annotations

from tests.standin.environment import ChildEnvironment
from tests.standin.index import StandIn
from tests.standin.server import FILE_HOST, INDEX_HOST, SIMPLE, Fault, Request
from tests.standin.wheels import (
    BACKENDS,
    OLDER_TORCH,
    TORCH,
    Wheel,
    find_real_wheels,
    make_family,
    make_wheel,
)

__all__ = [
    "BACKENDS",
    "FILE_HOST",
    "INDEX_HOST",
    "OLDER_TORCH",
    "SIMPLE",
    "TORCH",
    "ChildEnvironment",
    "Fault",
    "Request",
    "StandIn",
    "Wheel",
    "find_real_wheels",
    "make_family",
    "make_wheel",
]
