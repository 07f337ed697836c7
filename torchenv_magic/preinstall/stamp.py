"""What a preinstall has left whole, and for what: while that is so, a start begins nothing.

uv leaves a half-linked torch when it is killed, and takes it for installed afterwards. So it is our
own stamp that says it came to its end: written after that only, removed before anything begins.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torchenv_magic.installation.data_folder import python_in
from torchenv_magic.preinstall.place import (
    KERNEL_NAME,
    Place,
    jupyter_folder,
    vendor_here,
)
from torchenv_magic.preinstall.record import own_user, read_private, write_private
from torchenv_magic.preinstall.wish import Wish

__all__ = [
    "Last",
    "Stamp",
    "circumstances",
    "files_of",
    "holds",
    "read_last",
    "read_stamp",
    "remove_stamp",
    "write_last",
    "write_stamp",
]

_SCHEMA = 1
_LARGEST = 64_000
_NAME = "preinstall.json"
_LAST_NAME = "preinstall-last.json"
# Of what a person sets, what changes the choice.
_DECIDING = ("TORCHENV_FIND_LINKS", "TORCHENV_INDEX_BASE", "TORCHENV_LAYERS", "UV_TORCH_BACKEND")
# Whether there is a GPU, not which: a batch system hands out another one each time.
_HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_HIDDEN = ("", "-1", "NoDevFiles")
_DRIVERS = ("nvidia", "amdgpu", "i915", "xe")
_VERSIONS = (
    "/proc/driver/nvidia/version",
    "/sys/module/nvidia/version",
    "/sys/module/amdgpu/version",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What was brought, and what it was right for."""

    circumstances: dict[str, Any]
    """The wish, the Python, the image and the accelerators, as they were."""
    target: str
    """The environment that has it; the server's own where that had it already."""
    kernel: str
    kernel_title: str
    backend: str
    torch: str
    message: str
    """One sentence about it."""
    files: dict[str, list[int]]
    """The folders of the packages' metadata with their times: who installs something else, or
    removes a package, changes these."""


def circumstances(
    wish: Wish, place: Place, environ: Mapping[str, str], *, version: str
) -> dict[str, Any]:
    """Return what a stamp was right for, at a glance: nothing of it takes more than a moment."""
    return {
        "schema": _SCHEMA,
        "version": version,
        "backend": wish.backend,
        "requirements": list(wish.requirements),
        "settings": {name: environ[name] for name in _DECIDING if environ.get(name)},
        "hidden": [name for name in _HIDING if environ.get(name, "all").strip() in _HIDDEN],
        "python": [sys.version, sys.prefix, *_file(os.path.realpath(sys.executable))],
        "interpreter": _file(str(python_in(place.prefix))),
        "image": [environ.get("JUPYTER_IMAGE_SPEC", ""), *_file("/etc/os-release")],
        "accelerators": _accelerators(),
    }


def holds(stamp: Stamp | None, now: Mapping[str, Any]) -> bool:
    """Whether what a stamp tells of is there still, and still what is wanted."""
    if stamp is None or stamp.circumstances != dict(now):
        return False
    target = Path(stamp.target)
    # An install that was killed at its switch, or is at it: the engine looks after that.
    if os.path.lexists(target / ".torchenv" / "journal.json"):
        return False
    if stamp.kernel:
        kernel = jupyter_folder(target) / "kernels" / KERNEL_NAME / "kernel.json"
        if not kernel.is_file():
            return False
    return bool(stamp.files) and all(_file(path) == was for path, was in stamp.files.items())


def files_of(paths: Iterable[Path]) -> dict[str, list[int]]:
    """Return what tells that packages have changed: by files, or folders of their metadata."""
    found = {}
    for path in paths:
        for file in (path, path / "RECORD"):
            if size_and_time := _file(str(file)):
                found[str(file)] = size_and_time
    return found


def read_stamp(prefix: Path) -> Stamp | None:
    """Return what the last preinstall into that environment left; None where nothing whole is."""
    content = read_private(_path(prefix), largest=_LARGEST, owner=own_user())
    try:
        data = json.loads(content or b"")
        stamp = Stamp(**data)
    except (ValueError, TypeError, RecursionError):
        return None
    kinds = {"circumstances": dict, "files": dict}
    if all(
        isinstance(getattr(stamp, field.name), kinds.get(field.name, str))
        for field in fields(Stamp)
    ) and not any("\0" in path for path in (*stamp.files, stamp.target)):
        return stamp
    return None


def write_stamp(prefix: Path, stamp: Stamp) -> None:
    """Write that all is there.

    Raises
    ------
    OSError
    """
    write_private(_path(prefix), json.dumps(asdict(stamp)).encode("ascii"))


def remove_stamp(prefix: Path) -> None:
    """Take back that all is there, before anything is changed.

    Raises
    ------
    OSError
    """
    _path(prefix).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Last:
    """What the last preinstall has installed, and for which wish: all else came by somebody."""

    backend: str
    """What was wished for, `auto` too."""
    torch: str


def read_last(prefix: Path) -> Last | None:
    """Return what the last preinstall has installed there; None where none did."""
    path = _path(prefix).with_name(_LAST_NAME)
    try:
        data = json.loads(read_private(path, largest=_LARGEST, owner=own_user()) or b"")
        backend, torch = data["backend"], data["torch"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if not isinstance(backend, str) or not isinstance(torch, str):
        return None
    return Last(backend=backend, torch=torch)


def write_last(prefix: Path, last: Last) -> None:
    """Remember what was installed, whatever becomes of the stamp.

    Raises
    ------
    OSError
    """
    write_private(_path(prefix).with_name(_LAST_NAME), json.dumps(asdict(last)).encode("ascii"))


def _path(prefix: Path) -> Path:
    return prefix / ".torchenv" / _NAME


def _file(path: str) -> list[int]:
    """Return what changes when somebody replaces a file; nothing where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116  (one import less, and never a Path to make)
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns]


def _accelerators() -> dict[str, Any]:
    """Return what tells one host's accelerators, or their driver, from another's."""
    devices = set()
    for driver in _DRIVERS:
        folder = f"/sys/bus/pci/drivers/{driver}"
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):  # noqa: PTH208  (names are enough)
                if re.fullmatch(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", name):
                    devices.add(f"{driver} {_text(f'{folder}/{name}/device')}")
    versions = [_text(path) for path in _VERSIONS]
    return {"vendor": vendor_here(), "devices": sorted(devices), "versions": versions}


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123
            return file.read(500).strip()
    except OSError:
        return ""
