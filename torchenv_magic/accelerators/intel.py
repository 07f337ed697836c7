"""Intel GPUs by what Linux tells of the PCI bus: needs no program of Intel's.

Which of them are XPUs of PyTorch is data: `intel_ids.jsonl`, a PCI device id a line with its name
and code name. The ids are those of the kernel's `include/drm/intel/pciids.h`, from Skylake on, the
names those of pci.ids; a test holds the table against both. The code names that count are the ones
in PyTorch's "Getting Started on Intel GPU".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torchenv_magic.accelerators.probing import PciCard, Report, clean, read_pci_cards, read_text
from torchenv_magic.accelerators.records import Accelerator, Finding

__all__ = [
    "VENDOR_INTEL",
    "XPU_FAMILIES",
    "IntelGpu",
    "IntelReading",
    "PciDisplay",
    "intel_report",
    "known_gpus",
    "read_gpus",
    "read_intel",
    "unsupported_findings",
]

VENDOR_INTEL = 0x8086
# A machine with one of theirs has a GPU to speak about; a server's ASPEED or Matrox is none.
_VENDORS_OF_GPUS = frozenset({0x1002, 0x10DE})

_DISCRETE = frozenset({"Ponte Vecchio", "Alchemist", "Battlemage"})
_INTEGRATED = frozenset({"Meteor Lake-H", "Arrow Lake-H", "Lunar Lake", "Panther Lake"})
XPU_FAMILIES = _DISCRETE | _INTEGRATED
"""The code names that PyTorch's documentation lists for its XPU builds, from 2.7 to 2.15.

Meteor Lake and Arrow Lake are listed with their H alone, so the U and S of them are left out. Data
Center GPU Flex (Arctic Sound-M) is Alchemist's silicon and stands in none of these lists: not an
XPU here, whatever Intel's former extension for PyTorch did with it."""

_DEVICES = Path("sys/bus/pci/devices")
_RENDER_NODES = Path("dev/dri")
_DRIVERS = frozenset({"i915", "xe"})

# What the SYCL runtime of the wheels opens by name: the loader of Level Zero, then Intel's part.
_LIBRARIES = ("libze_loader.so.1", "libze_intel_gpu.so.1")
_LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/local/lib",
    "usr/local/lib64",
    "run/opengl-driver/lib",  # NixOS
)


# --- The table ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelGpu:
    name: str
    family: str
    """Intel's code name: `Alchemist`, `Raptor Lake-S`."""

    @property
    def is_xpu(self) -> bool:
        return self.family in XPU_FAMILIES

    @property
    def is_discrete(self) -> bool:
        return self.family in _DISCRETE


def read_gpus(text: str) -> dict[int, IntelGpu]:
    """Return the table's GPUs by PCI device id."""
    import json

    rows = [json.loads(line) for line in text.splitlines()]
    return {int(row["id"], 16): IntelGpu(name=row["name"], family=row["family"]) for row in rows}


@cache
def known_gpus() -> Mapping[int, IntelGpu]:
    """Return the GPUs of the table that is shipped with this package."""
    from importlib.resources import files  # milliseconds, for hosts with Intel's graphics alone

    return read_gpus((files(__package__) / "intel_ids.jsonl").read_text(encoding="utf-8"))


# --- The probe ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PciDisplay:
    """A display device on the PCI bus, whoever made it."""

    vendor_id: int
    device_id: int
    driver: str | None = None
    """None where no driver is bound, and where the link can't be read."""
    render_node: str | None = None
    """`renderD128`, as the kernel names it; None where the kernel has none or does not tell."""
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelReading:
    displays: tuple[PciDisplay, ...]
    """In the order of the bus."""
    render_nodes: tuple[str, ...] = ()
    """What is in `/dev/dri`: a container sees the host's `/sys` without it."""
    permitted: frozenset[str] = frozenset()
    """Those of them that this user may open."""
    missing_libraries: tuple[str, ...] = ()


def read_intel(
    root: Path = Path("/"),
    environ: Mapping[str, str] | None = None,
    *,
    cards: Iterable[PciCard] | None = None,
) -> IntelReading:
    """Return the display devices on the bus; none where there is no `/sys`.

    `cards` are those of the bus, where it was read before.
    """
    cards = read_pci_cards(root) if cards is None else cards
    displays = tuple(display for card in cards if (display := _read_display(root, card)))
    if not any(display.vendor_id == VENDOR_INTEL for display in displays):
        return IntelReading(displays=displays)
    nodes = sorted((root / _RENDER_NODES).glob("renderD*"))
    return IntelReading(
        displays=displays,
        render_nodes=tuple(node.name for node in nodes),
        permitted=frozenset(node.name for node in nodes if os.access(node, os.R_OK | os.W_OK)),
        missing_libraries=_missing_libraries(root, environ or {}),
    )


def _read_display(root: Path, card: PciCard) -> PciDisplay | None:
    vendor_id, device_id = _number_in(card.vendor), _number_in(card.device)
    if vendor_id is None or device_id is None:
        return None
    folder = root / _DEVICES / card.address
    return PciDisplay(
        vendor_id=vendor_id,
        device_id=device_id,
        driver=card.driver or None,
        render_node=next((node.name for node in sorted(folder.glob("drm/renderD*"))), None),
        memory_bytes=_memory(folder) if vendor_id == VENDOR_INTEL else None,
    )


