"""The system under the interpreter: what a wheel's platform tag has to fit."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from torchenv_magic.accelerators.probing import run_bounded
from torchenv_magic.accelerators.records import Platform, System

__all__ = ["glibc_version", "musl_version", "platform_of", "read_platform"]

_MACHINES = {"amd64": "x86_64", "x64": "x86_64"}
_WINDOWS_MACHINES = {"win-amd64": "x86_64", "win-arm64": "arm64", "win32": "x86"}


def read_platform(
    *, root: Path = Path("/"), environ: Mapping[str, str], timeout_seconds: float = 2.0
) -> Platform:
    """Return the platform of this interpreter."""
    if sys.platform == "win32":
        import sysconfig

        # Of the interpreter, not of the machine: an x64 Python runs on an ARM one, with x64 wheels.
        machine = _WINDOWS_MACHINES.get(sysconfig.get_platform(), "unknown")
        return platform_of(sys_platform="win32", machine=machine)
    machine = os.uname().machine
    if sys.platform != "linux":
        return platform_of(sys_platform=sys.platform, machine=machine)
    glibc = glibc_version(_libc_text())
    musl = None
    if glibc is None:
        for loader in sorted((root / "lib").glob("ld-musl-*.so.1")):
            # The loader prints its version when it is run without a program to load.
            completed = run_bounded([str(loader)], timeout_seconds=timeout_seconds, environ=environ)
            musl = musl_version(completed.output)
    return platform_of(
        sys_platform="linux",
        machine=machine,
        is_64_bit=sys.maxsize > 2**32,
        glibc=glibc,
        musl=musl,
    )


def platform_of(
    *,
    sys_platform: str,
    machine: str,
    is_64_bit: bool = True,
    glibc: str | None = None,
    musl: str | None = None,
) -> Platform:
    """Return the platform that `sys.platform`, the machine's name and the C library make.

    >>> platform_of(sys_platform="win32", machine="AMD64").wheel_platform
    'win_amd64'
    """
    systems: dict[str, System] = {"linux": "linux", "win32": "windows", "darwin": "macos"}
    machine = machine.lower()
    machine = _MACHINES.get(machine, machine)
    if not is_64_bit and machine in {"x86_64", "aarch64"}:
        # A 32-bit Python on a 64-bit kernel takes 32-bit wheels, of which there are none.
        machine = {"x86_64": "i686", "aarch64": "armv8l"}[machine]
    return Platform(
        system=systems.get(sys_platform, "other"),
        machine=machine,
        libc="glibc" if glibc else "musl" if musl else None,
        libc_version=glibc or musl,
    )


def glibc_version(confstr: str | None) -> str | None:
    """Return the version in what `confstr(CS_GNU_LIBC_VERSION)` says.

    >>> glibc_version("glibc 2.36")
    '2.36'
    """
    match = re.fullmatch(r"glibc ([0-9]+\.[0-9]+)\S*", (confstr or "").strip())
    return match[1] if match else None


def musl_version(output: str) -> str | None:
    r"""Return the version that musl's loader prints about itself.

    >>> musl_version("musl libc (x86_64)\nVersion 1.2.4\nDynamic Program Loader\n")
    '1.2.4'
    """
    match = re.search(r"^musl libc.*\nVersion ([0-9]+(?:\.[0-9]+)+)", output, re.MULTILINE)
    return match[1] if match else None


def _libc_text() -> str | None:
    if sys.platform == "win32":
        return None
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, OSError, ValueError):
        return None  # musl has no such name
