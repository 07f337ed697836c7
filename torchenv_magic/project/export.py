"""What an export says: which build is used, where its wheels are, and what has to be named.

Pure: what is used is read elsewhere, and so is the file that it goes into.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import Catalog, load_catalog
from torchenv_magic.builds.index import INDEX_ADDRESS
from torchenv_magic.demand import parse_requirement
from torchenv_magic.environment import FAMILY_MEMBERS, Environment, installed_backend
from torchenv_magic.errors import ExportError
from torchenv_magic.expectation import read_expectation

if TYPE_CHECKING:
    from packaging.requirements import Requirement

__all__ = [
    "TRITON_NAMES",
    "Configuration",
    "Source",
    "Used",
    "check_releases",
    "complete",
    "configure",
    "index_name",
    "index_url",
    "oldest_python",
    "part_with_wheels",
    "pinned",
    "triton_of",
    "used_in_environment",
    "with_choice",
]

TRITON_NAMES = ("triton-rocm", "triton-xpu", "pytorch-triton-rocm", "pytorch-triton-xpu")
"""What the PyTorch index has in place of `triton` for other accelerators than NVIDIA's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What an export is made of: one build of PyTorch, and what was asked for."""

    backend: Backend
    requirements: tuple[str, ...]
    """As asked, torch among them."""
    members: Mapping[str, Version]
    """The members of PyTorch's family that are used, each without its local version."""
    python: str
    """`3.11`"""
    on_macos: bool = False
    """Whether it is used on macOS, whose wheels have no local version."""

    @property
    def torch(self) -> Version | None:
        """The release; None where only a line says what is used, and names none."""
        return self.members.get("torch")

    @property
    def label(self) -> str:
        """What is used, in words: `PyTorch 2.13.0 for CUDA 12.6`."""
        return self.label_for((self.backend,))

    def label_for(self, backends: Sequence[Backend]) -> str:
        """Return the release and those builds of it, in words."""
        release = f" {self.torch}" if self.torch else ""
        return f"PyTorch{release} for {', '.join(backend.label for backend in backends)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One entry of `tool.uv.sources`."""

    backend: Backend
    marker: str | None = None
    extra: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What a project's or a script's TOML has to say."""

    dependencies: tuple[str, ...]
    backends: tuple[Backend, ...]
    extras: Mapping[str, tuple[str, ...]]
    """By name; each for one backend, and no two of them together."""
    sources: Mapping[str, tuple[Source, ...]]
    """For each member of the family and for the triton of the build, asked for or not: the file
    may ask for one itself."""


# ------------------------------------------------------------------------------------ what is used


def used_in_environment(environment: Environment, *, backend: Backend | None = None) -> Used:
    """Return what the environment has, as that backend or its own, and what was asked of it.

    Raises
    ------
    ExportError
        There is no PyTorch, or it doesn't say which build it is.
    """
    if environment.installed("torch") is None:
        raise ExportError(
            "PyTorch is not installed here, so there is nothing to export",
            hint="run `%torchenv install`",
        )
    backend = backend or installed_backend(environment)
    if backend is None:
        raise ExportError(
            "The installed PyTorch does not say which build it is",
            hint="name its backend, such as `cu126`",
        )
    members = {}
    for name in FAMILY_MEMBERS:
        package = environment.installed(name)
        if package is not None:
            members[name] = _release(package.version, name)
    expectation = read_expectation(environment.prefix)
    asked = expectation.requirements if expectation is not None else ()
    return Used(
        backend=backend,
        requirements=complete(asked, members),
        members=members,
        python=".".join(environment.interpreter.version.split(".")[:2]),
        on_macos=sys.platform == "darwin",
    )


def _release(version: str, name: str) -> Version:
    try:
        return Version(Version(version).public)
    except InvalidVersion:
        raise ExportError(
            f"The installed {name} has no version that can be written down: `{version}`",
            hint="install it anew with `%torchenv install`",
        ) from None


def complete(asked: Iterable[str], members: Iterable[str]) -> tuple[str, ...]:
    """Return what was asked for, and the members that came with it.

    uv takes from an index of its own only what a project names itself: a torchvision that another
    package brings along would come from PyPI, and be built for another torch.
    """
    texts = list(dict.fromkeys(asked))
    named = set(map(_name, texts))
    first = () if "torch" in named else ("torch",)
    return (*first, *texts, *(name for name in members if name not in {*first, *named}))


def with_choice(used: Used, *, backend: Backend | None, requirements: Sequence[str]) -> Used:
    """Return it with the backend and the requirements that a line names.

    Raises
    ------
    ExportError
        The line names another release than the one that is used.
    """
    for text in requirements:
        requirement = parse_requirement(text)
        name = canonicalize_name(requirement.name)
        release = used.members.get(name)
        if release is None:
            continue
        _refuse_address(requirement)
        if not requirement.specifier.contains(release, prereleases=True):
            raise ExportError(
                f"`{text}` is asked for, and what is used is {name} {release}",
                hint="leave the version out, or install that one first",
            )
    if requirements:
        used = replace(used, requirements=complete(requirements, used.members))
    return used if backend is None else replace(used, backend=backend)


def check_releases(used: Used, backends: Sequence[Backend]) -> None:
    """Check that each backend that is named has the release that is used.

    Raises
    ------
    ExportError
        The catalog has that release, and not for the backend.
    """
    catalog = load_catalog()
    having = {
        backend
        for (backend, _), builds in catalog.builds.items()
        if any(build.torch == used.torch for build in builds)
    }
    for backend in backends:
        if having and backend not in having:
            known = ", ".join(str(each) for each in catalog.backends() if each in having)
            raise ExportError(
                f"There is no torch {used.torch} for {backend}",
                hint=f"name a backend that has it: {known}",
            )


def oldest_python(used: Used, backends: Sequence[Backend]) -> int | None:
    """Return the minor version of the oldest Python 3 that the release has wheels for on Linux."""
    catalog = load_catalog()
    tags = {
        tag
        for backend in backends
        for build in catalog.builds_for(backend, "linux_x86_64")
        if build.torch == used.torch
        for tag in build.python_tags
    }
    minors = [int(tag[3:]) for tag in tags if re.fullmatch(r"cp3\d+", tag)]
    return min(minors, default=None)


# -------------------------------------------------------------------------------- where wheels are


def index_url(backend: Backend) -> str:
    return f"{INDEX_ADDRESS}/{backend}"


def index_name(backend: Backend) -> str:
    """Return what uv's own guide calls such an index."""
    return f"pytorch-{backend}"


