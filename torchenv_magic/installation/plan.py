"""What an install would do: records and the pure steps from uv's answers to a `Plan`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import (
    FAMILY_MEMBERS,
    Environment,
    InstalledPackage,
    backend_of_torch_version,
    dependents,
    family,
    installed_backend,
    is_satellite,
)
from torchenv_magic.errors import ConsentError, UvError
from torchenv_magic.installation.footprint import lacks_code
from torchenv_magic.installation.progress import format_bytes
from torchenv_magic.selection import Request

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "Change",
    "Download",
    "LockedPackage",
    "Plan",
    "Question",
    "Source",
    "SpaceNeed",
    "ask",
    "broken_by",
    "by_importance",
    "dry_run_arguments",
    "is_met",
    "lock_of",
    "looks_satisfied",
    "orphans",
    "read_changes",
    "read_lock",
    "source_arguments",
    "unpacked_bytes",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the wheels of the PyTorch family come from."""

    kind: Literal["index", "mirror", "folder", "pypi"]
    location: str
    """The index's or the mirror's address without a login, the folder's path, or `PyPI`."""
    origin: str = ""
    """The setting that names it: `TORCHENV_INDEX_BASE`, `--find-links`, a file. Empty where nobody
    had to."""
    also: tuple[str, ...] = ()
    """Further folders of wheels that are looked through beside it."""

    def __str__(self) -> str:
        said = f" (as {self.origin} says)" if self.origin else ""
        return {
            "index": f"the PyTorch index ({self.location})",
            "mirror": f"the mirror {self.location}{said}",
            "folder": f"the wheel folder {self.location}{said}",
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
class SpaceNeed:
    """What a plan takes on one disk, and what is free there."""

    place: Path
    """A folder on that disk."""
    need_bytes: int
    """About: what wheels are unpacked is known only when they are."""
    free_bytes: int
    reason: str
    """What takes it there, for a person: `uv's cache`."""
    copied_bytes: int = 0
    """How much of it is copied from uv's cache, where it can't be linked."""
    copied_because: str = ""

    @property
    def fits(self) -> bool:
        """Whether as much is free."""
        return self.need_bytes <= self.free_bytes

    def __str__(self) -> str:
        return (
            f"about {format_bytes(self.need_bytes)} are needed on the disk of `{self.place}` "
            f"({self.reason}), {format_bytes(self.free_bytes)} are free"
        )


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
    space: tuple[SpaceNeed, ...] = ()
    """What it takes on which disk, as things were when the plan was made."""
    offline: bool = False
    """Whether its addresses are never asked: uv's cache has all, and a stranger named them."""

    @property
    def space_notes(self) -> tuple[str, ...]:
        """Sentences about a disk that has too little room, and about what is copied."""
        return tuple(
            f"Too little space: {need}"
            if not need.fits
            else f"{need.copied_because}: about {format_bytes(need.copied_bytes)} are copied, not "
            "linked, which takes longer and the space once more"
            for need in self.space
            if not need.fits or need.copied_bytes
        )

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
        return sum(unpacked_bytes(i, self.backend) for i in self.downloads if not i.cached)

    @property
    def versions(self) -> dict[str, str]:
        """Normalized name to version of everything that will be there new."""
        return {c.name: c.after for c in self.changes if c.after is not None}

    @property
    def losses(self) -> tuple[Change, ...]:
        """What a person has installed outside the PyTorch family and would not find again.

        A build's own libraries come and go with it, a package that was named was asked for, and
        one that is put back in the version that it has is repaired.
        """
        named = {canonicalize_name(Requirement(t).name) for t in self.request.requirements}
        return tuple(
            change
            for change in self.changes
            if change.name not in FAMILY_MEMBERS
            and change.name not in named
            and not is_satellite(change.name)
            and change.before not in (None, change.after)
        )

    def check_consent(self) -> None:
        """Check that nothing is lost without a word.

        Raises
        ------
        ConsentError
            The plan has `losses`; its hint is for whoever can be asked.
        """
        if not self.losses:
            return
        named = [
            f"replace {change.name} {change.before} by {change.after}"
            if change.after
            else f"remove {change.name} {change.before}"
            for change in self.losses
        ]
        shown = ", ".join(named[:3]) + _more(len(named) - 3)
        verb = "is" if len(named) == 1 else "are"
        raise ConsentError(
            f"This install would {shown}, which {verb} not part of PyTorch",
            hint="run it with `--yes` where that is wanted",
            detail=str(self),
        )

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
            *self.space_notes,
            *self.notes,
        ]
        return "\n".join(lines)


