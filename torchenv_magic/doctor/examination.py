"""Look at the installed PyTorch: metadata, files, folders of libraries, and a try in a child.

Each reading is thin and bounded, and has its pure parser beside it. Nothing is judged here, and
nothing that is found can raise: what can't be read is a field that says so.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from torchenv_magic.builds.backend import Backend
from torchenv_magic.doctor import origin_probe
from torchenv_magic.doctor.problem import quoted
from torchenv_magic.environment import (
    FAMILY_MEMBERS,
    Environment,
    InstalledPackage,
    Interpreter,
    check_target,
    family,
    installed_backend,
    is_satellite,
    run_interpreter,
)
from torchenv_magic.errors import TargetError
from torchenv_magic.expectation import read_expectation
from torchenv_magic.verification.trial import ProbeRun, run_probe

__all__ = [
    "CondaPackage",
    "Examination",
    "FileCheck",
    "ForeignLibrary",
    "Origin",
    "SharedLibrary",
    "applies",
    "examine",
    "examine_files",
    "parse_record",
    "parse_version_file",
    "read_library_folders",
]

# A cold import of torch from a network drive takes a minute; more is a hang.
_TRY_SECONDS = 120.0
# 20 000 files of a CUDA build are 0.2 s on a disk. A network drive may not get through all.
_FILES_SECONDS = 3.0
_LARGEST = 8 << 20
"""Bytes of one text. torch's RECORD, the largest, has 1.3 MB."""
_MOST_FOLDERS = 64
_MOST_ENTRIES = 20_000
_NAMED = 3
"""Files that are named where many are missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCheck:
    """The files that a package's RECORD lists, against those that are there."""

    package: str
    listed: int = 0
    """0 where there is no RECORD, or nothing readable in it."""
    looked_at: int = 0
    """Fewer than listed where time ran out."""
    missing_count: int = 0
    missing: tuple[str, ...] = ()
    """The first few."""
    cut_off: tuple[str, ...] = ()
    """Libraries that are shorter than their RECORD says: a full disk, an interrupted copy."""
    size_bytes: int = 0
    """As the RECORD states them."""
    owns_module: bool = False
    """Whether the package's own module is among the files. It is not in an editable install."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedLibrary:
    """One path that several packages list: the one that was installed last has its file there."""

    path: str
    owners: tuple[tuple[str, int], ...]
    """(package, size in its RECORD)."""
    size_bytes: int | None
    """Of the file that is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignLibrary:
    """A library of the same name as one of the build's, in a folder that is searched before."""

    variable: str
    folder: str
    libraries: tuple[tuple[str, str], ...]
    """(name, path with its links followed, as Linux tells of what is loaded)."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.libraries)


@dataclass(frozen=True, slots=True, kw_only=True)
class CondaPackage:
    """A package of the PyTorch family that conda has on its books."""

    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What `import torch` would take in a Python that starts as a person's does."""

    path: str | None
    """None: there is no module of that name."""
    namespace: bool = False
    """A folder without `__init__.py`: what an uninstall left, or a folder of data."""
    via: str = ""
    """Why it is found: `PYTHONPATH`, `the current directory`, `the user site`, or empty."""
    is_installed: bool = False
    """Whether it is the module that the installed package brought."""
    version: str | None = None
    """What the `version.py` beside it says: None where there is none, and it is no PyTorch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """All that was seen of one environment's PyTorch."""

    environment: Environment
    backend: Backend | None = None
    """The installed build; None where torch is missing, or doesn't say."""
    version_file: str | None = None
    """The version in `torch/version.py`, as text: it is not imported. None where none is read."""
    asked_backend: Backend | None = None
    """What was asked for with the last install through this package."""
    files: tuple[FileCheck, ...] = ()
    shared: tuple[SharedLibrary, ...] = ()
    leftovers: tuple[str, ...] = ()
    """Folders that pip left behind when an uninstall was interrupted: `~orch`."""
    requirements: tuple[tuple[str, str], ...] = ()
    """(package, requirement) of what torch needs on this system, and of what that brings."""
    named_by_others: tuple[str, ...] = ()
    """NVIDIA's packages that others name, be it for an extra: so JAX and TensorFlow take theirs."""
    conda: tuple[CondaPackage, ...] = ()
    foreign_libraries: tuple[ForeignLibrary, ...] = ()
    searched_folders: int = 0
    """How many folders of libraries the variables name."""
    origin: Origin | None = None
    """None where the interpreter gave no answer."""
    loaded_torch: str | None = None
    """The version that the kernel's own process holds."""
    failed_import_left: bool = False
    """Whether the kernel's process holds parts of a torch whose import failed."""
    visibility: tuple[tuple[str, str], ...] = ()
    """Variables that choose GPUs, with their values."""
    uvm_missing: bool = False
    """Whether the NVIDIA driver has its device nodes here but for the one that CUDA needs."""
    run: ProbeRun | None = None
    """The try in a child process; None where torch is not installed."""
    obstacle: str | None = None
    """Why nothing can be installed here, where that is so, with what to do about it."""
    uv: str = "uv"
    """What starts uv in a shell of this session."""
    recovered: str | None = None
    """What an interrupted install of ours had left, if it had."""
    unrepaired: str | None = None


