"""Make throw-away Python environments in which a notebook's kernel runs.

The Jupyter server of the tests lives in the environment that runs pytest; the kernels live in
environments made here, by the real uv and without pip, so that what the product changes is never
the environment of the tests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uv

PROJECT_ROOT = Path(__file__).resolve().parents[2]
KERNEL_REQUIREMENTS_FILE = PROJECT_ROOT / "requirements" / "kernel.txt"
KERNEL_REQUIREMENTS = (
    "ipykernel",
    "ipywidgets",
    "nbformat",
    "packaging",
    "uv",
    "nvidia-ml-py",
)
"""What a kernel with the product needs, where no pinned list lies in the checkout."""
OLDEST_REQUIREMENTS_FILE = PROJECT_ROOT / "requirements" / "oldest.txt"


class EnvironmentMakingError(RuntimeError):
    """A kernel environment could not be made; the message holds what uv said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileState:
    """What `KernelEnvironment.snapshot` remembers of one file."""

    size: int
    digest: str
    """SHA-256 of the content as hexadecimal digits, the target of a symbolic link, or inode and
    time of change where the content was not to be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelEnvironment:
    """One environment on disk, named after its directory."""

    directory: Path
    python: Path
    """The interpreter inside the environment."""
    version: str
    """Python's version as `3.11.7`."""
    site_packages: Path
    cache: Path | None
    """The uv cache that this environment is filled from; None is uv's own default."""

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        python: Path | str,
        cache: Path | None = None,
        project: bool = True,
        project_wheel: Path | None = None,
        requirements: Sequence[str] = (),
    ) -> KernelEnvironment:
        """Make a fresh environment without pip, with a kernel in it and (`project`) the product.

        `project_wheel` saves the building of the product's wheel when many environments are made.
        Raises `EnvironmentMakingError` where uv fails.
        """
        run_uv("venv", "--python", str(python), "--no-project", str(directory), cache=cache)
        environment = cls.at(directory, cache=cache)
        if KERNEL_REQUIREMENTS_FILE.is_file():
            environment.install("-r", str(KERNEL_REQUIREMENTS_FILE))
        else:
            environment.install(*KERNEL_REQUIREMENTS)
        if requirements:
            environment.install(*requirements)
        if project:
            wheel = project_wheel or build_project_wheel(directory / ".wheel", cache=cache)
            environment.install("--no-deps", str(wheel))
        return environment

    @classmethod
    def at(cls, directory: Path, *, cache: Path | None = None) -> KernelEnvironment:
        """Return the environment that was made there."""
        interpreter = interpreter_of(directory)
        version, site_packages = _ask_interpreter(interpreter)
        return cls(
            directory=directory,
            python=interpreter,
            version=version,
            site_packages=site_packages,
            cache=cache,
        )

    def clone(self, directory: Path) -> KernelEnvironment:
        """Make another environment of the same packages, by links to their files and bytecode.

        Raises `EnvironmentMakingError` where uv fails.
        """
        base = self.python.resolve()
        run_uv("venv", "--python", str(base), "--no-project", str(directory), cache=self.cache)
        python = interpreter_of(directory)
        old, new = str(self.directory), str(directory)
        # Thousands of files: their paths are text here, as that is what takes the time.
        for folder, _, names in os.walk(old):
            there = f"{new}{folder.removeprefix(old)}"
            Path(there).mkdir(exist_ok=True)
            for name in names:
                # What uv has made of the new one stays: it names the place.
                with contextlib.suppress(FileExistsError):
                    os.link(f"{folder}/{name}", f"{there}/{name}", follow_symlinks=False)
        for script in python.parent.iterdir():
            # A script names the interpreter that runs it.
            if not script.is_symlink() and f"{old}{os.sep}" in _first_line(script):
                text = script.read_text(encoding="utf-8").replace(old, new)
                mode = script.stat().st_mode
                script.unlink()
                script.write_text(text, encoding="utf-8")
                script.chmod(mode)
        site_packages = directory / self.site_packages.relative_to(self.directory)
        return dataclasses.replace(
            self, directory=directory, python=python, site_packages=site_packages
        )

    def compile(self) -> None:
        """Have Python compile what a kernel with the picker loads, as its first start would."""
        self.run("-c", _LOADED, environment={"PYTHONDONTWRITEBYTECODE": ""})

    def install(self, *arguments: str) -> None:
        """Run `uv pip install` for this environment; raises `EnvironmentMakingError`."""
        _install(self.python, *arguments, cache=self.cache)

    def run(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run this environment's interpreter with `arguments`; never raises on its exit code.

        It runs in the environment's own directory: with `-c` and `-m` Python looks for modules in
        the current one first, and would find the checkout's instead of the installed ones.
        """
        return subprocess.run(
            [str(self.python), *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            stdin=subprocess.DEVNULL,
            cwd=self.directory,
            env=None if environment is None else {**os.environ, **environment},
            timeout=timeout,
            check=False,
        )

    def write_kernelspec(
        self,
        data_directory: Path,
        *,
        name: str | None = None,
        display_name: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Offer this environment as a kernel in a Jupyter data directory; return its name.

        `data_directory` is what a server has on its `JUPYTER_PATH` (`JupyterServer.data_directory`
        for one); the server finds a kernel that is added while it runs.
        """
        kernel_name = name or self.directory.name.lower()
        folder = data_directory / "kernels" / kernel_name
        folder.mkdir(parents=True, exist_ok=True)
        specification: dict[str, Any] = {
            "argv": [str(self.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": display_name or f"Python {self.version} ({kernel_name})",
            "language": "python",
            "metadata": {"debugger": True},
        }
        if environment:
            specification["env"] = dict(environment)
        (folder / "kernel.json").write_text(json.dumps(specification, indent=1), encoding="utf-8")
        return kernel_name

    def snapshot(self, *, content: bool = True, bytecode: bool = False) -> dict[str, FileState]:
        """Return the state of every file under site-packages by its relative POSIX path.

        Reading all `content` costs about a second for each GB; without it inode and modification
        time stand for it. Python's own bytecode is left out unless asked for: a kernel that only
        starts writes some.
        """
        states: dict[str, FileState] = {}
        for path in _files_below(self.site_packages):
            if not bytecode and path.suffix == ".pyc":
                continue
            states[path.relative_to(self.site_packages).as_posix()] = _state_of(
                path, content=content
            )
        return states

    def packages(self) -> dict[str, str]:
        """Return the version of each installed distribution by name, as uv reports them."""
        answer = run_uv(
            "pip", "list", "--python", str(self.python), "--format", "json", cache=self.cache
        )
        return {entry["name"]: entry["version"] for entry in json.loads(answer)}


_LOADED = """
import contextlib, importlib
for name in (
    "debugpy", "ipykernel.kernelapp", "ipykernel.ipkernel", "ipywidgets", "jedi",
    "torchenv_magic.notebook.magic", "torchenv_magic.notebook.picker",
    "torchenv_magic.installation.install", "torchenv_magic.verification.probe",
):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
"""


def _first_line(file: Path) -> str:
    with file.open("rb") as opened:
        start = opened.read(2)
        return opened.readline().decode(errors="replace") if start == b"#!" else ""


def interpreter_of(directory: Path) -> Path:
    """Return where the interpreter of a virtual environment lies on this system."""
    if sys.platform == "win32":
        return directory / "Scripts" / "python.exe"
    return directory / "bin" / "python"


def make_server_environment(directory: Path, *, wheel: Path, cache: Path | None = None) -> Path:
    """Make an environment of the oldest front ends, with the product's wheel; return its Python.

    Raises `EnvironmentMakingError` where uv fails.
    """
    run_uv("venv", "--python", sys.executable, "--no-project", str(directory), cache=cache)
    interpreter = interpreter_of(directory)
    _install(interpreter, "-r", str(OLDEST_REQUIREMENTS_FILE), cache=cache)
    # Nothing of it is imported there: the front ends look for its plugin's files.
    _install(interpreter, "--no-deps", str(wheel), cache=cache)
    return interpreter


def build_project_wheel(directory: Path, *, cache: Path | None = None) -> Path:
    """Build the checkout's wheel into `directory` with uv; raises `EnvironmentMakingError`."""
    run_uv(
        "build", "--wheel", "--python", sys.executable, "--out-dir", str(directory),
        str(PROJECT_ROOT),
        cache=cache,
    )  # fmt: skip
    (wheel,) = directory.glob("*.whl")
    return wheel


def run_uv(*arguments: str, cache: Path | None = None) -> str:
    """Run the uv of the tests' environment and return its standard output.

    Raises `EnvironmentMakingError` with uv's own words when it fails.
    """
    command = [uv.find_uv_bin(), *arguments, "--no-progress"]
    if cache is not None:
        command += ["--cache-dir", str(cache)]
    # An activated environment, or the project around the current directory, must not decide which
    # environment uv changes; a download of a whole interpreter must not pass for "found".
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"VIRTUAL_ENV", "CONDA_PREFIX", "UV_PROJECT_ENVIRONMENT", "UV_TORCH_BACKEND"}
    }
    environment["UV_PYTHON_DOWNLOADS"] = "never"
    completed = subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        env=environment,
        check=False,
    )
    if completed.returncode != 0:
        words = " ".join(("uv", *arguments))
        raise EnvironmentMakingError(f"`{words}` failed:\n{completed.stderr.strip()}")
    return completed.stdout


