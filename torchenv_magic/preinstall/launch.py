"""Begin a preinstall beside a server, or see that there is nothing to begin.

Only the standard library, and little of that: a person waits for their server. All that takes time
is done by the installer, a process of its own that goes on whatever becomes of who began it.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torchenv_magic import __version__
from torchenv_magic.errors import InstallError, TargetError
from torchenv_magic.preinstall.place import Place, jupyter_folder, place_of
from torchenv_magic.preinstall.record import (
    LOG_NAME,
    STATE_VARIABLE,
    Record,
    boot_of_host,
    is_alive,
    is_running,
    own_user,
    process_started,
    read_private,
    read_record,
    write_private,
    write_record,
)
from torchenv_magic.preinstall.stamp import circumstances, holds, read_stamp
from torchenv_magic.preinstall.wish import Wish
from torchenv_magic.variables import is_secret

__all__ = [
    "Begun",
    "NotBegunError",
    "begin",
    "installer_environment",
    "make_directory",
    "run_installer",
]

_PREFIX = "torchenv-preinstall-"
_SERVER_NAME = "server.json"
# What is younger may be somebody's who has not yet come to its first record.
_YOUNG_SECONDS = 600.0
_FORGOTTEN_SECONDS = 30 * 86_400.0

# In a string and not `-m`, which would look for modules in the folder that a server is started in:
# a home has files of any name. The package may have been found by a variable that goes. Two forks,
# so that whoever becomes the server has no child that it knows nothing of.
_PROGRAM = (
    "import os, sys; hasattr(os, 'fork') and os.fork() and os._exit(0); "
    "sys.path[:] = [*filter(None, sys.path), sys.argv.pop()]; "
    "from torchenv_magic.preinstall.launch import run_installer; sys.exit(run_installer())"
)
_START_SECONDS = 10.0
_LONGEST_ORDER = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What was begun for a server."""

    directory: Path
    """Where it tells how it stands."""
    variables: dict[str, str]
    """What the server's environment has to have, for itself and its kernels."""
    running: bool
    """Whether there is anything to wait for."""


class NotBegunError(OSError):
    """No folder for the record can be made, or no process be started."""

    def __init__(self, error: OSError, variables: dict[str, str]) -> None:
        super().__init__(error.errno, error.strerror, error.filename)
        # The kernel of an earlier start is there all the same.
        self.variables = variables


def begin(
    wish: Wish,
    *,
    environ: Mapping[str, str],
    directory: Path | None = None,
    offers_kernel: bool = False,
) -> Begun:
    """Begin what is wished for, where it isn't there already. Waits for nothing.

    What can't be done is told by the record; only where that can't be written either this raises.

    Parameters
    ----------
    directory
        Where it tells how it stands: what `make_directory` returned; None to make one.
    offers_kernel
        Whether Jupyter is told of the kernel in the user's own folder: where no server is begun
        that could be told by a variable.

    Raises
    ------
    NotBegunError
    """
    variables: dict[str, str] = {}
    try:
        return _begin(wish, environ, variables, directory, offers_kernel=offers_kernel)
    except OSError as error:
        variables.pop(STATE_VARIABLE, None)
        raise NotBegunError(error, variables) from error


