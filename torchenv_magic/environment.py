"""The Python environment to install into: what it is, and what of PyTorch is in it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from torchenv_magic import _environment_probe
from torchenv_magic.builds.backend import Backend
from torchenv_magic.errors import TargetError
from torchenv_magic.interpreter import Interpreter, interpreter_of, running_interpreter
from torchenv_magic.variables import is_secret

__all__ = [
    "FAMILY_MEMBERS",
    "Environment",
    "EnvironmentKind",
    "InstalledPackage",
    "Interpreter",
    "InterpreterRun",
    "backend_of_build",
    "backend_of_local_version",
    "backend_of_torch_version",
    "check_target",
    "child_environment",
    "dependents",
    "family",
    "installed_backend",
    "is_condas",
    "is_satellite",
    "read_environment",
    "run_interpreter",
    "shown_path",
    "signal_name",
]

EnvironmentKind = Literal["venv", "uv venv", "conda", "system"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledPackage:
    name: str
    """Normalized name."""
    version: str
    requires: tuple[str, ...] = ()
    """Its `Requires-Dist`, only those without an extra."""
    installer: str | None = None
    """`uv`, `pip`, `conda`, or None where no INSTALLER file says."""
    complete: bool = True
    """Whether METADATA and RECORD are both there: a half-linked package lacks one of them."""
    metadata_directory: Path | None = None
    """Its `.dist-info` (or `.egg-info`); the package's files are beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    interpreter: Interpreter
    kind: EnvironmentKind
    prefix: Path
    site_packages: Path
    """`purelib`, where uv installs."""
    has_pip: bool
    writable: bool
    externally_managed: str | None
    """What the EXTERNALLY-MANAGED file says, where it forbids installing (PEP 668)."""
    free_bytes: int
    """Free space on the file system of `site_packages`."""
    packages: tuple[InstalledPackage, ...] = ()
    """What lies in `purelib` and `platlib`, by directory and name. One name can be there twice:
    an install that was killed leaves two `torch` behind."""

    def installed(self, name: str) -> InstalledPackage | None:
        """Return the installed package of that (normalized) name."""
        return next((package for package in self.packages if package.name == name), None)

    def __str__(self) -> str:
        if self.externally_managed is not None:
            access = "externally managed"
        else:
            access = "writable" if self.writable else "not writable"
        pip = "" if self.has_pip else " without pip"
        kind = f"{self.kind}{pip}"
        free = f"{_decimal_size(self.free_bytes)} free"
        return f"{shown_path(self.prefix)}, {self.interpreter}, {kind}, {access}, {free}"


# ---------------------------------------------------------------------------------------- reading

# An interpreter answers in 0.1 s; a network drive that has just woken up takes seconds.
_DESCRIBE_SECONDS = 10


def read_environment(python: Path | None = None) -> Environment:
    """Return the environment of `python`: an interpreter, or a virtual environment's directory.

    None is the running interpreter, read in process.

    Raises
    ------
    TargetError
        There is no such interpreter, or it can't be described.
    """
    if python is None:
        running_interpreter()
        return _environment(_environment_probe.describe())
    return _environment(_ask(_find_interpreter(python)))


def _environment(description: dict[str, Any]) -> Environment:
    # Field by field: `from_json` resolves the annotations again for each package (18 ms for 130).
    return Environment(
        interpreter=interpreter_of(description),
        kind=description["kind"],
        prefix=Path(description["prefix"]),
        site_packages=Path(description["site_packages"]),
        has_pip=description["has_pip"],
        writable=description["writable"],
        externally_managed=description["externally_managed"],
        free_bytes=description["free_bytes"],
        packages=tuple(
            InstalledPackage(
                name=package["name"],
                version=package["version"],
                requires=tuple(package["requires"]),
                installer=package["installer"],
                complete=package["complete"],
                metadata_directory=Path(package["metadata_directory"]),
            )
            for package in description["packages"]
        ),
    )