def examine(
    environment: Environment,
    *,
    environ: Mapping[str, str] | None = None,
    in_session: bool = False,
    root: Path = Path("/"),
    recovered: str | None = None,
    unrepaired: str | None = None,
    try_seconds: float = _TRY_SECONDS,
) -> Examination:
    """Look at the PyTorch of `environment`; raise for nothing that is found.

    `in_session` says that this process is the kernel of that environment, whose own path and
    modules count. `root` is where `dev` is; another one than `/` is for tests.
    """
    environ = os.environ if environ is None else environ
    torch = environment.installed("torch")
    loaded = sys.modules.get("torch") if in_session else None
    files = examine_files(environment, environ=environ, root=root)
    return replace(
        files,
        origin=_looked_at(_find_origin(environment, environ, in_session=in_session), torch),
        loaded_torch=_text(getattr(loaded, "__version__", None)),
        failed_import_left=in_session
        and loaded is None
        and any(name.startswith("torch.") for name in sys.modules),
        run=_try(files, try_seconds) if torch is not None else None,
        recovered=recovered,
        unrepaired=unrepaired,
    )


def examine_files(
    environment: Environment, *, environ: Mapping[str, str], root: Path = Path("/")
) -> Examination:
    """Look at what lies in files and variables, and start no process."""
    torch = environment.installed("torch")
    records = {package.name: _read_record(package) for package in family(environment)}
    own = own_libraries(records, environment)
    folders, foreign = read_library_folders(environ, own)
    expectation = read_expectation(environment.prefix)
    return Examination(
        environment=environment,
        backend=installed_backend(environment),
        version_file=_read_version_file(environment, torch),
        asked_backend=expectation.backend if expectation else None,
        files=_check_files(family(environment), records),
        shared=_shared_libraries(environment, records),
        leftovers=_leftovers(environment.site_packages),
        requirements=_requirements(environment, torch),
        named_by_others=_named_by_others(environment),
        conda=_read_conda(environment.prefix),
        foreign_libraries=foreign,
        searched_folders=folders,
        visibility=tuple((name, environ[name]) for name in _VISIBILITY if name in environ),
        uvm_missing=(root / "dev/nvidiactl").exists() and not (root / "dev/nvidia-uvm").exists(),
        obstacle=_obstacle(environment),
        # Who starts a kernel without activating its environment has that folder not on the path.
        uv="uv"
        if shutil.which("uv", path=environ.get("PATH"))
        else f"{quoted(sys.executable)} -m uv",
    )


_VISIBILITY = (
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "HSA_OVERRIDE_GFX_VERSION",
)


def _obstacle(environment: Environment) -> str | None:
    try:
        check_target(environment)
    except TargetError as error:
        return f"{error.message}: {error.hint}"
    return None


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _try(files: Examination, seconds: float) -> ProbeRun:
    """Import torch, compute, and import its companions, in a process of their own."""
    requirements = (_requirement(text) for _, text in files.requirements)
    needed = [canonicalize_name(each.name) for each in requirements if each is not None]
    question = {
        # It sees what lies beside the environment too: in the Python below it, in Debian's folder.
        "packages": list(dict.fromkeys([*FAMILY_MEMBERS, *needed])),
        "extensions": list(FAMILY_MEMBERS[1:]),
        "backend": None,
    }
    return run_probe(files.environment.interpreter, question, seconds)


def _read_text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST).decode("utf-8", "replace")
    except (OSError, ValueError):
        return None


# --------------------------------------------------------------------------------- torch/version.py


def _read_version_file(environment: Environment, torch: InstalledPackage | None) -> str | None:
    if torch is None:
        return None
    beside = torch.metadata_directory.parent if torch.metadata_directory else None
    text = _read_text((beside or environment.site_packages) / "torch" / "version.py")
    return None if text is None else parse_version_file(text)


