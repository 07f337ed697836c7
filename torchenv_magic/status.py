"""What is here and what would be chosen: one look at host, environment and catalog."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torchenv_magic.accelerators import Host, detect
from torchenv_magic.accelerators.platform import read_platform
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.current import CurrentCatalog, Refresh
from torchenv_magic.errors import (
    BusyError,
    InstallCancelled,
    InstallError,
    PlanError,
    TargetError,
    TorchEnvError,
    UvError,
)
from torchenv_magic.installation.settings import mirror_base
from torchenv_magic.interpreter import Interpreter, running_interpreter
from torchenv_magic.selection import Request, Selection, select
from torchenv_magic.state import state_directory

# A selection takes no look at what is installed, which is most of what a status takes.
if TYPE_CHECKING:
    from torchenv_magic.environment import Environment

__all__ = [
    "Status",
    "read_repaired",
    "read_selection",
    "read_status",
    "say_what_stands",
    "status_for",
    "verdict",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One look. Nothing in it changes anything."""

    host: Host
    environment: Environment
    selection: Selection
    installed_backend: Backend | None
    """The build of the installed torch; None where none is there, or it doesn't say."""
    recovered: str | None = None
    """What an interrupted install had left, if it had: one sentence."""
    unrepaired: str | None = None
    """Why what an install left, or is about to leave, was not touched: mostly one still runs."""
    preinstall: str | None = None
    """How what began with the Jupyter server stands, if anything did: one sentence."""

    @property
    def torch(self) -> str | None:
        """The version of the installed torch."""
        package = self.environment.installed("torch")
        return package.version if package else None

    @property
    def installed(self) -> str:
        """The installed torch in words, with what is wrong with it on this host."""
        if self.torch is None:
            return "PyTorch is not installed"
        problem = verdict(self.selection, self.installed_backend)
        build = (
            ""
            if "+" in self.torch or self.installed_backend is None
            else (f" ({self.installed_backend})")
        )
        return f"torch {self.torch}{build}{f' — {problem}' if problem else ''}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """The selection's, without those that the host's findings say already."""
        said = {finding.with_hint for finding in self.host.findings}
        return tuple(text for text in self.selection.warnings if text not in said)

    def __str__(self) -> str:
        devices = [str(accelerator) for accelerator in self.host.accelerators]
        rows = [
            ("accelerator", "; ".join(devices) or "none found"),
            ("environment", str(self.environment)),
            ("installed", self.installed),
        ]
        chosen = self.selection.backend
        name = f"{chosen} with torch {self.selection.torch}" if chosen else "nothing fits"
        rows.append(("recommended", f"{name} — {self.selection.reason}"))
        lines = [f"{title:<13}{text}" for title, text in rows]
        lines += [f"{'note':<13}{finding.with_hint}" for finding in self.host.findings]
        lines += [f"{'warning':<13}{warning}" for warning in self.warnings]
        if self.recovered:
            lines.append(f"{'repaired':<13}{self.recovered}")
        if self.unrepaired:
            lines.append(f"{'note':<13}{self.unrepaired}")
        if self.preinstall:
            lines.append(f"{'preinstall':<13}{self.preinstall}")
        return "\n".join(lines)


def verdict(selection: Selection, installed: Backend | None) -> str | None:
    """Return what is wrong with an installed build on this host, or None where it fits."""
    if installed is None:
        return None
    for alternative in selection.alternatives:
        if alternative.backend == installed and not alternative.fits:
            return alternative.reason
    usable = any(item.fits and item.backend.kind != "cpu" for item in selection.alternatives)
    if installed.kind == "cpu" and usable and selection.backend not in (None, installed):
        return "does not use the accelerator"
    return None


def read_status(
    request: Request | None = None,
    *,
    python: Path | None = None,
    refresh: Refresh = "never",
    index_base: str | None = None,
) -> Status:
    """Look at the host and at the environment of `python`, and select for `request`.

    What an interrupted install left is repaired first.

    Parameters
    ----------
    refresh
        What is asked of the PyTorch index: nothing (`never`: what it said in the last days is used,
        else the shipped catalog), all that is a day old where the backend is open, for a second at
        most and without a word where it fails (`stale`), or everything (`always`).
    index_base
        The mirror that is asked in its place; None for the one that is set here, if one is.

    Raises
    ------
    TargetError, RequestError
    """
    request = request or Request()
    by_variable = os.environ.get("UV_TORCH_BACKEND", "").strip().lower() not in ("", "auto")
    if refresh == "stale" and (request.backend or by_variable):
        refresh = "never"
    platform = read_platform(environ=os.environ)
    # Answers while host and environment are looked at.
    current = CurrentCatalog(
        refresh,
        wheel_platform=platform.wheel_platform,
        environ=os.environ,
        mirror=mirror_base(index_base, prefix=_prefix(python)),
    )
    environment, recovered, unrepaired = read_repaired(python)
    host = detect()
    selection = _select(
        host,
        request,
        environment.interpreter,
        current,
        installed=tuple(package.name for package in environment.packages),
    )
    from torchenv_magic.environment import installed_backend

    return Status(
        host=host,
        environment=environment,
        selection=selection,
        installed_backend=installed_backend(environment),
        recovered=recovered,
        unrepaired=unrepaired,
    )


def status_for(request: Request, status: Status) -> Status:
    """Return the same look with what is chosen for another request; nothing is asked or read anew.

    Raises
    ------
    RequestError
    """
    current = CurrentCatalog(
        "never",
        wheel_platform=status.host.platform.wheel_platform,
        environ=os.environ,
        mirror=mirror_base(prefix=status.environment.prefix),
    )
    selection = _select(
        status.host,
        request,
        status.environment.interpreter,
        current,
        installed=tuple(package.name for package in status.environment.packages),
    )
    return replace(status, selection=selection)


def read_selection(
    request: Request | None = None, *, python: Path | None = None, refresh: Refresh = "never"
) -> Selection:
    """Select for `request` with hardly a look at what is installed; `refresh` as in `read_status`.

    Raises
    ------
    TargetError, RequestError
    """
    platform = read_platform(environ=os.environ)
    current = CurrentCatalog(
        refresh,
        wheel_platform=platform.wheel_platform,
        environ=os.environ,
        mirror=mirror_base(prefix=_prefix(python)),
    )
    if python is None:
        interpreter, installed = running_interpreter(), _distributions_here()
    else:
        from torchenv_magic.environment import read_environment

        environment = read_environment(python)
        interpreter = environment.interpreter
        installed = tuple(package.name for package in environment.packages)
    return _select(detect(), request or Request(), interpreter, current, installed=installed)


def _prefix(python: Path | None) -> Path:
    """Return where the environment of `python` lies, without starting it."""
    if python is None:
        return Path(sys.prefix)
    return python if python.is_dir() else python.parent.parent


def _distributions_here() -> tuple[str, ...]:
    """Return the names of what is installed for the running interpreter, by its folders alone."""
    names = []
    for folder in sys.path:
        if folder.endswith(("site-packages", "dist-packages")):
            with contextlib.suppress(OSError):
                found = (path.name for path in Path(folder).iterdir())
                names += [
                    name.partition("-")[0]
                    for name in found
                    if name.endswith((".dist-info", ".egg-info"))
                ]
    return tuple(names)


def _select(
    host: Host,
    request: Request,
    interpreter: Interpreter,
    current: CurrentCatalog,
    *,
    installed: tuple[str, ...] = (),
) -> Selection:
    catalog, note = current.read()
    selection = select(
        host,
        request,
        interpreter=interpreter,
        catalog=catalog,
        environ=os.environ,
        installed=installed,
    )
    if note:
        selection = replace(selection, warnings=(*selection.warnings, note))
    return selection


def read_repaired(python: Path | None = None) -> tuple[Environment, str | None, str | None]:
    """Return the environment of `python` as it is after a repair, and what there was to repair.

    The last is why what is there was left alone: who only looks must not fail because another
    install works on it.

    Raises
    ------
    TargetError
        There is no such interpreter.
    """
    from torchenv_magic.environment import read_environment

    environment = read_environment(python)
    # Every install begins with this folder, and nothing is to be repaired where none began. What
    # repairs is also slow to import: half of the time of `torchenv select`.
    if not state_directory(environment.prefix).exists():
        return environment, None, None
    from torchenv_magic.installation.transaction import has_left_overs, is_interrupted

    if not has_left_overs(environment):
        return environment, None, None
    from torchenv_magic.installation.install import recover_environment

    changing = is_interrupted(environment)
    try:
        recovered = recover_environment(environment)
    except (InstallError, TargetError) as error:
        return environment, None, error.message
    # What was changing may also have come to its end by itself meanwhile.
    if changing or recovered is not None:
        environment = read_environment(python)
    return environment, recovered, None


def say_what_stands(error: TorchEnvError, environment: Environment) -> None:
    """Add to the error of an install which environment there is now, where it doesn't say so."""
    from torchenv_magic.installation.transaction import is_interrupted

    # A refusal is one before anything is begun, and who cancelled was told with the same words.
    failed = isinstance(error, PlanError | UvError | InstallError)
    refused = isinstance(error, BusyError | InstallCancelled)
    if failed and not refused and not is_interrupted(environment):
        error.standing = "The environment is as it was"
