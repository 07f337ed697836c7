"""What is in this host: `detect`, and the records that it returns."""

from __future__ import annotations

from torchenv_magic.accelerators.detection import detect
from torchenv_magic.accelerators.records import (
    Accelerator,
    ComputeCapability,
    Finding,
    Host,
    Platform,
)

__all__ = ["Accelerator", "ComputeCapability", "Finding", "Host", "Platform", "detect"]
