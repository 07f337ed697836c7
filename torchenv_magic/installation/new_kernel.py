"""A kernel of one's own: an environment of the user's, PyTorch in it, and a kernelspec.

For whoever works in an environment that is not theirs to change. All of it lies below the user's
data folders, and is there whole or not at all:

```
<data>/torchenv/kernels/NAME/        the environment; `torchenv-kernel.json` in it says it is ours
<jupyter data>/kernels/NAME/         the kernelspec, which says whose environment it starts
```
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from packaging.requirements import Requirement

from torchenv_magic.builds.current import is_offline
from torchenv_magic.environment import (
    Environment,
    read_environment,
    run_interpreter,
    shown_path,
)
from torchenv_magic.errors import BusyError, InstallError, RequestError, TargetError
from torchenv_magic.installation.data_folder import data_folder, python_in
from torchenv_magic.installation.failures import explain
from torchenv_magic.installation.install import Result, install_plan
from torchenv_magic.installation.own_wheel import wheel_of
from torchenv_magic.installation.plan import Plan
from torchenv_magic.installation.planning import make_plan
from torchenv_magic.installation.progress import Event, OnEvent, format_bytes, guarded
from torchenv_magic.installation.settings import Sites, read_sites
from torchenv_magic.installation.sources import wheel_folders
from torchenv_magic.installation.uv import Cancellation, Completed, Lines, Uv, find_uv
from torchenv_magic.selection import Request, Selection

__all__ = [
    "Made",
    "OwnKernel",
    "Places",
    "Removed",
    "base_interpreter",
    "check_name",
    "describe_kernel",
    "environment_of",
    "free_name",
    "furnish",
    "make_environment",
    "make_kernel",
    "offer_kernel",
    "own_kernels",
    "read_places",
    "remove_kernel",
]

logger = logging.getLogger(__name__)

MARKER = "torchenv-kernel.json"
# No kernel's name has this sign.
_REMOVED = "+removed-"
_OURS = "torchenv_magic"
"""The key of ours in a kernelspec's metadata."""

# Jupyter's own rule (jupyter_client.kernelspec), which none of its functions tells; it looks them
# up in small letters.
_NAME = re.compile(r"[a-z0-9._-]+")
_LONGEST_NAME = 100
# Jupyter makes a kernel of this name out of the server's own Python.
_NATIVE = frozenset({"python2", "python3"})

_OWN_NAME = "torchenv-magic"
# pip for `%pip install`, which people write in notebooks; ipykernel 6.29 is the oldest one that the
# magic is tested with.
_BESIDES = ("ipykernel>=6.29", "pip")
_DESCRIBE_SECONDS = 60.0

# The new kernel's own words for how it is started, and a proof that the magic loads there.
_SPECIFICATION = """\
import json, pathlib
import ipykernel
from ipykernel.kernelspec import get_kernel_dict
import torchenv_magic.notebook.magic
resources = pathlib.Path(ipykernel.__file__).with_name("resources")
print("\\n" + json.dumps({"specification": get_kernel_dict(), "resources": str(resources)}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where a user's kernels lie."""

    environments: Path
    specifications: Path
    """Of Jupyter, as whoever asks knows it."""
    others: tuple[Path, ...] = ()
    """The other folders that Jupyter looks through for kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnKernel:
    """A kernel that was made here."""

    name: str
    display_name: str
    environment: Path
    specification: Path
    whole: bool = True
    """Whether it was made to its end."""

    @property
    def python(self) -> Path:
        return python_in(self.environment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What came of making one."""

    kernel: OwnKernel
    result: Result
    seconds: float

    def __str__(self) -> str:
        return f"Made the kernel “{self.kernel.display_name}” in {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What came of removing one."""

    name: str
    freed_bytes: int
    shared_bytes: int
    """What uv's cache holds too, and keeps."""

    def __str__(self) -> str:
        text = f"Removed the kernel {self.name} and its environment"
        text += f": {format_bytes(self.freed_bytes)} are free again"
        if self.shared_bytes:
            shared = format_bytes(self.shared_bytes)
            text += f"; {shared} more stay in uv's cache for the next install"
        return text


# ------------------------------------------------------------------------------------------ places


