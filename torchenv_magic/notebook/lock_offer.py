"""What the picker says of the lock in its notebook: it offers it, or says why not.

The picker is to be there at once, and a notebook can have megabytes of outputs: of a saved notebook
only its end is parsed, where every front end writes the notebook's own metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.utils import canonicalize_name

from torchenv_magic.builds.backend import Backend
from torchenv_magic.demand import parse_requirement
from torchenv_magic.environment import Environment
from torchenv_magic.errors import LockError, TorchEnvError
from torchenv_magic.notebook.cells import LARGEST_NOTEBOOK_BYTES
from torchenv_magic.project.lock import (
    METADATA_KEY,
    LockedBackend,
    LockedPackage,
    NotebookLock,
    read_lock,
)
from torchenv_magic.status import Status, status_for

__all__ = ["LockOffer", "offer_for", "read_lock_offer", "read_saved_metadata"]

_METADATA = '"metadata"'
_KEY = f'"{METADATA_KEY}"'.encode()
# A lock may hold the word itself, in what a stranger has written.
_MOST_LOOKS = 5
_NAMED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOffer:
    """A notebook's lock, as it concerns this environment."""

    stage: Literal["open", "met", "closed"]
    """Whether it can be restored here, is what is here already, or can't be."""
    lock: NotebookLock | None = None
    """None for one that is not to be read."""
    backend: Backend | None = None
    """The build that it is, or would be, here."""
    error: TorchEnvError | None = None
    """Why it can't be, with the nearest to it as its hint."""

    @property
    def title(self) -> str:
        """What the lock is: `torch 2.13.0, for cu126, cpu and 4 more`."""
        if self.lock is None:
            return ""
        names = [str(self.lock.ran)]
        names += [str(each.backend) for each in self.lock.backends if str(each.backend) != names[0]]
        shown, rest = names[:_NAMED], len(names) - _NAMED
        listed = f"{', '.join(shown)} and {rest} more" if rest > 0 else " and ".join(shown)
        return f"torch {self.lock.torch}, for {listed}"

    def brings(self, environment: Environment) -> tuple[LockedPackage, ...]:
        """Return what is not in the environment as it is locked; what was asked for first."""
        locked = self.lock.of(self.backend) if self.lock and self.backend else None
        if self.lock is None or locked is None:
            return ()
        there = {package.name: package.version for package in environment.packages}
        asked = [
            canonicalize_name(parse_requirement(text, trusted=False).name)
            for text in self.lock.asked.requirements
        ]
        missing = [each for each in locked.packages if there.get(each.name) != each.version]
        return tuple(sorted(missing, key=lambda each: (each.name not in asked, each.name)))


def read_lock_offer(notebook: Path | None, status: Status) -> LockOffer | None:
    """Return what there is to say of the lock in the saved notebook; None where it has none."""
    metadata = read_saved_metadata(notebook)
    if metadata is None:
        return None
    try:
        lock = read_lock(metadata)
    except LockError as error:
        return LockOffer(stage="closed", error=error)
    return None if lock is None else offer_for(lock, status)


def offer_for(lock: NotebookLock, status: Status) -> LockOffer:
    """Decide what is to be said of `lock` here."""
    # Only a notebook that has a lock waits for what restores it to be imported.
    from torchenv_magic.project.restoring import choose_locked, restore_request

    try:
        chosen = choose_locked(lock, status_for(restore_request(lock), status))
    except TorchEnvError as error:
        return LockOffer(stage="closed", lock=lock, error=error)
    # One that somebody has restored by its name is not offered another way.
    for locked in (chosen, *lock.backends):
        if _is_here(locked, status.environment):
            return LockOffer(stage="met", lock=lock, backend=locked.backend)
    return LockOffer(stage="open", lock=lock, backend=chosen.backend)


def _is_here(locked: LockedBackend, environment: Environment) -> bool:
    there = {package.name: package.version for package in environment.packages}
    return all(there.get(name) == version for name, version in locked.pins.items())


def read_saved_metadata(notebook: Path | None) -> dict[str, Any] | None:
    """Return the notebook's own metadata where a lock is in it; None for every other file."""
    if notebook is None:
        return None
    try:
        if not notebook.is_file():
            return None
        # Read through one handle: a size asked by name could be another file's by then.
        with notebook.open("rb") as file:
            content = file.read(LARGEST_NOTEBOOK_BYTES + 1)
        if len(content) > LARGEST_NOTEBOOK_BYTES or _KEY not in content:
            return None
        text = content.decode("utf-8-sig")
    except (OSError, ValueError):
        return None
    for data in _parsed(text):
        if isinstance(data, dict) and isinstance(data.get("metadata"), dict):
            metadata: dict[str, Any] = data["metadata"]
            return metadata if METADATA_KEY in metadata else None
    return None


def _parsed(text: str) -> Iterator[object]:
    """Parse the end of a notebook from its metadata on; where that is no such end, all of it.

    What follows a key up to the end of the text is an object, with a brace put before it, only
    where that key is one of the notebook itself: a deeper one would leave braces over. Within a
    text of JSON the mark would have a backslash before its second quotation mark.
    """
    end = len(text)
    for _ in range(_MOST_LOOKS):
        end = text.rfind(_METADATA, 0, end)
        if end < 0:
            break
        try:
            yield json.loads("{" + text[end:])
        except (ValueError, RecursionError):
            continue
    try:
        yield json.loads(text)
    except (ValueError, RecursionError):
        return
