"""One change at a time: our own lock on an environment, and uv's.

Neither pip nor conda takes a lock, so a plan is compared with the environment once more before the
switch as well.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from torchenv_magic.environment import Environment, shown_path
from torchenv_magic.errors import BusyError, TargetError

__all__ = ["locked", "state_directory", "uv_is_locked", "uv_locked"]

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1


def state_directory(environment: Environment) -> Path:
    """Return where an environment keeps what is known of its installs."""
    return environment.prefix / ".torchenv"


@contextlib.contextmanager
def locked(environment: Environment, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the environment's lock, so that only one of us changes it at a time.

    The operating system drops the lock with the process that held it.

    Raises
    ------
    BusyError
        Somebody else holds it, after `wait_seconds` still.
    TargetError
        The environment can't be written.
    """
    directory = state_directory(environment)
    try:
        directory.mkdir(exist_ok=True)
        file = (directory / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        message = f"`{shown_path(environment.prefix)}` can't be written: {error.strerror}"
        hint = "make an environment of your own and choose it as the kernel"
        raise TargetError(message, hint=hint) from error
    with file:
        end = time.monotonic() + wait_seconds
        while not _acquire(file):
            if time.monotonic() >= end:
                raise BusyError(
                    f"Another install works on `{shown_path(environment.prefix)}`{_holder(file)}",
                    hint="wait for it to end, then try again",
                )
            time.sleep(_POLL_SECONDS)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def _holder(file: IO[str]) -> str:
    file.seek(0)
    text = file.read(100).strip()
    return f" (process {text})" if text.isdigit() else ""


def _acquire(file: IO[str]) -> bool:
    """Lock the file without waiting; return False where another holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            # Past the text, so that another process can still read who holds it.
            os.lseek(file.fileno(), 1000, os.SEEK_SET)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            # Some network drives know no locks: an install there is better than none.
            logger.warning("%s can't be locked: %s", file.name, error.strerror)
            return True
        return False
    return True


@contextlib.contextmanager
def uv_locked(prefix: Path) -> Iterator[bool]:
    """Hold uv's own lock on a virtual environment; give False where a uv at work has it.

    Elsewhere than in a virtual environment uv's lock has a name that only uv knows, and on Windows
    it is one of a kind that Python can't take: then there is nothing to hold.
    """
    if sys.platform == "win32" or not (prefix / "pyvenv.cfg").exists():
        yield True
        return
    try:
        # uv makes the same file where it is missing, and leaves it.
        file = (prefix / ".lock").open("a", encoding="utf-8")
    except OSError as error:
        logger.info("uv's lock of %s can't be opened: %s", prefix, error.strerror)
        yield True
        return
    with file:
        yield _acquire(file)


def uv_is_locked(prefix: Path) -> bool:
    """Whether a uv works on the environment right now."""
    with uv_locked(prefix) as free:
        return not free
