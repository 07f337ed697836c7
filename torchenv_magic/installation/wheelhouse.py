"""Wheels for a machine without a network: resolved for it here, fetched, checked, in a folder.

uv resolves, as for an install, for the Python and the platform that are named. It keeps no wheels
as files, so the fetching is ours: each file is streamed beside the others, goes on where it broke
off, and gets its name when its hash is that of the lock. So the folder has whole wheels only.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion

from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import FAMILY_MEMBERS, backend_of_torch_version, shown_path
from torchenv_magic.errors import (
    DiskSpaceError,
    InstallCancelled,
    InstallError,
    PlanError,
    RequestError,
    SourceError,
    UvError,
)
from torchenv_magic.installation.failures import explain
from torchenv_magic.installation.narrator import Silence
from torchenv_magic.installation.plan import Source, source_arguments
from torchenv_magic.installation.progress import Bytes, Event, OnEvent, format_bytes, guarded
from torchenv_magic.installation.settings import Sites
from torchenv_magic.installation.sources import index_source, sizes, source_environment
from torchenv_magic.installation.staging import is_local
from torchenv_magic.installation.uv import Cancellation, Lines, find_uv
from torchenv_magic.selection import Request
from torchenv_magic.web import REQUEST_ERRORS, open_address, reason_words

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Wheel", "Wheelhouse", "check_builds", "fetch_wheels", "lock_wheels", "read_wheels"]

_SIDE_BY_SIDE = 4
_TRIES = 4
_WAIT_SECONDS = 30.0
_PART = 1 << 20
_TELL_SECONDS = 0.2
_RATE_SECONDS = 5.0
# Of files that broke off; uv looks for wheels in the folder itself alone.
_PARTS = ".torchenv-parts"
_PYTHON = re.compile(r"3\.\d{1,2}(\.\d{1,2})?", re.ASCII)
_PLATFORM = re.compile(r"[a-z0-9_-]{1,60}", re.ASCII)
# The words that wheels have for them, and uv's.
_PLATFORMS = {
    "linux_x86_64": "x86_64-manylinux_2_28",
    "linux_aarch64": "aarch64-manylinux_2_28",
    "win_amd64": "x86_64-pc-windows-msvc",
    "win_arm64": "aarch64-pc-windows-msvc",
    "macos_arm64": "aarch64-apple-darwin",
    "macos_x86_64": "x86_64-apple-darwin",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """One file of a wheelhouse."""

    name: str
    version: str
    file: str
    sha256: str
    size_bytes: int | None
    address: str
    fetched: bool = False
    """Whether this run brought it; else it was there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheelhouse:
    """What lies in the folder now."""

    directory: Path
    request: Request
    backend: Backend
    python_version: str
    platform: str | None
    """In uv's words; None for this machine's."""
    source: Source
    wheels: tuple[Wheel, ...]
    seconds: float

    @property
    def size_bytes(self) -> int:
        """All of them together."""
        return sum(wheel.size_bytes or 0 for wheel in self.wheels)

    def __str__(self) -> str:
        fetched = [wheel for wheel in self.wheels if wheel.fetched]
        size = format_bytes(sum(wheel.size_bytes or 0 for wheel in fetched))
        there = len(self.wheels) - len(fetched)
        said = f"Fetched {_count(len(fetched), 'wheel')} ({size})" if fetched else "Fetched nothing"
        if there:
            said += f", {there} {'were' if there > 1 else 'was'} there already"
        place = shown_path(self.directory)
        asked = [text for text in self.request.requirements if text != "torch"]
        line = shlex.join(["install", str(self.backend), *asked, "--find-links", place])
        return (
            f"{said}: {self.backend.label} for Python {self.python_version}"
            f"{f' on {self.platform}' if self.platform else ''} in {place}\n"
            f"On that machine: `torchenv {line}`"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def fetch_wheels(
    directory: Path,
    request: Request,
    backend: Backend,
    *,
    sites: Sites,
    python_version: str | None = None,
    platform: str | None = None,
    exclusion: str | None = None,
    on_event: OnEvent | None = None,
    cancellation: Cancellation | None = None,
    free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
) -> Wheelhouse:
    """Bring all wheels that an install of `request` takes into `directory`; whole ones stay.

    Parameters
    ----------
    python_version
        As `3.12`; None for the one that runs this.
    platform
        In uv's words, or in those of wheels (`linux_x86_64`); None for this machine's.
    exclusion
        A constraint such as `torch<2.11`.

    Raises
    ------
    RequestError, PlanError, SourceError, UvError
        What is wanted can't be resolved.
    DiskSpaceError, InstallError
        It can't be fetched or kept.
    InstallCancelled
        What is whole stays, and the next run goes on from there.
    """
    started = time.monotonic()
    if python_version is not None and not _PYTHON.fullmatch(python_version):
        raise RequestError(
            f"`{python_version}` is no version of Python 3", hint="write it such as `3.12`"
        )
    if platform is not None:
        platform = _PLATFORMS.get(platform, platform)
        if not _PLATFORM.fullmatch(platform):
            raise _unknown_platform(platform)
    tell = guarded(on_event)
    cancellation = cancellation or Cancellation()
    source = index_source(backend, sites)
    tell(Event(phase="resolve", message=f"Asking {source} what is needed"))
    lock = lock_wheels(
        request,
        backend,
        source,
        sites,
        python_version=python_version,
        platform=platform,
        exclusion=exclusion,
        tell=tell,
        cancellation=cancellation,
    )
    wheels = read_wheels(lock)
    check_builds(wheels, backend, source)
    known = sizes(wheel.address for wheel in wheels if wheel.size_bytes is None)
    cancellation.raise_if_requested()
    wheels = tuple(
        replace(wheel, size_bytes=known.get(wheel.address)) if wheel.size_bytes is None else wheel
        for wheel in wheels
    )
    fetcher = _Fetcher(directory=directory, tell=tell, cancellation=cancellation, free=free)
    return Wheelhouse(
        directory=directory,
        request=request,
        backend=backend,
        python_version=python_version or ".".join(map(str, sys.version_info[:2])),
        platform=platform,
        source=source,
        wheels=fetcher.fetch(wheels),
        seconds=time.monotonic() - started,
    )


def _unknown_platform(platform: str) -> RequestError:
    return RequestError(
        f"`{platform[:60]}` is no platform that uv knows",
        hint=f"name one such as {', '.join(_PLATFORMS)}, or as `uv pip compile --help` has them",
    )


def lock_wheels(
    request: Request,
    backend: Backend,
    source: Source,
    sites: Sites,
    *,
    python: Path | None = None,
    python_version: str | None = None,
    platform: str | None = None,
    exclusion: str | None,
    options: Sequence[str] = (),
    tell: OnEvent,
    cancellation: Cancellation,
) -> str:
    """Return the pylock.toml of all wheels that the request takes.

    Parameters
    ----------
    python
        The interpreter that they are for; None for the one that runs this.
    options
        Further ones for uv, such as `--offline`.

    Raises
    ------
    PlanError, SourceError, RequestError, UvError
        What is wanted can't be resolved.
    InstallCancelled
    """
    lines = Lines(lambda line: tell(Event(phase="resolve", log=line)))
    completed = find_uv().run(
        [
            "pip",
            "compile",
            "-",
            "--no-header",
            "--quiet",
            f"--python={python or sys.executable}",
            *([f"--python-version={python_version}"] if python_version else []),
            *([f"--python-platform={platform}"] if platform else []),
            # What is built here would be for this machine.
            "--only-binary=:all:",
            "--format=pylock.toml",
            *source_arguments(source, backend),
            *(f"--find-links={folder}" for folder in sites.find_links),
            *options,
        ],
        environ=source_environment(source, os.environ),
        stdin="\n".join([*request.requirements, *([exclusion] if exclusion else [])]),
        on_text=lines.feed,
        cancellation=cancellation,
    )
    if completed.returncode == 0:
        return completed.stdout
    if "--python-platform" in completed.stderr:
        raise _unknown_platform(platform or "")
    subject = f"{' '.join(request.requirements)} for {backend}"
    if python_version:
        subject += f" with Python {python_version}"
    raise explain(completed, subject=subject)


def read_wheels(lock: str) -> tuple[Wheel, ...]:
    """Return the files that a pylock.toml names, by names that lie in one folder.

    Raises
    ------
    PlanError
        A package is no wheel, or has no hash.
    UvError
        It is no such file.
    """
    try:
        packages: list[dict[str, Any]] = tomllib.loads(lock).get("packages", [])
        return tuple(_read_wheel(package) for package in packages)
    except (tomllib.TOMLDecodeError, AttributeError, KeyError, TypeError, IndexError) as error:
        message = "uv wrote a lock that this version of torchenv_magic does not know"
        raise UvError(
            message, hint="run `%pip install --upgrade torchenv-magic`", detail=lock
        ) from error


def _read_wheel(package: dict[str, Any]) -> Wheel:
    name = canonicalize_name(package["name"])
    entry = package["wheels"][0] if package.get("wheels") else package.get("archive")
    if entry is None:
        raise PlanError(
            f"{name} is there as source only, and what is built here is for this machine",
            hint="build its wheel on a machine like the other one, and put it into the folder",
        )
    address = entry.get("url") or entry["path"]
    file = entry.get("name") or unquote(urlsplit(address).path).rpartition("/")[2]
    try:
        # It becomes the name of a file: only what is a wheel's may.
        _, version, _, _ = parse_wheel_filename(file)
    except (InvalidWheelFilename, InvalidVersion) as error:
        raise PlanError(
            f"{name} comes as `{file[:80]}`, which is no wheel",
            hint="build its wheel on a machine like the other one, and put it into the folder",
        ) from error
    if not re.fullmatch(r"[A-Za-z0-9._+!-]+", file):
        message = f"{name} comes as `{file[:80]}`, which is no wheel's name"
        raise PlanError(message, hint="ask whoever keeps that index to correct it")
    digest = str(entry.get("hashes", {}).get("sha256", "")).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        message = f"{name} has no SHA-256 in the lock, so what comes can't be checked"
        raise PlanError(message, hint="ask whoever keeps that index to add it")
    return Wheel(
        name=name,
        version=str(version),
        file=file,
        sha256=digest,
        size_bytes=entry.get("size"),
        address=address,
    )


def check_builds(wheels: Iterable[Wheel], backend: Backend, source: Source) -> None:
    """Refuse a member of another build: what a mirror lacks, uv would take from PyPI.

    Raises
    ------
    SourceError
    """
    for wheel in wheels:
        build = backend_of_torch_version(wheel.version)
        plain = build is None and backend.kind == "cpu"
        if wheel.name in FAMILY_MEMBERS and build != backend and not plain:
            raise SourceError(
                f"{source} has no {wheel.name} for {backend}",
                hint="choose another backend (`%torchenv list`), or check what the mirror has",
            )


@dataclass(slots=True, kw_only=True)
class _Fetcher:
    """Brings the files; what several threads count is under one lock."""

    directory: Path
    tell: OnEvent
    cancellation: Cancellation
    free: Callable[[Path], int]
    _counting: threading.Lock = field(default_factory=threading.Lock)
    _done: dict[str, int] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _samples: list[tuple[float, int]] = field(default_factory=list)
    _silence: Silence = field(
        default_factory=lambda: Silence(retry_seconds=round(_WAIT_SECONDS), who="torchenv")
    )

    def fetch(self, wheels: Sequence[Wheel]) -> tuple[Wheel, ...]:
        parts = self.directory / _PARTS
        try:
            parts.mkdir(parents=True, exist_ok=True)
            self.tell(Event(phase="check", message="Looking at what is there already"))
            missing = [wheel for wheel in wheels if not self._is_there(wheel)]
            self._check_space(missing, parts)
            if missing:
                self._bring(missing, parts)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskSpaceError(
                    f"There is no room left for `{shown_path(self.directory)}`: {error.strerror}",
                    hint="free some space, then run the same line again: it goes on from here",
                ) from error
            raise InstallError(
                f"`{self.directory}` can't be written: {error.strerror}",
                hint="name a folder that you can write to",
            ) from error
        finally:
            with suppress(OSError):
                parts.rmdir()  # where nothing broke off
        fetched = {wheel.file for wheel in missing}
        self.tell(Event(phase="done", message="All wheels are there"))
        return tuple(
            replace(
                wheel,
                fetched=wheel.file in fetched,
                size_bytes=(self.directory / wheel.file).stat().st_size,
            )
            for wheel in wheels
        )

    def _is_there(self, wheel: Wheel) -> bool:
        file = self.directory / wheel.file
        if not file.is_file() or wheel.size_bytes not in (None, file.stat().st_size):
            return False
        return self._digest(file) == wheel.sha256

    def _digest(self, file: Path) -> str:
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while part := stream.read(_PART):
                digest.update(part)
                self.cancellation.raise_if_requested()
        return digest.hexdigest()

    def _check_space(self, missing: Iterable[Wheel], parts: Path) -> None:
        begun = sum(file.stat().st_size for file in parts.iterdir())
        need = sum(wheel.size_bytes or 0 for wheel in missing) - begun
        available = self.free(self.directory)
        if need > available:
            raise DiskSpaceError(
                f"The wheels need {format_bytes(need)} in `{self.directory}`; "
                f"{format_bytes(available)} are free",
                hint="free some space there, or name a folder on a larger disk",
            )

    def _bring(self, missing: Sequence[Wheel], parts: Path) -> None:
        self.tell(Event(phase="download", message=f"Fetching {_count(len(missing), 'wheel')}"))
        # The largest first: they decide when the last one ends.
        queue = sorted(missing, key=lambda wheel: wheel.size_bytes or 0, reverse=True)
        waiting: SimpleQueue[Wheel] = SimpleQueue()
        for wheel in queue:
            waiting.put(wheel)
        ended: SimpleQueue[BaseException | None] = SimpleQueue()

        def work() -> None:
            while not self._stop.is_set():
                try:
                    wheel = waiting.get_nowait()
                except Empty:
                    return
                try:
                    self._bring_one(wheel, parts)
                except BaseException as error:  # noqa: BLE001  (it is raised where all are awaited)
                    ended.put(error)
                else:
                    ended.put(None)

        # Nobody waits for their end: who stops should not wait for a server that is silent.
        for _ in range(min(_SIDE_BY_SIDE, len(queue))):
            threading.Thread(target=work, name="torchenv-wheel", daemon=True).start()
        left = len(queue)
        try:
            while left:
                with suppress(Empty):
                    error = ended.get(timeout=_TELL_SECONDS)
                    self.cancellation.raise_if_requested()
                    if error is not None:
                        raise error
                    left -= 1
                self.cancellation.raise_if_requested()
                self._say(queue)
        finally:
            # Of one that failed, too: the others end at their next part.
            self._stop.set()

    def _say(self, wheels: Sequence[Wheel]) -> None:
        with self._counting:
            done = dict(self._done)
        rows = [
            (wheel.name, min(done[wheel.file], wheel.size_bytes or 0), wheel.size_bytes or 0)
            for wheel in wheels
            if wheel.file in done
        ]
        count = sum(done.values())
        now = time.monotonic()
        self._samples.append((now, count))
        while len(self._samples) > 2 and now - self._samples[0][0] > _RATE_SECONDS:
            self._samples.pop(0)
        start, before = self._samples[0]
        silent_seconds, message = self._silence.look(count)
        moving = now - start > 1 and count > before and not silent_seconds
        self.tell(
            Event(
                phase="download",
                message=message,
                bytes=Bytes(
                    done=count,
                    total=max(count, sum(wheel.size_bytes or 0 for wheel in wheels)),
                    per_second=(count - before) / (now - start) if moving else None,
                    packages=tuple(row for row in rows if row[1] < row[2]),
                    unknown=sum(wheel.size_bytes is None for wheel in wheels),
                    silent_seconds=silent_seconds,
                ),
            )
        )

    def _bring_one(self, wheel: Wheel, parts: Path) -> None:
        part = parts / f"{wheel.sha256[:16]}-{wheel.file}"
        for attempt in range(_TRIES):
            try:
                digest = self._receive(wheel, part)
            except HTTPError as error:
                error.close()
                if error.code == 416:
                    part.unlink(missing_ok=True)  # longer than what is asked for
                elif error.code < 500 and error.code != 429:
                    raise SourceError(
                        f"{_place(wheel)} answered HTTP {error.code} for {wheel.file}",
                        hint="try again in a moment, or choose another backend",
                    ) from error
                problem = f"HTTP {error.code}"
            except _WriteError as error:
                raise error.error from error
            except REQUEST_ERRORS as error:
                problem = reason_words(getattr(error, "reason", error))
            else:
                if digest == wheel.sha256:
                    part.replace(self.directory / wheel.file)
                    return
                part.unlink(missing_ok=True)
                raise InstallError(
                    f"What {_place(wheel)} sent for {wheel.file} has another hash than the lock",
                    hint="try again; if it stays so, the index or something on the way to it is "
                    "at fault",
                )
            self.tell(Event(phase="download", log=f"{wheel.file}: {problem}; trying again"))
            if self._stop.wait(attempt):
                break
        self._raise_if_stopped()
        raise SourceError(
            f"{wheel.file} could not be fetched from {_place(wheel)}: {problem}",
            hint="check the connection, then run the same line again: it goes on from here",
        )

    def _receive(self, wheel: Wheel, part: Path) -> str:
        """Write what is missing of the file behind what is there; return the hash of all of it."""
        digest = hashlib.sha256()
        begun = 0
        if part.is_file():
            with part.open("rb") as stream:
                while block := stream.read(_PART):
                    digest.update(block)
                    begun += len(block)
        if begun and begun == wheel.size_bytes:
            self._count_bytes(wheel, begun)
            return digest.hexdigest()
        if is_local(wheel.address):
            path = _local_path(wheel.address)
            with path.open("rb") as stream:
                return self._write(wheel, part, stream.read, hashlib.sha256(), 0)
        headers = {"Range": f"bytes={begun}-"} if begun else {}
        with open_address(
            wheel.address, headers=headers, timeout_seconds=_WAIT_SECONDS
        ) as response:
            if response.status != 206:
                begun, digest = 0, hashlib.sha256()
            announced = response.headers["Content-Length"]
            text = self._write(wheel, part, response.read, digest, begun)
            if announced is not None and part.stat().st_size != begun + int(announced):
                message = "the connection ended early"
                raise ConnectionError(message)
            return text

    def _write(
        self,
        wheel: Wheel,
        part: Path,
        read: Callable[[int], bytes],
        digest: Any,  # noqa: ANN401  (hashlib names no type for it)
        begun: int,
    ) -> str:
        self._count_bytes(wheel, begun)
        # Never into what somebody else has put there: in a folder of many it may be a link.
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            with os.fdopen(os.open(part, flags, 0o644), "wb") as stream:
                stream.truncate(begun)
                stream.seek(begun)
                while True:
                    block = _asked(read)
                    if not block:
                        break
                    stream.write(block)
                    digest.update(block)
                    begun += len(block)
                    self._count_bytes(wheel, begun)
                    self._raise_if_stopped()
        except _ReadError as error:
            raise error.error from error
        except OSError as error:
            raise _WriteError(error) from error
        return str(digest.hexdigest())

    def _count_bytes(self, wheel: Wheel, count: int) -> None:
        with self._counting:
            self._done[wheel.file] = count

    def _raise_if_stopped(self) -> None:
        if self._stop.is_set():
            message = (
                "Cancelled; the wheels that are whole stay, and the next run goes on from here"
            )
            raise InstallCancelled(message)


class _WriteError(Exception):
    """The folder and not the network failed; else the same file would be asked for again."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class _ReadError(Exception):
    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _asked(read: Callable[[int], bytes]) -> bytes:
    try:
        return read(_PART)
    except REQUEST_ERRORS as error:
        raise _ReadError(error) from error


def _place(wheel: Wheel) -> str:
    return urlsplit(wheel.address).hostname or "the folder"


def _local_path(address: str) -> Path:
    parts = urlsplit(address)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else Path(address)