_AN_INTERPRETER = "name an interpreter, such as `.venv/bin/python`"


def _find_interpreter(python: Path) -> Path:
    try:
        python = python.expanduser()
        if python.is_dir():
            for inside in ("bin/python", "Scripts/python.exe", "python.exe"):
                if (python / inside).exists():
                    return (python / inside).absolute()
            raise TargetError(f"`{python}` is a directory without a Python", hint=_AN_INTERPRETER)
        if python.exists():
            # Not resolved: a virtual environment's interpreter is a link to the one it came from.
            return python.absolute()
    except (OSError, RuntimeError) as error:  # no permission; `~nobody-of-that-name`
        raise TargetError(f"`{python}` can't be read: {error}", hint=_AN_INTERPRETER) from None
    if len(python.parts) == 1 and (found := shutil.which(str(python))):
        return Path(found)
    raise TargetError(f"There is no Python at `{python}`", hint=_AN_INTERPRETER)


def _ask(python: Path) -> dict[str, Any]:
    """Run the probe in `python` and return what it printed."""
    ended = _answer(python, "-I", _environment_probe.__file__)
    if ended.status < 0:
        # Somebody ended it, or a system that had no memory left: mostly not twice.
        ended = _answer(python, "-I", _environment_probe.__file__)
    if ended.status < 0:
        raise TargetError(
            f"`{python}` was ended from outside ({signal_name(-ended.status)}) as it was asked "
            "what is installed",
            hint="try again; where memory ran out, end what uses it first",
            detail=ended.errors,
        )
    # A .pth file may print before the probe does: the description is the last line.
    try:
        description = json.loads((ended.output.splitlines() or [b""])[-1])
    except ValueError:
        description = None
    if ended.status == 0 and isinstance(description, dict):
        return description
    # Python 2 doesn't know `-I`, and 3.6 not the probe's syntax: ask again in words that both know.
    words = "import sys; sys.stdout.write('Python %d.%d' % sys.version_info[:2])"
    match = re.fullmatch(rb"Python (\d+)\.(\d+)", _answer(python, "-c", words).output)
    if match is None:
        raise TargetError(
            f"`{python}` is not a Python interpreter", hint=_AN_INTERPRETER, detail=ended.errors
        )
    if (int(match[1]), int(match[2])) < (3, 8):
        raise TargetError(
            f"`{python}` is {match[0].decode()}, which is too old",
            hint="PyTorch needs Python 3.10 or newer: name such an interpreter",
        )
    raise TargetError(
        f"`{python}` is {match[0].decode()}, and can't describe itself",
        hint=f"run `{python} -I -c 'import json, sysconfig'` to see what is wrong with it",
        detail=ended.errors,
    )


def _answer(python: Path, *arguments: str) -> InterpreterRun:
    try:
        ended = run_interpreter(python, arguments, timeout_seconds=_DESCRIBE_SECONDS)
    except OSError as error:
        raise TargetError(
            f"`{python}` can't be run: {error.strerror or error}", hint=_AN_INTERPRETER
        ) from None
    if ended.timed_out:
        raise TargetError(
            f"`{python}` did not answer within {_DESCRIBE_SECONDS} s",
            hint="start it by hand to see what it waits for",
            detail=ended.errors,
        )
    return ended


# ---------------------------------------------------------------------------- another interpreter


@dataclass(frozen=True, slots=True, kw_only=True)
class InterpreterRun:
    """How a run of an interpreter ended."""

    status: int
    """The exit status; negative is the signal's number."""
    output: bytes
    errors: str
    """The end of its stderr."""
    timed_out: bool


