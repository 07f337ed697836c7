"""`detect`: every probe side by side, each bounded, none of them the end."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torchenv_magic.accelerators.amd import amd_report, read_kfd
from torchenv_magic.accelerators.apple import apple_accelerators
from torchenv_magic.accelerators.intel import intel_report, read_intel
from torchenv_magic.accelerators.nvidia import (
    KernelReading,
    kernel_report,
    read_kernel,
    read_nvidia,
)
from torchenv_magic.accelerators.platform import read_platform
from torchenv_magic.accelerators.probing import Probe, Report
from torchenv_magic.accelerators.records import Accelerator, Finding, Host
from torchenv_magic.accelerators.windows import adapters_report, read_adapters

__all__ = ["apply_overrides", "detect", "nvidia_findings", "visibility_findings"]


def detect(
    *,
    root: Path = Path("/"),
    environ: Mapping[str, str] | None = None,
    timeout_seconds: float = 2.0,
) -> Host:
    """Return what is in this host, within about `timeout_seconds`; never raise for a bad probe.

    `root` is where `dev`, `proc` and `sys` are; another one than `/` is for tests.
    """
    environ = dict(os.environ if environ is None else environ)
    nvidia = Probe(
        "the NVIDIA driver",
        lambda: read_nvidia(root=root, environ=environ, timeout_seconds=timeout_seconds),
    )
    kernel = Probe("the NVIDIA driver's kernel files", lambda: read_kernel(root))
    amd = Probe("the AMD driver", lambda: amd_report(read_kfd(root)))
    intel = Probe("the PCI bus", lambda: intel_report(read_intel(root, environ)))
    # What lies below another root is no Windows, whatever runs the tests.
    adapters = Probe("Windows' list of devices", read_adapters if root == Path("/") else tuple)
    platform = read_platform(root=root, environ=environ, timeout_seconds=timeout_seconds)

    nvidia_answer, nvidia_failure = nvidia.answer(timeout_seconds=timeout_seconds)
    kernel_answer, kernel_failure = kernel.answer(timeout_seconds=timeout_seconds)
    amd_answer, amd_failure = amd.answer(timeout_seconds=timeout_seconds)
    intel_answer, intel_failure = intel.answer(timeout_seconds=timeout_seconds)
    adapters_answer, adapters_failure = adapters.answer(timeout_seconds=timeout_seconds)
    nvidia_report = nvidia_answer or Report()
    amd_part = amd_answer or Report()
    intel_part = intel_answer or Report()
    windows_part = adapters_report(adapters_answer or (), nvidia=bool(nvidia_report.accelerators))
    failures = [
        failure
        for failure in (
            nvidia_failure,
            kernel_failure,
            amd_failure,
            intel_failure,
            adapters_failure,
        )
        if failure
    ]
    found = (
        *nvidia_report.accelerators,
        *amd_part.accelerators,
        *intel_part.accelerators,
        *windows_part.accelerators,
        *apple_accelerators(platform),
    )
    host = Host(
        platform=platform,
        accelerators=found,
        findings=(
            *nvidia_findings(nvidia_report, kernel_answer, failed=nvidia_failure is not None),
            *amd_part.findings,
            *intel_part.findings,
            *windows_part.findings,
            *failures,
            *visibility_findings(found, environ),
        ),
    )
    return apply_overrides(host, environ)


def nvidia_findings(
    report: Report, kernel: KernelReading | None, *, failed: bool
) -> tuple[Finding, ...]:
    """Return the findings on NVIDIA: the kernel's files speak only where no GPU was found.

    A host's driver seen from a container without GPUs explains whatever else failed there; a
    driver that is loaded, with its devices, is worth a word only where nothing else was said.
    """
    if report.accelerators or kernel is None:
        return report.findings
    explained = kernel_report(kernel).findings
    missing = kernel.driver_version is None or not kernel.device_nodes
    if explained and missing and not failed:
        return explained
    return report.findings if report.findings or failed else explained


def visibility_findings(
    accelerators: tuple[Accelerator, ...], environ: Mapping[str, str]
) -> tuple[Finding, ...]:
    """Return a finding for each variable that hides every GPU of a vendor from PyTorch."""
    findings = []
    for vendor, name in (
        ("nvidia", "CUDA_VISIBLE_DEVICES"),
        ("amd", "HIP_VISIBLE_DEVICES"),
        ("amd", "ROCR_VISIBLE_DEVICES"),
    ):
        value = environ.get(name)
        # The list ends at the first entry that names no device, so a leading -1 hides all.
        hides = value is not None and value.split(",")[0].strip() in {"", "-1", "NoDevFiles"}
        if hides and any(accelerator.vendor == vendor for accelerator in accelerators):
            message = f"`{name}={value}` hides every GPU from PyTorch"
            hint = f"unset `{name}` before PyTorch is imported"
            findings.append(Finding(message=message, source=name, hint=hint))
    return tuple(findings)


def apply_overrides(host: Host, environ: Mapping[str, str]) -> Host:
    """Return the host as uv would see it with `UV_CUDA_DRIVER_VERSION`, `UV_AMD_GPU_ARCHITECTURE`.

    uv takes the first for a driver that is there, GPU or not, and stops looking; then the second
    for an AMD GPU. What they name therefore comes before everything that was found.
    """
    driver = environ.get("UV_CUDA_DRIVER_VERSION", "").strip()
    architecture = environ.get("UV_AMD_GPU_ARCHITECTURE", "").strip()
    if architecture:
        host = _with_override(host, "UV_AMD_GPU_ARCHITECTURE", architecture)
    if driver:
        host = _with_override(host, "UV_CUDA_DRIVER_VERSION", driver)
    return host


def _with_override(host: Host, name: str, value: str) -> Host:
    is_driver = name == "UV_CUDA_DRIVER_VERSION"
    pattern = r"[0-9]+(\.[0-9]+)*" if is_driver else r"gfx[0-9a-f]{3,5}"
    if not re.fullmatch(pattern, value):
        message = (
            f"`{name}` holds no {'driver version' if is_driver else 'gfx name'} and is ignored"
        )
        hint = f"unset it: uv refuses to work with such a `{name}`"
        finding = Finding(message=message, source=name, hint=hint)
        return replace(host, findings=(*host.findings, finding))
    vendor = "nvidia" if is_driver else "amd"
    mine = [item for item in host.accelerators if item.vendor == vendor]
    others = [item for item in host.accelerators if item.vendor != vendor]
    overridden: list[Accelerator]
    if is_driver:
        bare = Accelerator(vendor="nvidia", name="NVIDIA GPU by UV_CUDA_DRIVER_VERSION")
        overridden = [replace(item, driver_version=value, source=name) for item in mine or [bare]]
    else:
        overridden = [Accelerator(vendor="amd", name=f"AMD GPU {value}", gfx=value, source=name)]
    finding = Finding(message=f"`{name}={value}` overrides what was found", source=name)
    return replace(
        host,
        accelerators=(*overridden, *others),
        findings=(*host.findings, finding),
    )
