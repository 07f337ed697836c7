"""Which files installed packages own: read from their RECORDs, compared with what is there.

Paths are strings here: a torch has twelve thousand files, and `pathlib` makes each cost tenfold.
"""

# ruff: noqa: PTH110, PTH112, PTH116, PTH117, PTH118, PTH119, PTH120, PTH206, PTH208

from __future__ import annotations

import csv
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from packaging.utils import canonicalize_name

from torchenv_magic.environment import Environment

__all__ = [
    "entries",
    "files_of",
    "is_inside",
    "lacks_code",
    "long_path",
    "metadata_directories",
    "missing_files",
    "placements",
    "record_hash",
    "roots",
    "sites",
]


def sites(environment: Environment) -> tuple[Path, ...]:
    """Return the directories that packages lie in, resolved: one, or two where lib64 is apart."""
    found = [environment.site_packages.resolve()]
    found += [
        package.metadata_directory.parent.resolve()
        for package in environment.packages
        if package.metadata_directory is not None
    ]
    return tuple(dict.fromkeys(found))


def metadata_directories(directories: Iterable[Path]) -> dict[str, list[Path]]:
    """Return each package's `.dist-info` folders in `directories`, by normalized name.

    More than one where an install was killed.
    """
    found: dict[str, list[Path]] = {}
    for directory in directories:
        for path in sorted(directory.glob("*.dist-info")):
            name = canonicalize_name(path.name.removesuffix(".dist-info").rpartition("-")[0])
            found.setdefault(name, []).append(path)
    return found


def entries(metadata_directory: Path) -> list[str]:
    """Return the paths of a RECORD as they are written; none where it can't be read."""
    return [path for path, _ in _rows(metadata_directory)]


def _rows(metadata_directory: Path) -> list[tuple[str, str]]:
    try:
        with (metadata_directory / "RECORD").open(encoding="utf-8", newline="") as file:
            return [
                (row[0].replace("\\", "/"), row[2] if len(row) > 2 else "")
                for row in csv.reader(file)
                if row and row[0]
            ]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def record_hash(metadata_directory: Path) -> str:
    """Return the hash of a RECORD: the same only for the same files of the same installer."""
    try:
        content = (metadata_directory / "RECORD").read_bytes()
    except OSError:
        return ""
    return hashlib.sha256(content).hexdigest()


def files_of(metadata_directory: Path, site: Path | None = None) -> Iterator[str]:
    """Return the absolute path of every file in a RECORD, as if it lay in `site`."""
    directory = str(site or metadata_directory.parent)
    for entry in entries(metadata_directory):
        yield _absolute(directory, entry)


def _absolute(site: str, entry: str) -> str:
    if ".." not in entry and "//" not in entry and not os.path.isabs(entry):
        return site + os.sep + (entry if os.sep == "/" else entry.replace("/", os.sep))
    return os.path.normpath(os.path.join(site, *entry.split("/")))


def is_inside(path: str, prefix: str) -> bool:
    """Whether the folder that holds `path` is, links followed, in the resolved `prefix`."""
    parent = os.path.normcase(os.path.realpath(os.path.dirname(path)))
    above = os.path.normcase(prefix)
    return parent == above or parent.startswith(above.rstrip(os.sep) + os.sep)


def long_path(path: str) -> str:
    """Return `path` in the form that Windows takes at any length: a stage makes it longer."""
    if sys.platform != "win32" or path.startswith("\\\\"):
        return path
    return "\\\\?\\" + path


