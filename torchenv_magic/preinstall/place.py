"""Where PyTorch goes that is to be there with a server: into the server's environment, or home.

Only the standard library, and little of that: the start of each server asks.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torchenv_magic.errors import TargetError
from torchenv_magic.installation.data_folder import data_folder
from torchenv_magic.preinstall.record import boot_of_host
from torchenv_magic.preinstall.wish import Wish

__all__ = [
    "HUB_VARIABLE",
    "KERNEL_NAME",
    "KERNEL_TITLE",
    "Facts",
    "Place",
    "choose_place",
    "identity_of",
    "jupyter_folder",
    "place_of",
    "vendor_here",
]

HUB_VARIABLE = "TORCHENV_HUB_ENVIRONMENT"
"""Tells which environment is the hub's own: `identity_of` it."""
KERNEL_NAME = "torchenv"
KERNEL_TITLE = "PyTorch (torchenv)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An environment that PyTorch goes into."""

    prefix: Path
    is_own: bool = False
    """Whether it is the environment that this runs in, whose kernels are the server's own."""
    is_ours: bool = False
    """Whether it is kept by us alone, and may be made anew where it is broken."""
    cache: Path | None = None
    """Where uv's cache has to be to lie on the same disk; None where it does already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the choice of a place depends on."""

    prefix: Path
    """The environment that this runs in."""
    is_hubs: bool
    """Whether that is the hub's own."""
    may_change: bool
    """Whether this user may install there."""
    passes: bool
    """Whether it goes with its container, while the home stays."""
    data: Path
    """The folder for this user's own environments."""
    name: str
    """What such an environment is called for this Python, platform and build."""
    named: Path | None = None
    """The environment that was asked for."""
    named_is_hubs: bool = False


def choose_place(facts: Facts) -> Place:
    """Return where PyTorch goes.

    Raises
    ------
    TargetError
        Nowhere: it would be the hub's own environment, or there is no home.
    """
    if facts.named is not None:
        if facts.named_is_hubs:
            raise TargetError(
                f"`{facts.named}` is the environment that the hub itself runs in, which nothing is "
                "installed into",
                hint="name another one by `--env`, or none: then each user gets one of their own",
            )
        return Place(prefix=facts.named, is_own=facts.named == facts.prefix)
    if facts.may_change and not facts.is_hubs and not facts.passes:
        return Place(prefix=facts.prefix, is_own=True)
    if not facts.data.is_absolute():
        raise TargetError(
            "There is no home folder that PyTorch could be installed into",
            hint="set HOME, or name an environment by `--env`",
        )
    return Place(prefix=facts.data / "environments" / facts.name, is_ours=True)


def place_of(wish: Wish, environ: Mapping[str, str]) -> Place:
    """Return where PyTorch goes for this user on this host.

    Raises
    ------
    TargetError
        As in `choose_place`.
    """
    prefix = Path(sys.prefix)
    hub = environ.get(HUB_VARIABLE, "")
    data = data_folder(environ)
    place = choose_place(
        Facts(
            prefix=prefix,
            is_hubs=bool(hub) and identity_of(prefix) == hub,
            may_change=wish.environment is None and _may_change(prefix),
            passes=wish.environment is None and _passes(prefix, data),
            data=data,
            name=f"{_python_tag()}-{_platform_tag()}-{_class_of(wish.backend)}",
            named=wish.environment,
            named_is_hubs=bool(hub)
            and wish.environment is not None
            and identity_of(wish.environment) == hub,
        )
    )
    return Place(
        prefix=place.prefix,
        is_own=place.is_own,
        is_ours=place.is_ours,
        cache=_cache_beside(place, environ, data),
    )


def identity_of(prefix: Path) -> str:
    """Return what tells a folder of this machine from all others; empty where it is not there."""
    try:
        status = prefix.stat()
    except (OSError, ValueError):
        return ""
    return f"{boot_of_host().partition(' ')[0]}:{status.st_dev}:{status.st_ino}"


def jupyter_folder(prefix: Path) -> Path:
    """Return the folder of an environment in which Jupyter finds its kernel, and nothing else.

    Not `share/jupyter`: what the environment's packages put there would hide the server's own.
    """
    return prefix / "share" / "torchenv" / "jupyter"


# ----------------------------------------------------------------------------------- what is here