def _begin(
    wish: Wish,
    environ: Mapping[str, str],
    variables: dict[str, str],
    directory: Path | None,
    *,
    offers_kernel: bool,
) -> Begun:
    notice = " · ".join(wish.notices)
    since = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    place: Place | None = None
    problem: TargetError | None = None
    try:
        place = place_of(wish, environ)
    except TargetError as error:
        problem = error
    else:
        if not place.is_own:
            paths = str(jupyter_folder(place.prefix)), environ.get("JUPYTER_PATH")
            variables["JUPYTER_PATH"] = os.pathsep.join(filter(None, paths))
        if place.cache is not None:
            variables["UV_CACHE_DIR"] = str(place.cache)
    sweep()
    directory = directory or make_directory(environ)
    variables[STATE_VARIABLE] = str(directory)
    if place is None or problem is not None:
        record = Record(
            status="failed",
            message=problem.message if problem else "",
            hint=problem.hint if problem else "",
            since=since,
            notice=notice,
        )
        write_record(directory, record)
        return Begun(directory=directory, variables=variables, running=False)
    stamp = read_stamp(place.prefix)
    now = circumstances(wish, place, environ, version=__version__)
    if stamp is not None and holds(stamp, now) and not offers_kernel:
        record = Record(
            status="done",
            message=stamp.message,
            fraction=1.0,
            target=stamp.target,
            kernel=stamp.kernel,
            kernel_title=stamp.kernel_title,
            backend=stamp.backend,
            torch=stamp.torch,
            since=since,
            notice=notice,
        )
        write_record(directory, record)
        return Begun(directory=directory, variables=variables, running=False)
    _start(wish, place, directory, environ, since=since, notice=notice, offers_kernel=offers_kernel)
    return Begun(directory=directory, variables=variables, running=True)


def _start(
    wish: Wish,
    place: Place,
    directory: Path,
    environ: Mapping[str, str],
    *,
    since: str,
    notice: str,
    offers_kernel: bool,
) -> None:
    """Start the installer, and write its first record, which it waits for."""
    import subprocess

    environment = installer_environment(environ)
    if place.cache is not None:
        environment["UV_CACHE_DIR"] = str(place.cache)
    order = {
        "directory": str(directory),
        "prefix": str(place.prefix),
        "is_own": place.is_own,
        "is_ours": place.is_ours,
        "backend": wish.backend,
        "requirements": list(wish.requirements),
        "notice": notice,
        "since": since,
        "offers_kernel": offers_kernel,
    }
    # Before there is anybody else who writes it.
    write_record(
        directory,
        Record(
            status="running",
            message="Looking for the PyTorch that fits this machine",
            target=str(place.prefix),
            boot=boot_of_host(),
            since=since,
            notice=notice,
        ),
    )
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    log = os.open(directory / LOG_NAME, flags, 0o600)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(Path(__file__).parents[2])],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            creationflags=_APART_ON_WINDOWS,
        )
    finally:
        os.close(log)
    if process.stdin is not None:
        # The pipe is emptied at its close, where it may break too.
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(json.dumps(order).encode("ascii"))
    if sys.platform != "win32":
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_START_SECONDS)
    if process.returncode:
        _fail(
            directory,
            InstallError(
                f"The installer could not be started: it ended with {process.returncode}",
                hint=f"read `{directory / LOG_NAME}`: it has what Python said",
            ),
        )
    # What goes on is nobody's to wait for: Popen would warn of that.
    process.returncode = process.returncode or 0


def _fail(directory: Path, error: InstallError) -> None:
    """Write that there is no installer, so that nobody waits for one."""
    record = read_record(directory)
    if record is not None:
        failed = replace(record, status="failed", message=error.message, hint=error.hint)
        write_record(directory, failed)


def run_installer() -> int:
    """Be the installer: say who this is at once, and what happened where it can't be loaded."""
    content = sys.stdin.buffer.read(_LONGEST_ORDER)
    try:
        directory = Path(json.loads(content)["directory"])
    except (ValueError, LookupError, TypeError):
        # Who began it has died in that very moment.
        return 1
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            # The server, which a person waits for, has the machine first.
            os.nice(19)
    record = read_record(directory)
    if record is not None:
        pid = os.getpid()
        with contextlib.suppress(OSError):
            write_record(directory, replace(record, pid=pid, started=process_started(pid)))
    try:
        from torchenv_magic.preinstall.installer import main
    except Exception as error:
        with contextlib.suppress(OSError):
            _fail(
                directory,
                InstallError(
                    f"The installer could not be loaded: {type(error).__name__}",
                    hint=f"read `{directory / LOG_NAME}`: it has what Python said",
                ),
            )
        raise
    return main(content)


