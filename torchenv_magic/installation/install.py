"""Carry out a plan: stage the new, rename the old aside and the new into place, check, or undo."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from torchenv_magic.environment import (
    FAMILY_MEMBERS,
    Environment,
    check_target,
    installed_backend,
    read_environment,
)
from torchenv_magic.errors import (
    BusyError,
    ChangedError,
    DiskSpaceError,
    InstallError,
    TargetError,
)
from torchenv_magic.expectation import Expectation, read_expectation, write_expectation
from torchenv_magic.installation.footprint import metadata_directories, missing_files, sites
from torchenv_magic.installation.history import Entry, new_entry
from torchenv_magic.installation.import_check import check_imports
from torchenv_magic.installation.kept import let_go
from torchenv_magic.installation.locking import locked, uv_locked
from torchenv_magic.installation.plan import Change, Plan, by_importance
from torchenv_magic.installation.progress import Event, OnEvent, guarded
from torchenv_magic.installation.space import check_space
from torchenv_magic.installation.staging import stage
from torchenv_magic.installation.transaction import (
    Transaction,
    failure,
    has_left_overs,
    is_interrupted,
    recover,
)
from torchenv_magic.installation.uv import Cancellation, Uv, find_uv
from torchenv_magic.installation.waiting import Hold, holding

__all__ = [
    "Result",
    "check_changes",
    "check_switched",
    "install_plan",
    "look_after",
    "nobody_else",
    "read_again",
    "recover_environment",
]

# A switch takes a tenth of a second, and a few where a container's image holds the old torch.
_SWITCH_SECONDS = 10.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What an install, or its undoing, did."""

    changes: tuple[Change, ...]
    expectation: Expectation | None
    """What is there of what was asked for; None where an undo came back to before the first
    install."""
    seconds: float
    recovered: str | None = None
    """What an earlier, interrupted install had left, if it had."""
    undone: bool = False

    @property
    def changed(self) -> tuple[str, ...]:
        """The normalized names of all that was installed, replaced or removed."""
        return tuple(change.name for change in self.changes)

    def __str__(self) -> str:
        if not self.changes:
            return "Nothing to do: what you asked for is installed already."
        if self.undone:
            return self._undone
        versions = dict(self.expectation.versions) if self.expectation else {}
        torch = f"torch {versions['torch']}" if "torch" in versions else "the packages"
        more = len(self.changes) - 1
        others = f" and {more} other package{'' if more == 1 else 's'}" if more else ""
        return f"Installed {torch}{others} in {self.seconds:.1f} s"

    @property
    def _undone(self) -> str:
        back = by_importance(change for change in self.changes if change.after is not None)
        if not back:
            names = by_importance(self.changes)
            more = f" and {len(names) - 1} more" if names[1:] else ""
            return f"Undone in {self.seconds:.1f} s: {names[0].name}{more} gone again"
        more = f" and {len(back) - 1} more" if back[1:] else ""
        return f"Undone in {self.seconds:.1f} s: {back[0].name} {back[0].after}{more} back"


def recover_environment(environment: Environment) -> str | None:
    """Repair what a killed install left, if one did; return one sentence about it.

    Raises
    ------
    BusyError
        An install is at its switch, and stays there.
    InstallError
        It can't be repaired as long as something uses the files.
    """
    if not environment.writable or not has_left_overs(environment):
        return None
    try:
        # An install that only downloads has a folder here too, and nothing to repair.
        with locked(environment, wait_seconds=_SWITCH_SECONDS * is_interrupted(environment)):
            return recover(environment)
    except BusyError:
        if is_interrupted(environment):
            raise
        return None


def install_plan(
    plan: Plan,
    *,
    command: str = "",
    on_event: OnEvent | None = None,
    cancellation: Cancellation | None = None,
    wait: bool = False,
) -> Result:
    """Do what the plan says; the environment is the new one afterwards, or the one it was.

    Parameters
    ----------
    command
        The line that asked for it, for the history and for those who wait.
    wait
        Waits where another install works on the environment, and goes on if what was planned is
        still true then; else that is an error.

    Raises
    ------
    InstallCancelled
        Cancelled, and put back.
    InstallError, DiskSpaceError, BusyError, SourceError, TargetError, UvError
        Failed, and put back.
    """
    try:
        return _install(plan, command, guarded(on_event), cancellation or Cancellation(), wait=wait)
    except OSError as error:
        raise failure(error) from error