def _memory(folder: Path) -> int | None:
    """Return the GPU's own memory: xe tells it for each tile, i915 for the card, many neither."""
    paths = sorted(folder.glob("tile*/physical_vram_size_bytes"))
    paths = paths or sorted(folder.glob("drm/card*/lmem_total_bytes"))
    return sum(_number(path) or 0 for path in paths) or None


def _number(path: Path) -> int | None:
    try:
        return _number_in((read_text(path) or "").strip())
    except OSError:
        return None  # not told, as on most machines


def _number_in(text: str) -> int | None:
    """Return the one number that the text is: `0x8086` or decimal; None for anything else."""
    if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", text):
        return int(text, 16)
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text) else None


def _missing_libraries(root: Path, environ: Mapping[str, str]) -> tuple[str, ...]:
    listed = environ.get("LD_LIBRARY_PATH", "").split(":")
    folders = [root / folder.lstrip("/") for folder in (*_LIBRARY_FOLDERS, *filter(None, listed))]
    try:
        # Whatever else a distribution has its libraries in, the loader's cache names them.
        cache_of_loader = read_text(root / "etc/ld.so.cache") or ""
    except OSError:
        cache_of_loader = ""
    return tuple(
        name
        for name in _LIBRARIES
        if name not in cache_of_loader
        # Unlike `exists`, it never raises for a folder that may not be entered.
        and not any(os.access(folder / name, os.R_OK) for folder in folders)
    )


# --- The judgement ------------------------------------------------------------------------------


def intel_report(reading: IntelReading) -> Report:
    """Return the XPUs that can be used from here, discrete ones first, most memory first."""
    found: list[tuple[IntelGpu, Accelerator]] = []
    findings: list[Finding] = []
    unsupported: list[str] = []
    for display in reading.displays:
        if display.vendor_id != VENDOR_INTEL:
            continue
        gpu = known_gpus().get(display.device_id)
        if gpu is None or not gpu.is_xpu:
            unsupported.append(gpu.name if gpu else f"Intel graphics 8086:{display.device_id:04x}")
            continue
        node = _node_of(display, reading)
        problem = _problem(gpu.name, display, node)
        if node is None or problem is not None:
            findings.extend([problem] if problem else [])
            continue
        if node not in reading.permitted:
            message = f"{gpu.name} is here, and this user may not open `/dev/dri/{clean(node)}`"
            hint = "add the user to the group that owns it, usually `render`, and log in again"
            findings.append(Finding(message=message, source="/dev/dri", hint=hint))
        accelerator = Accelerator(
            vendor="intel",
            name=gpu.name,
            memory_bytes=display.memory_bytes,
            source=f"/{_DEVICES}",
        )
        found.append((gpu, accelerator))
    found.sort(key=lambda pair: (not pair[0].is_discrete, -(pair[1].memory_bytes or 0)))
    if found and reading.missing_libraries:
        findings.append(_library_finding(reading.missing_libraries))
    # Where another GPU is the one to compute on, that this one is none is no news.
    others = any(display.vendor_id in _VENDORS_OF_GPUS for display in reading.displays)
    if not (found or findings or others):
        findings.extend(unsupported_findings(unsupported, source=f"/{_DEVICES}"))
    # Cards of one kind that lack the same thing have one line together.
    return Report(
        accelerators=tuple(accelerator for _, accelerator in found),
        findings=tuple(dict.fromkeys(findings)),
        integrated=not any(gpu.is_discrete for gpu, _ in found),
    )


def _node_of(display: PciDisplay, reading: IntelReading) -> str | None:
    """Return the device's render node in `/dev/dri`.

    Where `/sys` does not tell which one it is, one that is no other device's is proof enough.
    """
    if display.render_node is not None:
        return display.render_node if display.render_node in reading.render_nodes else None
    taken = {other.render_node for other in reading.displays}
    return next((node for node in reading.render_nodes if node not in taken), None)


def _problem(name: str, display: PciDisplay, node: str | None) -> Finding | None:
    """Return why nobody can compute on this XPU from here, or None where one can."""
    if display.driver is not None and display.driver not in _DRIVERS:
        message = f"{name} is here, and in the hands of the driver `{clean(display.driver)}`"
        hint = "it is kept for a virtual machine; give it to the driver `xe` or `i915` to use it"
        return Finding(message=message, source=f"/{_DEVICES}", hint=hint)
    if node is not None:
        return None
    if display.driver is None and display.render_node is None:
        message = f"{name} is here, and no driver is loaded for it: no Intel GPU to compute on"
        hint = "use a Linux kernel whose driver (`xe` or `i915`) knows this GPU"
        return Finding(message=message, source=f"/{_DEVICES}", hint=hint)
    message = f"{name} is on the host, and its render node is not here: no GPU to compute on"
    hint = "start the container with `--device /dev/dri`"
    return Finding(message=message, source="/dev/dri", hint=hint)


def _library_finding(missing: Iterable[str]) -> Finding:
    names = " and ".join(f"`{name}`" for name in missing)
    message = f"Intel's compute runtime (Level Zero) is not complete: no {names} found"
    hint = "install it: the packages `libze1` and `libze-intel-gpu1` on Debian and Ubuntu"
    return Finding(message=message, source="Level Zero", hint=hint)


def unsupported_findings(names: Iterable[str], *, source: str) -> tuple[Finding, ...]:
    """Return what to say for Intel graphics that are no XPUs, where they are all there is.

    People wonder about it: uv's `auto` takes any of them for an XPU.
    """
    named = " and ".join(dict.fromkeys(names))
    if not named:
        return ()
    message = f"{named} is here: PyTorch's XPU builds do not support it"
    return (Finding(message=message, source=source),)
