"""Apple silicon: every arm64 Mac has a GPU that PyTorch reaches through MPS."""

from __future__ import annotations

from torchenv_magic.accelerators.records import Accelerator, Platform

__all__ = ["apple_accelerators"]


def apple_accelerators(platform: Platform) -> tuple[Accelerator, ...]:
    """Return the GPU that an arm64 macOS implies; an Intel Mac has none that PyTorch uses."""
    if platform.wheel_platform != "macos_arm64":
        return ()
    return (Accelerator(vendor="apple", name="Apple silicon GPU", source="platform"),)