def read_places(environ: Mapping[str, str] | None = None) -> Places:
    """Return where kernels of this user lie, for the Jupyter that the variables tell of."""
    from jupyter_core.paths import jupyter_data_dir, jupyter_path

    specifications = Path(jupyter_data_dir()) / "kernels"
    return Places(
        environments=data_folder(os.environ if environ is None else environ) / "kernels",
        specifications=specifications,
        others=tuple(
            folder for folder in map(Path, jupyter_path("kernels")) if folder != specifications
        ),
    )


def check_name(text: str) -> str:
    """Return the name as Jupyter looks it up.

    Raises
    ------
    RequestError
        It can't be a kernel's name; a path is none.
    """
    name = text.lower()
    fits = _NAME.fullmatch(name) and name[0] not in ".-" and len(name) <= _LONGEST_NAME
    if not fits or name in _NATIVE:
        message = f"`{text}` can't be the name of a kernel"
        if name in _NATIVE:
            message = f"`{text}` is the kernel that Jupyter makes by itself"
        raise RequestError(
            message,
            hint="take letters, digits, dots, dashes and underscores, such as `torch-cu126`",
        )
    return name


def free_name(wanted: str, places: Places) -> str:
    """Return that name, or one like it that no kernel has yet."""
    number = 1
    name = wanted
    while _is_taken(name, places) or (places.environments / name).exists():
        number += 1
        name = f"{wanted}-{number}"
    return name


def _is_taken(name: str, places: Places) -> bool:
    return name in _NATIVE or any(
        _specification_in(folder, name) is not None
        for folder in (places.specifications, *places.others)
    )


