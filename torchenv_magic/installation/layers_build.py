"""Build a layer, look through one, and remove one: what an admin does.

Built in a folder beside its place and renamed to it once it is whole and proven: an environment is
made of it that imports PyTorch. The manifest is the last file that is written.
"""

# Strings in the walks, as a layer has tens of thousands of files.
# ruff: noqa: PTH101, PTH118, PTH123

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import Environment, read_environment, run_interpreter, shown_path
from torchenv_magic.errors import DiskSpaceError, InstallError, PlanError, TargetError, UvError
from torchenv_magic.installation.failures import explain
from torchenv_magic.installation.footprint import metadata_directories
from torchenv_magic.installation.layers import attach_new
from torchenv_magic.installation.layers_links import pieces_of
from torchenv_magic.installation.layers_record import (
    FILES,
    MANIFEST,
    Layer,
    LayerPackage,
    platform_of_here,
    read_layer,
)
from torchenv_magic.installation.layers_trust import path_problem, tree_problem
from torchenv_magic.installation.own_wheel import wheel_of
from torchenv_magic.installation.plan import Source
from torchenv_magic.installation.progress import Event, OnEvent, format_bytes, guarded
from torchenv_magic.installation.settings import Sites
from torchenv_magic.installation.sources import (
    index_source,
    source_environment,
    wheel_folders,
    wheels_in,
)
from torchenv_magic.installation.uv import Cancellation, Completed, Lines, Uv, find_uv
from torchenv_magic.installation.wheelhouse import check_builds, lock_wheels, read_wheels
from torchenv_magic.selection import Request
from torchenv_magic.serialization import to_json

__all__ = [
    "Checked",
    "build_layer",
    "check_layer",
    "make_open",
    "own_distribution",
    "remove_layer",
    "with_a_kernel",
]

_OWN_NAME = "torchenv-magic"
# A kernel, and pip for `%pip install`, which people write in notebooks.
_BESIDES = ("ipykernel>=6.29", "pip")
_STAGE = ".torchenv-layer-"
_PROOF = "import ipykernel, torch, torchenv_magic.notebook.magic; print(torch.__version__)"
_PROOF_SECONDS = 300.0
_PART = 1 << 20


def build_layer(
    parent: Path,
    request: Request,
    backend: Backend,
    *,
    python: Path | None = None,
    sites: Sites,
    exclusion: str | None = None,
    again: bool = False,
    command: str = "",
    on_event: OnEvent | None = None,
    cancellation: Cancellation | None = None,
) -> Layer:
    """Build a layer below `parent`, or leave nothing.

    It is the builder's (root's, best), for everybody to read and for nobody else to write.

    Parameters
    ----------
    python
        The interpreter that it is for; None for the one that runs this.
    again
        Takes the layer that is there already, if it was built of the same wish.

    Raises
    ------
    InstallError, TargetError
        It is there already, somebody else can write the folder, or what was built does not work.
    PlanError, SourceError, UvError
        What is wanted can't be resolved or fetched.
    InstallCancelled
        Nothing of it is left.
    """
    tell, cancellation = guarded(on_event), cancellation or Cancellation()
    if sys.platform == "win32":
        raise TargetError(
            "A layer is attached by links, which Windows gives to few people",
            hint="`torchenv download` fills a folder of wheels that all can read",
        )
    environment = read_environment(python)
    distribution = own_distribution()
    parent = parent.absolute()
    try:
        make_open(parent)
        if problem := path_problem(parent):
            raise InstallError(
                f"A layer in `{shown_path(parent)}` would be of no use: {problem}",
                hint="name a folder that, with all above it, only root or you can write",
            )
        _sweep(parent)
        stage = parent / f"{_STAGE}{os.getpid()}-{uuid.uuid4().hex[:8]}"
        stage.mkdir()
        try:
            there = _fill(
                stage,
                environment,
                distribution,
                request,
                backend,
                parent=parent,
                sites=sites,
                exclusion=exclusion,
                again=again,
                tell=tell,
                cancellation=cancellation,
            )
            if there is not None:
                return there
            tell(Event(phase="check", message="Sealing the layer"))
            layer = _seal(stage, environment, request, backend, command)
            _prove(replace(layer, directory=stage), environment, cancellation, tell)
            goal = _goal(parent, layer.torch, environment)
            try:
                stage.rename(goal)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
                raise _there(goal) from None
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskSpaceError(
                f"There is no room left for the layer: `{error.filename or parent}`",
                hint="free some space there, or name a folder on a larger disk",
            ) from error
        raise InstallError(
            f"The layer was not built: `{error.filename or parent}`: {error.strerror}",
            hint="name a folder that you can write to",
        ) from error
    tell(Event(phase="done", message="Built the layer"))
    return replace(layer, directory=goal)


