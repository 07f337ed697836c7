"""What was done to an environment: when, by which line, and how it ended."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from torchenv_magic.installation.locking import user_name
from torchenv_magic.installation.plan import Change, by_importance
from torchenv_magic.serialization import from_json, to_json
from torchenv_magic.state import make_state_directory, read_state, state_directory, write_state
from torchenv_magic.web import without_login

__all__ = [
    "Entry",
    "History",
    "Outcome",
    "add_entry",
    "asked",
    "is_printable",
    "new_entry",
    "read_entries",
    "recovered",
    "took",
    "when",
]

logger = logging.getLogger(__name__)

Outcome = Literal["installed", "undone", "recovered-forward", "recovered-back"]

_KEPT = 100
_LARGEST = 2_000_000
"""Bytes. A hundred switches of a build with all its libraries have a third of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One change of an environment."""

    id: str
    when: str
    """In UTC, as ISO 8601 writes it: `2026-11-23T03:30:12+00:00`."""
    command: str
    """The line that asked for it; empty where it came from Python."""
    user: str
    backend: str = ""
    torch: str | None = None
    """The version that is there afterwards, None where none is."""
    source: str = ""
    """Where the wheels came from."""
    changes: tuple[Change, ...] = ()
    seconds: float | None = None
    """None where it was interrupted, and ended by who came next."""
    outcome: Outcome = "installed"

    @property
    def title(self) -> str:
        """What happened, in a few words: `installed torch 2.13.0+cu126 and 3 more packages`."""
        if not self.changes:
            return "changed nothing"
        first = by_importance(self.changes)[0]
        more = len(self.changes) - 1
        others = f" and {more} more package{'' if more == 1 else 's'}" if more else ""
        text = f"{first.name} {first.after or first.before}{others}"
        if self.outcome == "undone":
            return f"undone: {text} {'are' if more else 'is'} {'back' if first.after else 'gone'}"
        verb = "installed" if first.after else "removed"
        return {
            "installed": f"{verb} {text}",
            "recovered-forward": f"{verb} {text}, interrupted at its end",
            "recovered-back": f"{text}: interrupted, and put back",
        }[self.outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What was done to an environment, the latest first."""

    prefix: Path
    entries: tuple[Entry, ...]
    undo: str = ""
    """What `undo` would do, or why it can't; empty where there was nothing to undo."""

    def __str__(self) -> str:
        if not self.entries:
            return f"Nothing was installed into {self.prefix} by torchenv yet."
        rows = [("when (UTC)", "what", "took", "by")]
        rows += [(when(entry), entry.title, took(entry), asked(entry)) for entry in self.entries]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]}"
            for row in rows
        ]
        return "\n".join([*lines, *([self.undo] if self.undo else [])])


def when(entry: Entry) -> str:
    """Return the minute of an entry, for a table."""
    return entry.when[:16].replace("T", " ")


def took(entry: Entry) -> str:
    """Return how long it took, for a table."""
    return "" if entry.seconds is None else f"{entry.seconds:.1f} s"


def asked(entry: Entry) -> str:
    """Return who asked for it by which line, for a table."""
    return f"{entry.command or 'Python'}{f' ({entry.user})' if entry.user else ''}"


def new_entry(
    *,
    identity: str,
    command: str,
    backend: str,
    torch: str | None,
    source: str,
    changes: Iterable[Change],
    outcome: Outcome = "installed",
) -> Entry:
    """Return the entry of a change that begins now."""
    return Entry(
        id=identity,
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=_shown(command),
        user=_shown(user_name()),
        backend=backend,
        torch=torch,
        source=_shown(source),
        changes=tuple(changes),
        outcome=outcome,
    )


def _shown(text: str) -> str:
    return without_login("".join(filter(str.isprintable, text)))[:500]


def is_printable(entry: Entry) -> bool:
    """Whether an entry's texts can be shown: a control character acts in a terminal."""
    texts = [entry.id, entry.when, entry.command, entry.user, entry.backend, entry.source]
    texts.append(entry.torch or "")
    for change in entry.changes:
        texts += [change.name, change.before or "", change.after or ""]
    return all(text.isprintable() for text in texts)


def _path(prefix: Path) -> Path:
    return state_directory(prefix) / "history.jsonl"


def read_entries(prefix: Path) -> tuple[Entry, ...]:
    """Return what was done to the environment at `prefix`, the oldest first.

    A line that is none is left out: a newer version wrote it, or nobody did.
    """
    try:
        content = read_state(_path(prefix), largest=_LARGEST)
    except FileNotFoundError:
        return ()
    except OSError as error:
        logger.warning("%s can't be read: %s", _path(prefix), error.strerror)
        return ()
    entries = []
    for line in content[-_LARGEST:].splitlines():
        try:
            entry = from_json(Entry, json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            logger.info("a line of %s is left out: %r", _path(prefix), error)
            continue
        if is_printable(entry):
            entries.append(entry)
    return tuple(entries[-_KEPT:])


def add_entry(prefix: Path, entry: Entry) -> None:
    """Write down what was done, once however often it is said. Use it under `locked`.

    Raises
    ------
    OSError
    """
    make_state_directory(prefix)
    try:
        content = read_state(_path(prefix), largest=_LARGEST)
    except FileNotFoundError:
        content = b""
    except OSError as error:
        # Another person's, of a group that shares the environment: theirs is not ours to replace.
        logger.warning("%s is left as it is: %s", _path(prefix), error.strerror)
        return
    # As they are, since what a newer version wrote is understood by that one.
    lines = [line for line in content.splitlines() if _identity(line) != entry.id]
    lines.append(json.dumps(to_json(entry)).encode("ascii"))
    content = b"".join(line + b"\n" for line in lines[-_KEPT:])
    write_state(_path(prefix), content, lasting=False)


def _identity(line: bytes) -> object:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return data.get("id") if isinstance(data, dict) else None


def recovered(entry: Entry, *, forward: bool) -> Entry:
    """Return the entry as one that was interrupted and ended by a later contact."""
    return replace(entry, outcome="recovered-forward" if forward else "recovered-back")
