"""Give browser tests a server whose kernel has an environment of its own; a pytest plugin.

uv in that kernel is the real one, and the stand-in of the PyTorch index answers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
import pytest

from tests.browser.fixtures import MakeKernelEnvironment, MakeServer
from tests.browser.front_end import FrontEndPage
from tests.browser.kernel_environment import KernelEnvironment
from tests.browser.server import Authentication, FrontEndName, JupyterServer
from tests.standin import StandIn

LOAD = "%load_ext torchenv_magic"


@dataclass(frozen=True, slots=True)
class Stage:
    """One server with one kernel environment behind it."""

    server: JupyterServer
    environment: KernelEnvironment
    kernel: str
    cache: Path

    def notebook(self, name: str, *cells: str) -> str:
        """Write a notebook for that kernel, and return its name."""
        return self.server.create_notebook(name, cells, kernel_name=self.kernel)

    def uv_processes(self) -> list[str]:
        """Return the command lines of running uvs that work on this environment."""
        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            if words and Path(words[0]).stem == "uv" and str(self.environment.python) in str(words):
                found.append(" ".join(words))
        return found


class MakeStage(Protocol):
    """Start a server for one test, with an environment that the test may change."""

    def __call__(
        self,
        *,
        front_end: FrontEndName = "lab",
        python: str | None = None,
        hermetic: bool = True,
        authentication: Authentication | None = None,
        plugin: bool = True,
        server_python: Path | None = None,
        extra: Mapping[str, str | None] | None = None,
    ) -> Stage:
        """Return the stage; `extra` are variables for the server and its kernels."""


@pytest.fixture
def stage(
    tmp_path: Path,
    fresh_standin: StandIn,
    make_server: MakeServer,
    make_kernel_environment: MakeKernelEnvironment,
) -> MakeStage:
    """Give what makes a stage."""

    def make(
        *,
        front_end: FrontEndName = "lab",
        python: str | None = None,
        hermetic: bool = True,
        authentication: Authentication | None = None,
        plugin: bool = True,
        server_python: Path | None = None,
        extra: Mapping[str, str | None] | None = None,
    ) -> Stage:
        cache = tmp_path / "uv-cache"
        child = fresh_standin.environment(cache, hermetic=hermetic)
        variables: dict[str, str | None] = {**dict.fromkeys(child.unset), **child.set}
        # Else the wheel in that folder would be an offer, where a test wants the index alone.
        variables["PIP_FIND_LINKS"] = None
        environment = make_kernel_environment(python)
        server = make_server(
            front_end=front_end,
            authentication=authentication,
            plugin=plugin,
            python=server_python,
            environment={**variables, **(extra or {})},
        )
        kernel = environment.write_kernelspec(server.data_directory)
        return Stage(server, environment, kernel, cache)

    return make


def assert_calm(page: FrontEndPage) -> None:
    """Nothing frightening is on the screen."""
    assert page.dialogs() == []
    # What JupyterLab itself writes where the kernel asks for a plugin that is not there.
    known = [] if page.server.plugin else ["Exception opening new comm"]
    assert [error for error in page.console_errors() if error not in known] == []