def _specification_in(folder: Path, name: str) -> Path | None:
    """Return the folder of that name, however it is written; None where there is none."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name.lower() == name:
                return path
    return None


# ----------------------------------------------------------------------------------- what is there


def own_kernels(places: Places | None = None) -> tuple[OwnKernel, ...]:
    """Return the kernels that were made here, also those that were not made to their end."""
    places = places or read_places()
    found = []
    with contextlib.suppress(OSError):
        for folder in sorted(places.environments.iterdir()):
            kernel = None if _REMOVED in folder.name else _read_marker(folder, places)
            if kernel is not None:
                found.append(kernel)
    return tuple(found)


def _read_marker(folder: Path, places: Places) -> OwnKernel | None:
    """Return whose environment that is; None where nothing of ours says so."""
    try:
        if folder.is_symlink():
            return None
        text = (folder / MARKER).read_text(encoding="utf-8")
        if not text:
            # Who made it was killed before the first word.
            name = check_name(folder.name.rstrip("+"))
            return OwnKernel(
                name=name,
                display_name=name,
                environment=folder,
                specification=places.specifications / name,
                whole=False,
            )
        data = json.loads(text)
        kernel = OwnKernel(
            name=check_name(data["name"]),
            display_name=str(data["display_name"]),
            environment=folder,
            specification=Path(data["specification"]),
            whole=data["whole"] is True,
        )
    except (OSError, ValueError, LookupError, TypeError, RequestError):
        return None
    # A process that was killed may have come to the kernelspec, and not to its last line.
    return replace(kernel, whole=kernel.whole or _owns_specification(kernel))


def _write_marker(kernel: OwnKernel, *, whole: bool) -> None:
    text = json.dumps(
        {
            "name": kernel.name,
            "display_name": kernel.display_name,
            "specification": str(kernel.specification),
            "whole": whole,
        }
    )
    content = text.encode("ascii")
    # In place, as this very file is held by whoever makes the kernel; and in one piece over what
    # is there, so that nobody who dies here leaves half of it.
    with (kernel.environment / MARKER).open("r+b", buffering=0) as file:
        file.write(content)
        file.truncate(len(content))


def _owns_specification(kernel: OwnKernel) -> bool:
    """Whether the kernelspec of that name starts this very environment, and none that is others'.

    Read from the folder itself: the marker may have been copied with its environment.
    """
    return environment_of(kernel.specification) == kernel.environment


def environment_of(specification: Path) -> Path | None:
    """Return the environment that a kernelspec of ours starts; None where it is none of ours."""
    try:
        if specification.is_symlink():
            return None
        text = (specification / "kernel.json").read_text(encoding="utf-8")
        return Path(json.loads(text)["metadata"][_OURS]["environment"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


# ------------------------------------------------------------------------------------------ making


def make_kernel(
    name: str,
    request: Request,
    *,
    base: Path,
    choose: Callable[[Path], tuple[Selection, Environment]],
    places: Places | None = None,
    consent: bool = False,
    sites: Sites | None = None,
    command: str = "",
    on_event: OnEvent | None = None,
    cancellation: Cancellation | None = None,
) -> Made:
    """Make an environment with PyTorch and a kernel that starts it, or leave nothing.

    Parameters
    ----------
    base
        The interpreter that the new environment's is like.
    choose
        Looks at the new environment, by its interpreter, and selects a build for the request.
    command
        The line that asked, for the new environment's history.
    consent
        Whether a kernel of that name that was made here may be replaced, and wheels may come from
        elsewhere than the PyTorch index where that is away.

    Raises
    ------
    InstallCancelled
        Nothing is left of it.
    RequestError, TargetError, BusyError, SelectionError, PlanError, InstallError, UvError
        Failed, and nothing is left of it.
    """
    started = time.monotonic()
    tell = guarded(on_event)
    cancellation = cancellation or Cancellation()
    places = places or read_places()
    # The new environment has no settings of its own: those of who asks hold there.
    sites = read_sites(prefix=Path(sys.prefix)) if sites is None else sites
    uv = find_uv()
    name = check_name(name)
    before = _check_free(name, places, consent=consent)
    with _claimed(name, places, before) as folder:
        tell(Event(phase="resolve", message=f"Making an environment in {shown_path(folder)}"))
        make_environment(uv, base, folder, name, cancellation)
        python = python_in(folder)
        furnish(uv, python, sites=sites, tell=tell, cancellation=cancellation)
        selection, environment = choose(python)
        plan = make_plan(
            selection,
            environment,
            request,
            sites=sites,
            consent=consent,
            on_event=tell,
            cancellation=cancellation,
        )
        result = install_plan(plan, command=command, on_event=tell, cancellation=cancellation)
        kernel = OwnKernel(
            name=name,
            display_name=_display_name(name, plan),
            environment=folder,
            specification=places.specifications / name,
        )
        tell(Event(phase="switch", message=f"Telling Jupyter of {kernel.display_name}"))
        described = describe_kernel(python, cancellation)
        is_new = before is None or not _owns_specification(before)
        _write_marker(kernel, whole=True)
        # Last, so that no kernel is offered whose environment is removed again.
        _offer(kernel, described, is_new=is_new)
    if before is not None and before.environment != folder:
        try:
            # Somebody may have started it meanwhile.
            _check_unused(before)
            _delete(before.environment)
        except (BusyError, InstallError) as error:
            logger.info("%s stays: %s", before.environment, error)
            place = shown_path(before.environment)
            message = f"The environment before stays in {place}, as something uses it"
            tell(Event(phase="switch", message=message))
    tell(Event(phase="done", message=f"Made the kernel {name}"))
    return Made(kernel=kernel, result=result, seconds=time.monotonic() - started)


def _check_free(name: str, places: Places, *, consent: bool) -> OwnKernel | None:
    """Return the kernel of ours that has that name; None where nobody has.

    Raises
    ------
    TargetError
        Somebody else's kernel has it, or one of ours without consent to replace it.
    BusyError
        One of ours has it, and runs.
    """
    # One that is whole comes first: what a process that was killed has left is no kernel.
    mine = [kernel for kernel in own_kernels(places) if kernel.name == name and kernel.whole]
    own = min(mine, key=lambda kernel: not _owns_specification(kernel), default=None)
    for folder in (places.specifications, *places.others):
        found = _specification_in(folder, name)
        if found is not None and not (
            own is not None and found == own.specification and _owns_specification(own)
        ):
            raise TargetError(
                f"There is a kernel `{name}` already, and it was not made here: "
                f"{shown_path(found)}",
                hint="take another name",
            )
    if own is None:
        return None
    if consent:
        _check_unused(own)
        return own
    raise TargetError(
        f"There is a kernel `{name}` already: {own.display_name}",
        hint=f"take another name; `--yes` replaces it, `%torchenv new-kernel {name} --remove` "
        "removes it",
    )


@contextlib.contextmanager
def _claimed(name: str, places: Places, before: OwnKernel | None) -> Iterator[Path]:
    """Lend a folder for the environment, which is removed again where the block fails.

    An environment can't be moved once it is made, and one that is to be replaced works until the
    new one does: so there are two places, of which the second has a name that no kernel can have.
    """
    folder = places.environments / name
    if before is not None and before.environment == folder:
        folder = places.environments / f"{name}+"
    kernel = OwnKernel(
        name=name,
        display_name=name,
        environment=folder,
        specification=places.specifications / name,
        whole=False,
    )
    try:
        places.environments.mkdir(parents=True, exist_ok=True)
        for removed in places.environments.glob(f"*{_REMOVED}*"):
            shutil.rmtree(removed, ignore_errors=True)
        left = _read_marker(folder, places)
        if left is not None:
            _check_unused(left)
            with _held(left, make=False):
                pass
            _delete(folder)
        folder.mkdir()
    except FileExistsError:
        raise TargetError(
            f"`{shown_path(folder)}` is there already, and was not made here",
            hint="take another name, or move that folder away",
        ) from None
    except OSError as error:
        raise TargetError(
            f"`{shown_path(places.environments)}` can't be written: {error.strerror}",
            hint="set XDG_DATA_HOME to a folder of your own",
        ) from error
    try:
        # Let go of before anything is removed: Windows moves no folder with an open file in it.
        with _held(kernel, make=True):
            _write_marker(kernel, whole=False)
            yield folder
    except OSError as error:
        _delete(folder)
        raise InstallError(
            f"The kernel was not made: `{error.filename}`: {error.strerror}",
            hint="free some space, or see who may write there; then try again",
        ) from error
    except BaseException:
        _delete(folder)
        raise


@contextlib.contextmanager
def _held(kernel: OwnKernel, *, make: bool) -> Iterator[None]:
    """Hold a kernel's marker, so that nobody else makes or removes this kernel meanwhile.

    The operating system lets go of it with the process.

    Raises
    ------
    BusyError
        Somebody else holds it.
    """
    with (kernel.environment / MARKER).open("x+" if make else "r+", encoding="utf-8") as file:
        if not _lock(file):
            raise BusyError(
                f"The kernel `{kernel.name}` is being made by another process",
                hint="wait for it to end, or take another name",
            )
        yield


def _lock(file: IO[str]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            # Past the text, which others read.
            os.lseek(file.fileno(), 100_000, os.SEEK_SET)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            os.lseek(file.fileno(), 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # Windows says so of what another holds; some network drives know no locks.
        return sys.platform != "win32" or error.errno != errno.EACCES
    return True


def make_environment(
    uv: Uv, base: Path, folder: Path, name: str, cancellation: Cancellation
) -> None:
    """Make an environment in a folder, or give the one that is there this interpreter.

    Raises
    ------
    InstallError, DiskSpaceError, UvError
    """
    completed = uv.run(
        [
            "venv",
            f"--python={base}",
            "--no-project",
            # The marker lies in it.
            "--allow-existing",
            f"--prompt={name}",
            str(folder),
        ],
        cancellation=cancellation,
    )
    if completed.returncode != 0:
        raise explain(completed, subject="an environment")


def furnish(
    uv: Uv,
    python: Path,
    *,
    sites: Sites,
    tell: OnEvent,
    cancellation: Cancellation,
) -> None:
    """Install what a kernel needs, and this very torchenv_magic.

    Raises
    ------
    SourceError, InstallError, DiskSpaceError, UvError
    """
    try:
        distribution = importlib.metadata.distribution(_OWN_NAME)
    except importlib.metadata.PackageNotFoundError:
        raise InstallError(
            "The new kernel can't have torchenv_magic: it is not installed as a package here",
            hint="install it (`%pip install torchenv-magic`), then try again",
        ) from None
    needed = [text for text in distribution.requires or () if not _is_extra(text)]
    tell(Event(phase="download", message="Installing a kernel, and what the magic needs"))
    folders = [str(path) for path in wheel_folders()]
    links = [f"--find-links={place}" for place in dict.fromkeys((*sites.find_links, *folders))]
    lines = Lines(lambda line: tell(Event(phase="download", log=line)))

    def install(*arguments: str) -> Completed:
        return uv.run(
            ["pip", "install", f"--python={python}", *arguments],
            on_text=lines.feed,
            cancellation=cancellation,
        )

    # From the cache first, where it mostly is, and where nobody waits for a network that is away.
    completed = install("--offline", *links, *_BESIDES, *needed)
    if completed.returncode != 0 and not is_offline(os.environ):
        completed = install(*links, *_BESIDES, *needed)
    if completed.returncode != 0:
        raise explain(completed, subject="ipykernel, and what torchenv_magic needs")
    with tempfile.TemporaryDirectory(prefix="torchenv-") as place:
        try:
            wheel = wheel_of(distribution, Path(place))
        except LookupError:
            raise InstallError(
                "The new kernel can't have torchenv_magic: it was installed without a list of its "
                "files",
                hint="install it again (`%pip install --force-reinstall torchenv-magic`)",
            ) from None
        # By its version, not by its address, which will not be there any more.
        completed = install(
            "--offline",
            "--no-cache",
            "--no-index",
            "--no-deps",
            f"--find-links={wheel.parent}",
            f"{_OWN_NAME}=={distribution.version}",
        )
    if completed.returncode != 0:
        raise explain(completed, subject="torchenv_magic")


def _is_extra(text: str) -> bool:
    marker = Requirement(text).marker
    return marker is not None and "extra" in str(marker)


def _display_name(name: str, plan: Plan) -> str:
    torch = plan.versions.get("torch", "").partition("+")[0]
    return f"{name} (torch {torch}, {plan.backend.label})"


def describe_kernel(python: Path, cancellation: Cancellation) -> dict[str, Any]:
    """Ask the new environment how its kernel is started.

    Raises
    ------
    InstallError
        Its kernel can't be imported, or the magic can't.
    InstallCancelled
    """
    ended = run_interpreter(
        python,
        ["-I", "-c", _SPECIFICATION],
        timeout_seconds=_DESCRIBE_SECONDS,
        stopped_by=cancellation.stops,
    )
    cancellation.raise_if_requested()
    try:
        described = json.loads((ended.output.splitlines() or [b""])[-1])
        if ended.status == 0 and isinstance(described["specification"]["argv"], list):
            return dict(described)
    except (ValueError, LookupError, TypeError):
        pass
    raise InstallError(
        "The new environment's kernel does not start, so nothing of it was kept",
        hint="read the folded log: it has what Python said",
        detail=ended.errors,
    )


def _offer(kernel: OwnKernel, described: Mapping[str, Any], *, is_new: bool) -> None:
    try:
        offer_kernel(
            kernel.specification,
            described,
            display_name=kernel.display_name,
            environment=kernel.environment,
            is_new=is_new,
        )
    except FileExistsError:
        raise TargetError(
            f"There is a kernel `{kernel.name}` since a moment ago", hint="take another name"
        ) from None


def offer_kernel(
    folder: Path,
    described: Mapping[str, Any],
    *,
    display_name: str,
    environment: Path,
    is_new: bool,
) -> None:
    """Write the kernelspec, in one step.

    Parameters
    ----------
    described
        What the environment says of its kernel.
    is_new
        Whether nothing is to be there yet.

    Raises
    ------
    FileExistsError
        Something is there by now.
    OSError
    """
    specification = dict(described["specification"])
    specification["display_name"] = display_name
    specification["metadata"] = {
        **specification.get("metadata", {}),
        _OURS: {"environment": str(environment)},
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(specification, indent=1)
    if not is_new:
        draft = folder / f"kernel.json.{os.getpid()}"
        draft.write_text(text, encoding="utf-8")
        draft.replace(folder / "kernel.json")
        return
    stage = folder.with_name(f"{folder.name}+{os.getpid()}")
    stage.mkdir()
    try:
        for logo in sorted(Path(described["resources"]).glob("logo-*")):
            shutil.copyfile(logo, stage / logo.name)
        (stage / "kernel.json").write_text(text, encoding="utf-8")
        try:
            stage.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.EACCES):
                raise
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder)) from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


# ---------------------------------------------------------------------------------------- removing


def remove_kernel(name: str, *, places: Places | None = None) -> Removed:
    """Remove a kernel that was made here: its kernelspec first, then its environment.

    Raises
    ------
    RequestError
        None was made here by that name.
    BusyError
        It runs, or is being made.
    InstallError
        Its files can't be removed.
    """
    places = places or read_places()
    found = own_kernels(places)
    wanted = name.lower()
    own = [kernel for kernel in found if kernel.name == wanted]
    if not own:
        names = ", ".join(dict.fromkeys(f"`{kernel.name}`" for kernel in found))
        raise RequestError(
            f"No kernel `{name}` was made here",
            hint=f"there is {names}" if names else "there is none to remove",
        )
    freed = shared = 0
    for kernel in own:
        _check_unused(kernel)
        try:
            with _held(kernel, make=False):
                pass
            if _owns_specification(kernel):
                # Without this file it is no kernel any more.
                (kernel.specification / "kernel.json").unlink()
                shutil.rmtree(kernel.specification, ignore_errors=True)
        except OSError as error:
            raise InstallError(
                f"The kernel `{wanted}` can't be removed: `{error.filename}`: {error.strerror}",
                hint="see who may write there, then try again",
            ) from error
        sizes = _sizes(kernel.environment)
        freed, shared = freed + sizes[0], shared + sizes[1]
        _delete(kernel.environment)
    return Removed(name=wanted, freed_bytes=freed, shared_bytes=shared)


def _check_unused(kernel: OwnKernel) -> None:
    """Check that no process runs in the kernel's environment, as far as the system tells."""
    here = Path(sys.prefix) == kernel.environment
    pids = [] if here else _processes_in(kernel.environment)
    if here or pids:
        who = "this is it" if here else f"process {pids[0]}"
        raise BusyError(
            f"The kernel `{kernel.name}` is running: {who}",
            hint="choose another kernel for the notebook" if here else "shut it down first",
        )


