"""Restore a notebook's lock: the build of this machine among those that are locked, exactly.

The addresses in a lock are not what is fetched: its versions are pins, resolved from this machine's
own sources by the plan of every install, and each wheel that comes must have a hash that the lock
has. So a mirror serves as well as the index, and a stranger's address is never asked.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from torchenv_magic.builds.backend import Backend
from torchenv_magic.demand import applies_in
from torchenv_magic.environment import FAMILY_MEMBERS, Environment
from torchenv_magic.errors import ConflictError, LockError, PlanError, SourceError
from torchenv_magic.installation.plan import Plan
from torchenv_magic.installation.planning import (
    IndexUnreachableError,
    make_plan,
    with_offers,
)
from torchenv_magic.installation.progress import OnEvent
from torchenv_magic.installation.settings import Sites, read_sites
from torchenv_magic.installation.staging import is_local
from torchenv_magic.installation.uv import Cancellation
from torchenv_magic.project.hosts import is_pytorchs, own_hosts
from torchenv_magic.project.lock import LockedBackend, NotebookLock, pylock_text
from torchenv_magic.project.lock_making import lock_target
from torchenv_magic.selection import Request, Selection
from torchenv_magic.status import Status

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["UnknownServerError", "choose_locked", "make_restore_plan", "restore_request"]


class UnknownServerError(LockError):
    """The lock names a server that nothing here does; consent takes the same file from here."""

    code = "lock-server"


def restore_request(lock: NotebookLock, backend: Backend | None = None) -> Request:
    """Return what is selected for: what was asked for, with the torch release of the lock."""
    return Request(backend=backend, requirements=_with_release(lock))


def choose_locked(
    lock: NotebookLock, status: Status, *, backend: Backend | None = None
) -> LockedBackend:
    """Return what is to be installed here: this machine's build, or the one that is named.

    Parameters
    ----------
    status
        A look at this machine for `restore_request(lock, backend)`.

    Raises
    ------
    LockError
        The lock is for another Python or platform, has no build that runs here, or not all that
        was asked for.
    RequestError
        A marker in it compares what can't be compared.
    """
    locked = _chosen(lock, status, backend)
    for requirement in map(Requirement, lock.asked.requirements):
        # Reading the lock has judged those without; a marker applies here or it doesn't.
        if requirement.marker is None or not applies_in(
            requirement, status.environment.interpreter
        ):
            continue
        version = locked.pins.get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            raise LockError(
                f"The notebook's lock can't be kept: what was asked for of {requirement.name} here "
                f"is not in its table for {locked.backend}",
                hint="lock the notebook anew on a machine like this one",
            )
    return locked


def _chosen(lock: NotebookLock, status: Status, backend: Backend | None) -> LockedBackend:
    selection = status.selection
    here = lock_target(status.environment.interpreter, status.host.platform)
    if here != lock.target:
        raise LockError(
            f"The notebook's lock is for {lock.target}, and this is {here}",
            hint=_nearest(lock, selection, backend),
        )
    if backend is not None:
        named = lock.of(backend)
        if named is None:
            raise LockError(
                f"The notebook's lock has no build for {backend}: it has {lock.names}",
                hint=_nearest(lock, selection, backend),
            )
        return named
    fitting = [each.backend for each in selection.alternatives if each.fits]
    for candidate in filter(None, (selection.backend, *fitting)):
        if (locked := lock.of(candidate)) is not None:
            return locked
    raise LockError(
        f"Nothing that the notebook's lock has runs here: {_reasons(lock, selection)}",
        hint=_nearest(lock, selection, None),
    )


def make_restore_plan(
    lock: NotebookLock,
    status: Status,
    *,
    backend: Backend | None = None,
    sites: Sites | None = None,
    consent: bool = False,
    on_event: OnEvent | None = None,
    cancellation: Cancellation | None = None,
) -> Plan:
    """Return the plan that brings here exactly what the lock says. Changes nothing.

    Parameters
    ----------
    status
        A look at this machine for `restore_request(lock, backend)`.
    backend
        The build to restore; None for this machine's own among those that are locked.
    consent
        Whether the same files, by their hashes, may come from this machine's own indexes where the
        lock names servers that nobody here has named; and from folders where the index is away.

    Raises
    ------
    UnknownServerError
        The lock names servers that nothing here does, and `consent` is not given.
    LockError
        What is locked can't be had here, or is not what the index has.
    IndexUnreachableError
        The index can't be reached, and uv's cache has not all. Its `offers` are plans from folders.
    TargetError, RequestError, SourceError, UvError, InstallCancelled
    """
    locked = choose_locked(lock, status, backend=backend)
    environment = status.environment
    if sites is None:
        sites = read_sites(prefix=environment.prefix)
    chosen = locked.backend
    try:
        plan = make_plan(
            replace(
                status.selection,
                backend=chosen,
                reason=_reason(chosen, status.selection, named=backend is not None),
                exclusion=None,
            ),
            environment,
            Request(backend=chosen, requirements=lock.asked.requirements),
            sites=sites,
            pins=locked.pins,
            stored=pylock_text(lock.target, locked),
            # Of what folders offer, one that is not what is locked must not stand for the others.
            consent=False,
            on_event=on_event,
            cancellation=cancellation,
        )
    except IndexUnreachableError as error:
        offers, refusal = _offers(error.offers, locked, environment, sites, consent=consent)
        if not offers:
            if refusal is None:
                raise
            raise refusal from error
        if not consent:
            away = error.__cause__ if isinstance(error.__cause__, SourceError) else error
            again = with_offers(away, offers, chosen)
            again.hint = "`%torchenv restore --yes` uses it"
            raise again from error
        note = f"The index is away. Used with your consent: {offers[0].source}."
        return replace(offers[0], notes=(*offers[0].notes, note))
    except PlanError as error:
        if isinstance(error, SourceError):
            raise
        # Nobody has written these versions: what is advised for a request is no help.
        in_the_way = isinstance(error, ConflictError)
        raise LockError(
            f"What is locked can't be had here: {error.message}",
            hint="restore it in an environment of its own"
            if in_the_way
            else _nearest(lock, status.selection, chosen),
            detail=error.detail,
        ) from error
    plan = _checked(plan, locked, environment, sites, consent=consent)
    best = status.selection.backend
    if backend is None and best not in (None, chosen):
        note = f"{best} is better here, and the lock does not have it"
        plan = replace(plan, notes=(*plan.notes, note))
    return plan


# ---------------------------------------------------------------------------------- what is chosen


def _reason(backend: Backend, selection: Selection, *, named: bool) -> str:
    if named:
        return "as asked, and as locked"
    if backend == selection.backend:
        return selection.reason
    found = (each.reason for each in selection.alternatives if each.backend == backend)
    return next(found, "as locked")


def _reasons(lock: NotebookLock, selection: Selection) -> str:
    reasons = {each.backend: each.reason for each in selection.alternatives}
    return "; ".join(
        f"{each.backend}: {reasons.get(each.backend, 'not for this platform')}"
        for each in lock.backends
    )


def _with_release(lock: NotebookLock) -> tuple[str, ...]:
    others = [
        text
        for text in lock.asked.requirements
        if canonicalize_name(Requirement(text).name) != "torch"
    ]
    return (f"torch=={lock.torch}", *others)


def _nearest(lock: NotebookLock, selection: Selection, backend: Backend | None) -> str:
    """Return the hint that leads to the same release where the lock itself doesn't."""
    build = backend or selection.backend
    if build is None:
        return "see `%torchenv list` for what runs here"
    line = shlex.join(["%torchenv", "install", str(build), *_with_release(lock)])
    return f"the nearest is `{line}`, which is not locked"