_APART_ON_WINDOWS = 0
if sys.platform == "win32":
    import subprocess

    _APART_ON_WINDOWS = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW


_FOREIGN = frozenset(
    {
        "CONDA_PREFIX",
        "PYTHONHOME",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "VIRTUAL_ENV",
        "__PYVENV_LAUNCHER__",
        STATE_VARIABLE,
    }
)


def installer_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for the installer: no secrets of the hub's, and no foreign target.

    A login for uv's own indexes stays: it is for nobody else.

    >>> installer_environment({"PATH": "/bin", "JUPYTERHUB_API_TOKEN": "x", "VIRTUAL_ENV": "/hub"})
    {'PATH': '/bin'}
    """
    return {
        name: value
        for name, value in environ.items()
        if name not in _FOREIGN
        and not name.startswith(("JPY_", "JUPYTERHUB_"))
        and (name.startswith("UV_INDEX_") or not is_secret(name))
    }


# --------------------------------------------------------------------------------- the run folders


def _temporary(environ: Mapping[str, str]) -> list[Path]:
    """Return the host's folders for what passes. tempfile takes longer to import than all this."""
    named = [environ[name] for name in ("TMPDIR", "TEMP", "TMP") if environ.get(name)]
    usual = ["/tmp", "/var/tmp", "/dev/shm"] if sys.platform != "win32" else []  # noqa: S108
    return [Path(text) for text in dict.fromkeys((*named, *usual)) if os.path.isabs(text)]  # noqa: PTH117


def make_directory(environ: Mapping[str, str]) -> Path:
    """Make a folder that only this user can look into, where there is room for a file.

    Raises
    ------
    OSError
        There is no such place.
    """
    server = {"pid": os.getpid(), "started": process_started(os.getpid()), "boot": boot_of_host()}
    problem: OSError = FileNotFoundError(2, "there is no folder for temporary files")
    for folder in _temporary(environ):
        directory = folder / f"{_PREFIX}{os.urandom(8).hex()}"
        try:
            directory.mkdir(mode=0o700)
        except OSError as error:
            problem = error
            continue
        try:
            write_private(directory / _SERVER_NAME, json.dumps(server).encode("ascii"))
        except OSError as error:
            problem = error
            with contextlib.suppress(OSError):
                directory.rmdir()
        else:
            return directory
    raise problem


def sweep(environ: Mapping[str, str] | None = None) -> None:
    """Remove the folders of this user's servers that are gone, with their installers."""
    environ = os.environ if environ is None else environ
    owner = own_user()
    for folder in _temporary(environ):
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):  # noqa: PTH208  (names are enough)
                if name.startswith(_PREFIX):
                    with contextlib.suppress(OSError):
                        _sweep_one(folder / name, owner)


def _sweep_one(directory: Path, owner: int | None) -> None:
    status = directory.lstat()
    age = time.time() - status.st_mtime
    if not stat.S_ISDIR(status.st_mode) or (owner is not None and status.st_uid != owner):
        return
    if age < _YOUNG_SECONDS:
        return
    record = read_record(directory, owner=owner)
    if record is not None and is_running(record):
        return
    if age < _FORGOTTEN_SECONDS and not _is_left(directory, owner):
        return
    for name in os.listdir(directory):  # noqa: PTH208  (names are enough)
        (directory / name).unlink()
    directory.rmdir()


def _is_left(directory: Path, owner: int | None) -> bool:
    """Whether the server that the folder is of is certainly gone."""
    try:
        server = json.loads(
            read_private(directory / _SERVER_NAME, largest=2000, owner=owner) or b""
        )
        pid, started, boot = server["pid"], server["started"], server["boot"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return True
    if boot != boot_of_host() or type(pid) is not int or not isinstance(started, str):
        return False
    return not is_alive(pid, started)
