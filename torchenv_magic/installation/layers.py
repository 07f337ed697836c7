"""Attach a layer to an environment, take it away again, and make an environment that is one.

An admin builds a layer once (`layers_build`); each user's environment then has links to it, in well
under a second and a few megabytes. Nothing here writes to a layer.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from torchenv_magic.environment import (
    FAMILY_MEMBERS,
    Environment,
    InstalledPackage,
    check_target,
    is_satellite,
    shown_path,
)
from torchenv_magic.errors import ConflictError, InstallError, TargetError
from torchenv_magic.expectation import Expectation, read_expectation, write_expectation
from torchenv_magic.installation.footprint import (
    entries,
    metadata_directories,
    missing_files,
    roots,
    sites,
)
from torchenv_magic.installation.history import Entry, add_entry, new_entry
from torchenv_magic.installation.install import (
    Result,
    check_changes,
    look_after,
    nobody_else,
    read_again,
)
from torchenv_magic.installation.kept import read_kept
from torchenv_magic.installation.layers_links import INSTALLER, Piece, pieces_of, write_pieces
from torchenv_magic.installation.layers_record import (
    Choice,
    Layer,
    LayerPackage,
    Unusable,
    applies,
    choose_layer,
    closure,
    find_layers,
    meets,
    platform_of_here,
    read_layer,
    refused,
)
from torchenv_magic.installation.layers_trust import path_problem, tree_problem
from torchenv_magic.installation.plan import Change
from torchenv_magic.installation.progress import Event, OnEvent, guarded
from torchenv_magic.installation.transaction import Transaction, failure, recover
from torchenv_magic.installation.undo import read_undo, undo_install
from torchenv_magic.installation.uv import Cancellation
from torchenv_magic.installation.waiting import Hold, holding

__all__ = [
    "Choice",
    "Layer",
    "Unusable",
    "attach",
    "attach_new",
    "attached",
    "choose_layer",
    "detach",
    "find_layers",
    "read_layer",
]

_SOURCE = "the layer "
"""How the history names where packages came from."""
_LEFT_SECONDS = 3600.0
"""Nobody takes that long to make an environment of links."""


def _check_unwritten(layer: Layer, *, files: bool) -> None:
    """Check that nobody but root and this user can write the layer.

    Raises
    ------
    InstallError
    """
    problem = path_problem(layer.directory) or tree_problem(layer.directory, files=files)
    if problem:
        raise refused(layer.directory, problem)


# ------------------------------------------------------------------------------ a new environment


def attach_new(layer: Layer, folder: Path, base: Path, *, command: str = "") -> Path:
    """Make an environment at `folder` that takes all it has from the layer; return its Python.

    It has a kernel, pip, uv and torchenv_magic. It is there whole, or not at all.

    Parameters
    ----------
    base
        The interpreter that it is like: that of a virtual environment, or the one this came from.
    command
        The line that asked for it, for the environment's history.

    Raises
    ------
    TargetError
        The folder is there already, or the interpreter is another than the layer is for.
    InstallError
        Somebody else can write the layer, or the folder can't be made.
    """
    started = time.monotonic()
    _check_unwritten(layer, files=False)
    home, program = _home_of(base, layer)
    folder = folder.absolute()
    work = folder.with_name(f".{folder.name}.torchenv-{os.getpid()}-{time.monotonic_ns()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.torchenv-*"):
            # Of one that was killed; by its age, as another host may be at it in a shared home, or
            # sweeps it too.
            with contextlib.suppress(OSError):
                if time.time() - left.lstat().st_mtime > _LEFT_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
        _make_environment(work, home, program, layer.site)
        write_pieces(
            (package.piece for package in layer.packages),
            root=layer.directory,
            site=layer.site,
            prefix=work,
            python=folder / "bin" / "python",
        )
        # Nothing waits for the disk: on a busy one that takes seconds.
        write_expectation(work, _expectation(layer, layer.versions), lasting=False)
        changes = tuple(
            Change(name=package.name, action="install", after=package.version)
            for package in layer.packages
        )
        seconds = time.monotonic() - started
        add_entry(work, _entry(layer, f"{time.time_ns():x}"[-8:], command, changes, seconds))
        # A folder that is empty makes room by itself.
        work.rename(folder)
    except OSError as error:
        if folder.exists():
            raise TargetError(
                f"`{shown_path(folder)}` is there already, so no environment was made there",
                hint="name another folder, or move that one away",
            ) from error
        raise failure(error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder / "bin" / "python"


def _home_of(base: Path, layer: Layer) -> tuple[Path, str]:
    """Return the folder of the interpreter that `base` came from, and its name there.

    Raises
    ------
    TargetError
    """
    digits = layer.python.removeprefix("cp")
    program = f"python{digits[0]}.{digits[1:]}"
    home = base.absolute().parent
    try:
        for line in (home.parent / "pyvenv.cfg").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "home":
                home = Path(value.strip())
    except (OSError, UnicodeDecodeError):
        pass  # no virtual environment's
    if not (home / program).exists():
        raise TargetError(
            f"There is no `{program}` in `{shown_path(home)}`, and the layer is for {layer.python}",
            hint="name an interpreter of that version",
        )
    return home, program


def _make_environment(folder: Path, home: Path, program: str, site: str) -> None:
    """Make an empty virtual environment, by hand: a tenth of the time of `venv`'s or uv's own."""
    (folder / "bin").mkdir(parents=True)
    (folder / site).mkdir(parents=True)
    if site.startswith("lib/") and sys.platform != "darwin":
        # As venv does it: compiled packages of some systems ask for it.
        (folder / "lib64").symlink_to("lib")
    (folder / "bin" / "python").symlink_to(home / program)
    for name in ("python3", program):
        (folder / "bin" / name).symlink_to("python")
    version = program.removeprefix("python").removesuffix("t")
    lines = [f"home = {home}", "include-system-site-packages = false", f"version = {version}"]
    (folder / "pyvenv.cfg").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# --------------------------------------------------------------------- an environment that is there


def attach(
    layer: Layer,
    environment: Environment,
    *,
    command: str = "",
    on_event: OnEvent | None = None,
    cancellation: Cancellation | None = None,
    wait: bool = False,
) -> Result:
    """Let the environment take its PyTorch from the layer; it is the new one then, or the old.

    What torch requires and the environment has in a version that fits stays. What is replaced is
    kept, and `undo` or `detach` brings it back.

    Raises
    ------
    InstallError, TargetError, BusyError
        The layer is not for this environment, or it can't be changed.
    ConflictError
        What is installed here needs another version of what would be replaced.
    InstallCancelled
        Cancelled, and put back.
    """
    started = time.monotonic()
    tell, cancellation = guarded(on_event), cancellation or Cancellation()
    _check_unwritten(layer, files=True)
    check_target(environment)
    _check_fits(layer, environment)
    try:
        with holding(
            environment, command=command, on_event=tell, cancellation=cancellation, wait=wait
        ) as hold:
            recovered = recover(environment)
            environment = read_again(environment.interpreter.executable)
            changes = planned(layer, environment)
            if problem := broken_by(changes, environment):
                raise ConflictError(
                    f"The layer can't be attached: {problem}",
                    hint="make an environment of your own for it (`torchenv new-kernel NAME`)",
                )
            expectation = _expectation(layer, _after(environment, changes))
            if not changes:
                write_expectation(environment.prefix, expectation)
            else:
                _switch(
                    layer,
                    environment,
                    changes,
                    expectation,
                    command,
                    hold,
                    cancellation=cancellation,
                    started=started,
                )
            hold.tell(Event(phase="done", message="Attached"))
    except OSError as error:
        raise failure(error) from error
    return Result(
        changes=changes,
        expectation=expectation,
        seconds=time.monotonic() - started,
        recovered=recovered,
    )


def _check_fits(layer: Layer, environment: Environment) -> None:
    here = environment.interpreter.tag
    if layer.python != here or layer.platform != platform_of_here():
        raise TargetError(
            f"The layer is for {layer.python} on {layer.platform}, and this environment has {here} "
            f"on {platform_of_here()}",
            hint="`torchenv layer list DIR` shows the others; `torchenv layer build` makes one",
        )
    if _site(environment) != layer.site:
        raise TargetError(
            f"`{shown_path(environment.prefix)}` keeps its packages in `{_site(environment)}`, "
            f"and the layer in `{layer.site}`",
            hint="make an environment of your own (`torchenv new-kernel NAME`)",
        )


def _site(environment: Environment) -> str:
    prefix = environment.prefix.resolve()
    return Path(os.path.relpath(environment.site_packages.resolve(), prefix)).as_posix()


def planned(layer: Layer, environment: Environment) -> tuple[Change, ...]:
    """Return what attaching the layer changes in the environment."""
    wanted = closure(layer, layer.requirements)
    requirements = _requirements(layer, wanted.values())
    changes = []
    for name, package in sorted(wanted.items()):
        found = [there for there in environment.packages if there.name == name]
        if not found:
            changes.append(Change(name=name, action="install", after=package.version))
            continue
        family = name in FAMILY_MEMBERS or is_satellite(name)
        if len(found) == 1 and found[0].complete:
            if _comes_from(layer, package, environment, found[0]):
                continue
            if not family and all(
                meets(found[0].version, requirement) for requirement in requirements.get(name, ())
            ):
                continue
        changes.append(
            Change(name=name, action="replace", before=found[0].version, after=package.version)
        )
    return tuple(changes)


def _requirements(layer: Layer, packages: Iterable[LayerPackage]) -> dict[str, list[Requirement]]:
    """Return what the packages and the layer itself ask for, by the name that they ask it of."""
    found: dict[str, list[Requirement]] = {}
    texts = [text for package in packages for text in package.requires]
    for text in (*layer.requirements, *texts):
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if applies(requirement, layer.python):
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def _comes_from(
    layer: Layer, package: LayerPackage, environment: Environment, there: InstalledPackage
) -> bool:
    """Whether the environment has the package from this very layer already."""
    if there.version != package.version or there.installer != INSTALLER:
        return False
    return all(
        _link_target(environment.prefix / link) == str(layer.directory / link)
        for link in package.piece.links[:1]
    )


def _link_target(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except OSError:
        return None


def broken_by(changes: Iterable[Change], environment: Environment) -> str:
    """Return what a package that stays requires, that is met now and would not be; else nothing."""
    after = {change.name: change for change in changes}
    for package in environment.packages:
        if package.name in after:
            continue
        for text in package.requires:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            change = after.get(canonicalize_name(requirement.name))
            if (
                change is not None
                and change.before is not None
                and change.after is not None
                and applies(requirement, environment.interpreter.tag)
                and meets(change.before, requirement)
                and not meets(change.after, requirement)
            ):
                return (
                    f"{package.name} {package.version} requires {text}, and the layer has "
                    f"{change.name} {change.after}"
                )
    return ""


def _switch(  # noqa: PLR0917
    layer: Layer,
    environment: Environment,
    changes: tuple[Change, ...],
    expectation: Expectation,
    command: str,
    hold: Hold,
    *,
    cancellation: Cancellation,
    started: float,
) -> None:
    leaving = [change.name for change in changes if change.before is not None]
    coming = [change.name for change in changes]
    hold.tell(Event(phase="link", message=f"Linking to {shown_path(layer.directory)}"))
    with Transaction(environment) as transaction:
        write_pieces(
            _pieces(layer, environment, coming, leaving),
            root=layer.directory,
            site=layer.site,
            prefix=transaction.stage,
            python=environment.interpreter.executable,
        )
        entry = _entry(layer, transaction.identity, command, changes, None)
        with nobody_else(environment.prefix, hold.tell, cancellation):
            cancellation.raise_if_requested()
            hold.check()
            try:
                transaction.switch(leaving, incoming=coming, expectation=expectation, entry=entry)
                _check(changes, environment, coming)
                hold.check()
                transaction.commit(seconds=time.monotonic() - started)
            except BaseException:
                if transaction.can_roll_back:
                    message = "Putting back what was there before"
                    hold.tell(Event(phase="restore", message=message))
                    transaction.roll_back()
                raise


def _pieces(
    layer: Layer, environment: Environment, coming: Iterable[str], leaving: Iterable[str]
) -> tuple[Piece, ...]:
    """Return how the packages are attached to what is there: no link takes a folder of others."""
    prefix = environment.prefix.resolve()
    informations = {
        package.name: Path(package.piece.information).name
        for package in layer.packages
        if package.name in set(coming)
    }
    return pieces_of(
        layer.directory,
        layer.site,
        informations,
        is_shared=_shared_in(environment, prefix, leaving),
    )


def _shared_in(
    environment: Environment, prefix: Path, leaving: Iterable[str]
) -> Callable[[str], bool]:
    gone = set(leaving)
    mine: dict[Path, str] = {}
    others: list[Path] = []
    for name, directories in metadata_directories(sites(environment)).items():
        if name in gone:
            mine.update(dict.fromkeys(directories, name))
        else:
            others += directories
    free = set(roots(mine, others, prefix=prefix)[0]) if mine else set()

    def is_shared(path: str) -> bool:
        folder = prefix / path
        if folder.is_symlink() or not folder.is_dir():
            return False
        return not any(str(place) in free for place in (folder, *folder.parents))

    return is_shared


def _check(changes: tuple[Change, ...], environment: Environment, names: Iterable[str]) -> None:
    """Check that the environment is what was planned, and that every link leads to something.

    Raises
    ------
    InstallError
    """
    after = look_after(environment.interpreter.executable)
    problems = check_changes(changes, after)
    problems += missing_files(after.site_packages.resolve(), names)
    if problems:
        raise InstallError(
            f"The layer was not attached: {'; '.join(problems[:3])}",
            hint="`torchenv layer check` tells whether the layer is whole",
            detail="\n".join(problems),
        )


def _after(environment: Environment, changes: Iterable[Change]) -> dict[str, str]:
    there = {package.name: package.version for package in environment.packages}
    return there | {change.name: change.after for change in changes if change.after is not None}


def _expectation(layer: Layer, versions: dict[str, str]) -> Expectation:
    asked = [canonicalize_name(Requirement(text).name) for text in layer.requirements]
    return Expectation(
        requirements=layer.requirements,
        backend=layer.backend,
        versions=tuple(
            (name, versions[name])
            for name in dict.fromkeys([*FAMILY_MEMBERS, *asked])
            if name in versions
        ),
    )


def _entry(
    layer: Layer,
    identity: str,
    command: str,
    changes: tuple[Change, ...],
    seconds: float | None,
) -> Entry:
    entry = new_entry(
        identity=identity,
        command=command,
        backend=str(layer.backend),
        torch=layer.torch,
        source=f"{_SOURCE}{layer.directory}",
        changes=changes,
    )
    return replace(entry, seconds=seconds)


# --------------------------------------------------------------------------------------- detaching


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """What an environment has from a layer."""

    directory: Path
    """The layer's folder, which may be gone."""
    names: tuple[str, ...]


