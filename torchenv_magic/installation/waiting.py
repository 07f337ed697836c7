"""Who works on an environment tells how far it is, and who waits for it hears that."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torchenv_magic.environment import Environment
from torchenv_magic.installation.locking import Holder, locked
from torchenv_magic.installation.progress import Event, OnEvent, guarded
from torchenv_magic.installation.uv import Cancellation
from torchenv_magic.serialization import from_json, to_json
from torchenv_magic.state import read_state, state_directory, write_state

__all__ = ["Hold", "holding", "read_progress", "wait_for_others"]

_TELL_SECONDS = 0.5
_LARGEST = 100_000


@dataclass(frozen=True, slots=True)
class Hold:
    """The lock of an environment, while it is held."""

    tell: OnEvent
    """Tells whoever listens here, and whoever waits elsewhere."""
    check: Callable[[], None]
    """Raises BusyError where the lock was lost."""


@contextlib.contextmanager
def holding(
    environment: Environment,
    *,
    command: str,
    on_event: OnEvent,
    cancellation: Cancellation,
    wait: bool = False,
) -> Iterator[Hold]:
    """Hold the environment's lock; `wait` for it, and tell what its holder does meanwhile.

    Raises
    ------
    BusyError
        Another holds it, and `wait` is false.
    InstallCancelled
        The wait was cancelled. The other goes on.
    TargetError
        The environment can't be written.
    """
    relay = _Relay(environment.prefix, on_event)

    def on_busy(holder: Holder | None) -> None:
        cancellation.raise_if_requested()
        if wait:
            relay.look(holder)

    seconds = float("inf") if wait else 0.0
    with locked(environment, command=command, wait_seconds=seconds, on_busy=on_busy) as check:
        reporter = _Reporter(_path(environment.prefix), on_event)
        reporter.end()  # what one that was killed has left
        try:
            yield Hold(reporter, check)
        finally:
            reporter.end()


def wait_for_others(
    environment: Environment, *, on_event: OnEvent | None, cancellation: Cancellation
) -> bool:
    """Wait until nobody works on the environment; return whether somebody did.

    Raises
    ------
    InstallCancelled
        The wait was cancelled. The other goes on.
    TargetError
        The environment can't be written.
    """
    # Looking for the lock would make the folder, and a plan is to change nothing.
    if not environment.writable or not state_directory(environment.prefix).exists():
        return False
    waited = False

    def tell(event: Event) -> None:
        nonlocal waited
        waited = True
        guarded(on_event)(event)

    with holding(environment, command="", on_event=tell, cancellation=cancellation, wait=True):
        return waited


def read_progress(prefix: Path) -> Event | None:
    """Return how far the install is that works on the environment at `prefix`, if one does."""
    try:
        event = from_json(Event, json.loads(read_state(_path(prefix), largest=_LARGEST)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    names = [name for name, _, _ in event.bytes.packages] if event.bytes else []
    return event if all(text.isprintable() for text in [event.message, *names]) else None


def _path(prefix: Path) -> Path:
    return state_directory(prefix) / "progress.json"


class _Reporter:
    """Passes events on, and writes the last one down, twice a second at most."""

    def __init__(self, path: Path, on_event: OnEvent) -> None:
        self._path = path
        self._on_event = on_event
        self._last = Event(phase="resolve")
        self._written = 0.0

    def __call__(self, event: Event) -> None:
        self._on_event(event)
        if not (event.message or event.bytes or event.count):
            return
        message = event.message or self._last.message
        new = bool(event.message) or event.phase != self._last.phase
        self._last = replace(event, message=message, log="")
        now = time.monotonic()
        if new or now - self._written >= _TELL_SECONDS:
            self._written = now
            # Who waits is no reason to fail.
            with contextlib.suppress(OSError):
                content = json.dumps(to_json(self._last)).encode("ascii")
                write_state(self._path, content, lasting=False)

    def end(self) -> None:
        """Leave nothing to read: whoever holds the lock next begins anew."""
        with contextlib.suppress(OSError):
            self._path.unlink()


class _Relay:
    """Tells what another is at, each time that it has something new."""

    def __init__(self, prefix: Path, on_event: OnEvent) -> None:
        self._prefix = prefix
        self._on_event = on_event
        self._told: Event | None = None

    def look(self, holder: Holder | None) -> None:
        """Tell it once more where it has changed."""
        who = str(holder) if holder else "Another install"
        who = who[0].upper() + who[1:]
        theirs = read_progress(self._prefix)
        doing = f": {theirs.message}" if theirs and theirs.message else ""
        event = Event(
            phase="wait",
            message=f"{who} works on this environment{doing}. This one goes on when it has ended.",
            bytes=theirs.bytes if theirs else None,
            count=theirs.count if theirs else None,
        )
        if event != self._told:
            self._told = event
            self._on_event(event)
