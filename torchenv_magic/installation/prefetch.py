"""Fill an image, or a volume, with what its users will install: wheels, or layers.

For several backends at once, as one image serves pods with and without an accelerator. What it
leaves is for everybody to read and for nobody else to write: `TORCHENV_FIND_LINKS` names a folder
of wheels to the users' installs, `TORCHENV_LAYERS` one of layers.
"""

from __future__ import annotations

import os
import stat
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import read_environment, shown_path
from torchenv_magic.errors import InstallError
from torchenv_magic.installation.layers import Layer
from torchenv_magic.installation.layers_build import (
    build_layer,
    make_open,
    own_distribution,
    with_a_kernel,
)
from torchenv_magic.installation.layers_trust import path_problem, tree_problem
from torchenv_magic.installation.progress import OnEvent, format_bytes
from torchenv_magic.installation.settings import Sites
from torchenv_magic.installation.uv import Cancellation
from torchenv_magic.installation.wheelhouse import Wheel, fetch_wheels
from torchenv_magic.selection import Request

__all__ = ["HASHES", "Prefetched", "prefetch"]

HASHES = "SHA256SUMS"
"""As `sha256sum --check` reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetched:
    """What lies in the folder now."""

    directory: Path
    backends: tuple[Backend, ...]
    wheels: tuple[Wheel, ...] = ()
    layers: tuple[Layer, ...] = ()

    def __str__(self) -> str:
        place = shown_path(self.directory)
        names = " and ".join(map(str, self.backends))
        if self.layers:
            said = f"Built {_count(len(self.layers), 'layer')} for {names} in {place}"
            said += f"\nSet TORCHENV_LAYERS={self.directory} for the users"
        else:
            size = format_bytes(sum(wheel.size_bytes or 0 for wheel in self.wheels))
            said = f"{_count(len(self.wheels), 'wheel')} ({size}) for {names} in {place}"
            said += f"\nSet TORCHENV_FIND_LINKS={self.directory} for the users"
        return said


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def prefetch(
    directory: Path,
    request: Request,
    backends: Sequence[Backend],
    *,
    layers: bool = False,
    python: Path | None = None,
    sites: Sites,
    exclusions: Mapping[Backend, str] | None = None,
    command: str = "",
    on_event: OnEvent | None = None,
    cancellation: Cancellation | None = None,
) -> Prefetched:
    """Bring what installs of the request take into `directory`, for each of the backends.

    Parameters
    ----------
    layers
        Builds layers in place of a folder of wheels.
    python
        The interpreter that they are for; None for the one that runs this.
    exclusions
        For which backend a constraint such as `torch<2.11` holds.

    Raises
    ------
    PlanError, SourceError, UvError, TargetError, InstallError, DiskSpaceError
        One of them can't be had, or somebody else can write the folder. What is whole stays, and
        the same line goes on from there.
    InstallCancelled
    """
    directory, exclusions = directory.absolute(), exclusions or {}
    if layers:
        built = [
            build_layer(
                directory,
                request,
                backend,
                python=python,
                sites=sites,
                exclusion=exclusions.get(backend),
                again=True,
                command=command,
                on_event=on_event,
                cancellation=cancellation,
            )
            for backend in backends
        ]
        return Prefetched(directory=directory, backends=tuple(backends), layers=tuple(built))
    if sys.platform != "win32":
        try:
            _open(directory)
        except OSError as error:
            raise _not_ours(directory, error) from error
    everything = with_a_kernel(request, own_distribution())
    version = None if python is None else read_environment(python).interpreter.version
    wheels: dict[str, Wheel] = {}
    for backend in backends:
        house = fetch_wheels(
            directory,
            everything,
            backend,
            sites=sites,
            python_version=None if version is None else ".".join(version.split(".")[:2]),
            exclusion=exclusions.get(backend),
            on_event=on_event,
            cancellation=cancellation,
        )
        wheels |= {wheel.file: wheel for wheel in house.wheels}
    try:
        _close(directory, wheels)
    except OSError as error:
        raise _not_ours(directory, error) from error
    return Prefetched(
        directory=directory,
        backends=tuple(backends),
        wheels=tuple(wheels[file] for file in sorted(wheels)),
    )


def _not_ours(directory: Path, error: OSError) -> InstallError:
    return InstallError(
        f"`{shown_path(directory)}` can't be made read-only: {error.strerror}",
        hint="let the folder be that of who fills it",
    )


def _open(directory: Path) -> None:
    """Make the folder, and check that nobody else can write it, or has put something there.

    What root then writes, follows and sets modes of would else be up to them.

    Raises
    ------
    InstallError, OSError
    """
    make_open(directory)
    _keep_to_owner(directory)
    problem = path_problem(directory)
    if not problem:
        # What an earlier run has left, where the umask lets a group write.
        for path in directory.rglob("*"):
            _keep_to_owner(path)
        problem = tree_problem(directory)
    if problem:
        raise InstallError(
            f"Wheels in `{shown_path(directory)}` would be of no use: {problem}",
            hint="name a folder that, with all above it, only root or you can write",
        )


def _keep_to_owner(path: Path) -> None:
    """Let nobody else write a file or folder of one's own; what is a link stays as it is."""
    status = path.lstat()
    own = sys.platform != "win32" and status.st_uid == os.geteuid()
    if own and not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o022:
        path.chmod(stat.S_IMODE(status.st_mode) & ~0o022)


def _close(directory: Path, wheels: dict[str, Wheel]) -> None:
    """Write the hashes down, and let everybody read and nobody write."""
    lines = {wheel.file: wheel.sha256 for wheel in wheels.values()}
    hashes = directory / HASHES
    if _is_plain(hashes):
        # Of an earlier run, for other backends.
        for line in hashes.read_text(encoding="utf-8").splitlines():
            digest, _, file = line.partition("  ")
            # Its lines are followed only to wheels that lie beside it.
            if file == Path(file).name and file.endswith(".whl") and _is_plain(directory / file):
                lines.setdefault(file, digest)
    text = "".join(f"{lines[file]}  {file}\n" for file in sorted(lines))
    # A name that nobody knows, and a file that is made: no link that waits there is followed.
    draft = hashes.with_name(f".{HASHES}.{uuid.uuid4().hex}")
    try:
        with draft.open("x", encoding="utf-8") as opened:
            opened.write(text)
        draft.replace(hashes)
    finally:
        draft.unlink(missing_ok=True)
    if sys.platform != "win32":
        for file in (*lines, HASHES):
            if _is_plain(directory / file):
                (directory / file).chmod(0o444)
        directory.chmod(0o755)


def _is_plain(path: Path) -> bool:
    """Whether it is a file, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