def _processes_in(environment: Path) -> list[int]:
    """Return the processes whose program lies in the environment; none where nobody can tell."""
    inside = f"{environment}{os.sep}"
    found: list[int] = []
    if sys.platform.startswith("linux"):
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended meanwhile, or is somebody else's
                if line.read_bytes().startswith(inside.encode()):
                    found.append(int(line.parent.name))
    elif sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            answer = subprocess.run(
                ["/bin/ps", "-axo", "pid=,command="], capture_output=True, timeout=5, check=True
            )
            for row in answer.stdout.decode("utf-8", "replace").splitlines():
                pid, _, command = row.strip().partition(" ")
                if command.startswith(inside):
                    found.append(int(pid))
    # Windows refuses to move a folder whose files are in use, which `_delete` says.
    return found


def _sizes(folder: Path) -> tuple[int, int]:
    """Return the bytes that go with the folder, and those that lie elsewhere too."""
    own = shared = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                status = Path(place, name).lstat()
                if status.st_nlink > 1:
                    shared += status.st_size
                else:
                    own += status.st_size
    return own, shared


def _delete(folder: Path) -> None:
    """Delete a folder that is ours: aside in one step, so that it is never there half.

    Raises
    ------
    InstallError
        It can't be moved, since something uses it.
    """
    aside = folder.with_name(f"{folder.name}{_REMOVED}{os.getpid()}-{time.monotonic_ns()}")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InstallError(
            f"`{shown_path(folder)}` can't be removed: {error.strerror}",
            hint="shut down what runs in it, then try again",
        ) from error
    shutil.rmtree(aside, ignore_errors=True)


def base_interpreter(python: Path | None) -> Path:
    """Return the interpreter that a new environment is made like: the one that is named, or ours.

    uv goes from a virtual environment's to the one that it came from by itself.

    Raises
    ------
    TargetError
        There is none.
    """
    return (
        Path(sys.executable) if python is None else read_environment(python).interpreter.executable
    )
