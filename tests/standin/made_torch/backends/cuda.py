"""Tell whether the made build calls itself a CUDA build."""

from __future__ import annotations

from .. import version  # noqa: TID252 - the package is renamed in the wheel


def is_built() -> bool:
    return version.cuda is not None