def parse_version_file(text: str) -> str | None:
    """Return the version that the generated file says, with and without annotations.

    >>> parse_version_file("__version__ = '2.13.0+cpu'")
    '2.13.0+cpu'
    """
    match = re.search(
        r"^__version__\b[^=\n]{0,80}=[ \t]*['\"]([^'\"\n]{1,80})['\"]", text, re.MULTILINE
    )
    return match[1] if match and match[1].isprintable() else None


# -------------------------------------------------------------------------------------- the files

Rows = tuple[tuple[str, int | None], ...]
"""(path beside the metadata's folder, size) of a RECORD."""

_LIBRARY = re.compile(r"\.(?:so(?:\.\d+)*|dll|dylib|pyd)$")


def parse_record(text: str) -> Rows:
    """Return the rows of a RECORD; a line that is none is left out."""
    rows: list[tuple[str, int | None]] = []
    # A NUL is an error to Python 3.10's reader, and in no path.
    reader = csv.reader(text.replace("\0", "").splitlines())
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return tuple(rows)
        except csv.Error:  # a field longer than any path
            continue
        if row and row[0]:
            size = row[2] if len(row) > 2 else ""
            is_number = size.isascii() and size.isdigit() and len(size) < 16
            rows.append((row[0], int(size) if is_number else None))


def _read_record(package: InstalledPackage) -> Rows:
    if package.metadata_directory is None:
        return ()
    return parse_record(_read_text(package.metadata_directory / "RECORD") or "")


def _check_files(
    packages: Iterable[InstalledPackage], records: Mapping[str, Rows]
) -> tuple[FileCheck, ...]:
    deadline = time.monotonic() + _FILES_SECONDS
    packages = tuple(packages)
    copies = Counter(package.name for package in packages)
    # Of what is there twice, one has lost its files to the other, which says nothing new.
    return tuple(
        _check(package, records[package.name], deadline)
        for package in packages
        if package.metadata_directory is not None and copies[package.name] == 1
    )


def _check(package: InstalledPackage, rows: Rows, deadline: float) -> FileCheck:
    place = str(package.metadata_directory.parent) if package.metadata_directory else ""
    missing: list[str] = []
    cut_off: list[str] = []
    looked_at = 0
    for path, size in rows:
        if time.monotonic() > deadline:
            break
        looked_at += 1
        # Compiled files come and go, and whoever tidies up deletes them.
        if path.endswith(".pyc"):
            continue
        try:
            actual = os.stat(os.path.join(place, path)).st_size  # noqa: PTH116, PTH118  (20 000)
        except (OSError, ValueError):
            missing.append(path)
            continue
        # conda rewrites what it links; only a wheel's library has the size that its RECORD says.
        if (
            size is not None
            and actual < size
            and package.installer != "conda"
            and _LIBRARY.search(path)
        ):
            cut_off.append(path)
    module = package.name.replace("-", "_")
    return FileCheck(
        package=package.name,
        listed=len(rows),
        looked_at=looked_at,
        missing_count=len(missing),
        missing=tuple(missing[:_NAMED]),
        cut_off=tuple(cut_off[:_NAMED]),
        size_bytes=sum(size or 0 for _, size in rows),
        owns_module=any(path == f"{module}/__init__.py" for path, _ in rows),
    )


def _shared_libraries(
    environment: Environment, records: Mapping[str, Rows]
) -> tuple[SharedLibrary, ...]:
    """Return the libraries that two packages of NVIDIA list, such as cuDNN for CUDA 12 and 13."""
    owners: dict[str, list[tuple[str, int]]] = {}
    for name, rows in records.items():
        if name.startswith("nvidia-"):
            for path, size in rows:
                if _LIBRARY.search(path):
                    owners.setdefault(path, []).append((name, size or 0))
    found = []
    for path, sharing in owners.items():
        if len({name for name, _ in sharing}) < 2:
            continue
        try:
            size_here = (environment.site_packages / path).stat().st_size
        except (OSError, ValueError):
            size_here = None
        found.append(SharedLibrary(path=path, owners=tuple(sharing), size_bytes=size_here))
    return tuple(found)


def _leftovers(site: Path) -> tuple[str, ...]:
    """Return what pip set aside and never removed: the name with its beginning replaced."""
    try:
        with os.scandir(site) as entries:
            names = [entry.name for entry in entries if entry.name.startswith("~")]
    except OSError:
        return ()
    return tuple(sorted(name for name in names if _LEFTOVER.fullmatch(name)))


