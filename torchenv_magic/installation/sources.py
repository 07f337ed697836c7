"""Where wheels can come from: the PyTorch index, folders of wheels, PyPI's own build."""

from __future__ import annotations

import configparser
import contextlib
import logging
import os
import ssl
import sys
import urllib.error
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags, platform_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.index import INDEX_ADDRESS
from torchenv_magic.environment import FAMILY_MEMBERS, Interpreter
from torchenv_magic.installation.plan import Source
from torchenv_magic.installation.settings import Sites
from torchenv_magic.selection import Request
from torchenv_magic.web import REQUEST_ERRORS, kept_login, open_address, reason_words

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "IndexAnswer",
    "WheelOffer",
    "index_source",
    "probe_index",
    "sizes",
    "source_environment",
    "uv_indexes",
    "uv_setting",
    "wheel_folders",
    "wheels_in",
]

logger = logging.getLogger(__name__)

_LONGEST_PAGE = 20_000_000


def index_source(backend: Backend, sites: Sites | None = None) -> Source:
    """Return the index of `backend`: PyTorch's, which uv's `--torch-backend` means, or a mirror."""
    if sites is None or sites.index_base is None:
        return Source(kind="index", location=f"{INDEX_ADDRESS}/{backend}")
    location = f"{sites.index_base}/{backend}"
    return Source(kind="mirror", location=location, origin=sites.index_origin)


