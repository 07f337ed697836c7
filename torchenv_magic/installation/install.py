"""Carry out a plan: fetch, set the old aside, link the new, check, and put back what failed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from torchenv_magic.environment import (
    FAMILY_MEMBERS,
    Environment,
    installed_backend,
    read_environment,
)
from torchenv_magic.errors import InstallError
from torchenv_magic.expectation import Expectation, read_expectation, write_expectation
from torchenv_magic.installation.failures import explain
from torchenv_magic.installation.plan import Change, Plan
from torchenv_magic.installation.prefetch import check_space, lock_arguments, prefetch, written
from torchenv_magic.installation.progress import Event, OnEvent
from torchenv_magic.installation.transaction import Transaction, locked, missing_files, recover
from torchenv_magic.installation.uv import Cancellation, Uv, find_uv

__all__ = ["Result", "install_plan", "recover_environment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What an install did."""

    changes: tuple[Change, ...]
    expectation: Expectation
    seconds: float
    recovered: str | None = None
    """What an earlier, interrupted install had left, if it had."""

    @property
    def changed(self) -> tuple[str, ...]:
        """The normalized names of all that was installed, replaced or removed."""
        return tuple(change.name for change in self.changes)

    def __str__(self) -> str:
        if not self.changes:
            return "Nothing to do: what you asked for is installed already."
        versions = dict(self.expectation.versions)
        torch = f"torch {versions['torch']}" if "torch" in versions else "the packages"
        more = len(self.changes) - 1
        others = f" and {more} other package{'' if more == 1 else 's'}" if more else ""
        return f"Installed {torch}{others} in {self.seconds:.1f} s"


def recover_environment(environment: Environment) -> str | None:
    """Repair what a killed install left, if one did; return one sentence about it.

    Raises
    ------
    BusyError, TargetError
    """
    if not (environment.prefix / ".torchenv" / "journal.json").exists():
        return None
    with locked(environment):
        return recover(environment)


def install_plan(
    plan: Plan,
    *,
    on_event: OnEvent | None = None,
    cancellation: Cancellation | None = None,
) -> Result:
    """Do what the plan says; the environment is the new one afterwards, or the one it was.

    Raises
    ------
    InstallCancelled
        Cancelled, and put back.
    InstallError, DiskSpaceError, BusyError, SourceError, TargetError, UvError
        Failed, and put back.
    """
    on_event = on_event or (lambda _event: None)
    cancellation = cancellation or Cancellation()
    started = time.monotonic()
    environment = read_environment(plan.python)
    if plan.nothing_to_do:
        # What is there was asked for once more: verification compares with the latest wish.
        expectation = _expectation(plan, environment)
        if read_expectation(environment.prefix) != expectation:
            write_expectation(environment.prefix, expectation)
        seconds = time.monotonic() - started
        return Result(changes=(), expectation=expectation, seconds=seconds)
    uv = find_uv()
    check_space(plan, uv=uv)
    with locked(environment):
        recovered = recover(environment)
        if any(not download.cached for download in plan.downloads):
            prefetch(plan, uv=uv, on_event=on_event, cancellation=cancellation)
        cancellation.raise_if_requested()
        after = _switch(plan, environment, uv, on_event, cancellation)
    return Result(
        changes=plan.changes,
        expectation=after,
        seconds=time.monotonic() - started,
        recovered=recovered,
    )


def _switch(
    plan: Plan,
    environment: Environment,
    uv: Uv,
    on_event: OnEvent,
    cancellation: Cancellation,
) -> Expectation:
    on_event(Event(phase="switch", message=f"Switching {plan.prefix}"))
    transaction = Transaction(environment=environment)
    incoming = [change.name for change in plan.changes if change.after is not None]
    transaction.stash(
        (change.name for change in plan.changes if change.before is not None), incoming=incoming
    )
    try:
        if incoming:
            _link(plan, uv, on_event, cancellation)
        on_event(Event(phase="check", message="Checking that every file is there"))
        after = read_environment(plan.python)
        check_switched(plan, after)
        expectation = _expectation(plan, after)
        write_expectation(environment.prefix, expectation)
    except BaseException:
        on_event(Event(phase="restore", message="Putting back what was there before"))
        transaction.roll_back()
        raise
    transaction.commit()
    on_event(Event(phase="done", message="Installed"))
    return expectation


def _link(plan: Plan, uv: Uv, on_event: OnEvent, cancellation: Cancellation) -> None:
    with written(plan.lock, plan.lock_format) as file:
        completed = uv.run(
            [
                "pip",
                "install",
                f"--python={plan.python}",
                # The page of an index that gives no hashes may not be cached, so it is read again.
                *(["--offline"] if plan.lock_format == "pylock" else []),
                *lock_arguments(plan, file),
            ],
            on_text=lambda text: on_event(Event(phase="switch", log=text.strip())),
            cancellation=cancellation,
        )
    if completed.returncode != 0:
        raise explain(completed, subject=f"torch for {plan.backend}")


def check_switched(plan: Plan, after: Environment) -> None:
    """Raise InstallError where the environment isn't exactly what the plan promised.

    uv's exit status is no proof: it is 0 where a switch did nothing.
    """
    problems = []
    for change in plan.changes:
        package = after.installed(change.name)
        there = package.version if package else None
        if there != change.after:
            problems.append(f"{change.name} is {there or 'missing'}, not {change.after or 'gone'}")
    problems += missing_files(after, (c.name for c in plan.changes if c.after is not None))
    backend = installed_backend(after)
    if after.installed("torch") and backend not in (plan.backend, None):
        problems.append(f"torch is a build for {backend}, not for {plan.backend}")
    if problems:
        message = f"The install did not do what was planned: {'; '.join(problems[:3])}."
        raise InstallError(
            message,
            hint="try again; what was there before is back",
            detail="\n".join(problems),
        )


def _expectation(plan: Plan, environment: Environment) -> Expectation:
    asked = [canonicalize_name(Requirement(text).name) for text in plan.request.requirements]
    return Expectation(
        requirements=plan.request.requirements,
        backend=plan.backend,
        versions=tuple(_versions(environment, [*FAMILY_MEMBERS, *asked])),
    )


def _versions(environment: Environment, names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in dict.fromkeys(names):
        if (package := environment.installed(name)) is not None:
            yield name, package.version
