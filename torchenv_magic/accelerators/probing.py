"""What every probe does the same way: read little, run bounded, never raise to the caller."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from torchenv_magic.accelerators.records import Accelerator, Finding

__all__ = [
    "NO_ANSWER_HINT",
    "Completed",
    "PciCard",
    "Probe",
    "Report",
    "clean",
    "find_program",
    "read_pci_cards",
    "read_text",
    "run_bounded",
]

Answer = TypeVar("Answer")

NO_ANSWER_HINT = (
    "ask again: a driver may be slow the first time, and one that hangs needs a restart of the"
    " machine"
)

# More than any of these files or programs has to say, and little enough to hold.
_OUTPUT_LIMIT = 1 << 20

# A probe that has killed its child at the bound still has to say so.
_GRACE_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one vendor's probe came back with."""

    accelerators: tuple[Accelerator, ...] = ()
    findings: tuple[Finding, ...] = ()
    integrated: bool = False
    """Whether all of them are parts of a processor: a card of another vendor's is worth more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    returncode: int | None
    """None where the program had to be killed at its bound."""
    output: str
    """stdout and stderr together: `nvidia-smi` writes its errors to either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PciCard:
    """A display adapter on the PCI bus, with a screen or without."""

    address: str
    """`0000:01:00.0`"""
    vendor: str
    """`0x10de` is NVIDIA, `0x1002` AMD, `0x8086` Intel."""
    device: str
    driver: str
    """The kernel's driver that it is bound to, or ``."""


class Probe(Generic[Answer]):
    """A question asked in a thread of its own, which may fail or hang without harm."""

    def __init__(self, name: str, ask: Callable[[], Answer]) -> None:
        self._name = name
        self._ask = ask
        self._answer: Answer | None = None
        self._failure: Exception | None = None
        self._done = threading.Event()
        self._started = time.monotonic()
        # A daemon: a driver call that never returns must not keep the interpreter alive.
        threading.Thread(target=self._run, name=f"torchenv {name}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._answer = self._ask()
        except Exception as error:  # noqa: BLE001  (whatever it was, it is one line of the report)
            self._failure = error
        self._done.set()

    def answer(self, *, timeout_seconds: float) -> tuple[Answer | None, Finding | None]:
        """Return the answer, or what to say for it soon after `timeout_seconds` from the start."""
        remaining = self._started + timeout_seconds + _GRACE_SECONDS - time.monotonic()
        # Whoever is asked last is still heard, however long the others took.
        if not self._done.wait(max(remaining, 0.05)):
            message = f"{self._name} did not answer within {timeout_seconds:g} s"
            return None, Finding(message=message, source=self._name, hint=NO_ANSWER_HINT)
        if self._failure is not None:
            message = f"{self._name} could not be read: {clean(str(self._failure))}"
            return None, Finding(message=message, source=self._name)
        return self._answer, None


def clean(text: str, *, limit: int = 120) -> str:
    r"""Return foreign text as one short printable line: no escape sequence reaches a terminal.

    >>> clean("Tesla\x1b[31m  T4\n")
    'Tesla[31m T4'
    """
    printable = "".join(
        character if character.isprintable() else " " if character.isspace() else ""
        for character in text
    )
    line = " ".join(printable.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def read_text(path: Path) -> str | None:
    """Return the beginning of a file that a kernel or a driver writes, or None where there is none.

    Raises
    ------
    OSError
        It is there and cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(_OUTPUT_LIMIT).decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_pci_cards(root: Path = Path("/")) -> tuple[PciCard, ...]:
    """Return the display adapters on the PCI bus; in a container, they are the host's."""
    found = []
    for folder in sorted((root / "sys/bus/pci/devices").glob("*")):
        # Class 0x03.... is display controllers; most devices are something else, one read each.
        if not _word(folder / "class").startswith("0x03"):
            continue
        found.append(
            PciCard(
                address=folder.name,
                vendor=_word(folder / "vendor"),
                device=_word(folder / "device"),
                driver=_bound_driver(folder / "driver"),
            )
        )
    return tuple(found)


def _bound_driver(link: Path) -> str:
    try:
        return clean(link.readlink().name)
    except OSError:
        return ""  # no driver: no link


def _word(path: Path) -> str:
    try:
        return (read_text(path) or "").strip().lower()
    except OSError:
        return ""  # one slot that can't be read hides no other


def find_program(
    name: str, *, environ: Mapping[str, str], folders: Iterable[Path] = ()
) -> str | None:
    """Return the program's path: the first on PATH, then in `folders`; None where it is nowhere.

    `shutil.which` would do it too, and costs several milliseconds to import.
    """
    file_name = f"{name}.exe" if os.name == "nt" else name
    on_path = [Path(folder) for folder in environ.get("PATH", "").split(os.pathsep) if folder]
    for folder in (*on_path, *folders):
        candidate = folder / file_name
        # `access` first: unlike `is_file`, it never raises for a folder that may not be entered.
        if os.access(candidate, os.X_OK) and candidate.is_file():
            return str(candidate)
    return None


def run_bounded(
    command: Sequence[str], *, timeout_seconds: float, environ: Mapping[str, str]
) -> Completed:
    """Run a program for at most `timeout_seconds` and return what it printed until then.

    Raises
    ------
    OSError
        The program can't be started.
    """
    import subprocess

    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environ, "LC_ALL": "C"},
        # Its own session: what it starts dies with it, and a kernel's interrupt does not reach it.
        start_new_session=os.name != "nt",
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    overdue = threading.Event()

    def stop() -> None:
        overdue.set()
        _kill(process.pid)

    timer = threading.Timer(timeout_seconds, stop)
    timer.daemon = True
    timer.start()
    assert process.stdout is not None  # noqa: S101  (PIPE above)
    try:
        with process.stdout:
            output = process.stdout.read(_OUTPUT_LIMIT)
            if len(output) == _OUTPUT_LIMIT:
                stop()
        returncode = process.wait()
    finally:
        timer.cancel()
    return Completed(
        returncode=None if overdue.is_set() else returncode,
        output=output.decode("utf-8", "replace"),
    )


def _kill(pid: int) -> None:
    try:
        if sys.platform == "win32":
            os.kill(pid, signal.SIGTERM)
        else:
            os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass  # it ended by itself meanwhile
