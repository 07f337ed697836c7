"""What an install says while it runs: events, and the parser of uv's progress bars."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from packaging.utils import canonicalize_name

__all__ = [
    "BarReader",
    "Bytes",
    "Event",
    "OnEvent",
    "Phase",
    "format_bytes",
    "format_seconds",
    "guarded",
]

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


_LARGE_BYTES = 20_000_000
_LARGE_ROWS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """How far the download is, in bytes, as uv itself says it."""

    done: int
    total: int
    """Of what has a size; see `unknown`."""
    per_second: float | None
    """Smoothed over the last seconds; None until there is something to smooth."""
    packages: tuple[tuple[str, int, int], ...] = ()
    """(name, done, total) of the packages that are being fetched, largest first."""
    unknown: int = 0
    """How many packages are still to come whose size nobody has told."""
    whole_files: bool = False
    """Whether uv only tells when a file is whole: it draws no bars where there is no terminal."""
    silent_seconds: int = 0
    """How long not one byte has come, once that is long enough to be told."""

    @property
    def large(self) -> tuple[tuple[str, int, int], ...]:
        """Those of `packages` that are worth a bar of their own beside that of the total."""
        large = tuple(p for p in self.packages if p[2] >= min(_LARGE_BYTES, self.total / 20))
        # One that is nearly all there is would be the same bar twice.
        alone = len(large) == 1 and self.total < large[0][2] * 1.05
        return () if alone else large[:_LARGE_ROWS]

    @property
    def seconds_left(self) -> float | None:
        """How long it takes at the present rate; None where that would be a guess."""
        if not self.per_second or self.unknown or self.silent_seconds:
            return None
        return (self.total - self.done) / self.per_second

    def __str__(self) -> str:
        text = f"{format_bytes(self.done)} of {format_bytes(self.total)}"
        if self.unknown:
            text += f" and {_count(self.unknown, 'package')} of unknown size"
        if self.whole_files:
            text += ", counted file by file"
        if self.silent_seconds:
            return f"{text} · no data for {self.silent_seconds} s"
        if self.per_second:
            text += f" · {format_bytes(self.per_second)}/s"
        if (left := self.seconds_left) is not None and left >= 1:
            text += f" · about {format_seconds(left)} left"
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened: a phase that began, bytes that arrived, or a line of the log."""

    phase: Phase
    message: str = ""
    """A person's sentence; empty where only the log or the bytes have something new."""
    bytes: Bytes | None = None
    count: tuple[int, int] | None = None
    """(done, all) of the packages: those that are ready in uv's cache while they are fetched and
    unpacked, then those that are linked."""
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


def format_seconds(seconds: float) -> str:
    """Return how long something takes, as exactly as anybody wants to know it: `8 s`, `3 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# Seen on a pty with TERM=xterm in uv 0.9.5, 0.12.10 and 0.13.9:
#   torch                ------------------------------ 2.87 MiB/182.91 MiB
#   ⠹ Preparing packages... (5/7)
#   ██░░░░░░░░░░░░░░░░░░ [1/7] filelock==3.20.0
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_CUT_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*)?$")
# A frame begins with its headline. After a broken download the frames have two bars of one name,
# the new one first; the old one stays where it was until all is done.
_DRAWN = re.compile(
    r"(?P<headline>Preparing packages\.\.\.) \((?P<ready>\d+)/(?P<of>\d+)\)"
    r"|[█░]{20} \[(?P<linked>\d+)/(?P<all>\d+)\]"
    r"|(?P<name>[A-Za-z0-9][\w.-]*)\s+-{30}\s+"
    r"(?P<done>[\d.]+ ?(?:B|KiB|MiB|GiB))/(?P<total>[\d.]+ ?(?:B|KiB|MiB|GiB))"
)
_SIZE = re.compile(r"([\d.]+) ?([A-Za-z]+)")
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# On a pipe uv says one line as a large file begins, and one when it is whole.
_WHOLE = re.compile(r"Downloaded (\S+)")
# indicatif draws every active bar in every frame, about twenty of them a second: one that a whole
# frame was drawn without has ended, though its last one may have said 99 %. Time alone proves
# nothing: uv, or who reads it here, may have had to wait for a processor.
_GONE_SECONDS = 0.5
_RATE_SECONDS = 5.0
# A name of 20 characters and a bar with its numbers take 80; what is older can't be half a bar.
_LONGEST_BAR = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bar:
    """A package's bar, as it was drawn last."""

    done: int
    total: int
    seen: float
    frame: int


def _size(text: str) -> int:
    number, unit = _SIZE.fullmatch(text).groups()  # type: ignore[union-attr]
    return int(float(number) * _UNITS[unit])


