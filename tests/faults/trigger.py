"""Stop the process that installs at its nth step, so that a fault can strike exactly there.

Started as `python trigger.py WORD…` it is the `torchenv` command; run in a kernel's cell, it is
that kernel. A step is what Python's own audit hook tells of the environment: a rename, a removal, a
new folder, a file opened to be written. Nothing of the engine is known here but the names of what
it keeps for itself, so the campaign holds for whatever engine comes. The standard library alone is
imported, since this runs in any environment.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from typing import Any

SETTINGS = "TORCHENV_TESTS_TRIGGER"
"""The variable that tells which environment is watched, and what is to happen when."""

# What the engine does beside its work: a lock's heart beats, progress is written, the old is swept.
_BESIDE = ("/.torchenv/lock", "/.torchenv/holder", "/.torchenv/progress", "/.torchenv-question")
_SWEPT = ("os.remove", "os.rmdir")
_PATHS = {
    "os.rename": 2,
    "os.remove": 1,
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.link": 2,
    "os.symlink": 2,
    "open": 1,
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Trigger:
    """Counts the steps, and stops at one of them until it is told to go on."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._prefix: str = settings["prefix"]
        self._record: str | None = settings.get("record")
        self._step: int | None = settings.get("step")
        self._door: str = settings.get("door", "")
        self._count = 0
        self._busy = threading.local()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Hear of everything that this process does; be quick."""
        if event not in _PATHS and event != "subprocess.Popen":
            return
        if getattr(self._busy, "busy", False):
            return
        self._busy.busy = True
        try:
            told = self._told(event, arguments)
            if told is not None:
                self._take(told)
        finally:
            self._busy.busy = False

    def _told(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event == "subprocess.Popen":
            name = os.path.basename(os.fsdecode(arguments[0] or arguments[1][0]))  # noqa: PTH119
            return f"start {name}"
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITES):
            return None
        paths = [
            os.fsdecode(path)
            for path in arguments[: _PATHS[event]]
            if isinstance(path, (str, bytes, os.PathLike))
        ]
        inside = [path for path in paths if path.startswith(self._prefix)]
        if not inside or any(part in path for path in inside for part in _BESIDE):
            return None
        if event in _SWEPT and "/.torchenv-" in inside[0]:
            return None
        if inside[0].endswith(".pyc") or "__pycache__" in inside[0]:
            return None
        return f"{event} {inside[-1][len(self._prefix) :]}"

    def _take(self, told: str) -> None:
        number = self._count
        self._count += 1
        if self._record is not None:
            with open(self._record, "a", encoding="utf-8") as file:  # noqa: PTH123
                file.write(f"{told}\n")
        if number == self._step:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
                door.connect(self._door)
                door.sendall(told.encode())
                door.recv(1)


def arm() -> None:
    """Watch this process, as the variable says; do nothing without it."""
    settings = os.environ.pop(SETTINGS, None)
    if settings is not None:
        sys.addaudithook(Trigger(json.loads(settings)))


if __name__ == "__main__":
    arm()
    from torchenv_magic.cli import main

    sys.exit(main(sys.argv[1:]))
