"""Put a process on a machine of the fleet: it sees that machine's files, devices and programs.

Only root may do that, and only on Linux: the files are mounted, for the process alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measuring import BenchmarkError
from tests.fleet import Machine
from torchenv_magic.accelerators.nvidia import find_libraries

__all__ = ["Place", "check_place", "lay_out", "run_on_machine"]

_ENTER = Path(__file__).parent / "children" / "enter_machine.py"
_COULD_NOT_ENTER = 125

# Prints as `lspci -nn` does where its table knows no names: the ids, in brackets, are the same.
_LSPCI = """#!{python} -I
import pathlib
CLASSES = {{"0300": "VGA compatible controller", "0302": "3D controller",
           "0380": "Display controller", "1200": "Processing accelerators"}}
VENDORS = {{"10de": "NVIDIA Corporation", "1002": "Advanced Micro Devices, Inc. [AMD/ATI]",
           "8086": "Intel Corporation", "1414": "Microsoft Corporation"}}
folders = sorted(pathlib.Path("/sys/bus/pci/devices").glob("*"))
short = all(folder.name.startswith("0000:") for folder in folders)
for folder in folders:
    kind, vendor, device = (
        (folder / name).read_text().strip()[2:] for name in ("class", "vendor", "device")
    )
    slot = folder.name[5:] if short else folder.name
    print(f"{{slot}} {{CLASSES.get(kind[:4], 'Class')}} [{{kind[:4]}}]: "
          f"{{VENDORS.get(vendor, 'Vendor')}} Device [{{vendor}}:{{device}}]")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A machine laid out as folders."""

    root: Path
    """What lies over this system's files."""
    programs: Path
    """The whole PATH."""


def check_place() -> None:
    """Raise `BenchmarkError`, saying what is missing, where no machine can be played here."""
    # Root in a container often may not mount: to try it is the only way to know.
    if not sys.platform.startswith("linux") or not _may_mount():
        raise BenchmarkError(
            "choices: a tool is put on another machine by mounting that machine's files, which "
            "takes Linux, root and `unshare` of util-linux"
        )
    for name in ("libnvidia-ml.so.1", "libcuda.so.1", "libze_loader.so.1"):
        if found := find_libraries(name, root=Path("/"), environ=os.environ):
            raise BenchmarkError(
                f"choices: {found[0]} of this machine would be seen on every other one: measure "
                "where no GPU driver is installed"
            )


def _may_mount() -> bool:
    try:
        completed = subprocess.run([*_namespace(), "true"], capture_output=True, check=False)
    except OSError:
        return False  # no such program
    return completed.returncode == 0


def _namespace() -> tuple[str, ...]:
    # By its path: the variables of whom it starts name the machine's programs alone.
    program = shutil.which("unshare") or "unshare"
    return (program, "--mount", "--propagation", "private", "--")


def lay_out(machine: Machine, folder: Path) -> Place:
    """Make the machine's files and programs, and what every machine has beside them."""
    folder.mkdir(parents=True)
    root = machine.lay_out(folder)
    programs = folder / "bin"
    lspci = programs / "lspci"
    lspci.write_text(_LSPCI.format(python=sys.executable), encoding="utf-8")
    lspci.chmod(0o755)
    for name in ("dev/shm", "proc/driver", "sys"):
        (root / name).mkdir(parents=True, exist_ok=True)
    # Places for the real nodes, which `enter_machine` mounts there.
    for name in ("null", "zero", "full", "random", "urandom"):
        (root / "dev" / name).touch()
    (root / "dev/fd").symlink_to("/proc/self/fd")
    return Place(root=root, programs=programs)


def run_on_machine(
    place: Place,
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    text: str = "",
    seconds: float,
) -> subprocess.CompletedProcess[str] | None:
    """Run a program there with these variables; None where it had to be killed at its bound.

    `text` is its standard input. Raises `BenchmarkError` where it can't be put there.
    """
    enter = (sys.executable, "-I", str(_ENTER), str(place.root))
    with subprocess.Popen(
        [*_namespace(), *enter, *command],
        env={**variables, "PATH": str(place.programs)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(text, timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # With all that it started: an nvidia-smi that hangs outlives who asked it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode == _COULD_NOT_ENTER:
        raise BenchmarkError(f"choices: no other machine can be played here: {errors.strip()}")
    return subprocess.CompletedProcess(command, process.returncode, output, errors)
