"""What an install replaced, kept beside the environment's packages so that it can be undone.

```
site-packages/.torchenv-kept-ID/new   what was there, a tree of the environment's shape
.torchenv/undo.json                   which folder that is, and what has to be true to go back
```

It lies in the environment itself, where it came to by renames and goes back by renames: no cache,
no network, no second copy. One generation is kept; the commit of the next install lets it go.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from torchenv_magic.expectation import Expectation
from torchenv_magic.installation.history import Entry, is_printable
from torchenv_magic.serialization import from_json, to_json
from torchenv_magic.state import make_state_directory, read_state, state_directory, write_state

__all__ = [
    "KEPT",
    "Kept",
    "is_kept_name",
    "is_written",
    "kept_folders",
    "let_go",
    "read_kept",
    "room_problem",
    "write_kept",
]

logger = logging.getLogger(__name__)

KEPT = ".torchenv-kept-"
_SCHEMA = 1
_LARGEST = 5_000_000
_FREE_SHARE = 0.1
"""What of a disk has to stay free for what was replaced to be kept on it."""

_WORTH_BYTES = 20_000_000
"""What has to be won for an install that can be undone to become one that can't."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is known of the last install, to go back to what was before."""

    folder: str
    """Its name in the folder of packages; empty where nothing was replaced."""
    entry: Entry
    """The install that can be undone."""
    left: tuple[tuple[str, str], ...]
    """(normalized name, hash of its RECORD) of each package that the install brought."""
    held: tuple[tuple[str, str], ...]
    """The same of each package that is kept."""
    expectation: Expectation | None
    """What was asked for before."""
    problem: str = ""
    """Why it can't be undone, where it can't: half a sentence."""
    schema: int = _SCHEMA


def _path(prefix: Path) -> Path:
    return state_directory(prefix) / "undo.json"


def is_kept_name(name: str) -> bool:
    """Whether a folder may be one that holds what is kept."""
    return re.fullmatch(rf"{re.escape(KEPT)}[0-9a-f]{{8}}", name) is not None


def kept_folders(site: Path) -> tuple[Path, ...]:
    """Return every folder with something kept: one, or two where an install was killed."""
    return tuple(path for path in site.glob(f"{KEPT}*") if is_kept_name(path.name))


def is_written(prefix: Path) -> bool:
    """Whether something says what is kept, readable or not."""
    return os.path.lexists(_path(prefix))


def read_kept(prefix: Path) -> Kept | None:
    """Return what is kept in the environment at `prefix`, None where nothing readable says so."""
    path = _path(prefix)
    try:
        content = read_state(path, largest=_LARGEST)
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s can't be read: %s", path, error.strerror)
        return None
    try:
        kept = from_json(Kept, json.loads(content))
    except (ValueError, TypeError, RecursionError) as error:
        logger.warning("%s is not what this version writes: %r", path, error)
        return None
    named = not kept.folder or is_kept_name(kept.folder)
    if kept.schema != _SCHEMA or not named or not is_printable(kept.entry):
        logger.warning("%s is not what this version writes", path)
        return None
    return kept


def write_kept(prefix: Path, kept: Kept) -> None:
    """Say what is kept.

    Raises
    ------
    OSError
    """
    make_state_directory(prefix)
    # Of no weight for what is installed, so nobody waits for the disk.
    write_state(_path(prefix), json.dumps(to_json(kept)).encode("ascii"), lasting=False)


def room_problem(site: Path, paths: Iterable[str]) -> str:
    """Return why what lies at `paths` costs too much to be kept; empty where it doesn't.

    What uv linked from its cache takes no room of its own. What it copied does, and is kept where
    as much as it takes, or a tenth of the disk, stays free.
    """
    usage = shutil.disk_usage(site)
    if usage.free >= usage.total * _FREE_SHARE:
        return ""
    if sum(map(_own_bytes, paths)) <= usage.free:
        return ""
    return "what it replaced was not kept, as the disk is nearly full"


def let_go(prefix: Path, site: Path) -> bool:
    """Delete what is kept, for the room that it takes; return whether that made any.

    Use it under `locked`.
    """
    kept = read_kept(prefix)
    folder = site / kept.folder if kept is not None and kept.folder else None
    if kept is None or folder is None or _own_bytes(str(folder / "new")) < _WORTH_BYTES:
        return False
    write_kept(prefix, replace(kept, folder="", problem="the room of what it replaced was needed"))
    shutil.rmtree(folder, ignore_errors=True)
    return True


def _own_bytes(path: str) -> int:
    """Return the bytes at `path` that nothing else holds."""
    try:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            return status.st_size if status.st_nlink == 1 else 0
        with os.scandir(path) as entries:
            return sum(_own_bytes(entry.path) for entry in entries)
    except OSError:
        return 0