def _install(interpreter: Path, *arguments: str, cache: Path | None) -> None:
    command = ("pip", "install", "--python", str(interpreter), *arguments)
    try:
        # Without the network first: asking the index again for what is in the cache is most of the
        # time that a warm install takes, and all of its failures.
        run_uv(*command, "--offline", cache=cache)
    except EnvironmentMakingError:
        run_uv(*command, cache=cache)


@functools.cache
def find_python(version: str) -> Path | None:
    """Find an interpreter of `version` (`3.12`) on this machine; None where there is none.

    Every candidate is run: pyenv's shims, for one, are on the `PATH` under all names and fail
    when the version is not the selected one. uv finds those installed by itself, by the Windows
    installers and by the system; pyenv's own folder comes last.
    """
    for candidate in _candidates(version):
        if _version_of(candidate) == version:
            return candidate
    return None


def _candidates(version: str) -> Iterator[Path]:
    yield Path(sys.executable)
    for folder in os.get_exec_path():
        found = shutil.which(f"python{version}", path=folder)
        if found is not None:
            yield Path(found)
    with contextlib.suppress(EnvironmentMakingError):
        yield Path(run_uv("python", "find", "--no-project", "--system", version).strip())
    for root in _pyenv_roots():
        for installed in sorted(root.glob(f"versions/{version}.*"), reverse=True):
            yield installed / ("python.exe" if sys.platform == "win32" else "bin/python")


