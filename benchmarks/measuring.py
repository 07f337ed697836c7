"""Take turns, and judge what came out: series, paired ratios, goals, noise."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

__all__ = [
    "BenchmarkError",
    "Comparison",
    "Goal",
    "Measurement",
    "Series",
    "busy_warning",
    "take_turns",
]

Measured = TypeVar("Measured")

# A spread beyond which the mean says more about the machine than about what ran on it.
_WIDE_SPREAD = 0.25
_BUSY_LOAD_PER_PROCESSOR = 0.5


class BenchmarkError(RuntimeError):
    """What was to be measured did not happen."""


class Measurement(Protocol):
    """What a benchmark comes back with: `str` is what a person reads."""

    def to_json(self) -> dict[str, Any]:
        """Return it with every single value that it was made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What the project promises."""

    kind: Literal["seconds", "ratio", "more"]
    """A time of its own, a time as a multiple of the peer's, or a time on top of the peer's."""
    limit: float
    """Seconds, or the multiple."""

    def __str__(self) -> str:
        if self.kind == "seconds":
            return f"under {_time(self.limit)}"
        if self.kind == "ratio":
            return f"at most {self.limit:.2f} times the peer"
        return f"at most {_time(self.limit)} more than the peer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One thing's times in seconds, in the order of the runs."""

    name: str
    seconds: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.seconds)

    @property
    def deviation(self) -> float:
        """The standard deviation; 0 for a single run."""
        return statistics.stdev(self.seconds) if len(self.seconds) > 1 else 0.0

    @property
    def spread(self) -> float:
        """The standard deviation as a part of the mean."""
        return self.deviation / self.mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Our times and a peer's, run by run beside each other."""

    title: str
    ours: Series
    peer: Series
    goal: Goal | None = None
    notes: tuple[str, ...] = ()

    @property
    def ratios(self) -> tuple[float, ...]:
        pairs = zip(self.ours.seconds, self.peer.seconds, strict=True)
        return tuple(ours / peer for ours, peer in pairs)

    @property
    def differences(self) -> tuple[float, ...]:
        """What we took more than the peer, in seconds, one value a run."""
        pairs = zip(self.ours.seconds, self.peer.seconds, strict=True)
        return tuple(ours - peer for ours, peer in pairs)

    @property
    def judged(self) -> tuple[float, ...]:
        """What the goal is about, one value a run."""
        if self.goal is None or self.goal.kind == "ratio":
            return self.ratios
        return self.ours.seconds if self.goal.kind == "seconds" else self.differences

    @property
    def met(self) -> bool | None:
        """Whether the median run is within the goal; None without one."""
        return None if self.goal is None else statistics.median(self.judged) <= self.goal.limit

    @property
    def noise(self) -> str | None:
        """What to know about runs that differ a lot, in one sentence; None where they don't."""
        widest = max((self.ours, self.peer), key=lambda series: series.spread)
        if widest.spread <= _WIDE_SPREAD:
            return None
        return (
            f"warning: the runs of `{widest.name}` differ a lot (their deviation is "
            f"{widest.spread:.0%} of the mean): end what else runs here, then measure again "
            "with more --runs"
        )

    def __str__(self) -> str:
        width = max(len(self.ours.name), len(self.peer.name))
        lines = [self.title]
        lines += [f"  {_series_words(series, width)}" for series in (self.ours, self.peer)]
        lines.append(f"  {'ratio':<{width}}  {_range_words(self.ratios, '{:.2f}'.format)}")
        lines.append(f"  {'difference':<{width}}  {_range_words(self.differences, _time)}")
        if self.goal is not None:
            within = sum(value <= self.goal.limit for value in self.judged)
            verdict = f"{'met' if self.met else 'MISSED'} ({within} of {len(self.judged)} runs)"
            lines.append(f"  {'goal':<{width}}  {self.goal}: {verdict}")
        lines += [f"  {note}" for note in (*self.notes, self.noise) if note]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the comparison with every single time."""
        goal = self.goal
        return {
            "title": self.title,
            "ours": {"name": self.ours.name, "seconds": self.ours.seconds},
            "peer": {"name": self.peer.name, "seconds": self.peer.seconds},
            "median_ratio": statistics.median(self.ratios),
            "goal": None if goal is None else {"kind": goal.kind, "limit": goal.limit},
            "judged": statistics.median(self.judged),
            "met": self.met,
            "notes": self.notes,
        }


def take_turns(
    name: str, runs: int, ours: Callable[[], Measured], peer: Callable[[], Measured]
) -> list[tuple[Measured, Measured]]:
    """Return what both measured, in turns, so that what the machine does besides hits both alike.

    A first round is not counted: it compiles to bytecode and fills the system's file cache.
    """
    pairs = []
    for number in range(runs + 1):
        if sys.stderr.isatty():
            what = f"run {number} of {runs}" if number else "warm-up"
            print(f"\r\x1b[K{name}: {what}", end="", file=sys.stderr, flush=True)
        pairs.append((ours(), peer()))
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return pairs[1:]


def busy_warning(load: float, processors: int) -> str | None:
    """Return what to do where the machine has other work than this; None where it has none."""
    if load <= _BUSY_LOAD_PER_PROCESSOR * processors:
        return None
    return (
        f"warning: the machine is busy (load average {load:.1f} on {processors} processors): "
        "trust the ratios, not the times, and measure again when it is idle"
    )


def _series_words(series: Series, width: int) -> str:
    low, high = _time(min(series.seconds)), _time(max(series.seconds))
    runs = f"{len(series.seconds)} run{'' if len(series.seconds) == 1 else 's'}"
    return (
        f"{series.name:<{width}}  {_time(series.mean)} ± {_time(series.deviation)}"
        f"  [{low} … {high}, {runs}]"
    )


def _range_words(values: tuple[float, ...], words: Callable[[float], str]) -> str:
    return f"{words(statistics.median(values))}  [{words(min(values))} … {words(max(values))}]"


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if abs(seconds) < 1 else f"{seconds:.2f} s"
