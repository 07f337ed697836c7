"""What a plan takes on which disk, against what is free there.

uv unpacks into its cache and links from there, which costs nothing more. Where the environment lies
on another file system, or behind another mount of the same one, it copies.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torchenv_magic.builds.backend import Backend
from torchenv_magic.errors import DiskSpaceError
from torchenv_magic.installation.plan import Download, Plan, SpaceNeed, unpacked_bytes
from torchenv_magic.installation.sources import uv_setting
from torchenv_magic.installation.uv import Uv

__all__ = ["Disk", "check_space", "look_at_disk", "needs_of", "plan_space", "too_little"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What a folder lies on."""

    device: int
    mount: str
    """Where it is mounted: no link leads from one mount to another, even of the same device."""
    free_bytes: int


def look_at_disk(path: Path) -> Disk:
    """Return what the folder lies on, or will once it is made."""
    path = _existing(path)
    return Disk(
        device=path.stat().st_dev,
        mount=_mount_of(path),
        # What this user may take: less than what is free where some is kept for root.
        free_bytes=shutil.disk_usage(path).free,
    )


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.resolve()


def _mount_of(path: Path) -> str:
    if sys.platform != "linux":
        return ""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    points = [_unescaped(line.split(" ", 5)[4]) for line in lines.splitlines()]
    above = {str(path), *map(str, path.parents)}
    return max((point for point in points if point in above), key=len, default="")


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def needs_of(
    downloads: Iterable[Download],
    backend: Backend,
    *,
    cache: Path,
    site: Path,
    link_mode: str | None = None,
    look: Callable[[Path], Disk] = look_at_disk,
) -> tuple[SpaceNeed, ...]:
    """Return what the packages take, unpacked, on each disk: none where that is nothing.

    Packages whose size nobody tells count nothing.
    """
    downloads = tuple(downloads)
    everything = sum(unpacked_bytes(item, backend) for item in downloads)
    missing = sum(unpacked_bytes(item, backend) for item in downloads if not item.cached)
    if not everything:
        return ()
    below, above = look(cache), look(site)
    apart = (below.device, below.mount) != (above.device, above.mount)
    copied = everything if link_mode == "copy" or (apart and link_mode != "symlink") else 0
    # One disk has room for the unpacked packages and for their copies, or for neither.
    together = missing if copied and below.device == above.device else 0
    needs = []
    if missing and not together:
        needs.append(
            SpaceNeed(
                place=cache, need_bytes=missing, free_bytes=below.free_bytes, reason="uv's cache"
            )
        )
    if copied:
        needs.append(
            SpaceNeed(
                place=site,
                need_bytes=copied + together,
                free_bytes=above.free_bytes,
                reason="uv's cache and the environment" if together else "the environment",
                copied_bytes=copied,
                copied_because="The cache of uv is on another disk"
                if apart
                else "uv is set to copy (link-mode)",
            )
        )
    return tuple(needs)


def plan_space(
    downloads: Iterable[Download],
    backend: Backend,
    site: Path,
    *,
    uv: Uv,
    environ: Mapping[str, str] | None = None,
    look: Callable[[Path], Disk] = look_at_disk,
) -> tuple[SpaceNeed, ...]:
    """Return `needs_of` the packages with uv's cache and settings as they are now.

    Raises
    ------
    UvError
        uv's configuration can't be read.
    """
    environ = os.environ if environ is None else environ
    return needs_of(
        downloads,
        backend,
        cache=uv.cache_directory(),
        site=site,
        link_mode=environ.get("UV_LINK_MODE") or uv_setting("link-mode", environ=environ),
        look=look,
    )


def check_space(
    plan: Plan, site: Path, *, uv: Uv, look: Callable[[Path], Disk] = look_at_disk
) -> None:
    """Check, with what is free now, that the plan's packages fit on the disks that they go to.

    Raises
    ------
    DiskSpaceError
    """
    for need in plan_space(plan.downloads, plan.backend, site, uv=uv, look=look):
        if not need.fits:
            raise too_little(need)


def too_little(need: SpaceNeed) -> DiskSpaceError:
    """Return the error for a need that does not fit."""
    hint = "free some space, or set UV_CACHE_DIR to a folder on a larger disk"
    if need.copied_bytes:
        hint = "free some space there, or set UV_CACHE_DIR to a folder on the environment's disk"
    return DiskSpaceError(f"There is too little space: {need}", hint=hint)
