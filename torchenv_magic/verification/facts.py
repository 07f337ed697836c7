"""What an issue about PyTorch has to tell of the machine: the facts that decide what goes wrong."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torchenv_magic.accelerators.records import Host

__all__ = ["Fact", "os_release_name", "read_system", "shortened", "told_variables"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One line that somebody who reads an issue asks for."""

    name: str
    value: str


# Those that change what PyTorch sees, loads or takes. None of them holds a secret.
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "NVIDIA_VISIBLE_DEVICES",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HSA_OVERRIDE_GFX_VERSION",
    "ZE_AFFINITY_MASK",
    "ONEAPI_DEVICE_SELECTOR",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_HIP_ALLOC_CONF",
    "PYTORCH_ENABLE_MPS_FALLBACK",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "TORCH_DEVICE_BACKEND_AUTOLOAD",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
)
_LONGEST = 300
"""Characters of one variable: a module system puts a hundred folders into LD_LIBRARY_PATH."""


def told_variables(environ: Mapping[str, str]) -> str:
    """Return the variables that matter and are set.

    >>> told_variables({"CUDA_VISIBLE_DEVICES": "", "HOME": "/home/ada"})
    'CUDA_VISIBLE_DEVICES='
    """
    told = []
    for name in _VARIABLES:
        if name in environ:
            plain = "".join(c if c.isprintable() else " " for c in environ[name])
            value = shortened(" ".join(plain.split()))
            told.append(f"{name}={value[:_LONGEST]}{'…' if len(value) > _LONGEST else ''}")
    return ", ".join(told)


def shortened(text: str) -> str:
    """Return the text with the home directory as `~` wherever a path begins with it."""
    home = os.path.expanduser("~")  # noqa: PTH111  (Path.home() raises where there is none)
    if home in ("/", "~"):
        return text
    return re.sub(rf"(?<![\w/\\.-]){re.escape(home)}(?![\w.-])", "~", text)


def read_system(host: Host, *, root: Path = Path("/")) -> str:
    """Return the operating system by its own name, with what decides which wheel it takes."""
    name = ""
    if sys.platform == "linux":
        for place in ("etc/os-release", "usr/lib/os-release"):
            try:
                text = (root / place).read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            name = os_release_name(text)
            break
        name = f"{name or 'Linux'}, {os.uname().release}; "
    elif sys.platform == "win32":
        version = sys.getwindowsversion()
        name = f"Windows {version.major}.{version.minor}.{version.build}; "
    return f"{name}{host.platform}"


def os_release_name(text: str) -> str:
    r"""Return the name that an os-release file gives its system.

    >>> os_release_name('ID=debian\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    'Debian GNU/Linux 12 (bookworm)'
    """
    match = re.search(r"^PRETTY_NAME=(['\"]?)([^\n]*)\1[ \t]*$", text, re.MULTILINE)
    return match[2].strip() if match and match[2].isprintable() else ""
