"""Whether anybody else can write what many are to share.

Who can write a file that another imports runs code as that other. Neither a hash nor a lock helps:
both are checked once, and the file is read each day. So what is shared belongs to root, or to who
uses it, with every folder on the way to it.
"""

# Strings, as a layer has tens of thousands of files.
# ruff: noqa: PTH109, PTH115, PTH117, PTH118, PTH120, PTH206

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

__all__ = ["path_problem", "problem_of_status", "stays_inside", "tree_problem"]

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_MOST_LINKS = 40


def path_problem(path: Path, *, user: int | None = None) -> str:
    """Return who else can write `path` or a folder on the way to it, as half a sentence.

    Links on the way are followed one by one, as each lies in a folder that somebody may write. A
    folder where each may remove their own only (`/tmp`) is no problem on the way: what is there
    stays.

    Parameters
    ----------
    user
        Who is going to use it; None for who runs this.
    """
    user = _user() if user is None else user
    parts = _backwards(os.path.join(os.getcwd(), path))
    here, links = os.sep, 0
    try:
        while True:
            status = os.lstat(here)
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if links > _MOST_LINKS:
                    return f"{path} leads in a circle"
                if status.st_uid not in (0, user):
                    return f"{here} is a link of user {status.st_uid}"
                goal = os.readlink(here)
                parts += _backwards(goal)
                here = os.sep if goal.startswith(os.sep) else os.path.dirname(here)
                continue
            if problem := problem_of_status(here, status, user=user, on_the_way=bool(parts)):
                return problem
            if not parts:
                return ""
            part = parts.pop()
            # After the links before it were followed, `..` is the folder above.
            here = os.path.dirname(here) if part == ".." else os.path.join(here, part)
    except OSError as error:
        return f"{here} can't be looked at: {error.strerror}"


def _backwards(path: str) -> list[str]:
    return [part for part in reversed(path.split(os.sep)) if part not in ("", ".")]


def problem_of_status(
    path: str, status: os.stat_result, *, user: int, on_the_way: bool = False
) -> str:
    """Return who else can write what has that status; empty where nobody can."""
    if status.st_uid not in (0, user):
        return f"{path} belongs to user {status.st_uid}, who can write it"
    if status.st_mode & _OTHERS_WRITE and not (on_the_way and status.st_mode & stat.S_ISVTX):
        who = "everybody" if status.st_mode & stat.S_IWOTH else "its group"
        return f"{who} can write {path}"
    return ""


def tree_problem(
    root: Path,
    *,
    user: int | None = None,
    files: bool = True,
    links: bool = False,
    left_out: re.Pattern[str] | None = None,
) -> str:
    """Return who else can write something below `root`; a link in it is a problem, too.

    Parameters
    ----------
    files
        False looks at the folders alone, in a third of the time: in one that only its owner can
        write, a file is what its owner made it, and a layer is built with files that nobody writes.
    links
        True lets links be that stay inside, as uv's cache has some.
    left_out
        Paths below `root` that nothing is taken of, so that they don't matter.
    """
    user = _user() if user is None else user
    waiting, length = [str(root)], len(str(root)) + 1
    try:
        while waiting:
            with os.scandir(waiting.pop()) as found:
                for entry in found:
                    if left_out is not None and left_out.fullmatch(entry.path[length:]):
                        continue
                    if not files and not entry.is_symlink() and entry.is_file():
                        continue
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISLNK(status.st_mode):
                        if links and stays_inside(str(root), entry.path):
                            continue
                        return f"{entry.path} is a link"
                    # Short-cut: a layer has tens of thousands, and all are in order.
                    if status.st_uid not in (0, user) or status.st_mode & _OTHERS_WRITE:
                        return problem_of_status(entry.path, status, user=user)
                    if stat.S_ISDIR(status.st_mode):
                        waiting.append(entry.path)
    except OSError as error:
        return f"{error.filename} can't be looked at: {error.strerror}"
    return ""


def stays_inside(root: str, link: str) -> bool:
    """Whether a link leads to something below `root`, wherever that lies."""
    goal = os.readlink(link)
    inside = os.path.normpath(os.path.join(os.path.dirname(link), goal))
    return not os.path.isabs(goal) and inside.startswith(root + os.sep)


def _user() -> int:
    # Windows has no such number; layers are refused there before this is asked.
    return os.getuid() if hasattr(os, "getuid") else 0
