"""What an install says while it runs: events, and the parser of uv's progress bars."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from packaging.utils import canonicalize_name

__all__ = ["BarReader", "Bytes", "Event", "OnEvent", "Phase", "format_bytes", "guarded"]

logger = logging.getLogger(__name__)

Phase = Literal[
    "resolve",
    "download",
    "unpack",
    "link",
    "switch",
    "check",
    "verify",
    "restore",
    "wait",
    "done",
]
"""In their order; `restore` puts back, and `wait` tells what another install is at."""


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
    count: tuple[int, int] | None = None
    """(done, all) of the packages, as uv counts those that it has unpacked or linked."""
    log: str = ""
    """A line of uv's own words."""


OnEvent = Callable[[Event], None]


def guarded(on_event: OnEvent | None) -> OnEvent:
    """Return a listener whose failure is logged: a view that fails must not stop an install."""

    def tell(event: Event) -> None:
        if on_event is None:
            return
        try:
            on_event(event)
        except Exception:
            logger.exception("a listener failed at %s", event)

    return tell


def format_bytes(count: float) -> str:
    """Return a size in decimal units, as disks and networks are sold: `191.8 MB`.

    >>> format_bytes(191794682)
    '191.8 MB'
    """
    if count < 1000:
        return f"{count:.0f} B"
    # Rounded before it is compared: 999.96 MB is 1.0 GB, not 1000.0 MB.
    if round(count / 1e3) < 1000:
        return f"{count / 1e3:.0f} kB"
    if round(count / 1e6, 1) < 1000:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e9:.1f} GB"


def _format_seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


# Seen on a pty with TERM=xterm in uv 0.9.5, 0.12.10 and 0.13.9:
#   torch                ------------------------------ 2.87 MiB/182.91 MiB
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_CUT_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*)?$")
# A frame begins with its headline. After a broken download the frames have two bars of one name,
# the new one first; the old one stays where it was until all is done.
_BAR = re.compile(
    r"(?P<headline>Preparing packages\.\.\.)|([A-Za-z0-9][\w.-]*)\s+-{30}\s+"
    r"([\d.]+) ?(B|KiB|MiB|GiB)/([\d.]+) ?(B|KiB|MiB|GiB)"
)
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# indicatif redraws every active bar about twenty times a second: one that is not drawn while
# others are has ended, though its last frame may have said 99 %.
_GONE_SECONDS = 0.5
_RATE_SECONDS = 5.0
# A name of 20 characters and a bar with its numbers take 80; what is older can't be half a bar.
_LONGEST_BAR = 200


@dataclass(slots=True)
class BarReader:
    """Turns what uv draws on a pseudo-terminal into `Bytes`.

    Feed it the raw text as it comes; it keeps the tail that may be half a frame.
    """

    expected: Mapping[str, int] = field(default_factory=dict)
    """Normalized name to size in bytes of what will be fetched, as far as known: so the total
    stands from the first frame on. What uv draws beside it is counted too."""
    clock: Callable[[], float] = time.monotonic
    _tail: str = ""
    _frame: set[str] = field(default_factory=set)
    _broken_off: set[tuple[str, str, str]] = field(default_factory=set)
    _bars: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    _samples: list[tuple[float, int]] = field(default_factory=list)

    def feed(self, text: str) -> Bytes | None:
        """Return how far all downloads are after `text`, or None where it drew no bar."""
        now = self.clock()
        raw = self._tail + text
        cut = _CUT_ESCAPE.search(raw)
        whole, rest = (raw[: cut.start()], raw[cut.start() :]) if cut else (raw, "")
        content = _ESCAPE.sub("", whole)
        end = 0
        drawn = False
        for match in _BAR.finditer(content):
            end = match.end()
            if match["headline"]:
                self._frame.clear()
                continue
            name = canonicalize_name(match[2])
            shown = int(float(match[5]) * _UNITS[match[6]])
            if name in self._frame:
                self._broken_off.add((name, match[3], match[4]))
            # The first frame of a download says 0/0.
            if not shown or (name, match[3], match[4]) in self._broken_off:
                continue
            drawn = True
            self._frame.add(name)
            total = self.expected.get(name, shown)
            done = int(float(match[3]) * _UNITS[match[4]])
            self._bars[name] = (total if done >= shown else min(done, total), total, now)
        self._tail = content[max(end, len(content) - _LONGEST_BAR) :] + rest
        return self._bytes(now) if drawn else None

    def finish(self) -> Bytes | None:
        """Return the end of all downloads, once uv has said that they are prepared."""
        names = {**self.expected, **{name: total for name, (_, total, _) in self._bars.items()}}
        if not names:
            return None
        now = self.clock()
        self._bars = {name: (total, total, now) for name, total in names.items()}
        return self._bytes(now)

    def _bytes(self, now: float) -> Bytes:
        packages = []
        for name, (done, total, seen) in self._bars.items():
            ended = now - seen > _GONE_SECONDS
            packages.append((name, total if ended else done, total))
        waiting = sum(size for name, size in self.expected.items() if name not in self._bars)
        done = sum(package[1] for package in packages)
        return Bytes(
            done=done,
            total=sum(package[2] for package in packages) + waiting,
            per_second=self._rate(now, done),
            packages=tuple(
                sorted((p for p in packages if p[1] < p[2]), key=lambda p: p[2], reverse=True)
            ),
        )

    def _rate(self, now: float, done: int) -> float | None:
        if self._samples and done < self._samples[-1][1]:
            # uv starts a broken download again from nothing: the rate is not known for a while.
            self._samples.clear()
        self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[0][0] > _RATE_SECONDS:
            self._samples.pop(0)
        start, before = self._samples[0]
        return (done - before) / (now - start) if now - start > 1 and done > before else None
