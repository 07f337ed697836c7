"""The form of an attached layer: what of a package is a link, and what is the environment's own.

A package that an environment takes from a layer is there as any other is, for pip and for uv: a
real `.dist-info` with a RECORD. What that RECORD names are links, each to the highest folder of the
layer that is this package's alone. So who uninstalls or upgrades it removes links, as pip and uv
never follow one; and who imports it reads the layer, byte-compiled.

Three things are no links. The metadata, as uv knows no package whose `.dist-info` is one. Folders
into which other packages may be installed later (`nvidia`, `google.cloud`), as what an installer
writes through a link would go to the layer. And programs, which begin with the path of their
Python.

Measured with pip 26.3: it removes a folder as a whole where a RECORD names all *files* below it,
and links to folders are none. So `nvidia` would go with the first of its packages: each puts a file
of its own into such a folder, which keeps the others there.
"""

# Paths are strings here: a torch has twelve thousand files, and `pathlib` makes each cost tenfold.
# ruff: noqa: PTH103, PTH112, PTH114, PTH118, PTH120, PTH123, PTH208, PTH211

from __future__ import annotations

import base64
import configparser
import csv
import hashlib
import io
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from torchenv_magic.installation.footprint import entries

__all__ = ["INSTALLER", "Piece", "pieces_of", "write_pieces"]

INSTALLER = "torchenv-layer"
"""What stands in the INSTALLER file of an attached package."""