# -------------------------------------------------------------------------------------- the check


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wheel:
    """A wheel that would be fetched."""

    address: str
    sha256: str | None

    @property
    def host(self) -> str:
        return (urlsplit(self.address).hostname or "").lower()

    @property
    def file_name(self) -> str:
        return unquote(urlsplit(self.address).path).rpartition("/")[2]


def _offers(
    offers: Iterable[Plan],
    locked: LockedBackend,
    environment: Environment,
    sites: Sites,
    *,
    consent: bool,
) -> tuple[tuple[Plan, ...], LockError | None]:
    """Return those that are what is locked, and why the last of the others is not."""
    fitting, refusal = [], None
    for offer in offers:
        try:
            fitting.append(_checked(offer, locked, environment, sites, consent=consent))
        except LockError as error:
            refusal = error
    return tuple(fitting), refusal


def _checked(
    plan: Plan, locked: LockedBackend, environment: Environment, sites: Sites, *, consent: bool
) -> Plan:
    """Return the plan, if what it would bring is what is locked; with the hashes in it."""
    if plan.nothing_to_do:
        return plan
    _check_versions(plan, locked, environment)
    if plan.lock_format == "requirements":
        # The index tells no hashes, and the lock does: uv is to hold what comes against these.
        return replace(plan, lock=_with_hashes(plan.lock, locked))
    wheels = _wheels(plan.lock)
    for name, wheel in wheels.items():
        package = locked.package(name)
        if package is None or wheel.sha256 in package.hashes:
            continue
        known = {each.file_name for each in package.wheels}
        if wheel.file_name in known:
            problem = f"{plan.source} has another file by the name of `{wheel.file_name}`"
            hint = "find out who has changed it before you install either"
        else:
            problem = f"of {name} {package.version} this machine takes `{wheel.file_name}`, which"
            problem += " is another wheel than the one that was locked"
            hint = "lock the notebook anew on a machine like this one"
        raise LockError(f"The lock can't be kept: {problem}", hint=hint)
    if not consent:
        _check_hosts(wheels, locked, sites)
    return plan


