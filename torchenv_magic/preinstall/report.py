"""How the installer says how it stands: a record for all who wait, a log for who asks why."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import replace
from pathlib import Path

from torchenv_magic.errors import TorchEnvError
from torchenv_magic.installation.progress import Event
from torchenv_magic.preinstall.record import Record, boot_of_host, process_started, write_record

__all__ = ["Report"]

logger = logging.getLogger(__name__)

_TELL_SECONDS = 0.5
# How far it is at the begin and the end of each phase: a bar that goes back tells nothing.
_SPANS = {
    "resolve": (0.0, 0.1),
    "download": (0.1, 0.7),
    "unpack": (0.7, 0.8),
    "link": (0.8, 0.9),
    "switch": (0.9, 0.92),
    "check": (0.92, 1.0),
}


class Report:
    """Writes how it stands, twice a second at most, and all that is said into the log."""

    def __init__(self, directory: Path, *, target: Path, since: str, notice: str) -> None:
        self._directory = directory
        self._written = 0.0
        self._record = Record(
            status="running",
            message="Looking for the PyTorch that fits this machine",
            target=str(target),
            pid=os.getpid(),
            started=process_started(os.getpid()),
            boot=boot_of_host(),
            since=since,
            notice=notice,
        )
        if notice:
            logger.info("notice: %s", notice)
        self._write()

    def __call__(self, event: Event) -> None:
        """Take an event of the engine's."""
        if event.log:
            logger.info("%s", event.log)
        message = _printable(event.message) or self._record.message
        is_new = message != self._record.message
        if is_new:
            logger.info("%s", message)
        far = max(_far(event) or 0.0, self._record.fraction or 0.0)
        self._record = replace(self._record, message=message, fraction=far or None)
        if is_new or time.monotonic() - self._written >= _TELL_SECONDS:
            self._write()

    def know(self, **fields: str) -> None:
        """Tell what is decided by now."""
        self._record = replace(self._record, **fields)  # type: ignore[arg-type]

    def remark(self, text: str) -> None:
        """Tell what a person is to know besides, and all that was told before."""
        notice = " · ".join(filter(None, (self._record.notice, _printable(text))))
        self._record = replace(self._record, notice=notice)

    def done(self, message: str) -> None:
        """Tell that all is there."""
        logger.info("%s", message)
        self._record = replace(
            self._record, status="done", message=_printable(message), fraction=1.0
        )
        self._write()

    def fail(self, error: TorchEnvError) -> None:
        """Tell what happened, and what to do about it."""
        for text in filter(None, (error.detail, str(error))):
            logger.error("%s", text)
        self._record = replace(
            self._record,
            status="failed",
            message=_printable(error.message),
            hint=_printable(error.hint),
            fraction=None,
        )
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        # Who waits is no reason to fail.
        with contextlib.suppress(OSError):
            write_record(self._directory, self._record)


def _far(event: Event) -> float | None:
    """Return how far all of it is, from 0 to 1; None where the event doesn't tell."""
    share = 0.0
    if event.bytes is not None and event.bytes.total:
        share = event.bytes.done / event.bytes.total
    elif event.count is not None and event.count[1]:
        share = event.count[0] / event.count[1]
    share = min(max(share, 0.0), 1.0)
    if event.phase not in _SPANS:
        return share or None
    begin, end = _SPANS[event.phase]
    return begin + (end - begin) * share


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else " " for sign in text).strip()
