"""A person's file: read whole, and replaced whole if it is still what was read.

Who reads it words what is told: each `UnfitError` says which of the things that can be wrong is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from pathlib import Path
from typing import Literal

__all__ = ["UnfitError", "read_whole", "replace_whole"]

# Windows knows no pipes among its files, and translates line ends unless it is told not to.
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)

Unfit = Literal["folder", "no file", "too large", "read-only", "changed"]


class UnfitError(Exception):
    """The file is not to be read, or not to be replaced; it is as it was."""

    def __init__(self, kind: Unfit) -> None:
        super().__init__(kind)
        self.kind = kind


def read_whole(path: Path, *, largest: int) -> bytes:
    """Return what the file holds.

    Raises
    ------
    UnfitError
        It is a folder, a pipe or a device, or has more bytes than `largest`.
    OSError
        It is not there, can't be read, or the name is none.
    """
    try:
        # A pipe under that name would wait for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | _NO_WAIT | _BINARY)
    except OSError:
        # Windows opens no folder, and calls that a lack of permission.
        if os.path.isdir(path):  # noqa: PTH112  (pathlib raises for a name that is too long)
            raise UnfitError("folder") from None
        raise
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error)) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UnfitError("folder" if stat.S_ISDIR(status.st_mode) else "no file")
    with open(descriptor, "rb") as file:  # noqa: PTH123  (a descriptor)
        # The size is that of now, and somebody may be writing.
        if status.st_size > largest or len(content := file.read(largest + 1)) > largest:
            raise UnfitError("too large")
        return content


def replace_whole(path: Path, content: bytes, *, read: bytes | None) -> None:
    """Replace the file, or the one that it is a link to, by another with the same rights.

    `read` is what stood there when it was read; None is that there was none.

    Raises
    ------
    UnfitError
        It is read-only, or has changed since.
    OSError
        It can't be written: there is no room, or its folder takes no files.
    """
    target = Path(os.path.realpath(path))
    status = None if read is None else target.stat()
    # A rename needs no right to the file itself, and root has every right.
    if status is not None and (not status.st_mode & 0o222 or not os.access(target, os.W_OK)):
        raise UnfitError("read-only")
    # Without its own name, which may be as long as names can be.
    temporary = target.with_name(f".torchenv-{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | _BINARY
    try:
        mode = 0o666 if status is None else 0o600
        with open(os.open(temporary, flags, mode), "wb") as file:  # noqa: PTH123  (a descriptor)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if status is not None:
            _keep_rights(temporary, target, status)
        # As late as can be: between this and the rename lies nothing.
        if _now(target, read) != read:
            raise UnfitError("changed")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _keep_rights(temporary: Path, target: Path, status: os.stat_result) -> None:
    if hasattr(os, "chown"):
        # Who is not root can't give a file away; then it is theirs who wrote it last.
        with contextlib.suppress(OSError):
            os.chown(temporary, status.st_uid, status.st_gid)
    shutil.copystat(target, temporary)
    # Front ends tell by the time whether a file has changed.
    os.utime(temporary)


def _now(target: Path, read: bytes | None) -> bytes | None:
    try:
        return read_whole(target, largest=len(read or b""))
    except FileNotFoundError:
        return None
    except UnfitError:
        raise UnfitError("changed") from None