def source_environment(source: Source, environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` with what leads uv to a mirror, where `source` is one.

    uv's `--torch-backend` has the address of PyTorch's index compiled in (uv#19569), so a mirror is
    an index before all others. It is named here and not among the arguments, which every user of
    the machine can read; its login stands in variables of its own, from which uv copies nothing
    into a lock or a message. Indexes that are named in uv's own settings stay behind it.
    """
    child = dict(environ)
    if source.kind != "mirror":
        return child
    others = child.get("UV_INDEX", "")
    child["UV_INDEX"] = f"torchenv={source.location}/ {others}".strip()
    if (login := kept_login(source.location)) is not None:
        user, password = login
        if user:
            child["UV_INDEX_TORCHENV_USERNAME"] = user
        # With a name alone uv asks the keyring, where it is told to.
        if password:
            child["UV_INDEX_TORCHENV_PASSWORD"] = password
        else:
            child.pop("UV_INDEX_TORCHENV_PASSWORD", None)
    # Another strategy would take a newer torch from PyPI, of another build.
    child["UV_INDEX_STRATEGY"] = "first-index"
    return child


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexAnswer:
    """What the index's page of torch said when it was asked once, without uv's patience."""

    state: Literal["answered", "refused", "unreachable", "unknown"]
    """With a page; with an HTTP error; for certain not; or in a way that only uv may know."""
    detail: str = ""
    page: str = ""

    def lacks_hashes(self, version: str) -> bool:
        """Return whether the page lists that version of torch without a hash.

        uv would then download each wheel to lock it, twice (pytorch#181056 was such a time).
        """
        reader = _Anchors()
        reader.feed(self.page)
        wanted = [href for href in reader.targets if f"-{version}-" in unquote(href)]
        return any("#sha256=" not in href for href in wanted)


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.targets += [value for name, value in attrs if name == "href" and value]


def probe_index(source: Source) -> IndexAnswer:
    """Ask the index for its page of torch, to learn whether it is there and tells hashes.

    uv needs 8 s to say that a name can't be looked up; a person who waits for a plan should not.
    Only what is certain counts as unreachable: all else is left to uv, which may know a proxy or a
    certificate that this does not.
    """
    try:
        if (folder := _local_folder(source.location)) is not None:
            page = (folder / "torch" / "index.html").read_text("utf-8", "replace")
            return IndexAnswer(state="answered", page=page)
        with open_address(f"{source.location}/torch/") as response:
            page = response.read(_LONGEST_PAGE).decode("utf-8", "replace")
            return IndexAnswer(state="answered", page=page)
    except FileNotFoundError:
        return IndexAnswer(state="refused", detail="no page of torch")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 407):
            # uv may know a keyring.
            return IndexAnswer(state="unknown", detail=f"HTTP {error.code}")
        return IndexAnswer(state="refused", detail=f"HTTP {error.code}")
    except ssl.SSLError as error:
        return IndexAnswer(state="unknown", detail=str(error))
    except urllib.error.URLError as error:
        certain = isinstance(error.reason, OSError) and not isinstance(
            error.reason, (ssl.SSLError, TimeoutError)
        )
        return IndexAnswer(
            state="unreachable" if certain else "unknown", detail=reason_words(error.reason)
        )
    except REQUEST_ERRORS as error:
        return IndexAnswer(state="unknown", detail=repr(error))


def _local_folder(address: str) -> Path | None:
    parts = urlsplit(address)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def sizes(addresses: Iterable[str]) -> dict[str, int]:
    """Return the Content-Length of each address that tells one, asked side by side.

    The PyTorch index's pages hold no sizes, so neither do the locks that uv makes from them.
    """

    def ask(address: str) -> tuple[str, int | None]:
        parts = urlsplit(address)
        try:
            if parts.scheme in ("", "file"):
                path = Path(url2pathname(parts.path) if parts.scheme else address)
                return address, path.stat().st_size if path.is_file() else None
            with open_address(address, method="HEAD") as response:
                return address, int(response.headers["Content-Length"])
        except (*REQUEST_ERRORS, TypeError) as error:
            logger.info("no size for %s: %s", parts.path, error)
            return address, None

    wanted = list(addresses)
    if not wanted:
        return {}
    with ThreadPoolExecutor(max_workers=8) as pool:
        return {address: size for address, size in pool.map(ask, wanted) if size is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelOffer:
    """The wheels of one folder that fit the host, the choice and the request."""

    folder: Path
    pins: tuple[tuple[str, str], ...]
    """(normalized name, version) of each family member that was asked for."""
    missing: tuple[str, ...]
    """Members that were asked for and are not in the folder."""


def wheel_folders(
    *,
    environ: Mapping[str, str] | None = None,
    home: Path | None = None,
    prefix: Path | None = None,
    directory: Path | None = None,
) -> tuple[Path, ...]:
    """Return the local folders that pip's and uv's settings name for wheels, each once.

    Read are `UV_FIND_LINKS`, `PIP_FIND_LINKS`, pip's configuration files (`find-links` of
    `[global]` and `[install]`) and uv's (`find-links` of `uv.toml` and of `pyproject.toml`, from
    `directory` upwards too). Pages on a server are left out: uv can be told to read these, but not
    whether they hold what fits.
    """
    environ = os.environ if environ is None else environ
    home = _home() if home is None else home
    # uv separates them by commas, so that a folder's name may have a space; pip by spaces.
    named = [(text.strip(), None) for text in environ.get("UV_FIND_LINKS", "").split(",")]
    named += [(text, None) for text in environ.get("PIP_FIND_LINKS", "").split()]
    links: list[tuple[str, Path | None]] = [*named]
    for file in _pip_files(environ, home, prefix):
        links += [(text, None) for text in _pip_links(file)]
    for file in _uv_files(environ, home, directory):
        # A relative path is meant from where it is written.
        links += [(text, file.parent) for text in _uv_links(file)]
    folders = [path for text, base in links if (path := _folder(text, base)) is not None]
    return tuple(dict.fromkeys(folders))


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        # A user id without a name and HOME, as containers have it.
        return Path(os.sep)


def _folder(text: str, base: Path | None) -> Path | None:
    if not text:
        return None
    try:
        parts = urlsplit(text)
        if parts.scheme in ("http", "https"):
            return None
        path = Path(url2pathname(parts.path)) if parts.scheme == "file" else Path(text).expanduser()
        path = base / path if base is not None else path
        return path.resolve() if path.is_dir() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _pip_links(file: Path) -> list[str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read(file, encoding="utf-8")
    except (configparser.Error, OSError, UnicodeDecodeError) as error:
        logger.info("%s is not readable: %s", file, error)
        return []
    return [
        text
        for section in ("global", "install")
        for key in ("find-links", "find_links")
        for text in parser.get(section, key, fallback="").split()
    ]


def _pip_files(environ: Mapping[str, str], home: Path, prefix: Path | None) -> list[Path]:
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        # pip's documented way to read no file at all.
        return []
    ending = "pip.ini" if sys.platform == "win32" else "pip.conf"
    if sys.platform == "win32":
        folders = [Path(environ[n], "pip") for n in ("ProgramData", "APPDATA") if environ.get(n)]
        folders.append(home / "pip")
    else:
        folders = [Path("/etc"), Path("/etc/xdg/pip"), home / ".pip"]
        folders.append(Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip")
        if sys.platform == "darwin":
            library = Path("Library", "Application Support", "pip")
            folders += [Path("/") / library, home / library]
    if prefix is not None:
        folders.append(prefix)
    files = [folder / ending for folder in folders]
    return [file for file in [*files, *([Path(named)] if named else [])] if file.is_file()]


def _uv_links(file: Path) -> list[str]:
    settings = _uv_settings(file)
    links = [*_list(settings, "find-links"), *_list(_table(settings, "pip"), "find-links")]
    return [link for link in links if isinstance(link, str)]


def uv_setting(key: str, *, environ: Mapping[str, str]) -> str | None:
    """Return what uv's configuration files say of `key`; the nearest one to us wins."""
    found = None
    directory = None
    with contextlib.suppress(OSError):
        directory = Path.cwd()
    for file in _uv_files(environ, _home(), directory):
        settings = _uv_settings(file)
        value = _table(settings, "pip").get(key, settings.get(key))
        found = value if isinstance(value, str) else found
    return found


def uv_indexes(*, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the addresses of all indexes that uv's configuration files name."""
    directory = None
    with contextlib.suppress(OSError):
        directory = Path.cwd()
    found: list[Any] = []
    for file in _uv_files(environ, _home(), directory):
        settings = _uv_settings(file)
        found += [
            _table({"index": index}, "index").get("url") for index in _list(settings, "index")
        ]
        for place in (settings, _table(settings, "pip")):
            found += [place.get("index-url"), *_list(place, "extra-index-url")]
    return tuple(text for text in found if isinstance(text, str))


def _uv_settings(file: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        logger.info("%s is not readable: %s", file, error)
        return {}
    if file.name == "pyproject.toml":
        settings = _table(_table(settings, "tool"), "uv")
    return settings


def _table(settings: dict[str, Any], key: str) -> dict[str, Any]:
    value = settings.get(key)
    return value if isinstance(value, dict) else {}


def _list(settings: dict[str, Any], key: str) -> list[Any]:
    value = settings.get(key)
    return value if isinstance(value, list) else []


def _uv_files(environ: Mapping[str, str], home: Path, directory: Path | None) -> list[Path]:
    if environ.get("UV_NO_CONFIG", "").lower() in ("1", "true", "yes"):
        return []
    if named := environ.get("UV_CONFIG_FILE"):
        files = [Path(named)]
    elif sys.platform == "win32":
        names = ("ProgramData", "APPDATA")
        files = [Path(environ[name], "uv", "uv.toml") for name in names if environ.get(name)]
    else:
        user = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
        files = [Path("/etc/uv/uv.toml"), user / "uv" / "uv.toml"]
    if directory is not None and not environ.get("UV_CONFIG_FILE"):
        # uv takes the nearest folder that has either, and `uv.toml` before `pyproject.toml`.
        nearest = [
            folder / name
            for folder in (directory, *directory.parents)
            for name in ("uv.toml", "pyproject.toml")
            if (folder / name).is_file()
        ]
        files += nearest[:1]
    return [file for file in files if file.is_file()]


def wheels_in(
    folder: Path,
    request: Request,
    backend: Backend,
    interpreter: Interpreter,
    *,
    also: Iterable[str] = (),
    exclusion: str | None = None,
) -> WheelOffer | None:
    """Return the newest torch of `folder` that fits, with the other members asked for; else None.

    A wheel fits where its tags are this interpreter's, its local version is the backend (macOS
    wheels have none), and the request admits its version.

    Parameters
    ----------
    also
        Further members that are wanted in any version: those that are installed.
    exclusion
        A constraint such as `torch<2.11`.
    """
    tags = _tags(interpreter)
    found: dict[str, list[Version]] = {}
    try:
        names = [path.name for path in folder.iterdir() if path.suffix == ".whl"]
    except OSError as error:
        logger.info("%s is not readable: %s", folder, error)
        return None
    for filename in names:
        try:
            wheel, version, _, wheel_tags = parse_wheel_filename(filename)
        except (InvalidWheelFilename, InvalidVersion):
            continue
        local = version.local or ("cpu" if sys.platform == "darwin" else None)
        if wheel in FAMILY_MEMBERS and local == str(backend) and wheel_tags & tags:
            found.setdefault(wheel, []).append(version)
    asked: dict[str, SpecifierSet] = {name: SpecifierSet() for name in ("torch", *also)}
    for text in (*request.requirements, *([exclusion] if exclusion else [])):
        requirement = Requirement(text)
        member = str(canonicalize_name(requirement.name))
        asked[member] = asked.get(member, SpecifierSet()) & requirement.specifier
    pins, missing = [], []
    for name in FAMILY_MEMBERS:
        if name not in asked:
            continue
        versions = [v for v in found.get(name, []) if asked[name].contains(v, prereleases=True)]
        if versions:
            pins.append((name, str(max(versions))))
        else:
            missing.append(name)
    if "torch" in missing:
        return None
    return WheelOffer(folder=folder, pins=tuple(pins), missing=tuple(missing))


def _tags(interpreter: Interpreter) -> frozenset[Tag]:
    major, minor = (int(part) for part in interpreter.version.split(".")[:2])
    abi = f"cp{major}{minor}{'t' if interpreter.free_threaded else ''}"
    platforms = list(platform_tags())
    return frozenset(cpython_tags((major, minor), [abi], platforms)) | frozenset(
        compatible_tags((major, minor), f"cp{major}{minor}", platforms)
    )
