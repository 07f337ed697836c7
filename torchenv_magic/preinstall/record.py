"""How a preinstall stands: one small file that all who wait for it read.

The wrapper of a server's command, the server's extension, the magic in a notebook and, for what it
shows on the page of a pending server, the hub. Each server has a folder of its own for it, on the
host where it runs: a home may be shared by hosts.

Only the standard library, and little of that: the wrapper stands between a person and their server.
"""

from __future__ import annotations

import json
import os
import stat
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
    "read_record",
    "record_directory",
]

STATE_VARIABLE = "TORCHENV_PREINSTALL_STATE"
"""Names the folder of a server's preinstall, for the server and its kernels."""
STATE_NAME = "state.json"
LOG_NAME = "install.log"

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
    """The installer's process; 0 where none was needed."""
    started: str = ""
    """When that process began, as its system tells it: numbers are given out again."""
    boot: str = ""
    """The start of the machine on which the number of the process holds."""
    since: str = ""
    """When the preinstall began: in UTC, as ISO 8601 writes it."""

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
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(directory / STATE_NAME, flags)
    except (OSError, ValueError):
        return None
    with open(descriptor, "rb") as file:  # noqa: PTH123  (a descriptor)
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or (owner is not None and status.st_uid != owner):
            return None
        content = file.read(_LARGEST + 1)
    return _parse(content) if len(content) <= _LARGEST else None


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
