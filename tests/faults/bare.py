"""The same signals to bare uv, to know what an install without a transaction leaves."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from uv import find_uv_bin

from tests.faults.arena import SECONDS, Arena, Bench, poll
from tests.faults.kills import POINTS, SIGNALS, is_held, send

__all__ = ["Bare", "kill_bare_uv"]

_PINS = ("torch==2.13.0+cu126", "torchvision==0.28.0+cu126", "satellite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bare:
    """What one signal to bare uv led to."""

    where: str
    signal: str
    at_once: str
    again: str
    """The state after the same command was run once more."""
    status: int
    """How that ended."""
    reasons: tuple[str, ...]


def kill_bare_uv(arena: Arena) -> Iterator[Bare]:
    """Switch by uv alone, and strike while it asks, downloads, removes and links."""
    moments = ("the index is asked", "50 % is here", *_WINDOW)
    for where in moments:
        for number in SIGNALS:
            arena.reset()
            with arena.bench(cold=where not in _WINDOW) as bench:
                result = _kill(bench, where, number)
            if result is not None:
                yield result


def _count(bench: Bench) -> int:
    return sum(len(files) for _, _, files in os.walk(bench.site / "torch"))


# From how many files torch had and has: whether the moment is here.
_WINDOW: dict[str, Callable[[int, int], bool]] = {
    "the old is removed": lambda before, now: now < before,
    "half of the old is removed": lambda before, now: now < before // 2,
    "the new is linked": lambda _before, now: now > 0,
    "500 new files are linked": lambda _before, now: now > 500,
}


def _command(bench: Bench) -> list[str]:
    command = [find_uv_bin(), "pip", "install", f"--python={bench.python}"]
    return [*command, "--torch-backend=cu126", *_PINS]


def _kill(bench: Bench, where: str, number: signal.Signals) -> Bare | None:
    point = next((point for point in POINTS if point.name == where), None)
    if point is not None and point.spoiled is not None:
        bench.standin.faults = (point.spoiled,)
    else:
        # Filled by another environment: what is judged is the switch, not the download.
        other = bench.folder / "other"
        _run([find_uv_bin(), "venv", "--quiet", str(other)], bench)
        _run(
            [arg.replace(str(bench.prefix), str(other)) for arg in _command(bench)],
            bench,
        )
    before = _count(bench)
    process = subprocess.Popen(
        _command(bench),
        env=bench.variables,
        cwd=bench.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if point is not None and point.spoiled is not None:
        spoiled = point.spoiled
        poll(lambda: process.poll() is not None or is_held(bench, spoiled))
    else:
        _wait_for(bench, process, where, before)
    alive = process.poll() is None
    send(process.pid, number)
    process.wait(SECONDS)
    bench.standin.faults = ()
    if not alive:
        return None
    judge = bench.switch.judge
    at_once = judge.judge(bench.prefix)
    status = _run(_command(bench), bench)
    again = judge.judge(bench.prefix)
    return Bare(
        where=where,
        signal=number.name,
        at_once=at_once.kind,
        again=again.kind,
        status=status,
        reasons=again.reasons or at_once.reasons,
    )


def _wait_for(bench: Bench, process: subprocess.Popen[bytes], where: str, before: int) -> None:
    """Return as the moment is here; the new comes after all of the old is gone."""
    links = "linked" in where
    emptied = not links

    def here() -> bool:
        nonlocal emptied
        now = _count(bench)
        emptied = emptied or now < before // 2
        return emptied and _WINDOW[where](before, now) and (not links or _is_new(bench))

    poll(lambda: process.poll() is not None or here(), pause=0.0)


def _is_new(bench: Bench) -> bool:
    """Whether a file of the new torch lies there."""
    return any(Path(bench.site).glob("torch-2.13.0+cu126.dist-info")) or not any(
        Path(bench.site).glob("torch-2.13.0+cpu.dist-info")
    )


def _run(command: list[str], bench: Bench) -> int:
    return subprocess.run(
        command,
        env=bench.variables,
        cwd=bench.folder,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    ).returncode
