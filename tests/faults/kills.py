"""Signals to uv, to the process that installs, and to both, at twenty points of an install."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from tests.faults.arena import Bench, Place, Program, poll, switch_steps
from tests.faults.campaign import Fault, Strike, finish
from tests.standin import Fault as Spoiled

__all__ = ["POINTS", "SIGNALS", "Point", "is_held", "kill_faults", "reach", "send"]

Whom = Literal["uv", "process", "both"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
_WHEEL = r"/torch-2\.13.*\.whl$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A moment of an install that comes in every run, and that can be waited for."""

    phase: str
    name: str
    spoiled: Spoiled | None = None
    """The request that the index leaves open then."""
    part: float | None = None
    """How much of the switch is done; 0 is its first step and 1 its last."""
    files: int = 0
    """How many files uv has linked into the stage."""
    child: Literal["", "check", "verification"] = ""
    """Which child of the process is at work."""

    @property
    def has_child(self) -> bool:
        """Whether uv, or what proves the new torch, is there to be killed."""
        return self.part is None and self.name != "sizes are asked"

    @property
    def cold(self) -> bool:
        return self.spoiled is not None


def _held(
    pattern: str, *, skip: int = 0, part: float | None = None, method: str = "GET"
) -> Spoiled:
    if part is None:
        return Spoiled(pattern=pattern, kind="silent", skip=skip, method=method)
    return Spoiled(pattern=pattern, kind="stall", skip=skip, method=method, part=part)


POINTS = (
    Point(phase="resolve", name="the index is asked", spoiled=_held(r"/whl/\w+/torchvision/$")),
    Point(
        phase="resolve",
        name="half of a page is here",
        spoiled=_held(r"/whl/\w+/torchvision/$", part=0.5),
    ),
    Point(phase="resolve", name="metadata are asked", spoiled=_held(r"/torch-2.*\.metadata$")),
    Point(
        phase="lock",
        name="the index is asked again",
        spoiled=_held(r"/whl/\w+/torchvision/$", skip=1),
    ),
    Point(phase="sizes", name="sizes are asked", spoiled=_held(_WHEEL, method="HEAD")),
    Point(phase="download", name="the wheel is asked", spoiled=_held(_WHEEL)),
    Point(phase="download", name="1 % is here", spoiled=_held(_WHEEL, part=0.01)),
    Point(phase="download", name="50 % is here", spoiled=_held(_WHEEL, part=0.5)),
    Point(phase="download", name="99 % is here", spoiled=_held(_WHEEL, part=0.99)),
    Point(
        phase="download", name="the last wheel is awaited", spoiled=_held(r"/torchvision.*\.whl$")
    ),
    Point(phase="stage", name="the first file is linked", files=1),
    Point(phase="stage", name="500 files are linked", files=500),
    *(
        Point(phase="switch", name=f"{part:.0%} of the steps are done", part=part)
        for part in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    ),
    Point(phase="check", name="the result is checked", child="check"),
    Point(phase="verify", name="the new torch is tried", child="verification"),
)


def kill_faults() -> Iterator[Fault]:
    """Yield every signal to everybody at every point where there is somebody."""
    for number in SIGNALS:
        for point in POINTS:
            if point.has_child:
                yield _fault(point, number, "uv", "terminal")
                yield _fault(point, number, "both", "terminal")
            if point.phase in ("stage", "switch", "check", "verify"):
                yield _fault(point, number, "process", "terminal")
            if not point.child:
                yield _fault(point, number, "process", "notebook")
    for number in SIGNALS:
        for part in (0.1, 0.3, 0.5, 0.7, 0.9):
            yield Fault(
                title=f"{number.name} of `torchenv undo`",
                where="undo",
                detail=f"{part:.0%} of the steps are done",
                strike=partial(_kill_undo, part, number),
                cold=False,
                short=number == signal.SIGKILL and part == 0.5,
            )
    for part, way in ((0.2, "back"), (0.4, "on")):
        for step in (0, 2, 4, 6, 8, 10):
            yield Fault(
                title="SIGKILL of `torchenv`, and of the repair too",
                where="repair",
                detail=f"step {step} of the way {way}",
                strike=partial(_kill_twice, part, step),
                cold=False,
                short=step == 4,
            )
    for part in (0.1, 0.3, 0.5, 0.7, 0.9):
        yield Fault(
            title="SIGKILL of `torchenv`, the real torch",
            where="switch",
            detail=f"{part:.0%} of the steps are done",
            strike=partial(_kill_at_step, part=part, number=signal.SIGKILL),
            cold=False,
            real=True,
        )
    for files in (1, 6000):
        for number in SIGNALS:
            yield Fault(
                title=f"{number.name} of uv, the real torch",
                where="stage",
                detail=f"{files} files are linked",
                strike=partial(
                    _kill,
                    point=Point(phase="stage", name="", files=files),
                    number=number,
                    whom="uv",
                ),
                cold=False,
                real=True,
            )


_TITLES: dict[tuple[Whom, Place], str] = {
    ("uv", "terminal"): "of uv, or of the child at work",
    ("process", "terminal"): "of `torchenv`",
    ("both", "terminal"): "of uv and `torchenv`",
    ("process", "notebook"): "of the kernel",
}
_SHORT = {
    ("SIGKILL", "uv", "50 % is here"),
    ("SIGTERM", "both", "50 % is here"),
    ("SIGKILL", "both", "500 files are linked"),
    ("SIGKILL", "process", "40% of the steps are done"),
    ("SIGINT", "process", "60% of the steps are done"),
}


