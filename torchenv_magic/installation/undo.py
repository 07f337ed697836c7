"""Go back to what was there before the last install: a switch to what it kept, without a network.

An undo is an install in all else: it holds the lock, keeps a journal, ends old or new, and can
itself be undone.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from torchenv_magic.environment import (
    FAMILY_MEMBERS,
    Environment,
    InstalledPackage,
    backend_of_torch_version,
    check_target,
)
from torchenv_magic.errors import ConsentError, InstallError
from torchenv_magic.installation.footprint import (
    lacks_code,
    metadata_directories,
    record_hash,
    sites,
)
from torchenv_magic.installation.history import Entry, History, new_entry, read_entries
from torchenv_magic.installation.import_check import check_imports
from torchenv_magic.installation.install import (
    Result,
    check_changes,
    look_after,
    nobody_else,
    read_again,
)
from torchenv_magic.installation.kept import Kept, read_kept
from torchenv_magic.installation.plan import Change, by_importance
from torchenv_magic.installation.progress import Event, OnEvent, guarded
from torchenv_magic.installation.transaction import Transaction, failure, recover
from torchenv_magic.installation.uv import Cancellation
from torchenv_magic.installation.waiting import Hold, holding

__all__ = ["Undo", "read_history", "read_undo", "undo_install"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """What going back would do."""

    entry: Entry
    """What would be undone."""
    changes: tuple[Change, ...]
    problem: str = ""
    """Why it can't be done, where it can't: half a sentence."""
    hint: str = ""
    """What leads there all the same."""

    @property
    def title(self) -> str:
        """What would come back, or go: `torch 2.12.0+cpu and 3 more packages`."""
        back = [change for change in self.changes if change.after is not None]
        first, *others = by_importance(back or self.changes)
        more = f" and {len(others)} more package{'s' if others[1:] else ''}" if others else ""
        return f"{first.name} {first.after or first.before}{more}"

    @property
    def only_removes(self) -> bool:
        """Whether nothing would come back."""
        return all(change.after is None for change in self.changes)

    def __str__(self) -> str:
        if self.problem:
            return f"The last one can't be undone: {self.problem}."
        if self.only_removes:
            return f"`%torchenv undo` takes {self.title} away again."
        return f"`%torchenv undo` goes back to {self.title}."


def read_undo(environment: Environment) -> Undo | None:
    """Return what an undo would do, None where no install is known. Nothing is changed."""
    kept = read_kept(environment.prefix)
    if kept is None or not kept.entry.changes:
        return None
    problem = kept.problem or _difference(kept, environment) or _loss(kept, environment)
    return Undo(
        entry=kept.entry,
        changes=tuple(map(_turned, kept.entry.changes)),
        problem=problem,
        hint=_other_way(kept) if problem else "",
    )


def read_history(environment: Environment) -> History:
    """Return what was done to the environment, the latest first, and what can be undone of it."""
    undo = read_undo(environment)
    return History(
        prefix=environment.prefix,
        entries=tuple(reversed(read_entries(environment.prefix))),
        undo=str(undo) if undo else "",
    )


def undo_install(
    environment: Environment,
    *,
    consent: bool = False,
    command: str = "",
    on_event: OnEvent | None = None,
    cancellation: Cancellation | None = None,
    wait: bool = False,
) -> Result:
    """Go back to what was there before the last install, or undo.

    Parameters
    ----------
    consent
        Breaks what was installed since and needs the newer build.
    wait
        Waits where an install works on the environment. What that one did is not undone.

    Raises
    ------
    ConsentError
        Something that was installed since would break.
    InstallCancelled
        Cancelled, and put back.
    InstallError, BusyError, TargetError
        There is nothing to undo, or it failed; the environment is as it was.
    """
    started = time.monotonic()
    tell, cancellation = guarded(on_event), cancellation or Cancellation()
    check_target(environment)
    meant = read_kept(environment.prefix)
    try:
        with holding(
            environment, command=command, on_event=tell, cancellation=cancellation, wait=wait
        ) as hold:
            recovered = recover(environment)
            environment = read_again(environment.interpreter.executable)
            kept, undo = _checked(environment, meant, consent=consent)
            message = "Taking away" if undo.only_removes else "Going back to"
            hold.tell(Event(phase="switch", message=f"{message} {undo.title}"))
            with Transaction(environment, source=kept) as transaction:
                _switch(transaction, environment, kept, command, hold, cancellation, started)
            hold.tell(Event(phase="done", message="Undone"))
    except OSError as error:
        raise failure(error) from error
    return Result(
        changes=undo.changes,
        expectation=kept.expectation,
        seconds=time.monotonic() - started,
        recovered=recovered,
        undone=True,
    )


def _checked(environment: Environment, meant: Kept | None, *, consent: bool) -> tuple[Kept, Undo]:
    kept, undo = read_kept(environment.prefix), read_undo(environment)
    if kept is not None and meant is not None and kept.entry.id != meant.entry.id:
        raise InstallError(
            f"Another install has ended meanwhile, so the last one is another: {kept.entry.title}",
            hint="`%torchenv undo` now undoes that one",
        )
    if kept is None or undo is None:
        raise InstallError(
            "There is nothing to undo: no install by torchenv is known here",
            hint="`%torchenv history` shows what was done",
        )
    if undo.problem:
        raise InstallError(f"The last install can't be undone: {undo.problem}", hint=undo.hint)
    # Only here: it looks for some thousand files, and what would be undone is shown often.
    if any(map(lacks_code, _held(kept, environment))):
        raise InstallError(
            "The last install can't be undone: what it replaced is no longer whole",
            hint=_other_way(kept),
        )
    broken = _broken(undo.changes, environment)
    if broken and not consent:
        raise ConsentError(
            f"To undo it would break what was installed since: {'; '.join(broken[:3])}",
            hint="`%torchenv undo --yes` goes back all the same",
            detail="\n".join(broken),
        )
    return kept, undo


def _switch(  # noqa: PLR0917
    transaction: Transaction,
    environment: Environment,
    kept: Kept,
    command: str,
    hold: Hold,
    cancellation: Cancellation,
    started: float,
) -> None:
    changes = tuple(map(_turned, kept.entry.changes))
    after = {change.name: change.after for change in changes}
    torch = after["torch"] if "torch" in after else _version(environment, "torch")
    backend = backend_of_torch_version(torch) if torch else None
    if backend is None and kept.expectation is not None:
        backend = kept.expectation.backend
    entry = new_entry(
        identity=transaction.identity,
        command=command,
        backend=str(backend or ""),
        torch=torch,
        source="what was kept",
        changes=changes,
        outcome="undone",
    )
    with nobody_else(environment.prefix, hold.tell, cancellation):
        cancellation.raise_if_requested()
        hold.check()
        try:
            transaction.switch(
                [change.name for change in changes if change.before is not None],
                incoming=[name for name, _ in kept.held],
                expectation=kept.expectation,
                entry=entry,
            )
            python = environment.interpreter.executable
            there = look_after(python)
            _check_back(changes, there)
            back = [change.name for change in changes if change.after is not None]
            check_imports(python, there, back, cancellation, keeps_bytecode=False)
            cancellation.raise_if_requested()
            hold.check()
            transaction.commit(seconds=time.monotonic() - started)
        except BaseException:
            if transaction.can_roll_back:
                hold.tell(Event(phase="restore", message="Putting back what was there before"))
                transaction.roll_back()
            raise


def _check_back(changes: tuple[Change, ...], after: Environment) -> None:
    problems = check_changes(changes, after)
    if problems:
        raise InstallError(
            f"Not all that was kept came back: {'; '.join(problems[:3])}",
            hint="the environment is as it was; `%torchenv install` brings what you name",
            detail="\n".join(problems),
        )


def _turned(change: Change) -> Change:
    action = {"install": "remove", "remove": "install"}.get(change.action, change.action)
    return Change(
        name=change.name,
        action=action,  # type: ignore[arg-type]  # one of the three
        before=change.after,
        after=change.before,
    )


def _version(environment: Environment, name: str) -> str | None:
    package = environment.installed(name)
    return package.version if package else None


# ------------------------------------------------------------------------------ whether it can be


def _difference(kept: Kept, environment: Environment) -> str:
    """Return what has changed since the install, that going back would take away or mix up."""
    there = metadata_directories(sites(environment))
    left = dict(kept.left)
    for change in by_importance(kept.entry.changes):
        found = there.get(change.name, [])
        if change.after is None:
            if found:
                return f"{change.name} {_version(environment, change.name)} was installed since"
        elif not found:
            return f"{change.name} was removed since"
        elif len(found) > 1 or record_hash(found[0]) != left.get(change.name):
            version = _version(environment, change.name)
            now = "anew" if version == change.after else f"as {version}"
            return f"{change.name} {change.after} was replaced since: it was installed {now}"
    return ""


def _loss(kept: Kept, environment: Environment) -> str:
    """Return what is missing of that which was kept."""
    if not kept.held:
        return ""
    if len(_held(kept, environment)) < len({digest for _, digest in kept.held}):
        return "what it replaced is no longer there"
    return ""


def _held(kept: Kept, environment: Environment) -> list[Path]:
    """Return the metadata folders of what was kept, where they lie now."""
    if not kept.folder:
        return []
    site = environment.site_packages.resolve()
    tree = site / kept.folder / "new" / site.relative_to(environment.prefix.resolve())
    wanted = {digest for _, digest in kept.held}
    return list(
        {
            digest: path
            for path in tree.glob("*.dist-info")
            if (digest := record_hash(path)) in wanted
        }.values()
    )


def _other_way(kept: Kept) -> str:
    """Return how to get to what was there before where it was not kept."""
    before = {change.name: change.before for change in kept.entry.changes if change.before}
    versions = {name: before[name] for name in FAMILY_MEMBERS if name in before}
    if kept.expectation is not None:
        versions = dict(kept.expectation.versions)
    if not versions:
        names = " ".join(change.name for change in by_importance(kept.entry.changes)[:3])
        return f"`%pip uninstall {names}` removes what it brought"
    backend = backend_of_torch_version(versions.get("torch", ""))
    if backend is None and kept.expectation is not None:
        backend = kept.expectation.backend
    words = [str(backend)] if backend else []
    words += [f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]
    return f"`%torchenv install {' '.join(words)}` gets there"


def _broken(changes: tuple[Change, ...], environment: Environment) -> list[str]:
    """Return what packages that stay require, that is met now and would not be after `changes`."""
    after = {change.name: change for change in changes}
    found = []
    for package in environment.packages:
        if package.name in after:
            continue
        for text in package.requires:
            # A name before it is parsed: an environment has hundreds of requirements.
            match = re.match(r"[A-Za-z0-9._-]+", text)
            change = after.get(canonicalize_name(match[0])) if match else None
            if change is not None and _breaks(text, change, environment):
                found.append(_words(package, text))
    return found


def _words(package: InstalledPackage, text: str) -> str:
    return f"{package.name} {package.version} requires {text}"


def _breaks(text: str, change: Change, environment: Environment) -> bool:
    try:
        requirement = Requirement(text)
        minor = ".".join(environment.interpreter.version.split(".")[:2])
        if requirement.marker and not requirement.marker.evaluate({"python_version": minor}):
            return False

        def meets(version: str | None) -> bool:
            return version is not None and requirement.specifier.contains(
                Version(version), prereleases=True
            )

        return meets(change.before) and not meets(change.after)
    except (InvalidRequirement, InvalidVersion, ValueError):
        return False
