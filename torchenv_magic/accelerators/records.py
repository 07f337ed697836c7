"""What is in a host: the records that detection returns and selection reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Vendor = Literal["nvidia", "amd", "intel", "apple"]
System = Literal["linux", "windows", "macos", "other"]

__all__ = ["Accelerator", "ComputeCapability", "Finding", "Host", "Platform", "System", "Vendor"]


@dataclass(frozen=True, slots=True, order=True)
class ComputeCapability:
    """An NVIDIA GPU's compute capability, as two integers: 8.10 is newer than 8.9."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> ComputeCapability:
        """Return the capability written as `6.1`.

        >>> ComputeCapability.parse("6.1")
        ComputeCapability(major=6, minor=1)

        Raises
        ------
        ValueError
            `text` is not two integers with a dot between.
        """
        major, _, minor = text.strip().partition(".")
        return cls(int(major), int(minor))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One device that PyTorch could compute on."""

    vendor: Vendor
    name: str
    compute_capability: ComputeCapability | None = None
    """NVIDIA only."""
    gfx: str | None = None
    """AMD only: the architecture's name, such as `gfx1100`."""
    memory_bytes: int | None = None
    driver_version: str | None = None
    cuda_version: str | None = None
    """NVIDIA only: the newest CUDA that the driver speaks, `12.4`. Told, never decided on: what a
    build needs is stated in driver versions."""
    source: str = ""
    """Where these facts were read: `NVML`, `nvidia-smi`, a file's path."""

    def __str__(self) -> str:
        parts = [self.name]
        if self.memory_bytes:
            in_gib = self.memory_bytes >= 2**30
            size, unit = (2**30, "GiB") if in_gib else (2**20, "MiB")
            parts.append(f"{self.memory_bytes / size:.0f} {unit}")
        if self.compute_capability:
            parts.append(f"compute capability {self.compute_capability}")
        if self.gfx:
            parts.append(self.gfx)
        if self.driver_version:
            parts.append(f"driver {self.driver_version}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The operating system a wheel has to fit."""

    system: System
    machine: str
    """`x86_64`, `aarch64`, `arm64`: lower case, `AMD64` as `x86_64`."""
    libc: Literal["glibc", "musl"] | None = None
    """Linux only."""
    libc_version: str | None = None
    system_version: str | None = None
    """macOS only: `14.5`."""
    wsl: bool = False
    """Whether this Linux runs in Windows: the GPU's driver is then that of Windows."""

    @property
    def driver_system(self) -> System:
        """The system whose numbers the GPU drivers here carry: that of Windows, under WSL."""
        return "windows" if self.wsl else self.system

    @property
    def wheel_platform(self) -> str:
        """The catalog's word: `linux_x86_64`, `linux_aarch64`, `win_amd64`, `macos_arm64`, ..."""
        machine = self.machine
        if self.system == "windows":
            return f"win_{'amd64' if machine == 'x86_64' else machine}"
        if self.system == "linux" and machine == "arm64":
            machine = "aarch64"
        if self.system == "macos" and machine == "aarch64":
            machine = "arm64"
        return f"{self.system}_{machine}"

    def __str__(self) -> str:
        version = f" {self.system_version}" if self.system_version else ""
        libc = f", {self.libc} {self.libc_version}" if self.libc else ""
        return f"{self.system}{version} {self.machine}{libc}{', in WSL' if self.wsl else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One plain line that detection has to say: a probe that failed, a driver without a device."""

    message: str
    source: str
    hint: str = ""

    def __str__(self) -> str:
        return self.message

    @property
    def with_hint(self) -> str:
        """The message, and what to do about it where that is known."""
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What was found on the kernel's host. Nothing in it is a decision."""

    platform: Platform
    accelerators: tuple[Accelerator, ...] = ()
    findings: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        devices = "\n".join(str(accelerator) for accelerator in self.accelerators)
        lines = [devices or "no accelerator", str(self.platform)]
        lines += [finding.with_hint for finding in self.findings]
        return "\n".join(lines)
