"""Make a lock of what is installed: its very versions, for each backend that has that torch.

Nothing is downloaded. uv compiles what was asked for, with the installed versions as constraints,
once a backend; where the index tells no hashes uv would fetch whole wheels to find them, so such a
backend is left out, as is one that lacks a package.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from torchenv_magic import __version__
from torchenv_magic.accelerators.platform import read_platform
from torchenv_magic.accelerators.records import Platform
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import Catalog
from torchenv_magic.builds.current import CurrentCatalog, is_offline
from torchenv_magic.demand import applies_in, parse_requirement
from torchenv_magic.environment import (
    FAMILY_MEMBERS,
    Environment,
    backend_of_torch_version,
    installed_backend,
    is_satellite,
)
from torchenv_magic.errors import LockError, RequestError, TorchEnvError
from torchenv_magic.expectation import read_expectation
from torchenv_magic.installation.failures import explain
from torchenv_magic.installation.history import read_entries
from torchenv_magic.installation.plan import Source, is_met, source_arguments
from torchenv_magic.installation.progress import Event, OnEvent, guarded
from torchenv_magic.installation.settings import Sites, read_sites
from torchenv_magic.installation.sources import index_source, probe_index, source_environment
from torchenv_magic.installation.uv import Cancellation, Lines, Uv, find_uv
from torchenv_magic.interpreter import Interpreter
from torchenv_magic.project.hosts import own_hosts
from torchenv_magic.project.lock import (
    Asked,
    LockedBackend,
    LockedPackage,
    LockTarget,
    NotebookLock,
    in_order,
    packages_from_json,
)
from torchenv_magic.words import HelpRequested, parse_words

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["LeftOut", "Made", "lock_target", "make_lock"]

_SIDE_BY_SIDE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A backend that the lock could have had."""

    backend: Backend
    reason: str

    def __str__(self) -> str:
        return f"{self.backend} is left out: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A lock, and what it has not."""

    lock: NotebookLock
    left_out: tuple[LeftOut, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"Locked {self.lock}.", *(f"{each}." for each in self.left_out)])


class _UnfitError(Exception):
    """A backend can't be locked; its text becomes the reason."""


def lock_target(interpreter: Interpreter, platform: Platform) -> LockTarget:
    """Return what wheels have to fit there, beside the accelerator."""
    python = ".".join(interpreter.version.split(".")[:2])
    return LockTarget(
        python=f"{python}t" if interpreter.free_threaded else python,
        implementation=interpreter.implementation,
        system=platform.system,
        machine=platform.machine,
    )


def make_lock(
    environment: Environment,
    *,
    requirements: Sequence[str] = (),
    backends: Sequence[Backend | None] = (),
    sites: Sites | None = None,
    catalog: Catalog | None = None,
    on_event: OnEvent | None = None,
    cancellation: Cancellation | None = None,
) -> Made:
    """Return the lock of what is installed, for every backend that has it. Changes nothing.

    Parameters
    ----------
    requirements
        What is to be locked; where nothing is named, what the environment was last asked for, or
        the PyTorch packages in it.
    backends
        The backends to lock beside the one that is installed, None being that one; where none is
        named, all that the catalog has of this release for this platform and Python.

    Raises
    ------
    LockError
        PyTorch is not installed, what is asked for is not what is installed, or the installed build
        itself can't be locked.
    RequestError, UvError, InstallCancelled
    """
    torch = environment.installed("torch")
    ran = installed_backend(environment)
    if torch is None:
        raise LockError(
            "There is no PyTorch here to be locked", hint="run `%torchenv install` first"
        )
    if ran is None:
        raise LockError(
            f"The installed torch {torch.version} does not say which build it is",
            hint="run `%torchenv install` for one of PyTorch's own, or `%torchenv doctor`",
        )
    if is_offline(os.environ):
        raise LockError(
            "UV_OFFLINE is set, and what other machines need is asked of the index",
            hint="unset it where there is a network, then lock again",
        )
    asked = _asked(environment, requirements)
    if sites is None:
        sites = read_sites(prefix=environment.prefix)
    release = Version(torch.version).public
    platform = read_platform(environ=os.environ)
    if catalog is None:
        current = CurrentCatalog(
            "never",
            wheel_platform=platform.wheel_platform,
            environ=os.environ,
            mirror=sites.index_base,
        )
        catalog, _ = current.read()
    wanted = [ran, *(backend for backend in backends if backend is not None)]
    if not backends:
        wanted += _backends_of(catalog, release, environment.interpreter, platform)
    making = _Making(
        uv=find_uv(),
        environment=environment,
        asked=asked,
        release=release,
        ran=ran,
        sites=sites,
        on_event=guarded(on_event),
        cancellation=cancellation or Cancellation(),
    )
    order = list(dict.fromkeys(wanted))
    with ThreadPoolExecutor(max_workers=_SIDE_BY_SIDE) as pool:
        answers = list(pool.map(making.try_backend, order))
    making.cancellation.raise_if_requested()
    for backend, answer in zip(order, answers, strict=True):
        if isinstance(answer, LeftOut) and backend == ran:
            raise LockError(
                f"The build that is installed here can't be locked: {answer.reason}",
                hint="mend that, then lock again; the notebook is as it was",
            )
    return Made(
        lock=NotebookLock(
            version=__version__,
            asked=Asked(backend=_asked_backend(environment, ran), requirements=asked),
            torch=release,
            target=lock_target(environment.interpreter, platform),
            ran=ran,
            backends=in_order((each for each in answers if isinstance(each, LockedBackend)), ran),
        ),
        left_out=tuple(answer for answer in answers if isinstance(answer, LeftOut)),
    )


