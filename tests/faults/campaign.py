"""Run one fault: let it strike, look, let the person come back, look again, say what was seen."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from tests.faults.arena import Arena, Bench, Ended, Place, Program, poll
from tests.faults.checker import Judge, State

__all__ = ["Fault", "Outcome", "Skipped", "Strike", "carry_out", "skipped", "told"]


class Skipped(Exception):  # noqa: N818  (it is no error: this machine can't be hurt so)
    """Why a fault can't strike on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """What a fault did, and how that ended."""

    ended: Ended
    seconds: float = 0.0
    """From the blow to the end of the program."""
    gone: bool = False
    """Whether the person took the environment away."""
    undo: bool = False
    """Whether it was an undo: then the way leads from the new to the old."""
    also: Mapping[str, str] = field(default_factory=dict)
    """Packages that somebody else has brought meanwhile, which have to stay."""
    old: Mapping[str, str] = field(default_factory=dict)
    """What somebody else has made of the old environment meanwhile."""
    problems: tuple[str, ...] = ()
    """What the fault itself saw that must not be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way to hurt an install."""

    title: str
    where: str
    """The phase that it strikes in."""
    detail: str
    """What tells it from the others of its title and phase."""
    strike: Callable[[Bench], Strike]
    place: Place = "terminal"
    target: str = "cu126"
    cold: bool = True
    real: bool = False
    """Whether it strikes a switch to the real torch, and no made one."""
    short: bool = False
    """Whether it is one of those that every change is tried against."""

    @property
    def name(self) -> str:
        return " / ".join(filter(None, (self.title, self.where, self.detail)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one fault led to."""

    fault: str
    title: str
    where: str
    status: str
    said: str
    """What the run itself said last; empty where it was killed."""
    next_said: str
    """What the person was told at the next contact."""
    at_once: str
    """The state right after the fault: old, new, third or gone."""
    after: str
    """The same after the next contact."""
    reasons: tuple[str, ...]
    seconds: float
    """Until the environment could be used."""
    problems: tuple[str, ...]
    """What must not be; none is what the campaign is for."""
    skipped: str = ""
    everything: str = ""


# ------------------------------------------------------------------------------ what a person knows

_OLD_WORDS = re.compile(
    r"is as it was|(?:was|is|are) put back|(?:is|are) back\b|nothing (?:was|is|has been) changed"
    r"|was not changed|has not changed|stays as it (?:is|was)|did not touch",
    re.IGNORECASE,
)
_NEW_WORDS = re.compile(
    r"it stands|what was installed stays|is installed already|the environment is the new one"
)
_VERSION = re.compile(r"^installed\s+torch (\S+)|Installed torch (\S+)", re.MULTILINE)


def told(text: str, old: str, new: str, *, undo: bool = False) -> set[str]:
    """Return which environments a text says to be there; `old` and `new` are torch's versions.

    What is as it was after an `undo` is the new one.
    """
    found = set()
    if _OLD_WORDS.search(text):
        found.add("new" if undo else "old")
    if _NEW_WORDS.search(text):
        found.add("old" if undo else "new")
    for match in _VERSION.finditer(text):
        there = match[1] or match[2]
        found |= {kind for kind, version in (("old", old), ("new", new)) if there == version}
    return found


# --------------------------------------------------------------------------------------- the course


def carry_out(arena: Arena, fault: Fault) -> Outcome:
    """Let a fault strike a fresh environment, and judge what it led to."""
    arena.reset()
    try:
        chosen = (
            arena.real_bench()
            if fault.real
            else arena.bench(fault.place, fault.target, cold=fault.cold)
        )
        lent = contextlib.ExitStack()
        bench = lent.enter_context(chosen)
    except LookupError as reason:
        return skipped(fault, str(reason))
    with lent:
        try:
            strike = fault.strike(bench)
        except Skipped as reason:
            return skipped(fault, str(reason))
        finally:
            arena.standin.reset()
            arena.furnish()
        known = bench.switch.judge
        judge = replace(
            known,
            old={**known.old, **strike.also, **strike.old},
            new={**known.new, **strike.also},
        )
        at_once = judge.judge(bench.prefix)
        # Whatever it was, it is over when the person comes back: the disk has space, the network is
        # there. What an orphan still does it does under the hands of the next one.
        with contextlib.suppress(OSError):
            bench.left.close()
        started = time.monotonic()
        contact = bench.contact()
        took = time.monotonic() - started
        orphans = not poll(lambda: not bench.workers(), seconds=20, pause=0.05)
        after = judge.judge(bench.prefix)
        return Outcome(
            fault=fault.name,
            title=fault.title,
            where=fault.where,
            status=strike.ended.status,
            said=strike.ended.said,
            next_said=_next_words(contact),
            at_once=at_once.kind,
            after=after.kind,
            reasons=after.reasons or at_once.reasons,
            seconds=round(took if at_once.kind == "third" else 0.0, 2),
            problems=tuple(_problems(judge, strike, after, contact, orphans=orphans)),
            everything=strike.ended.everything,
        )


def skipped(fault: Fault, reason: str) -> Outcome:
    return Outcome(
        fault=fault.name,
        title=fault.title,
        where=fault.where,
        status="",
        said="",
        next_said="",
        at_once="",
        after="",
        reasons=(),
        seconds=0.0,
        problems=(),
        skipped=reason,
    )


def _next_words(contact: Ended) -> str:
    """Return the line of a status that says what there is, and that of a repair."""
    found = re.findall(r"^(?:repaired|installed|note)\s+(.*)$", contact.everything, re.MULTILINE)
    return " · ".join(found) or contact.said


def _problems(
    judge: Judge, strike: Strike, after: State, contact: Ended, *, orphans: bool
) -> list[str]:
    problems = list(strike.problems)
    if strike.ended.status == "hangs":
        problems.append("it hangs")
    if strike.gone:
        if after.kind != "gone":
            problems.append("what the person deleted came back")
        return problems
    if after.kind not in ("old", "new"):
        problems.append(f"a third environment: {'; '.join(after.reasons[:3]) or after.kind}")
    if contact.status != "0":
        problems.append(f"the next contact fails: {contact.said or contact.everything[-300:]}")
    known = told(contact.everything, judge.old["torch"], judge.new["torch"], undo=strike.undo)
    if after.kind not in known or len(known) > 1:
        problems.append(f"the next contact tells {sorted(known) or 'nothing'}, not {after.kind}")
    said = told(strike.ended.said, judge.old["torch"], judge.new["torch"], undo=strike.undo)
    if said and after.kind not in said:
        problems.append(f"the run told {sorted(said)}, and it is {after.kind}")
    # What uv or torch said stands indented, below the log.
    if re.search(r"^Traceback", f"{strike.ended.everything}\n{contact.everything}", re.MULTILINE):
        problems.append("a traceback is shown")
    if orphans:
        problems.append("a process works on")
    return problems


def finish(program: Program, since: float) -> Strike:
    """Wait for a program's end after the blow at `since`."""
    ended = program.wait()
    return Strike(ended=ended, seconds=time.monotonic() - since)
