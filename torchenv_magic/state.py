"""The folder `.torchenv` of an environment: how what is kept in it is read and written.

What lies there decides what is moved in the environment. So no link is followed on the way to it,
and its files are for their owner only, but for what a shared environment tells its readers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from pathlib import Path

__all__ = [
    "create_state",
    "make_state_directory",
    "open_state",
    "read_state",
    "state_directory",
    "sweep_state",
    "write_state",
]

# Windows knows neither; there a link takes a right that ordinary people don't have.
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
# A pipe under the name of a file would wait for a writer for ever.
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def state_directory(prefix: Path) -> Path:
    """Return where the environment at `prefix` keeps what is known of its installs."""
    return prefix / ".torchenv"


def make_state_directory(prefix: Path) -> Path:
    """Return the folder, and make it where it is missing.

    Raises
    ------
    OSError
        It can't be made, or it is a link.
    """
    directory = state_directory(prefix)
    # A group that shares an environment installs into it in turn; strangers never do.
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o775)
    _check(directory)
    return directory


def _check(directory: Path) -> None:
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode):
        number = errno.ELOOP if stat.S_ISLNK(status.st_mode) else errno.ENOTDIR
        raise OSError(number, os.strerror(number), str(directory))


def open_state(path: Path, flags: int) -> int:
    """Open one of the files, which is no link and no device; return its descriptor.

    Raises
    ------
    OSError
    """
    _check(path.parent)
    descriptor = os.open(path, flags | _NO_FOLLOW | _NO_WAIT | _BINARY, 0o600)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise OSError(number, os.strerror(number), str(path))
    return descriptor


def read_state(path: Path, *, largest: int) -> bytes:
    """Return what the file holds, at most one byte more than `largest`.

    Raises
    ------
    OSError
    """
    with open(open_state(path, os.O_RDONLY), "rb") as file:
        return file.read(largest + 1)


def create_state(path: Path, content: bytes) -> int:
    """Make the file, which must not be there yet; return its descriptor, open for writing.

    Raises
    ------
    FileExistsError
        It is there. Of several who try at once, on several hosts too, one succeeds.
    OSError
    """
    descriptor = open_state(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        os.write(descriptor, content)
    except OSError:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return descriptor


_FORGOTTEN_SECONDS = 600.0


def sweep_state(prefix: Path) -> None:
    """Delete what writers who were killed had begun and not put in its place."""
    directory = state_directory(prefix)
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            begun = re.fullmatch(r".+\.[0-9a-f]{8}", path.name) is not None
            if begun and abs(time.time() - path.lstat().st_mtime) > _FORGOTTEN_SECONDS:
                path.unlink()


def write_state(
    path: Path, content: bytes, *, for_readers: bool = False, lasting: bool = True
) -> None:
    """Replace the file as a whole: a reader sees the old or the new.

    Parameters
    ----------
    for_readers
        Whether others of a shared environment may read it, as the umask has it.
    lasting
        Whether it is on the disk, and not in memory only, before this returns.

    Raises
    ------
    OSError
        What was there before is there still.
    """
    _check(path.parent)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | _BINARY
    descriptor = os.open(temporary, flags, 0o666 if for_readers else 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  (a descriptor)
            file.write(content)
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
