"""Give the measurements what they run on: environments with the project, kernels, wheels."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

from benchmarks.measuring import BenchmarkError
from tests.browser.kernel_environment import KernelEnvironment, build_project_wheel
from tests.kernels import Kernel
from tests.standin import StandIn, find_real_wheels, make_family

__all__ = ["CELL_ID", "Stage", "Torch", "run_program", "serve_torch"]

CELL_ID = "benchmark-cell"
"""What Jupyter's front ends send with each request, and a console does not."""

_MADE_WHEEL_BYTES = 50_000_000

# A shell in a notebook or in VS Code would pass these on, and they tell which front end it is.
_FOREIGN = ("COLAB_", "IPYTHON", "JPY_", "JUPYTER", "KAGGLE_", "VSCODE_")


@dataclass(frozen=True)
class Stage:
    """What all measurements share, below one directory."""

    directory: Path
    runs: int
    """How often each thing is measured; a first round that is not counted comes on top."""
    rate: int
    """Bytes per second that a download gets."""

    @functools.cached_property
    def environment(self) -> KernelEnvironment:
        """An environment with a kernel and the project; nothing may be installed into it."""
        return self.make_environment("environment")

    @functools.cached_property
    def project_wheel(self) -> Path:
        return build_project_wheel(self.directory / "wheel")

    def make_environment(self, name: str) -> KernelEnvironment:
        return KernelEnvironment.create(
            self.directory / name, python=sys.executable, project_wheel=self.project_wheel
        )

    @property
    def ipython_directory(self) -> Path:
        """Where IPython keeps its history: not the person's own place, whose size would count."""
        return self.directory / "ipython"

    @contextlib.contextmanager
    def start_kernel(self) -> Iterator[Kernel]:
        """Start a kernel as a Jupyter server starts it for a notebook, and speak to it."""
        notebook = self.directory / "notebook.ipynb"
        notebook.write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
        manager = KernelManager(
            kernel_name=self.environment.write_kernelspec(self.directory),
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(self.directory / "kernels")]),
            connection_file=str(self.directory / f"kernel-{os.urandom(4).hex()}.json"),
        )
        variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)},
            "IPYTHONDIR": str(self.ipython_directory),
            "JPY_SESSION_NAME": str(notebook),
        }
        manager.start_kernel(
            cwd=str(self.directory),
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with Kernel.attach(Path(manager.connection_file)) as kernel:
                yield kernel
        finally:
            manager.shutdown_kernel(now=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    """The torch that the stand-in serves for this Python and the CPU."""

    file_name: str
    size: int
    """Bytes."""
    is_real: bool
    """Whether it is PyTorch, and no package that was made in its place."""

    @property
    def requirement(self) -> str:
        return f"torch=={parse_wheel_filename(self.file_name)[1].public}"

    def __str__(self) -> str:
        kind = "" if self.is_real else "a made "
        return f"{kind}{self.file_name}, {self.size / 1e6:.0f} MB"


def serve_torch(standin: StandIn, directory: Path) -> Torch:
    """Serve the real torch where `PIP_FIND_LINKS` names a folder that has it, else a made one."""
    real = _real_wheel(os.environ)
    path = real or _made_wheel(directory)
    standin.add_wheel("cpu", path)
    return Torch(file_name=path.name, size=path.stat().st_size, is_real=real is not None)


def _real_wheel(variables: Mapping[str, str]) -> Path | None:
    supported = frozenset(sys_tags())
    for path in find_real_wheels(variables):
        _, version, _, tags = parse_wheel_filename(path.name)
        if version.local == "cpu" and tags & supported:
            return path
    return None


def _made_wheel(directory: Path) -> Path:
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    family = make_family(directory, backend="cpu", python_tags=(tag,), pad_bytes=_MADE_WHEEL_BYTES)
    found = next((path for path in family if path.name.startswith("torch-")), None)
    if found is None:
        raise BenchmarkError("no torch was made")
    return found


def run_program(arguments: Sequence[str], variables: Mapping[str, str]) -> str:
    """Run a program with exactly these variables and return what it printed."""
    completed = subprocess.run(
        arguments,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if completed.returncode != 0:
        raise BenchmarkError(f"`{' '.join(arguments)}` failed:\n{completed.stderr}")
    return completed.stdout
