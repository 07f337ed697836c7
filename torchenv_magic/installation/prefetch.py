"""Fill an image, or a volume, with what its users will install: wheels, or layers.

For several backends at once, as one image serves pods with and without an accelerator. What it
leaves is for everybody to read and for nobody else to write: `TORCHENV_FIND_LINKS` names a folder
of wheels to the users' installs, `TORCHENV_LAYERS` one of layers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import read_environment, shown_path
from torchenv_magic.errors import InstallError
from torchenv_magic.installation.layers import Layer
from torchenv_magic.installation.layers_build import build_layer, own_distribution, with_a_kernel
from torchenv_magic.installation.layers_trust import path_problem
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
    writable: str = ""
    """Who else can write it, as half a sentence; empty where nobody can."""

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
        if self.writable:
            said += f"\nNote: others can change what lies there: {self.writable}"
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
    exclusion: str | None = None,
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

    Raises
    ------
    PlanError, SourceError, UvError, TargetError, InstallError, DiskSpaceError
        One of them can't be had. What is whole stays, and the same line goes on from there.
    InstallCancelled
    """
    directory = directory.absolute()
    if layers:
        built = [
            build_layer(
                directory,
                request,
                backend,
                python=python,
                sites=sites,
                exclusion=exclusion,
                command=command,
                on_event=on_event,
                cancellation=cancellation,
            )
            for backend in backends
        ]
        return Prefetched(directory=directory, backends=tuple(backends), layers=tuple(built))
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
            exclusion=exclusion,
            on_event=on_event,
            cancellation=cancellation,
        )
        wheels |= {wheel.file: wheel for wheel in house.wheels}
    try:
        _close(directory, wheels)
    except OSError as error:
        raise InstallError(
            f"`{shown_path(directory)}` can't be made read-only: {error.strerror}",
            hint="let the folder be that of who fills it",
        ) from error
    return Prefetched(
        directory=directory,
        backends=tuple(backends),
        wheels=tuple(wheels[file] for file in sorted(wheels)),
        writable="" if sys.platform == "win32" else path_problem(directory),
    )


def _close(directory: Path, wheels: dict[str, Wheel]) -> None:
    """Write the hashes down, and let everybody read and nobody write."""
    lines = {wheel.file: wheel.sha256 for wheel in wheels.values()}
    hashes = directory / HASHES
    if hashes.is_file():
        # Of an earlier run, for other backends.
        for line in hashes.read_text(encoding="utf-8").splitlines():
            digest, _, file = line.partition("  ")
            if (directory / file).is_file():
                lines.setdefault(file, digest)
    draft = hashes.with_name(f"{HASHES}.new")
    text = "".join(f"{lines[file]}  {file}\n" for file in sorted(lines))
    draft.write_text(text, encoding="utf-8")
    draft.replace(hashes)
    if sys.platform != "win32":
        for file in (*lines, HASHES):
            (directory / file).chmod(0o444)
        directory.chmod(0o755)