def _install(
    plan: Plan, command: str, tell: OnEvent, cancellation: Cancellation, *, wait: bool
) -> Result:
    started = time.monotonic()
    environment = read_again(plan.python)
    if plan.nothing_to_do:
        # What is there was asked for once more: verification compares with the latest wish.
        expectation = _expectation(plan, environment)
        if read_expectation(environment.prefix) != expectation:
            write_expectation(environment.prefix, expectation)
        seconds = time.monotonic() - started
        return Result(changes=(), expectation=expectation, seconds=seconds)
    check_target(environment)
    uv = find_uv()
    cancellation.raise_if_requested()
    with holding(
        environment, command=command, on_event=tell, cancellation=cancellation, wait=wait
    ) as hold:
        recovered = recover(environment)
        if recovered is not None or wait:
            environment = read_again(plan.python)
        check_current(plan, environment)
        before = metadata_directories(sites(environment))
        _check_room(plan, environment, uv)
        with Transaction(environment) as transaction:
            if plan.versions:
                stage(plan, transaction.stage, uv=uv, on_event=hold.tell, cancellation=cancellation)
                check_staged(plan, transaction.staged_site())
            with nobody_else(plan.prefix, hold.tell, cancellation):
                # Neither pip nor a person waits for us: what was planned must still be true.
                if metadata_directories(sites(environment)) != before:
                    environment = read_again(plan.python)
                    check_current(plan, environment)
                expectation = _expectation(plan, environment)
                entry = _entry(plan, command, transaction.identity, expectation)
                _switch(plan, transaction, expectation, entry, hold, cancellation, started)
        hold.tell(Event(phase="done", message="Installed"))
    return Result(
        changes=plan.changes,
        expectation=expectation,
        seconds=time.monotonic() - started,
        recovered=recovered,
    )


def _check_room(plan: Plan, environment: Environment, uv: Uv) -> None:
    """Check that there is room, if need be that of what the last install has kept."""
    try:
        check_space(plan, environment.site_packages, uv=uv)
    except DiskSpaceError:
        if not let_go(environment.prefix, environment.site_packages):
            raise
        check_space(plan, environment.site_packages, uv=uv)


def _entry(plan: Plan, command: str, identity: str, expectation: Expectation) -> Entry:
    return new_entry(
        identity=identity,
        command=command,
        backend=str(plan.backend),
        torch=dict(expectation.versions).get("torch"),
        source=str(plan.source),
        changes=plan.changes,
    )


def read_again(python: Path) -> Environment:
    """Return the environment of `python` as it is now."""
    # In process where it is ours: another interpreter takes a tenth of a second to start.
    ours = sys.executable and Path(sys.executable) == python
    return read_environment(None if ours else python)


@contextmanager
def nobody_else(prefix: Path, tell: OnEvent, cancellation: Cancellation) -> Iterator[None]:
    """Hold uv's own lock, and wait for it where a uv of somebody else works: all is staged."""
    told = False
    while True:
        with uv_locked(prefix) as free:
            if free:
                yield
                return
        if not told:
            message = "Waiting for another uv that works on this environment"
            tell(Event(phase="switch", message=message))
            told = True
        cancellation.raise_if_requested()
        time.sleep(_POLL_SECONDS)


def check_current(plan: Plan, environment: Environment) -> None:
    """Check that the environment is still the one that the plan was made for.

    Raises
    ------
    ChangedError
        Something was installed or removed in between.
    """
    for change in by_importance(plan.changes):
        # Two of one name are what a killed uv leaves: the plan replaces both.
        found: list[str | None] = [
            package.version for package in environment.packages if package.name == change.name
        ]
        if not any(_same(version, change.before) for version in found or [None]):
            raise ChangedError(
                f"The environment has changed since the plan was made: {change.name} is "
                f"{found[0] if found else 'missing'} now, not {change.before or 'missing'}",
                hint="plan again",
            )