def _places(backend: Backend, torch: Version | None, catalog: Catalog) -> frozenset[str]:
    """Return the platforms that have wheels of that release; of any where it is not known."""
    platforms = {platform for owner, platform in catalog.builds if owner == backend}
    exact = {
        platform
        for platform in platforms
        if any(build.torch == torch for build in catalog.builds_for(backend, platform))
    }
    return frozenset(exact or platforms)


@dataclass(frozen=True, slots=True)
class _Place:
    """A part of all platforms, as a marker and as its contrary."""

    inside: str
    outside: str


def _parts(places: frozenset[str]) -> tuple[_Place, ...]:
    """Return them as markers.

    Of Linux the machine is named where it matters: many have an ARM processor, and no ROCm or XPU
    build. Windows on ARM runs a Python for x86-64 too.
    """
    found = []
    machines = [name for name in ("x86_64", "aarch64") if f"linux_{name}" in places]
    if len(machines) == 2:
        found.append(_Place("sys_platform == 'linux'", "sys_platform != 'linux'"))
    elif machines:
        found.append(
            _Place(
                f"sys_platform == 'linux' and platform_machine == '{machines[0]}'",
                f"(sys_platform != 'linux' or platform_machine != '{machines[0]}')",
            )
        )
    if any(name.startswith("win") for name in places):
        found.append(_Place("sys_platform == 'win32'", "sys_platform != 'win32'"))
    return tuple(found)


