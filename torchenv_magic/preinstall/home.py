"""An environment for a user who has none that they may change: made, furnished and mended.

Other than a kernel that a person asks for it is kept for good, whatever the image, and it is mended
by whoever comes next where its making came to no end.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from torchenv_magic import __version__
from torchenv_magic.environment import Environment, read_environment, shown_path
from torchenv_magic.errors import InstallCancelled, InstallError, TargetError
from torchenv_magic.installation.new_kernel import (
    describe_kernel,
    environment_of,
    furnish,
    make_environment,
    offer_kernel,
    python_in,
    read_places,
)
from torchenv_magic.installation.progress import Event, OnEvent
from torchenv_magic.installation.settings import Sites
from torchenv_magic.installation.uv import Cancellation, find_uv
from torchenv_magic.preinstall.place import KERNEL_NAME, KERNEL_TITLE, Place, jupyter_folder
from torchenv_magic.state import make_state_directory

__all__ = ["offer_to_user", "prepare"]

logger = logging.getLogger(__name__)

_MARKER = "furnished.json"


def prepare(place: Place, *, sites: Sites, tell: OnEvent, cancellation: Cancellation) -> Path:
    """Return the interpreter of an environment with a kernel, which is made or mended first.

    Raises
    ------
    TargetError
        What is there is none of ours, and no environment.
    InstallError, SourceError, DiskSpaceError, UvError, InstallCancelled
    """
    python = python_in(place.prefix)
    if not python.exists() and not _is_ours(place) and not _is_empty(place.prefix):
        raise TargetError(
            f"`{shown_path(place.prefix)}` is no virtual environment",
            hint="name one by `--env`, or a folder that is empty or not there yet",
        )
    try:
        _mend(place, sites=sites, tell=tell, cancellation=cancellation)
    except InstallCancelled:
        raise
    except (TargetError, InstallError) as error:
        # A Python that is gone, or half of a kernel.
        if not _is_ours(place):
            raise
        logger.info("%s is made anew: %s", place.prefix, error.message)
        _clear(place.prefix)
        _mend(place, sites=sites, tell=tell, cancellation=cancellation)
    return python


def _mend(place: Place, *, sites: Sites, tell: OnEvent, cancellation: Cancellation) -> None:
    """Make what is missing of the environment, its kernel, and what tells Jupyter of it."""
    python = python_in(place.prefix)
    if not python.exists():
        if _is_ours(place) or _is_empty(place.prefix):
            _note(place, {**_noted(place), "made": True})
        tell(Event(phase="resolve", message=f"Making {shown_path(place.prefix)}"))
        # Where packages are there, this gives them the Python of another image.
        make_environment(find_uv(), Path(sys.executable), place.prefix, KERNEL_NAME, cancellation)
    environment = read_environment(python)
    noted = _noted(place)
    if noted.get("made") and "version" not in noted and environment.packages:
        raise InstallError("An earlier install was ended as it made this environment")
    specification = jupyter_folder(place.prefix) / "kernels" / KERNEL_NAME
    is_offered = environment_of(specification) == place.prefix
    done = {"version": __version__, "python": environment.interpreter.version}
    if is_offered and noted.items() >= done.items() and _has_kernel(environment):
        return
    furnish(find_uv(), python, sites=sites, tell=tell, cancellation=cancellation)
    described = describe_kernel(python, cancellation)
    if not is_offered and os.path.lexists(specification):
        _remove(specification)
    offer_kernel(
        specification,
        described,
        display_name=KERNEL_TITLE,
        environment=place.prefix,
        is_new=not is_offered,
    )
    _note(place, {**noted, **done})


def _has_kernel(environment: Environment) -> bool:
    found = [environment.installed(name) for name in ("ipykernel", "torchenv-magic")]
    return all(package is not None and package.complete for package in found)


def _is_ours(place: Place) -> bool:
    """Whether nobody else's work can be in it: then it may be made anew."""
    return place.is_ours or _noted(place).get("made") is True


def _noted(place: Place) -> dict[str, Any]:
    try:
        text = (make_state_directory(place.prefix) / _MARKER).read_text(encoding="ascii")
        noted = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _note(place: Place, noted: dict[str, Any]) -> None:
    marker = make_state_directory(place.prefix) / _MARKER
    marker.write_text(json.dumps(noted), encoding="ascii")


def _is_empty(folder: Path) -> bool:
    return all(path.name == ".torchenv" for path in folder.iterdir())


def _clear(prefix: Path) -> None:
    """Remove all of an environment but what locks it."""
    for path in sorted(prefix.iterdir()):
        if path.name == ".torchenv":
            for kept in sorted(path.iterdir()):
                if kept.name != "preinstall":
                    _remove(kept)
        else:
            _remove(path)


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