def _fault(point: Point, number: signal.Signals, whom: Whom, place: Place) -> Fault:
    return Fault(
        title=f"{number.name} {_TITLES[whom, place]}",
        where=point.phase,
        detail=point.name,
        strike=partial(_kill, point=point, number=number, whom=whom),
        place=place,
        # There and back: a switch that brings packages, and one that removes some.
        target="cu126" if place == "terminal" else "cpu",
        cold=point.cold,
        short=(number.name, whom, point.name) in _SHORT
        and (place == "terminal" or number == signal.SIGKILL),
    )


def _kill(bench: Bench, *, point: Point, number: signal.Signals, whom: Whom) -> Strike:
    if point.part is not None:
        return _kill_at_step(bench, point.part, number)
    blow: list[float] = []

    def strike(program: Program, children: list[int]) -> None:
        blow.append(time.monotonic())
        for pid in children if whom != "process" else ():
            send(pid, number)
        if whom != "uv":
            send(program.pid, number)

    program = reach(bench, point, strike)
    bench.standin.faults = ()
    return finish(program, blow[0] if blow else time.monotonic())


def _kill_at_step(bench: Bench, part: float, number: signal.Signals) -> Strike:
    steps = switch_steps(bench.switch.steps)
    return _strike_at(bench, bench.start(step=steps[round(part * (len(steps) - 1))]), number)


def _kill_undo(part: float, number: signal.Signals, bench: Bench) -> Strike:
    steps = switch_steps(bench.arena.undo_steps)
    bench.start().wait()
    step = steps[round(part * (len(steps) - 1))]
    strike = _strike_at(bench, bench.start(word="undo", step=step), number)
    return replace(strike, undo=True)


def _kill_twice(part: float, step: int, bench: Bench) -> Strike:
    _kill_at_step(bench, part, signal.SIGKILL)
    bench.left.close()
    (bench.folder / "door").unlink()
    return _strike_at(bench, bench.start(word="status", step=step), signal.SIGKILL)


def _strike_at(bench: Bench, program: Program, number: signal.Signals) -> Strike:
    """Send the signal as the program stands before the step that it was told to wait at."""
    caller = bench.knock(program)
    started = time.monotonic()
    if caller is not None:
        send(program.pid, number)
        # The signal has to be heard before the step is done.
        poll(lambda: not _pending(program.pid), seconds=5)
        with contextlib.suppress(OSError):
            caller.send(b"g")
        caller.close()
    return finish(program, started)


def reach(bench: Bench, point: Point, strike: Callable[[Program, list[int]], None]) -> Program:
    """Begin to switch, and strike as the point is reached; return what was struck."""
    if point.spoiled is not None:
        bench.standin.faults = (point.spoiled,)
    # What an earlier install has kept for its undo is no stage.
    kept = frozenset(bench.site.glob(".torchenv-*"))
    program = bench.start()
    if point.spoiled is not None:
        spoiled = point.spoiled
        found = poll(lambda: not program.alive() or is_held(bench, spoiled))
    elif point.files:
        found = poll(lambda: not program.alive() or _staged(bench, point.files, kept), pause=0.0)
    else:
        found = poll(lambda: not program.alive() or bool(_proving(bench, program, point)))
    if found and program.alive():
        strike(program, children_of(program.pid))
    return program


def is_held(bench: Bench, spoiled: Spoiled) -> bool:
    """Whether the index has left the spoiled request open."""
    matching = [
        request
        for request in bench.standin.requests
        if request.method == spoiled.method and re.search(spoiled.pattern, request.path)
    ][spoiled.skip :]
    if not matching or matching[0].finished:
        return False
    return matching[0].status == 0 if spoiled.kind == "silent" else matching[0].bytes > 0


def _staged(bench: Bench, files: int, kept: frozenset[Path]) -> bool:
    """Whether so many files of torch lie in a folder of the engine's own."""
    count = 0
    for work in set(bench.site.glob(".torchenv-*")) - kept:
        for folder, names, found in os.walk(work):
            names.sort()
            if "/torch" in folder:
                count += len(found)
            if count >= files:
                return True
    return False


def _proving(bench: Bench, program: Program, point: Point) -> list[int]:
    """Return the interpreters of the environment that the program has started."""
    switched = (bench.site / "triton").exists() == (bench.switch.backend == "cu126")
    if not switched:
        return []
    committed = not (bench.prefix / ".torchenv/journal.json").exists()
    if committed != (point.child == "verification"):
        return []
    return [pid for pid in children_of(program.pid) if _runs_python(pid, bench)]


def _runs_python(pid: int, bench: Bench) -> bool:
    with contextlib.suppress(OSError):
        return os.fsencode(bench.python) in (Path("/proc") / str(pid) / "cmdline").read_bytes()
    return False


def children_of(pid: int) -> list[int]:
    """Return a process's children and theirs, the eldest first."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text("ascii").split():
                found += [int(child), *children_of(int(child))]
    return found


def send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _pending(pid: int) -> bool:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/status").read_text("utf-8")
        masks = re.findall(r"^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)", text, re.MULTILINE)
        return any(int(mask, 16) for mask in masks)
    return False
