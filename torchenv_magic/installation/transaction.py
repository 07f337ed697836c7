"""Change an environment so that it is the old one or the new: stage, journal, renames, recovery.

uv uninstalls all that is old and then links all that is new; killed in between it leaves neither.
So uv never works on the environment itself: it installs into a stage beside it, a tree of the same
shape, and what it made is only then renamed into place, after what it replaces was renamed aside.
Renames take no time and no space, also for gigabytes. A process that dies between them leaves a
journal, and the next contact goes on or back.

```
site-packages/.torchenv-work-ID/new   the stage: lib/python3.11/site-packages/…, bin/…
                                /old   what was renamed aside: 0, 1, 2, …
.torchenv/journal.json                 both lists; there only while they are being worked through
```
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import stat
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from packaging.utils import canonicalize_name

from torchenv_magic.environment import Environment
from torchenv_magic.errors import DiskSpaceError, InstallError, TargetError
from torchenv_magic.expectation import Expectation, write_expectation
from torchenv_magic.installation.footprint import (
    files_of,
    is_inside,
    long_path,
    metadata_directories,
    missing_files,
    placements,
    record_hash,
    roots,
    sites,
)
from torchenv_magic.installation.locking import state_directory
from torchenv_magic.serialization import from_json, to_json

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Transaction", "failure", "has_left_overs", "is_interrupted", "recover"]

logger = logging.getLogger(__name__)

_WORK = ".torchenv-work-"
_SCHEMA = 1
_LARGEST_JOURNAL = 50_000_000
"""Bytes. A build with all its libraries has a few kB; a package without folders one row a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Aside:
    """One path that makes room: `path` becomes `old/SLOT`."""

    path: Path
    slot: str
    owners: tuple[str, ...]
    whole: bool = False
    """Whether everything in it goes: nothing tells a package's files from a person's there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """One path that comes: `new/SOURCE` becomes `path`."""

    source: str
    path: Path
    owners: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Journal:
    state: Literal["aside", "place", "committed"]
    """Renaming the old aside; renaming the new into place; done, but for the rest of the old."""
    work: str
    asides: tuple[_Aside, ...]
    placed: tuple[_Placed, ...]
    incoming: tuple[tuple[str, str], ...]
    """(normalized name, hash of its RECORD) of each new package."""
    expectation: Expectation
    """What is kept of the wish that this change fulfils, once it does."""
    schema: int = _SCHEMA


def _journal_path(environment: Environment) -> Path:
    return state_directory(environment) / "journal.json"


class Transaction:
    """One change of one environment, in a `with` block and under `locked`.

    Left without `commit`, by whatever exception, the environment is the one that it was.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._work = environment.site_packages / f"{_WORK}{uuid.uuid4().hex[:8]}"
        self._journal: _Journal | None = None
        self._disposable = True

    @property
    def can_roll_back(self) -> bool:
        """Whether something was moved that is neither kept nor put back."""
        return self._journal is not None

    @property
    def stage(self) -> Path:
        """Where uv installs to: a folder on the environment's file system, to be its mirror."""
        return self._work / "new"

    def __enter__(self) -> Self:
        try:
            self.stage.mkdir(parents=True)
            (self._work / "old").mkdir()
            # Fedora installs compiled packages into lib64, which a virtual environment links.
            if (self._environment.prefix / "lib64").is_symlink():
                (self.stage / "lib").mkdir()
                (self.stage / "lib64").symlink_to("lib")
        except OSError as error:
            raise failure(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._journal is not None:
            self.roll_back()
        if self._disposable:
            _drop(self._work)

    def staged_site(self) -> Path:
        """Return the stage's folder of packages.

        Raises
        ------
        InstallError
            uv made another tree than the environment's.
        """
        found = list(_package_folders(self.stage))
        if len(found) != 1:
            message = "uv laid the packages out in a way that does not fit this environment"
            detail = "\n".join(map(str, found))
            raise InstallError(message, hint="report it, with the folded text", detail=detail)
        return found[0]

    def switch(
        self, leaving: Iterable[str], *, incoming: Iterable[str], expectation: Expectation
    ) -> None:
        """Rename everything of the leaving packages aside, and what is staged into its place.

        `expectation` is written with the commit, whoever completes it.

        Raises
        ------
        InstallError
            A file can't be renamed (on Windows: a library that a running kernel has loaded). What
            was renamed already is put back at the end of the block.
        """
        journal = self._plan(
            {canonicalize_name(name) for name in leaving}, sorted(incoming), expectation
        )
        self._journal = journal
        self._disposable = False
        self._write(journal)
        try:
            for aside in journal.asides:
                _set_aside(aside.path, self._work / "old" / aside.slot)
            self._write(replace(journal, state="place"))
            for placed in journal.placed:
                _move(self._work / placed.source, placed.path)
        except OSError as error:
            raise failure(error) from error

    def _plan(
        self, leaving: set[str], incoming: Sequence[str], expectation: Expectation
    ) -> _Journal:
        environment = self._environment
        prefix, site = environment.prefix, environment.site_packages.resolve()
        mine = {
            package.metadata_directory: package.name
            for package in environment.packages
            if package.name in leaving and package.metadata_directory is not None
        }
        others = [
            directory
            for name, directories in metadata_directories(sites(environment)).items()
            if name not in leaving
            for directory in directories
        ]
        asides, guessed = roots(mine, others, prefix=prefix) if mine else ({}, frozenset())
        staged: dict[Path, str] = {}
        placed: dict[str, tuple[str, frozenset[str]]] = {}
        taken: frozenset[str] = frozenset()
        if incoming:
            found = metadata_directories([self.staged_site()])
            staged = {
                directory: name
                for name in map(canonicalize_name, incoming)
                for directory in found.get(name, [])
            }
            placed, taken = placements(staged, site, leaving=asides, prefix=prefix)
        asides |= dict.fromkeys(taken, frozenset())
        real_prefix = str(prefix.resolve())
        for path in (*asides, *placed):
            if not is_inside(path, real_prefix):
                message = f"`{path}` lies outside the environment, so it can't be switched safely"
                raise InstallError(message, hint="make an environment of your own")
        work = self._work.resolve()
        return _Journal(
            state="aside",
            work=self._work.name,
            asides=tuple(
                _Aside(
                    path=Path(path),
                    slot=str(number),
                    owners=tuple(sorted(owners)),
                    whole=path in guessed,
                )
                for number, (path, owners) in enumerate(asides.items())
            ),
            placed=tuple(
                _Placed(
                    source=Path(source).relative_to(work).as_posix(),
                    path=Path(path),
                    owners=tuple(sorted(owners)),
                )
                for path, (source, owners) in placed.items()
            ),
            incoming=tuple((name, record_hash(path)) for path, name in staged.items()),
            expectation=expectation,
        )

    def commit(self) -> None:
        """Keep the new files: the environment is the new one from here on."""
        if self._journal is not None:
            committed = replace(self._journal, state="committed")
            self._write(committed)
            # From here on there is no way back, whatever happens to the rest of the old.
            self._journal = None
            try:
                _forward(committed, self._work)
                write_expectation(self._environment.prefix, committed.expectation)
                _journal_path(self._environment).unlink(missing_ok=True)
            except (OSError, TargetError) as error:
                # The new is in place and proven; the next contact tidies up.
                logger.warning("%s is left for later: %s", self._work, error)
            else:
                self._disposable = True

    def roll_back(self) -> None:
        """Put the old files back: the environment is the one that it was.

        Raises
        ------
        InstallError
            A file can't be renamed. The journal stays, and the next contact tries again.
        """
        if self._journal is None:
            return
        try:
            _back(self._journal, self._work, sites(self._environment))
        except OSError as error:
            message = f"What was there before can't all be put back yet: {error.strerror}"
            hint = "close what uses the environment; `%torchenv status` then tries again"
            raise InstallError(message, hint=hint, detail=str(error)) from error
        _journal_path(self._environment).unlink(missing_ok=True)
        self._journal = None
        self._disposable = True

    def _write(self, journal: _Journal) -> None:
        path = _journal_path(self._environment)
        temporary = path.with_suffix(".new")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(to_json(journal), file)
                file.flush()
                # The journal must be on the disk before the first rename is.
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise failure(error) from error


def failure(error: OSError) -> InstallError:
    """Return what a file that could not be made, moved or written means for an install."""
    if error.errno == errno.ENOSPC:
        return DiskSpaceError(
            f"The environment's disk is full: {error.filename or ''}".rstrip(": "),
            hint="free some space, then try again",
        )
    return InstallError(
        f"`{error.filename}` can't be changed: {error.strerror}",
        hint="close the notebooks that use this environment, then try again",
    )


# ----------------------------------------------------------------------------------------- recovery


def has_left_overs(environment: Environment) -> bool:
    """Whether an install works on the environment now, or was killed while it did."""
    return _journal_path(environment).exists() or any(_work_folders(environment))


def is_interrupted(environment: Environment) -> bool:
    """Whether an install is at its switch now, or was killed there."""
    return _journal_path(environment).exists()


def _work_folders(environment: Environment) -> Iterator[Path]:
    return environment.site_packages.glob(f"{_WORK}*")


def recover(environment: Environment) -> str | None:
    """Repair what a killed install left; return one sentence where there was something.

    Use it under `locked`, else it would undo an install that is running.

    Raises
    ------
    InstallError, TargetError
        A file can't be renamed or written. The journal stays, and the next contact tries again.
    """
    journal = _read_journal(environment)
    if journal is None:
        if not _journal_path(environment).exists():
            for left in _work_folders(environment):
                _drop(left)
        return None
    work = environment.site_packages / journal.work
    try:
        stands, sentence = _repair(journal, work, sites(environment))
        if stands:
            write_expectation(environment.prefix, journal.expectation)
        _journal_path(environment).unlink(missing_ok=True)
    except OSError as error:
        raise failure(error) from error
    _drop(work)
    return sentence


def _repair(journal: _Journal, work: Path, places: Sequence[Path]) -> tuple[bool, str]:
    """Go on or back; return whether the new stands, and a sentence about it."""
    if journal.state == "committed":
        _forward(journal, work)
        return True, "The last install was interrupted after its end; it stands."
    if _is_complete(journal, work, places):
        _forward(journal, work)
        return True, "The last install was interrupted when all its files were there; it stands."
    _back(journal, work, places)
    return False, "The last install was interrupted; the packages that it replaced are back."


def _read_journal(environment: Environment) -> _Journal | None:
    """Return the journal, None where there is none or it is not one of this environment."""
    path = _journal_path(environment)
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_JOURNAL)
        data = json.loads(content)
        journal = from_json(_Journal, data)
        problem = _problem(journal, environment)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        problem = repr(error)
    if problem:
        logger.warning("%s is ignored: %s", path, problem)
        return None
    return journal


