"""A machine whose hub serves its own unix users: their homes, and a server that root has installed.

What a user's process reads has to be readable for it, which pytest's folders and the caches of who
runs the tests are not.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.browser.kernel_environment import PROJECT_ROOT, run_uv
from tests.hub.hub import Hub
from tests.standin import StandIn

# What a single-user server loads: compiled once by root, as nobody else can write there.
_LOADED = (
    "import ipykernel.kernelapp, jupyterhub.singleuser, jupyterlab.labapp, notebook.app, "
    "jupyter_lsp, torchenv_magic.preinstall.installer, torchenv_magic.server.extension"
)


class CampusMissingError(RuntimeError):
    """No unix users can be had here; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixUser:
    """A person of this machine, with a home of their own."""

    name: str
    uid: int
    gid: int
    home: Path

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program as this person; any exit status is an answer."""
        return subprocess.run(
            [str(word) for word in command],
            user=self.uid,
            group=self.gid,
            extra_groups=[],
            cwd=self.home,
            env={"HOME": str(self.home), "PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def processes(self) -> list[psutil.Process]:
        """Return what runs as this person."""
        found = []
        for process in psutil.process_iter():
            try:
                # Of a zombie only its number is left, for as long as nobody asks after it.
                if process.uids().real == self.uid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def preinstalls(self) -> list[Path]:
        """Return the folders in which this person's preinstalls tell how they stand, newest last.

        They lie where all users' lie, and those of others may go at any moment.
        """
        found = []
        for folder in Path(tempfile.gettempdir()).glob("torchenv-preinstall-*"):
            with contextlib.suppress(FileNotFoundError):
                status = folder.stat()
                if status.st_uid == self.uid:
                    found.append((status.st_ctime_ns, folder))
        return [folder for _, folder in sorted(found)]

    def kernel_connection(self, kernel_id: str) -> Path:
        """Return the file by which a kernel of this person's server is spoken to."""
        return self.home / f".local/share/jupyter/runtime/kernel-{kernel_id}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Campus:
    """What all hubs of the session share."""

    directory: Path
    """Readable for everybody."""
    server: Path
    """The environment of the servers: root's."""
    wheels: Path
    """All that a kernel needs."""
    bundle: Path
    """The certificates that the stand-in of the PyTorch index is trusted by."""
    standin: StandIn
    proxy: Path

    @property
    def variables(self) -> dict[str, str]:
        """What leads a user's processes to the stand-in and to nothing else."""
        child = self.standin.environment(self.directory, hermetic=True)
        own = {"TORCHENV_CACHE_DIR", "UV_CACHE_DIR"}
        settings = {name: value for name, value in child.set.items() if name not in own}
        return {**settings, "SSL_CERT_FILE": str(self.bundle)}

    def hub(self, directory: Path, lines: str) -> Hub:
        """Return a hub of this machine's users, which ends its configuration with these lines."""
        return Hub(
            directory,
            proxy=self.proxy,
            environment=self.variables,
            lines=lines,
            single_user=self.server / "bin" / "jupyterhub-singleuser",
        )

    @contextmanager
    def users(self, count: int) -> Iterator[list[UnixUser]]:
        """Add users to this machine; they go at the end, and their homes with the campus."""
        made: list[UnixUser] = []
        try:
            for _ in range(count):
                # One by one: what was made goes, if the next one can't be.
                made += [self._make_user()]
            yield made
        finally:
            for user in made:
                _remove(user)

    def _make_user(self) -> UnixUser:
        name = f"pt{secrets.token_hex(3)}"
        home = self.directory / "homes" / name
        _run("useradd", "--create-home", "--home-dir", str(home), "--shell", "/bin/bash", name)
        home.chmod(0o700)
        status = home.stat()
        return UnixUser(name=name, uid=status.st_uid, gid=status.st_gid, home=home)


@contextmanager
def make_campus(
    *, standin: StandIn, wheels: Path, wheel: Path, cache: Path, proxy: Path
) -> Iterator[Campus]:
    """Make it; raises `CampusMissingError` where this machine has no users to give."""
    if sys.platform == "win32" or os.geteuid() != 0:
        raise CampusMissingError("only root can add users to this machine")
    if shutil.which("useradd") is None or shutil.which("userdel") is None:
        raise CampusMissingError("this machine has no useradd and userdel")
    python = _python_for_everybody()
    directory = Path(tempfile.mkdtemp(prefix="torchenv-campus-"))
    try:
        directory.chmod(0o755)
        (directory / "homes").mkdir()
        server = directory / "server"
        _make_server(server, python=python, wheel=wheel, cache=cache)
        shelf = Path(shutil.copytree(wheels, directory / "wheels"))
        shelf.chmod(0o755)
        yield Campus(
            directory=directory,
            server=server,
            wheels=shelf,
            bundle=Path(shutil.copy(standin.bundle, directory / "bundle.pem")),
            standin=standin,
            proxy=proxy,
        )
    finally:
        # Ten seconds a home, for which no test has to wait.
        subprocess.Popen(
            ["nice", "rm", "-rf", str(directory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def _make_server(server: Path, *, python: Path, wheel: Path, cache: Path) -> None:
    requirements = PROJECT_ROOT / "requirements"
    run_uv("venv", "--python", str(python), "--no-project", str(server), cache=cache)
    install = ("pip", "install", "--python", str(server / "bin" / "python"))
    run_uv(*install, "-r", str(requirements / "lab.txt"), cache=cache)
    pins = str(requirements / "development.txt")
    run_uv(*install, "-c", pins, "jupyterhub", cache=cache)
    run_uv(*install, "--no-deps", str(wheel), cache=cache)
    _run(str(server / "bin" / "python"), "-c", _LOADED)


def _python_for_everybody() -> Path:
    """Return an interpreter like this one that every user can run.

    pyenv's, for one, lies in a home that others can't look into.
    """
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for folder in (Path(sys.base_prefix, "bin"), Path("/usr/local/bin"), Path("/usr/bin")):
        candidate = folder / name
        if candidate.is_file() and _is_open(candidate.resolve()):
            return candidate
    raise CampusMissingError(f"there is no {name} that every user of this machine can run")


def _is_open(path: Path) -> bool:
    return all(each.stat().st_mode & 0o001 for each in (path, *path.parents))


def _remove(user: UnixUser) -> None:
    deadline = time.monotonic() + 10
    while (processes := user.processes()) and time.monotonic() < deadline:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.05)
    # The number is given out again, and the next one of it must not find this one's.
    for folder in user.preinstalls():
        shutil.rmtree(folder, ignore_errors=True)
    _run("userdel", user.name)


def _run(*command: str) -> None:
    """Run a program of root's, and wait while somebody else changes this machine's users."""
    deadline = time.monotonic() + 30
    while True:
        completed = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if completed.returncode == 0:
            return
        if "try again later" not in completed.stderr or time.monotonic() > deadline:
            raise CampusMissingError(f"{command[0]}: {completed.stderr.strip()[-500:]}")
        time.sleep(0.2)
