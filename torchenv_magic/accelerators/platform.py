"""The system under the interpreter: what a wheel's platform tag has to fit."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from torchenv_magic.accelerators.probing import read_text, run_bounded
from torchenv_magic.accelerators.records import Platform, System

__all__ = [
    "glibc_version",
    "is_wsl_kernel",
    "macos_version",
    "musl_version",
    "platform_of",
    "read_musl",
    "read_platform",
]

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
    if sys.platform == "darwin":
        plist = _text(root / "System/Library/CoreServices/SystemVersion.plist")
        version = macos_version(plist, darwin_release=os.uname().release)
        return platform_of(sys_platform="darwin", machine=machine, system_version=version)
    if sys.platform != "linux":
        return platform_of(sys_platform=sys.platform, machine=machine)
    glibc = glibc_version(_libc_text())
    musl = None
    if glibc is None:
        musl = read_musl(root, environ=environ, timeout_seconds=timeout_seconds)
    return platform_of(
        # Android's Python says "linux" before 3.13; its C library takes no wheel of Linux.
        sys_platform="android" if hasattr(sys, "getandroidapilevel") else "linux",
        machine=machine,
        is_64_bit=sys.maxsize > 2**32,
        glibc=glibc,
        musl=musl,
        wsl=_is_wsl(root),
    )


def read_musl(root: Path, *, environ: Mapping[str, str], timeout_seconds: float) -> str | None:
    """Return the version of the musl that this machine's loader is of, or None without one."""
    for loader in sorted((root / "lib").glob("ld-musl-*.so.1")):
        try:
            # The loader prints its version when it is run without a program to load.
            completed = run_bounded([str(loader)], timeout_seconds=timeout_seconds, environ=environ)
        except OSError:
            continue  # another machine's, for cross-compiling
        if version := musl_version(completed.output):
            return version
    return None


def _is_wsl(root: Path) -> bool:
    # A container in Docker's virtual machine has Microsoft's kernel too, and nothing of WSL's GPUs.
    if not any((root / trace).exists() for trace in ("dev/dxg", "usr/lib/wsl")):
        return False
    kernels = (root / "proc/sys/kernel/osrelease", root / "proc/version")
    return any(is_wsl_kernel(_text(path)) for path in kernels)


def _text(path: Path) -> str:
    try:
        return read_text(path) or ""
    except OSError:
        return ""


def is_wsl_kernel(text: str) -> bool:
    """Return whether the kernel names Microsoft: `5.15.167.4-microsoft-standard-WSL2`."""
    return "microsoft" in text.lower()


def macos_version(plist: str, *, darwin_release: str) -> str | None:
    """Return the version of macOS: `14.5`, or only its first number where macOS hides the rest.

    A Python built for macOS 10 is told 10.16 by whatever newer macOS it runs on (the file that it
    opens is another one). Darwin's release tells the truth: 20 is macOS 11, and 25 is macOS 26.

    >>> macos_version("<key>ProductVersion</key> <string>10.16</string>", darwin_release="23.5.0")
    '14'
    """
    pattern = r"<key>ProductVersion</key>\s*<string>([0-9]{1,3}(?:\.[0-9]{1,3}){0,2})</string>"
    match = re.search(pattern, plist)
    if match is not None and match[1] != "10.16":
        return match[1]
    major = re.match(r"[0-9]{2}(?=\.)", darwin_release)
    if major is None or int(major[0]) < 20:
        return None
    darwin = int(major[0])
    return str(darwin - 9 if darwin < 25 else darwin + 1)


def platform_of(
    *,
    sys_platform: str,
    machine: str,
    is_64_bit: bool = True,
    glibc: str | None = None,
    musl: str | None = None,
    system_version: str | None = None,
    wsl: bool = False,
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
        system_version=system_version,
        wsl=wsl,
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
