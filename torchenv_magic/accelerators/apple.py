"""Apple silicon: every arm64 Mac has a GPU that PyTorch reaches through MPS."""

from __future__ import annotations

import sys

from torchenv_magic.accelerators.records import Accelerator, Finding, Platform

__all__ = ["apple_accelerators", "apple_findings", "read_translated"]


def apple_accelerators(platform: Platform) -> tuple[Accelerator, ...]:
    """Return the GPU that an arm64 macOS implies; an Intel Mac has none that PyTorch uses."""
    if platform.wheel_platform != "macos_arm64":
        return ()
    return (Accelerator(vendor="apple", name="Apple silicon GPU", source="platform"),)


def apple_findings(platform: Platform, *, translated: bool) -> tuple[Finding, ...]:
    """Return what to say of a Python that macOS translates from Intel's instructions (Rosetta).

    It looks like an Intel Mac from inside, for which the wheels ended with PyTorch 2.2.2.
    """
    if platform.wheel_platform != "macos_x86_64" or not translated:
        return ()
    message = "this Mac has Apple silicon, and this Python is made for Intel (it runs in Rosetta)"
    hint = "use an arm64 Python: with it PyTorch is current and has the GPU (MPS)"
    return (Finding(message=message, source="sysctl.proc_translated", hint=hint),)


def read_translated(platform: Platform) -> bool:
    """Return whether Rosetta translates this process; False on everything but an Intel macOS."""
    if sys.platform != "darwin" or platform.wheel_platform != "macos_x86_64":
        return False
    import ctypes

    answer = ctypes.c_int(0)
    size = ctypes.c_size_t(ctypes.sizeof(answer))
    # Absent on Macs with an Intel processor, where the call fails and the answer stays 0.
    ctypes.CDLL(None).sysctlbyname(
        b"sysctl.proc_translated", ctypes.byref(answer), ctypes.byref(size), None, 0
    )
    return answer.value == 1