def check_staged(plan: Plan, site: Path) -> None:
    """Check that all that the plan brings is in the stage; its files are looked at in their places.

    uv's exit status is no proof: it is 0 also where a switch did nothing.

    Raises
    ------
    InstallError
    """
    found = metadata_directories([site])
    missing = [
        name
        for name in plan.versions
        if len(found.get(name, [])) != 1 or not (found[name][0] / "RECORD").is_file()
    ]
    if missing:
        raise InstallError(
            f"uv did not unpack all that was planned: {'; '.join(missing[:3])}",
            hint="run `uv cache clean torch`, then try again",
            detail="\n".join(missing),
        )


def _switch(  # noqa: PLR0917
    plan: Plan,
    transaction: Transaction,
    expectation: Expectation,
    entry: Entry,
    hold: Hold,
    cancellation: Cancellation,
    started: float,
) -> None:
    hold.tell(Event(phase="switch", message=f"Switching {plan.prefix}"))
    cancellation.raise_if_requested()
    hold.check()
    try:
        transaction.switch(
            (change.name for change in plan.changes if change.before is not None),
            incoming=plan.versions,
            expectation=expectation,
            entry=entry,
        )
        hold.tell(Event(phase="check", message="Checking the result"))
        after = look_after(plan.python)
        check_switched(plan, after)
        _check_whole(plan, after, cancellation)
        cancellation.raise_if_requested()
        hold.check()
        transaction.commit(seconds=time.monotonic() - started)
    except BaseException:
        if transaction.can_roll_back:
            hold.tell(Event(phase="restore", message="Putting back what was there before"))
            transaction.roll_back()
        raise


def look_after(python: Path) -> Environment:
    """Return the environment of `python` as a switch has left it.

    Raises
    ------
    InstallError
        What came keeps it from being looked at.
    """
    try:
        return read_again(python)
    except TargetError as error:
        raise InstallError(
            f"What was installed can't be looked at: {error.message}",
            hint="try again; what was there before is back",
            detail=error.detail,
        ) from error


def _check_whole(plan: Plan, after: Environment, cancellation: Cancellation) -> None:
    """Check that all files are in their places, and that what was switched to can be imported."""
    site = after.site_packages.resolve()
    # The files are walked while the other process imports.
    with ThreadPoolExecutor(max_workers=1) as pool:
        walk = pool.submit(missing_files, site, plan.versions)
        check_imports(plan.python, after, tuple(plan.versions), cancellation)
        missing = walk.result()
    if missing:
        raise InstallError(
            f"Not all of what was installed arrived: {'; '.join(missing[:3])}",
            hint="try again; what was there before is back",
            detail="\n".join(missing),
        )


def check_switched(plan: Plan, after: Environment) -> None:
    """Check that the environment is exactly what the plan promised.

    Raises
    ------
    InstallError
    """
    problems = check_changes(plan.changes, after)
    backend = installed_backend(after)
    if after.installed("torch") and backend not in (plan.backend, None):
        problems.append(f"torch is a build for {backend}, not for {plan.backend}")
    if problems:
        raise InstallError(
            f"The install did not do what was planned: {'; '.join(problems[:3])}",
            hint="try again; what was there before is back",
            detail="\n".join(problems),
        )


def check_changes(changes: Iterable[Change], after: Environment) -> list[str]:
    """Return what of the changes is not so in the environment."""
    problems = []
    for change in changes:
        found = [package for package in after.packages if package.name == change.name]
        there = " and ".join(package.version for package in found)
        if len(found) > 1 or not _same(there or None, change.after):
            problems.append(f"{change.name} is {there or 'missing'}, not {change.after or 'gone'}")
    return problems


def _same(one: str | None, other: str | None) -> bool:
    if one is None or other is None:
        return one is other
    try:
        return Version(one) == Version(other)
    except InvalidVersion:
        return one == other


def _expectation(plan: Plan, environment: Environment) -> Expectation:
    """Return what will be there of what was asked for, once the plan is carried out."""
    there = {package.name: package.version for package in environment.packages}
    for change in plan.changes:
        there.pop(change.name, None)
    there |= plan.versions
    asked = [canonicalize_name(Requirement(text).name) for text in plan.request.requirements]
    return Expectation(
        requirements=plan.request.requirements,
        backend=plan.backend,
        versions=tuple(
            (name, there[name])
            for name in dict.fromkeys([*FAMILY_MEMBERS, *asked])
            if name in there
        ),
    )
