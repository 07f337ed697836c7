"""What a layer is, as its manifest tells, and which layer fits a choice.

A layer is a folder that an admin has built: PyTorch, and what a kernel needs, below
`lib/python3.11/site-packages`, byte-compiled, for one Python and one platform. Its manifest is
written last, so a folder without one is no layer.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from packaging.markers import InvalidMarker, UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import FAMILY_MEMBERS, Interpreter, shown_path
from torchenv_magic.errors import InstallError
from torchenv_magic.installation.layers_links import Piece
from torchenv_magic.installation.layers_trust import path_problem
from torchenv_magic.installation.progress import format_bytes
from torchenv_magic.selection import Selection
from torchenv_magic.serialization import from_json, to_json

__all__ = [
    "FILES",
    "MANIFEST",
    "Choice",
    "Layer",
    "LayerPackage",
    "Unusable",
    "applies",
    "choose_layer",
    "closure",
    "find_layers",
    "glibc_of_here",
    "meets",
    "platform_of_here",
    "read_layer",
    "refused",
]

MANIFEST = "torchenv-layer.json"
FILES = "torchenv-files.csv"
"""Path, size and SHA-256 of every file of a layer."""
SCHEMA = 1
_LARGEST = 20_000_000
"""Bytes. That of a build with all its libraries has 100 kB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPackage:
    """One package of a layer."""

    name: str
    version: str
    requires: tuple[str, ...]
    piece: Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A folder that environments take their PyTorch from."""

    directory: Path
    torch: str
    """Its version, with the local part: `2.13.0+cu126`."""
    backend: Backend
    python: str
    """The tag of the interpreter: `cp311`."""
    platform: str
    """As `linux_x86_64`."""
    glibc: str
    """The oldest that its wheels run with; empty where none says."""
    site: str
    """Its folder of packages, and that of each environment: `lib/python3.11/site-packages`."""
    requirements: tuple[str, ...]
    """What was asked for, as `torchenv layer build` has it."""
    packages: tuple[LayerPackage, ...]
    made: str
    """In UTC, as ISO 8601 writes it."""
    command: str
    """The line that built it."""
    size_bytes: int
    files: str
    """The SHA-256 of the list of its files."""
    schema: int = SCHEMA

    @property
    def versions(self) -> dict[str, str]:
        return {package.name: package.version for package in self.packages}

    @property
    def line(self) -> str:
        """It in a list."""
        return f"{shown_path(self.directory)}: {self}"

    def summary(self) -> dict[str, Any]:
        """Return what a program may want to know, without how each package is linked."""
        left_out = ("packages", "files", "schema")
        data = {
            field.name: to_json(getattr(self, field.name))
            for field in fields(self)
            if field.name not in left_out
        }
        return data | {"versions": self.versions}

    def __str__(self) -> str:
        family = [name for name in FAMILY_MEMBERS if name in self.versions and name != "torch"]
        also = "".join(f", {name} {self.versions[name]}" for name in family)
        return (
            f"torch {self.torch}{also} for {self.python} on {self.platform}, "
            f"{len(self.packages)} packages, {format_bytes(self.size_bytes)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusable:
    """A folder that looks like a layer, and that nobody should take anything from."""

    directory: Path
    problem: str
    """Half a sentence."""
    untrusted: bool = False
    """Whether the problem is that somebody else can write it."""

    @property
    def line(self) -> str:
        """It in a list."""
        return f"{shown_path(self.directory)}: refused, {self.problem}"

    def summary(self) -> dict[str, Any]:
        """Return what a program may want to know."""
        return {"directory": str(self.directory), "problem": self.problem}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The layer that fits; where none does, why each does not."""

    layer: Layer | None
    reasons: tuple[str, ...]
    """One sentence for each of the others."""


# ----------------------------------------------------------------------------------------- reading


def read_layer(directory: Path, *, user: int | None = None) -> Layer:
    """Return the layer in that folder. Only the way to it is examined, not each of its files.

    Raises
    ------
    InstallError
        It is none, or somebody else can write it.
    """
    found = _read(directory.absolute(), user)
    if isinstance(found, Layer):
        return found
    if found.untrusted:
        raise refused(found.directory, found.problem)
    raise InstallError(
        f"`{shown_path(found.directory)}` is no layer that can be used: {found.problem}",
        hint="`torchenv layer list DIR` shows those of a folder; `torchenv layer build` makes one",
    )


def refused(directory: Path, problem: str) -> InstallError:
    """Return the error for a layer that somebody else can write."""
    return InstallError(
        f"The layer `{shown_path(directory)}` is refused, as others can change what it runs: "
        f"{problem}",
        hint="let root own it and every folder above it, and nobody else write them",
    )


def find_layers(
    folders: Iterable[Path], *, user: int | None = None
) -> tuple[Layer | Unusable, ...]:
    """Return the layers in the folders, or those that the folders are; a folder may be missing.

    One that this user may not look into is as a layer that can't be used.
    """
    found: list[Layer | Unusable] = []
    for folder in folders:
        try:
            if (folder / MANIFEST).exists():
                found.append(_read(folder.absolute(), user))
                continue
            found += [
                _read(path.absolute(), user)
                for path in sorted(folder.iterdir())
                if (path / MANIFEST).exists()
            ]
        except PermissionError as error:
            problem = f"{error.filename} can't be looked at: {error.strerror}"
            found.append(Unusable(directory=folder.absolute(), problem=problem))
        except OSError:
            continue
    return tuple(found)