# pip's `AdjacentTempDirectory` replaces one letter or more: `~orch`, `~-rch`, `~~ch-2.1.dist-info`.
_LEFTOVER = re.compile(
    r"~[-~.=%0-9]*(?:"
    + "|".join(
        re.escape(name[cut:])
        for name in (*FAMILY_MEMBERS, "torchgen", "functorch", "nvidia", "triton")
        for cut in (1, 2, 3)
    )
    + r")(?:-[^/]*\.(?:dist|egg)-info)?"
)


# ------------------------------------------------------------------------------ what torch requires


def applies(requirement: Requirement, interpreter: Interpreter, extra: str = "") -> bool:
    """Return whether a requirement's marker holds for `interpreter` on this system."""
    if requirement.marker is None:
        return True
    try:
        return requirement.marker.evaluate(
            {
                "python_version": ".".join(interpreter.version.split(".")[:2]),
                "python_full_version": interpreter.version,
                "implementation_name": interpreter.implementation,
                "extra": extra,
            }
        )
    except Exception:  # noqa: BLE001  (a marker can compare a version with what is none)
        return False


def _requirements(
    environment: Environment, torch: InstalledPackage | None
) -> tuple[tuple[str, str], ...]:
    """Return what torch needs here; of `cuda-toolkit[cudart,…]` too what its extras need."""
    if torch is None:
        return ()
    found = []
    for text in torch.requires:
        requirement = _requirement(text)
        if requirement is None or not applies(requirement, environment.interpreter):
            continue
        found.append(("torch", text))
        brought = environment.installed(canonicalize_name(requirement.name))
        if not requirement.extras or brought is None or brought.metadata_directory is None:
            continue
        metadata = _read_text(brought.metadata_directory / "METADATA") or ""
        for line in _requires_dist(metadata):
            inner = _requirement(line)
            if inner is not None and any(
                applies(inner, environment.interpreter, extra) for extra in requirement.extras
            ):
                found.append((brought.name, line))
    return tuple(dict.fromkeys(found))


def _named_by_others(environment: Environment) -> tuple[str, ...]:
    """Return NVIDIA's packages that a package outside of the family names, for an extra or not.

    Which extras were asked for nothing records: the environment's own reader leaves them out.
    """
    if not any(package.name.startswith("nvidia-") for package in family(environment)):
        return ()
    names: set[str] = set()
    for package in environment.packages:
        inside = package.name in FAMILY_MEMBERS or is_satellite(package.name)
        if inside or package.metadata_directory is None:
            continue
        metadata = _read_text(package.metadata_directory / "METADATA") or ""
        for text in _requires_dist(metadata) if "nvidia" in metadata else ():
            match = re.match(r"[A-Za-z0-9._-]+", text)
            name = canonicalize_name(match[0]) if match else ""
            if name.startswith("nvidia-"):
                names.add(name)
    return tuple(sorted(names))


def _requires_dist(metadata: str) -> list[str]:
    headers = metadata.partition("\n\n")[0]
    return re.findall(r"^Requires-Dist:[ \t]*([^\n]{1,1000})$", headers, re.MULTILINE)


def _requirement(text: str) -> Requirement | None:
    try:
        return Requirement(text)
    except (InvalidRequirement, RecursionError):
        return None


# ------------------------------------------------------------------------------------------- conda

_CONDA_NAMES = ("pytorch", "libtorch", "torchvision", "torchaudio")


def _read_conda(prefix: Path) -> tuple[CondaPackage, ...]:
    """Return what conda's books say: a file a package, `pytorch-2.5.1-py3.11_cuda12.4_0.json`."""
    try:
        with os.scandir(prefix / "conda-meta") as entries:
            names = sorted(entry.name for entry in entries)
    except OSError:
        return ()
    found = []
    for file_name in names:
        name, _, rest = file_name.removesuffix(".json").partition("-")
        # `pytorch-cuda-12.4-…` and `pytorch-mutex-1.0-…` are other packages.
        if file_name.endswith(".json") and name in _CONDA_NAMES and rest[:1].isdigit():
            found.append(CondaPackage(name=name, version=rest.partition("-")[0]))
    return tuple(found)


# ----------------------------------------------------------------------------- folders of libraries


def own_libraries(records: Mapping[str, Rows], environment: Environment) -> dict[str, str]:
    """Return each library that the build brings: its name, and the path that it lies at."""
    own: dict[str, str] = {}
    for rows in records.values():
        for path, _ in rows:
            folder, _, name = path.rpartition("/")
            if _LIBRARY.search(name) and folder.rpartition("/")[2] in ("lib", "bin"):
                own.setdefault(name, str(environment.site_packages / path))
    return own


