"""Which compute capability the NVIDIA GPU sold under a name has, where no driver tells it.

Who needs this: a driver from before 510, whose `nvidia-smi` has no such field; a Jetson, whose
`nvidia-smi` prints `[N/A]`; a container with the GPU's device node and without NVML.

Sources: NVIDIA's tables "CUDA GPU Compute Capability" and "Legacy CUDA GPU Compute Capability". The
names as drivers print them are those of the list of compatible GPUs in NVIDIA's open kernel modules
(Turing and newer), whose PCI ids also tell the chip of what the tables leave out. A name that is in
neither stays unknown: a wrong guess is worse.
"""

from __future__ import annotations

import re

from torchenv_magic.accelerators.records import ComputeCapability

__all__ = ["known_capability"]

# Newest first, and the first hit counts: `GTX TITAN X` before `GTX TITAN`, `Orin Nano` before
# `Nano`. Many numbers were sold twice, so what tells them apart is part of the pattern:
# `Quadro RTX 4000` (7.5), `RTX 4000 Ada` (8.9), `RTX PRO 4000 Blackwell` (12.0).
# A virtual GPU adds letters and its profile to its chip's name: `GRID V100DX-32Q`, `A40-48Q`.
_KNOWN_CAPABILITIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("12.1", ("GB10",)),
    ("12.0", (r"RTX 50[5-9]0(?: ?Ti)?", r"RTX PRO \w+(?: \w+GB)? Blackwell", "RTX 6000D")),
    # 10.1 until CUDA 13, which renamed it.
    ("11.0", ("Thor", "Jetson T[45]000")),
    ("10.3", ("G?B300",)),
    ("10.0", ("B100", "G?B200")),
    ("9.0", ("GH200", "H20", "H(?:100|200|800)(?:L|X|XL|XM)?")),
    (
        "8.9",
        (
            "RTX 40[5-9]0(?: ?Ti)?",
            # A 3050 made of Ada's chip: its PCI ids are those of AD106 and AD107.
            "RTX 3050 A(?= Laptop)",
            "RTX (?:500|1000|2000E?|3000|3500|4000|4500|5000|5880|6000)(?: SFF)? Ada",
            r"RTX\d{4}-Ada",
            "L2|L4|L20|L40[SG]?",
        ),
    ),
    ("8.7", ("Orin",)),
    (
        "8.6",
        (
            "RTX 30[5-9]0(?: ?Ti)?|RTX 2050|MX570",
            "RTX ?A(?:400|500|[1-6]000|4000H|4500|5500)",
            "A2|A10[GM]?|A16|A40|CMP [79]0HX",
        ),
    ),
    ("8.0", ("A30X?|A100(?:D|X|DX)?|A800|AX800", r"PG50[69]-2\d\d")),
    (
        "7.5",
        (
            "RTX 20[678]0|GTX 16[356]0|MX[45]50|TITAN RTX",
            r"Quadro RTX [34568]000|RTX[68]000(?=-\d)",
            "T4G?|T(?:400E?|5[05]0|600|1000|1200|2000)|CMP [345]0HX",
        ),
    ),
    ("7.2", ("Xavier",)),
    ("7.0", ("V100(?:S|D|L|X|DX)?|TITAN V|GV100",)),
    ("6.2", ("Jetson TX2",)),
    (
        "6.1",
        (
            r"GTX 10[5-8]0|GT 10[13]0|TITAN Xp|TITAN X \(Pascal|MX(?:150|2[35]0|3[35]0)",
            "Quadro P(?:[456]00|[56]20|1000|2[02]00|3[02]00|4[02]00|5[02]00|6000)",
            "P4|P6|P40",
        ),
    ),
    ("6.0", ("P100[XC]?|GP100",)),
    ("5.3", ("Jetson (?:TX1|Nano)",)),
    (
        "5.2",
        (
            "GTX 9[5-8]0|GTX 9(?:65|70|80)M|GTX TITAN X",
            "(?:Tesla|GRID|NVIDIA) M(?:4|6|40|60)|Quadro M(?:2000|2200|4000|5000|6000)",
        ),
    ),
    (
        "5.0",
        (
            "GTX 7(?:45|50)|GTX 8[45]0M|GTX 9[56]0M|MX1[13]0",
            "GeForce (?:8[34]0M|9[34]0MX?|920MX)",
            "(?:Tesla|GRID|NVIDIA) M10|NVS 810|Quadro K(?:620M?|1200|2200M?)",
            # The big ones of these are here because NVIDIA's table says so, although their chip is
            # 5.2; no build tells the two apart.
            "Quadro M(?:520|620|1200|(?:500|600|1000|2000|3000|4000|5000)M)",
        ),
    ),
    ("3.7", ("K80",)),
    (
        "3.5",
        (
            "GTX 780|GTX TITAN|GT 7(?:05|10|20|30)|GeForce 920M",
            "K40[cmst]?|K20(?:c|m|s|X|Xm)?|Quadro K(?:5200|6000|[56]10M)",
        ),
    ),
    ("3.2", ("Jetson TK1",)),
    # `GTX 860M` and `GTX 870M` are missing on purpose: they were sold with Kepler and with Maxwell.
    (
        "3.0",
        (
            "GTX 6(?:45|[5-9]0)|GTX 6(?:60M|70MX|75MX|80MX?)",
            "GTX 7[67]0M?|GTX 7(?:65|80)M|GTX 880M",
            "GT 6(?:40|45|50)M|GT 7(?:3[05]|4[05]|5[05])M|GT 740",
            "Tesla K10|GRID K(?:1|2|520)|NVS 510",
            "Quadro K(?:420|500M|600|1[01]00M|2000[DM]?|2100M|3[01]00M)",
            "Quadro K(?:4[02]00M?|4100M|5000M?|5100M)",
        ),
    ),
)


def known_capability(name: str) -> ComputeCapability | None:
    """Return the compute capability of the GPU sold under `name`, where the table has it.

    >>> known_capability("GeForce GTX 1080 Ti")
    ComputeCapability(major=6, minor=1)
    >>> known_capability("NVIDIA A100-SXM4-40GB MIG 3g.20gb")
    ComputeCapability(major=8, minor=0)
    """
    for capability, patterns in _KNOWN_CAPABILITIES:
        # A letter or a digit beside it makes another name: `L40S` is no `L40`, `L40-48Q` is.
        pattern = rf"(?<![A-Za-z0-9])(?:{'|'.join(patterns)})(?![A-Za-z0-9])"
        if re.search(pattern, name, re.IGNORECASE):
            return ComputeCapability.parse(capability)
    return None