def run_interpreter(
    python: Path,
    arguments: Sequence[str],
    *,
    timeout_seconds: float,
    stdin: bytes = b"",
    stopped_by: Callable[[Callable[[], None]], AbstractContextManager[None]] | None = None,
) -> InterpreterRun:
    """Run `python` with `arguments` and wait for its end, for `timeout_seconds` at most.

    It runs apart from the kernel's interrupt, with `child_environment`, and what it has started
    ends with it where it doesn't end by itself, or where the wait for it is interrupted. What no
    signal ends, since it hangs in a sick driver, is left behind.

    `stopped_by` is handed what ends it early, for as long as it runs: a cancellation's `stops`.

    Raises
    ------
    OSError
        It can't be started.
    """
    # Not by `with`, whose end waits without a bound.
    process = subprocess.Popen(
        [str(python), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(os.environ),
        # A kernel's interrupt goes to its whole process group (on Windows: its console).
        start_new_session=True,
        creationflags=_APART_ON_WINDOWS,
    )
    timed_out = False
    stops = stopped_by(lambda: _stop(process)) if stopped_by else contextlib.nullcontext()
    try:
        with stops:
            output, errors = process.communicate(stdin, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        timed_out = True
        _stop(process)
        output, errors = _rest(process)
    except BaseException:
        _stop(process)
        raise
    finally:
        _close(process)
    return InterpreterRun(
        status=process.returncode if process.returncode is not None else _KILLED,
        output=output,
        errors=errors[-_LONGEST_ERRORS:].decode("utf-8", "replace"),
        timed_out=timed_out,
    )


def signal_name(number: int) -> str:
    """Return what a signal is called, or its number.

    >>> signal_name(15)
    'SIGTERM'
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


_KILLED = -9
_LONGEST_ERRORS = 4000
_APART_ON_WINDOWS = 0
if sys.platform == "win32":
    _APART_ON_WINDOWS = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Kill the child and, where there are groups, what it has started: those hold the pipes too."""
    if sys.platform == "win32":
        process.kill()
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS says so of a group that is just ending
        process.kill()


def _close(process: subprocess.Popen[bytes]) -> None:
    """Wait for the child, which has ended or was killed, so that it leaves no zombie; not for ever.

    Popen itself doesn't wait for a child after an interrupt.
    """
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what it was to be told can't be told any more
                pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1)


def _rest(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    try:
        return process.communicate(timeout=1)
    except subprocess.TimeoutExpired as error:  # something left the group, and holds the pipes
        return error.output or b"", error.stderr or b""


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for another interpreter: this one's, without what would lead it astray.

    No secrets, for it runs what the environment holds; none of this Python's own places (`-I`
    ignores them, but what it starts would not; `__PYVENV_LAUNCHER__` is macOS's).

    >>> child_environment({"PATH": "/bin", "JUPYTERHUB_API_TOKEN": "x", "PYTHONHOME": "/x"})
    {'PATH': '/bin'}
    """
    places = ("PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__")
    return {
        name: value for name, value in environ.items() if name not in places and not is_secret(name)
    }


# ------------------------------------------------------------------------------ fit to be changed


def check_target(environment: Environment) -> None:
    """Check that packages may and can be installed into `environment`. Space is not looked at.

    Raises
    ------
    TargetError
        It is externally managed (PEP 668), frozen (conda's CEP 22), or not writable.
    """
    own = "`%torchenv new-kernel NAME` makes an environment of your own, with PyTorch and a kernel"
    shown = shown_path(environment.prefix)
    if environment.externally_managed is not None:
        raise TargetError(
            f"`{shown}` belongs to the system's package manager, which forbids installing into it",
            hint=own,
            detail=environment.externally_managed,
        )
    # uv doesn't look at this file, and installs.
    frozen = environment.prefix / "conda-meta" / "frozen"
    if environment.kind == "conda" and frozen.exists():
        raise TargetError(
            f"The conda environment `{shown}` is frozen, which forbids installing into it",
            hint=own,
            detail=_frozen_message(frozen),
        )
    if not environment.writable:
        place = shown_path(environment.site_packages)
        raise TargetError(f"`{place}` is not writable, so nothing can be installed there", hint=own)


def _frozen_message(path: Path) -> str:
    """Return what the one who froze the environment had to say: CEP 22 has it in JSON, or empty."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    message = content.get("message", "") if isinstance(content, dict) else ""
    return message if isinstance(message, str) else ""


# -------------------------------------------------------------------------------- PyTorch's family

FAMILY_MEMBERS = ("torch", "torchvision", "torchaudio", "torchtext")
"""What is built once per backend and carries it as its local version (`0.28.0+cu126`): to change
the backend is to change all of them."""

# What a build of torch brings along: the dependencies of torch 2.4 to 2.15 on PyPI and of the xpu
# and rocm builds. Named one by one, since `nvidia-ml-py` or `nvidia-nvcomp-cu12` aren't torch's.
_SATELLITE = re.compile(
    r"""
      triton | triton-rocm | triton-xpu | pytorch-triton(?:-rocm|-xpu)?
    | nvidia-(?:cublas|cuda-cccl|cuda-cupti|cuda-nvrtc|cuda-runtime|cudnn|cufft|cufile|curand
        |cusolver|cusparse|cusparselt|nccl|nvjitlink|nvshmem|nvtx)(?:-cu\d+)?
    | cuda-toolkit | cuda-bindings | cuda-pathfinder
    | rocm | rocm-sdk-[a-z0-9-]+
    | intel-cmplr-lib-rt | intel-cmplr-lib-ur | intel-cmplr-lic-rt | intel-opencl-rt
    | intel-sycl-rt | intel-openmp | intel-pti | dpcpp-cpp-rt | mkl | onemkl-sycl-[a-z]+
    | onemkl-license | oneccl | oneccl-devel | impi-rt | tbb | tcmlib | umf
    """,
    re.VERBOSE,
)


def is_satellite(name: str) -> bool:
    """Tell whether the package of that (normalized) name is one that torch brings along.

    Another package may need it too: `dependents` says so.

    >>> is_satellite("nvidia-cudnn-cu13"), is_satellite("nvidia-ml-py")
    (True, False)
    """
    return _SATELLITE.fullmatch(name) is not None


def family(environment: Environment) -> tuple[InstalledPackage, ...]:
    """Return what of PyTorch is installed: members first, in their order, then satellites."""
    members = [
        package
        for name in FAMILY_MEMBERS
        for package in environment.packages
        if package.name == name
    ]
    satellites = [package for package in environment.packages if is_satellite(package.name)]
    return (*members, *satellites)


def dependents(environment: Environment) -> tuple[tuple[InstalledPackage, tuple[str, ...]], ...]:
    """Return each installed package that requires the family, with those of its requirements.

    Without the family's own, and without requirements whose marker is false in `environment`.
    """
    found = []
    for package in environment.packages:
        if package.name in FAMILY_MEMBERS or is_satellite(package.name):
            continue
        requirements = tuple(
            text for text in package.requires if _requires_family(text, environment.interpreter)
        )
        if requirements:
            found.append((package, requirements))
    return tuple(found)


_CONDA_NAMES = {"torch": ("pytorch", "pytorch-cpu", "pytorch-gpu", "libtorch", "torch")}


def is_condas(environment: Environment, package: InstalledPackage) -> bool:
    """Tell whether conda installed a member of the family: it says so, or has it on its books.

    Packages of the `pytorch` channel say nothing, and some of conda-forge were built by pip and say
    so. What uv installed since is uv's.
    """
    if package.installer in ("conda", "uv"):
        return package.installer == "conda"
    if environment.kind != "conda" or package.name not in FAMILY_MEMBERS:
        return False
    names = _CONDA_NAMES.get(package.name, (package.name,))
    books = environment.prefix / "conda-meta"
    return any(any(books.glob(f"{name}-{package.version}-*.json")) for name in names)


def _requires_family(text: str, interpreter: Interpreter) -> bool:
    # A name before it is parsed: parsing all 600 requirements of an environment takes 20 ms.
    match = re.match(r"[A-Za-z0-9._-]+", text)
    name = canonicalize_name(match[0]) if match else ""
    if name not in FAMILY_MEMBERS and not is_satellite(name):
        return False
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        logger.info("not a requirement, left out: %r", text)
        return False
    try:
        return requirement.marker is None or requirement.marker.evaluate(
            {
                "python_version": ".".join(interpreter.version.split(".")[:2]),
                "python_full_version": interpreter.version,
                "implementation_name": interpreter.implementation,
            }
        )
    except (UndefinedComparison, UndefinedEnvironmentName):  # `os_name ~= "posix"`
        logger.info("not a marker that can be judged, left out: %r", text)
        return False


def installed_backend(environment: Environment) -> Backend | None:
    """Return the backend of the installed torch, None where none is there or it doesn't say.

    torch is not imported: its version says it or, without a local part (PyPI's wheel, conda's
    package), the text of `torch/version.py`.
    """
    torch = environment.installed("torch")
    if torch is None:
        return None
    if backend := backend_of_torch_version(torch.version):
        return backend
    beside = torch.metadata_directory.parent if torch.metadata_directory else None
    path = (beside or environment.site_packages) / "torch" / "version.py"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return _backend_of_version_file(text)


def backend_of_torch_version(version: str) -> Backend | None:
    """Return the backend that a version's local part names.

    >>> str(backend_of_torch_version("2.13.0+rocm7.2"))
    'rocm7.2'
    """
    try:
        return backend_of_local_version(Version(version).local)
    except InvalidVersion:
        return None


def backend_of_local_version(local: str | None) -> Backend | None:
    """Return the backend that starts a local version: `cu124` of `cu124.with.pypi.cudnn`."""
    match = re.match(r"(?:cpu|xpu|cu\d{3,}|rocm\d+(?:\.\d+)+)(?![a-z0-9])", local or "")
    return Backend.parse(match[0]) if match else None


def _backend_of_version_file(text: str) -> Backend | None:
    # The generated file, with and without annotations:  cuda: Optional[str] = '13.0'
    def value(name: str) -> str | None:
        match = re.search(rf"^{name}\b[^=\n]*=\s*['\"]([^'\"\n]*)['\"]", text, re.MULTILINE)
        return match[1] if match else None

    if not re.search(r"^cuda\b", text, re.MULTILINE):
        return None
    return backend_of_build(cuda=value("cuda"), hip=value("hip"), xpu=value("xpu"))


def backend_of_build(*, cuda: str | None, hip: str | None, xpu: str | None) -> Backend | None:
    """Return the backend that `torch.version` describes, None where a number is none.

    HIP counts its patches on its own (ROCm 6.2.4 has HIP 6.2.41134): two numbers of it are ROCm's.
    """
    for kind, number in (("rocm", hip), ("cuda", cuda)):
        if number:
            match = re.match(r"(\d+)\.(\d+)", number)
            version = (int(match[1]), int(match[2])) if match else None
            if version is None:
                return None
            return Backend("rocm", version) if kind == "rocm" else Backend("cuda", version)
    return Backend("xpu") if xpu else Backend("cpu")


# ------------------------------------------------------------------------------------------ words


def shown_path(path: Path) -> str:
    """Return `path` with the home directory as `~`."""
    home = os.path.expanduser("~")  # noqa: PTH111  (Path.home() raises where there is none)
    text = str(path)
    return "~" + text[len(home) :] if home != "/" and text.startswith(home + os.sep) else text


def _decimal_size(size: int) -> str:
    """Return bytes in the units of disks and downloads: `412 GB`, `6.9 GB`, `840 MB`."""
    if size >= 10**9:
        return f"{size / 10**9:.0f} GB" if size >= 10**10 else f"{size / 10**9:.1f} GB"
    return f"{size / 10**6:.0f} MB"
