"""What an install says while it runs: events, and the parser of uv's progress bars."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["BarReader", "Bytes", "Event", "OnEvent", "Phase", "format_bytes"]

Phase = Literal["resolve", "download", "switch", "check", "restore", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """How far the download is, in bytes, as uv's own bars say it."""

    done: int
    total: int
    per_second: float | None
    """Smoothed over the last seconds; None until there is something to smooth."""
    packages: tuple[tuple[str, int, int], ...] = ()
    """(name, done, total) of the packages that are being fetched, largest first."""

    def __str__(self) -> str:
        text = f"{format_bytes(self.done)} of {format_bytes(self.total)}"
        if self.per_second:
            text += f" · {format_bytes(self.per_second)}/s"
            left = (self.total - self.done) / self.per_second
            if left >= 1:
                text += f" · about {_format_seconds(left)} left"
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened: a phase that began, bytes that arrived, or a line of the log."""

    phase: Phase
    message: str = ""
    """A person's sentence; empty where only the log or the bytes have something new."""
    bytes: Bytes | None = None
    log: str = ""
    """A line of uv's own words."""


OnEvent = Callable[[Event], None]


def format_bytes(count: float) -> str:
    """Return a size in decimal units, as disks and networks are sold: `191.8 MB`.

    >>> format_bytes(191794682)
    '191.8 MB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            number = count / size
            return (
                f"{number:.0f} {unit}" if number >= 1000 or unit == "kB" else f"{number:.1f} {unit}"
            )
    return f"{count:.0f} B"


def _format_seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


# Seen on a pty with TERM=xterm in uv 0.9.5, 0.12.10 and 0.13.9:
#   torch                ------------------------------ 2.87 MiB/182.91 MiB
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BAR = re.compile(
    r"([A-Za-z0-9][\w.-]*)\s+-{30}\s+([\d.]+) ?(B|KiB|MiB|GiB)/([\d.]+) ?(B|KiB|MiB|GiB)"
)
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# indicatif redraws every active bar about twenty times a second: one that is not drawn any more
# has ended, though its last frame may have said 99 %.
_GONE_SECONDS = 0.5
_RATE_SECONDS = 5.0


@dataclass(slots=True)
class BarReader:
    """Turns what uv draws on a pseudo-terminal into `Bytes`.

    Feed it the raw text as it comes; it keeps the tail that may be half a frame.
    """

    clock: Callable[[], float] = time.monotonic
    _tail: str = ""
    _bars: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    _samples: list[tuple[float, int]] = field(default_factory=list)

    def feed(self, text: str) -> Bytes | None:
        """Return how far all downloads are after `text`, or None where it drew no bar."""
        now = self.clock()
        content = self._tail + _ESCAPE.sub("", text)
        end = 0
        for match in _BAR.finditer(content):
            total = int(float(match[4]) * _UNITS[match[5]])
            done = min(int(float(match[2]) * _UNITS[match[3]]), total)
            end = match.end()
            # The first frame of a download says 0/0.
            if total:
                self._bars[match[1]] = (done, total, now)
        # A bar is shorter than this; an escape sequence cut in two stays whole in the raw text.
        self._tail = content[max(end, len(content) - 200) :]
        if not end or not self._bars:
            return None
        return self._bytes(now)

    def finish(self) -> Bytes | None:
        """Return the end of all downloads, once uv has said that they are prepared."""
        if not self._bars:
            return None
        now = self.clock()
        self._bars = {name: (total, total, now) for name, (_, total, _) in self._bars.items()}
        return self._bytes(now)

    def _bytes(self, now: float) -> Bytes:
        packages = []
        for name, (done, total, seen) in self._bars.items():
            ended = now - seen > _GONE_SECONDS and done > 0.9 * total
            packages.append((name, total if ended else done, total))
        done = sum(package[1] for package in packages)
        self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[0][0] > _RATE_SECONDS:
            self._samples.pop(0)
        start, before = self._samples[0]
        # uv starts a broken download again from nothing: then the rate is not known for a while.
        if done < before:
            self._samples = [(now, done)]
        rate = (done - before) / (now - start) if now - start > 1 and done > before else None
        return Bytes(
            done=done,
            total=sum(package[2] for package in packages),
            per_second=rate,
            packages=tuple(
                sorted((p for p in packages if p[1] < p[2]), key=lambda p: p[2], reverse=True)
            ),
        )