def _problem(journal: _Journal, environment: Environment) -> str:
    """Return why a journal is not to be believed: it names what is moved over what."""
    prefix = str(environment.prefix.resolve())
    site = environment.site_packages.resolve()
    if journal.schema != _SCHEMA:
        return f"it has the form {journal.schema}"
    if not re.fullmatch(rf"{re.escape(_WORK)}[0-9a-f]{{8}}", journal.work):
        return "its work folder has another name"
    if any(not re.fullmatch(r"\d{1,9}", aside.slot) for aside in journal.asides):
        return "it has other slots than numbers"
    if any(
        not re.match(r"new/.", placed.source) or ".." in placed.source.split("/")
        for placed in journal.placed
    ):
        return "it places what is not in its stage"
    paths = [*(a.path for a in journal.asides), *(placed.path for placed in journal.placed)]
    for path in paths:
        inside = path.is_absolute() and is_inside(str(path), prefix)
        if not inside or ".." in path.parts or site == path or path in site.parents:
            return f"it speaks of {path}"
    return ""


def _is_complete(journal: _Journal, work: Path, places: Sequence[Path]) -> bool:
    """Whether all that is new lies in its place (or what a person has put there since)."""
    if journal.state != "place":
        return False
    replaced = _reinstalled(journal, work, places)
    ours = [name for name, _ in journal.incoming if name not in replaced]
    in_place = all(
        os.path.lexists(placed.path) and not os.path.lexists(work / placed.source)
        for placed in journal.placed
        if not replaced & set(placed.owners)
    )
    return in_place and not missing_files(places[0], ours)