def _backends_of(
    catalog: Catalog, release: str, interpreter: Interpreter, platform: Platform
) -> list[Backend]:
    """Return the backends that uv knows and that have this release for this machine's Python."""
    return [
        backend
        for backend in catalog.backends()
        if catalog.is_known_to_uv(backend)
        and any(
            str(build.torch) == release and interpreter.tag in build.python_tags
            for build in catalog.builds_for(backend, platform.wheel_platform)
        )
    ]


def _asked(environment: Environment, requirements: Sequence[str]) -> tuple[str, ...]:
    """Return what is to be locked, checked against what is installed."""
    texts = tuple(requirements)
    if not texts:
        expectation = read_expectation(environment.prefix)
        texts = expectation.requirements if expectation is not None else ()
    if not texts:
        installed = {package.name for package in environment.packages}
        texts = tuple(name for name in FAMILY_MEMBERS if name in installed)
    for text in texts:
        requirement = parse_requirement(text)
        if requirement.url is not None:
            raise LockError(
                f"{requirement.name} was asked for from an address, which other machines have no "
                "reason to trust",
                hint=f"install it from the index, then lock `{requirement.name}`",
            )
        if not applies_in(requirement, environment.interpreter):
            continue
        met = is_met(text, environment)
        if not met:
            package = environment.installed(canonicalize_name(requirement.name))
            there = f"{package.name} {package.version} is" if package else "it is not"
            raise LockError(
                f"`{text}` is to be locked, and {there} installed here: nobody knows that it works",
                hint=f'run `%torchenv install "{text}"` first, or name what is installed',
            )
    return texts


