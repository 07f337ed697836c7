"""Replace the kernel's process by a fresh one with the same ports and process id (POSIX)."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from torchenv_magic.notebook.session import child_processes

__all__ = ["end_child_processes", "launch_environment", "re_exec_obstacle", "replace_process"]

_CHILDREN_SECONDS = 1.0


def re_exec_obstacle(
    *, platform: str, arguments: Sequence[str], executable: str, connection_file: Path | None
) -> str | None:
    """Return why a kernel's process can't replace itself by a fresh one, None where it can.

    Only a command line that names this very connection file leads to the same ports again.
    """
    if platform in ("win32", "emscripten"):
        return "a process can't replace itself on this system"
    if connection_file is None or not executable:
        return "the kernel has no connection file, or Python doesn't know its own executable"
    words = list(arguments)
    if ("-m", "ipykernel_launcher") not in itertools.pairwise(words):
        return "the kernel was not started by ipykernel_launcher"
    if "-f" not in words[:-1]:
        return "the kernel's command line names no connection file"
    named = words[words.index("-f") + 1]
    if os.path.realpath(named) != os.path.realpath(connection_file):
        return "the kernel's command line names another connection file"
    return None


def launch_environment() -> dict[str, str]:
    """Return the environment that this process was started with: call it at `%load_ext`.

    Linux keeps the original, whatever a cell has changed before; elsewhere it is a copy from now.
    """
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):
            entries = Path("/proc/self/environ").read_bytes().split(b"\0")
            pairs = [os.fsdecode(entry).partition("=") for entry in entries if entry]
            # A process that renames itself (setproctitle) writes its name over the block.
            if pairs and all(name and separator for name, separator, _ in pairs):
                return {name: value for name, _, value in pairs}
    return dict(os.environ)


def end_child_processes() -> None:
    """End what stands in this process's group, as ipykernel does when it shuts down."""
    if sys.platform == "win32":
        return
    group = os.getpgrp()
    if group != os.getpid():  # somebody else's group
        return
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + _CHILDREN_SECONDS
        while (remaining := _children_in(group)) and time.monotonic() < deadline:
            time.sleep(0.005)
        for pid in remaining:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        # The program that follows keeps the process id, but doesn't know the children.
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
    finally:
        signal.signal(signal.SIGTERM, previous)


def _children_in(group: int) -> list[int]:
    found: list[int] = []
    for child in child_processes(upkeep=True):
        with contextlib.suppress(OSError):
            if sys.platform != "win32" and os.getpgid(child.pid) == group:
                found.append(child.pid)
    return found


def replace_process(
    *,
    executable: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    directory: Path | None,
) -> NoReturn:
    """Replace this process by another program as if the system had started that anew (POSIX).

    Undone is what exec hands on: ipykernel's capture of the standard streams, open descriptors (a
    driver's device files hold memory of the accelerator), ignored signals, timers, the directory.

    Raises
    ------
    OSError
        The program can't be started; streams and directory are what they were.
    """
    if sys.platform == "win32":
        raise OSError("Windows starts another process instead")
    streams = [(1, os.dup(1)), (2, os.dup(2))]
    previous = None
    with contextlib.suppress(OSError):
        previous = Path.cwd()
    try:
        for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
            with contextlib.suppress(Exception):
                stream.flush()
            # Else what the fresh process prints goes into a pipe that nobody reads.
            original = getattr(stream, "_original_stdstream_copy", None)
            if original is not None:
                os.dup2(original, descriptor)
        if directory is not None:
            with contextlib.suppress(OSError):  # it was removed meanwhile
                os.chdir(directory)
        for descriptor in _open_descriptors():
            with contextlib.suppress(OSError):
                os.set_inheritable(descriptor, False)  # noqa: FBT003  (takes no keyword)
        signal.setitimer(signal.ITIMER_REAL, 0)
        # Python itself ignores SIGPIPE and SIGXFSZ, and ipykernel SIGINT between two cells.
        for number in signal.valid_signals() - {signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ}:
            with contextlib.suppress(OSError, ValueError):
                if signal.getsignal(number) is signal.SIG_IGN:
                    signal.signal(number, signal.SIG_DFL)
        os.execve(executable, list(arguments), dict(environment))  # noqa: S606  (its purpose)
    finally:
        for descriptor, saved in streams:
            os.dup2(saved, descriptor)
            os.close(saved)
        if previous is not None:
            with contextlib.suppress(OSError):
                os.chdir(previous)


def _open_descriptors() -> list[int]:
    for directory in (Path("/proc/self/fd"), Path("/dev/fd")):
        with contextlib.suppress(OSError, ValueError):
            return [number for path in directory.iterdir() if (number := int(path.name)) > 2]
    return []
