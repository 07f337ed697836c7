"""Where a server is started for a person: a home, what stands around it, and what is seen of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.standin import StandIn
from torchenv_magic.preinstall.launch import _PREFIX
from torchenv_magic.preinstall.place import HUB_VARIABLE, identity_of
from torchenv_magic.preinstall.record import Record, read_record

TOKEN = "a-token-of-the-hub-that-nobody-may-see"
PATIENCE = 90.0
"""Seconds. What is waited for takes a tenth of that on a machine that has nothing else to do."""

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """A person's home on a host, and the variables that a hub would give their server."""

    home: Path
    wheels: Path
    cache: Path
    standin: StandIn
    user: int | None = None
    """Another user than the one who runs the tests."""
    python: Path = Path(sys.executable)
    """The Python of the server."""
    program: tuple[str, ...] = ("-m", "torchenv_magic")

    @property
    def runs(self) -> Path:
        """The folder for what passes, of this host alone."""
        return self.home.parent / f"{self.home.name}-tmp"

    @property
    def environments(self) -> Path:
        return self.home / ".local" / "share" / "torchenv" / "environments"

    @property
    def environment(self) -> Path:
        """The one environment that was made."""
        (found,) = (path for path in self.environments.iterdir() if path.name[0] != ".")
        return found

    def variables(self, **more: str) -> dict[str, str]:
        settings = self.standin.environment(self.cache, hermetic=True)
        return {
            **settings.set,
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.home),
            "TMPDIR": str(self.runs),
            "PIP_FIND_LINKS": str(self.wheels),
            "UV_HTTP_RETRIES": "0",
            "JUPYTERHUB_API_TOKEN": TOKEN,
            # Who runs the tests may own this environment, and nothing is to be installed into it.
            HUB_VARIABLE: identity_of(Path(sys.prefix)),
            **more,
        }

    def start(
        self, *options: str, command: tuple[str, ...] = ("true",), **more: str
    ) -> subprocess.Popen[str]:
        """Start a server as its spawner does."""
        line = [str(self.python), *self.program, "preinstall", *options]
        return subprocess.Popen(
            [*line, "--", *command] if command else line,
            cwd=self.home,
            env=self.variables(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            user=self.user,
            group=self.user,
            extra_groups=None if self.user is None else [],
        )

    def run(
        self, *options: str, command: tuple[str, ...] = ("true",), **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Start a server, and return how it ended and what it said."""
        with self.start(*options, command=command, **more) as process:
            out, errors = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def folders(self) -> list[Path]:
        """Return the run folders, the latest first."""
        found = [path for path in self.runs.iterdir() if path.name.startswith(_PREFIX)]
        return sorted(found, key=lambda path: path.stat().st_ctime_ns, reverse=True)

    def record(self, folder: Path | None = None) -> Record:
        """Return how a preinstall stands: the latest one, where none is named."""
        return wait_for(lambda: read_record(folder or self.folders()[0]))

    def ended(self, folder: Path | None = None) -> Record:
        """Wait for the end of a preinstall."""
        where = folder or self.folders()[0]

        def look() -> Record | None:
            record = read_record(where)
            return record if record is not None and record.status != "running" else None

        return wait_for(look)

    def log(self) -> str:
        return "".join(
            path.read_text("utf-8") for path in self.runs.glob(f"{_PREFIX}*/install.log")
        )

    def history(self) -> list[str]:
        """Return what the environment says was done to it."""
        text = (self.environment / ".torchenv" / "history.jsonl").read_text("utf-8")
        return [str(json.loads(line)) for line in text.splitlines()]

    def imported(self) -> str:
        """Import torch in the environment; return its version, or what is wrong."""
        done = subprocess.run(
            [self.environment / "bin" / "python", "-c", "import torch; print(torch.__version__)"],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip() or done.stderr


def make_desk(
    directory: Path,
    *,
    wheels: Path,
    cache: Path,
    standin: StandIn,
    user: int | None = None,
    python: Path = Path(sys.executable),
) -> Desk:
    desk = Desk(
        home=directory / "home",
        wheels=wheels,
        cache=cache,
        standin=standin,
        user=user,
        python=python,
    )
    for folder in (desk.home, desk.runs):
        folder.mkdir()
        if user is not None:
            os.chown(folder, user, user)
    return desk


def wait_for(look: Callable[[], Found | None]) -> Found:
    """Return what is looked for as soon as it is there."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    message = f"not seen within {PATIENCE:.0f} s"
    raise AssertionError(message)


@contextmanager
def installer_stopped(desk: Desk) -> Iterator[None]:
    """Let no installer outlive a test that leaves one at work."""
    try:
        yield
    finally:
        for folder in desk.folders():
            record = read_record(folder)
            if record is not None and record.status == "running" and record.pid:
                kill(record.pid)


def kill(pid: int) -> None:
    """End a process as a machine without memory does."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid))


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
