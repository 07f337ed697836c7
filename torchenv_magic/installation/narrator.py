"""Tell what uv is at while it fetches, unpacks and links: its own text in, events out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torchenv_magic.installation.progress import (
    BarReader,
    Bytes,
    Event,
    OnEvent,
    Phase,
    format_bytes,
    format_seconds,
)
from torchenv_magic.installation.uv import Lines

__all__ = ["Narrator", "Silence", "http_timeout", "resolved"]

_SILENT_SECONDS = 20.0
_UV_TIMEOUT_SECONDS = 30
_RESOLVED = re.compile(r"\bResolved \d+ packages?\b")
_PREPARED = re.compile(r"Prepared \d+ packages?\b")


def http_timeout(environ: Mapping[str, str]) -> int:
    """Return after how many seconds without a byte uv gives a connection up and tries again."""
    for name in ("UV_HTTP_TIMEOUT", "UV_REQUEST_TIMEOUT", "HTTP_TIMEOUT"):
        if (text := environ.get(name, "").strip()).isdigit():
            return int(text)
    return _UV_TIMEOUT_SECONDS


def resolved(text: str) -> str:
    """Return what uv said of its resolution, without its time; empty where it resolved nothing."""
    match = _RESOLVED.search(text)
    return match[0] if match else ""


@dataclass(slots=True)
class Silence:
    """Notices that no byte has come for long, and that they come again."""

    retry_seconds: int = _UV_TIMEOUT_SECONDS
    """After how many seconds without a byte the connection is given up and tried again."""
    after_seconds: float = _SILENT_SECONDS
    """How long a silence is before it is told."""
    who: str = "uv"
    clock: Callable[[], float] = time.monotonic
    _done: int = 0
    _since: float | None = None
    _told: bool = False

    def look(self, done: int) -> tuple[int, str]:
        """Return how many seconds of silence to show, and a sentence where it began or ended."""
        now = self.clock()
        if self._since is None:
            self._since = now
        seconds = now - self._since
        if done != self._done:
            # Fewer than before is a new connection, and that has spoken too.
            told, self._done, self._since, self._told = self._told, done, now, False
            if not told:
                return 0, ""
            return 0, f"Downloading again, after {format_seconds(seconds)} without data"
        if seconds < self.after_seconds:
            return 0, ""
        if self._told:
            return int(seconds), ""
        self._told = True
        return int(seconds), (
            f"No data for {format_seconds(seconds)}; {self.who} tries again after "
            f"{format_seconds(self.retry_seconds)} without any"
        )

    def forget(self) -> None:
        """Begin anew: what was silent has ended, and nothing of it is told any more."""
        self._since, self._told = None, False


class Narrator:
    """Turns uv's text into events: each phase once as a sentence, then in numbers.

    Nothing is told that uv did not speak of: where it draws no bars there are no bytes between the
    beginning of a file and its end.
    """

    def __init__(
        self, bars: BarReader, on_event: OnEvent, *, linking: str, silence: Silence | None = None
    ) -> None:
        self._bars = bars
        self._on_event = on_event
        self._linking = linking
        self._silence = silence or Silence(clock=bars.clock)
        self._phase: Phase = "link"
        self._count: tuple[int, int] | None = None
        self._done = 0
        self._lines = Lines(self._take_line)

    def begin(self, phase: Phase, message: str) -> None:
        """Tell that a phase has begun."""
        self._phase = phase
        self._count = None
        self._on_event(Event(phase=phase, message=message))

    def feed(self, text: str) -> None:
        """Take what uv said, words or drawings, as it came."""
        progress = self._bars.feed(text)
        self._lines.feed(text)
        if progress is not None and self._phase == "unpack" and progress.done < progress.total:
            # All of it had come, and then the hash was wrong.
            self._phase = "download"
        if self._phase != "link" and self._bars.linked is not None:
            self._tell_prepared()
        elif self._phase == "download":
            self._tell_bytes(progress)
        self._tell_count()

    def _take_line(self, line: str) -> None:
        self._on_event(Event(phase=self._phase, log=line))
        if self._phase == "download" and (progress := self._bars.take_line(line)) is not None:
            self._on_event(Event(phase="download", bytes=progress))
        # What is left of the bar of a broken download may stand before it.
        if self._phase != "link" and _PREPARED.search(line):
            self._tell_prepared()

    def _tell_bytes(self, progress: Bytes | None) -> None:
        now = progress or self._bars.state()
        broken = self._bars.restarted
        if broken is not None and now.done < self._done:
            self._bars.restarted = None
            message = f"The connection broke; uv fetches {broken} again from its beginning"
            self._on_event(Event(phase="download", message=message, bytes=now))
        self._done = now.done
        seconds, message = self._silence.look(now.done)
        if seconds:
            now = replace(now, per_second=None, silent_seconds=seconds)
        if progress is not None or seconds or message:
            event = Event(phase="download", message=message, bytes=now, count=self._bars.ready)
            self._on_event(event)
        if 0 < now.total <= now.done and not now.unknown:
            self._tell_downloaded(now)

    def _tell_downloaded(self, progress: Bytes | None) -> None:
        message = f"Downloaded {format_bytes(progress.total)}" if progress else "Downloaded"
        self._on_event(Event(phase="download", message=message, bytes=progress))
        self._silence.forget()
        self.begin("unpack", "Unpacking")

    def _tell_prepared(self) -> None:
        if self._phase == "download":
            self._tell_downloaded(self._bars.finish())
        if self._bars.ready is not None:
            # The last frame is drawn over before it says so.
            self._bars.ready = (self._bars.ready[1], self._bars.ready[1])
        self._tell_count()
        self.begin("link", self._linking)

    def _tell_count(self) -> None:
        count = {"unpack": self._bars.ready, "link": self._bars.linked}.get(self._phase)
        # The first frames count none of none.
        if count is not None and count[1] and count != self._count:
            self._count = count
            self._on_event(Event(phase=self._phase, count=count))