def _check_versions(plan: Plan, locked: LockedBackend, environment: Environment) -> None:
    """Check that each package will be there as locked, and nothing besides.

    A member of the family that is installed and not locked follows the build, else it would crash.
    """
    there = {package.name: package.version for package in environment.packages} | plan.versions
    for name, version in locked.pins.items():
        if there.get(name) != version:
            raise LockError(
                f"The lock can't be kept: {name} would be {there.get(name, 'missing')} in place of "
                f"{version}",
                hint="restore it in an environment of its own",
            )
    members = {package.name for package in environment.packages} & {*FAMILY_MEMBERS}
    surplus = sorted(plan.versions.keys() - locked.pins.keys() - members)
    if surplus:
        raise LockError(
            f"The lock can't be kept: what is locked needs {surplus[0]} here, which is not locked",
            hint="lock the notebook anew on a machine like this one",
        )


def _check_hosts(wheels: dict[str, _Wheel], locked: LockedBackend, sites: Sites) -> None:
    """Check that the lock names no server that is a stranger here."""
    known = own_hosts(sites) | {wheel.host for wheel in wheels.values()}
    for name, wheel in wheels.items():
        package = locked.package(name)
        # What lies in a folder of this machine comes over no network.
        if package is None or is_local(wheel.address):
            continue
        for host in (each.host for each in package.wheels):
            if host not in known and not is_pytorchs(host):
                raise UnknownServerError(
                    f"The notebook's lock has {name} from `{host}`, which nothing here names",
                    hint="`%torchenv restore --yes` takes the same file, by its hash, from this "
                    "machine's own index",
                )


def _wheels(lock: str) -> dict[str, _Wheel]:
    found = {}
    packages: Iterable[dict[str, Any]] = tomllib.loads(lock).get("packages", [])
    for package in packages:
        for wheel in package.get("wheels") or [{}]:
            found[str(canonicalize_name(package["name"]))] = _Wheel(
                address=wheel.get("url") or wheel.get("path") or "",
                sha256=(wheel.get("hashes") or {}).get("sha256"),
            )
    return found


def _with_hashes(requirements: str, locked: LockedBackend) -> str:
    """Return pinned requirements with the hashes that the lock has of them."""
    lines = []
    for line in requirements.splitlines():
        match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*(?===)", line)
        package = locked.package(canonicalize_name(match[0])) if match else None
        hashes = sorted(package.hashes) if package else []
        lines.append(" ".join([line, *(f"--hash=sha256:{digest}" for digest in hashes)]))
    return "".join(f"{line}\n" for line in lines)