def unpacked_bytes(download: Download, backend: Backend) -> int:
    """Return about how many bytes a wheel takes on the disk; 0 where its size is unknown.

    The ratios are those of the wheels on PyPI in November 2026, by their own lists of files: torch
    2.13.0+cpu 192 MB to 699 MB, torch 2.13.0 with CUDA 13.0 527 MB to 1095 MB, its fifteen
    nvidia-* libraries 1998 MB to 2675 MB, all else together 3.6 times.
    """
    ratio = 3.65
    if download.name.startswith("nvidia-"):
        ratio = 1.35
    elif download.name == "torch" and backend.kind == "cuda":
        ratio = 2.1
    return int((download.size_bytes or 0) * ratio)


def by_importance(changes: Iterable[Change]) -> list[Change]:
    """Return the changes with torch first, then what goes with it."""
    places = {name: place for place, name in enumerate(FAMILY_MEMBERS)}
    return sorted(changes, key=lambda c: (places.get(c.name, len(places)), c.action, c.name))


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
    broken: tuple[str, ...] = ()
    """What installed packages require that is not met now: `needs212 1.0 requires torch==2.12.0`.
    It constrains nothing, since nothing can be broken by it that isn't."""


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

    `pins` (name to specifier) replaces the requirement of a member.
    """
    members = [p for p in family(environment) if p.name in FAMILY_MEMBERS]
    texts = list(request.requirements)
    names: set[str] = {canonicalize_name(Requirement(text).name) for text in texts}
    texts += dict.fromkeys(p.name for p in members if p.name not in names)
    names |= (pins or {}).keys()
    if pins:
        texts = [text for text in texts if canonicalize_name(Requirement(text).name) not in pins]
        texts += [f"{name}{specifier}" for name, specifier in pins.items()]
    here = installed_backend(environment)
    copies = Counter(p.name for p in members)
    # A member of another build pulls all of them along: torchvision 0.28+cu130 is content with
    # torch 2.13.0+cu126 by its version, and crashes on import. One that is there twice, without its
    # list of files, or without files of that list, is what a killed uv leaves.
    foreign = any(
        not p.complete or copies[p.name] > 1 or _differs(p, here, backend) for p in members
    ) or any(map(_is_half, members))
    constraints, broken = [], []
    for package, requirements in dependents(environment):
        if package.name in names:
            continue
        for text in requirements:
            if Requirement(text).url is not None:
                # uv would fetch it, only to compare; whether it is met is not known before.
                continue
            if is_met(text, environment) is False:
                broken.append(f"{package.name} {package.version} requires {text}")
            else:
                constraints.append(text)
    if exclusion:
        constraints.append(exclusion)
    return Question(
        requirements=tuple(texts),
        constraints=tuple(constraints),
        reinstall=tuple(copies) if foreign else (),
        broken=tuple(broken),
    )


def _is_half(package: InstalledPackage) -> bool:
    # conda rewrites what it links, and keeps lists of its own.
    if package.installer == "conda" or package.metadata_directory is None:
        return False
    return lacks_code(package.metadata_directory)


def _differs(package: InstalledPackage, here: Backend | None, wanted: Backend) -> bool:
    # PyPI's wheels carry no local version, and others' carry what they like: what these are is read
    # from torch itself.
    backend = backend_of_torch_version(package.version) or here
    return backend is not None and backend != wanted


def is_met(text: str, environment: Environment) -> bool | None:
    """Return whether the installed version meets a requirement, None where none is installed."""
    requirement = Requirement(text)
    package = environment.installed(canonicalize_name(requirement.name))
    if package is None:
        return None
    try:
        return requirement.specifier.contains(Version(package.version), prereleases=True)
    except InvalidVersion:
        return None


def looks_satisfied(question: Question, environment: Environment) -> bool:
    """Whether it is worth asking uv without a network whether there is nothing to do."""
    if question.reinstall:
        return False
    for text in question.requirements:
        requirement = Requirement(text)
        package = environment.installed(canonicalize_name(requirement.name))
        applies = requirement.marker is None or requirement.marker.evaluate()
        if applies and (
            requirement.url is not None
            or package is None
            or not package.complete
            or not is_met(text, environment)
        ):
            return False
    return True


def broken_by(changes: Iterable[Change], environment: Environment) -> tuple[str, ...]:
    """Return what installed packages require that `changes` would break, each in words."""
    after = {change.name: change.after for change in changes}
    found = []
    for package, requirements in dependents(environment):
        for text in requirements:
            requirement = Requirement(text)
            version = after.get(canonicalize_name(requirement.name))
            if version is not None and not requirement.specifier.contains(
                version, prereleases=True
            ):
                found.append(f"{package.name} {package.version} requires {text}")
    return tuple(found)


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
        return [f"--find-links={folder}" for folder in (source.location, *source.also)]
    # A mirror is named in uv's environment, where a login may stand: see `source_environment`.
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
            actions.setdefault(canonicalize_name(entry["name"]), {})[entry["action"]] = str(
                Version(entry["version"])
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = "uv's answer has a form that this version of torchenv_magic does not know"
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
    environment: Environment,
    changes: Iterable[Change],
    needed: Iterable[str],
    requires: Mapping[str, Iterable[str]],
) -> tuple[Change, ...]:
    """Return the removals of what only the old build needed: its triton, its nvidia-* libraries.

    uv leaves gigabytes of the old build behind. What any package outside the family requires stays,
    and what the old build did not bring along: it is a person's.

    Parameters
    ----------
    needed
        The names of all that the new build requires, directly or not.
    requires
        The names that each installed package requires, those of its extras too: torch has its CUDA
        libraries from `cuda-toolkit[cublas,...]`, which says so nowhere else.
    """
    changes = tuple(changes)
    by_name = {package.name: package for package in environment.packages}
    satellites = {name for name in by_name if is_satellite(name)}
    brought = _reachable((n for n in FAMILY_MEMBERS if n in by_name), satellites, requires)
    keep: set[str] = {canonicalize_name(name) for name in needed}
    keep |= {change.name for change in changes if change.after is not None}
    for package in environment.packages:
        if package.name not in FAMILY_MEMBERS and package.name not in satellites:
            keep.update(requires.get(package.name, ()))
    # A satellite that stays keeps what it requires (nvidia-cudnn needs nvidia-cublas).
    keep |= _reachable(keep & satellites, satellites, requires)
    return tuple(
        Change(name=name, action="remove", before=by_name[name].version)
        for name in sorted(brought - keep)
    )


def _reachable(
    names: Iterable[str], among: set[str], requires: Mapping[str, Iterable[str]]
) -> set[str]:
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        for name in requires.get(waiting.pop(), ()):
            if name in among and name not in found:
                found.add(name)
                waiting.append(name)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedPackage:
    """One package of a lock."""

    name: str
    version: str
    address: str | None
    """The wheel's URL or path; None where it comes from elsewhere than a file."""
    size_bytes: int | None


