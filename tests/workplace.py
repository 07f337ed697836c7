"""Lend an environment with the product in it, and all that leads its processes to the stand-in."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from nbformat import NotebookNode

from tests.browser.kernel_environment import KernelEnvironment, run_uv
from tests.kernels import Kernel
from tests.standin import StandIn

# What the machine that runs the tests says to kernels and front ends must not be heard.
_FOREIGN = ("COLAB_", "IPYTHON", "JPY_", "JUPYTER", "KAGGLE_", "PYTEST_", "PYTHON", "VIRTUAL_ENV")


@dataclass(kw_only=True)
class Workplace:
    """One environment with a kernel and the product, and the settings of the processes in it."""

    environment: KernelEnvironment
    standin: StandIn
    directory: Path
    """For notebooks, caches and settings: a test's own."""
    cache: Path
    """uv's; what one test has downloaded the next one finds, unless it wants its own."""
    kernel_name: str = "workplace"
    _base: frozenset[str] = field(default_factory=frozenset)

    @property
    def variables(self) -> dict[str, str]:
        """The whole environment of a process that knows the stand-in, and no other source."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        settings = {
            "IPYTHONDIR": str(self.directory / "ipython"),
            "JUPYTER_CONFIG_DIR": str(self.directory / "configuration"),
            "JUPYTER_DATA_DIR": str(self.directory / "data"),
            "JUPYTER_PATH": str(self.directory / "data"),
            "JUPYTER_RUNTIME_DIR": str(self.directory / "runtime"),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            # What the index said in one test is no longer so in the next.
            "TORCHENV_CACHE_DIR": str(self.directory / "torchenv-cache"),
        }
        return {**self.standin.environment(self.cache, hermetic=True).apply(own), **settings}

    @property
    def torchenv(self) -> Path:
        """The command, as the wheel installs it."""
        return self.environment.python.with_name(
            "torchenv.exe" if sys.platform == "win32" else "torchenv"
        )

    def run(
        self, *arguments: str | Path, variables: Mapping[str, str | None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end with the stand-in in reach; any exit status is an answer.

        `variables` are set beside those of the workplace, and left out where they are None.
        """
        settings = {**self.variables, **(variables or {})}
        return subprocess.run(
            [str(argument) for argument in arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            stdin=subprocess.DEVNULL,
            cwd=self.directory,
            env={name: value for name, value in settings.items() if value is not None},
            timeout=120,
            check=False,
        )

    def versions(self) -> dict[str, str]:
        """Return what is installed beyond a kernel and the product, by name."""
        return {
            name.partition("-")[0]: name.partition("-")[2].removesuffix(".dist-info")
            for name in self._dist_infos() - self._base
        }

    def notebook(self, *sources: str, name: str = "notebook.ipynb") -> Path:
        """Write a notebook of these cells for this environment's kernel."""
        notebook = nbformat.v4.new_notebook()
        notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
        notebook.metadata["kernelspec"] = {"name": self.kernel_name, "display_name": "workplace"}
        path = self.directory / name
        nbformat.write(notebook, path)
        return path

    @contextlib.contextmanager
    def kernel(self) -> Iterator[tuple[Kernel, KernelManager]]:
        """Start this environment's kernel without a server; speak to it, and interrupt it."""
        manager = KernelManager(
            kernel_name=self.kernel_name,
            kernel_spec_manager=KernelSpecManager(
                kernel_dirs=[str(self.directory / "data/kernels")]
            ),
            connection_file=str(self.directory / f"kernel-{os.urandom(4).hex()}.json"),
        )
        manager.start_kernel(cwd=str(self.directory), env=self.variables)
        try:
            with Kernel.attach(Path(manager.connection_file)) as kernel:
                yield kernel, manager
        finally:
            manager.shutdown_kernel(now=True)

    def clear(self) -> None:
        """Take away what a test has installed."""
        shutil.rmtree(self.environment.directory / ".torchenv", ignore_errors=True)
        if names := [name.replace("_", "-") for name in self.versions()]:
            run_uv("pip", "uninstall", "--python", str(self.environment.python), *names)

    def _dist_infos(self) -> frozenset[str]:
        site = self.environment.site_packages
        return frozenset(path.name for path in site.glob("*.dist-info"))


def outputs_of(notebook: NotebookNode, index: int) -> str:
    """Return the text of all outputs of a cell, an error as its front end shows it."""
    texts = []
    for output in notebook.cells[index].get("outputs", ()):
        if output.output_type == "stream":
            texts.append(output.text)
        elif output.output_type == "error":
            texts.append("\n".join(output.traceback))
        else:
            texts.append(output.data.get("text/plain", ""))
    return "\n".join(texts)


@pytest.fixture(scope="session")
def _furnished(
    tmp_path_factory: pytest.TempPathFactory, uv_cache: Path, project_wheel: Path
) -> KernelEnvironment:
    return KernelEnvironment.create(
        tmp_path_factory.mktemp("workplace") / "environment",
        python=sys.executable,
        cache=uv_cache,
        project_wheel=project_wheel,
    )


@pytest.fixture(scope="session")
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def workplace(
    _furnished: KernelEnvironment,
    _shared_cache: Path,
    fresh_standin: StandIn,
    tmp_path: Path,
) -> Iterator[Workplace]:
    """Return the session's workplace, with nothing of PyTorch in it."""
    place = Workplace(
        environment=_furnished, standin=fresh_standin, directory=tmp_path, cache=_shared_cache
    )
    place._base = frozenset(place._dist_infos())
    _furnished.write_kernelspec(tmp_path / "data", name=place.kernel_name)
    yield place
    # A test may have slowed or broken what this needs.
    place.clear()
