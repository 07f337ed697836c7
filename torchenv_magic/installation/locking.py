"""One change at a time: our own lock on an environment, and uv's.

Two things together are our lock. The operating system's, which it drops with the process that held
it, keeps processes of one machine apart. A record of the holder, which only one can make, keeps
machines apart that share the environment, and says who it is; its time of change is the holder's
heartbeat. A record outlives its holder, so it is judged: by the process where that can be seen from
here, else by the heartbeat.

Neither pip nor conda takes a lock, so a plan is compared with the environment once more before the
switch as well.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Literal

from torchenv_magic.environment import Environment, shown_path
from torchenv_magic.errors import BusyError, TargetError
from torchenv_magic.serialization import from_json, to_json
from torchenv_magic.state import (
    create_state,
    make_state_directory,
    open_state,
    state_directory,
    write_state,
)
from torchenv_magic.web import without_login

__all__ = ["Holder", "busy", "locked", "read_holder", "user_name", "uv_is_locked", "uv_locked"]

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_BEAT_SECONDS = 5.0
_QUIET_SECONDS = 30.0
"""What lets a holder that can't be seen from here be taken for dead: no heartbeat for so long."""
_WATCH_SECONDS = 8.0
"""How long a heartbeat that looks old is watched before that is believed: clocks jump."""
_LARGEST_RECORD = 20_000
# By its descriptor, so that the heartbeat of who has lost the lock is not taken for another's.
_BEATS_BY_DESCRIPTOR = os.utime in os.supports_fd


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who works on an environment."""

    host: str
    pid: int
    user: str = ""
    command: str = ""
    """The line that asked for it."""
    since: str = ""
    """In UTC, as ISO 8601 writes it."""
    machine: str = ""
    boot: str = ""
    """Another one each time that the machine starts; its containers share it."""
    space: str = ""
    """Where the number of the process holds: a container has numbers of its own."""
    started: str = ""
    """When the process began: numbers are given out again."""
    by_system: bool = False
    """Whether the operating system's lock is held too."""
    token: str = ""

    def __str__(self) -> str:
        by = f" by {self.user}" if self.user else ""
        on = f" on {self.host}" if self.host != socket.gethostname() else ""
        since = f", since {self.since[11:16]} UTC" if len(self.since) > 16 else ""
        command = f"`{self.command}`" if self.command else "an install"
        return f"{command}{by}{on} (process {self.pid}{since})"


@contextlib.contextmanager
def locked(
    environment: Environment,
    *,
    command: str = "",
    wait_seconds: float = 0.0,
    on_busy: Callable[[Holder | None], None] | None = None,
) -> Iterator[Callable[[], None]]:
    """Hold the environment's lock, so that only one of us changes it at a time.

    Gives what raises BusyError where the lock was lost meanwhile: to a host that took this one for
    dead, since it stood still for half a minute.

    Parameters
    ----------
    command
        The line that asks, for those who wait.
    on_busy
        Called ten times a second while somebody else holds it; what it raises ends the wait.

    Raises
    ------
    BusyError
        Somebody else holds it, after `wait_seconds` still.
    TargetError
        The environment can't be written.
    """
    try:
        directory = make_state_directory(environment.prefix)
        door = _Door(directory, command)
        end = time.monotonic() + wait_seconds
        while not door.enter():
            if on_busy is not None:
                on_busy(door.holder)
            if time.monotonic() >= end:
                raise busy(environment, door.holder)
            time.sleep(_POLL_SECONDS)
    except OSError as error:
        message = f"`{shown_path(environment.prefix)}` can't be written: {error.strerror}"
        hint = "`%torchenv new-kernel NAME` makes an environment of your own"
        raise TargetError(message, hint=hint) from error

    def check() -> None:
        if not door.is_ours():
            raise busy(environment, read_holder(environment))

    try:
        yield check
    finally:
        door.leave()


def busy(environment: Environment, holder: Holder | None) -> BusyError:
    """Return what it means that another holds the lock."""
    who = f": {holder}" if holder else ""
    return BusyError(
        f"Another install works on `{shown_path(environment.prefix)}`{who}",
        hint="wait for it to end, then try again",
    )


def read_holder(environment: Environment) -> Holder | None:
    """Return who holds the environment's lock, as far as that can be read."""
    found = _look(state_directory(environment.prefix) / "holder.json")
    return found.holder if found else None