# Headers: a link for each of so many would be no sharing any more. Only so deep down, and where no
# Python package lies below, does nobody else bring a file: `google` and `nvidia` are everybody's,
# and so is `nvidia/cu13/include`.
_MANY = 64
_DEEP = 4
# As setuptools and pkgutil have it, a package says so itself: others have a part in it.
_SPACE = re.compile(rb"\b(?:extend_path|declare_namespace)\s*\(")
_BEGINNING = 4096
_POINT = re.compile(r"([A-Za-z_][\w.]*)\s*:\s*([A-Za-z_]\w*)(?:\.[\w.]+)?\s*(?:\[.*\])?")
_PROGRAM = """\
# -*- coding: utf-8 -*-
import sys
from {module} import {name}
if __name__ == "__main__":
    sys.exit({call}())
"""
# Longer ones are cut by the kernel, and it knows no quotes.
_LONGEST_SHEBANG = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One package, as it is attached. Paths are relative to the prefix, with slashes."""

    name: str
    information: str
    """Its `.dist-info` folder."""
    links: tuple[str, ...]
    programs: tuple[tuple[str, str], ...]
    """Path in `bin` to the entry point that it calls."""
    scripts: tuple[str, ...]
    """Programs that are files of their own, and may begin with the path of a Python."""


def pieces_of(
    root: Path,
    site: str,
    informations: Mapping[str, str],
    *,
    is_shared: Callable[[str], bool] = lambda _path: False,
) -> tuple[Piece, ...]:
    """Return how the packages of the layer in `root` are attached.

    Parameters
    ----------
    site
        The folder of packages, relative to a prefix: `lib/python3.11/site-packages`.
    informations
        Name to the name of the `.dist-info` folder, of all packages of the layer that are wanted.
    is_shared
        Whether that path of the environment is a folder that others have something in.
    """
    files = {name: list(_files(str(root), site, folder)) for name, folder in informations.items()}
    spaces = {
        f"{site}/{space.replace('.', '/')}"
        for folder in informations.values()
        for space in _declared_spaces(os.path.join(root, site, folder))
    }
    trees = _Trees.of(files, str(root), site, spaces)
    pieces = []
    for name, folder in informations.items():
        information = f"{site}/{folder}"
        programs, scripts = {}, []
        links: dict[str, None] = {}
        points = dict(_programs(os.path.join(root, information, "entry_points.txt")))
        whole: set[str] = set()
        for path in files[name]:
            if path.startswith("bin/"):
                program = posixpath.basename(path)
                if program in points:
                    programs[path] = points[program]
                else:
                    scripts.append(path)
                continue
            if path.startswith(f"{information}/"):
                continue
            link = path
            if path.startswith(f"{site}/"):
                start = len(site) + 1
                end = path.find("/", start)
                if path[:end] in whole:
                    continue
                while end != -1:
                    if trees.may_be_linked(path[:end]) and not is_shared(path[:end]):
                        link = path[:end]
                        break
                    end = path.find("/", end + 1)
                if link.count("/") == site.count("/") + 1 and link != path:
                    whole.add(link)
            links[link] = None
            if link == path and path.endswith(".py"):
                # Else Python would compile it, once for each environment.
                links.update(dict.fromkeys(_compiled(str(root), path)))
        pieces.append(
            Piece(
                name=name,
                information=information,
                links=tuple(links),
                programs=tuple(programs.items()),
                scripts=tuple(scripts),
            )
        )
    return tuple(pieces)


def _files(root: str, site: str, information: str) -> Iterator[str]:
    for entry in entries(Path(root, site, information)):
        path = f"{site}/{entry}"
        if ".." in entry or "//" in entry or entry.startswith("/"):
            path = posixpath.normpath(posixpath.join(site, entry))
        if not path.startswith(("../", "/")) and "/__pycache__/" not in path:
            yield path


@dataclass(frozen=True, slots=True)
class _Trees:
    """The folders of a layer: whose each is, and what is in it."""

    site: str
    owners: Mapping[str, str | None]
    """None where it is more than one package's."""
    counts: Mapping[str, int]
    packages: frozenset[str]
    """Those that are a Python package, and no mere folder of some."""
    above: frozenset[str]
    """Those that have a Python package below them."""
    spaces: frozenset[str]
    """Python packages that others have a part in."""

    @classmethod
    def of(
        cls, files: Mapping[str, Iterable[str]], root: str, site: str, declared: Iterable[str]
    ) -> _Trees:
        owners: dict[str, str | None] = {}
        counts: dict[str, int] = {}
        packages = set()
        for name, paths in files.items():
            for path in paths:
                folder, _, base = path.rpartition("/")
                if base == "__init__.py":
                    packages.add(folder)
                while folder:
                    counts[folder] = counts.get(folder, 0) + 1
                    if owners.setdefault(folder, name) != name:
                        owners[folder] = None
                    folder = folder.rpartition("/")[0]
        above = {str(place) for folder in packages for place in PurePosixPath(folder).parents}
        spaces = set(declared)
        # From the top: what lies in a package that is nobody else's is nobody else's either.
        for folder in sorted(packages, key=lambda folder: folder.count("/")):
            holder = folder.rpartition("/")[0]
            free = holder == site or holder in spaces or holder not in packages
            if free and owners[folder] is not None and _is_space(os.path.join(root, folder)):
                spaces.add(folder)
        return cls(site, owners, counts, frozenset(packages), frozenset(above), frozenset(spaces))

    def may_be_linked(self, folder: str) -> bool:
        if self.owners[folder] is None or folder in self.spaces:
            return False
        if folder in self.packages:
            return True
        deep = folder.count("/") - self.site.count("/") >= _DEEP
        return deep and self.counts[folder] > _MANY and folder not in self.above


def _is_space(package: str) -> bool:
    try:
        with open(os.path.join(package, "__init__.py"), "rb") as file:
            return _SPACE.search(file.read(_BEGINNING)) is not None
    except OSError:
        return False


def _declared_spaces(information: str) -> list[str]:
    """Return the packages that say of themselves that others have a part in them."""
    try:
        with open(os.path.join(information, "namespace_packages.txt"), encoding="utf-8") as file:
            return file.read().split()
    except (OSError, UnicodeDecodeError):
        return []


def _compiled(root: str, path: str) -> list[str]:
    folder, _, base = path.rpartition("/")
    stem = base.removesuffix("py")
    try:
        names = os.listdir(os.path.join(root, folder, "__pycache__"))
    except OSError:
        return []
    return [
        f"{folder}/__pycache__/{name}"
        for name in names
        if name.startswith(stem) and name.endswith(".pyc")
    ]


