"""The variables that tell a user's server what to install, from where, and how long to wait."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torchenv_magic.errors import ConfigurationError
from torchenv_magic.hub.variants import is_backend

__all__ = ["MARGIN_SECONDS", "Variables", "environment", "is_batch", "timeout_of"]

Variables = dict[str, "str | Callable[[Any], str]"]
"""As `Spawner.environment` takes them: a function is called with the spawner, at each start."""

MARGIN_SECONDS = 60
"""What is left of the time-out for the server's own start, which takes 15 s on a busy machine."""
_DAY = 86_400


def environment(
    *,
    backend: str = "auto",
    requirements: Sequence[str] = ("torch",),
    wait: float = MARGIN_SECONDS,
    mirror: str | None = None,
    find_links: Sequence[str] = (),
    layers: Sequence[str] = (),
    seed: str | None = None,
    certificates: str | None = None,
    proxies: str | Mapping[str, str] | None = None,
) -> Variables:
    """Return the variables for `Spawner.environment`.

    All paths are of the machines where the servers run, so that nothing is looked up here.

    Parameters
    ----------
    backend
        The build, for all who can't choose or haven't.
    requirements
        What is installed: packages with an optional version.
    wait
        The seconds that a server may be kept waiting for the install. It is never more than the
        spawner's time-out leaves.
    mirror
        What stands before `/cu126` in the addresses of a mirror of the PyTorch index.
    find_links
        Folders of wheels.
    layers
        Folders that `torchenv layer` has filled.
    seed
        A cache of uv's that root has filled, from which each user's is cloned.
    certificates
        A file of certificates that is trusted: a site's own.
    proxies
        One address for everything, or some of the keys `http`, `https` and `no`.

    Raises
    ------
    ConfigurationError
        One of them can't be used.
    """
    from torchenv_magic.preinstall.place import HUB_VARIABLE, identity_of

    if not is_backend(backend):
        raise ConfigurationError(
            f"`backend` is {backend!r}, which is no build of PyTorch",
            hint="name it as uv does, such as `auto`, `cpu`, `cu126`, `rocm7.2` or `xpu`",
        )
    if not _is_seconds(wait):
        raise ConfigurationError(
            f"`wait` is {wait!r}, which is no number of seconds", hint="give 0 or more, such as 60"
        )
    variables: Variables = {
        "TORCHENV_BACKEND": backend,
        # Without spaces in one of them none has to be quoted: some spawners write the variables
        # into files for a shell or for systemd, which read quotes in their own ways.
        "TORCHENV_REQUIREMENTS": " ".join(
            "".join(each.split()) for each in _checked_requirements(requirements)
        ),
        "TORCHENV_PREINSTALL_WAIT": lambda spawner: str(_bounded_wait(wait, timeout_of(spawner))),
    }
    if own := identity_of(Path(sys.prefix)):
        variables[HUB_VARIABLE] = own
    if mirror is not None:
        variables["TORCHENV_INDEX_BASE"] = _checked_mirror(mirror)
    if folders := _folders("find_links", find_links):
        variables["TORCHENV_FIND_LINKS"] = folders
    if folders := _folders("layers", layers):
        variables["TORCHENV_LAYERS"] = folders
    if seed is not None:
        variables["TORCHENV_SEED"] = _checked_path("seed", seed)
    if certificates is not None:
        # The first is read by uv and Python, the second by requests and what stands on it.
        file = _checked_path("certificates", certificates)
        variables |= {"SSL_CERT_FILE": file, "REQUESTS_CA_BUNDLE": file}
    return variables | _proxies(proxies)


def timeout_of(spawner: Any) -> int:  # noqa: ANN401  (a Spawner, which nothing here imports)
    """Return the seconds within which a server has to answer.

    Nearly every spawner's `start` returns as soon as it has started something, so that it is
    `http_timeout` that ends the wait; a batch job tells its address when it runs.
    """
    return int(spawner.start_timeout if is_batch(type(spawner)) else spawner.http_timeout)


def is_batch(spawner_class: type) -> bool:
    """Whether servers are jobs of batchspawner's."""
    return any(base.__name__ == "BatchSpawnerBase" for base in spawner_class.mro())


def _bounded_wait(wait: float, timeout: float) -> float:
    return max(0, min(wait, timeout - MARGIN_SECONDS))


def _checked_requirements(requirements: Sequence[str]) -> tuple[str, ...]:
    from torchenv_magic.preinstall.wish import checked_requirements

    if isinstance(requirements, str):
        requirements = requirements.split()
    try:
        return checked_requirements(requirements)
    except ValueError as error:
        # What follows may be an address with a login.
        name = str(error).partition("@")[0].strip()
        raise ConfigurationError(
            f"`{name}` in `requirements` is not a package with an optional version",
            hint="write it like `torch==2.9.*`, without addresses and options",
        ) from None


def _checked_mirror(mirror: str) -> str:
    """Return the address of a mirror; messages leave it out where it may hold a login."""
    text = mirror.strip().rstrip("/")
    if text.startswith("/"):
        return _checked_path("mirror", text)
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if "@" in text:
        raise ConfigurationError(
            "The address in `mirror` holds a login, which every user could read",
            hint="let the mirror know your users' machines, or give each user a netrc file",
        )
    if parts.scheme not in ("http", "https") or not host or not _is_plain(text):
        raise ConfigurationError(
            "`mirror` is no address of a mirror",
            hint="give what stands before `/cu126`, such as `https://mirror.example/whl`",
        )
    if parts.query or parts.fragment or is_backend(parts.path.rpartition("/")[2]):
        raise ConfigurationError(
            f"`{text}` in `mirror` is more than the address of a mirror",
            hint="give what stands before `/cu126`, such as `https://mirror.example/whl`",
        )
    return text


def _folders(name: str, folders: Sequence[str]) -> str:
    given = (folders,) if isinstance(folders, (str, os.PathLike)) else folders
    return ":".join(_checked_path(name, each) for each in given)


def _checked_path(name: str, path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    # A colon would be read as the end of it.
    if not text.startswith("/") or not _is_plain(text) or ":" in text or "{" in text:
        raise ConfigurationError(
            f"{text!r} in `{name}` is no full path",
            hint="give a path that begins with `/`, as it is where the servers run, without "
            "colons, braces and spaces",
        )
    return text


def _proxies(proxies: str | Mapping[str, str] | None) -> Variables:
    if not proxies:
        return {}
    given = {"http": proxies, "https": proxies} if isinstance(proxies, str) else dict(proxies)
    if unknown := given.keys() - {"http", "https", "no"}:
        raise ConfigurationError(
            f"`proxies` has the key {min(unknown)!r}", hint="its keys are `http`, `https` and `no`"
        )
    # Else a server's own address would be asked of the proxy.
    given.setdefault("no", "localhost,127.0.0.1,::1")
    variables: Variables = {}
    for name, text in given.items():
        # Without the address: it may hold a login.
        if not _is_plain(text):
            raise ConfigurationError(
                f"The address of the {name!r} proxy holds a space or a control character",
                hint="write it like `http://proxy.example:3128`",
            )
        # Some programs read the one, some the other.
        variables |= {f"{name}_proxy": text, f"{name}_proxy".upper(): text}
    return variables


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _DAY


def _is_plain(text: object) -> bool:
    return isinstance(text, str) and bool(text) and text.isprintable() and " " not in text