def _may_change(prefix: Path) -> bool:
    """Whether this user may install into the running environment: a cheap `check_target`."""
    if not os.access(prefix, os.W_OK) or not _is_mine(prefix):
        return False
    import sysconfig

    paths = sysconfig.get_paths()
    if sys.prefix == sys.base_prefix and Path(paths["stdlib"], "EXTERNALLY-MANAGED").exists():
        return False
    if (prefix / "conda-meta" / "frozen").exists():
        return False
    site = Path(paths["purelib"])
    return os.access(site, os.W_OK) and _is_mine(site)


def _is_mine(folder: Path) -> bool:
    if sys.platform == "win32":
        return True
    try:
        return folder.stat().st_uid == os.geteuid()
    except OSError:
        return False


def _passes(prefix: Path, data: Path) -> bool:
    """Whether the environment is a layer of the container's, while the home is a volume.

    An image gives its user the environment (docker-stacks do): what is installed there is gone with
    the container, and each start would install anew.
    """
    if not sys.platform.startswith("linux") or not data.is_absolute():
        return False
    root = _device(Path("/"))
    if _device(prefix) != root or _device(data) in (None, root):
        return False
    with contextlib.suppress(OSError):
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
        # ID PARENT MAJOR:MINOR ROOT PLACE OPTIONS… - TYPE SOURCE …: the last one at / is in force.
        for line in reversed(text.splitlines()):
            if line.split()[4:5] == ["/"]:
                return line.partition(" - ")[2].split()[:1] in (["overlay"], ["fuse-overlayfs"])
    return False


def _device(path: Path) -> int | None:
    """Return the disk of a folder, or of the one that it would be made in."""
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError, ValueError):
            return folder.stat().st_dev
    return None


def _cache_beside(place: Place, environ: Mapping[str, str], data: Path) -> Path | None:
    """Return where uv's cache has to be: from another disk uv copies each file, twice the room."""
    if environ.get("UV_CACHE_DIR"):
        return None
    if sys.platform == "win32":
        usual = Path(environ.get("LOCALAPPDATA") or data.parent, "uv", "cache")
    else:
        base = environ.get("XDG_CACHE_HOME", "")
        home = Path(os.path.expanduser("~"))  # noqa: PTH111  (Path.home() fails where there is none)
        usual = (Path(base) if base.startswith("/") else home / ".cache") / "uv"
    if usual.is_absolute() and _device(usual) == _device(place.prefix):
        return None
    if place.is_ours:
        return place.prefix.parents[1] / "cache"
    return place.prefix / ".torchenv" / "cache"


def _python_tag() -> str:
    threads = "" if getattr(sys, "_is_gil_enabled", lambda: True)() else "t"
    name = {"cpython": "cp", "pypy": "pp"}.get(sys.implementation.name, sys.implementation.name)
    return f"{name}{sys.version_info[0]}{sys.version_info[1]}{threads}"


def _platform_tag() -> str:
    # It tells the C library too, where one home is used by two images.
    text = str(getattr(sys.implementation, "_multiarch", ""))
    if sys.platform == "win32":
        text = f"{os.environ.get('PROCESSOR_ARCHITECTURE', 'any')}-windows"
    elif not text:
        text = f"{os.uname().machine}-{sys.platform}"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()) or "any"


def _class_of(backend: str) -> str:
    return vendor_here() if backend == "auto" else backend


def vendor_here() -> str:
    """Return whose accelerator is here at a glance, so that a host with another has its own place.

    What is chosen in the end is decided with more care.
    """
    if sys.platform == "darwin":
        return "apple"
    if sys.platform == "win32":
        return "auto"
    if any(re.fullmatch(r"nvidia\d+", name) for name in _names("/dev")) or _is_there("/dev/dxg"):
        return "nvidia"
    if _is_there("/dev/kfd"):
        return "amd"
    return "intel" if "0x8086" in set(_render_vendors()) else "cpu"


def _render_vendors() -> Iterator[str]:
    for name in _names("/dev/dri"):
        if name.startswith("renderD"):
            with contextlib.suppress(OSError):
                vendor = Path(f"/sys/class/drm/{name}/device/vendor")
                yield vendor.read_text(encoding="ascii", errors="replace").strip()


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  (names are enough)
    except OSError:
        return []


def _is_there(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110  (never fails)
