"""Environments to install into, led to the stand-in: what the tests of the engine share.

A module that lists `tests.target_fixtures` in its `pytest_plugins` has the fixtures `target` and
`cold_target`. The engine runs in the test's own process, whose variables lead to the stand-in.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from uv import find_uv_bin

from tests.standin import StandIn, make_wheel
from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import Environment, installed_backend, read_environment
from torchenv_magic.installation.install import Result, install_plan
from torchenv_magic.installation.plan import Plan
from torchenv_magic.installation.planning import make_plan
from torchenv_magic.installation.progress import Event, OnEvent
from torchenv_magic.installation.uv import Cancellation
from torchenv_magic.selection import CatalogOrigin, Request, Selection

LOCKS = {".lock", *(f".torchenv/{name}" for name in ("lock", "holder.json", "progress.json"))}
"""Files of who holds a lock or held it; what is in them says nothing about the environment."""
PASSING = (".torchenv/progress.json.", ".torchenv/clock.")
"""Files that are there for a moment while another install works."""
REMEMBERED = {".torchenv/history.jsonl"}
"""What grows with everything that is done, also where it came to nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A fresh environment without pip, and the index that stands in for PyTorch's."""

    prefix: Path
    standin: StandIn
    plans: dict[tuple[str, ...], Plan] = field(default_factory=dict)
    """What was planned for an empty environment, and holds in each of the same Python."""

    @property
    def python(self) -> Path:
        return self.prefix / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def site(self) -> Path:
        return next(self.prefix.rglob("site-packages"))

    def read(self) -> Environment:
        return read_environment(self.prefix)

    def plan(
        self,
        backend: str,
        *requirements: str,
        consent: bool = False,
        exclusion: str | None = None,
        on_event: OnEvent | None = None,
        cancellation: Cancellation | None = None,
    ) -> Plan:
        """Ask for what a person would; torch alone where nothing is named."""
        return make_plan(
            selected(backend, exclusion=exclusion),
            self.read(),
            Request(requirements=requirements or ("torch",)),
            consent=consent,
            on_event=on_event,
            cancellation=cancellation,
        )

    def install(
        self,
        backend: str,
        *requirements: str,
        on_event: OnEvent | None = None,
        cancellation: Cancellation | None = None,
    ) -> Result:
        return install_plan(
            self.plan(backend, *requirements), on_event=on_event, cancellation=cancellation
        )

    def fill(self, backend: str, *requirements: str) -> None:
        """Bring what a test starts from: an empty environment is planned for once a session."""
        key = (backend, *requirements)
        if key not in self.plans:
            self.plans[key] = self.plan(backend, *requirements)
        install_plan(replace(self.plans[key], python=self.python, prefix=self.prefix))

    def uv(self, *arguments: str) -> None:
        """Install as a person would, by uv alone."""
        command = [find_uv_bin(), "pip", "install", "--quiet", f"--python={self.python}"]
        subprocess.run([*command, *arguments], check=True)

    def versions(self) -> dict[str, str]:
        return {package.name: package.version for package in self.read().packages}

    def backend(self) -> str:
        return str(installed_backend(self.read()))

    def imported(self, *modules: str) -> str:
        """Import the modules in the environment, writing nothing; return the version of torch."""
        code = f"import {', '.join(modules or ('torch',))}; print(torch.__version__)"
        done = subprocess.run(
            [self.python, "-B", "-c", code], capture_output=True, encoding="utf-8", check=False
        )
        return done.stdout.strip() or done.stderr

    def snapshot(self) -> dict[str, tuple[int, int] | str]:
        """Return every file with its size and time of change, every link with its target."""
        settle()
        found: dict[str, tuple[int, int] | str] = {}
        for path in self.prefix.rglob("*"):
            name = path.relative_to(self.prefix).as_posix()
            if path.is_symlink():
                found[name] = str(path.readlink())
            elif path.is_dir():
                found[name] = "folder"
            elif name not in LOCKS | REMEMBERED and not name.startswith(PASSING):
                status = path.stat()
                found[name] = (status.st_size, status.st_mtime_ns)
        # The folder that keeps the lock outlives it.
        found.pop(".torchenv", None)
        return found

    def running(self) -> list[str]:
        """Return the command lines of every uv that works on this environment."""
        lines = []
        for process in psutil.process_iter(["name", "cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            if process.info["name"] in ("uv", "uv.exe") and str(self.prefix) in line:
                lines.append(line)
        return lines


def selected(backend: str, *, exclusion: str | None = None) -> Selection:
    """Return the selection of a backend by name, without looking at this host."""
    return Selection(
        backend=Backend.parse(backend),
        torch=None,
        accelerators=(),
        unsupported_accelerators=(),
        warnings=(),
        reason="the test asks for it",
        alternatives=(),
        catalog=CatalogOrigin(as_of="2026-11-22", source="a test"),
        exclusion=exclusion,
    )


def settle() -> None:
    """Wait until what was dropped is gone from the disk."""
    for thread in threading.enumerate():
        if thread.name == "torchenv-sweep":
            thread.join(30)


def phases(events: list[Event]) -> list[str]:
    """Return the phases in their order, each once."""
    return list(dict.fromkeys(event.phase for event in events))


def make_dependent(folder: Path, version: str = "1.0", torch: str = "2.12.0") -> Path:
    """Make a wheel of `needs212`, which works with one torch alone."""
    return make_wheel(folder, "needs212", version, requires=[f"torch=={torch}"])


def make_environment(folder: Path, python: str | Path = sys.executable) -> Path:
    command = [find_uv_bin(), "venv", "--quiet", "--offline", "--no-config", "--python"]
    subprocess.run([*command, str(python), str(folder)], check=True)
    return folder
