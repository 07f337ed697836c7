"""The preinstall of this kernel's server, as a notebook shows it and waits for it.

What is decided here is what a person is told; who installs is another process, and it goes on
whatever a notebook does.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torchenv_magic.accelerators.probing import clean
from torchenv_magic.environment import shown_path
from torchenv_magic.errors import InstallCancelled
from torchenv_magic.installation.history import read_entries
from torchenv_magic.installation.waiting import read_progress
from torchenv_magic.notebook.job import Job
from torchenv_magic.preinstall.record import (
    LOG_NAME,
    Record,
    is_running,
    own_user,
    read_private,
    read_record,
    record_directory,
)
from torchenv_magic.selection import Request
from torchenv_magic.status import Status

__all__ = ["JoinJob", "Preinstall", "Stage", "read_preinstall"]

Stage = Literal["running", "done", "failed", "killed"]

_LOG_BYTES = 1_000_000
_LOG_LINES = 200
_LONGEST_LINE = 500
# The installer tells twice a second how far it is.
_LOOK_SECONDS = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Preinstall:
    """One look at it."""

    record: Record
    stage: Stage
    here: bool
    """Whether it is this kernel's environment that it installs into."""
    log: tuple[str, ...] = ()
    """What was said while it failed."""
    overtaken: bool = False
    """Whether something was installed here since."""

    @property
    def where(self) -> str:
        """For whom it installs, as the end of a sentence; empty where that is not decided."""
        record = self.record
        if self.here:
            return " for this kernel"
        if record.kernel_title or record.kernel:
            return f" for the kernel “{record.kernel_title or record.kernel}”"
        # Until there is a kernel, the environment for it may still turn out not to be needed.
        known = record.target and self.stage != "running"
        return f" in {shown_path(Path(record.target))}" if known else ""

    @property
    def has_kernel(self) -> bool:
        """Whether there is another kernel that PyTorch is in."""
        return self.stage == "done" and not self.here and bool(self.record.kernel)

    def concerns(self, status: Status) -> bool:
        """Whether someone who opens the picker waits for it, or wants the kernel that it made.

        Not in a kernel that has a PyTorch of its own: another's is no news there.
        """
        if self.stage == "running":
            return self.here or status.torch is None
        return self.has_kernel and status.torch is None

    def has_failed(self, status: Status) -> bool:
        """Whether there is a failure that a person is to know of."""
        if self.stage not in ("failed", "killed") or self.overtaken:
            return False
        return self.here or status.torch is None

    @property
    def sentence(self) -> str:
        """All that there is to know of it."""
        hint = self.record.hint if self.stage == "failed" else ""
        parts = (str(self), f"hint: {hint}" if hint else "", self.record.notice)
        return ". ".join(part.rstrip(".") for part in parts if part) + "."

    def __str__(self) -> str:
        record = self.record
        if self.stage == "running":
            return f"PyTorch is being installed{self.where}: {_begun(record.message)}"
        if self.stage == "done":
            what = f"torch {record.torch}" if record.torch else "PyTorch"
            return f"{what} is installed{self.where}"
        if self.stage == "killed":
            return (
                f"The install of PyTorch{self.where} that began with the server was ended from "
                f"outside before it was done. Its last step: {_begun(record.message)}"
            )
        return (
            f"PyTorch could not be installed{self.where} as the server started: "
            f"{_begun(record.message)}"
        )


def _begun(message: str) -> str:
    """Return a record's sentence as the second half of one."""
    return message.rstrip(".") or "nothing was said"


def read_preinstall(
    environ: Mapping[str, str] = os.environ, *, prefix: Path | None = None
) -> Preinstall | None:
    """Return how the preinstall of this kernel's server stands; None where there is none."""
    directory = record_directory(environ)
    if directory is None:
        return None
    record = read_record(directory, owner=own_user())
    if record is None:
        return None
    stage: Stage = record.status
    if record.status == "running" and not is_running(record):
        stage = "killed"
    prefix = prefix or Path(sys.prefix)
    here = _is_same(record.target, prefix)
    ended_badly = stage in ("failed", "killed")
    return Preinstall(
        record=record,
        stage=stage,
        here=here,
        log=_read_log(directory) if ended_badly else (),
        overtaken=ended_badly and here and _is_overtaken(prefix, record),
    )


def _is_same(target: str, prefix: Path) -> bool:
    if not target:
        return False
    try:
        return prefix.samefile(target)
    except (OSError, ValueError):
        return target == str(prefix)


def _is_overtaken(prefix: Path, record: Record) -> bool:
    # Both in UTC, as ISO 8601 writes it: to the second, they are in order as texts.
    return any(
        entry.outcome in ("installed", "undone") and entry.when[:19] > record.since[:19]
        for entry in read_entries(prefix)
    )


def _read_log(directory: Path) -> tuple[str, ...]:
    content = read_private(directory / LOG_NAME, largest=_LOG_BYTES, owner=own_user())
    if content is None:
        return ()
    lines = content.decode("utf-8", "replace").splitlines()[-_LOG_LINES:]
    return tuple(filter(None, (clean(line, limit=_LONGEST_LINE) for line in lines)))


class JoinJob(Job):
    """Wait for the preinstall, and tell how far it is. It goes on where the wait is left."""

    def __init__(
        self,
        status: Status,
        preinstall: Preinstall,
        *,
        environ: Mapping[str, str] = os.environ,
        on_change: Callable[[Job], None] | None = None,
        on_end: Callable[[Job], None] | None = None,
    ) -> None:
        super().__init__(status, Request(), on_change=on_change, on_end=on_end)
        self.preinstall: Preinstall | None = preinstall
        self._environ = environ
        self._left = threading.Event()

    def cancel(self) -> None:
        """Leave the wait."""
        self._left.set()

    def _work(self) -> None:
        while self.preinstall is not None and self.preinstall.stage == "running":
            self._tell_how_far(self.preinstall.record)
            if self._left.wait(_LOOK_SECONDS):
                raise InstallCancelled("The wait was left; the install goes on")
            self.preinstall = read_preinstall(self._environ)

    def _tell_how_far(self, record: Record) -> None:
        event = None
        if record.target:
            # Bytes and packages, where it is at those; its own file has the sentence alone.
            with contextlib.suppress(OSError, ValueError):
                event = read_progress(Path(record.target))
        message = (event.message if event else "") or record.message
        told = {
            "stage": "joining",
            "message": message or "Installing",
            "phase": event.phase if event else "wait",
            "bytes": event.bytes if event else None,
            "count": event.count if event else None,
            "fraction": None if event and event.bytes else record.fraction,
        }
        if any(getattr(self.state, name) != value for name, value in told.items()):
            self._set(**told)
