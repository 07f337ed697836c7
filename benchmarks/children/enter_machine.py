"""Run a program on a machine of the fleet: its files lie over the system's, for this process alone.

Arguments: the machine's root, then the program and its arguments. It has to be started in a mount
namespace of its own (`unshare --mount --propagation private`). Exit status 125: no such machine
could be made here, and the program did not run.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_BIND = 0x1000
_RECURSIVE = 0x4000  # <sys/mount.h>: MS_BIND, MS_REC

_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: Path, target: Path, *, kind: str = "", flags: int = 0, data: str = "") -> None:
    words = [os.fsencode(word) for word in (source, target, kind)]
    if _libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(data)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def _enter(root: Path) -> None:
    for node in ("null", "zero", "full", "random", "urandom"):
        _mount(Path("/dev") / node, root / "dev" / node, flags=_BIND)
    # The whole of both: what the machine lacks must not be seen, and recursively, for the nodes.
    for name in ("dev", "sys"):
        _mount(root / name, Path("/") / name, flags=_BIND | _RECURSIVE)
    # /proc also holds this process, so only what tells of the machine.
    _mount(root / "proc/driver", Path("/proc/driver"), flags=_BIND)
    for path in (root / "proc").rglob("*"):
        place = path.relative_to(root)
        if path.is_file() and place.parts[1] != "driver":
            _mount(path, Path("/") / place, flags=_BIND)
    for folder in root.iterdir():
        if folder.name not in {"dev", "proc", "sys"}:
            target = Path("/") / folder.name
            _mount(Path("overlay"), target, kind="overlay", data=f"lowerdir={folder}:{target}")


def _main() -> None:
    root, *command = sys.argv[1:]
    try:
        _enter(Path(root))
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(125)
    os.execv(command[0], command)  # noqa: S606


_main()
