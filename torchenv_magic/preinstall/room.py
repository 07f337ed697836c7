"""Room on the disk: a server that finds none does not start, so an install takes never the last.

A hub's user has a home of a few gigabytes, and Jupyter writes into it before it answers.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from torchenv_magic.errors import DiskSpaceError
from torchenv_magic.installation.plan import Plan, SpaceNeed
from torchenv_magic.installation.space import look_at_disk, too_little

__all__ = ["KERNEL_BYTES", "check_reserve", "check_room", "is_full"]

KERNEL_BYTES = 150_000_000
"""About what a kernel and the magic take, with their programs."""
# What a server writes, before anybody has saved a notebook.
_RESERVE_BYTES = 50_000_000
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def check_room(folders: Iterable[Path], need_bytes: int) -> None:
    """Check that so much fits into the folders, before the first file is written.

    Raises
    ------
    DiskSpaceError
    """
    disks = {}
    for folder in folders:
        disk = look_at_disk(folder)
        disks[disk.device, disk.mount] = (folder, disk.free_bytes)
    for folder, free in disks.values():
        need = SpaceNeed(
            place=folder,
            need_bytes=need_bytes + _RESERVE_BYTES,
            free_bytes=free,
            reason="a kernel, and what the server writes",
        )
        if not need.fits:
            raise DiskSpaceError(
                f"There is too little space: {need}",
                hint="free some space there; the next start of the server tries again",
            )


def check_reserve(plan: Plan) -> None:
    """Check that what the plan takes leaves the server some room.

    Raises
    ------
    DiskSpaceError
    """
    for need in plan.space:
        with_reserve = replace(need, need_bytes=need.need_bytes + _RESERVE_BYTES)
        if not with_reserve.fits:
            raise too_little(with_reserve)


def is_full(error: BaseException | None) -> bool:
    """Whether the disk was full, or this user's share of it."""
    while error is not None:
        if isinstance(error, DiskSpaceError):
            return True
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False
