"""The stand-in for NVIDIA's management library: compiled, and asked in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from torchenv_magic.accelerators import Host
from torchenv_magic.serialization import from_json

__all__ = ["LIBRARY", "compile_nvml", "detect_in_child"]

LIBRARY = Path("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1")
"""Where Debian has the real one, below a root."""

_SOURCE = Path(__file__).parent / "machines" / "fake_nvml.c"
_DETECT = """
import json, sys, pathlib
from torchenv_magic.accelerators import detect
from torchenv_magic.serialization import to_json
host = detect(root=pathlib.Path(sys.argv[1]), timeout_seconds=float(sys.argv[2]))
print(json.dumps(to_json(host)))
"""


def compile_nvml(library: Path) -> bool:
    """Write the stand-in as `library`; return whether this machine can: a C compiler, on Linux."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        return False
    library.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run([compiler, *flags, "-o", str(library), str(_SOURCE)], check=True)
    return True


def detect_in_child(
    root: Path, environ: Mapping[str, str], *, timeout_seconds: float = 10.0
) -> Host:
    """Return what a fresh process detects: a library stays loaded in the one that loaded it."""
    completed = subprocess.run(
        [sys.executable, "-c", _DETECT, str(root), str(timeout_seconds)],
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"], **environ},
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    return from_json(Host, json.loads(completed.stdout))
