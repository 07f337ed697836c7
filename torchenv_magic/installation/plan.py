"""What an install would do: records and the pure steps from uv's answers to a `Plan`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import (
    FAMILY_MEMBERS,
    Environment,
    InstalledPackage,
    dependents,
    family,
    installed_backend,
    is_satellite,
)
from torchenv_magic.errors import UvError
from torchenv_magic.installation.progress import format_bytes
from torchenv_magic.selection import Request

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "Change",
    "Download",
    "Plan",
    "Question",
    "Source",
    "ask",
    "by_importance",
    "dry_run_arguments",
    "orphans",
    "read_changes",
    "read_lock",
    "source_arguments",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the wheels of the PyTorch family come from."""

    kind: Literal["index", "folder", "pypi"]
    location: str
    """The index's address, the folder's path, or `PyPI`."""

    def __str__(self) -> str:
        return {
            "index": f"the PyTorch index ({self.location})",
            "folder": f"the wheel folder {self.location}",
            "pypi": "PyPI's own wheel",
        }[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One package that would be installed, replaced or removed."""

    name: str
    action: Literal["install", "replace", "remove"]
    before: str | None = None
    """The version that is there now."""
    after: str | None = None

    def __str__(self) -> str:
        if self.action == "install":
            return f"+ {self.name} {self.after}"
        if self.action == "remove":
            return f"- {self.name} {self.before}"
        return f"~ {self.name} {self.before} → {self.after}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """One wheel that the plan needs."""

    name: str
    version: str
    size_bytes: int | None
    """Compressed; None where neither the lock nor the server tells."""
    cached: bool = False
    """Whether uv's cache has it already."""
    local: bool = False
    """Whether it lies in a folder of this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `install` will do, exactly: nothing is resolved anew in between."""

    request: Request
    backend: Backend
    reason: str
    """Why this backend."""
    python: Path
    prefix: Path
    source: Source
    changes: tuple[Change, ...]
    downloads: tuple[Download, ...] = ()
    lock: str = ""
    """A pylock.toml (PEP 751) of everything that is to be installed; or, where the index gives no
    hashes, pinned requirements."""
    lock_format: Literal["pylock", "requirements"] = "pylock"
    notes: tuple[str, ...] = ()

    @property
    def nothing_to_do(self) -> bool:
        """Whether the environment has already what was asked for."""
        return not self.changes

    @property
    def download_bytes(self) -> int:
        """Bytes to fetch; packages of unknown size count nothing, see `unknown_sizes`."""
        return sum(i.size_bytes or 0 for i in self.downloads if not i.cached and not i.local)

    @property
    def local_bytes(self) -> int:
        """Bytes of wheels that lie in a folder of this machine, and are only unpacked."""
        return sum(i.size_bytes or 0 for i in self.downloads if not i.cached and i.local)

    @property
    def unknown_sizes(self) -> int:
        """How many packages to fetch have a size that nobody tells."""
        return sum(item.size_bytes is None and not item.cached for item in self.downloads)

    @property
    def disk_bytes(self) -> int:
        """About how much disk the fetched packages take unpacked."""
        return int((self.download_bytes + self.local_bytes) * UNPACKED_RATIO)

    @property
    def versions(self) -> dict[str, str]:
        """Normalized name to version of everything that will be there new."""
        return {c.name: c.after for c in self.changes if c.after is not None}

    def of(self, action: str) -> tuple[Change, ...]:
        """Return the changes of one kind."""
        return tuple(change for change in self.changes if change.action == action)

    @property
    def summary(self) -> str:
        """One line: what it costs and what it touches."""
        if self.nothing_to_do:
            return "Nothing to do: what you asked for is installed already."
        parts = []
        if self.download_bytes or self.unknown_sizes:
            size = format_bytes(self.download_bytes)
            if self.unknown_sizes:
                size += f" and {_count(self.unknown_sizes, 'package')} of unknown size"
            parts.append(f"Download {size}")
        if self.local_bytes:
            parts.append(f"unpack {format_bytes(self.local_bytes)} from the folder")
        if self.disk_bytes:
            parts.append(f"on disk about {format_bytes(self.disk_bytes)}")
        elif self.of("install") or self.of("replace"):
            parts.append("No download: everything is in uv's cache")
        if installs := self.of("install"):
            parts.append(f"installs {_names(installs)}")
        if replaces := self.of("replace"):
            replaced = ", ".join(f"{c.name} {c.before}" for c in by_importance(replaces)[:3])
            parts.append(f"replaces {replaced}{_more(len(replaces) - 3)}")
        if removes := self.of("remove"):
            parts.append(f"removes {_count(len(removes), 'package')} of the old build")
        line = " · ".join([*parts, "your other packages stay"])
        return line[0].upper() + line[1:]

    def __str__(self) -> str:
        lines = [
            f"{self.backend.label} ({self.backend}) — {self.reason}",
            f"into {self.prefix}, from {self.source}",
            self.summary,
            *(f"  {change}" for change in by_importance(self.changes)),
            *self.notes,
        ]
        return "\n".join(lines)


# Measured on torch 2.13.0+cpu: 192 MB of wheel unpack to 699 MB.
UNPACKED_RATIO = 3.65


def by_importance(changes: Iterable[Change]) -> list[Change]:
    """Return the changes with the PyTorch family first."""
    return sorted(changes, key=lambda c: (c.name not in FAMILY_MEMBERS, c.action, c.name))


def _names(changes: tuple[Change, ...]) -> str:
    shown = by_importance(changes)
    named = [f"{c.name} {c.after}" for c in shown if c.name in FAMILY_MEMBERS] or [
        f"{c.name} {c.after}" for c in shown[:2]
    ]
    return ", ".join(named) + _more(len(changes) - len(named))


def _more(count: int) -> str:
    return f" and {count} more package{'' if count == 1 else 's'}" if count > 0 else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What uv is asked to resolve."""

    requirements: tuple[str, ...]
    constraints: tuple[str, ...]
    reinstall: tuple[str, ...]
    """Installed packages that uv must not take for satisfied: their build is another one."""


def ask(
    request: Request,
    environment: Environment,
    backend: Backend,
    *,
    exclusion: str | None = None,
    pins: Mapping[str, str] | None = None,
) -> Question:
    """Return what to ask uv, so that its answer really switches and breaks nobody.

    Bare uv takes `torch 2.13.0+cu130` for what `torch` from the cu126 index asks for: exit 0 and no
    change. So every installed member of the family is named beside what was asked for, and is
    reinstalled where its build differs. Installed packages that require a member constrain the
    resolution, else uv breaks them without a word.

    `pins` (name to version) replaces the requirement of a member by one exact version.
    """
    members = [p for p in family(environment) if p.name in FAMILY_MEMBERS]
    asked = [Requirement(text) for text in request.requirements]
    names = {canonicalize_name(requirement.name) for requirement in asked}
    texts = [*request.requirements, *(p.name for p in members if p.name not in names)]
    if pins:
        texts = [
            f"{name}=={pins[name]}"
            if (name := canonicalize_name(Requirement(text).name)) in pins
            else text
            for text in texts
        ]
    here = installed_backend(environment)
    foreign = {
        package.name
        for package in members
        if not package.complete or _differs(package, here, backend)
    }
    # A member of another build pulls all of them along: torchvision 0.28+cu130 is content with
    # torch 2.13.0+cu126 by its version, and crashes on import.
    reinstall = tuple(p.name for p in members) if foreign else ()
    constraints = [
        text
        for package, requirements in dependents(environment)
        if package.name not in names
        for text in requirements
    ]
    if exclusion:
        constraints.append(exclusion)
    return Question(requirements=tuple(texts), constraints=tuple(constraints), reinstall=reinstall)


def _differs(package: InstalledPackage, here: Backend | None, wanted: Backend) -> bool:
    _, _, local = package.version.partition("+")
    if local:
        return local != str(wanted)
    # PyPI's wheels carry no local version; what they are is read from torch itself.
    return here is not None and here != wanted


def dry_run_arguments(
    question: Question,
    *,
    python: Path,
    backend: Backend,
    source: Source,
    requirements_file: Path,
    constraints_file: Path,
) -> list[str]:
    """Return uv's arguments for the resolution of `question`, as JSON on stdout."""
    return [
        "pip",
        "install",
        "--dry-run",
        "--output-format=json",
        f"--python={python}",
        *source_arguments(source, backend),
        *(f"--reinstall-package={name}" for name in question.reinstall),
        f"--requirements={requirements_file}",
        *([f"--constraints={constraints_file}"] if question.constraints else []),
    ]


def source_arguments(source: Source, backend: Backend) -> list[str]:
    """Return the options that send uv to `source` for the PyTorch family."""
    if source.kind == "index":
        return [f"--torch-backend={backend}"]
    if source.kind == "folder":
        return [f"--find-links={source.location}"]
    return []


def read_changes(answer: str, environment: Environment) -> tuple[Change, ...]:
    """Return the changes of a dry run's JSON answer.

    Raises
    ------
    UvError
        uv answered something else: its schema is a preview, and may change.
    """
    before = {package.name: package.version for package in environment.packages}
    actions: dict[str, dict[str, str]] = {}
    try:
        for entry in json.loads(answer)["changes"]:
            name = canonicalize_name(entry["name"])
            actions.setdefault(name, {})[entry["action"]] = entry["version"]
    except (ValueError, KeyError, TypeError) as error:
        message = "uv's answer has a form that this version of torchenv_magic does not know."
        raise UvError(
            message, hint="run `%pip install --upgrade torchenv-magic`", detail=answer
        ) from error
    changes = []
    for name, versions in actions.items():
        after = versions.get("installed") or versions.get("reinstalled")
        old = versions.get("uninstalled") or before.get(name)
        if after is None:
            changes.append(Change(name=name, action="remove", before=old))
        elif old is None:
            changes.append(Change(name=name, action="install", after=after))
        else:
            changes.append(Change(name=name, action="replace", before=old, after=after))
    return tuple(changes)


def orphans(
    environment: Environment, changes: Iterable[Change], needed: Iterable[str]
) -> tuple[Change, ...]:
    """Return the removals of what only the old build needed: its triton, its nvidia-* libraries.

    `needed` names what the new build requires, directly or not. uv leaves gigabytes of the old
    build behind; what any package outside the family requires stays.
    """
    keep: set[str] = {canonicalize_name(name) for name in needed}
    keep |= {change.name for change in changes if change.after is not None}
    satellites = {package.name for package in environment.packages if is_satellite(package.name)}
    for package in environment.packages:
        if package.name in FAMILY_MEMBERS or package.name in satellites:
            continue
        keep |= {canonicalize_name(Requirement(text).name) for text in package.requires}
    # A satellite that stays keeps what it requires (nvidia-cudnn needs nvidia-cublas).
    by_name = {package.name: package for package in environment.packages}
    waiting: list[str] = list(keep & satellites)
    while waiting:
        for text in by_name[waiting.pop()].requires:
            required = canonicalize_name(Requirement(text).name)
            if required in satellites and required not in keep:
                keep.add(required)
                waiting.append(required)
    return tuple(
        Change(name=name, action="remove", before=by_name[name].version)
        for name in sorted(satellites - keep)
    )


def read_lock(text: str) -> tuple[tuple[str, str, str | None, int | None], ...]:
    """Return (name, version, address, size in bytes) of each package of a pylock.toml.

    Raises
    ------
    UvError
        It is no such file.
    """
    try:
        packages: list[dict[str, Any]] = tomllib.loads(text).get("packages", [])
        rows = []
        for package in packages:
            files = package.get("wheels") or []
            # uv writes one wheel a package, the one it chose; without wheels there is an sdist.
            file = files[0] if files else package.get("sdist", package.get("archive", {}))
            address = file.get("url") or file.get("path")
            size = file.get("size")
            name = canonicalize_name(package["name"])
            rows.append((name, package.get("version", ""), address, size))
    except (tomllib.TOMLDecodeError, AttributeError, KeyError, TypeError) as error:
        message = "uv wrote a lock that this version of torchenv_magic does not know."
        raise UvError(
            message, hint="run `%pip install --upgrade torchenv-magic`", detail=text
        ) from error
    return tuple(rows)