def _goal(parent: Path, torch: str, environment: Environment) -> Path:
    return parent / f"{torch}-{environment.interpreter.tag}-{platform_of_here()}"


def _there(goal: Path) -> InstallError:
    return InstallError(
        f"`{shown_path(goal)}` is there already, and environments may have links to it",
        hint="build into another folder, or see `torchenv layer -h` for how it is removed",
    )


def own_distribution() -> importlib.metadata.Distribution:
    """Return what is installed here of torchenv_magic.

    Raises
    ------
    InstallError
    """
    try:
        return importlib.metadata.distribution(_OWN_NAME)
    except importlib.metadata.PackageNotFoundError:
        raise InstallError(
            "What is to be shared can't have torchenv_magic: it is not installed as a package here",
            hint="install it (`pip install torchenv-magic`), then try again",
        ) from None


def make_open(folder: Path) -> None:
    """Make the folder and those above it, for everybody to read whatever the umask says."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir()
        path.chmod(0o755)


def _sweep(parent: Path) -> None:
    """Remove what a build that was killed has left; another one that runs stays."""
    for left in parent.glob(f"{_STAGE}*"):
        pid = left.name.removeprefix(_STAGE).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)


# ----------------------------------------------------------------------------------------- filling


def _fill(
    stage: Path,
    environment: Environment,
    distribution: importlib.metadata.Distribution,
    request: Request,
    backend: Backend,
    *,
    parent: Path,
    sites: Sites,
    exclusion: str | None,
    again: bool,
    tell: OnEvent,
    cancellation: Cancellation,
) -> Layer | None:
    """Install what the layer has into its stage, by uv, from a lock with hashes.

    Returns the one that is there already and is taken in its place; else None.
    """
    source, pins = _source(request, backend, environment, sites, exclusion)
    everything = with_a_kernel(
        replace(request, requirements=(*request.requirements, *pins)), distribution
    )
    folders = [*sites.find_links, *map(str, wheel_folders())]
    sites = replace(sites, find_links=tuple(dict.fromkeys(folders)))
    tell(Event(phase="resolve", message=f"Asking {source} what is needed"))
    python = environment.interpreter.executable
    lock = _lock(
        source,
        lambda options: lock_wheels(
            everything,
            backend,
            source,
            sites,
            python=python,
            exclusion=exclusion,
            options=options,
            tell=tell,
            cancellation=cancellation,
        ),
    )
    wheels = read_wheels(lock)
    check_builds(wheels, backend, source)
    torch = next(wheel.version for wheel in wheels if wheel.name == "torch")
    goal = _goal(parent, torch, environment)
    if os.path.lexists(goal):
        if again and (built := _built_before(goal, request, backend)) is not None:
            return built
        raise _there(goal)
    size = sum(wheel.size_bytes or 0 for wheel in wheels)
    about = f", up to {format_bytes(size)} to fetch" if size else ""
    tell(Event(phase="download", message=f"Installing {len(wheels)} packages{about}"))
    uv = find_uv()
    with tempfile.TemporaryDirectory(prefix="torchenv-") as folder:
        file = Path(folder, "pylock.toml")
        file.write_text(lock, encoding="utf-8")
        install = _installing(uv, python, stage, tell, cancellation)
        completed = install(
            ["--preview-features=pylock", f"--requirements={file}"],
            source_environment(source, os.environ),
        )
        if completed.returncode != 0:
            raise explain(completed, subject=f"torch for {backend}")
        try:
            wheel = wheel_of(distribution, Path(folder))
        except LookupError:
            raise InstallError(
                "The layer can't have torchenv_magic: it was installed without a list of its files",
                hint="install it again (`pip install --force-reinstall torchenv-magic`)",
            ) from None
        # By its version, not by its address, which will not be there any more.
        completed = install(
            [
                "--offline",
                "--no-cache",
                "--no-index",
                f"--find-links={wheel.parent}",
                f"{_OWN_NAME}=={distribution.version}",
            ],
            dict(os.environ),
        )
        if completed.returncode != 0:
            raise explain(completed, subject="torchenv_magic")
    return None


def _built_before(goal: Path, request: Request, backend: Backend) -> Layer | None:
    """Return the layer there, where it has all that is asked for; its name tells the rest."""
    layer = read_layer(goal)
    wanted = set(request.requirements) <= set(layer.requirements)
    return layer if wanted and layer.backend == backend else None


def _source(
    request: Request,
    backend: Backend,
    environment: Environment,
    sites: Sites,
    exclusion: str | None,
) -> tuple[Source, tuple[str, ...]]:
    """Return where PyTorch comes from, and the versions that are there where it is a folder."""
    for folder in sites.find_links:
        offer = wheels_in(
            Path(folder), request, backend, environment.interpreter, exclusion=exclusion
        )
        if offer is not None and not offer.missing:
            source = Source(
                kind="folder",
                location=folder,
                origin=sites.find_links_origin,
                also=tuple(other for other in sites.find_links if other != folder),
            )
            return source, tuple(f"{name}=={version}" for name, version in offer.pins)
    return index_source(backend, sites), ()


def _lock(source: Source, lock: Callable[[list[str]], str]) -> str:
    if source.kind == "folder":
        # A folder that was filled for this has all of it, and an image may be built offline.
        with contextlib.suppress(PlanError, UvError):
            return lock(["--offline", "--no-index"])
    return lock([])


def _installing(
    uv: Uv, python: Path, stage: Path, tell: OnEvent, cancellation: Cancellation
) -> Callable[[list[str], dict[str, str]], Completed]:
    lines = Lines(lambda line: tell(Event(phase="download", log=line)))

    def install(arguments: list[str], environ: dict[str, str]) -> Completed:
        return uv.run(
            [
                "pip",
                "install",
                f"--python={python}",
                f"--prefix={stage}",
                "--no-deps",
                # Its modes are changed, and those of uv's cache must not be: no file is shared.
                "--link-mode=copy",
                "--compile-bytecode",
                *arguments,
            ],
            # An image's tools set all times anew, and a user can't write what Python would then
            # compile again each time.
            environ={**environ, "PYC_INVALIDATION_MODE": "UNCHECKED_HASH"},
            on_text=lines.feed,
            cancellation=cancellation,
        )

    return install


def with_a_kernel(request: Request, distribution: importlib.metadata.Distribution) -> Request:
    """Return the request with what a kernel and torchenv_magic need besides."""
    needed = [text for text in distribution.requires or () if not _is_extra(text)]
    texts = dict.fromkeys([*request.requirements, *_BESIDES, *needed])
    return replace(request, requirements=tuple(texts))


def _is_extra(text: str) -> bool:
    marker = Requirement(text).marker
    return marker is not None and "extra" in str(marker)


# ----------------------------------------------------------------------------------------- sealing


def _seal(
    stage: Path, environment: Environment, request: Request, backend: Backend, command: str
) -> Layer:
    """Let nobody else write what was built, and write down what it is."""
    [site] = [path.parent for path in stage.glob("lib*/python*/site-packages/torch-*.dist-info")]
    below = site.relative_to(stage).as_posix()
    found = {name: paths[0] for name, paths in metadata_directories([site]).items()}
    pieces = pieces_of(stage, below, {name: path.name for name, path in found.items()})
    packages = tuple(
        LayerPackage(
            name=piece.name,
            version=headers.get("Version", ""),
            requires=tuple(headers.get_all("Requires-Dist") or ()),
            piece=piece,
        )
        for piece in pieces
        for headers in [HeaderParser().parsestr(_metadata(found[piece.name]))]
    )
    _set_modes(stage)
    rows, size = _files(stage)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    content = text.getvalue().encode("utf-8", "surrogateescape")
    _write(stage / FILES, content)
    layer = Layer(
        directory=Path(),
        torch=next(package.version for package in packages if package.name == "torch"),
        backend=backend,
        python=environment.interpreter.tag,
        platform=platform_of_here(),
        glibc=_glibc(found.values()),
        site=below,
        requirements=request.requirements,
        packages=packages,
        made=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        size_bytes=size,
        files=hashlib.sha256(content).hexdigest(),
    )
    _write(stage / MANIFEST, json.dumps(to_json(layer), indent=1).encode("ascii"))
    return layer


def _metadata(information: Path) -> str:
    text = (information / "METADATA").read_text(encoding="utf-8", errors="replace")
    return text.partition("\n\n")[0]


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o444)


def _set_modes(stage: Path) -> None:
    for place, _, names in os.walk(stage):
        os.chmod(place, 0o755)  # noqa: S103  (everybody reads it)
        for name in names:
            path = os.path.join(place, name)
            executable = os.lstat(path).st_mode & stat.S_IXUSR
            os.chmod(path, 0o555 if executable else 0o444)


def _files(root: Path) -> tuple[list[tuple[str, int, str]], int]:
    """Return path, size and hash of every file, and the sum of the sizes."""
    paths = sorted(_walk(root))
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        digests = list(pool.map(lambda path: _digest(os.path.join(root, path)), paths))
    rows = [(path, size, digest) for path, (size, digest) in zip(paths, digests, strict=True)]
    return rows, sum(size for _, size, _ in rows)


def _walk(root: Path) -> Iterator[str]:
    for place, _, names in os.walk(root):
        for name in names:
            path = os.path.relpath(os.path.join(place, name), root)
            if path not in (FILES, MANIFEST):
                yield path


def _digest(path: str) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb") as file:
        while part := file.read(_PART):
            size += len(part)
            digest.update(part)
    return size, digest.hexdigest()


def _glibc(informations: Iterable[Path]) -> str:
    """Return the oldest glibc that all wheels run with: of a wheel's tags the oldest counts."""
    newest = (0, 0)
    for information in informations:
        try:
            text = (information / "WHEEL").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        tags = "\n".join(re.findall(r"^Tag: (.*)$", text, re.MULTILINE))
        versions = [(int(a), int(b)) for a, b in re.findall(r"manylinux_(\d+)_(\d+)_", tags)]
        versions += [(2, {"1": 5, "2010": 12, "2014": 17}[old])
                     for old in re.findall(r"manylinux(1|2010|2014)_", tags)]  # fmt: skip
        newest = max(newest, min(versions, default=(0, 0)))
    return ".".join(map(str, newest)) if newest[0] else ""


