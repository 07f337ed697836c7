"""Change an environment so that it is the old one or the new: stage, journal, renames, recovery.

uv uninstalls all that is old and then links all that is new; killed in between it leaves neither.
So uv never works on the environment itself: it installs into a stage beside it, a tree of the same
shape, and what it made is only then renamed into place, after what it replaces was renamed aside.
Renames take no time and no space, also for gigabytes. A process that dies between them leaves a
journal, and the next contact goes on or back.

What was replaced becomes a tree of that shape too, and is kept: to undo is to switch to it.

```
site-packages/.torchenv-work-ID/new   the stage: lib/python3.11/site-packages/…, bin/…
                                /old   what was renamed aside: 0, 1, 2, …
.torchenv/journal.json                 both lists; there only while they are being worked through
```
"""

from __future__ import annotations

import contextlib
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from packaging.utils import canonicalize_name

from torchenv_magic.environment import Environment, shown_path
from torchenv_magic.errors import DiskSpaceError, InstallError, TargetError
from torchenv_magic.expectation import (
    Expectation,
    read_expectation,
    remove_expectation,
    write_expectation,
)
from torchenv_magic.installation.footprint import (
    files_of,
    is_inside,
    lacks_code,
    long_path,
    metadata_directories,
    missing_files,
    placements,
    record_hash,
    roots,
    sites,
)
from torchenv_magic.installation.history import Entry, add_entry, recovered
from torchenv_magic.installation.kept import (
    KEPT,
    Kept,
    is_kept_name,
    is_written,
    kept_folders,
    read_kept,
    room_problem,
    write_kept,
)
from torchenv_magic.serialization import from_json, to_json
from torchenv_magic.state import (
    make_state_directory,
    read_state,
    state_directory,
    sweep_state,
    write_state,
)
from torchenv_magic.web import without_login

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Transaction", "failure", "has_left_overs", "is_interrupted", "recover"]

logger = logging.getLogger(__name__)

