"""What a restart would cost this session: loaded modules, variables, child processes, threads."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import re
import sys
import threading
import time
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchenv_magic.installation.progress import format_bytes

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = [
    "ChildProcess",
    "LoadedDistribution",
    "SessionEffects",
    "UserVariable",
    "child_processes",
    "describe_session",
    "loaded_distributions",
    "top_level_modules",
    "user_variables",
]

WORK_BYTES = 1_000_000
"""Variables of this size together took work; below, running the cells again is cheaper."""

_TIME_BOUND_SECONDS = 0.005
_ITEMS_BOUND = 1000
_PARAMETERS_BOUND = 2000
_COLUMNS_BOUND = 100

# Helpers that a library starts behind the user's back, named by a word of their command line.
_UPKEEP = ("multiprocessing.resource_tracker", "debugpy", "torchenv_magic")

# setuptools puts it into every interpreter at its start, and nothing of it is used.
_LOADED_ANYWAY = {"_distutils_hack"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedDistribution:
    name: str
    """As it was asked for: normalized."""
    modules: tuple[str, ...]
    """Those of its modules that this process has imported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserVariable:
    name: str
    type_name: str
    size_bytes: int
    """Of the data that it holds, where its type is known; else of the object alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildProcess:
    pid: int
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEffects:
    """What is loaded of the packages that change, and what the session would lose."""

    loaded: tuple[LoadedDistribution, ...] = ()
    variables: tuple[UserVariable, ...] = ()
    """Largest first."""
    complete: bool = True
    """Whether every variable was measured within the time bound."""
    children: tuple[ChildProcess, ...] = ()
    threads: tuple[str, ...] = ()
    """Names of the threads that the session waits for."""
    accelerator_bytes: int = 0
    """Memory that torch holds on CUDA or ROCm devices."""

    @property
    def must_restart(self) -> bool:
        """Whether this process has imported something that changes."""
        return bool(self.loaded)

    @property
    def size_bytes(self) -> int:
        return sum(variable.size_bytes for variable in self.variables)

    @property
    def holds_work(self) -> bool:
        """Whether the session holds what took work, so that a person is to be asked first."""
        return bool(
            self.size_bytes >= WORK_BYTES
            or self.accelerator_bytes >= WORK_BYTES
            or self.children
            or self.threads
        )

    def __str__(self) -> str:
        return " ".join(filter(None, (self.loaded_words, self.lost_words)))

    @property
    def loaded_words(self) -> str:
        """One sentence on what is loaded of what changes; empty where nothing is."""
        if not self.loaded:
            return ""
        names = _enumeration([f"`{item.name}`" for item in self.loaded], most=3)
        verb = "is" if len(self.loaded) == 1 else "are"
        return f"{names} {verb} loaded in this session and can only change with a restart."

    @property
    def lost_words(self) -> str:
        """One sentence on what a restart would take; empty where there is nothing."""
        return self.lost_by("a restart")

    def lost_by(self, event: str) -> str:
        """Return one sentence on what is lost by `event`; empty where there is nothing."""
        parts: list[str] = []
        if self.variables:
            count = len(self.variables)
            part = f"{count} variable{'s' if count > 1 else ''}"
            large = [each for each in self.variables[:3] if each.size_bytes >= WORK_BYTES]
            if large:
                named = [f"`{each.name}`, {format_bytes(each.size_bytes)}" for each in large]
                part += f" ({'largest: ' if count > 1 else ''}{'; '.join(named)})"
            parts.append(part)
        if self.accelerator_bytes >= WORK_BYTES:
            parts.append(f"{format_bytes(self.accelerator_bytes)} on the accelerator")
        if self.children:
            count = len(self.children)
            first = self.children[0]
            noun = "child process" if count == 1 else "child processes"
            parts.append(f"{count} {noun} (`{first.command}`, process {first.pid})")
        if self.threads:
            count = len(self.threads)
            parts.append(f"{count} running thread{'s' if count > 1 else ''}")
        if not parts:
            return ""
        verb = "is" if len(parts) == 1 and parts[0].startswith("1 ") else "are"
        return f"{_enumeration(parts)} {verb} lost with {event}."


def describe_session(shell: InteractiveShell, changed: Sequence[str]) -> SessionEffects:
    """Return what a restart would cost, given the names of the distributions that change.

    Cheap enough for a picker that is being drawn: the variables take 5 ms at most, and no property
    that computes is ever read.
    """
    variables, complete = user_variables(shell)
    return SessionEffects(
        loaded=loaded_distributions(changed, set(sys.modules)),
        variables=variables,
        complete=complete,
        children=child_processes(),
        threads=_threads(),
        accelerator_bytes=_accelerator_bytes(),
    )


def loaded_distributions(
    changed: Iterable[str], modules: set[str]
) -> tuple[LoadedDistribution, ...]:
    """Return those of the distributions `changed` that have a module in `modules`."""
    found = []
    for name in dict.fromkeys(map(_normalize, changed)):
        # The name itself too: what is loaded may come from another folder than the metadata, and
        # after an install the metadata is already the new one's.
        candidates = {name.replace("-", "_"), *top_level_modules(name)}
        loaded = tuple(sorted((candidates & modules) - _LOADED_ANYWAY))
        if loaded:
            found.append(LoadedDistribution(name=name, modules=loaded))
    return tuple(found)


def top_level_modules(name: str) -> tuple[str, ...]:
    """Return the importable names that the installed distribution brings; empty if there is none.

    `top_level.txt` where there is one, else the RECORD. A namespace (`nvidia`) belongs to nobody,
    so its second level counts (`nvidia.cublas`).
    """
    try:
        distribution = importlib.metadata.distribution(name)
        top_level = distribution.read_text("top_level.txt")
        record = None if top_level else distribution.read_text("RECORD")
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError):
        return ()
    if top_level:
        names = top_level.split()
        if names != ["nvidia"]:  # setuptools writes the namespace's name there
            return tuple(sorted(names))
        record = distribution.read_text("RECORD")
    return _modules_of_record(record or "")


def _modules_of_record(record: str) -> tuple[str, ...]:
    packages: set[str] = set()
    regular: set[str] = set()
    second_level: set[str] = set()
    modules: set[str] = set()
    for line in record.splitlines():
        path = line.rsplit(",", 2)[0].strip('"')
        parts = path.split("/")
        if path.startswith(("..", "/")) or parts[0].endswith((".dist-info", ".data")):
            continue
        stem, dot, suffix = parts[-1].partition(".")
        is_module = bool(dot) and suffix.rsplit(".", 1)[-1] in ("py", "so", "pyd")
        if len(parts) == 1:
            if is_module:
                modules.add(stem)
            continue
        packages.add(parts[0])
        if len(parts) == 2 and stem == "__init__":
            regular.add(parts[0])
        elif len(parts) == 2 and is_module:
            second_level.add(f"{parts[0]}.{stem}")
        elif len(parts) > 2:
            second_level.add(f"{parts[0]}.{parts[1]}")
    namespaces = packages - regular
    below = {name for name in second_level if name.split(".", 1)[0] in namespaces}
    return tuple(sorted(modules | regular | below))


def user_variables(shell: InteractiveShell) -> tuple[tuple[UserVariable, ...], bool]:
    """Return the user's own variables, largest first, and whether all of them were measured.

    Modules, functions and classes are left out: a cell brings them back at once. Two names of one
    object count once.
    """
    deadline = time.perf_counter() + _TIME_BOUND_SECONDS
    hidden = shell.user_ns_hidden
    nothing = object()
    seen: set[int] = set()
    variables = []
    complete = True
    # A copy: other threads (a widget's callback) may write while this one reads.
    for name, value in list(shell.user_ns.items()):
        if name.startswith("_") or hidden.get(name, nothing) is value or id(value) in seen:
            continue
        kind = type(value)
        if issubclass(
            kind,
            (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type),
        ):
            continue
        seen.add(id(value))
        if complete and time.perf_counter() > deadline:
            complete = False
        size = _size_of(value) if complete else 0
        variables.append(UserVariable(name=name, type_name=kind.__name__, size_bytes=size))
    return tuple(sorted(variables, key=lambda variable: -variable.size_bytes)), complete


def child_processes(*, upkeep: bool = False) -> tuple[ChildProcess, ...]:
    """Return the running children of this process; those that libraries keep only with `upkeep`.

    From /proc on Linux; elsewhere through psutil where it is installed (ipykernel 6 brings it,
    ipykernel 7 doesn't), else only those that `multiprocessing` knows.
    """
    if sys.platform.startswith("linux"):
        found = _children_in_proc(Path("/proc"), os.getpid())
    else:
        # Not measured on macOS and Windows.
        found = _children_elsewhere()
    return tuple(
        child for child in found if upkeep or not any(word in child.command for word in _UPKEEP)
    )


def _children_in_proc(proc: Path, parent: int) -> Iterator[ChildProcess]:
    for pid in _child_pids(proc, parent):
        try:
            stat = (proc / str(pid) / "stat").read_text(errors="replace")
            command = (proc / str(pid) / "cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        # The name stands in parentheses and may hold any character, so the state is behind the
        # last one.
        state = stat.rpartition(")")[2].split()[0]
        if state in "ZX":
            continue
        words = " ".join(filter(None, command.decode(errors="replace").split("\0")))
        # Between its fork and its exec a process has no command line yet, but its parent's name.
        name = stat.partition("(")[2].rpartition(")")[0]
        yield ChildProcess(pid=pid, command=_shorten(words or name))


def _child_pids(proc: Path, parent: int) -> list[int]:
    pids: list[int] = []
    try:
        for children in (proc / str(parent) / "task").glob("*/children"):
            pids.extend(map(int, children.read_text().split()))
    except (OSError, ValueError):
        pass
    else:
        if pids or (proc / str(parent) / "task" / str(parent) / "children").exists():
            return sorted(pids)
    # A Linux without CONFIG_PROC_CHILDREN.
    for stat in proc.glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == str(parent):
            pids.append(int(stat.parent.name))
    return sorted(pids)


def _children_elsewhere() -> Iterator[ChildProcess]:
    try:
        import psutil
    except ImportError:
        multiprocessing = sys.modules.get("multiprocessing")
        for process in multiprocessing.active_children() if multiprocessing else ():
            yield ChildProcess(pid=process.pid or 0, command=process.name)
        return
    for process in psutil.Process().children():
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                command = " ".join(process.cmdline()) or process.name()
                yield ChildProcess(pid=process.pid, command=_shorten(command))
        except psutil.Error:
            continue


def _threads() -> tuple[str, ...]:
    # asyncio's default executor keeps idle threads that are no daemons; `concurrent.futures`
    # stops them at exit.
    return tuple(
        thread.name
        for thread in threading.enumerate()
        if thread is not threading.main_thread()
        and not thread.daemon
        and not thread.name.startswith(("asyncio_", "torchenv-"))
    )


def _accelerator_bytes() -> int:
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    try:
        # Only asked where a context exists: to ask would otherwise make one.
        if cuda is None or not cuda.is_initialized():
            return 0
        return sum(int(cuda.memory_reserved(index)) for index in range(cuda.device_count()))
    except Exception:  # noqa: BLE001  (a broken driver must not keep the picker from being drawn)
        return 0


def _size_of(value: Any, *, depth: int = 1) -> int:  # noqa: ANN401  (whatever the user has)
    """Return the bytes of the data behind `value`, reading only what costs nothing to read."""
    kind = type(value)
    try:
        for module, measure in _MEASURES.items():
            # A type that we know can only be there if its library was imported.
            library = sys.modules.get(module)
            size = measure(value, library) if library is not None else None
            if size is not None:
                return size
        if depth and kind in (list, tuple, set, frozenset, dict):
            items = value.values() if kind is dict else value
            members = itertools.islice(list(items), _ITEMS_BOUND)
            return sys.getsizeof(value) + sum(_size_of(item, depth=depth - 1) for item in members)
        return object.__sizeof__(value) if kind.__module__ != "builtins" else sys.getsizeof(value)
    except Exception:  # noqa: BLE001  (a size is a courtesy; no object may break the magic)
        return 0


def _size_in_numpy(value: Any, numpy: Any) -> int | None:  # noqa: ANN401
    return int(value.nbytes) if type(value) is numpy.ndarray else None


def _size_in_torch(value: Any, torch: Any) -> int | None:  # noqa: ANN401
    kind = type(value)
    tensor = getattr(torch, "Tensor", None)
    if tensor is None:  # half imported, or a test's stand-in
        return None
    # Each may be missing where torch is half imported.
    network = getattr(torch, "nn", None)
    parameter, module = getattr(network, "Parameter", None), getattr(network, "Module", None)
    if kind is tensor or (parameter is not None and kind is parameter):
        # A sparse tensor's number of elements isn't what it stores.
        strided = value.layout is torch.strided
        return int(value.numel()) * int(value.element_size()) if strided else 0
    if module is not None and issubclass(kind, module):
        # The base class's own walk: a subclass may have made it compute.
        parameters = module.parameters(value)
        return sum(
            int(parameter.numel()) * int(parameter.element_size())
            for parameter in itertools.islice(parameters, _PARAMETERS_BOUND)
        )
    return None


def _size_in_pandas(value: Any, pandas: Any) -> int | None:  # noqa: ANN401
    kind = type(value)
    frame = getattr(pandas, "DataFrame", None)
    if frame is None:
        return None
    if kind is frame:
        rows, columns = value.shape
        if columns > _COLUMNS_BOUND:
            return int(rows) * int(columns) * 8
        return int(value.memory_usage(index=True, deep=False).sum())
    if kind is pandas.Series or kind is pandas.Index:
        return int(value.nbytes)
    return None


_MEASURES = {"numpy": _size_in_numpy, "torch": _size_in_torch, "pandas": _size_in_pandas}


def _enumeration(parts: Sequence[str], *, most: int | None = None) -> str:
    if most is not None and len(parts) > most:
        parts = [*parts[:most], f"{len(parts) - most} more"]
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _shorten(command: str, *, most: int = 60) -> str:
    return command if len(command) <= most else f"{command[: most - 1]}…"


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
