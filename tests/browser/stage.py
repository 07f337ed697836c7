"""Give browser tests a kernel that has an environment of its own; a pytest plugin.

uv in that kernel is the real one, and the stand-in of the PyTorch index answers it. What leads it
there stands in the kernel's specification, so that tests share servers: to start one and to load
its front end for the first time is most of what a test would wait for.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
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
OWN = tuple(f"Error: Canceled future for {what}_request" for what in ("debug", "create_subshell"))
"""What a front end says of its own restart, where its debugger or its widgets still wait."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One server with one kernel environment behind it."""

    server: JupyterServer
    environment: KernelEnvironment
    kernel: str
    cache: Path

    def notebook(self, name: str, *cells: str) -> str:
        """Write a notebook for that kernel into a folder of this stage, and return its name."""
        return self.server.create_notebook(f"{self.kernel}/{name}", cells, kernel_name=self.kernel)

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
    """Make an environment that a test may change, and a kernel of it on a server."""

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
        """Return the stage; `extra` are variables for the server and its kernels.

        With these, and with an `authentication`, the server is the test's own.
        """


ShareServer = Callable[[FrontEndName, bool, "Path | None"], JupyterServer]
_numbers = itertools.count()


@pytest.fixture(scope="session")
def share_server(
    tmp_path_factory: pytest.TempPathFactory, standin: StandIn
) -> Iterator[ShareServer]:
    """Give the server of this run for a front end, with the plugin or without, and its Python."""
    running: dict[tuple[FrontEndName, bool, Path | None], JupyterServer] = {}
    with contextlib.ExitStack() as stack:

        def share(front_end: FrontEndName, plugin: bool, python: Path | None) -> JupyterServer:  # noqa: FBT001
            key = (front_end, plugin, python)
            if key not in running:
                folder = tmp_path_factory.mktemp("stage")
                server = JupyterServer(
                    folder,
                    front_end=front_end,
                    plugin=plugin,
                    python=python,
                    environment=dict.fromkeys(_foreign(standin, folder)),
                )
                running[key] = stack.enter_context(server)
                server.is_shared = True
            return running[key]

        yield share


def _foreign(standin: StandIn, folder: Path) -> frozenset[str]:
    """Return the variables of this process that must not reach a kernel by way of its server."""
    # The last: else the wheel in that folder would be an offer, where a test wants the index alone.
    return frozenset({*standin.environment(folder, hermetic=True).unset, "PIP_FIND_LINKS"})


@pytest.fixture
def stage(
    tmp_path: Path,
    fresh_standin: StandIn,
    share_server: ShareServer,
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
        number = next(_numbers)
        environment = make_kernel_environment(python, name=f"kernel-{number}")
        foreign = _foreign(fresh_standin, cache)
        if authentication is None and extra is None:
            server = share_server(front_end, plugin, server_python)
        else:
            server = make_server(
                front_end=front_end,
                authentication=authentication,
                plugin=plugin,
                python=server_python,
                environment={**dict.fromkeys(foreign), **(extra or {})},
            )
        child = fresh_standin.environment(cache, hermetic=hermetic)
        own = foreign - {*child.unset, "PIP_FIND_LINKS"}
        variables = {name: os.environ[name] for name in own if name in os.environ}
        kernel = environment.write_kernelspec(
            server.data_directory,
            name=f"stage-{number}",
            environment={**variables, **child.set},
        )
        return Stage(server, environment, kernel, cache)

    return make


def assert_calm(page: FrontEndPage) -> None:
    """Nothing frightening is on the screen."""
    assert page.dialogs() == []
    # What JupyterLab itself writes where the kernel asks for a plugin that is not there.
    known = () if page.server.plugin else ("Exception opening new comm",)
    assert [error for error in page.console_errors() if not error.startswith((*OWN, *known))] == []
