"""Make a plan: ask uv what would change, lock it, and find out what it costs.

The steps, each a run of uv that leaves the environment alone:

1. a dry run says what would change (uv's own resolver, the user's own configuration);
2. its versions are compiled to a pylock, so that exactly these files are fetched and linked later,
   also where the index forbids caching its pages, as the PyTorch index does;
3. an offline attempt tells whether the cache has all of it, and HEAD requests the missing sizes.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from torchenv_magic.accelerators.platform import read_platform
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import load_catalog
from torchenv_magic.environment import (
    FAMILY_MEMBERS,
    Environment,
    check_target,
    dependents,
    is_satellite,
)
from torchenv_magic.errors import (
    InstallCancelled,
    RequestError,
    SelectionError,
    SourceError,
    TorchEnvError,
)
from torchenv_magic.installation.failures import explain
from torchenv_magic.installation.plan import (
    Change,
    Download,
    Plan,
    Question,
    Source,
    ask,
    dry_run_arguments,
    orphans,
    read_changes,
    read_lock,
    source_arguments,
)
from torchenv_magic.installation.prefetch import is_local, prefetch_offline
from torchenv_magic.installation.progress import Event, OnEvent, format_bytes
from torchenv_magic.installation.sources import (
    IndexAnswer,
    index_source,
    probe_index,
    sizes,
    wheel_folders,
    wheels_in,
)
from torchenv_magic.installation.uv import Cancellation, Completed, Uv, find_uv
from torchenv_magic.selection import Request, Selection

__all__ = ["IndexUnreachableError", "check_requirements", "make_plan"]

# A satisfied request is answered by uv in some 50 ms without any network: only after this does an
# unreachable index end the resolution.
_HEAD_START_SECONDS = 1.0


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
        if text.startswith("-"):
            message = f"`{text}` is an option, not a requirement."
            raise RequestError(message, hint="set options in uv's or pip's configuration")
        try:
            Requirement(text)
        except InvalidRequirement as error:
            reason = str(error).splitlines()[0]
            message = f"`{text}` is not a requirement: {reason}."
            raise RequestError(message, hint="write it as pip does: `torch==2.13.*`") from error
    return tuple(texts)


def make_plan(
    selection: Selection,
    environment: Environment,
    request: Request,
    *,
    consent: bool = False,
    on_event: OnEvent | None = None,
    cancellation: Cancellation | None = None,
) -> Plan:
    """Return what installing `request` with the selected backend would do. Changes nothing.

    Parameters
    ----------
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
    if selection.backend is None:
        message = f"No build of PyTorch fits: {' '.join(selection.warnings) or selection.reason}"
        raise SelectionError(message, hint="see `%torchenv list` for every build and its reason")
    check_requirements(request.requirements)
    planner = _Planner(
        uv=find_uv(),
        environment=environment,
        request=request,
        backend=selection.backend,
        reason=selection.reason,
        exclusion=selection.exclusion,
        on_event=on_event or (lambda _event: None),
        cancellation=cancellation or Cancellation(),
    )
    try:
        return planner.from_index()
    except IndexUnreachableError as error:
        offers = planner.offers()
        if consent and offers:
            return replace(
                offers[0],
                notes=(
                    *offers[0].notes,
                    f"{error.message} Used with your consent: {offers[0].source}.",
                ),
            )
        raise _with_offers(error, offers, selection.backend) from error


def _with_offers(
    error: IndexUnreachableError, offers: tuple[Plan, ...], backend: Backend
) -> IndexUnreachableError:
    if not offers:
        hint = "check the connection or HTTPS_PROXY, or name a folder of wheels in UV_FIND_LINKS"
        return IndexUnreachableError(error.message, hint=hint, detail=error.detail)
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
    message = (
        f"{error.message} {str(offer.source)[0].upper()}{str(offer.source)[1:]} has torch "
        f"{version}, which fits ({cost})."
    )
    hint = f"`%torchenv install {backend} --yes` uses it"
    return IndexUnreachableError(message, offers=offers, hint=hint, detail=error.detail)


