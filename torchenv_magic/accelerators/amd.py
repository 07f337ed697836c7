"""AMD GPUs by the kernel's own topology (KFD): needs the amdgpu driver, no ROCm program.

`/sys/class/kfd/kfd/topology/nodes/N/properties` holds a `name value` pair a line; CPUs are nodes
too, with `gfx_target_version 0`. Sources: Linux `drivers/gpu/drm/amd/amdkfd/kfd_topology.c`
(the files) and `kfd_device.c` (the values).

Where ROCm's programs are installed, they help out: `rocm_agent_enumerator` where the topology names
no GPU (WSL has none), `amd-smi` with a GPU's name. Neither is needed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torchenv_magic.accelerators.probing import (
    NO_ANSWER_HINT,
    Completed,
    PciCard,
    Report,
    clean,
    find_program,
    read_text,
    run_bounded,
)
from torchenv_magic.accelerators.records import Accelerator, Finding

__all__ = [
    "KfdNode",
    "KfdReading",
    "amd_part",
    "amd_report",
    "enumerator_report",
    "gfx_name",
    "is_integrated",
    "marketing_name",
    "names_in_amd_smi",
    "parse_agents",
    "parse_properties",
    "read_amd",
    "read_kfd",
]

_VENDOR_AMD = 0x1002
_TOPOLOGY = Path("sys/class/kfd/kfd/topology/nodes")
# Memory banks of these types are the GPU's own (HSA_MEM_HEAP_TYPE_FB_PUBLIC and _FB_PRIVATE).
_FRAME_BUFFER_TYPES = (1, 2)

# `amd-smi` takes most of a second, for a name: it may not make the answer late.
_NAME_SECONDS = 0.5

# Processors with graphics (APU). Source: LLVM, "User Guide for AMDGPU Backend", the column "dGPU/
# APU" of its table of processors. Newer kernels report them as nodes of their own, and some have
# more memory set aside than a discrete GPU has.
_INTEGRATED = frozenset(
    {
        *("gfx700", "gfx801", "gfx902", "gfx909", "gfx90c"),
        *("gfx1013", "gfx1033", "gfx1035", "gfx1036", "gfx1037", "gfx1103"),
        *("gfx1150", "gfx1151", "gfx1152", "gfx1153"),
    }
)

# libdrm's table of names, as distributions and AMD's own packages install it.
_NAME_TABLES = ("usr/share/libdrm/amdgpu.ids", "opt/amdgpu/share/libdrm/amdgpu.ids")


# --- The topology -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class KfdNode:
    properties: Mapping[str, int]
    memory_banks: tuple[Mapping[str, int], ...] = ()
    product_name: str | None = None
    """What the card calls itself, which only server and workstation cards do, or libdrm's table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KfdReading:
    nodes: tuple[KfdNode, ...]
    device_node: bool
    """Whether `/dev/kfd` is there: a container sees the host's `/sys` without it."""
    permitted: bool
    """Whether this user may open it."""
    refused: int = 0
    """How many nodes may not be read: GPUs that were not passed on to this container."""
    broken: tuple[str, ...] = ()
    """Why other nodes could not be read."""


def read_kfd(root: Path = Path("/")) -> KfdReading:
    """Return the topology as the kernel writes it; no node where there is no AMD driver."""
    device = root / "dev/kfd"
    folders = sorted((root / _TOPOLOGY).glob("*"), key=lambda path: (len(path.name), path.name))
    nodes: list[KfdNode] = []
    refused = 0
    broken = []
    for folder in folders:
        try:
            nodes.append(_read_node(root, folder))
        except PermissionError:
            refused += 1
        except OSError as error:
            broken.append(f"node {folder.name}: {error.strerror}")
    return KfdReading(
        nodes=tuple(nodes),
        device_node=device.exists(),
        permitted=os.access(device, os.R_OK | os.W_OK),
        refused=refused,
        broken=tuple(broken),
    )


def _read_node(root: Path, folder: Path) -> KfdNode:
    properties = parse_properties(read_text(folder / "properties") or "")
    banks = sorted(folder.glob("mem_banks/*/properties"))
    name = None
    with contextlib.suppress(OSError):  # a node without a name is one all the same
        name = _read_name(root, properties)
    return KfdNode(
        properties=properties,
        memory_banks=tuple(parse_properties(read_text(bank) or "") for bank in banks),
        product_name=name,
    )


def _read_name(root: Path, properties: Mapping[str, int]) -> str | None:
    minor = properties.get("drm_render_minor", 0)
    card = root / f"sys/class/drm/renderD{minor}/device"
    if name := clean(read_text(card / "product_name") or ""):
        return name
    revision = (read_text(card / "revision") or "").strip()
    if not re.fullmatch(r"0x[0-9a-fA-F]{1,4}", revision):
        return None
    for path in _NAME_TABLES:
        if text := read_text(root / path):
            device = properties.get("device_id", 0)
            return marketing_name(text, device_id=device, revision=int(revision, 16))
    return None