def _inside(places: frozenset[str]) -> str | None:
    """Return the marker of those platforms; None where that is everywhere."""
    if any(name.startswith("macos") for name in places):
        return None
    parts = [part.inside for part in _parts(places)]
    return " or ".join(
        f"({text})" if " and " in text and len(parts) > 1 else text for text in parts
    )


def _outside(places: frozenset[str]) -> str:
    texts = [part.outside for part in _parts(places)]
    return texts[0].strip("()") if len(texts) == 1 else " and ".join(texts)


def triton_of(backend: Backend, torch: Version | None) -> str | None:
    """Return what the build needs for `torch.compile` and only the PyTorch index has.

    The names changed with torch 2.10, as pytorch/pytorch#186350 tells.
    """
    if backend.kind not in ("rocm", "xpu"):
        return None
    old = "pytorch-" if torch is not None and torch < Version("2.10") else ""
    return f"{old}triton-{backend.kind}"


def _triton_places(
    backend: Backend, torch: Version | None, places: frozenset[str]
) -> frozenset[str]:
    # With 2.7 came the first triton for Intel's GPUs on Windows.
    if backend.kind == "xpu" and torch is not None and torch < Version("2.7"):
        return frozenset(name for name in places if name.startswith("linux"))
    return places


@dataclass(frozen=True, slots=True, kw_only=True)
class PartWithWheels:
    """Where the wheels of a build carry its local version, as markers."""

    inside_local: str
    outside_local: str
    missing: frozenset[str]
    """The members of the family that its index does not have."""

    def has(self, name: str) -> bool:
        """Return whether the index of the build has that member of the family."""
        return name not in self.missing


def part_with_wheels(backend: Backend, torch: Version | None) -> PartWithWheels:
    """Return where a pin with a local version can be met; wheels for macOS have none."""
    catalog = load_catalog()
    missing = frozenset(name for name in FAMILY_MEMBERS if not _is_on_index(name, backend, catalog))
    places = _places(backend, torch, catalog)
    if _inside(places) is None:
        inside, outside = "sys_platform != 'darwin'", "sys_platform == 'darwin'"
    else:
        inside, outside = _inside(places) or "", _outside(places)
    return PartWithWheels(inside_local=inside, outside_local=outside, missing=missing)


def _is_on_index(name: str, backend: Backend, catalog: Catalog) -> bool:
    companion = catalog.companions.get(name)
    return companion is None or backend not in companion.missing


# ---------------------------------------------------------------------------------- the TOML forms


def configure(form: str, used: Used, backends: Sequence[Backend] = ()) -> Configuration:
    """Return what the TOML of the form says: `index`, `markers`, `extras` or `script`.

    `backends` are those that a line names; without any it is the one that is used.

    Raises
    ------
    ExportError
        The form is for another number of backends, or for another kind.
    """
    catalog = load_catalog()
    named = tuple(dict.fromkeys(backends)) or (used.backend,)
    if form == "extras":
        return _extras(used, named, catalog)
    if form == "markers":
        return _markers(used, named, catalog)
    if len(named) > 1:
        raise ExportError(
            f"`export {form}` writes one backend, not {' and '.join(map(str, named))}",
            hint="name one of them, or write all of them with `%torchenv export extras`",
        )
    [backend] = named
    places = _places(backend, used.torch, catalog)
    return _for_all(used, [(backend, _inside(places), places)], catalog)