_WORK = ".torchenv-work-"
_SCHEMA = 2
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
class _Before:
    """One package that was there before anything was moved."""

    name: str
    version: str
    origin: str = ""
    """Its `direct_url.json`, where it came from an address."""
    record: str = ""
    """The hash of its RECORD, of those that are moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Journal:
    state: Literal["aside", "place", "committed"]
    """Renaming the old aside; renaming the new into place; done, but for the rest of the old."""
    work: str
    stage: str
    """The folder that `new` lies in: the work folder, or what was kept by an earlier install."""
    asides: tuple[_Aside, ...]
    placed: tuple[_Placed, ...]
    incoming: tuple[tuple[str, str], ...]
    """(normalized name, hash of its RECORD) of each new package."""
    expectation: Expectation | None
    """What is kept of the wish that this change fulfils, once it does."""
    entry: Entry | None
    """What is written down of it, once it is done."""
    kept: Kept | None
    """What is kept of it, and where."""
    before: tuple[_Before, ...] = ()
    schema: int = _SCHEMA


def _journal_path(environment: Environment) -> Path:
    return state_directory(environment.prefix) / "journal.json"


class Transaction:
    """One change of one environment, in a `with` block and under `locked`.

    Left without `commit`, by whatever exception, the environment is the one that it was.
    """

    def __init__(self, environment: Environment, *, source: Kept | None = None) -> None:
        """Begin; `source` is what an earlier install kept, and replaces the work of uv."""
        self._environment = environment
        self._work = environment.site_packages / f"{_WORK}{uuid.uuid4().hex[:8]}"
        self._source = self._work
        if source is not None and source.folder:
            self._source = environment.site_packages / source.folder
        self._journal: _Journal | None = None
        self._disposable = True

    @property
    def identity(self) -> str:
        """A name that no other transaction has."""
        return self._work.name.removeprefix(_WORK)

    @property
    def can_roll_back(self) -> bool:
        """Whether something was moved that is neither kept nor put back."""
        return self._journal is not None

    @property
    def stage(self) -> Path:
        """Where uv installs to: a folder on the environment's file system, to be its mirror."""
        return self._source / "new"

    def __enter__(self) -> Self:
        try:
            (self._work / "old").mkdir(parents=True)
            if self._source != self._work:
                return self
            self.stage.mkdir()
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
        self,
        leaving: Iterable[str],
        *,
        incoming: Iterable[str],
        expectation: Expectation | None,
        entry: Entry | None = None,
    ) -> None:
        """Rename everything of the leaving packages aside, and what is staged into its place.

        `expectation` is written with the commit, whoever completes it (None removes the one that
        is there), and so is `entry`, under which what is replaced is kept.

        Raises
        ------
        InstallError
            A file can't be renamed (on Windows: a library that a running kernel has loaded). What
            was renamed already is put back at the end of the block.
        """
        journal = self._plan(
            {canonicalize_name(name) for name in leaving}, sorted(incoming), expectation, entry
        )
        _put_by(self._environment, self.identity)
        self._journal = journal
        self._disposable = False
        self._write(journal)
        try:
            for aside in journal.asides:
                slot = self._work / "old" / aside.slot
                _place(aside.path, slot, _part(slot))
            self._write(replace(journal, state="place"))
            for placed in journal.placed:
                half = _half(placed.path, self._work.name)
                _place(self._source / placed.source, placed.path, half)
        except OSError as error:
            raise failure(error) from error

    def _plan(
        self,
        leaving: set[str],
        incoming: Sequence[str],
        expectation: Expectation | None,
        entry: Entry | None,
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
            if self._source != self._work:
                # What was kept is what was there, also where a person had deleted some of it.
                placed = {p: found for p, found in placed.items() if os.path.lexists(found[0])}
        asides |= dict.fromkeys(taken, frozenset())
        real_prefix = str(prefix.resolve())
        for path in (*asides, *placed):
            if not is_inside(path, real_prefix):
                message = f"`{path}` lies outside the environment, so it can't be switched safely"
                hint = "`%torchenv new-kernel NAME` makes an environment of your own"
                raise InstallError(message, hint=hint)
        source_folder = self._source.resolve()
        new = tuple((name, record_hash(path)) for path, name in staged.items())
        return _Journal(
            state="aside",
            work=self._work.name,
            stage=self._source.name,
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
                    source=Path(source).relative_to(source_folder).as_posix(),
                    path=Path(path),
                    owners=tuple(sorted(owners)),
                )
                for path, (source, owners) in placed.items()
            ),
            incoming=new,
            expectation=expectation,
            entry=entry,
            kept=self._to_keep(entry, mine, asides, new) if entry else None,
            before=_before(environment, mine),
        )

    def _to_keep(
        self,
        entry: Entry,
        mine: Mapping[Path, str],
        asides: Iterable[str],
        new: tuple[tuple[str, str], ...],
    ) -> Kept:
        held = tuple((name, record_hash(path)) for path, name in mine.items())
        site = self._environment.site_packages
        problem = ""
        again = {change.name for change in entry.changes if change.before == change.after}
        if (
            any(not digest for _, digest in held)
            or len(dict(held)) < len(held)
            or any(name in again and lacks_code(path) for path, name in mine.items())
        ):
            problem = "what it replaced was not whole"
        elif {path.parent for path in mine} - {site.resolve()}:
            problem = "what it replaced lay in another folder than what it brought"
        else:
            problem = room_problem(site, asides)
        return Kept(
            folder="" if problem or not held else f"{KEPT}{uuid.uuid4().hex[:8]}",
            entry=entry,
            left=new,
            held=held,
            expectation=read_expectation(self._environment.prefix),
            problem=problem,
        )

    def commit(self, *, seconds: float | None = None) -> None:
        """Keep the new files: the environment is the new one from here on."""
        if self._journal is not None:
            committed = replace(self._journal, state="committed")
            if committed.entry is not None:
                entry = replace(committed.entry, seconds=seconds)
                committed = replace(committed, entry=entry)
            self._write(committed)
            # From here on there is no way back, whatever happens to the rest of the old.
            self._journal = None
            try:
                _settle(self._environment, committed, self._work)
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
        try:
            make_state_directory(self._environment.prefix)
            # On the disk before the first rename is.
            write_state(_journal_path(self._environment), json.dumps(to_json(journal)).encode())
        except OSError as error:
            raise failure(error) from error


def _before(environment: Environment, mine: Mapping[Path, str]) -> tuple[_Before, ...]:
    found = []
    for package in environment.packages:
        directory = package.metadata_directory
        origin = ""
        if directory is not None:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                text = (directory / "direct_url.json").read_text(encoding="utf-8")
                origin = without_login(text)[:2000]
        found.append(
            _Before(
                name=package.name,
                version=package.version,
                origin=origin,
                record=record_hash(directory) if directory and directory in mine else "",
            )
        )
    return tuple(found)


