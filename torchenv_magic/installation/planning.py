"""Make a plan: ask uv what would change, lock it, and find out what it costs.

The steps, each a run of uv that leaves the environment alone:

1. where the request looks satisfied, a dry run without a network says whether there is nothing to
   do; else
2. a dry run says what would change (uv's own resolver, the user's own configuration);
3. its versions are compiled to a pylock, so that exactly these files are fetched and linked later,
   also where the index forbids caching its pages, as the PyTorch index does;
4. an offline attempt tells whether the cache has all of it, and HEAD requests the missing sizes.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from torchenv_magic.accelerators.platform import read_platform
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import load_catalog
from torchenv_magic.builds.current import is_offline
from torchenv_magic.demand import parse_requirement
from torchenv_magic.environment import (
    FAMILY_MEMBERS,
    Environment,
    InstalledPackage,
    backend_of_torch_version,
    check_target,
    is_condas,
    is_satellite,
    shown_path,
)
from torchenv_magic.errors import (
    PlanError,
    RequestError,
    SelectionError,
    SourceError,
    TargetError,
    TorchEnvError,
)
from torchenv_magic.installation.failures import explain, not_found
from torchenv_magic.installation.locking import uv_is_locked
from torchenv_magic.installation.narrator import resolved
from torchenv_magic.installation.plan import (
    Change,
    Download,
    LockedPackage,
    Plan,
    Question,
    Source,
    ask,
    broken_by,
    by_importance,
    dry_run_arguments,
    lock_of,
    looks_satisfied,
    orphans,
    read_changes,
    read_lock,
    source_arguments,
)
from torchenv_magic.installation.progress import Event, OnEvent, format_bytes, guarded
from torchenv_magic.installation.settings import Sites, goes_unencrypted, read_sites
from torchenv_magic.installation.sources import (
    IndexAnswer,
    index_source,
    probe_index,
    sizes,
    source_environment,
    wheel_folders,
    wheels_in,
)
from torchenv_magic.installation.space import plan_space
from torchenv_magic.installation.staging import cached_packages, is_local
from torchenv_magic.installation.uv import (
    Cancellation,
    Completed,
    Lines,
    Uv,
    find_uv,
)
from torchenv_magic.selection import Request, Selection

__all__ = ["IndexUnreachableError", "check_requirements", "make_plan", "with_offers"]

logger = logging.getLogger(__name__)

# Only after this does an unreachable index end the resolution: uv may know a way that we don't.
_HEAD_START_SECONDS = 1.0
# uv has just been there: its page and the sizes of its files come at once, or aren't waited for.
_ANSWER_SECONDS = 5.0
# Newer wheels of other builds that lie in a folder of uv's settings: one a run of uv.
_FOREIGN_WHEELS = 4
# More than these between two releases of the catalog's are not worth the time of a second choice.
_UNKNOWN_RELEASES = 3


class IndexUnreachableError(SourceError):
    """The PyTorch index can't be reached; `offers` are plans from elsewhere, for consent."""

    code = "index-unreachable"

    def __init__(
        self, message: str, *, offers: tuple[Plan, ...] = (), hint: str = "", detail: str = ""
    ) -> None:
        super().__init__(message, hint=hint, detail=detail)
        self.offers = offers


