"""Change an environment so that it is the old one or the new one: lock, journal, stash, recovery.

uv uninstalls all that is old and then links all that is new; killed in between it leaves neither.
So everything that a plan replaces or removes is renamed aside first (a rename costs nothing, also
for gigabytes), uv then links into the free place, and only after a check the stash is dropped.
A process that dies in between leaves a journal, and the next contact puts the old files back.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import shutil
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.utils import canonicalize_name

from torchenv_magic.environment import Environment
from torchenv_magic.errors import BusyError, InstallError, TargetError

__all__ = ["Transaction", "locked", "missing_files", "recover"]

logger = logging.getLogger(__name__)

_STASH = ".torchenv-stash-"


def _state_directory(environment: Environment) -> Path:
    return environment.prefix / ".torchenv"


@contextlib.contextmanager
def locked(environment: Environment) -> Iterator[None]:
    """Hold the environment's lock, so that only one of us changes it at a time.

    The operating system drops the lock with the process that held it.

    Raises
    ------
    BusyError
        Another process holds it.
    TargetError
        The environment can't be written.
    """
    directory = _state_directory(environment)
    try:
        directory.mkdir(exist_ok=True)
        file = (directory / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        message = f"{environment.prefix} can't be written: {error.strerror}."
        raise TargetError(
            message, hint="choose an environment of your own as the kernel"
        ) from error
    with file:
        try:
            _acquire(file.fileno())
        except OSError as error:
            file.seek(0)
            holder = file.read(100).strip()
            message = (
                f"Another install works on {environment.prefix}"
                f"{f' (process {holder})' if holder.isdigit() else ''}."
            )
            raise BusyError(message, hint="wait for it to end, then try again") from error
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def _acquire(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        # Past the text, so that another process can still read who holds it.
        os.lseek(descriptor, 1000, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@dataclass(slots=True)
class Transaction:
    """One change of one environment. Use it under `locked`."""

    environment: Environment
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    _moves: list[tuple[str, str]] = field(default_factory=list)
    _before: dict[str, list[str]] = field(default_factory=dict)
    _incoming: list[str] = field(default_factory=list)

    @property
    def _journal(self) -> Path:
        return _state_directory(self.environment) / "journal.json"

    @property
    def _stash(self) -> Path:
        return self.environment.site_packages / f"{_STASH}{self.id}"

    def stash(self, names: Iterable[str], *, incoming: Iterable[str]) -> None:
        """Rename everything that the named packages own out of the way of the incoming ones.

        Raises
        ------
        InstallError
            A file can't be renamed (on Windows: a library that a running kernel has loaded). What
            was renamed already is put back.
        """
        site = self.environment.site_packages
        targets = _belongings(site, {canonicalize_name(name) for name in names})
        self._moves = [(str(path), str(number)) for number, path in enumerate(targets)]
        # What is there before tells afterwards what a broken uv has left.
        watched = {site, *(path.parent for path in targets)}
        self._before = {str(d): sorted(os.listdir(d)) for d in watched if d.is_dir()}
        self._incoming = sorted({canonicalize_name(name) for name in incoming})
        self._write("stashing")
        self._stash.mkdir()
        try:
            for path, name in self._moves:
                os.rename(path, self._stash / name)
        except OSError as error:
            self.roll_back()
            message = f"{error.filename} can't be moved aside: {error.strerror}."
            raise InstallError(
                message, hint="close the notebooks that use this environment, then try again"
            ) from error
        self._write("switching")

    def commit(self) -> None:
        """Keep the new files: the environment is the new one from here on."""
        self._write("committed")
        _forward(self._stash, self._moves)
        self._journal.unlink()

    def roll_back(self) -> None:
        """Put the old files back: the environment is the one that it was."""
        _back(self.environment, self._stash, self._moves, self._before, self._incoming)
        self._journal.unlink(missing_ok=True)

    def _write(self, state: str) -> None:
        content = {
            "schema": 1,
            "state": state,
            "stash": str(self._stash),
            "moves": self._moves,
            "before": self._before,
            "incoming": self._incoming,
        }
        temporary = self._journal.with_suffix(".new")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            # The journal must be on the disk before the first rename is.
            os.fsync(file.fileno())
        temporary.replace(self._journal)


def recover(environment: Environment) -> str | None:
    """Repair what a killed install left; return one sentence where there was something.

    Use it under `locked`, else it would undo an install that is running.
    """
    journal = _state_directory(environment) / "journal.json"
    try:
        content: dict[str, Any] = json.loads(journal.read_text(encoding="utf-8"))
        state = content["state"]
        stash = Path(content["stash"])
        moves = [(str(path), str(name)) for path, name in content["moves"]]
        before = {str(k): [str(name) for name in v] for k, v in content["before"].items()}
        incoming = [canonicalize_name(name) for name in content["incoming"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is not readable: %s", journal, error)
        return None
    # The journal names what is moved over what: it may only ever speak of this environment.
    prefix = environment.prefix.resolve()
    paths = [stash, *(Path(path) for path, _ in moves), *map(Path, before)]
    if not all(path.parent.resolve().is_relative_to(prefix) for path in paths) or not all(
        name.isdigit() for _, name in moves
    ):
        logger.warning("%s speaks of files outside %s; ignored", journal, prefix)
        return None
    if state == "committed":
        _forward(stash, moves)
        sentence = "The last install was interrupted after its end; what it left was cleaned up."
    elif state == "switching" and incoming and not missing_files(environment, incoming):
        # Killed between uv's end and ours, or repaired by hand since then: forward.
        _forward(stash, moves)
        sentence = "The last install was interrupted when all its files were there; it stands."
    else:
        _back(environment, stash, moves, before, incoming)
        sentence = "The last install was interrupted; the packages that it replaced are back."
    journal.unlink(missing_ok=True)
    return sentence


def _back(
    environment: Environment,
    stash: Path,
    moves: list[tuple[str, str]],
    before: dict[str, list[str]],
    incoming: Iterable[str],
) -> None:
    if stash.is_dir():
        _clear_half_linked(environment, stash, before, set(incoming))
    for path, name in moves:
        stashed = stash / name
        if stashed.exists() or stashed.is_symlink():
            _delete(Path(path))
            os.rename(stashed, path)
    shutil.rmtree(stash, ignore_errors=True)


def _clear_half_linked(
    environment: Environment, stash: Path, before: dict[str, list[str]], incoming: set[str]
) -> None:
    """Take away what a broken uv linked, and nothing that anybody else installed since then."""
    site = environment.site_packages
    owned: set[Path] = set()
    for name, paths in _dist_infos(site).items():
        if name not in incoming:
            for dist_info in paths:
                for entry in _record(dist_info):
                    owned.update(_ancestry(Path(os.path.normpath(site / entry)), site))
    incoming_infos = {p for name in incoming for p in _dist_infos(site).get(name, [])}
    for directory, names in before.items():
        known = {*names, stash.name}
        for entry in os.listdir(directory) if os.path.isdir(directory) else ():
            path = Path(directory, entry)
            if entry in known or entry.startswith(_STASH) or path in owned:
                continue
            if path in incoming_infos:
                _delete(path)
                continue
            # No package of this environment owns it: most likely uv's, but nothing may be lost.
            kept = _state_directory(environment) / f"left-over-{stash.name.removeprefix(_STASH)}"
            kept.mkdir(exist_ok=True)
            with contextlib.suppress(OSError):
                os.rename(path, kept / entry)


def _ancestry(path: Path, site: Path) -> Iterator[Path]:
    yield path
    for parent in path.parents:
        if parent == site or site not in parent.parents:
            return
        yield parent


def _forward(stash: Path, moves: list[tuple[str, str]]) -> None:
    """Drop the stash, but for files that no package owns: a person put them there."""
    if not stash.is_dir():
        return
    owned = {str(PurePosixPath(path)) for path in _recorded(stash, moves)}
    for path, name in moves:
        stashed = stash / name
        if not stashed.is_dir() or stashed.is_symlink():
            continue
        for folder, _, files in os.walk(stashed):
            for file in files:
                source = Path(folder, file)
                target = Path(path) / source.relative_to(stashed)
                if file.endswith(".pyc") or str(target) in owned or target.exists():
                    continue
                if str(path).endswith(".dist-info"):
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                os.rename(source, target)
    trash = stash.with_name(f"{_STASH}trash-{uuid.uuid4().hex[:8]}")
    os.rename(stash, trash)
    for left in trash.parent.glob(f"{_STASH}trash-*"):
        thread = threading.Thread(target=shutil.rmtree, args=(left, True), daemon=True)
        thread.start()


def _recorded(stash: Path, moves: list[tuple[str, str]]) -> Iterator[str]:
    for path, name in moves:
        if path.endswith(".dist-info"):
            site = Path(path).parent
            for entry in _record(stash / name):
                yield os.path.normpath(site / entry)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _record(dist_info: Path) -> list[str]:
    """Return the paths of a RECORD, relative to site-packages; none where it is missing."""
    try:
        with (dist_info / "RECORD").open(encoding="utf-8", newline="") as file:
            return [row[0] for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _dist_infos(site: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in site.glob("*.dist-info"):
        name = canonicalize_name(path.name.removesuffix(".dist-info").rpartition("-")[0])
        found.setdefault(name, []).append(path)
    return found


def _belongings(site: Path, names: set[Any]) -> list[Path]:
    """Return what to rename so that the named packages are gone: whole folders where it can be.

    A folder is renamed whole where no other package has a file in it; `nvidia`, which a dozen
    packages share, is not.
    """
    dist_infos = _dist_infos(site)
    mine: set[tuple[str, ...]] = set()
    for name in names:
        for dist_info in dist_infos.get(name, []):
            mine |= {_parts(entry) for entry in _record(dist_info)}
            mine.add((dist_info.name,))
            mine.add((dist_info.name, "RECORD"))
            if not _record(dist_info):
                # Half-linked or half-removed: what it left lies in a folder of its own name.
                mine.add((str(name).replace("-", "_"), "__init__.py"))
    roots = {parts[0] for parts in mine if parts[0] != ".."}
    others: set[tuple[str, ...]] = set()
    for name, paths in dist_infos.items():
        if name in names:
            continue
        for path in paths:
            for entry in _record(path):
                parts = _parts(entry)
                if parts and parts[0] in roots:
                    # Every folder on the way to another's file must stay where it is.
                    others |= {parts[:depth] for depth in range(1, len(parts) + 1)}
    result: set[Path] = set()
    for parts in mine:
        if parts[0] == "..":
            # Scripts: `../../../bin/torchrun`, in a folder that everybody shares.
            result.add(Path(os.path.normpath(site.joinpath(*parts))))
            continue
        depth = 1
        while depth < len(parts) and parts[:depth] in others:
            depth += 1
        if parts[:depth] not in others and parts[0] != "__pycache__":
            result.add(site.joinpath(*parts[:depth]))
    return sorted(path for path in result if path.exists() or path.is_symlink())


def _parts(entry: str) -> tuple[str, ...]:
    return PurePosixPath(entry.replace("\\", "/")).parts


def missing_files(environment: Environment, names: Iterable[str]) -> tuple[str, ...]:
    """Return what of the named packages' RECORDs is not there with its size: a walk of `stat`s.

    A package without a RECORD is missing as a whole.
    """
    site = environment.site_packages
    dist_infos = _dist_infos(site)
    missing = []
    for name in names:
        paths = dist_infos.get(canonicalize_name(name), [])
        if len(paths) != 1 or not _record(paths[0]):
            missing.append(f"{name}: {'no RECORD' if paths else 'not installed'}")
            continue
        with (paths[0] / "RECORD").open(encoding="utf-8", newline="") as file:
            for row in csv.reader(file):
                size = row[2] if len(row) > 2 else ""
                try:
                    actual = os.stat(site / row[0]).st_size
                except OSError:
                    missing.append(row[0])
                    continue
                if size and int(size) != actual:
                    missing.append(f"{row[0]}: {actual} bytes, not {size}")
    return tuple(missing)
