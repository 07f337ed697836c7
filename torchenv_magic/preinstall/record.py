"""How a preinstall stands: one small file that all who wait for it read.

The wrapper of a server's command, the server's extension, the magic in a notebook and, for what it
shows on the page of a pending server, the hub. Each server has a folder of its own for it, on the
host where it runs: a home may be shared by hosts.

Only the standard library, and little of that: the wrapper stands between a person and their server.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

__all__ = [
    "LOG_NAME",
    "STATE_NAME",
    "STATE_VARIABLE",
    "Record",
    "Status",
    "boot_of_host",
    "is_alive",
    "is_running",
    "own_user",
    "process_started",
    "read_private",
    "read_record",
    "record_directory",
    "write_private",
    "write_record",
]

STATE_VARIABLE = "TORCHENV_PREINSTALL_STATE"
"""Names the folder of a server's preinstall, for the server and its kernels."""
STATE_NAME = "state.json"
LOG_NAME = "install.log"

_BEGINNING_SECONDS = 60.0
_LARGEST = 64_000
"""Bytes. A message and a hint are a few hundred."""

Status = Literal["running", "done", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """How a preinstall stands."""

    status: Status
    message: str
    """One sentence: what it does, what it did, or what happened."""
    hint: str = ""
    """What to do about a failure."""
    fraction: float | None = None
    """How far it is, from 0 to 1; None where nobody can say."""
    target: str = ""
    """The environment: its prefix. Empty until it is decided."""
    kernel: str = ""
    """The name of the kernelspec that starts it; empty where it is the server's own environment."""
    kernel_title: str = ""
    """What Jupyter shows for that name."""
    backend: str = ""
    """The build that was chosen, in uv's words; empty until then."""
    torch: str = ""
    """The version that is there at the end."""
    pid: int = 0
    """The installer's process; 0 where none was needed, or it has only just been begun."""
    started: str = ""
    """When that process began, as its system tells it: numbers are given out again."""
    boot: str = ""
    """The start of the machine on which the number of the process holds."""
    since: str = ""
    """When the preinstall began: in UTC, as ISO 8601 writes it."""
    notice: str = ""
    """What a person is to know besides: of a wish that could not be followed."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is written."""
        return asdict(self)


def record_directory(environ: Mapping[str, str]) -> Path | None:
    """Return the folder of this server's preinstall; None where there is none."""
    text = environ.get(STATE_VARIABLE, "")
    return Path(text) if os.path.isabs(text) else None  # noqa: PTH117  (one import less)


def read_record(directory: Path, *, owner: int | None = None) -> Record | None:
    """Return how the preinstall stands; None where nothing can be read that one of us wrote.

    Never waits and never follows a link, whatever lies there: a pipe under the name of a file would
    stop who reads it for ever.

    Parameters
    ----------
    owner
        The user whose file it has to be; None for any.
    """
    content = read_private(directory / STATE_NAME, largest=_LARGEST, owner=owner)
    return None if content is None else _parse(content)


def write_record(directory: Path, record: Record) -> None:
    """Write how the preinstall stands; who reads meanwhile sees the old or the new.

    Raises
    ------
    OSError
    """
    write_private(directory / STATE_NAME, json.dumps(record.to_json()).encode("ascii"))


def read_private(path: Path, *, largest: int, owner: int | None = None) -> bytes | None:
    """Return what a regular file holds; None where it is none, is too long or is another's."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError):
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or (owner is not None and status.st_uid != owner):
            return None
        content = b""
        while len(content) <= largest and (more := os.read(descriptor, largest + 1)):
            content += more
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return content if len(content) <= largest else None


def own_user() -> int | None:
    """Return the number of the user that this runs for; None where users have none."""
    if sys.platform == "win32":
        return None
    return os.geteuid()


def write_private(path: Path, content: bytes) -> None:
    """Replace a file as a whole, for its owner only.

    Raises
    ------
    OSError
        What was there before is there still.
    """
    draft = path.with_name(f"{path.name}.{os.urandom(4).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(draft, flags, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  (a descriptor)
            file.write(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


# ------------------------------------------------------------------------------ is it still at it?


def is_running(record: Record) -> bool:
    """Whether the installer is at work, as far as that can be seen from here.

    Of a process on another machine or in another container nobody can tell: it is believed.
    """
    if record.status != "running":
        return False
    if record.boot != boot_of_host() or sys.platform == "win32":
        return True
    if not record.pid:
        return _is_fresh(record.since)
    return is_alive(record.pid, record.started)


def _is_fresh(since: str) -> bool:
    """Whether a preinstall began so lately that its process may not have come to say who it is."""
    from datetime import datetime, timezone

    try:
        age = datetime.now(timezone.utc) - datetime.fromisoformat(since)
    except (TypeError, ValueError):
        return False
    return abs(age.total_seconds()) < _BEGINNING_SECONDS


def is_alive(pid: int, started: str) -> bool:
    """Whether that process of this machine is there, and no other one with its number."""
    if pid <= 0 or sys.platform == "win32":
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    state, now = _process(pid)
    return state not in ("Z", "X") and (not started or now in ("", started))


def process_started(pid: int) -> str:
    """Return when a process began, in ticks since the machine did; empty where nothing tells."""
    return _process(pid)[1]


def _process(pid: int) -> tuple[str, str]:
    """Return the state of a process, in one letter, and when it began."""
    try:
        text = _first_line(f"/proc/{pid}/stat")
        # The program's name before may hold spaces and parentheses.
        values = text.rpartition(")")[2].split()
        return values[0], values[19]
    except (OSError, IndexError):
        return "", ""


def boot_of_host() -> str:
    """Return what the number of a process holds for: one start of a machine, and one container."""
    boot = space = ""
    with contextlib.suppress(OSError):
        boot = _first_line("/proc/sys/kernel/random/boot_id")
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115  (of the running process)
    return f"{boot} {space}".strip()


def _first_line(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123
        return file.readline(2000).strip()


def _parse(content: bytes) -> Record | None:
    """Return the record, with nothing in it that a page or a terminal could stumble over."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or data.get("status") not in get_args(Status):
        return None
    known: dict[str, Any] = {}
    for field in fields(Record):
        value = data.get(field.name)
        if field.name == "fraction":
            if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1:
                known["fraction"] = float(value)
        elif field.name == "pid":
            known["pid"] = value if type(value) is int and value >= 0 else 0
        elif isinstance(value, str) and (value.isprintable() or not value):
            known[field.name] = value
    return Record(**{"message": "", **known})
