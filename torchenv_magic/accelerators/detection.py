"""`detect`: every probe side by side, each bounded, none of them the end."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torchenv_magic.accelerators.apple import (
    apple_accelerators,
    apple_findings,
    read_translated,
)
from torchenv_magic.accelerators.nvidia import nvidia_part, read_kernel, read_nvidia
from torchenv_magic.accelerators.platform import read_platform
from torchenv_magic.accelerators.probing import (
    PciCard,
    Probe,
    Report,
    clean,
    find_program,
    read_pci_cards,
)
from torchenv_magic.accelerators.records import Accelerator, Finding, Host

if TYPE_CHECKING:
    from torchenv_magic.accelerators.windows import DisplayAdapter

__all__ = ["apply_overrides", "detect", "visibility_findings"]


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
    bound = timeout_seconds
    nvidia_probe = Probe(
        "the NVIDIA driver",
        lambda: read_nvidia(root=root, environ=environ, timeout_seconds=bound),
    )
    kernel_probe = Probe("the NVIDIA driver's kernel files", lambda: read_kernel(root))
    cards_probe = Probe("the PCI bus", lambda: read_pci_cards(root))

    def cards_soon() -> tuple[PciCard, ...]:
        # Half of the time is left for who goes on without them.
        return cards_probe.answer(timeout_seconds=bound / 2)[0] or ()

    # One a vendor that needs nothing but its own reading.
    amd_probe = Probe("the AMD driver", lambda: _read_amd(cards_soon(), root, environ, bound))
    other_probes = [
        Probe("Intel's graphics", lambda: _read_intel(cards_soon(), root, environ)),
    ]
    # What lies below another root is no Windows, whatever runs the tests.
    adapters_probe = None
    if sys.platform == "win32" and root == Path("/"):
        adapters_probe = Probe("Windows' list of devices", _read_adapters)
    platform = read_platform(root=root, environ=environ, timeout_seconds=bound)

    nvidia_answer, nvidia_failure = nvidia_probe.answer(timeout_seconds=bound)
    kernel, kernel_failure = kernel_probe.answer(timeout_seconds=bound)
    cards, cards_failure = cards_probe.answer(timeout_seconds=bound)
    amd, amd_failure = amd_probe.answer(timeout_seconds=bound)
    others = [probe.answer(timeout_seconds=bound) for probe in other_probes]

    nvidia = nvidia_part(
        nvidia_answer or Report(), kernel, cards or (), failed=nvidia_failure is not None
    )
    # Where an NVIDIA GPU is the one to compute on, an AMD card that is none is no news.
    if amd is not None and not nvidia.accelerators:
        amd = _with_amd_cards(amd, cards or ())
    more = [report for report in (amd, *(one for one, _ in others)) if report]
    # AMD before Intel, and graphics in a processor behind a card of either.
    reports = [nvidia, *sorted(more, key=lambda report: report.integrated)]
    failures = [nvidia_failure, kernel_failure, amd_failure, cards_failure]
    failures += [failure for _, failure in others]
    if adapters_probe is not None:
        from torchenv_magic.accelerators.windows import adapters_report

        adapters, adapters_failure = adapters_probe.answer(timeout_seconds=bound)
        reports.append(adapters_report(adapters or (), nvidia=bool(nvidia.accelerators)))
        failures.append(adapters_failure)
    reports.append(
        Report(
            accelerators=apple_accelerators(platform),
            findings=apple_findings(platform, translated=read_translated(platform)),
        )
    )
    found = tuple(accelerator for report in reports for accelerator in report.accelerators)
    host = Host(
        platform=platform,
        accelerators=found,
        findings=(
            *(finding for report in reports for finding in report.findings),
            *(failure for failure in failures if failure is not None),
            *visibility_findings(found, environ),
        ),
    )
    return apply_overrides(host, environ)


# A vendor's module is imported where something hints at its devices: most hosts have one vendor's,
# and the imports would be the larger part of a look at the others.


def _read_amd(
    cards: tuple[PciCard, ...], root: Path, environ: Mapping[str, str], timeout_seconds: float
) -> Report:
    folders = sorted(root.glob("opt/rocm*/bin"))
    program = find_program("rocm_agent_enumerator", environ=environ, folders=folders)
    if not (_has_amd(cards) or program or (root / "sys/class/kfd").exists()):
        return Report()
    from torchenv_magic.accelerators.amd import read_amd

    return read_amd(root=root, environ=environ, timeout_seconds=timeout_seconds)


def _with_amd_cards(report: Report, cards: tuple[PciCard, ...]) -> Report:
    if not _has_amd(cards):
        return report
    from torchenv_magic.accelerators.amd import amd_part

    return amd_part(report, cards)


def _has_amd(cards: tuple[PciCard, ...]) -> bool:
    return any(card.vendor == "0x1002" for card in cards)


def _read_intel(cards: tuple[PciCard, ...], root: Path, environ: Mapping[str, str]) -> Report:
    if not any(card.vendor == "0x8086" for card in cards):
        return Report()
    from torchenv_magic.accelerators.intel import intel_report, read_intel

    return intel_report(read_intel(root, environ, cards=cards))


def _read_adapters() -> tuple[DisplayAdapter, ...]:
    from torchenv_magic.accelerators.windows import read_adapters

    return read_adapters()


def visibility_findings(
    accelerators: tuple[Accelerator, ...], environ: Mapping[str, str]
) -> tuple[Finding, ...]:
    """Return a finding for each variable that hides every GPU of a vendor from PyTorch."""
    findings = []
    for vendor, name in (
        ("nvidia", "CUDA_VISIBLE_DEVICES"),
        ("amd", "HIP_VISIBLE_DEVICES"),
        ("amd", "ROCR_VISIBLE_DEVICES"),
        # HIP takes CUDA's where its own is not set.
        *([] if "HIP_VISIBLE_DEVICES" in environ else [("amd", "CUDA_VISIBLE_DEVICES")]),
    ):
        value = environ.get(name)
        count = sum(accelerator.vendor == vendor for accelerator in accelerators)
        if value is not None and count and _hides_all(value, count):
            message = f"`{name}={clean(value)}` hides every GPU from PyTorch"
            hint = f"unset `{name}` before PyTorch is imported"
            findings.append(Finding(message=message, source=name, hint=hint))
    return tuple(dict.fromkeys(findings))


def _hides_all(value: str, count: int) -> bool:
    """Return whether the first entry names none of `count` GPUs: there such a list ends."""
    first = value.partition(",")[0].strip()
    if number := re.match(r"\+?([0-9]{1,9})", first):
        return int(number[1]) >= count
    return not first.startswith(("GPU-", "MIG-"))


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
    pattern = r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}" if is_driver else r"gfx[0-9a-f]{3,5}"
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
