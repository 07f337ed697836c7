"""An environment for a user who has none that they may change: made, furnished and mended.

Other than a kernel that a person asks for it is kept for good, whatever the image, and it is mended
by whoever comes next where its making came to no end.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchenv_magic import __version__
from torchenv_magic.environment import Environment, read_environment, shown_path
from torchenv_magic.errors import InstallError, TargetError
from torchenv_magic.installation.data_folder import python_in
from torchenv_magic.installation.layers import Layer, attach_new
from torchenv_magic.installation.new_kernel import (
    describe_kernel,
    environment_of,
    furnish,
    make_environment,
    offer_kernel,
    read_places,
)
from torchenv_magic.installation.progress import Event, OnEvent
from torchenv_magic.installation.settings import Sites
from torchenv_magic.installation.uv import Cancellation, find_uv
from torchenv_magic.preinstall.place import KERNEL_NAME, KERNEL_TITLE, Place, jupyter_folder
from torchenv_magic.preinstall.room import KERNEL_BYTES, check_room, is_full
from torchenv_magic.state import make_state_directory, state_directory

__all__ = ["COMMAND", "Prepared", "leaving_room", "offer_to_user", "prepare"]

logger = logging.getLogger(__name__)

COMMAND = "torchenv preinstall"
"""What the history says of who installed."""
_MARKER = "furnished.json"
_ASIDE = ".removed-"
# Of `attach_new`.
_ATTACHING = ".torchenv-"


class _BrokenError(Exception):
    """What is there has to be made anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An environment that has a kernel."""

    python: Path
    has_layer: bool = False
    """Whether it was made of a layer just now, and has all that was wished for."""


def prepare(
    place: Place, *, layer: Layer | None, sites: Sites, tell: OnEvent, cancellation: Cancellation
) -> Prepared:
    """Return an environment with a kernel, which is made or mended first.

    Parameters
    ----------
    layer
        What a new environment takes its packages from.

    Raises
    ------
    TargetError
        What is there is none of ours, and no environment.
    InstallError, SourceError, DiskSpaceError, UvError, InstallCancelled
    """
    python = python_in(place.prefix)
    if place.is_ours:
        _sweep(place.prefix)
    elif not python.exists() and not _is_ours(place) and not _is_empty(place.prefix):
        raise TargetError(
            f"`{shown_path(place.prefix)}` is no virtual environment",
            hint="name one by `--env`, or a folder that is empty or not there yet",
        )
    if layer is not None and _take(place, layer, tell):
        return Prepared(python=python, has_layer=True)
    if _is_new(place):
        check_room((place.prefix, find_uv().cache_directory()), KERNEL_BYTES)
    try:
        _mend(place, sites=sites, tell=tell, cancellation=cancellation)
    except (_BrokenError, TargetError) as error:
        # Half of a kernel, or of an environment. What a person has worked in is mended, and where
        # that fails it stays: the machine may be slow today, or a disk away.
        if not _is_ours(place) or (isinstance(error, TargetError) and _is_furnished(place)):
            raise
        logger.info("%s is made anew: %s", place.prefix, error)
        _clear(place)
        if layer is not None and _take(place, layer, tell):
            return Prepared(python=python, has_layer=True)
        _mend(place, sites=sites, tell=tell, cancellation=cancellation)
    return Prepared(python=python)


@contextlib.contextmanager
def leaving_room(place: Place, cache: Path) -> Iterator[None]:
    """Remove what a failed attempt has begun, where it is half of something or fills the disk."""
    is_new = _is_new(place)
    had_cache = cache.exists()
    try:
        yield
    except Exception as error:
        full = is_full(error)
        if is_new and (full or not _is_furnished(place)):
            logger.info("%s was begun, and goes", place.prefix)
            _clear(place)
        if full and not had_cache:
            logger.info("%s was begun, and goes", cache)
            shutil.rmtree(cache, ignore_errors=True)
        raise


def _take(place: Place, layer: Layer, tell: OnEvent) -> bool:
    """Make the environment of a layer, in a moment; return whether that could be done."""
    if not place.is_ours or (place.prefix.exists() and not _is_empty(place.prefix)):
        return False
    check_room((place.prefix,), 0)
    tell(Event(phase="switch", message=f"Taking PyTorch from {shown_path(layer.directory)}"))
    try:
        _clear(place)
        python = attach_new(layer, place.prefix, Path(sys.executable), command=COMMAND)
    except (TargetError, InstallError) as error:
        logger.info("no environment of the layer %s: %s", layer.directory, error.message)
        return False
    described = {
        # A layer was proven as it was built: to ask its kernel takes longer than all the rest.
        "specification": {
            "argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "language": "python",
            "metadata": {"debugger": True},
        },
        "resources": str(place.prefix / layer.site / "ipykernel" / "resources"),
    }
    _offer(place, described)
    _note(place, {"made": True, "version": __version__, "python": sys.version.split()[0]})
    return True


def _mend(place: Place, *, sites: Sites, tell: OnEvent, cancellation: Cancellation) -> None:
    """Make what is missing of the environment, its kernel, and what tells Jupyter of it."""
    python = python_in(place.prefix)
    place.prefix.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not python.exists():
        if _is_ours(place) or _is_empty(place.prefix):
            _note(place, {**_noted(place), "made": True})
        tell(Event(phase="resolve", message=f"Making {shown_path(place.prefix)}"))
        # Where packages are there, this gives them the Python of another image.
        make_environment(find_uv(), Path(sys.executable), place.prefix, KERNEL_NAME, cancellation)
    environment = _read(place, cancellation)
    noted = _noted(place)
    if noted.get("made") and "version" not in noted and environment.packages:
        raise _BrokenError("an earlier install was ended as it made this environment")
    done = {"version": __version__, "python": environment.interpreter.version}
    is_offered = environment_of(_specification(place)) == place.prefix
    if is_offered and noted.items() >= done.items():
        if _has_kernel(environment):
            return
        if _is_ours(place):
            raise _BrokenError("files of its kernel are gone")
    furnish(find_uv(), python, sites=sites, tell=tell, cancellation=cancellation)
    _offer(place, describe_kernel(python, cancellation))
    _note(place, {**noted, **done})


def _read(place: Place, cancellation: Cancellation) -> Environment:
    """Return the environment as it is, with a Python that answers where it has one that is dead."""
    python = python_in(place.prefix)
    try:
        return read_environment(python)
    except TargetError:
        if not _is_ours(place):
            raise
        make_environment(find_uv(), Path(sys.executable), place.prefix, KERNEL_NAME, cancellation)
        return read_environment(python)


def _offer(place: Place, described: Mapping[str, Any]) -> None:
    specification = _specification(place)
    is_offered = environment_of(specification) == place.prefix
    if not is_offered and os.path.lexists(specification):
        _remove(specification)
    offer_kernel(
        specification,
        described,
        display_name=KERNEL_TITLE,
        environment=place.prefix,
        is_new=not is_offered,
    )


def _specification(place: Place) -> Path:
    return jupyter_folder(place.prefix) / "kernels" / KERNEL_NAME


def _has_kernel(environment: Environment) -> bool:
    """Whether a kernel is there, with its files: those of a layer may have gone with an image."""
    found = [environment.installed(name) for name in ("ipykernel", "torchenv-magic")]
    modules = [environment.site_packages / name for name in ("ipykernel", "torchenv_magic")]
    return all(package is not None and package.complete for package in found) and all(
        (module / "__init__.py").exists() for module in modules
    )


def _is_ours(place: Place) -> bool:
    """Whether nobody else's work can be in it: then it may be made anew."""
    return place.is_ours or _noted(place).get("made") is True


