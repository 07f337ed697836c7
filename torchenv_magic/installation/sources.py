"""Where wheels can come from: the PyTorch index, folders of wheels, PyPI's own build."""

from __future__ import annotations

import configparser
import logging
import os
import re
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPResponse
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags, platform_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import FAMILY_MEMBERS, Interpreter
from torchenv_magic.installation.plan import Source
from torchenv_magic.selection import Request

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
    "wheel_folders",
    "wheels_in",
]

logger = logging.getLogger(__name__)

INDEX = "https://download.pytorch.org/whl"
_SECONDS = 5.0


def index_source(backend: Backend) -> Source:
    """Return the PyTorch index of `backend`, which uv's `--torch-backend` means."""
    return Source(kind="index", location=f"{INDEX}/{backend}")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexAnswer:
    """What the index's page of torch said when it was asked once, without uv's patience."""

    state: Literal["answered", "unreachable", "unknown"]
    detail: str = ""
    page: str = ""

    def lacks_hashes(self, version: str) -> bool:
        """Whether the page lists that version of torch without a hash.

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
    """Ask the index for its page of torch: is it reachable at all, and does it tell hashes?

    uv needs 8 s to say that a name can't be looked up; a person who waits for a plan should not.
    Only what is certain counts as unreachable: all else is left to uv, which may know a proxy or a
    certificate that this does not.
    """
    try:
        with _open(f"{source.location}/torch/", method="GET") as response:
            return IndexAnswer(state="answered", page=response.read().decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        return IndexAnswer(state="answered", detail=f"HTTP {error.code}")
    except ssl.SSLError as error:
        return IndexAnswer(state="unknown", detail=str(error))
    except urllib.error.URLError as error:
        # ALL_PROXY is uv's word, and not urllib's.
        certain = (
            isinstance(error.reason, OSError)
            and not isinstance(error.reason, (ssl.SSLError, TimeoutError))
            and not {"ALL_PROXY", "all_proxy"} & os.environ.keys()
        )
        return IndexAnswer(
            state="unreachable" if certain else "unknown", detail=_reason(error.reason)
        )
    except OSError as error:
        return IndexAnswer(state="unknown", detail=str(error))


def _reason(reason: object) -> str:
    return (reason.strerror or str(reason)) if isinstance(reason, OSError) else str(reason)


def _open(address: str, *, method: str) -> AbstractContextManager[HTTPResponse]:
    context = ssl.create_default_context()
    # uv reads these too; OpenSSL reads them only where it was not built with other paths.
    for name, key in (("SSL_CERT_FILE", "cafile"), ("SSL_CERT_DIR", "capath")):
        if (value := os.environ.get(name)) and Path(value).exists():
            context.load_verify_locations(**{key: value})
    request = urllib.request.Request(address, method=method)  # noqa: S310  (https only, below)
    if urlsplit(address).scheme != "https":
        message = f"not an https address: {address}"
        raise urllib.error.URLError(message)
    response: AbstractContextManager[HTTPResponse] = urllib.request.urlopen(  # noqa: S310
        request, timeout=_SECONDS, context=context
    )
    return response


def sizes(addresses: Iterable[str]) -> dict[str, int]:
    """Return the Content-Length of each address that tells one, asked side by side.

    The PyTorch index's pages hold no sizes, so neither do the locks that uv makes from them.
    """

    def ask(address: str) -> tuple[str, int | None]:
        parts = urlsplit(address)
        try:
            if parts.scheme == "file":
                return address, Path(url2pathname(parts.path)).stat().st_size
            with _open(address, method="HEAD") as response:
                return address, int(response.headers["Content-Length"])
        except (OSError, ValueError, TypeError) as error:
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
) -> tuple[Path, ...]:
    """Return the local folders that pip's and uv's settings name for wheels, each once.

    Read are `UV_FIND_LINKS`, `PIP_FIND_LINKS`, pip's configuration files (`find-links` of
    `[global]` and `[install]`) and uv's (`find-links` of uv.toml). Pages on a server are left out:
    uv can be told to read these, but not whether they hold what fits.
    """
    environ = os.environ if environ is None else environ
    home = Path.home() if home is None else home
    texts = re.split(r"[\s,]+", environ.get("UV_FIND_LINKS", ""))
    texts += environ.get("PIP_FIND_LINKS", "").split()
    for file in _pip_files(environ, home, prefix):
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError) as error:
            logger.info("%s is not readable: %s", file, error)
            continue
        for section in ("global", "install"):
            texts += parser.get(section, "find-links", fallback="").split()
    for file in _uv_files(environ, home):
        try:
            settings = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            logger.info("%s is not readable: %s", file, error)
            continue
        links = settings.get("find-links") or settings.get("pip", {}).get("find-links") or []
        texts += [link for link in links if isinstance(link, str)]
    folders = [path for text in texts if (path := _folder(text)) is not None]
    return tuple(dict.fromkeys(folders))


def _folder(text: str) -> Path | None:
    if not text:
        return None
    parts = urlsplit(text)
    path = Path(url2pathname(parts.path)) if parts.scheme == "file" else Path(text).expanduser()
    if parts.scheme in ("http", "https"):
        return None
    try:
        return path.resolve() if path.is_dir() else None
    except OSError:
        return None


def _pip_files(environ: Mapping[str, str], home: Path, prefix: Path | None) -> list[Path]:
    # pip's own order, from the weakest to the strongest: global, user, site, PIP_CONFIG_FILE.
    files = [Path(text) for text in (environ.get("PIP_CONFIG_FILE"),) if text]
    if environ.get("PIP_CONFIG_FILE") == os.devnull:
        return []
    if sys.platform == "win32":
        files += [Path(environ.get(n, "")) / "pip" / "pip.ini" for n in ("ProgramData", "APPDATA")]
    else:
        files += [Path("/etc/pip.conf"), home / ".pip" / "pip.conf"]
        files.append(Path(environ.get("XDG_CONFIG_HOME", home / ".config")) / "pip" / "pip.conf")
        files.append(home / "Library" / "Application Support" / "pip" / "pip.conf")
    if prefix is not None:
        files.append(prefix / ("pip.ini" if sys.platform == "win32" else "pip.conf"))
    return [file for file in files if file.is_file()]


def _uv_files(environ: Mapping[str, str], home: Path) -> list[Path]:
    if environ.get("UV_NO_CONFIG", "").lower() in ("1", "true", "yes"):
        return []
    if named := environ.get("UV_CONFIG_FILE"):
        return [Path(named)]
    if sys.platform == "win32":
        return [Path(environ.get(n, "")) / "uv" / "uv.toml" for n in ("ProgramData", "APPDATA")]
    user = Path(environ.get("XDG_CONFIG_HOME", home / ".config"))
    return [Path("/etc/uv/uv.toml"), user / "uv" / "uv.toml"]


def wheels_in(
    folder: Path, request: Request, backend: Backend, interpreter: Interpreter
) -> WheelOffer | None:
    """Return the newest torch of `folder` that fits, with the other members asked for; else None.

    A wheel fits where its tags are this interpreter's, its local version is the backend (macOS
    wheels have none), and the request admits its version.
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
        except InvalidWheelFilename:
            continue
        local = version.local or ("cpu" if sys.platform == "darwin" else None)
        if wheel in FAMILY_MEMBERS and local == str(backend) and wheel_tags & tags:
            found.setdefault(wheel, []).append(version)
    asked = {
        canonicalize_name(requirement.name): requirement.specifier
        for requirement in map(Requirement, request.requirements)
    }
    pins, missing = [], []
    for name in dict.fromkeys(["torch", *asked]):
        if name not in FAMILY_MEMBERS:
            continue
        specifier = asked.get(name)
        versions = [
            version
            for version in found.get(name, [])
            if specifier is None or specifier.contains(version, prereleases=True)
        ]
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