def _reinstalled(journal: _Journal, work: Path, places: Sequence[Path]) -> set[str]:
    """Return the names of packages that somebody else installed since the journal was written."""
    hashes = dict(journal.incoming)
    not_yet_aside = {
        str(aside.path)
        for aside in journal.asides
        if not os.path.lexists(work / "old" / aside.slot)
    }
    names = {*hashes, *(owner for aside in journal.asides for owner in aside.owners)}
    there = metadata_directories(places)
    return {
        name
        for name in names
        for directory in there.get(name, [])
        if str(directory) not in not_yet_aside
        and (name not in hashes or record_hash(directory) != hashes[name])
    }


def _back(journal: _Journal, work: Path, places: Sequence[Path]) -> None:
    """Put the old back, and keep what anybody else has installed or written since."""
    replaced = _reinstalled(journal, work, places)
    taken_back = []
    for placed in reversed(journal.placed):
        source = work / placed.source
        if (
            not replaced & set(placed.owners)
            and not os.path.lexists(source)
            and os.path.lexists(placed.path)
        ):
            source.parent.mkdir(parents=True, exist_ok=True)
            _move(placed.path, source)
            taken_back.append((source, placed.path))
    for aside in journal.asides:
        stashed = work / "old" / aside.slot
        for place in (stashed, _part(stashed)):
            if not replaced & set(aside.owners) and os.path.lexists(place):
                _merge(place, aside.path)
    if taken_back:
        owned = {
            path
            for folder in _package_folders(work / "new")
            for directories in metadata_directories([folder]).values()
            for directory in directories
            for path in files_of(directory, places[0])
        }
        for source, path in taken_back:
            _keep_foreign(source, path, owned)