def attached(environment: Environment) -> tuple[Attached, ...]:
    """Return from which layers the environment has what."""
    prefix = environment.prefix.resolve()
    found: dict[Path, list[str]] = {}
    for package in environment.packages:
        information = package.metadata_directory
        if package.installer != INSTALLER or information is None:
            continue
        for entry in entries(information):
            place = Path(os.path.normpath(information.parent / entry))
            target = _link_target(place)
            below = os.path.relpath(place.parent.resolve() / place.name, prefix)
            if target is not None and target.endswith(os.sep + below):
                directory = Path(target.removesuffix(os.sep + below))
                found.setdefault(directory, []).append(package.name)
                break
        else:
            # Metadata alone, as cuda-toolkit has it: it goes with any.
            found.setdefault(Path(), []).append(package.name)
    alone = found.pop(Path(), [])
    return tuple(
        Attached(directory=directory, names=tuple(sorted([*names, *(alone if not i else ())])))
        for i, (directory, names) in enumerate(sorted(found.items()))
    )


def detach(
    environment: Environment,
    *,
    command: str = "",
    on_event: OnEvent | None = None,
    cancellation: Cancellation | None = None,
    wait: bool = False,
) -> Result:
    """Take the links to every layer away; bring back what the last attaching replaced.

    Where something was installed since, only the links go.

    Raises
    ------
    InstallError, TargetError, BusyError
        Nothing is attached, or the environment can't be changed.
    InstallCancelled
        Cancelled, and put back.
    """
    started = time.monotonic()
    tell, cancellation = guarded(on_event), cancellation or Cancellation()
    check_target(environment)
    try:
        with holding(
            environment, command=command, on_event=tell, cancellation=cancellation, wait=wait
        ) as hold:
            recovered = recover(environment)
            environment = read_again(environment.interpreter.executable)
            there = attached(environment)
            if not there:
                raise InstallError(
                    f"No layer is attached to `{shown_path(environment.prefix)}`",
                    hint="`torchenv history` shows where its PyTorch came from",
                )
            names = {name for one in there for name in one.names}
            if not _was_last(environment, names):
                changes = tuple(
                    Change(name=package.name, action="remove", before=package.version)
                    for package in environment.packages
                    if package.name in names
                )
                source = f"{_SOURCE}{there[0].directory}"
                with (
                    Transaction(environment) as transaction,
                    nobody_else(environment.prefix, hold.tell, cancellation),
                ):
                    entry = new_entry(
                        identity=transaction.identity,
                        command=command,
                        backend="",
                        torch=None,
                        source=source,
                        changes=changes,
                    )
                    hold.tell(Event(phase="switch", message="Taking the links away"))
                    transaction.switch(sorted(names), incoming=(), expectation=None, entry=entry)
                    transaction.commit(seconds=time.monotonic() - started)
                    hold.tell(Event(phase="done", message="Detached"))
                return Result(
                    changes=changes,
                    expectation=read_expectation(environment.prefix),
                    seconds=time.monotonic() - started,
                    recovered=recovered,
                    undone=True,
                )
    except OSError as error:
        raise failure(error) from error
    # It takes the lock itself, and looks again at what it undoes.
    result = undo_install(
        environment,
        consent=True,
        command=command,
        on_event=tell,
        cancellation=cancellation,
        wait=wait,
    )
    return replace(result, recovered=recovered or result.recovered)


def _was_last(environment: Environment, names: set[str]) -> bool:
    """Whether those packages came with the last change, which can be undone as a whole."""
    kept, undo = read_kept(environment.prefix), read_undo(environment)
    return (
        kept is not None
        and undo is not None
        and not undo.problem
        and kept.entry.source.startswith(_SOURCE)
        and {change.name for change in kept.entry.changes} == names
    )