@dataclass(slots=True)
class BarReader:
    """Turns what uv draws on a pseudo-terminal into numbers.

    Feed it the raw text as it comes; it keeps the tail that may be half a frame.
    """

    expected: Mapping[str, int] = field(default_factory=dict)
    """Normalized name to size in bytes of what will be fetched, as far as known: so the total
    stands from the first frame on. What uv draws beside it is counted too."""
    unknown: frozenset[str] = frozenset()
    """Normalized names of what will be fetched and whose size is not known."""
    clock: Callable[[], float] = time.monotonic
    ready: tuple[int, int] | None = None
    """(done, all) of the packages that are fetched and unpacked."""
    linked: tuple[int, int] | None = None
    """(done, all) of the packages that are linked; None before the first is."""
    restarted: str | None = None
    """The package whose download broke last: uv fetches it again from its beginning."""
    _tail: str = ""
    _frame: set[str] = field(default_factory=set)
    _frames: int = 0
    _broken_off: set[tuple[str, str]] = field(default_factory=set)
    _bars: dict[str, _Bar] = field(default_factory=dict)
    _samples: list[tuple[float, int]] = field(default_factory=list)
    _whole_files: bool = False

    def feed(self, text: str) -> Bytes | None:
        """Return how far all downloads are after `text`, or None where it drew no bar."""
        now = self.clock()
        raw = self._tail + text
        cut = _CUT_ESCAPE.search(raw)
        whole, rest = (raw[: cut.start()], raw[cut.start() :]) if cut else (raw, "")
        content = _ESCAPE.sub("", whole)
        end = 0
        drawn = False
        for match in _DRAWN.finditer(content):
            end = match.end()
            if match["headline"]:
                self._frame.clear()
                self._frames += 1
                self.ready = (int(match["ready"]), int(match["of"]))
            elif match["linked"]:
                self.linked = (int(match["linked"]), int(match["all"]))
            else:
                drawn |= self._take_bar(match["name"], match["done"], match["total"], now)
        self._tail = content[max(end, len(content) - _LONGEST_BAR) :] + rest
        return self._bytes(now) if drawn else None

    def _take_bar(self, name: str, done_text: str, total_text: str, now: float) -> bool:
        name = canonicalize_name(name)
        shown = _size(total_text)
        if name in self._frame and (name, done_text) not in self._broken_off:
            self._broken_off.add((name, done_text))
            self.restarted = name
        # The first frame of a download says 0/0.
        if not shown:
            return False
        if (name, done_text) in self._broken_off:
            if name in self._bars:
                # Its package is still being fetched, by the bar above or after a pause.
                self._bars[name] = replace(self._bars[name], seen=now, frame=self._frames)
            return False
        self._frame.add(name)
        total = self.expected.get(name, shown)
        done = _size(done_text)
        done = total if done >= shown else min(done, total)
        self._bars[name] = _Bar(done=done, total=total, seen=now, frame=self._frames)
        return True

    def take_line(self, line: str) -> Bytes | None:
        """Return how far all downloads are after a line of words, None where it says nothing."""
        match = _WHOLE.fullmatch(line)
        if match is None or (size := self.expected.get(canonicalize_name(match[1]))) is None:
            return None
        self._whole_files = True
        self._bars[canonicalize_name(match[1])] = self._whole(size)
        return self._bytes(self.clock())

    def state(self) -> Bytes:
        """Return how far all downloads are, also where nothing was drawn yet."""
        return self._bytes(self.clock())

    def finish(self) -> Bytes | None:
        """Return the end of all downloads, once uv has said that they are prepared."""
        names = {**self.expected, **{name: bar.total for name, bar in self._bars.items()}}
        if not names:
            return None
        self._bars = {name: self._whole(total) for name, total in names.items()}
        return replace(self._bytes(self.clock()), unknown=0)

    def _whole(self, size: int) -> _Bar:
        return _Bar(done=size, total=size, seen=self.clock(), frame=self._frames)

    def _bytes(self, now: float) -> Bytes:
        packages = []
        for name, bar in self._bars.items():
            # The frame that is being drawn may have it still to come.
            ended = bar.frame < self._frames - 1 and now - bar.seen > _GONE_SECONDS
            packages.append((name, bar.total if ended else bar.done, bar.total))
        waiting = sum(size for name, size in self.expected.items() if name not in self._bars)
        done = sum(package[1] for package in packages)
        return Bytes(
            done=done,
            total=sum(package[2] for package in packages) + waiting,
            per_second=None if self._whole_files else self._rate(now, done),
            packages=tuple(
                sorted((p for p in packages if p[1] < p[2]), key=lambda p: p[2], reverse=True)
            ),
            unknown=len(self.unknown - self._bars.keys()),
            whole_files=self._whole_files,
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