def _programs(path: str) -> Iterator[tuple[str, str]]:
    parser = configparser.RawConfigParser(delimiters=("=",), strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # names have capitals
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except (OSError, UnicodeDecodeError, configparser.Error):
        return
    for section in ("console_scripts", "gui_scripts"):
        if parser.has_section(section):
            yield from parser.items(section)


# ------------------------------------------------------------------------------------------ writing


def write_pieces(
    pieces: Iterable[Piece], *, root: Path, site: str, prefix: Path, python: Path
) -> None:
    """Write the packages below `prefix`: links to `root`, and what is the environment's own.

    Parameters
    ----------
    python
        The interpreter that programs begin with.

    Raises
    ------
    OSError
    """
    writer = _Writer(root=str(root), site=site, prefix=str(prefix), python=str(python))
    for piece in pieces:
        writer.write(piece)


class _Writer:
    def __init__(self, *, root: str, site: str, prefix: str, python: str) -> None:
        self._root = root
        self._site = site
        self._prefix = prefix
        self._shebang = _shebang(python)
        self._made: set[str] = set()

    def write(self, piece: Piece) -> None:
        rows: list[tuple[str, str, str]] = []
        shared: dict[str, None] = {}
        for path in piece.links:
            self._link(path)
            rows.append((self._row(path), "", ""))
            folder = posixpath.dirname(path)
            if folder != self._site and os.path.isdir(os.path.join(self._root, path)):
                shared[folder] = None
        rows += [self._write(f"{folder}/.{INSTALLER}-{piece.name}", b"") for folder in shared]
        for path, point in piece.programs:
            if match := _POINT.fullmatch(point.strip()):
                call = point.partition(":")[2].partition("[")[0].strip()
                text = _PROGRAM.format(module=match[1], name=match[2], call=call)
                rows.append(self._write(path, self._shebang + text.encode(), executable=True))
        for path in piece.scripts:
            rows += self._script(path)
        source = os.path.join(self._root, piece.information)
        for name in sorted(os.listdir(source)):
            path = f"{piece.information}/{name}"
            if os.path.isdir(os.path.join(source, name)):
                self._link(path)
                rows.append((self._row(path), "", ""))
            elif name not in ("RECORD", "INSTALLER"):
                with open(os.path.join(source, name), "rb") as file:
                    rows.append(self._write(path, file.read()))
        rows.append(self._write(f"{piece.information}/INSTALLER", f"{INSTALLER}\n".encode()))
        rows.append((self._row(f"{piece.information}/RECORD"), "", ""))
        record = io.StringIO()
        csv.writer(record, lineterminator="\n").writerows(rows)
        self._write(f"{piece.information}/RECORD", record.getvalue().encode())

    def _row(self, path: str) -> str:
        if path.startswith(f"{self._site}/"):
            return path[len(self._site) + 1 :]
        return posixpath.relpath(path, self._site)

    def _goal(self, path: str) -> str:
        goal = os.path.join(self._prefix, path)
        folder = os.path.dirname(goal)
        if folder not in self._made:
            os.makedirs(folder, exist_ok=True)
            self._made.add(folder)
        return goal

    def _link(self, path: str) -> None:
        goal = self._goal(path)
        if not os.path.islink(goal):  # which two packages have
            os.symlink(os.path.join(self._root, path), goal)

    def _write(
        self, path: str, content: bytes, *, executable: bool = False
    ) -> tuple[str, str, str]:
        goal = self._goal(path)
        with open(goal, "wb") as file:
            file.write(content)
        if executable:
            os.chmod(goal, 0o755)  # noqa: PTH101, S103  (a program, as pip makes it)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
        return self._row(path), f"sha256={digest.decode()}", str(len(content))

    def _script(self, path: str) -> list[tuple[str, str, str]]:
        """Bring a program that is a file of its own: as a link where it names no Python."""
        with open(os.path.join(self._root, path), "rb") as file:
            first = file.readline(4096)
            if first.startswith(b"#!") and b"python" in first:
                return [self._write(path, self._shebang + file.read(), executable=True)]
        self._link(path)
        return [(self._row(path), "", "")]


def _shebang(python: str) -> bytes:
    if len(python) + 3 <= _LONGEST_SHEBANG and " " not in python:
        return f"#!{python}\n".encode()
    # A shell's comment, and a string of Python's: as pip and uv write it.
    return f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n".encode()