def marketing_name(text: str, *, device_id: int, revision: int) -> str | None:
    r"""Return the product's name in libdrm's `amdgpu.ids`: `device, revision, name`, ids in hex.

    >>> marketing_name("744C,\tC8,\tAMD Radeon RX 7900 XTX\n", device_id=0x744C, revision=0xC8)
    'AMD Radeon RX 7900 XTX'
    """
    wanted = (f"{device_id:X}", f"{revision:02X}")
    for line in text.splitlines():
        device, _, rest = line.partition(",")
        found, _, name = rest.partition(",")
        if (device.strip().upper(), found.strip().upper()) == wanted:
            return clean(name) or None
    return None


def parse_properties(text: str) -> dict[str, int]:
    r"""Return the `name value` lines that hold a number; the kernel writes no others.

    >>> parse_properties("simd_count 96\ngfx_target_version 110000\n")
    {'simd_count': 96, 'gfx_target_version': 110000}
    """
    properties = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        # 20 digits hold any 64-bit number; int() itself refuses very long ones with an error.
        if value.isascii() and value.isdigit() and len(value) <= 20:
            properties[name] = int(value)
    return properties


def gfx_name(gfx_target_version: int) -> str | None:
    """Return the architecture's name; None for 0, which is a CPU, and for what is no version.

    >>> gfx_name(90010), gfx_name(100300), gfx_name(110501)
    ('gfx90a', 'gfx1030', 'gfx1151')
    """
    if not 0 < gfx_target_version < 1_000_000:
        return None
    major = gfx_target_version // 10000
    minor = gfx_target_version // 100 % 100
    stepping = gfx_target_version % 100
    return f"gfx{major}{minor:x}{stepping:x}"


def is_integrated(node: KfdNode, *, gfx: str, memory_bytes: int) -> bool:
    """Return whether this is a processor's graphics and not a card.

    Older kernels put such a processor's cores and its graphics into one node.
    """
    cores, units = (node.properties.get(name, 0) for name in ("cpu_cores_count", "simd_count"))
    return gfx in _INTEGRATED or (cores > 0 and units > 0) or memory_bytes == 0


def amd_report(reading: KfdReading) -> Report:
    """Return the GPUs of the topology: discrete before integrated, those with most memory first."""
    source = f"/{_TOPOLOGY}"
    ranked = []
    for node in reading.nodes:
        gfx = gfx_name(node.properties.get("gfx_target_version", 0))
        if gfx is None or node.properties.get("vendor_id", _VENDOR_AMD) != _VENDOR_AMD:
            continue
        memory = sum(
            bank.get("size_in_bytes", 0)
            for bank in node.memory_banks
            if bank.get("heap_type") in _FRAME_BUFFER_TYPES
        )
        accelerator = Accelerator(
            vendor="amd",
            name=node.product_name or _unnamed(gfx),
            gfx=gfx,
            memory_bytes=memory or None,
            source=source,
        )
        ranked.append((is_integrated(node, gfx=gfx, memory_bytes=memory), -memory, accelerator))
    ranked.sort(key=lambda rank: rank[:2])
    found = tuple(accelerator for *_, accelerator in ranked)
    integrated = all(in_processor for in_processor, *_ in ranked)
    broken = tuple(
        Finding(message=f"an AMD GPU could not be read: {clean(words)}", source=source)
        for words in reading.broken
    )
    names = " and ".join(dict.fromkeys(accelerator.name for accelerator in found))
    container_hint = "start the container with `--device /dev/kfd --device /dev/dri`"
    if found and not reading.device_node:
        message = f"{names} is on the host, and `/dev/kfd` is not here: no AMD GPU to compute on"
        finding = Finding(message=message, source="/dev/kfd", hint=container_hint)
        return Report(findings=(finding, *broken))
    if found and not reading.permitted:
        message = f"{names} is here, and this user may not open `/dev/kfd`"
        hint = "add the user to the group that owns it, usually `render`, and log in again"
        finding = Finding(message=message, source="/dev/kfd", hint=hint)
        return Report(accelerators=found, findings=(finding, *broken), integrated=integrated)
    if not found and reading.refused:
        message = "the AMD GPUs of the host are not passed on to here: no AMD GPU to compute on"
        finding = Finding(message=message, source=source, hint=container_hint)
        return Report(findings=(finding, *broken))
    return Report(accelerators=found, findings=broken, integrated=integrated)


def _unnamed(gfx: str) -> str:
    return f"AMD GPU {gfx}"


# --- ROCm's programs, where they are ------------------------------------------------------------


def parse_agents(text: str) -> tuple[str, ...]:
    r"""Return the architectures that `rocm_agent_enumerator` prints, a GPU a line.

    `gfx000` is the CPU, which it printed until ROCm 6.

    >>> parse_agents("gfx000\ngfx1100\n")
    ('gfx1100',)
    """
    names = (line.strip().partition(":")[0] for line in text.splitlines())
    found = (name for name in names if re.fullmatch(r"gfx[0-9a-f]{3,5}", name))
    return tuple(name for name in found if name != "gfx000")