def missing_files(site: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Return what of the named packages' RECORDs is not there with its size: a walk of `stat`s.

    A package without a RECORD, or with two, is missing as a whole.
    """
    found = metadata_directories([site])
    missing = []
    for name in names:
        directories = found.get(canonicalize_name(name), [])
        rows = _rows(directories[0]) if len(directories) == 1 else []
        if not rows:
            problem = {0: "not installed", 1: "no RECORD"}.get(len(directories), "there twice")
            missing.append(f"{name}: {problem}")
            continue
        for entry, size in rows:
            try:
                actual = os.stat(long_path(_absolute(str(site), entry))).st_size
            except OSError:
                missing.append(entry)
                continue
            if size.isdigit() and int(size) != actual:
                missing.append(f"{entry}: {actual} bytes, not {size}")
    return tuple(missing)


_CODE = re.compile(r"\.(?:py|pyd|dll|dylib|so(?:\.[\d.]+)?)$")


def lacks_code(metadata_directory: Path) -> bool:
    """Whether code of a package is gone: a killed copy leaves a RECORD of much that never came.

    What else its RECORD names may have been deleted to save room, and libraries are stripped.
    """
    site = str(metadata_directory.parent)
    return any(
        _CODE.search(entry) and not os.path.exists(long_path(_absolute(site, entry)))
        for entry in entries(metadata_directory)
    )


def roots(
    mine: Mapping[Path, str], others: Iterable[Path], *, prefix: Path
) -> tuple[dict[str, frozenset[str]], frozenset[str]]:
    """Return what to move so that packages are gone: whole folders where it can be.

    A folder is moved whole where no other package has a file in it; `nvidia`, which a dozen
    packages share, is descended into. What a RECORD says of files outside the environment is not
    believed.

    Parameters
    ----------
    mine
        The metadata folders of the packages to move, with their names.
    others
        Those of all other packages.

    Returns
    -------
    tuple
        Path to the names of its owners, and which of the paths were guessed for want of a RECORD.
    """
    real_prefix = str(prefix.resolve())
    guessed: set[str] = set()
    listed: dict[Path, list[str]] = {}
    for directory, name in mine.items():
        listed[directory] = entries(directory)
        if not listed[directory]:
            # Half-linked or half-removed: what it left lies in a folder of its own name.
            folder = name.replace("-", "_")
            guessed |= {str(directory.parent / folder), str(directory)}
            listed[directory] = [f"{folder}/"]
        listed[directory].append(f"{directory.name}/RECORD")
    places = {str(directory.parent) for directory in mine}
    tops = {
        str(directory.parent) + os.sep + first
        for directory, paths in listed.items()
        for first in {path.partition("/")[0] for path in paths}
    }
    shared = _shared(tops, others, places)
    found: dict[str, set[str]] = {}
    for directory, paths in listed.items():
        name, site = mine[directory], str(directory.parent)
        whole: set[str] = set()
        for entry in paths:
            # Nearly all of twelve thousand files lie in a folder that goes as a whole.
            first, _, rest = entry.partition("/")
            if first in whole and ".." not in rest:
                continue
            root = _root(_absolute(site, entry), places, shared)
            if root is None:
                continue
            found.setdefault(root, set()).add(name)
            if root == site + os.sep + first:
                whole.add(first)
    for path in [path for path in found if path.endswith(".py")]:
        # Left behind, Python could take it for that of the new module.
        for compiled in _compiled(path):
            found.setdefault(compiled, set()).update(found[path])
            guessed.add(compiled)
    return (
        {
            root: frozenset(owners)
            for root, owners in sorted(found.items())
            if os.path.lexists(root)
            and is_inside(root, real_prefix)
            # `..` as an entry would be the folder that everything lies in.
            and not any((place + os.sep).startswith(root + os.sep) for place in places)
        },
        frozenset(guessed),
    )


def _compiled(path: str) -> list[str]:
    folder = os.path.join(os.path.dirname(path), "__pycache__")
    stem = os.path.basename(path).removesuffix(".py") + "."
    try:
        names = [name for name in os.listdir(folder) if name.startswith(stem)]
    except OSError:
        return []
    return [os.path.join(folder, name) for name in names if name.endswith(".pyc")]


def _shared(tops: set[str], others: Iterable[Path], places: set[str]) -> set[str]:
    """Return every path, and every folder on the way to it, that another package needs."""
    names = {os.path.basename(top) for top in tops}
    shared: set[str] = set()
    for directory in others:
        site = str(directory.parent)
        for entry in entries(directory):
            first = entry.partition("/")[0]
            # By its name before by its path: an environment has a hundred thousand files.
            if first not in names and first != "..":
                continue
            path = _absolute(site, entry)
            top = _top(path, places)
            if top is None:
                shared.add(path)
            elif top in tops:
                while len(path) >= len(top):
                    shared.add(path)
                    path = os.path.dirname(path)
    return shared


def _top(path: str, places: set[str]) -> str | None:
    """Return the ancestor of `path` that lies directly in one of `places`."""
    for place in places:
        if path.startswith(place + os.sep):
            return place + os.sep + path[len(place) + 1 :].partition(os.sep)[0]
    return None


def _root(path: str, places: set[str], shared: set[str]) -> str | None:
    top = _top(path, places)
    if top is None:
        # Scripts and data, in folders that everybody shares: `bin/torchrun`.
        return None if path in shared else path
    if os.path.basename(top) == "__pycache__":
        return None
    root = top
    while root in shared:
        if root == path:
            return None
        root += os.sep + path[len(root) + 1 :].partition(os.sep)[0]
    return root.rstrip(os.sep)


def placements(
    staged: Mapping[Path, str], site: Path, *, leaving: Iterable[str], prefix: Path
) -> tuple[dict[str, tuple[str, frozenset[str]]], frozenset[str]]:
    """Return what to move from a stage into the environment: whole folders where they are free.

    Parameters
    ----------
    staged
        The metadata folders in the stage, with the names of their packages.
    site
        The environment's folder that corresponds to theirs.
    leaving
        What will have been moved out of the environment before.

    Returns
    -------
    tuple
        Path in the environment to the path in the stage and the names of the packages; and which of
        the paths in the environment are taken by what no package owns.
    """
    real_prefix = str(prefix.resolve())
    gone = set(leaving)
    states: dict[str, str] = {}
    moves: dict[str, tuple[str, set[str]]] = {}
    taken: set[str] = set()

    def state(path: str) -> str:
        if path in gone or not os.path.lexists(path):
            return "free"
        if os.path.isdir(path) and is_inside(os.path.join(path, "x"), real_prefix):
            return "folder"
        return "taken"

    for directory, name in staged.items():
        free: set[str] = set()
        for entry in entries(directory):
            # Nearly all of twelve thousand files lie in a folder that has been decided on.
            first = entry.partition("/")[0]
            if first in free:
                continue
            parts = os.path.normpath(entry).split(os.sep)
            ups = next((i for i, part in enumerate(parts) if part != ".."), len(parts))
            above = os.path.join("", *[".."] * ups)
            source = os.path.normpath(os.path.join(directory.parent, above))
            target = os.path.normpath(os.path.join(site, above))
            for depth, part in enumerate(parts[ups:], start=ups + 1):
                source = os.path.join(source, part)
                target = os.path.join(target, part)
                if target not in states:
                    states[target] = state(target)
                if states[target] == "folder" and depth < len(parts):
                    continue
                moves.setdefault(target, (source, set()))[1].add(name)
                if states[target] != "free":
                    taken.add(target)
                if ups == 0 and depth == 1:
                    free.add(first)
                break
    return (
        {target: (source, frozenset(owners)) for target, (source, owners) in moves.items()},
        frozenset(taken),
    )