def library_variable() -> str:
    """Return the variable whose folders the system searches for libraries."""
    return {"win32": "PATH", "darwin": "DYLD_LIBRARY_PATH"}.get(sys.platform, "LD_LIBRARY_PATH")


def read_library_folders(
    environ: Mapping[str, str], own: Mapping[str, str]
) -> tuple[int, tuple[ForeignLibrary, ...]]:
    """Return how many folders are searched first, and those with libraries of the build's names.

    A folder with the driver's `libcuda` alone is none of them: no build brings that. Neither is one
    that holds the very files of the build.
    """
    variable = library_variable()
    # An empty entry is the current directory to the loader, and mostly a slip.
    texts = [text for text in environ.get(variable, "").split(os.pathsep) if text]
    folders = list(dict.fromkeys(texts))[:_MOST_FOLDERS]
    found = []
    for folder in folders:
        names = sorted(name for name in _names_in(folder) if name in own)
        libraries = tuple(
            (name, os.path.realpath(os.path.join(folder, name)))  # noqa: PTH118
            for name in names
            if not _same(folder, name, own[name])
        )
        if libraries:
            found.append(ForeignLibrary(variable=variable, folder=folder, libraries=libraries))
    return len(folders), tuple(found)


def _names_in(folder: str) -> list[str]:
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) >= _MOST_ENTRIES:
                    break
    except (OSError, ValueError):
        return []
    return names


def _same(folder: str, name: str, own: str) -> bool:
    try:
        return os.path.samefile(os.path.join(folder, name), own)  # noqa: PTH118, PTH121
    except (OSError, ValueError):
        return False


# ----------------------------------------------------------------------------------------- the path

_ORIGIN_SECONDS = 10


def _find_origin(
    environment: Environment, environ: Mapping[str, str], *, in_session: bool
) -> Origin | None:
    """Ask which `torch` is found first: this process, or a fresh one of that interpreter."""
    folders = [text for text in environ.get("PYTHONPATH", "").split(os.pathsep) if text]
    if in_session:
        return parse_origin(origin_probe.find_torch([]), folders)
    try:
        # What a person starts here looks into this folder first.
        extra = [str(Path.cwd()), *folders]
        run = run_interpreter(
            environment.interpreter.executable,
            [origin_probe.__file__],
            timeout_seconds=_ORIGIN_SECONDS,
            stdin=json.dumps({"extra": extra}).encode("ascii") + b"\n",
        )
        answer = json.loads((run.output.splitlines() or [b""])[-1])
    except (OSError, ValueError, RecursionError):
        return None
    return parse_origin(answer, folders)


def _looked_at(origin: Origin | None, torch: InstalledPackage | None) -> Origin | None:
    """Return the origin with its version, and whether it is the installed one, links followed."""
    if origin is None or origin.path is None:
        return origin
    folder = origin.path if origin.namespace else os.path.dirname(origin.path)  # noqa: PTH120
    if Path(origin.path).stem == "__init__":
        text = _read_text(Path(folder) / "version.py")
        origin = replace(origin, version=parse_version_file(text or ""))
    if torch is None or torch.metadata_directory is None:
        return origin
    expected = torch.metadata_directory.parent / "torch"
    try:
        same = os.path.samefile(folder, expected)  # noqa: PTH121
    except (OSError, ValueError):
        same = False
    return replace(origin, is_installed=same)


def parse_origin(answer: Any, pythonpath: Iterable[str]) -> Origin | None:  # noqa: ANN401
    """Return what the probe answered, None where it is no answer of its."""
    if not isinstance(answer, dict):
        return None
    path = answer.get("origin")
    if not isinstance(path, str):
        return Origin(path=None) if path is None and "origin" in answer else None
    namespace = bool(answer.get("namespace"))
    module = Path(path)
    # torch.py lies in the folder itself, torch/__init__.py one below it; a namespace is a folder.
    holder = module.parent.parent if module.stem == "__init__" else module.parent
    places = [
        *((text, "PYTHONPATH") for text in pythonpath),
        (answer.get("user_site"), "the user site"),
        (answer.get("folder"), "the current directory"),
    ]
    via = next(
        (
            words
            for text, words in places
            if isinstance(text, str) and os.path.normcase(Path(text)) == os.path.normcase(holder)
        ),
        "",
    )
    return Origin(path=path, namespace=namespace, via=via)