def _package_folders(folder: Path) -> Iterator[Path]:
    """Return the folders below `folder` that packages were installed into."""
    entries = list(os.scandir(folder))
    if any(entry.name.endswith(".dist-info") for entry in entries):
        yield folder.resolve()
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _package_folders(Path(entry.path))


def _forward(journal: _Journal, work: Path) -> None:
    """Let the old go, but for the files that no package owns: a person put them there."""
    stashed = {aside.path: work / "old" / aside.slot for aside in journal.asides}
    owned: set[str] = set()
    for path, place in stashed.items():
        if path.name.endswith(".dist-info"):
            owned.update(files_of(place, path.parent))
    for aside in journal.asides:
        if not aside.whole and not aside.path.name.endswith(".dist-info"):
            _keep_foreign(stashed[aside.path], aside.path, owned)


def _keep_foreign(folder: Path, original: Path, owned: set[str]) -> None:
    """Move what nobody owns from a folder that goes to where the folder was."""
    if not folder.is_dir() or folder.is_symlink():
        return
    for entry in list(os.scandir(folder)):
        path = original / entry.name
        if entry.is_dir(follow_symlinks=False):
            _keep_foreign(Path(entry.path), path, owned)
        elif entry.name.endswith(".pyc") or str(path) in owned or os.path.lexists(path):
            continue
        else:
            if any(parent.exists() and not parent.is_dir() for parent in path.parents):
                # A file has taken the folder's place: the name tells where this came from.
                path = path.parent.with_name(f"{path.parent.name}.kept") / path.name
            path.parent.mkdir(parents=True, exist_ok=True)
            _move(Path(entry.path), path)


# ------------------------------------------------------------------------------------------- moving


def _set_aside(path: Path, slot: Path) -> None:
    """Move `path` to `slot`, which is there only once all of it is."""
    try:
        _rename(path, slot)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move(path, _part(slot))
        _rename(_part(slot), slot)


def _part(slot: Path) -> Path:
    return slot.with_name(f"{slot.name}.part")


def _move(source: Path, target: Path) -> None:
    """Rename; where that can't be done across two layers of a container, entry by entry.

    overlayfs refuses to rename a folder that comes from the image below (EXDEV), and so would a
    folder that is a mount of its own.
    """
    try:
        _rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if not stat.S_ISDIR(os.lstat(source).st_mode):
            shutil.copy2(source, target, follow_symlinks=False)
            source.unlink()
            return
        target.mkdir(exist_ok=True)
        shutil.copystat(source, target)
        for entry in list(os.scandir(source)):
            _move(Path(entry.path), target / entry.name)
        source.rmdir()


_RENAME_SECONDS = 2.0 if sys.platform == "win32" else 0.0


def _rename(source: Path, target: Path) -> None:
    end = time.monotonic() + _RENAME_SECONDS
    while True:
        try:
            source.rename(target)
        except PermissionError:
            # On Windows a virus scanner may look at what has just been written, for a moment.
            if time.monotonic() >= end:
                raise
            time.sleep(0.05)
        else:
            return


def _merge(source: Path, target: Path) -> None:
    """Move `source` to `target`; where both are folders, entry by entry. What is there stays."""
    if not os.path.lexists(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _move(source, target)
    elif all(path.is_dir() and not path.is_symlink() for path in (source, target)):
        for entry in list(os.scandir(source)):
            _merge(Path(entry.path), target / entry.name)


def _drop(folder: Path) -> None:
    """Delete in the background: twelve thousand links take up to a second.

    Not in a daemon thread, so that the end of a program waits for it.
    """
    if folder.exists():
        threading.Thread(
            target=shutil.rmtree,
            args=(long_path(str(folder)), True),
            name="torchenv-sweep",
            daemon=False,
        ).start()