def check_requirements(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the requirements as uv will get them.

    Raises
    ------
    RequestError
        One is not a requirement of PEP 508; options of pip or uv are none.
    """
    for text in texts:
        parse_requirement(text)
    return tuple(texts)


def _check_wheels(request: Request) -> None:
    """Refuse the address of a member of the family that is no wheel: to build it runs its code."""
    for requirement in map(Requirement, request.requirements):
        if requirement.url is None or canonicalize_name(requirement.name) not in FAMILY_MEMBERS:
            continue
        if not urlsplit(requirement.url).path.endswith(".whl"):
            raise RequestError(
                f"{requirement.name} from {requirement.url} is no wheel: it would be built here, "
                "which runs its code and takes hours",
                hint="name a wheel, or allow it by `--allow-sdist`",
            )


def make_plan(
    selection: Selection,
    environment: Environment,
    request: Request,
    *,
    sites: Sites | None = None,
    pins: Mapping[str, str] | None = None,
    stored: str = "",
    consent: bool = False,
    on_event: OnEvent | None = None,
    cancellation: Cancellation | None = None,
) -> Plan:
    """Return what installing `request` with the selected backend would do. Changes nothing.

    Parameters
    ----------
    sites
        Where wheels may come from; None for what variables and configuration files say.
    pins
        Normalized name to version of what is to be there exactly so, whatever `request` says of it:
        a lock's. Such wheels come from the index or from folders, and never from PyPI in their
        place.
    stored
        The pylock of these pins, which is the plan where the index is away and uv's cache has all.
    consent
        Whether wheels from elsewhere than the PyTorch index may be planned where that can't be
        reached.

    Raises
    ------
    IndexUnreachableError
        The index can't be reached. Its `offers` are plans from wheel folders or PyPI.
    TargetError, RequestError, SelectionError, PlanError, UvError, InstallCancelled
    """
    check_target(environment)
    check_requirements(request.requirements)
    if sites is None:
        sites = read_sites(prefix=environment.prefix)
    if not sites.allow_sdist:
        _check_wheels(request)
    # The catalog ends on the day that it was made, and a person may know better: of a backend that
    # was named, the index decides what there is.
    backend = selection.backend or request.backend
    if backend is None:
        reasons = "; ".join(selection.warnings or (selection.reason,))
        raise SelectionError(
            f"No build of PyTorch fits: {reasons}",
            hint="see `%torchenv list` for every build and its reason, or name a backend: the "
            "index then decides what there is",
        )
    choice = _choice_in_folders(selection, request, environment, sites) or _Choice(
        backend=backend, reason=selection.reason, exclusion=selection.exclusion
    )
    wish = Cancellation()
    planner = _Planner(
        uv=find_uv(),
        environment=environment,
        request=request,
        backend=choice.backend,
        sites=sites,
        reason=choice.reason,
        exclusion=choice.exclusion,
        pins=pins or {},
        stored=stored,
        on_event=guarded(on_event),
        cancellation=wish,
    )
    with (cancellation or Cancellation()).stops(wish.cancel):
        try:
            return planner.plan(consent=consent)
        except OSError as error:
            # Neither the environment nor uv: the folder for temporary files, or a home.
            reason = f"`{error.filename}`: {error.strerror}" if error.filename else str(error)
            raise PlanError(
                f"The plan can't be made: {reason}",
                hint="free some space, or set TMPDIR to a folder that can be written",
            ) from error
        finally:
            # What runs beside this thread ends with it.
            wish.cancel()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    backend: Backend
    reason: str
    exclusion: str | None


def _choice_in_folders(
    selection: Selection, request: Request, environment: Environment, sites: Sites
) -> _Choice | None:
    """Return the best build that fits and lies in a folder, where the choice is open.

    Who names a folder of wheels without a backend has just these: what is best beyond them may not
    be there to be had.
    """
    named = os.environ.get("UV_TORCH_BACKEND", "").strip().lower() not in ("", "auto")
    if not sites.find_links or request.backend is not None or named:
        return None
    for alternative in selection.alternatives:
        if not alternative.fits:
            continue
        chosen = alternative.backend == selection.backend
        limit = f"torch<={alternative.torch}" if alternative.torch else None
        exclusion = selection.exclusion if chosen else limit
        for folder in sites.find_links:
            if wheels_in(
                Path(folder),
                request,
                alternative.backend,
                environment.interpreter,
                exclusion=exclusion,
            ):
                reason = selection.reason if chosen else alternative.reason
                return _Choice(backend=alternative.backend, reason=reason, exclusion=exclusion)
    return None


class _Planner:
    """One request's way to a plan; holds what every step needs."""

    def __init__(
        self,
        *,
        uv: Uv,
        environment: Environment,
        request: Request,
        backend: Backend,
        sites: Sites,
        reason: str,
        exclusion: str | None,
        pins: Mapping[str, str],
        stored: str,
        on_event: OnEvent,
        cancellation: Cancellation,
    ) -> None:
        self.uv = uv
        self.environment = environment
        self.python = environment.interpreter.executable
        self.request = request
        self.backend = backend
        self.sites = sites
        self.index = index_source(backend, sites)
        self.declined: list[str] = []
        # What a source distribution builds runs code of whoever wrote it; and what a lock names,
        # somebody else has chosen.
        members = () if sites.allow_sdist else FAMILY_MEMBERS
        self._wheels_only = tuple(
            f"--only-binary={name}" for name in ((":all:",) if pins else members)
        )
        self.reason = reason
        self.exclusion = exclusion
        self.pins = pins
        self.stored = stored
        # Nothing of what was asked for where the lock was made, beyond what it became.
        self.wanted = (
            replace(request, requirements=tuple(f"{name}=={pins[name]}" for name in pins))
            if pins
            else request
        )
        self.on_event = on_event
        self.cancellation = cancellation
        self.offline = is_offline(os.environ)
        self.subject = f"{' '.join(request.requirements)} for {backend}"
        self.question = ask(self.wanted, environment, backend, exclusion=exclusion)

    def plan(self, *, consent: bool) -> Plan:
        """Return the plan from the index or, with consent, from where else the wheels are."""
        self._say_who_works_here()
        source = self.index
        if looks_satisfied(self.question, self.environment):
            completed = self._dry_run(self.question, source, "--offline")
            if completed.returncode == 0 and not self._changes(completed):
                return self._plan(source, ())
        if self.sites.find_links and (plan := self._from_folders()) is not None:
            return plan
        try:
            plan = self.from_index(source)
            return replace(plan, notes=(*plan.notes, *self.declined))
        except SourceError as error:
            self.cancellation.raise_if_requested()
            if self.stored and (kept := self._from_cache()) is not None:
                return kept
            offers = self.offers()
            if not offers:
                if self.declined:
                    error.message = f"{error.message}. {' '.join(self.declined)}".rstrip(".")
                raise
            if not consent:
                raise with_offers(error, offers, self.backend) from error
            note = f"{error.message}. Used with your consent: {offers[0].source}."
            return replace(offers[0], notes=(*offers[0].notes, note))

    def _from_folders(self) -> Plan | None:
        """Return the plan from the folders that were named for that, or None with the reason why.

        First without any network: a folder that was made for this machine has all of it.
        """
        folders = self.sites.find_links
        origin = self.sites.find_links_origin
        installed = {p.name for p in self.environment.packages} & {*FAMILY_MEMBERS}
        for folder in folders:
            source = Source(
                kind="folder",
                location=folder,
                origin=origin,
                also=tuple(other for other in folders if other != folder),
            )
            offer = wheels_in(
                Path(folder),
                self.wanted,
                self.backend,
                self.environment.interpreter,
                also=sorted(installed) if self.question.reinstall else (),
                exclusion=self.exclusion,
            )
            if offer is None or offer.missing:
                names = " and ".join(offer.missing) if offer is not None else "torch"
                self.declined.append(f"Not from {source}: it has no {names} that fits.")
                continue
            self.on_event(Event(phase="resolve", message=f"Looking through {source}"))
            pins = {name: f"=={version}" for name, version in offer.pins}
            plan = self._offer(source, pins, (("--offline", "--no-index"), (), ("--offline",)))
            if plan is not None and self._is_of_one_build(plan):
                return plan
            self.declined.append(
                f"Not from {source}: what its wheels need besides was not to be had."
            )
        for text in self.declined:
            self.on_event(Event(phase="resolve", log=text))
        return None

    def _say_who_works_here(self) -> None:
        if uv_is_locked(self.environment.prefix):
            message = "Waiting for another uv that works on this environment"
            self.on_event(Event(phase="resolve", message=message))

    # ------------------------------------------------------------------------------- the index

    def from_index(self, source: Source) -> Plan:
        """Return the plan from the PyTorch index.

        Raises
        ------
        SourceError
            The index is away, refuses, or breaks off.
        """
        self.on_event(Event(phase="resolve", message=f"Asking {source} what would change"))
        # The probe only ever ends a resolution that can't succeed, so it has a wish of its own.
        attempt = Cancellation()
        finished = threading.Event()

        def ask_once() -> IndexAnswer:
            answer = probe_index(source)
            if (
                answer.state == "unreachable"
                and not self._asks_for_addresses()
                and not finished.wait(_HEAD_START_SECONDS)
            ):
                attempt.cancel()
            return answer

        probe = None if self.offline else _beside(ask_once)
        with self.cancellation.stops(attempt.cancel):
            try:
                completed = self._dry_run(self.question, source, wish=attempt)
            except TorchEnvError:
                self.cancellation.raise_if_requested()
                if probe is None or not attempt.requested:
                    raise
                raise self._unreachable(probe.result().detail) from None
            finally:
                finished.set()
        if completed.returncode != 0:
            raise self._failed(completed, probe)
        changes = self._of_this_build(self._changes(completed), source)
        if not changes:
            return self._plan(source, ())
        answer = self._answer_of(probe)
        torch = next((c.after for c in changes if c.name == "torch"), None)
        if source.kind == "mirror":
            self._check_from_mirror(source, changes, answer)
        elif answer.state == "refused" and torch is not None and not self._asks_for_addresses():
            # uv took it from a folder in its own settings; whether that is wanted is to be asked.
            raise self._refused(answer)
        hashed = torch is None or not answer.lacks_hashes(torch)
        return self._finish(source, changes, "pylock" if hashed else "requirements")

    def _of_this_build(self, changes: tuple[Change, ...], source: Source) -> tuple[Change, ...]:
        """Return the changes without members of another build: a folder in uv's settings has such.

        uv takes a newer torch from there, whatever its build is.
        """
        question = self.question
        for _ in range(_FOREIGN_WHEELS):
            foreign = [f"{c.name}!={c.after}" for c in changes if self._is_foreign(c)]
            if not foreign or self._asks_for_addresses():
                break
            question = replace(question, constraints=(*question.constraints, *foreign))
            completed = self._dry_run(question, source)
            if completed.returncode != 0:
                raise self._explain(completed, question, source)
            changes = self._changes(completed)
        return changes

    def _is_foreign(self, change: Change) -> bool:
        build = backend_of_torch_version(change.after) if change.after else None
        return change.name in FAMILY_MEMBERS and build is not None and build != self.backend

    def _asks_for_addresses(self) -> bool:
        return any(Requirement(text).url is not None for text in self.request.requirements)

    def _answer_of(
        self, probe: Future[IndexAnswer] | None, *, seconds: float = _ANSWER_SECONDS
    ) -> IndexAnswer:
        """Return what the probe said, if it says so in time."""
        if probe is not None:
            come = threading.Event()
            probe.add_done_callback(lambda _: come.set())
            with self.cancellation.stops(come.set):
                if come.wait(seconds) and probe.done() and probe.exception() is None:
                    return probe.result()
        self.cancellation.raise_if_requested()
        return IndexAnswer(state="unknown")

    def _failed(self, completed: Completed, probe: Future[IndexAnswer] | None) -> TorchEnvError:
        """Return why the index's resolution failed, with what only the probe knows."""
        error = self._explain(completed, self.question, self.index)
        answer = self._answer_of(probe, seconds=_HEAD_START_SECONDS)
        if answer.state == "unreachable" and isinstance(error, SourceError):
            return self._unreachable(answer.detail)
        if answer.state == "refused" and not_found(completed) == "torch":
            # uv takes 403 and 404 for an index that doesn't have the package.
            return self._refused(answer, detail=error.detail)
        return error

    def _check_from_mirror(
        self, source: Source, changes: Iterable[Change], answer: IndexAnswer
    ) -> None:
        """Refuse a member that a mirror does not have: uv would take another build from PyPI."""
        doubtful = []
        for change in changes:
            if change.name not in FAMILY_MEMBERS or change.after is None or self._asks_for(change):
                continue
            if backend_of_torch_version(change.after) != self.backend:
                doubtful.append(change)
        if not doubtful:
            return
        # On macOS, and in older releases, a wheel for the CPU bears no build in its version.
        elsewhere = doubtful
        if self.backend.kind == "cpu":
            origins = self._origins(source, doubtful)
            elsewhere = [c for c in doubtful if not _is_below(origins.get(c.name), source)]
        if answer.state == "refused" and any(change.name == "torch" for change in elsewhere):
            raise self._refused(answer)
        if elsewhere:
            names = " and ".join(change.name for change in by_importance(elsewhere))
            raise SourceError(
                f"{_capital(source)} has no {names} for {self.backend}",
                hint="check the mirror's address and what is copied to it, or choose another "
                "backend (`%torchenv list`)",
            )

    def _asks_for(self, change: Change) -> bool:
        """Whether the request names an address for it."""
        return any(
            requirement.url is not None and canonicalize_name(requirement.name) == change.name
            for requirement in map(Requirement, self.request.requirements)
        )

    def _origins(self, source: Source, changes: Iterable[Change]) -> dict[str, str]:
        """Return the index that uv takes each of the packages from."""
        text = self._compile(source, self._pins(changes), "--no-deps", "--emit-index-annotation")
        found = re.findall(
            r"^([A-Za-z0-9._-]+)==.*\n(?:    # .*\n)*?    # from (\S+)", text, re.MULTILINE
        )
        return {canonicalize_name(name): address for name, address in found}

    def _refused(self, answer: IndexAnswer, *, detail: str = "") -> SourceError:
        if self.index.kind == "mirror":
            return SourceError(
                f"{_capital(self.index)} has no PyTorch for {self.backend}: {answer.detail}",
                hint="check the mirror's address and what is copied to it, or choose another "
                "backend (`%torchenv list`)",
                detail=detail,
            )
        return SourceError(
            f"The PyTorch index answers {answer.detail} for {self.backend}",
            hint="check that download.pytorch.org may be reached from here, name a mirror by "
            "`--index-base` or a folder by `--find-links`, or choose another backend",
            detail=detail,
        )

    def _unreachable(self, detail: str) -> IndexUnreachableError:
        if self.index.kind == "mirror":
            return IndexUnreachableError(
                f"{_capital(self.index)} can't be reached from here",
                hint="check its address, the connection and HTTPS_PROXY, or name a folder of "
                "wheels by `--find-links`",
                detail=detail,
            )
        return IndexUnreachableError(
            "The PyTorch index (download.pytorch.org) can't be reached from here",
            hint="check the connection or HTTPS_PROXY, or name a mirror by `--index-base` or a "
            "folder of wheels by `--find-links`",
            detail=detail,
        )

    # ------------------------------------------------------------------------------ from the cache

    def _from_cache(self) -> Plan | None:
        """Return the plan of the stored pylock if uv's cache has all of it, by address and hash."""
        members = {p.name for p in self.environment.packages} & {*FAMILY_MEMBERS}
        if self.question.reinstall and members - self.pins.keys():
            # They would have to follow, and the lock doesn't say to what.
            return None
        with tempfile.TemporaryDirectory(prefix="torchenv-") as folder:
            file = Path(folder, "pylock.toml")
            file.write_text(self.stored, encoding="utf-8")
            completed = self._run(
                [
                    "pip",
                    "install",
                    "--dry-run",
                    "--output-format=json",
                    "--offline",
                    "--no-deps",
                    "--preview-features=pylock",
                    f"--python={self.python}",
                    f"--requirements={file}",
                    *(f"--reinstall-package={name}" for name in self.question.reinstall),
                ],
                source=self.index,
            )
        if completed.returncode != 0:
            return None
        changes = self._changes(completed)
        if broken_by(changes, self.environment):
            return None
        lock = lock_of(self.stored, [change.name for change in changes])
        packages = read_lock(lock)
        cached = cached_packages(self.uv, self.python, lock, packages, self.cancellation)
        if any(package.name not in cached for package in packages):
            return None
        self._check_replaceable(changes)
        if any(change.name == "torch" and change.before for change in changes):
            changes += self._orphans(changes, tuple(self.pins))
        downloads = tuple(
            Download(
                name=package.name,
                version=package.version,
                size_bytes=package.size_bytes,
                cached=True,
            )
            for package in packages
        )
        return replace(self._plan(self.index, changes, downloads, lock), offline=True)

    # ---------------------------------------------------------------------------- from elsewhere

    def offers(self) -> tuple[Plan, ...]:
        """Return plans from wheel folders, then from PyPI's own wheel, that fit the choice."""
        if self.index.kind == "mirror" or self.pins:
            # Who names a mirror wants what is on it, and never PyPI's build in its place; and who
            # has a lock wants the build that is locked.
            return tuple(self._folder_offers())
        return (*self._folder_offers(), *self._pypi_offers())

    def _folder_offers(self) -> Iterable[Plan]:
        directory = None
        with suppress(OSError):
            directory = Path.cwd()
        installed = {p.name for p in self.environment.packages} & {*FAMILY_MEMBERS}
        for folder in wheel_folders(prefix=self.environment.prefix, directory=directory):
            offer = wheels_in(
                folder,
                self.wanted,
                self.backend,
                self.environment.interpreter,
                also=sorted(installed) if self.question.reinstall else (),
                exclusion=self.exclusion,
            )
            if offer is None or offer.missing:
                continue
            source = Source(kind="folder", location=str(folder))
            pins = {name: f"=={version}" for name, version in offer.pins}
            plan = self._offer(source, pins)
            if plan is not None and self._is_of_one_build(plan):
                yield plan

    def _is_of_one_build(self, plan: Plan) -> bool:
        """Whether no member comes from PyPI, in another build, beside those of the folder."""
        return all(
            backend_of_torch_version(version) == self.backend
            or (backend_of_torch_version(version) is None and self.backend.kind == "cpu")
            for name, version in plan.versions.items()
            if name in FAMILY_MEMBERS and name != "torch"
        )

    def _pypi_offers(self) -> Iterable[Plan]:
        """Return the newest torch that PyPI really has and whose one build is the chosen one."""
        catalog = load_catalog()
        platform = read_platform(environ=os.environ).wheel_platform
        python_tag = self.environment.interpreter.tag
        versions = catalog.pypi_versions(platform, python_tag)
        fitting = [v for v in versions if catalog.pypi_default(v, platform) == self.backend]
        if not fitting:
            return
        # Not one version, since an index can lag behind the catalog, but each that is known to fit.
        specifier = SpecifierSet(f">={min(fitting)},<={max(fitting)}") & self._torch_specifier()
        others = [version for version in versions if version not in fitting]
        source = Source(kind="pypi", location="PyPI")
        for _ in range(_UNKNOWN_RELEASES):
            excluded = SpecifierSet(",".join(f"!={version}" for version in others))
            plan = self._offer(source, {"torch": str(specifier & excluded)})
            torch = plan.versions.get("torch") if plan is not None else None
            if plan is None or torch is None or Version(torch) in fitting:
                if plan is not None:
                    yield plan
                return
            # A release that the catalog does not know: what is in it isn't known either.
            others.append(Version(torch))

    def _torch_specifier(self) -> SpecifierSet:
        specifier = SpecifierSet()
        for text in (*self.request.requirements, *([self.exclusion] if self.exclusion else [])):
            requirement = Requirement(text)
            if canonicalize_name(requirement.name) == "torch":
                specifier &= requirement.specifier
        return specifier

    def _offer(
        self,
        source: Source,
        pins: Mapping[str, str],
        attempts: Sequence[tuple[str, ...]] = ((), ("--offline",)),
    ) -> Plan | None:
        question = ask(
            self.wanted, self.environment, self.backend, exclusion=self.exclusion, pins=pins
        )
        # What is not in the folder may be in uv's cache, where PyPI is away as well.
        for options in attempts:
            try:
                completed = self._dry_run(question, source, *options)
                if completed.returncode != 0:
                    raise self._explain(completed, question, source)
                plan = self._finish(source, self._changes(completed), "pylock", *options)
            except SourceError as error:
                self._decline(source, error)
            except TorchEnvError as error:
                self._decline(source, error)
                if "--no-index" not in options:
                    return None
            else:
                if not options or all(d.cached or d.local for d in plan.downloads):
                    return plan
        return None

    def _decline(self, source: Source, error: TorchEnvError) -> None:
        """Say in the log why an offer is none."""
        self.cancellation.raise_if_requested()
        self.on_event(Event(phase="resolve", log=f"{source}: {error.message}"))

    # --------------------------------------------------------------------------------- the steps

    def _dry_run(
        self,
        question: Question,
        source: Source,
        *options: str,
        wish: Cancellation | None = None,
    ) -> Completed:
        with tempfile.TemporaryDirectory(prefix="torchenv-") as folder:
            requirements = Path(folder, "requirements.txt")
            constraints = Path(folder, "constraints.txt")
            requirements.write_text("\n".join(question.requirements), encoding="utf-8")
            constraints.write_text("\n".join(question.constraints), encoding="utf-8")
            arguments = dry_run_arguments(
                question,
                python=self.python,
                backend=self.backend,
                source=source,
                requirements_file=requirements,
                constraints_file=constraints,
            )
            arguments += [*self._wheels_only, *options]
            completed = self._run(arguments, wish=wish, source=source)
        if completed.returncode == 0 and (found := resolved(completed.stderr)):
            self.on_event(Event(phase="resolve", message=found))
        return completed

    def _changes(self, completed: Completed) -> tuple[Change, ...]:
        return read_changes(completed.stdout, self.environment)

    def _finish(
        self,
        source: Source,
        changes: tuple[Change, ...],
        lock_format: Literal["pylock", "requirements"],
        *options: str,
    ) -> Plan:
        self._check_replaceable(changes)
        self._check_build(source, changes)
        needed: Future[tuple[str, ...] | None] | None = None
        if any(c.name == "torch" and c.before for c in changes) and any(
            is_satellite(p.name) for p in self.environment.packages
        ):
            needed = _beside(lambda: self._needed(source, changes, *options))
        pins = self._pins(changes)
        if lock_format == "requirements":
            # uv reads options in such a file too.
            lock = "".join([*(f"{option}\n" for option in self._wheels_only), pins])
            downloads = tuple(
                Download(name=c.name, version=c.after, size_bytes=None)
                for c in changes
                if c.after is not None
            )
        else:
            lock = self._compile(source, pins, "--no-deps", "--format=pylock.toml", *options)
            packages = read_lock(lock)
            _check_copied(source, packages)
            downloads = self._downloads(lock, packages)
            source = self._real_source(source, packages)
        if needed is not None:
            changes += self._orphans(changes, needed.result())
        return self._plan(source, changes, downloads, lock, lock_format)

    def _real_source(self, source: Source, packages: Iterable[LockedPackage]) -> Source:
        """Return where torch comes from: uv takes what a folder in its own settings has as well."""
        address = next((p.address for p in packages if p.name == "torch"), None)
        if source.kind not in ("index", "mirror") or address is None or not is_local(address):
            return source
        if is_local(source.location):
            return source
        path = url2pathname(urlsplit(address).path) if "://" in address else address
        return Source(kind="folder", location=str(Path(path).parent))

    def _pins(self, changes: Iterable[Change]) -> str:
        addresses: dict[str, str] = {
            canonicalize_name(requirement.name): f"{requirement.name} @ {requirement.url}"
            for requirement in map(Requirement, self.request.requirements)
            if requirement.url is not None
        }
        return "".join(
            f"{addresses.get(c.name) or f'{c.name}=={c.after}'}\n"
            for c in changes
            if c.after is not None
        )

    def _downloads(self, lock: str, packages: Sequence[LockedPackage]) -> tuple[Download, ...]:
        unknown = [p.address for p in packages if p.address and p.size_bytes is None]
        asked: Future[dict[str, int]] | None = None
        if unknown and not (self.offline and not all(map(is_local, unknown))):
            asked = _beside(lambda: sizes(unknown))
        cached = cached_packages(self.uv, self.python, lock, packages, self.cancellation)
        known: dict[str, int] = {}
        if asked is not None:
            come = threading.Event()
            asked.add_done_callback(lambda _: come.set())
            with self.cancellation.stops(come.set):
                come.wait(_ANSWER_SECONDS)
            self.cancellation.raise_if_requested()
            known = asked.result() if asked.done() else {}
        return tuple(
            Download(
                name=package.name,
                version=package.version,
                size_bytes=known.get(package.address or "")
                if package.size_bytes is None
                else package.size_bytes,
                cached=package.name in cached,
                local=is_local(package.address),
            )
            for package in packages
        )

    def _check_replaceable(self, changes: Iterable[Change]) -> None:
        """Refuse to replace what only its own installer can replace."""
        touched = {change.name for change in changes if change.before is not None}
        for package in self.environment.packages:
            if package.name not in touched or package.metadata_directory is None:
                continue
            if is_condas(self.environment, package):
                raise TargetError(
                    f"{package.name} {package.version} was installed by conda, which would not "
                    "know that it was replaced",
                    hint=f"run `conda remove --force {package.name}` first, or use an environment "
                    "of your own",
                )
            if package.metadata_directory.suffix == ".egg-info":
                raise TargetError(
                    f"{package.name} {package.version} was installed without a list of its files, "
                    "so it can't be replaced",
                    hint=f"remove it by hand (`{shown_path(package.metadata_directory)}`), or use "
                    "an environment of your own",
                )

    def _check_build(self, source: Source, changes: Iterable[Change]) -> None:
        """Refuse a member of another build than the chosen one: its address was asked for."""
        for change in changes:
            if self._is_foreign(change):
                build = backend_of_torch_version(change.after or "")
                place = "its address" if self._asks_for_addresses() else source
                raise PlanError(
                    f"{change.name} {change.after} from {place} is a build for {build}, not for "
                    f"{self.backend}",
                    hint=f"choose {build}, or leave the address out",
                )

    def _orphans(
        self, changes: tuple[Change, ...], needed: tuple[str, ...] | None
    ) -> tuple[Change, ...]:
        if needed is None:
            return ()
        requires = {p.name: _required_names(p) for p in self.environment.packages}
        found = orphans(self.environment, changes, needed, requires)
        self._check_replaceable(found)
        return found

    def _needed(
        self, source: Source, changes: Iterable[Change], *options: str
    ) -> tuple[str, ...] | None:
        """Return the names of all that the family's new members require, directly or not.

        None where that can't be found out: then nothing of the old build is removed.
        """
        members = self._pins(c for c in changes if c.name in FAMILY_MEMBERS)
        try:
            listing = self._compile(source, members, "--no-annotate", *options)
        except TorchEnvError as error:
            self.cancellation.raise_if_requested()
            logger.info("what the new build needs is not known: %s", error.message)
            return None
        names = (re.match(r"[A-Za-z0-9._-]+", line) for line in listing.splitlines())
        return tuple(canonicalize_name(match[0]) for match in names if match)

    def _compile(self, source: Source, pins: str, *options: str) -> str:
        completed = self._run(
            [
                "pip",
                "compile",
                "-",
                "--quiet",
                "--no-header",
                f"--python={self.python}",
                *source_arguments(source, self.backend),
                *self._wheels_only,
                *options,
            ],
            stdin=pins,
            source=source,
        )
        if completed.returncode != 0:
            raise self._explain(completed)
        return completed.stdout

    def _plan(
        self,
        source: Source,
        changes: tuple[Change, ...],
        downloads: tuple[Download, ...] = (),
        lock: str = "",
        lock_format: Literal["pylock", "requirements"] = "pylock",
    ) -> Plan:
        notes = [f"{text}, which is not met now either" for text in self.question.broken]
        notes += [
            f"{requirement.name} comes from {requirement.url}, which nobody but you vouches for"
            for requirement in map(Requirement, self.request.requirements)
            if requirement.url is not None
        ]
        if source.kind == "mirror" and goes_unencrypted(source.location):
            notes.append(
                "The mirror is asked over http: whoever stands between can change what it sends"
            )
        return Plan(
            request=self.request,
            backend=self.backend,
            reason=self.reason,
            python=self.python,
            prefix=self.environment.prefix,
            source=source,
            changes=changes,
            downloads=downloads,
            lock=lock,
            lock_format=lock_format,
            space=plan_space(downloads, self.backend, self.environment.site_packages, uv=self.uv),
            notes=tuple(notes),
        )

    def _run(
        self,
        arguments: list[str],
        *,
        source: Source,
        wish: Cancellation | None = None,
        stdin: str | None = None,
    ) -> Completed:
        lines = Lines(lambda line: self.on_event(Event(phase="resolve", log=line)))
        environ = source_environment(source, os.environ)
        if source.kind not in ("index", "mirror"):
            # The folder that was found to fit, and no other; and for PyPI's own wheel none at all.
            environ.pop("UV_FIND_LINKS", None)
            # An offer is a second try: where there is no network at all, it should say so soon.
            environ.setdefault("UV_HTTP_RETRIES", "1")
        return self.uv.run(
            arguments,
            environ=environ,
            stdin=stdin,
            cancellation=wish or self.cancellation,
            on_text=lines.feed,
        )

    def _explain(
        self,
        completed: Completed,
        question: Question | None = None,
        source: Source | None = None,
    ) -> TorchEnvError:
        """Return the error; where installed packages are in the way, with their names."""
        error = explain(completed, subject=self.subject)
        if question is None or source is None or not question.constraints:
            return error
        if type(error) is SourceError or not isinstance(error, PlanError):
            return error
        # Without them it would work? Then they are the reason, and it is told which.
        ours = tuple(text for text in question.constraints if text == self.exclusion)
        free = self._dry_run(replace(question, constraints=ours), source)
        if free.returncode != 0:
            return error
        reasons = broken_by(self._changes(free), self.environment)
        return explain(completed, subject=self.subject, constrained_by=reasons)


def _capital(source: Source) -> str:
    text = str(source)
    return text[0].upper() + text[1:]


def _check_copied(source: Source, packages: Iterable[LockedPackage]) -> None:
    """Refuse a mirror that has copied the pages only: its links lead to where it stands in for."""
    for package in packages:
        host = urlsplit(package.address or "").hostname or ""
        if source.kind == "mirror" and host.endswith(".pytorch.org"):
            raise SourceError(
                f"{_capital(source)} links {package.name} to {host}, which it is to stand in for",
                hint="have the mirror keep the files too, and link to its own",
            )


def _is_below(address: str | None, source: Source) -> bool:
    return address is not None and address.rstrip("/") == source.location.rstrip("/")


def with_offers(
    error: SourceError, offers: tuple[Plan, ...], backend: Backend
) -> IndexUnreachableError:
    """Return the error of an index that is away, with the plans from elsewhere: one at least."""
    offer = offers[0]
    costs = [
        f"{format_bytes(size)} {what}"
        for size, what in (
            (offer.local_bytes, "in the folder"),
            (offer.download_bytes, "to download"),
        )
        if size
    ]
    cost = " and ".join(costs) or "nothing to download"
    version = offer.versions.get("torch", "")
    message = f"{error.message}. {_capital(offer.source)} has torch {version}, which fits ({cost})"
    hint = f"`%torchenv install {backend} --yes` uses it"
    return IndexUnreachableError(message, offers=offers, hint=hint, detail=error.detail)


def _required_names(package: InstalledPackage) -> tuple[str, ...]:
    """Return the names of all that a package may require, with any extra."""
    if package.metadata_directory is None:
        return ()
    file = package.metadata_directory
    for name in ("METADATA", "PKG-INFO"):
        with suppress(OSError):
            text = (file / name).read_text(encoding="utf-8", errors="replace")
            found = re.findall(
                r"^Requires-Dist:\s*([A-Za-z0-9][A-Za-z0-9._-]*)",
                text.partition("\n\n")[0],
                re.MULTILINE | re.IGNORECASE,
            )
            return tuple(map(canonicalize_name, found))
    return ()


Found = TypeVar("Found")


def _beside(function: Callable[[], Found]) -> Future[Found]:
    """Run `function` in a thread that nobody has to wait for, also not the end of the program."""
    future: Future[Found] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001  (it is raised where the result is asked for)
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
