"""Where wheels may come from, as a person or a site has set it, and which setting says so.

For each setting the first that says anything counts: the option, the variable, then the files
`config.toml` of the environment, of the user and of the machine.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from torchenv_magic.builds.backend import Backend
from torchenv_magic.errors import RequestError

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["Sites", "goes_unencrypted", "mirror_base", "read_sites", "setting_files"]

_LONGEST_FILE = 100_000
_KEYS = ("index-base", "find-links")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sites:
    """The places that wheels may come from; nothing in it is secret."""

    index_base: str | None = None
    """What stands before `/cu126`, without a login; None for the PyTorch index itself."""
    index_origin: str = ""
    """Who says so: `--index-base`, `TORCHENV_INDEX_BASE` or a file."""
    find_links: tuple[str, ...] = ()
    """Folders of wheels, looked through before any index."""
    find_links_origin: str = ""
    allow_sdist: bool = False
    """Lets the PyTorch family be built from source distributions, which run code."""


def read_sites(
    *,
    index_base: str | None = None,
    find_links: Sequence[str] = (),
    allow_sdist: bool = False,
    prefix: Path | None = None,
    environ: Mapping[str, str] | None = None,
    files: Sequence[Path] | None = None,
) -> Sites:
    """Return what holds here; a login in a mirror's address is kept apart, for this process alone.

    Parameters
    ----------
    index_base, find_links
        What the options say.
    prefix
        The environment whose `etc/torchenv/config.toml` counts.
    files
        The files to read in place of those of this machine.

    Raises
    ------
    RequestError
        An address, a folder or a file can't be used.
    """
    environ = os.environ if environ is None else environ
    base, base_origin = _index_base(index_base, prefix, environ, files)
    links, links_origin = _find_links(find_links, prefix, environ, files)
    return Sites(
        index_base=base,
        index_origin=base_origin,
        find_links=links,
        find_links_origin=links_origin,
        allow_sdist=allow_sdist,
    )


def mirror_base(
    option: str | None = None,
    *,
    prefix: Path | None = None,
    environ: Mapping[str, str] | None = None,
    files: Sequence[Path] | None = None,
) -> str | None:
    """Return the mirror that the option names, or that is set here; None where none is.

    Raises
    ------
    RequestError
    """
    environ = os.environ if environ is None else environ
    return _index_base(option, prefix, environ, files)[0]


def _index_base(
    option: str | None,
    prefix: Path | None,
    environ: Mapping[str, str],
    files: Sequence[Path] | None,
) -> tuple[str | None, str]:
    here = _here()
    found: tuple[str, str, Path] | None = None
    if option is not None:
        found = option, "--index-base", here
    elif environ.get("TORCHENV_INDEX_BASE"):
        found = environ["TORCHENV_INDEX_BASE"], "TORCHENV_INDEX_BASE", here
    else:
        for file, settings in _settings(prefix, environ, files):
            if "index-base" in settings:
                found = settings["index-base"], str(file), file.parent
                break
    if found is None:
        return None, ""
    # Only here: a selection reads this, and mostly no mirror is set.
    from torchenv_magic.builds.index import INDEX_ADDRESS

    text, origin, folder = found
    base = _checked_base(text, origin, folder)
    if base == INDEX_ADDRESS:
        return None, ""
    # So that a hub or a machine can say who it is without it standing in any file of ours.
    user = environ.get("UV_INDEX_TORCHENV_USERNAME")
    password = environ.get("UV_INDEX_TORCHENV_PASSWORD")
    if user is not None or password is not None:
        from torchenv_magic.web import keep_login, kept_login

        if kept_login(base) is None:
            keep_login(base, (user or "", password or ""))
    return base, origin


def _checked_base(text: str, origin: str, folder: Path) -> str:
    """Return the address without a login, and without a slash at its end."""
    stripped = text.strip().rstrip("/")
    # Before anything quotes it: the rest of such a password would pass for a path.
    if re.search(r"//[^/?#]*[/?#].*@", stripped):
        raise RequestError(
            f"The mirror's address ({origin}) has an `@` behind a `/`, `?` or `#`, so it can't be "
            "told where its login ends",
            hint="in a user's name or password write these as %2F, %3F and %23, an `@` as %40",
        )
    if not stripped:
        _refuse_base(text, origin, "is empty")
    try:
        parts = urlsplit(stripped)
        host, _ = parts.hostname, parts.port
    except ValueError:
        _refuse_base(text, origin, "is no address")
    if parts.scheme in ("http", "https"):
        if not host:
            _refuse_base(text, origin, "names no server")
        if parts.query or parts.fragment or not stripped.isprintable() or " " in stripped:
            _refuse_base(text, origin, "is more than the address of a folder")
        last = unquote(parts.path.rpartition("/")[2])
        base = stripped
        if "@" in parts.netloc:
            from torchenv_magic.web import keep_login

            base = keep_login(stripped)
    elif parts.scheme == "file" or len(parts.scheme) <= 1:
        # `C:\wheels` has a scheme of one letter.
        path = _local_path(stripped, folder)
        if not _is_folder(path):
            _refuse_base(text, origin, "is no folder")
        last, base = path.name, path.resolve().as_uri()
    else:
        _refuse_base(text, origin, f"begins with {parts.scheme}:, which can't be asked")
    if _is_backend(last):
        _refuse_base(text, origin, f"ends with a backend: leave `/{last}` out")
    return base


def _refuse_base(text: str, origin: str, problem: str) -> NoReturn:
    from torchenv_magic.web import without_login

    raise RequestError(
        f"The mirror `{without_login(text)}` ({origin}) {problem}",
        hint="give what stands before `/cu126` in the mirror's addresses, such as "
        "`https://mirror.example/whl`, or a folder",
    )


def _is_backend(text: str) -> bool:
    try:
        Backend.parse(text)
    except ValueError:
        return False
    return True


def _local_path(text: str, folder: Path) -> Path:
    if text.startswith("file:"):
        from urllib.request import url2pathname

        return Path(url2pathname(urlsplit(text).path))
    try:
        return folder / Path(text).expanduser()
    except RuntimeError:
        return folder / text


def _is_folder(path: Path) -> bool:
    # Path.is_dir() raises for one in a folder of somebody else's, until Python 3.14.
    return os.path.isdir(path)  # noqa: PTH112


def goes_unencrypted(address: str) -> bool:
    """Whether what is asked there, and what is answered, goes in the clear through a network."""
    parts = urlsplit(address)
    return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")


def _find_links(
    option: Sequence[str],
    prefix: Path | None,
    environ: Mapping[str, str],
    files: Sequence[Path] | None,
) -> tuple[tuple[str, ...], str]:
    texts: Sequence[str] = ()
    origin, folder = "", _here()
    named = [text for text in environ.get("TORCHENV_FIND_LINKS", "").split(os.pathsep) if text]
    if option:
        texts, origin = option, "--find-links"
    elif named:
        texts, origin = named, "TORCHENV_FIND_LINKS"
    else:
        for file, settings in _settings(prefix, environ, files):
            if "find-links" in settings:
                texts, origin, folder = settings["find-links"], str(file), file.parent
                break
    found = []
    for text in texts:
        if text.startswith(("http:", "https:")):
            raise RequestError(
                f"`{origin}` names a page of a server, and takes folders",
                hint="copy the wheels into a folder, or name a mirror by `--index-base`",
            )
        path = _local_path(text, folder)
        if not _is_folder(path):
            raise RequestError(
                f"The wheel folder `{path}` ({origin}) is not there", hint="correct its name"
            )
        found.append(str(path.resolve()))
    return tuple(dict.fromkeys(found)), origin if found else ""


def _here() -> Path:
    try:
        return Path.cwd()
    except OSError:
        # A folder that was deleted.
        return Path(os.sep)


def setting_files(
    *,
    prefix: Path | None = None,
    environ: Mapping[str, str] | None = None,
    system: str = sys.platform,
    home: Path | None = None,
) -> tuple[Path, ...]:
    """Return where `config.toml` may lie, the one that counts most first."""
    environ = os.environ if environ is None else environ
    folders = [prefix / "etc" / "torchenv"] if prefix is not None else []
    if home is None:
        try:
            home = Path.home()
        except RuntimeError:
            # A user id without a name and HOME, as containers have it.
            home = Path(os.sep)
    if system == "win32":
        names = ("APPDATA", "ProgramData")
        folders += [Path(environ[name], "torchenv") for name in names if environ.get(name)]
    elif system == "darwin":
        library = Path("Library", "Application Support", "torchenv")
        folders += [home / library, Path(os.sep) / library, Path("/etc/torchenv")]
    else:
        named = environ.get("XDG_CONFIG_HOME", "")
        # A relative one is to be ignored, its specification says.
        user = Path(named) if named.startswith("/") else home / ".config"
        folders += [user / "torchenv", Path("/etc/torchenv")]
    return tuple(folder / "config.toml" for folder in folders)


def _settings(
    prefix: Path | None, environ: Mapping[str, str], files: Sequence[Path] | None
) -> Iterator[tuple[Path, dict[str, Any]]]:
    if files is None:
        files = setting_files(prefix=prefix, environ=environ)
    for file in files:
        try:
            there = file.is_file()
        except OSError:
            there = False  # in a folder of somebody else's
        if there:
            yield file, _read(file)


def _read(file: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        if file.stat().st_size > _LONGEST_FILE:
            _refuse_file(file, "is too long to be one")
        settings: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        _refuse_file(file, f"can't be read: {error.strerror}")
    except ValueError as error:  # what TOML and UTF-8 raise
        _refuse_file(file, f"is no TOML: {error}")
    for key, value in settings.items():
        if key not in _KEYS:
            _refuse_file(file, f"has a key that is not known: `{key}`")
        texts = value if key == "find-links" else [value]
        if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
            kind = "a list of folders" if key == "find-links" else "an address"
            _refuse_file(file, f"has `{key}`, which is not {kind}")
    return settings


def _refuse_file(file: Path, problem: str) -> NoReturn:
    raise RequestError(
        f"The configuration `{file}` {problem}",
        hint=f"it takes {' and '.join(f'`{key}`' for key in _KEYS)}: correct it, or remove it",
    )
