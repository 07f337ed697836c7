"""What is in this host: `detect`, and the records that it returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchenv_magic.accelerators.records import (
    Accelerator,
    ComputeCapability,
    Finding,
    Host,
    Platform,
)

if TYPE_CHECKING:
    from torchenv_magic.accelerators.detection import detect

__all__ = ["Accelerator", "ComputeCapability", "Finding", "Host", "Platform", "detect"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    # Selection and every JSON reader need the records; only who looks at the host pays for probes.
    if name == "detect":
        from torchenv_magic.accelerators.detection import detect

        return detect
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