def _asked_backend(environment: Environment, ran: Backend) -> Backend | None:
    """Return the installed build where a person has named it, by the line that installed it."""
    entries = read_entries(environment.prefix)
    if not entries or entries[-1].outcome != "installed":
        return None
    try:
        program, *line = shlex.split(entries[-1].command, posix=os.name == "posix") or [""]
        named = parse_words(line, notebook=program.startswith("%")).request.backend
    except (HelpRequested, RequestError, ValueError):
        return None
    return named if named == ran else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Making:
    """What each backend's turn needs."""

    uv: Uv
    environment: Environment
    asked: tuple[str, ...]
    release: str
    ran: Backend
    sites: Sites
    on_event: OnEvent
    cancellation: Cancellation

    def try_backend(self, backend: Backend) -> LockedBackend | LeftOut:
        """Return what the backend takes, or why it is left out."""
        if self.cancellation.requested:
            return LeftOut(backend=backend, reason="cancelled")
        self.on_event(Event(phase="resolve", message=f"Locking torch {self.release} for {backend}"))
        try:
            return self._locked(backend)
        except _UnfitError as error:
            left_out = LeftOut(backend=backend, reason=str(error))
        except TorchEnvError as error:
            left_out = LeftOut(backend=backend, reason=error.message)
        self.on_event(Event(phase="resolve", log=str(left_out)))
        return left_out

    def _locked(self, backend: Backend) -> LockedBackend:
        source = index_source(backend, self.sites)
        answer = probe_index(source)
        if answer.state in ("refused", "unreachable"):
            verb = "has no torch for it" if answer.state == "refused" else "can't be reached"
            raise _UnfitError(f"{source} {verb} ({answer.detail})")
        for version in (f"{self.release}+{backend}", self.release):
            if answer.lacks_hashes(version):
                raise _UnfitError(f"{source} tells no hashes, which a lock consists of")
        lock = self._compile(source, backend)
        packages = _packages(lock, backend, own_hosts(self.sites))
        _check_build(packages, backend, self.release)
        return LockedBackend(backend=backend, packages=packages)

    def _compile(self, source: Source, backend: Backend) -> str:
        lines = Lines(lambda line: self.on_event(Event(phase="resolve", log=line)))
        environ = source_environment(source, os.environ)
        # A folder of this machine is no place that another one could fetch from.
        environ.pop("UV_FIND_LINKS", None)
        with tempfile.TemporaryDirectory(prefix="torchenv-") as folder:
            constraints = Path(folder, "constraints.txt")
            constraints.write_text("\n".join(self._constraints(backend)), encoding="utf-8")
            completed = self.uv.run(
                [
                    "pip",
                    "compile",
                    "-",
                    "--quiet",
                    "--no-header",
                    "--format=pylock.toml",
                    # What is built here would be another file elsewhere, and runs code.
                    "--only-binary=:all:",
                    f"--python={self.environment.interpreter.executable}",
                    f"--constraints={constraints}",
                    *source_arguments(source, backend),
                ],
                environ=environ,
                stdin="".join(f"{text}\n" for text in self.asked),
                on_text=lines.feed,
                cancellation=self.cancellation,
            )
        if completed.returncode != 0:
            raise explain(completed, subject=f"{' '.join(self.asked)} for {backend}")
        return completed.stdout

    def _constraints(self, backend: Backend) -> list[str]:
        """Return what keeps uv to the installed versions; a build's own libraries are its own."""
        found = []
        for package in self.environment.packages:
            try:
                version = Version(package.version)
            except InvalidVersion:
                continue
            if package.name in FAMILY_MEMBERS:
                # Without its local part, which each build has its own of, or none.
                found.append(f"{package.name}=={version.public}")
            elif backend == self.ran or not is_satellite(package.name):
                found.append(f"{package.name}=={version}")
        return found


def _packages(
    lock: str, backend: Backend, plain_hosts: Collection[str]
) -> tuple[LockedPackage, ...]:
    """Return the packages that uv locked, read by the same rules by which the lock will be read.

    Raises
    ------
    _UnfitError
        One comes from a folder of this machine.
    LockError
        One comes by http from a server that is not set here.
    """
    table: dict[str, Any] = tomllib.loads(lock)
    # One Python's; each reader has its own patch release.
    table.pop("requires-python", None)
    for entry in table.get("packages", []):
        for wheel in entry.get("wheels", []):
            if "path" in wheel or str(wheel.get("url", "")).startswith("file:"):
                raise _UnfitError(f"{entry.get('name')} comes from a folder of this machine")
            wheel.pop("upload-time", None)
    return packages_from_json(table, backend=backend, plain_hosts=plain_hosts)


def _check_build(packages: Iterable[LockedPackage], backend: Backend, release: str) -> None:
    """Check that no member is of another build: uv takes PyPI's where a mirror has none.

    Raises
    ------
    _UnfitError
    """
    members = {each.name: each.version for each in packages if each.name in FAMILY_MEMBERS}
    for name, version in members.items():
        build = backend_of_torch_version(version)
        # Wheels for macOS bear no build in their version.
        if build != backend and not (build is None and sys.platform == "darwin"):
            raise _UnfitError(f"{name} {version} is not a build for {backend}")
    if Version(members.get("torch", "0")).public != release:
        raise _UnfitError(f"torch {release} is not among what was asked for")
