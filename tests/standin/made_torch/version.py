"""Say which build this is; `tests.standin.wheels` writes this file anew for each made wheel."""

from __future__ import annotations

__all__ = ["__version__", "cuda", "debug", "git_version", "hip", "rocm", "xpu"]
__version__ = "2.13.0+cpu"
debug = False
cuda: str | None = None
git_version = "made for tests"
hip: str | None = None
rocm: str | None = None
xpu: str | None = None
