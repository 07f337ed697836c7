"""The lock that a notebook carries: what was asked, and per backend the exact wheels with hashes.

It travels with a notebook, so a stranger may have written it. It is read as a whole or not at all,
before anything is done: names and versions that are none, addresses that no index gives, and
everything that would make an installer run code are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from torchenv_magic.builds.backend import Backend
from torchenv_magic.demand import parse_requirement
from torchenv_magic.errors import LockError, RequestError

__all__ = [
    "METADATA_KEY",
    "SCHEMA",
    "Asked",
    "LockTarget",
    "LockedBackend",
    "LockedPackage",
    "LockedWheel",
    "NotebookLock",
    "check_schema",
    "in_order",
    "lock_to_json",
    "packages_from_json",
    "pylock_of",
    "pylock_text",
    "read_lock",
]

METADATA_KEY = "torchenv"
"""Where in a notebook's metadata the lock stands."""
SCHEMA = 1

# Bounds that no real lock comes near: a torch with CUDA has 30 packages, its catalog 20 backends.
_MOST_BACKENDS = 64
_MOST_PACKAGES = 1_000
_MOST_WHEELS = 50
_MOST_REQUIREMENTS = 200
_LONGEST_TEXT = 500
_LONGEST_ADDRESS = 2_000
_LARGEST_WHEEL = 10**12
_LONGEST_FILE_NAME = 255
# A name says its tags in short, `cp311.cp312-abi3.none-any`, and they are multiplied to be read.
_MOST_TAGS = 100

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_WORD = re.compile(r"[a-z0-9_]{1,40}")
_PYTHON = re.compile(r"\d\.\d{1,3}t?")
_BUILT = ("sdist", "archive", "directory", "vcs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a person asked for, which the exact versions came of."""

    backend: Backend | None = None
    """None is `auto`."""
    requirements: tuple[str, ...] = ("torch",)


@dataclass(frozen=True, slots=True, kw_only=True)
class LockTarget:
    """What the wheels of a lock are made for, apart from the accelerator."""

    python: str
    """`3.11`, or `3.14t` for one that is free-threaded."""
    implementation: str
    """`cpython`"""
    system: str
    """`linux`, `windows`, `macos`"""
    machine: str
    """`x86_64`"""

    def __str__(self) -> str:
        implementation = {"cpython": "Python", "pypy": "PyPy"}.get(
            self.implementation, self.implementation
        )
        free_threaded = " free-threaded" if self.python.endswith("t") else ""
        system = {"linux": "Linux", "windows": "Windows", "macos": "macOS"}.get(
            self.system, self.system
        )
        version = self.python.removesuffix("t")
        return f"{implementation} {version}{free_threaded} on {system} {self.machine}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedWheel:
    url: str
    sha256: str
    size: int | None = None
    """Compressed bytes, where the index tells them."""

    @property
    def file_name(self) -> str:
        """The wheel's own name, as it lies on the server."""
        return _file_name(self.url)

    @property
    def host(self) -> str:
        """The server that it was locked from, in small letters."""
        return (urlsplit(self.url).hostname or "").lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedPackage:
    name: str
    """Normalized."""
    version: str
    wheels: tuple[LockedWheel, ...]

    @property
    def hashes(self) -> frozenset[str]:
        return frozenset(wheel.sha256 for wheel in self.wheels)


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedBackend:
    """What one backend's build takes, all of it."""

    backend: Backend
    packages: tuple[LockedPackage, ...]

    @property
    def pins(self) -> dict[str, str]:
        """Normalized name to version of each package."""
        return {package.name: package.version for package in self.packages}

    def package(self, name: str) -> LockedPackage | None:
        """Return the package of that (normalized) name."""
        return next((package for package in self.packages if package.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotebookLock:
    version: str
    """Of torchenv_magic, which wrote it."""
    asked: Asked
    torch: str
    """The release without its build: `2.13.0`."""
    target: LockTarget
    ran: Backend
    """The build that was installed where the lock was made."""
    backends: tuple[LockedBackend, ...]

    def of(self, backend: Backend) -> LockedBackend | None:
        """Return what that backend takes, None where the lock has it not."""
        return next((each for each in self.backends if each.backend == backend), None)

    @property
    def names(self) -> str:
        """The backends in uv's words, the one that ran first: `cu126, cpu`."""
        return ", ".join(str(each.backend) for each in self.backends)

    def __str__(self) -> str:
        return f"torch {self.torch} for {self.names} ({self.target})"


def in_order(backends: Iterable[LockedBackend], ran: Backend) -> tuple[LockedBackend, ...]:
    """Return them in the one order that a lock has them: what ran, then as the catalog does.

    Who saves a notebook sorts the keys of its metadata, so their order there says nothing.
    """
    kinds = ("cuda", "rocm", "xpu", "cpu")

    def rank(locked: LockedBackend) -> tuple[bool, int, tuple[int, ...]]:
        backend = locked.backend
        newest_first = tuple(-number for number in backend.version)
        return backend != ran, kinds.index(backend.kind), newest_first

    return tuple(sorted(backends, key=rank))


# ---------------------------------------------------------------------------------------- writing


def lock_to_json(lock: NotebookLock) -> dict[str, Any]:
    """Return what stands in a notebook's metadata; the same lock is the same text each time."""
    return {
        "schema": SCHEMA,
        "version": lock.version,
        "asked": {
            "backend": str(lock.asked.backend) if lock.asked.backend else None,
            "requirements": list(lock.asked.requirements),
        },
        "torch": lock.torch,
        "target": {
            "python": lock.target.python,
            "implementation": lock.target.implementation,
            "system": lock.target.system,
            "machine": lock.target.machine,
        },
        "ran": str(lock.ran),
        "backends": {str(each.backend): pylock_of(lock.target, each) for each in lock.backends},
    }


def pylock_of(target: LockTarget, locked: LockedBackend) -> dict[str, Any]:
    """Return the pylock table (PEP 751) of one backend.

    Nothing in it holds for one patch release of Python alone: another machine has another one.
    """
    return {
        "lock-version": "1.0",
        "created-by": "torchenv-magic",
        "requires-python": f">={target.python.removesuffix('t')}",
        "packages": [
            {
                "name": package.name,
                "version": package.version,
                "wheels": [
                    {
                        "url": wheel.url,
                        **({} if wheel.size is None else {"size": wheel.size}),
                        "hashes": {"sha256": wheel.sha256},
                    }
                    for wheel in package.wheels
                ],
            }
            for package in locked.packages
        ],
    }


def pylock_text(target: LockTarget, locked: LockedBackend) -> str:
    """Return the pylock.toml of one backend, laid out as uv writes one."""
    table = pylock_of(target, locked)
    # What JSON writes as a string is one in TOML too, and these are printable and in ASCII.
    lines = [
        f"{key} = {json.dumps(table[key])}"
        for key in ("lock-version", "created-by", "requires-python")
    ]
    for package in locked.packages:
        wheels = [
            f"{{ url = {json.dumps(wheel.url)}, "
            f"{'' if wheel.size is None else f'size = {wheel.size}, '}"
            f'hashes = {{ sha256 = "{wheel.sha256}" }} }}'
            for wheel in package.wheels
        ]
        lines += [
            "",
            "[[packages]]",
            f"name = {json.dumps(package.name)}",
            f"version = {json.dumps(package.version)}",
            f"wheels = [{', '.join(wheels)}]",
        ]
    return "\n".join([*lines, ""])


# ---------------------------------------------------------------------------------------- reading


def check_schema(metadata: Mapping[str, Any]) -> None:
    """Check that a lock in the metadata, if there is one, is not of a newer kind than this knows.

    Raises
    ------
    LockError
        It is: neither to be read nor to be overwritten here.
    """
    data = metadata.get(METADATA_KEY)
    schema = data.get("schema") if isinstance(data, dict) else None
    if type(schema) is int and schema > SCHEMA:
        wrote = data.get("version") if isinstance(data, dict) else None
        by = f", written by torchenv_magic {_quoted(wrote)}" if isinstance(wrote, str) else ""
        raise LockError(
            f"The notebook's lock has schema {str(schema)[:20]}{by}: this version knows {SCHEMA}",
            hint="run `%pip install --upgrade torchenv-magic`, then restart the kernel",
        )


def read_lock(
    metadata: Mapping[str, Any], *, plain_hosts: Collection[str] | None = None
) -> NotebookLock | None:
    """Return the lock in a notebook's metadata, None where there is none.

    Parameters
    ----------
    plain_hosts
        Servers that may be named with http; None for those that this machine's settings name so.

    Raises
    ------
    LockError
        It is of a newer schema, malformed, or says what no index would: then nothing of it is used.
    """
    check_schema(metadata)
    if METADATA_KEY not in metadata:
        return None
    if plain_hosts is None:
        from torchenv_magic.project.hosts import own_hosts

        plain_hosts = own_hosts()
    data = _table(
        metadata[METADATA_KEY],
        "it",
        needed=("schema", "version", "asked", "torch", "target", "ran", "backends"),
    )
    if type(data["schema"]) is not int or data["schema"] != SCHEMA:
        _refuse("its schema is none that there has been")
    tables = _mapping(data["backends"], "`backends`")
    if not 0 < len(tables) <= _MOST_BACKENDS:
        _refuse(f"it has {len(tables)} backends")
    torch = _version(data["torch"], "its torch")
    ran = _backend(data["ran"])
    lock = NotebookLock(
        version=_text(data["version"], "its `version`"),
        asked=_asked(data["asked"]),
        torch=torch,
        target=_target(data["target"]),
        ran=ran,
        backends=in_order(
            (_locked(name, table, torch, plain_hosts) for name, table in tables.items()), ran
        ),
    )
    named = [each.backend for each in lock.backends]
    if len(set(named)) != len(named) or lock.ran not in named:
        _refuse("its backends contradict each other")
    _check_asked(lock)
    return lock


def _check_asked(lock: NotebookLock) -> None:
    """Check that what is said to have been asked for is what came of it."""
    for requirement in map(Requirement, lock.asked.requirements):
        # Whether a marker applies is only known where it is installed.
        if requirement.marker is not None:
            continue
        name = canonicalize_name(requirement.name)
        for locked in lock.backends:
            version = locked.pins.get(name)
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                _refuse(f"{_quoted(str(requirement))} was asked for and is not what is locked")


def packages_from_json(
    table: object, *, backend: Backend, plain_hosts: Collection[str]
) -> tuple[LockedPackage, ...]:
    """Return the packages of a pylock table, by the rules for a table that a stranger wrote.

    Raises
    ------
    LockError
    """
    data = _table(
        table,
        f"the table of {backend}",
        needed=("lock-version", "packages"),
        known=("created-by", "requires-python"),
    )
    if data["lock-version"] != "1.0":
        _refuse(f"the table of {backend} has a `lock-version` that is not known")
    for key in ("created-by", "requires-python"):
        if key in data:
            _text(data[key], f"`{key}` of {backend}")
    entries = data["packages"]
    if not isinstance(entries, list) or not 0 < len(entries) <= _MOST_PACKAGES:
        _refuse(f"the table of {backend} has no list of packages, or an absurd one")
    packages = tuple(_package(entry, plain_hosts) for entry in entries)
    if len({package.name for package in packages}) != len(packages):
        _refuse(f"the table of {backend} has one package twice")
    return packages


def _locked(name: str, table: object, torch: str, plain_hosts: Collection[str]) -> LockedBackend:
    backend = _backend(name)
    packages = packages_from_json(table, backend=backend, plain_hosts=plain_hosts)
    locked = LockedBackend(backend=backend, packages=packages)
    own = locked.package("torch")
    if own is None or Version(own.version).public != torch:
        _refuse(f"the table of {backend} has another torch than {torch}")
    local = Version(own.version).local
    # Wheels for macOS bear no build in their version.
    if local is not None and local != str(backend):
        _refuse(f"the table of {backend} has torch {own.version}")
    return locked


def _package(entry: object, plain_hosts: Collection[str]) -> LockedPackage:
    data = _mapping(entry, "a package")
    name = data.get("name")
    if not isinstance(name, str) or len(name) > _LONGEST_TEXT or not _NAME.fullmatch(name):
        _distrust(f"{_quoted(name)} is no name of a package")
    for key in _BUILT:
        if key in data:
            _distrust(f"{name} is locked as `{key}`, which would run its code to build it")
    _table(data, name, needed=("name", "version", "wheels"), known=("index", "marker"))
    version = _version(data["version"], name)
    wheels = data["wheels"]
    if not isinstance(wheels, list) or not 0 < len(wheels) <= _MOST_WHEELS:
        _refuse(f"{name} has no list of wheels, or an absurd one")
    normalized = canonicalize_name(name)
    return LockedPackage(
        name=normalized,
        version=version,
        wheels=tuple(_wheel(wheel, normalized, version, plain_hosts) for wheel in wheels),
    )


def _wheel(entry: object, name: str, version: str, plain_hosts: Collection[str]) -> LockedWheel:
    data = _mapping(entry, f"a wheel of {name}")
    if "path" in data:
        _distrust(f"{name} comes from a file of another machine")
    _table(
        data,
        f"a wheel of {name}",
        needed=("url", "hashes"),
        known=("name", "size", "upload-time"),
    )
    url = data["url"]
    if not isinstance(url, str) or len(url) > _LONGEST_ADDRESS or not _is_plain(url):
        _distrust(f"{name} has an address that is none")
    try:
        parts = urlsplit(url)
        host, login = parts.hostname, parts.username is not None or parts.password is not None
        _ = parts.port
    except ValueError:
        _distrust(f"{name} has an address that is none")
    if login:
        _distrust(f"the address of {name} has a login in it")
    if not host or parts.scheme not in ("https", "http"):
        _distrust(f"{name} has the address of no server ({_quoted(parts.scheme)})")
    if parts.scheme == "http" and host.lower() not in plain_hosts:
        _distrust(f"{name} comes by http from {_quoted(host)}, where anybody can change it")
    if parts.query or parts.fragment:
        _distrust(f"the address of {name} asks a server for something, and names no file")
    file_name = _file_name(url)
    tags = math.prod(part.count(".") + 1 for part in file_name.split("-")[-3:])
    if len(file_name) > _LONGEST_FILE_NAME or tags > _MOST_TAGS:
        _distrust(f"the file {_quoted(file_name)} is no wheel")
    try:
        wheel_name, wheel_version, _, _ = parse_wheel_filename(file_name)
    except (InvalidWheelFilename, InvalidVersion):
        _distrust(f"the file {_quoted(file_name)} is no wheel")
    if wheel_name != name or wheel_version != Version(version):
        _distrust(f"the file {_quoted(file_name)} is not {name} {version}")
    if "name" in data and data["name"] != file_name:
        _refuse(f"a wheel of {name} has two names")
    hashes = _mapping(data["hashes"], f"the hashes of {name}")
    sha256 = hashes.get("sha256")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        _distrust(f"{name} has no sha256")
    size = data.get("size")
    if size is not None and (type(size) is not int or not 0 <= size <= _LARGEST_WHEEL):
        _refuse(f"{name} has an absurd size")
    return LockedWheel(url=url, sha256=sha256, size=size)


def _asked(value: object) -> Asked:
    data = _table(value, "`asked`", needed=("backend", "requirements"))
    texts = data["requirements"]
    if not isinstance(texts, list) or not 0 < len(texts) <= _MOST_REQUIREMENTS:
        _refuse("what was asked for is no list of requirements, or an absurd one")
    for text in texts:
        _text(text, "a requirement")
        try:
            parse_requirement(text, trusted=False)
        except RequestError as error:
            _distrust(error.message[0].lower() + error.message[1:])
    backend = None if data["backend"] is None else _backend(data["backend"])
    return Asked(backend=backend, requirements=tuple(texts))


def _target(value: object) -> LockTarget:
    data = _table(value, "`target`", needed=("python", "implementation", "system", "machine"))
    python = _text(data["python"], "its Python")
    if not _PYTHON.fullmatch(python):
        _refuse(f"{_quoted(python)} is no version of Python")
    words = {key: _text(data[key], f"its {key}") for key in ("implementation", "system", "machine")}
    for key, text in words.items():
        if not _WORD.fullmatch(text):
            _refuse(f"{_quoted(text)} is no {key}")
    return LockTarget(python=python, **words)


def _backend(value: object) -> Backend:
    text = value if isinstance(value, str) and len(value) <= _LONGEST_TEXT else ""
    try:
        backend = Backend.parse(text)
    except ValueError:
        _refuse(f"{_quoted(value)} is no backend")
    # `cu0126` would be read as another than it is written as.
    if str(backend) != text:
        _refuse(f"{_quoted(value)} is no backend")
    return backend


def _version(value: object, whose: str) -> str:
    text = value if isinstance(value, str) and len(value) <= _LONGEST_TEXT else ""
    try:
        version = str(Version(text))
    except InvalidVersion:
        _refuse(f"{_quoted(value)} is no version of {whose}")
    if version != text:
        _refuse(f"{_quoted(value)} is no version of {whose}")
    return version


def _table(
    value: object, whose: str, *, needed: Collection[str], known: Collection[str] = ()
) -> dict[str, Any]:
    data = _mapping(value, whose)
    for key in needed:
        if key not in data:
            _refuse(f"{whose} has no `{key}`")
    for key in data:
        if key not in needed and key not in known:
            _refuse(f"{whose} has {_quoted(key)}, which is not known")
    return data


def _mapping(value: object, whose: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(f"{whose} is no table")
    return value


def _text(value: object, whose: str) -> str:
    if not isinstance(value, str) or not value or len(value) > _LONGEST_TEXT:
        _refuse(f"{whose} is no text, or an absurd one")
    if not value.isprintable():
        _refuse(f"{whose} holds control characters")
    return value


def _is_plain(url: str) -> bool:
    """Whether nothing in the address can act or hide: spaces, controls, other alphabets."""
    return url.isascii() and url.isprintable() and " " not in url and "\\" not in url


def _file_name(url: str) -> str:
    return unquote(urlsplit(url).path).rpartition("/")[2]


def _quoted(value: object) -> str:
    """Return a stranger's text as it may be shown: short, and without anything that acts."""
    text = value if isinstance(value, str) else type(value).__name__
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return f"`{shown}`" if shown.isprintable() else ascii(shown)


def _refuse(problem: str) -> NoReturn:
    raise LockError(
        f"The notebook's lock can't be read: {problem}",
        hint="lock the notebook anew, or ask whoever gave it to you",
    )


def _distrust(problem: str) -> NoReturn:
    raise LockError(
        f"The notebook's lock is not to be trusted: {problem}",
        hint="ask whoever gave you the notebook who has written that; nothing of it was used",
    )