def failure(error: OSError) -> InstallError:
    """Return what a file that could not be made, moved or written means for an install."""
    if error.errno == errno.EDQUOT:
        return DiskSpaceError(
            f"Your share of the environment's disk is used up: {error.filename or ''}".rstrip(": "),
            hint="free some of your own space, then try again",
        )
    if error.errno == errno.ENOSPC:
        return DiskSpaceError(
            f"The environment's disk is full: {error.filename or ''}".rstrip(": "),
            hint="free some space, then try again",
        )
    if error.errno == errno.ENOENT and error.filename is not None:
        return InstallError(
            f"`{error.filename}` was removed by somebody else while this worked",
            hint="see whether the environment is still there, and make it anew if not",
        )
    if error.errno == errno.EROFS:
        where = f"`{error.filename}`" if error.filename else "The environment"
        return InstallError(
            f"{where} lies on a disk that can only be read",
            hint="`%torchenv new-kernel NAME` makes an environment of your own",
        )
    if error.filename is None:
        return InstallError(
            f"The environment can't be changed: {error.strerror or error}",
            hint="see whether its disk is at fault, then try again",
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


_PUT_BY = "journal.unknown-"


def _put_by(environment: Environment, identity: str) -> None:
    """Keep a journal that nobody here understands: what it speaks of may be a person's only copy.

    Raises
    ------
    InstallError
    """
    path = _journal_path(environment)
    if not os.path.lexists(path):
        return
    try:
        path.rename(path.with_name(f"{_PUT_BY}{identity}.json"))
    except OSError as error:
        raise failure(error) from error


def _is_put_by(environment: Environment) -> bool:
    """Whether such a journal is there: then nobody can tell which left folders matter."""
    return any(state_directory(environment.prefix).glob(f"{_PUT_BY}*"))


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
    sweep_state(environment.prefix)
    journal = _read_journal(environment)
    if journal is None:
        if not _journal_path(environment).exists() and not _is_put_by(environment):
            for left in _work_folders(environment):
                _drop(left)
            _drop_others(environment)
        return None
    work = environment.site_packages / journal.work
    try:
        sentence = _repair(environment, journal, work)
    except OSError as error:
        raise failure(error) from error
    _drop(work)
    return sentence


def _repair(environment: Environment, journal: _Journal, work: Path) -> str:
    """Go on or back; return a sentence about what stands."""
    places = sites(environment)
    what = "undo" if journal.entry and journal.entry.outcome == "undone" else "install"
    if journal.state == "committed" or _is_complete(journal, work, places):
        at = "after its end" if journal.state == "committed" else "when all its files were there"
        if journal.entry is not None:
            journal = replace(journal, entry=recovered(journal.entry, forward=True))
        _settle(environment, journal, work)
        return f"The last {what} was interrupted {at}; it stands."
    _back(journal, work, places)
    if journal.entry is not None:
        add_entry(environment.prefix, recovered(journal.entry, forward=False))
    _journal_path(environment).unlink(missing_ok=True)
    return f"The last {what} was interrupted; the packages that it replaced are back."


def _settle(environment: Environment, journal: _Journal, work: Path) -> None:
    """Do what follows the last rename of a switch; what was done of it already is done again.

    Raises
    ------
    OSError, TargetError
        The journal stays, and the next contact goes on.
    """
    kept = journal.kept
    tree = work / "kept"
    if kept is not None and kept.folder:
        tree = environment.site_packages / kept.folder / "new"
    _forward(journal, _trees(environment, journal, work, tree))
    if journal.expectation is not None:
        write_expectation(environment.prefix, journal.expectation)
    else:
        remove_expectation(environment.prefix)
    if kept is not None:
        if kept.folder:
            for place, goal in _trees(environment, journal, work, tree).values():
                if os.path.lexists(place) and not os.path.lexists(goal):
                    goal.parent.mkdir(parents=True, exist_ok=True)
                    _move(place, goal)
        write_kept(environment.prefix, kept)
    if journal.entry is not None:
        add_entry(environment.prefix, journal.entry)
    _journal_path(environment).unlink(missing_ok=True)
    _drop_others(environment)


def _trees(
    environment: Environment, journal: _Journal, work: Path, tree: Path
) -> dict[Path, tuple[Path, Path]]:
    """Return where each path that went aside lies, and where it comes to among what is kept."""
    prefix = os.path.realpath(environment.prefix)
    found = {}
    for aside in journal.asides:
        real = os.path.join(os.path.realpath(aside.path.parent), aside.path.name)  # noqa: PTH118
        found[aside.path] = (work / "old" / aside.slot, tree / os.path.relpath(real, prefix))
    return found


def _drop_others(environment: Environment) -> None:
    """Delete what is kept of earlier installs than the last."""
    folders = kept_folders(environment.site_packages)
    if not folders:
        return
    if _is_put_by(environment):
        return
    kept = read_kept(environment.prefix)
    if kept is None and is_written(environment.prefix):
        return  # another person's, or a newer version's
    for folder in folders:
        if kept is None or folder.name != kept.folder:
            _drop(folder)


def _read_journal(environment: Environment) -> _Journal | None:
    """Return the journal, None where there is none or it is not one of this environment."""
    path = _journal_path(environment)
    try:
        content = read_state(path, largest=_LARGEST_JOURNAL)
        data = json.loads(content)
        journal = from_json(_Journal, data)
        problem = _problem(journal, environment)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        message = "An install by somebody else was interrupted here, and only they can repair it"
        hint = f"let the owner of `{shown_path(path)}` run `torchenv status`"
        raise InstallError(message, hint=hint) from error
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
    if journal.stage != journal.work and not is_kept_name(journal.stage):
        return "its stage has another name"
    if journal.kept is not None and journal.kept.folder and not is_kept_name(journal.kept.folder):
        return "what it keeps has another name"
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
    stage = work.with_name(journal.stage)
    ours = [name for name, _ in journal.incoming if name not in replaced]
    in_place = all(
        os.path.lexists(placed.path) and not os.path.lexists(stage / placed.source)
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
    stage = work.with_name(journal.stage)
    taken_back = []
    for placed in reversed(journal.placed):
        source = stage / placed.source
        half = _half(placed.path, journal.work)
        if os.path.lexists(half):
            # Before anything was in its place: nobody has used this yet.
            _merge(half, source)
            _remove(half)
        part = _part(source)
        if os.path.lexists(part) and not replaced & set(placed.owners):
            # Whoever was here before was killed on the same way.
            if os.path.lexists(placed.path):
                _merge(placed.path, part)
                _remove(placed.path)
            _rename(part, source)
            taken_back.append((source, placed.path))
        elif (
            not replaced & set(placed.owners)
            and not os.path.lexists(source)
            and os.path.lexists(placed.path)
        ):
            source.parent.mkdir(parents=True, exist_ok=True)
            _place(placed.path, source, part)
            taken_back.append((source, placed.path))
    for aside in journal.asides:
        stashed = work / "old" / aside.slot
        for place in (stashed, _part(stashed)):
            if not replaced & set(aside.owners) and os.path.lexists(place):
                _merge(place, aside.path)
    if taken_back:
        owned = {
            path
            for folder in _package_folders(stage / "new")
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


def _forward(journal: _Journal, trees: Mapping[Path, tuple[Path, Path]]) -> None:
    """Let the old go, but for the files that no package owns: a person put them there."""
    stashed = {
        path: goal if os.path.lexists(goal) else place for path, (place, goal) in trees.items()
    }
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
    waiting = [(str(folder), str(original))]
    while waiting:
        here, there = waiting.pop()
        # Strings, as a torch has twelve thousand files.
        for entry in list(os.scandir(here)):
            path = there + os.sep + entry.name
            if entry.is_dir(follow_symlinks=False):
                waiting.append((entry.path, path))
            elif path not in owned and not entry.name.endswith(".pyc"):
                _keep(Path(entry.path), Path(path), original)


def _keep(source: Path, path: Path, top: Path) -> None:
    # A link to what many share has taken the folder's place, or that of one in it: nothing of one
    # person goes through it.
    for parent in (top / part for part in reversed(path.relative_to(top).parents)):
        if parent.is_symlink():
            aside = parent.with_name(f"{parent.name}.kept")
            path = aside / path.relative_to(parent)
            break
    if os.path.lexists(path):
        return
    if any(parent.exists() and not parent.is_dir() for parent in path.parents):
        # A file has taken the folder's place: the name tells where this came from.
        path = path.parent.with_name(f"{path.parent.name}.kept") / path.name
    path.parent.mkdir(parents=True, exist_ok=True)
    _move(source, path)


# ------------------------------------------------------------------------------------------- moving


def _place(source: Path, target: Path, part: Path) -> None:
    """Move `source` to `target`, which is there only once all of it is.

    `part` holds what has come of it where that can't be done by one rename.
    """
    try:
        _rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move(source, part)
        _rename(part, target)


def _half(path: Path, work: str) -> Path:
    """Return where beside `path` its parts are put together."""
    return path.with_name(f"{work}.{path.name}.part")


def _remove(path: Path) -> None:
    """Delete what was moved, and has left empty folders and copies."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