def enumerator_report(completed: Completed) -> Report:
    """Return the GPUs that `rocm_agent_enumerator` names; one that fails is of no interest."""
    source = "rocm_agent_enumerator"
    if completed.returncode is None:
        message = f"`{source}` did not answer in time"
        return Report(findings=(Finding(message=message, source=source, hint=NO_ANSWER_HINT),))
    agents = parse_agents(completed.output) if completed.returncode == 0 else ()
    # The order that PyTorch counts in is not known here; an integrated GPU comes last.
    ordered = sorted(agents, key=lambda gfx: gfx in _INTEGRATED)
    return Report(
        accelerators=tuple(
            Accelerator(vendor="amd", name=_unnamed(gfx), gfx=gfx, source=source) for gfx in ordered
        ),
        integrated=all(gfx in _INTEGRATED for gfx in agents),
    )


def names_in_amd_smi(text: str) -> dict[str, str]:
    """Return the products' names by architecture in what `amd-smi static --asic --json` prints.

    A list of GPUs until ROCm 6.4, then an object with that list under `gpu_data`. An architecture
    that two products share is left out: which is which is not told here. Whatever else it is, is no
    name.
    """
    import json

    # Warnings may precede it.
    start = min((text.find(sign) for sign in "[{" if sign in text), default=0)
    try:
        data = json.loads(text[start:])
    except (ValueError, RecursionError):
        return {}
    if isinstance(data, dict):
        data = data.get("gpu_data")
    names: dict[str, set[str]] = {}
    for gpu in data if isinstance(data, list) else ():
        chip = gpu.get("asic") if isinstance(gpu, dict) else None
        if not isinstance(chip, dict):
            continue
        gfx, name = chip.get("target_graphics_version"), chip.get("market_name")
        # Where it knows no name, it prints the id, or that there is none.
        if (
            isinstance(gfx, str)
            and isinstance(name, str)
            and not re.fullmatch(r"\s*(N/A|0x[0-9a-fA-F]+)?\s*", name)
        ):
            names.setdefault(gfx, set()).add(clean(name))
    return {gfx: found.pop() for gfx, found in names.items() if len(found) == 1}


def _with_names(report: Report, names: Mapping[str, str]) -> Report:
    return replace(
        report,
        accelerators=tuple(
            replace(item, name=names.get(item.gfx, item.name))
            if item.gfx is not None and item.name == _unnamed(item.gfx)
            else item
            for item in report.accelerators
        ),
    )


def read_amd(
    *, root: Path = Path("/"), environ: Mapping[str, str], timeout_seconds: float
) -> Report:
    """Return what the topology says, and ROCm's programs where it leaves something open."""
    report = amd_report(read_kfd(root))
    unnamed = any(item.gfx and item.name == _unnamed(item.gfx) for item in report.accelerators)
    if report.findings or (report.accelerators and not unnamed):
        return report
    folders = sorted(root.glob("opt/rocm*/bin"))
    if unnamed:
        program = find_program("amd-smi", environ=environ, folders=folders)
        if program is None:
            return report
        command = [program, "static", "--asic", "--json"]
        seconds = min(timeout_seconds, _NAME_SECONDS)
        try:
            completed = run_bounded(command, timeout_seconds=seconds, environ=environ)
        except OSError:
            return report  # it was about a name
        return _with_names(report, names_in_amd_smi(completed.output))
    program = find_program("rocm_agent_enumerator", environ=environ, folders=folders)
    if program is None:
        return report
    return enumerator_report(
        run_bounded([program], timeout_seconds=timeout_seconds, environ=environ)
    )


# --- The PCI bus --------------------------------------------------------------------------------


def amd_part(report: Report, cards: Sequence[PciCard] = ()) -> Report:
    """Return the report, with a word on an AMD card that nothing else was said of."""
    mine = [card for card in cards if card.vendor == f"{_VENDOR_AMD:#06x}"]
    if report.accelerators or report.findings or not mine:
        return report
    message, hint = _card_words(next((card.driver for card in mine if card.driver), ""))
    finding = Finding(message=message, source="/sys/bus/pci/devices", hint=hint)
    return replace(report, findings=(finding,))


def _card_words(driver: str) -> tuple[str, str]:
    if driver == "vfio-pci":
        return (
            "an AMD card is here, bound to `vfio-pci`: it is set aside for a virtual machine",
            "use it in that virtual machine, or give it back to the `amdgpu` driver",
        )
    if driver in {"amdgpu", "radeon"}:
        return (
            f"an AMD card is here, bound to `{driver}`, and ROCm does not know it",
            "PyTorch's ROCm builds need a newer AMD GPU",
        )
    to = f"bound to `{driver}`" if driver else "without a driver"
    return (
        f"an AMD card is here, {to}: the `amdgpu` driver is not loaded",
        "load it (`sudo modprobe amdgpu`); a new card may need a newer Linux kernel",
    )