def _markers(used: Used, named: tuple[Backend, ...], catalog: Catalog) -> Configuration:
    accelerated = [backend for backend in named if backend.kind != "cpu"]
    if len(accelerated) != 1:
        problem = (
            "one backend with an accelerator and `cpu` elsewhere, and none was named"
            if not accelerated
            else f"one backend beside `cpu`, not {' and '.join(map(str, accelerated))}"
        )
        raise ExportError(
            f"`export markers` writes {problem}",
            hint="name one, as in `%torchenv export markers cu126`; `extras` writes several",
        )
    [backend] = accelerated
    places = _places(backend, used.torch, catalog)
    if backend.kind == "cuda":
        places = frozenset(name for name in places if name.startswith("linux"))
    cpu = Backend("cpu")
    entries = [(backend, _inside(places), places), (cpu, _outside(places), frozenset[str]())]
    return _for_all(used, entries, catalog)


def _for_all(
    used: Used,
    entries: Sequence[tuple[Backend, str | None, frozenset[str]]],
    catalog: Catalog,
) -> Configuration:
    """Return a configuration with one set of dependencies, whose index the platform decides."""
    dependencies = [pinned(text, used) for text in used.requirements]
    sources = {}
    for name in FAMILY_MEMBERS:
        sources[name] = tuple(
            Source(backend=backend, marker=marker)
            for backend, marker, _ in entries
            if _is_on_index(name, backend, catalog)
        )
    for backend, _, places in entries:
        if triton := triton_of(backend, used.torch):
            marker = _inside(_triton_places(backend, used.torch, places))
            dependencies.append(f"{triton} ; {marker}")
            sources[triton] = (Source(backend=backend, marker=marker),)
    return Configuration(
        dependencies=tuple(dependencies),
        backends=tuple(backend for backend, _, _ in entries),
        extras={},
        sources=sources,
    )


def _extras(used: Used, named: tuple[Backend, ...], catalog: Catalog) -> Configuration:
    cpu = Backend("cpu")
    backends = named if len(named) > 1 else tuple(dict.fromkeys((cpu, *named)))
    if len(backends) < 2:
        raise ExportError(
            "`export extras` writes several backends, and `cpu` alone was named",
            hint="name them, such as `%torchenv export extras cpu cu126`",
        )
    of_family = [text for text in used.requirements if _name(text) in FAMILY_MEMBERS]
    extras: dict[str, tuple[str, ...]] = {}
    sources: dict[str, list[Source]] = {name: [] for name in FAMILY_MEMBERS}
    for backend in backends:
        extra = canonicalize_name(str(backend))
        places = _places(backend, used.torch, catalog)
        source = Source(backend=backend, marker=_inside(places), extra=extra)
        texts = [pinned(text, used) for text in of_family]
        for name in FAMILY_MEMBERS:
            if _is_on_index(name, backend, catalog):
                sources[name].append(source)
        if triton := triton_of(backend, used.torch):
            marker = _inside(_triton_places(backend, used.torch, places))
            texts.append(f"{triton} ; {marker}")
            sources.setdefault(triton, []).append(replace(source, marker=marker))
        extras[extra] = tuple(texts)
    return Configuration(
        dependencies=tuple(text for text in used.requirements if text not in of_family),
        backends=backends,
        extras=extras,
        sources={name: tuple(found) for name, found in sources.items()},
    )


def _name(text: str) -> str:
    return canonicalize_name(parse_requirement(text).name)


def pinned(text: str, used: Used) -> str:
    """Return the requirement with the release of torch that is used, where it is torch."""
    requirement = parse_requirement(text)
    if canonicalize_name(requirement.name) != "torch" or used.torch is None:
        return text
    _refuse_address(requirement)
    from packaging.specifiers import SpecifierSet

    requirement.specifier = SpecifierSet(f"=={used.torch}")
    return str(requirement)


def _refuse_address(requirement: Requirement) -> None:
    if requirement.url is not None:
        raise ExportError(
            f"{requirement.name} was asked for from an address, which no index has",
            hint=f"ask for a release, such as `{requirement.name}==2.13.0`",
        )