def read_lock(text: str) -> tuple[LockedPackage, ...]:
    """Return the packages of a pylock.toml.

    Raises
    ------
    UvError
        It is no such file.
    """
    try:
        packages: list[dict[str, Any]] = tomllib.loads(text).get("packages", [])
        locked = []
        for package in packages:
            files = package.get("wheels") or []
            # uv writes one wheel a package, the one it chose; without wheels there is an sdist.
            file = files[0] if files else package.get("sdist", package.get("archive", {}))
            locked.append(
                LockedPackage(
                    name=canonicalize_name(package["name"]),
                    version=package.get("version", ""),
                    address=file.get("url") or file.get("path"),
                    size_bytes=file.get("size"),
                )
            )
    except (tomllib.TOMLDecodeError, AttributeError, KeyError, TypeError) as error:
        message = "uv wrote a lock that this version of torchenv_magic does not know"
        raise UvError(
            message, hint="run `%pip install --upgrade torchenv-magic`", detail=text
        ) from error
    return tuple(locked)


_PACKAGE = "[[packages]]"


def lock_of(text: str, names: Iterable[str]) -> str:
    """Return the part of a pylock.toml, as uv writes it, that is about the named packages."""
    head, *blocks = text.split(_PACKAGE)
    wanted = set(names)
    kept = [
        block
        for block in blocks
        if wanted & {package.name for package in read_lock(_PACKAGE + block)}
    ]
    return "".join([head, *(_PACKAGE + block for block in kept)])