def _read(directory: Path, user: int | None) -> Layer | Unusable:
    if os.name != "posix":
        return Unusable(directory=directory, problem="layers are links, which Windows gives to few")
    # Before the first byte of it is read.
    problem = path_problem(directory, user=user)
    if not problem and not os.path.lexists(directory / MANIFEST):
        return Unusable(directory=directory, problem="it was not built to its end")
    if problem := problem or path_problem(directory / MANIFEST, user=user):
        return Unusable(directory=directory, problem=problem, untrusted=True)
    try:
        with (directory / MANIFEST).open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            return Unusable(directory=directory, problem="its manifest is too large")
        data = json.loads(content)
        if data["schema"] != SCHEMA:
            problem = "another version of torchenv_magic has built it"
            return Unusable(directory=directory, problem=problem)
        # Where it lies now: an image is built in one place and mounted in another.
        layer = from_json(Layer, {**data, "directory": str(directory)})
    except OSError as error:
        return Unusable(directory=directory, problem=f"it can't be read: {error.strerror}")
    except (ValueError, TypeError, LookupError, RecursionError):
        return Unusable(directory=directory, problem="its manifest can't be understood")
    if not all(map(_stays_inside, _paths(layer))):
        return Unusable(directory=directory, problem="its manifest names a file outside of it")
    return layer


def _paths(layer: Layer) -> Iterator[str]:
    yield layer.site
    for package in layer.packages:
        yield package.piece.information
        yield from package.piece.links
        yield from package.piece.scripts
        yield from (path for path, _ in package.piece.programs)


def _stays_inside(path: str) -> bool:
    return bool(path) and not path.startswith("/") and ".." not in path.split("/")


# ---------------------------------------------------------------------------------------- choosing


def platform_of_here() -> str:
    """Return this system, as wheels name it."""
    name = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    libc = sysconfig.get_config_var("MULTIARCH") or sysconfig.get_config_var("SOABI") or ""
    return f"musl{name}" if "musl" in libc else name


def glibc_of_here() -> str:
    """Return the version of the C library; empty where it is another one."""
    name, version = platform.libc_ver()
    return version if name == "glibc" else ""


def choose_layer(
    layers: Sequence[Layer | Unusable],
    selection: Selection,
    interpreter: Interpreter,
    requirements: Sequence[str],
    *,
    system: str | None = None,
    glibc: str | None = None,
) -> Choice:
    """Return the layer that has what was asked for, of the build that was selected.

    Parameters
    ----------
    system, glibc
        As `platform_of_here` and `glibc_of_here` tell; None for those.
    """
    system = platform_of_here() if system is None else system
    glibc = glibc_of_here() if glibc is None else glibc
    fitting: list[Layer] = []
    reasons = []
    for layer in layers:
        if isinstance(layer, Unusable):
            problem = layer.problem
        else:
            problem = (
                _unfit(layer, selection, interpreter, system=system, glibc=glibc)
                or _unmet(layer, [*requirements, *filter(None, [selection.exclusion])])
            )  # fmt: skip
        if problem:
            reasons.append(f"{shown_path(layer.directory)} is not taken: {problem}")
        elif isinstance(layer, Layer):
            fitting.append(layer)
    best = max(fitting, key=lambda layer: (Version(layer.torch), layer.made), default=None)
    return Choice(layer=best, reasons=tuple(reasons))


def _unfit(
    layer: Layer, selection: Selection, interpreter: Interpreter, *, system: str, glibc: str
) -> str:
    if layer.backend != selection.backend:
        return f"it has PyTorch for {layer.backend}, not for {selection.backend}"
    if layer.python != interpreter.tag:
        return f"it is for {layer.python}, not for {interpreter.tag}"
    if layer.platform != system:
        return f"it is for {layer.platform}, not for {system}"
    if layer.glibc and glibc and _numbers(glibc) < _numbers(layer.glibc):
        return f"it needs glibc {layer.glibc}, and {glibc} is here"
    return ""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def _unmet(layer: Layer, requirements: Iterable[str]) -> str:
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            return f"`{text}` can't be compared with what it has"
        version = layer.versions.get(canonicalize_name(requirement.name))
        if version is None:
            return f"it has no {requirement.name}"
        # What an extra brings is known only of the line that the layer was built with.
        if (requirement.url or requirement.extras) and text not in layer.requirements:
            return f"it was not built with `{text}`"
        if not meets(version, requirement):
            return f"it has {requirement.name} {version}, not {requirement.specifier}"
    return ""


def meets(version: str, requirement: Requirement) -> bool:
    """Whether that version is one that the requirement takes."""
    try:
        return requirement.specifier.contains(Version(version), prereleases=True)
    except (InvalidVersion, InvalidSpecifier):
        return False


def closure(layer: Layer, requirements: Iterable[str]) -> dict[str, LayerPackage]:
    """Return what the layer has of the requirements, and all that these require, by name."""
    there = {package.name: package for package in layer.packages}
    found: dict[str, LayerPackage] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(text, "") for text in requirements]
    while waiting:
        text, extra = waiting.pop()
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        name = canonicalize_name(requirement.name)
        if name not in there or not applies(requirement, layer.python, extra):
            continue
        found[name] = there[name]
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(needed, wanted) for needed in there[name].requires]
    return found


def applies(requirement: Requirement, tag: str, extra: str = "") -> bool:
    """Whether a requirement holds for that Python, as `cp311` names it."""
    if requirement.marker is None:
        return not extra
    minor = re.sub(r"^\D+(\d)(\d+)t?$", r"\1.\2", tag)
    try:
        values = {"python_version": minor, "python_full_version": f"{minor}.0", "extra": extra}
        return requirement.marker.evaluate(values)
    except (InvalidMarker, UndefinedComparison, UndefinedEnvironmentName):
        return True