# ---------------------------------------------------------------------------------------- the door


@dataclass(frozen=True, slots=True)
class _Record:
    """A holder's record as it was found."""

    holder: Holder | None
    """None where it can't be read: another person's, or it is just being written."""
    changed: int
    inode: int


class _Door:
    """One asker's way to the lock, who remembers what was seen of its holder."""

    def __init__(self, directory: Path, command: str) -> None:
        self.holder: Holder | None = None
        self._path = directory / "holder.json"
        self._lock = directory / "lock"
        self._command = command
        self._mine: Holder | None = None
        self._system: int | None = None
        self._record: int | None = None
        self._left = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="torchenv-lock", daemon=True)
        self._seen: _Record | None = None
        self._seen_at = 0.0

    def enter(self) -> bool:
        """Take the lock without waiting; return False where another holds it."""
        try:
            self._system = open_state(self._lock, os.O_RDWR | os.O_CREAT)
            state = _acquire(self._system)
        except PermissionError:
            # Another person's, of a group that shares the environment: the record alone decides.
            state = "unknown"
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            state = "unknown"
        try:
            if state == "busy":
                found = _look(self._path)
                self.holder = found.holder if found else None
            elif self._claim(by_system=state == "held"):
                self._heart.start()
                return True
        finally:
            if self._mine is None:
                self._close()
        return False

    def _claim(self, *, by_system: bool) -> bool:
        mine = replace(_ourselves(self._command), by_system=by_system, token=secrets.token_hex(8))
        content = json.dumps(to_json(mine)).encode()
        found = _look(self._path)
        if found is None:
            with contextlib.suppress(FileExistsError):
                self._hold(create_state(self._path, content), mine)
                return True
            found = _look(self._path)
        if found is None or not self._is_stale(found, by_system=by_system):
            self.holder = found.holder if found else None
            return False
        return self._take_over(found, mine, content)

    def _take_over(self, found: _Record, mine: Holder, content: bytes) -> bool:
        """Replace the record of a dead holder; of several who would, one does."""
        logger.info("the lock was left by %s", found.holder or "somebody")
        claim = self._path.with_name("holder.next")
        try:
            descriptor = create_state(claim, content)
        except FileExistsError:
            there = _look(claim)
            # Whoever took over takes a moment for it, unless he died in it.
            if there is not None and _age(self._path, there) >= _QUIET_SECONDS:
                with contextlib.suppress(OSError):
                    claim.unlink()
            return False
        try:
            now = _look(self._path)
            if now is not None and (now.holder, now.inode) != (found.holder, found.inode):
                return False
            write_state(self._path, content)
            self._hold(open_state(self._path, os.O_WRONLY), mine)
        finally:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                claim.unlink()
        if not self.is_ours():
            self._mine = None
        return self._mine is not None

    def _hold(self, descriptor: int, mine: Holder) -> None:
        self._mine = mine
        if _BEATS_BY_DESCRIPTOR:
            self._record = descriptor
        else:
            os.close(descriptor)  # Windows deletes no file that is open

    def is_ours(self) -> bool:
        """Whether the record is the one that was made here."""
        found = _look(self._path)
        return found is not None and self._mine is not None and found.holder == self._mine

    def leave(self) -> None:
        """Let the lock go."""
        self._left.set()
        if self.is_ours():
            with contextlib.suppress(OSError):
                self._path.unlink()
        # Its number may be another file's as soon as it is closed.
        self._heart.join(1)
        if self._heart.is_alive():
            self._record = None
        self._close()

    def _close(self) -> None:
        if self._system is not None:
            _release(self._system)
        for descriptor in (self._record, self._system):
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._record = self._system = None

    def _beat(self) -> None:
        while not self._left.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):
                # The time is the file system's own: on a network drive, its server's.
                os.utime(self._path if self._record is None else self._record)

    def _is_stale(self, found: _Record, *, by_system: bool) -> bool:
        holder, here = found.holder, _here()
        if holder is not None:
            same_boot = bool(here.boot) and holder.boot == here.boot
            same_host = (holder.host, holder.machine) == (here.host, here.machine)
            if by_system and holder.by_system and (same_boot or (same_host and not here.boot)):
                # The system lets two never hold it: the other's is gone, and the process with it.
                return True
            if same_host and here.machine and here.boot and holder.boot and not same_boot:
                return True  # the machine was started anew since
            if same_host and same_boot and holder.space == here.space:
                return not _is_alive(holder)
        return self._is_quiet(found)

    def _is_quiet(self, found: _Record) -> bool:
        """Whether a holder elsewhere gives no sign of life, by no clock but the file system's."""
        now = time.monotonic()
        if found != self._seen:
            self._seen, self._seen_at = found, now
        watched = now - self._seen_at
        if watched >= _QUIET_SECONDS:
            return True
        return watched >= _WATCH_SECONDS and _age(self._path, found) >= _QUIET_SECONDS