def _prove(
    layer: Layer, environment: Environment, cancellation: Cancellation, tell: OnEvent
) -> None:
    """Make an environment of the layer, and let it import what it is for.

    Raises
    ------
    InstallError
    """
    tell(Event(phase="check", message="Trying the layer"))
    with tempfile.TemporaryDirectory(prefix="torchenv-") as folder:
        python = attach_new(
            layer, Path(folder).resolve() / "trial", environment.interpreter.executable
        )
        ended = run_interpreter(
            python,
            ["-I", "-B", "-c", _PROOF],
            timeout_seconds=_PROOF_SECONDS,
            stopped_by=cancellation.stops,
        )
    cancellation.raise_if_requested()
    if ended.status != 0 or not ended.output.strip():
        lines = [line for line in ended.errors.splitlines() if line.strip()] or ["it said nothing"]
        raise InstallError(
            f"The layer was not built, as PyTorch can't be imported from it: {lines[-1].strip()}",
            hint="choose another build (`torchenv list`)",
            detail=ended.errors,
        )


# ----------------------------------------------------------------------------- looking and removing


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a walk through a layer has found."""

    layer: Layer
    files: int
    problems: tuple[str, ...]
    """Files that are not as they were built, one a line."""
    writable: str
    """Who else can write something in it; empty where nobody can."""
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.problems and not self.writable

    def summary(self) -> dict[str, Any]:
        """Return what a program may want to know."""
        return {
            "layer": self.layer.summary(),
            "files": self.files,
            "problems": list(self.problems),
            "writable": self.writable,
        }

    def __str__(self) -> str:
        if self.ok:
            return (
                f"{shown_path(self.layer.directory)}: all {self.files} files are as they were "
                f"built ({self.layer})"
            )
        lines = [f"{shown_path(self.layer.directory)} is not as it was built:"]
        lines += [f"  {problem}" for problem in self.problems[:20]]
        if len(self.problems) > 20:
            lines.append(f"  and {len(self.problems) - 20} more")
        if self.writable:
            lines.append(f"  others can change it: {self.writable}")
        return "\n".join(lines)


def check_layer(directory: Path) -> Checked:
    """Compare every file of a layer with what was built, by size and hash.

    Raises
    ------
    InstallError
        It is no layer, or its list of files is not the one that was built.
    """
    started = time.monotonic()
    layer = read_layer(directory)
    try:
        content = (layer.directory / FILES).read_bytes()
        if hashlib.sha256(content).hexdigest() != layer.files:
            raise InstallError(
                f"The list of files of `{shown_path(layer.directory)}` was changed",
                hint="build the layer anew",
            )
        wanted = {
            row[0]: (int(row[1]), row[2])
            for row in csv.reader(io.StringIO(content.decode("utf-8", "surrogateescape")))
        }
        rows, _ = _files(layer.directory)
    except OSError as error:
        raise InstallError(
            f"`{shown_path(layer.directory)}` can't be read: {error.strerror}",
            hint="see who may read it",
        ) from error
    there = {path: (size, digest) for path, size, digest in rows}
    problems = [f"{path} is missing" for path in wanted.keys() - there.keys()]
    problems += [f"{path} was added" for path in there.keys() - wanted.keys()]
    problems += [
        f"{path} was changed"
        for path in wanted.keys() & there.keys()
        if wanted[path] != there[path]
    ]
    return Checked(
        layer=layer,
        files=len(wanted),
        problems=tuple(sorted(problems)),
        writable=tree_problem(layer.directory),
        seconds=time.monotonic() - started,
    )


def remove_layer(directory: Path) -> int:
    """Delete a layer, and return the bytes that are free again.

    Nobody can know who has links to it: their PyTorch is gone with it.

    Raises
    ------
    InstallError
        It is no layer, or it can't be deleted.
    """
    layer = read_layer(directory)
    # Aside in one step, so that nothing takes half a layer.
    aside = layer.directory.with_name(f"{_STAGE}{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        layer.directory.rename(aside)
        shutil.rmtree(aside)
    except OSError as error:
        raise InstallError(
            f"`{shown_path(layer.directory)}` can't be removed: {error.strerror}",
            hint="let its owner remove it",
        ) from error
    return layer.size_bytes