class _Planner:
    """One request's way to a plan; holds what every step needs."""

    def __init__(
        self,
        *,
        uv: Uv,
        environment: Environment,
        request: Request,
        backend: Backend,
        reason: str,
        exclusion: str | None,
        on_event: OnEvent,
        cancellation: Cancellation,
    ) -> None:
        self.uv = uv
        self.environment = environment
        self.python = environment.interpreter.executable
        self.request = request
        self.backend = backend
        self.reason = reason
        self.exclusion = exclusion
        self.on_event = on_event
        self.cancellation = cancellation
        self.subject = f"{' '.join(request.requirements)} for {backend}"

    def from_index(self) -> Plan:
        """Return the plan from the PyTorch index; raise IndexUnreachableError where it is away."""
        source = index_source(self.backend)
        self.on_event(Event(phase="resolve", message=f"Asking {source} what would change"))
        question = ask(self.request, self.environment, self.backend, exclusion=self.exclusion)
        # The probe only ever ends a resolution that can't succeed, so it has a wish of its own.
        attempt = Cancellation()
        finished = threading.Event()
        with ThreadPoolExecutor(max_workers=1) as pool, self.cancellation.stops(attempt.cancel):
            probe = pool.submit(probe_index, source)

            def stop_early(done: Future[IndexAnswer]) -> None:
                if done.result().state == "unreachable":
                    finished.wait(_HEAD_START_SECONDS)
                    if not finished.is_set():
                        attempt.cancel()

            probe.add_done_callback(stop_early)
            try:
                completed = self._dry_run(question, source, attempt)
            except InstallCancelled:
                self.cancellation.raise_if_requested()
                raise self._unreachable(probe.result().detail) from None
            finally:
                finished.set()
            if completed.returncode == 0 and not (changes := self._changes(completed)):
                return self._plan(source, ())
            answer = probe.result()
        if completed.returncode != 0:
            if answer.state == "unreachable":
                raise self._unreachable(answer.detail)
            raise self._explain(completed, question)
        torch = next((c.after for c in changes if c.name == "torch"), None)
        hashed = torch is None or not answer.lacks_hashes(torch)
        return self._finish(source, changes, "pylock" if hashed else "requirements")

    def offers(self) -> tuple[Plan, ...]:
        """Return plans from wheel folders, then from PyPI's own wheel, that fit the choice."""
        plans = []
        for folder in wheel_folders(prefix=self.environment.prefix):
            offer = wheels_in(folder, self.request, self.backend, self.environment.interpreter)
            if offer is None or offer.missing:
                continue
            source = Source(kind="folder", location=str(folder))
            plans.append(self._offer(source, dict(offer.pins)))
        if version := self._version_on_pypi():
            source = Source(kind="pypi", location="PyPI")
            plans.append(self._offer(source, {"torch": str(version)}))
        return tuple(plan for plan in plans if plan is not None)

    def _version_on_pypi(self) -> Version | None:
        """Return the newest torch whose one build on PyPI is the chosen backend."""
        specifier = SpecifierSet(self.exclusion.removeprefix("torch") if self.exclusion else "")
        for text in self.request.requirements:
            requirement = Requirement(text)
            if canonicalize_name(requirement.name) == "torch":
                specifier &= requirement.specifier
        catalog = load_catalog()
        platform = read_platform(environ=os.environ).wheel_platform
        return next(
            (
                version
                for version in catalog.pypi_versions(platform, self.environment.interpreter.tag)
                if specifier.contains(version)
                and catalog.pypi_default(version, platform) == self.backend
            ),
            None,
        )

    def _offer(self, source: Source, pins: dict[str, str]) -> Plan | None:
        question = ask(
            self.request, self.environment, self.backend, exclusion=self.exclusion, pins=pins
        )
        try:
            completed = self._dry_run(question, source, self.cancellation)
            if completed.returncode != 0:
                raise self._explain(completed, question)
            return self._finish(source, self._changes(completed), "pylock")
        except InstallCancelled:
            raise
        except TorchEnvError as error:
            # An offer that does not work is no offer; why stands in the log.
            self.on_event(Event(phase="resolve", log=f"{source}: {error.message}"))
            return None

    def _dry_run(self, question: Question, source: Source, wish: Cancellation) -> Completed:
        with tempfile.TemporaryDirectory(prefix="torchenv-") as folder:
            requirements = Path(folder, "requirements.txt")
            constraints = Path(folder, "constraints.txt")
            requirements.write_text("\n".join(question.requirements), encoding="utf-8")
            constraints.write_text("\n".join(question.constraints), encoding="utf-8")
            return self._run(
                dry_run_arguments(
                    question,
                    python=self.python,
                    backend=self.backend,
                    source=source,
                    requirements_file=requirements,
                    constraints_file=constraints,
                ),
                wish,
            )

    def _changes(self, completed: Completed) -> tuple[Change, ...]:
        return read_changes(completed.stdout, self.environment)

    def _finish(
        self,
        source: Source,
        changes: tuple[Change, ...],
        lock_format: Literal["pylock", "requirements"],
    ) -> Plan:
        pins = "".join(f"{c.name}=={c.after}\n" for c in changes if c.after is not None)
        switched = any(c.name == "torch" and c.before for c in changes)
        if switched and any(is_satellite(p.name) for p in self.environment.packages):
            changes += orphans(self.environment, changes, self._needed(source, changes))
        if lock_format == "requirements":
            unknown = tuple(
                Download(name=c.name, version=c.after, size_bytes=None)
                for c in changes
                if c.after is not None
            )
            return self._plan(source, changes, unknown, pins, lock_format)
        lock = self._compile(source, pins, "--no-deps", "--format=pylock.toml")
        rows = read_lock(lock)
        with ThreadPoolExecutor(max_workers=1) as pool:
            asked = pool.submit(sizes, [a for _, _, a, size in rows if a and size is None])
            cached = prefetch_offline(self.uv, self.python, lock, rows, self.cancellation)
            known = asked.result()
        downloads = tuple(
            Download(
                name=name,
                version=version,
                size_bytes=size if size is not None else known.get(address or ""),
                cached=cached,
                local=is_local(address),
            )
            for name, version, address, size in rows
        )
        return self._plan(source, changes, downloads, lock, lock_format)

    def _needed(self, source: Source, changes: tuple[Change, ...]) -> list[str]:
        """Return the names of all that the family's new members require, directly or not."""
        members = "".join(
            f"{c.name}=={c.after}\n" for c in changes if c.name in FAMILY_MEMBERS and c.after
        )
        listing = self._compile(source, members, "--no-annotate")
        return [line.partition("==")[0] for line in listing.splitlines() if "==" in line]

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
                *options,
            ],
            self.cancellation,
            stdin=pins,
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
        )

    def _run(self, arguments: list[str], wish: Cancellation, stdin: str | None = None) -> Completed:
        def log(text: str) -> None:
            for line in text.splitlines():
                if line.strip() and not line.startswith("DEBUG"):
                    self.on_event(Event(phase="resolve", log=line))

        return self.uv.run(arguments, stdin=stdin, cancellation=wish, on_text=log)

    def _explain(self, completed: Completed, question: Question | None = None) -> TorchEnvError:
        names: tuple[str, ...] = ()
        if question is not None and question.constraints:
            names = tuple(
                f"{package.name} {package.version} requires {', '.join(texts)}"
                for package, texts in dependents(self.environment)
            )
        return explain(completed, subject=self.subject, constrained_by=names)

    def _unreachable(self, detail: str) -> IndexUnreachableError:
        message = "The PyTorch index (download.pytorch.org) can't be reached from here."
        return IndexUnreachableError(message, detail=detail)