def _look(path: Path) -> _Record | None:
    """Return the record at `path`, None where there is none."""
    try:
        # Opened, since a network drive asks its server then, and remembers old times otherwise.
        descriptor = open_state(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError:
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
        return _Record(None, status.st_mtime_ns, status.st_ino)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        content = file.read(_LARGEST_RECORD)
    holder = None
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        holder = from_json(Holder, json.loads(content))
        if not all(str(getattr(holder, name)).isprintable() for name in Holder.__slots__):
            holder = None
    return _Record(holder, status.st_mtime_ns, status.st_ino)


def _age(beside: Path, found: _Record) -> float:
    """Return how many seconds ago a record was touched, by the clock that times its file system."""
    probe = beside.with_name(f"clock.{secrets.token_hex(4)}")
    descriptor = create_state(probe, b"")
    try:
        now = os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            probe.unlink()
    return (now - found.changed) / 1e9


# ------------------------------------------------------------------------------------ who we are


def user_name() -> str:
    """Return the name of the person that this process runs for, empty where it has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


def _ourselves(command: str) -> Holder:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    command = without_login("".join(filter(str.isprintable, command)))[:500]
    return replace(_here(), pid=os.getpid(), started=_started(os.getpid()), user=user_name(),
                   command=command, since=now)  # fmt: skip


@lru_cache(maxsize=1)
def _here() -> Holder:
    """Return what is true of each process of this machine, or of this container."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115  (of the running process)
    return Holder(
        host=socket.gethostname(),
        pid=0,
        machine=_first_line("/etc/machine-id"),
        boot=_boot(),
        space=space,
    )


def _boot() -> str:
    if sys.platform != "darwin":
        return _first_line("/proc/sys/kernel/random/boot_id")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        done = subprocess.run(command, capture_output=True, timeout=5, check=True)
        return done.stdout.decode("ascii", "replace").strip()
    return ""


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123
            return file.readline(200).strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process began, in ticks since the machine did; empty where nothing tells."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        # The program's name before may hold spaces and parentheses.
        return status.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_alive(holder: Holder) -> bool:
    if sys.platform == "win32":
        # os.kill(pid, 0) would end it; and there the system's lock is always to be had.
        return True
    try:
        os.kill(holder.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return not holder.started or _started(holder.pid) in ("", holder.started)


# -------------------------------------------------------------------------- the system's own locks

# Some network drives know no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def _acquire(descriptor: int) -> Literal["held", "busy", "unknown"]:
    """Lock the file without waiting."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 1000, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            logger.info("no lock of the system's: %s", error.strerror)
            return "unknown"
        return "busy"
    return "held"


def _release(descriptor: int) -> None:
    """Unlock the file: a forked child has it open too, and closing it here lets go of nothing."""
    if sys.platform != "win32":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextlib.contextmanager
def uv_locked(prefix: Path) -> Iterator[bool]:
    """Hold uv's own lock on a virtual environment; give False where a uv at work has it.

    Elsewhere than in a virtual environment uv's lock has a name that only uv knows, and on Windows
    it is one of a kind that Python can't take: then there is nothing to hold.
    """
    if sys.platform == "win32" or not (prefix / "pyvenv.cfg").exists():
        yield True
        return
    try:
        # uv makes the same file where it is missing, and leaves it.
        file = (prefix / ".lock").open("a", encoding="utf-8")
    except OSError as error:
        logger.info("uv's lock of %s can't be opened: %s", prefix, error.strerror)
        yield True
        return
    with file:
        try:
            yield _acquire(file.fileno()) != "busy"
        finally:
            _release(file.fileno())


def uv_is_locked(prefix: Path) -> bool:
    """Whether a uv works on the environment right now."""
    with uv_locked(prefix) as free:
        return not free