def _is_furnished(place: Place) -> bool:
    """Whether its kernel was brought to its end."""
    return "version" in _noted(place)


def _is_new(place: Place) -> bool:
    """Whether nothing of a person can be in it yet; a Python that is gone was there once."""
    never = not os.path.lexists(python_in(place.prefix)) and not _is_furnished(place)
    return place.is_ours and never


def _noted(place: Place) -> dict[str, Any]:
    try:
        text = (state_directory(place.prefix) / _MARKER).read_text(encoding="ascii")
        noted = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _note(place: Place, noted: dict[str, Any]) -> None:
    marker = make_state_directory(place.prefix) / _MARKER
    marker.write_text(json.dumps(noted), encoding="ascii")


def _is_empty(folder: Path) -> bool:
    return all(path.name == ".torchenv" for path in folder.iterdir())


def _clear(place: Place) -> None:
    """Remove all of an environment but what locks it."""
    if place.is_ours:
        # Aside in one step, so that it is never there half.
        aside = place.prefix.with_name(f".{place.prefix.name}{_ASIDE}{os.urandom(4).hex()}")
        with contextlib.suppress(FileNotFoundError):
            place.prefix.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        return
    for path in sorted(place.prefix.iterdir()):
        if path.name == ".torchenv":
            for kept in sorted(path.iterdir()):
                if kept.name != "preinstall":
                    _remove(kept)
        else:
            _remove(path)


def _sweep(prefix: Path) -> None:
    """Remove what makers of this environment who were killed have left beside it."""
    name = glob.escape(f".{prefix.name}")
    # Not all that begins so: `.…-rocm7.2.1` is the lock of another one.
    for left in (
        *prefix.parent.glob(f"{name}{_ASIDE}*"),
        *prefix.parent.glob(f"{name}{_ATTACHING}*"),
    ):
        logger.info("%s was left, and goes", left)
        shutil.rmtree(left, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def offer_to_user(prefix: Path) -> None:
    """Tell Jupyter of the kernel in the user's own folder, which each of their servers reads."""
    try:
        folder = read_places().specifications / KERNEL_NAME
        before = environment_of(folder)
        if before is None and os.path.lexists(folder):
            logger.info("%s is not ours, and stays", folder)
            return
        source = jupyter_folder(prefix) / "kernels" / KERNEL_NAME
        described = json.loads((source / "kernel.json").read_text(encoding="utf-8"))
        offer_kernel(
            folder,
            {"specification": described, "resources": str(source)},
            display_name=KERNEL_TITLE,
            environment=prefix,
            is_new=before is None,
        )
    except (ImportError, OSError, ValueError) as error:
        # The environment is whole, and a server that is begun by us finds its kernel all the same.
        logger.info("the kernel is not offered: %s", error)
