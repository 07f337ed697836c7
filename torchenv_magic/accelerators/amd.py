"""AMD GPUs by the kernel's own topology (KFD): needs the amdgpu driver, no ROCm program.

`/sys/class/kfd/kfd/topology/nodes/N/properties` holds a `name value` pair a line; CPUs are nodes
too, with `gfx_target_version 0`. Sources: Linux `drivers/gpu/drm/amd/amdkfd/kfd_topology.c`
(the files) and `kfd_device.c` (the values).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torchenv_magic.accelerators.probing import Report, clean, read_text
from torchenv_magic.accelerators.records import Accelerator, Finding

__all__ = ["KfdNode", "KfdReading", "amd_report", "gfx_name", "parse_properties", "read_kfd"]

_VENDOR_AMD = 0x1002
_TOPOLOGY = Path("sys/class/kfd/kfd/topology/nodes")
# Memory banks of these types are the GPU's own (HSA_MEM_HEAP_TYPE_FB_PUBLIC and _FB_PRIVATE).
_FRAME_BUFFER_TYPES = (1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class KfdNode:
    properties: Mapping[str, int]
    memory_banks: tuple[Mapping[str, int], ...] = ()
    product_name: str | None = None
    """What the card calls itself, which only server and workstation cards do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KfdReading:
    nodes: tuple[KfdNode, ...]
    device_node: bool
    """Whether `/dev/kfd` is there: a container sees the host's `/sys` without it."""
    permitted: bool
    """Whether this user may open it."""


def read_kfd(root: Path = Path("/")) -> KfdReading:
    """Return the topology as the kernel writes it; no node where there is no AMD driver."""
    device = root / "dev/kfd"
    folders = sorted((root / _TOPOLOGY).glob("*/properties"))
    return KfdReading(
        nodes=tuple(_read_node(root, path.parent) for path in folders),
        device_node=device.exists(),
        permitted=os.access(device, os.R_OK | os.W_OK),
    )


def _read_node(root: Path, folder: Path) -> KfdNode:
    properties = parse_properties(read_text(folder / "properties") or "")
    banks = sorted(folder.glob("mem_banks/*/properties"))
    name = None
    if minor := properties.get("drm_render_minor"):
        name = read_text(root / f"sys/class/drm/renderD{minor}/device/product_name")
    return KfdNode(
        properties=properties,
        memory_banks=tuple(parse_properties(read_text(bank) or "") for bank in banks),
        product_name=clean(name or "") or None,
    )


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
    """Return the architecture's name; None for 0, which is a CPU.

    >>> gfx_name(90010), gfx_name(100300), gfx_name(110501)
    ('gfx90a', 'gfx1030', 'gfx1151')
    """
    if gfx_target_version <= 0:
        return None
    major = gfx_target_version // 10000 % 100
    minor = gfx_target_version // 100 % 100
    stepping = gfx_target_version % 100
    return f"gfx{major}{minor:x}{stepping:x}"


def amd_report(reading: KfdReading) -> Report:
    """Return the GPUs of the topology, those with most memory of their own first.

    An integrated GPU has little or none, so the order puts discrete ones before it.
    """
    source = f"/{_TOPOLOGY}"
    found = []
    for node in reading.nodes:
        gfx = gfx_name(node.properties.get("gfx_target_version", 0))
        if gfx is None or node.properties.get("vendor_id", _VENDOR_AMD) != _VENDOR_AMD:
            continue
        memory = sum(
            bank.get("size_in_bytes", 0)
            for bank in node.memory_banks
            if bank.get("heap_type") in _FRAME_BUFFER_TYPES
        )
        found.append(
            Accelerator(
                vendor="amd",
                name=node.product_name or f"AMD GPU {gfx}",
                gfx=gfx,
                memory_bytes=memory or None,
                source=source,
            )
        )
    found.sort(key=lambda accelerator: accelerator.memory_bytes or 0, reverse=True)
    names = " and ".join(dict.fromkeys(accelerator.name for accelerator in found))
    if found and not reading.device_node:
        message = f"{names} is on the host, and `/dev/kfd` is not here: no AMD GPU to compute on"
        hint = "start the container with `--device /dev/kfd --device /dev/dri`"
        return Report(findings=(Finding(message=message, source="/dev/kfd", hint=hint),))
    if found and not reading.permitted:
        message = f"{names} is here, and this user may not open `/dev/kfd`"
        hint = "add the user to the group that owns it, usually `render`, and log in again"
        finding = Finding(message=message, source="/dev/kfd", hint=hint)
        return Report(accelerators=tuple(found), findings=(finding,))
    return Report(accelerators=tuple(found))