def _pyenv_roots() -> Iterator[Path]:
    if "PYENV_ROOT" in os.environ:
        yield Path(os.environ["PYENV_ROOT"])
    pyenv = shutil.which("pyenv")
    if pyenv is not None:
        completed = subprocess.run(
            [pyenv, "root"], capture_output=True, text=True, timeout=30, check=False
        )
        if completed.returncode == 0:
            yield Path(completed.stdout.strip())


def _version_of(interpreter: Path) -> str | None:
    """Return an interpreter's `major.minor`; None where it does not start."""
    try:
        completed = subprocess.run(
            [str(interpreter), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout.strip() if completed.returncode == 0 else None


def _ask_interpreter(interpreter: Path) -> tuple[str, Path]:
    code = (
        "import json, platform, sysconfig;"
        "print(json.dumps([platform.python_version(), sysconfig.get_path('purelib')]))"
    )
    completed = subprocess.run(
        [str(interpreter), "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    version, site_packages = json.loads(completed.stdout)
    return version, Path(site_packages)


def _files_below(directory: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(directory):
        for name in names:
            yield Path(folder, name)


def _state_of(path: Path, *, content: bool) -> FileState:
    if path.is_symlink():
        return FileState(size=0, digest=f"link to {path.readlink()}")
    status = path.stat()
    if not content:
        return FileState(size=status.st_size, digest=f"{status.st_ino} {status.st_mtime_ns}")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return FileState(size=status.st_size, digest=digest.hexdigest())
