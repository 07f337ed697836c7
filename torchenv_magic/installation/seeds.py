"""A cache of uv's own for each user, cloned from one that an admin has filled.

Where the file system can share blocks between files (XFS, btrfs), a clone takes a fraction of a
second and hardly any space, and what a user does to a file stays theirs. Where it can't, nothing is
copied: a user's install then fills their own cache as ever.

Never a hard link and never one cache for many: uv links files out of its cache into environments,
so who can write one file of it changes what another user runs, and no hash is checked again.
"""

# Strings, as a cache has tens of thousands of files.
# ruff: noqa: PTH110, PTH112, PTH115, PTH118, PTH211

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from torchenv_magic.environment import shown_path
from torchenv_magic.installation.layers_trust import path_problem, stays_inside, tree_problem

__all__ = ["Seeded", "cache_problem", "seed_cache"]

_FICLONE = 0x40049409
_STAGE = ".torchenv-seed-"
_LEFT_SECONDS = 3600.0
"""Nobody takes that long to clone."""
# What uv makes anew (its locks are for everybody to write), and what it knows of the admin's own
# Pythons.
_LEFT_OUT = re.compile(r"(?!archive-v).*\.lock|builds-v\d+|interpreter-v\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeded:
    """What came of it."""

    cloned: bool
    reason: str
    """One sentence: what was done, or why not."""
    files: int = 0
    seconds: float = 0.0


def cache_problem(cache: Path, *, user: int | None = None) -> str:
    """Return why that cache can't be trusted, as one sentence; empty where it can, or is not there.

    Parameters
    ----------
    user
        Whose installs are to use it; None for who runs this.
    """
    # Where somebody may not even look, uv can't either, and says so.
    if sys.platform == "win32" or not os.path.exists(cache):
        return ""
    problem = path_problem(cache, user=user)
    if not problem:
        return ""
    return (
        f"uv's cache {shown_path(cache)} is refused: {problem}, and who can write a cache changes "
        "what others run, also where hashes are required"
    )


def seed_cache(seed: Path, cache: Path) -> Seeded:
    """Clone what `seed` has into `cache`, where that is empty or not there yet.

    Nothing is raised for it: an install works without.
    """
    started = time.monotonic()
    if sys.platform == "win32" or sys.platform == "darwin":
        return _no("a cache is cloned on Linux alone")
    if not os.path.isdir(seed):
        return _no(f"{shown_path(seed)} is no folder that can be looked into")
    seed = seed.absolute()
    stage = cache.with_name(f"{_STAGE}{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        # Before the walk below, which takes a while: it is so at each start but the first.
        if cache.exists() and any(cache.iterdir()):
            return _no(f"{shown_path(cache)} is in use already")
        # Of who fills it, and read-only to all others: whatever is in it will be run.
        if problem := path_problem(seed) or tree_problem(seed, links=True, left_out=_LEFT_OUT):
            return _no(f"others can change what lies in {shown_path(seed)}: {problem}")
        cache.parent.mkdir(parents=True, exist_ok=True)
        for left in cache.parent.glob(f"{_STAGE}*"):
            # Of one that was killed; by its age, as another host may be at it in a shared home.
            with contextlib.suppress(OSError):
                if time.time() - left.lstat().st_mtime > _LEFT_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
        stage.mkdir(mode=0o700)
        files = _clone_tree(str(seed), str(stage))
        with contextlib.suppress(FileNotFoundError):
            cache.rmdir()
        stage.rename(cache)
    except OSError as error:
        return _no(_why(error, seed, cache))
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    seconds = time.monotonic() - started
    return Seeded(
        cloned=True,
        reason=f"Cloned {files} files of {shown_path(seed)} in {seconds:.1f} s",
        files=files,
        seconds=seconds,
    )


def _no(reason: str) -> Seeded:
    return Seeded(cloned=False, reason=f"Nothing was cloned: {reason}")


def _why(error: OSError, seed: Path, cache: Path) -> str:
    if error.errno == errno.EXDEV:
        return f"{shown_path(seed)} and {shown_path(cache)} lie on two file systems"
    if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS):
        return "the file system shares no blocks between files (XFS and btrfs do)"
    return f"{error.filename or cache}: {error.strerror}"


def _clone_tree(source: str, goal: str) -> int:
    """Clone every file below `source`; the first one that can't be ends it."""
    count = 0
    waiting = [(source, goal)]
    while waiting:
        here, there = waiting.pop()
        with os.scandir(here) as found:
            for entry in found:
                if _LEFT_OUT.fullmatch(entry.path[len(source) + 1 :]):
                    continue
                target = os.path.join(there, entry.name)
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    os.mkdir(target, 0o700)  # noqa: PTH102
                    waiting.append((entry.path, target))
                elif stat.S_ISLNK(mode) and stays_inside(source, entry.path):
                    os.symlink(os.readlink(entry.path), target)
                elif stat.S_ISREG(mode):
                    _clone(entry.path, target, mode)
                    count += 1
    return count


def _clone(source: str, goal: str, mode: int) -> None:
    if sys.platform == "win32":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), goal)
    import fcntl

    reading = os.open(source, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        # The user's own, who may change it: uv sets times and modes of what it links.
        writing = os.open(goal, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 | mode & 0o111)
        try:
            # An empty file has no blocks, and XFS takes none for a clone.
            if os.fstat(reading).st_size:
                fcntl.ioctl(writing, _FICLONE, reading)
            status = os.fstat(reading)
            os.utime(writing, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(writing)
    finally:
        os.close(reading)
