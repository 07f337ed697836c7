"""Offer the browser, servers and kernel environments to the tests; a pytest plugin.

Everything that asks for the browser carries the marker `browser` by itself, and is skipped with
the reason where no Chromium is there.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import re
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.browser.front_end import DEFAULT_SIZE, Browser, BrowserMissingError, FrontEndPage
from tests.browser.kernel_environment import (
    KernelEnvironment,
    build_project_wheel,
    find_python,
    interpreter_of,
    make_server_environment,
    run_uv,
)
from tests.browser.server import Authentication, FrontEndName, JupyterServer, Server
from tests.once import make_once

_PAGES = pytest.StashKey[list[FrontEndPage]]()
_FAILED = pytest.StashKey[bool]()
BASE_FIXTURE = "browser"


class MakeServer(Protocol):
    """Start a server for one test; its arguments are those of `JupyterServer`."""

    def __call__(
        self,
        *,
        front_end: FrontEndName = "lab",
        authentication: Authentication | None = None,
        base_url: str = "/",
        environment: Mapping[str, str | None] | None = None,
        configuration: Mapping[str, Mapping[str, Any]] | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        python: Path | None = None,
        plugin: bool = True,
        runtime_directory: Path | None = None,
    ) -> JupyterServer:
        """Return a server that runs until the test ends."""


class OpenPage(Protocol):
    """Open a notebook for one test; its arguments are those of `Browser.open`."""

    def __call__(
        self,
        server: Server,
        notebook: str,
        *,
        front_end: FrontEndName | None = None,
        separate: bool = False,
        kernel_first: bool = True,
        size: tuple[int, int] = DEFAULT_SIZE,
        scale: float = 1,
        timeout: float = 60,
    ) -> FrontEndPage:
        """Return a page that is closed when the test ends."""


class MakeKernelEnvironment(Protocol):
    """Make an environment for one test."""

    def __call__(
        self,
        python: str | None = None,
        *,
        name: str = "kernel",
        project: bool = True,
        requirements: tuple[str, ...] = (),
    ) -> KernelEnvironment:
        """Return a fresh environment; skip the test where this machine lacks that Python."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that gets at the browser by whatever way."""
    for item in items:
        if BASE_FIXTURE in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failed test what was on its pages, and leave a picture of each."""
    report = yield
    if call.when == "call" and report.failed:
        item.stash[_FAILED] = True
        pages = item.stash.get(_PAGES, list[FrontEndPage]())
        for number, page in enumerate(pages):
            report.sections.append(_section_about(page, _picture_of(item, number)))
    return report


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Give the one Chromium of this run; each page has a browser session of its own."""
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(Browser())
        except BrowserMissingError as error:
            pytest.skip(f"no Chromium: {error}")
        yield running


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    """Give a JupyterLab server with its default authentication, shared by all tests."""
    with JupyterServer(tmp_path_factory.mktemp("lab"), front_end="lab") as server:
        server.is_shared = True
        yield server


@pytest.fixture(scope="session")
def notebook_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    """Give a Notebook server with its default authentication, shared by all tests."""
    with JupyterServer(tmp_path_factory.mktemp("notebook"), front_end="notebook") as server:
        yield server


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[MakeServer]:
    """Start servers of a test's own, with the environment and the authentication it needs."""
    numbers = itertools.count()
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> JupyterServer:
            directory = tmp_path / f"server-{next(numbers)}"
            return stack.enter_context(JupyterServer(directory, **options))

        yield make


@pytest.fixture
def open_page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[OpenPage]:
    """Open notebooks in pages that are closed at the end, with a picture of each failure."""
    pages: list[FrontEndPage] = []
    request.node.stash[_PAGES] = pages

    def open_one(
        server: Server,
        notebook: str,
        *,
        front_end: FrontEndName | None = None,
        **options: Any,
    ) -> FrontEndPage:
        page = browser.make_page(server, notebook, front_end=front_end)
        pages.append(page)
        page.enter(**options)
        return page

    yield open_one
    for page in pages:
        if request.node.stash.get(_FAILED, False) or not page.server.is_running:
            page.close()
        else:
            page.leave()
    for server in {page.server for page in pages}:
        if server.is_running:
            server.shut_down_kernels()


@pytest.fixture(scope="session")
def uv_cache() -> Path:
    """Give the uv cache of this machine, so that an environment is made of links to its files."""
    return Path(run_uv("cache", "dir").strip())


@pytest.fixture(scope="session")
def project_wheel(tmp_path_factory: pytest.TempPathFactory, uv_cache: Path) -> Path:
    """Build the checkout's wheel, once in a run."""
    folder = make_once(
        tmp_path_factory, "wheel", lambda folder: build_project_wheel(folder, cache=uv_cache)
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def oldest_server_python(
    tmp_path_factory: pytest.TempPathFactory, uv_cache: Path, project_wheel: Path
) -> Path:
    """Make an environment of the oldest front ends that are supported; give its interpreter.

    The project's wheel lies in it too, as the plugin is found in the server's environment.
    """
    folder = make_once(
        tmp_path_factory,
        "oldest",
        lambda folder: make_server_environment(folder, wheel=project_wheel, cache=uv_cache),
    )
    return interpreter_of(folder)


@pytest.fixture(scope="session")
def kernel_template(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, uv_cache: Path
) -> Callable[[Path, bool], KernelEnvironment]:
    """Give what the environments of a Python's kernels are made from, with the product or not."""

    @functools.cache
    def make(python: Path, project: bool) -> KernelEnvironment:  # noqa: FBT001
        wheel: Path | None = request.getfixturevalue("project_wheel") if project else None

        def fill(folder: Path) -> None:
            KernelEnvironment.create(
                folder, python=python, cache=uv_cache, project=project, project_wheel=wheel
            ).compile()

        path = hashlib.sha256(str(python).encode()).hexdigest()[:8]
        name = f"template-{path}-{'with' if project else 'without'}"
        return KernelEnvironment.at(make_once(tmp_path_factory, name, fill), cache=uv_cache)

    return make


@pytest.fixture
def make_kernel_environment(
    tmp_path: Path, kernel_template: Callable[[Path, bool], KernelEnvironment]
) -> MakeKernelEnvironment:
    """Make environments for kernels that a test may change as it likes."""

    def make(
        python: str | None = None,
        *,
        name: str = "kernel",
        project: bool = True,
        requirements: tuple[str, ...] = (),
    ) -> KernelEnvironment:
        environment = kernel_template(python_or_skip(python), project).clone(tmp_path / name)
        if requirements:
            environment.install(*requirements)
        return environment

    return make


def python_or_skip(version: str | None) -> Path:
    """Return an interpreter of `version`, or this one for None; skip the test without one."""
    if version is None:
        return Path(sys.executable)
    found = find_python(version)
    if found is None:
        pytest.skip(f"no Python {version} on this machine")
    return found


def _picture_of(item: pytest.Item, number: int) -> Path | None:
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    return None if folder is None else Path(folder, f"failure-{number}.png")


def _section_about(page: FrontEndPage, picture: Path | None) -> tuple[str, str]:
    lines: list[str] = []
    # Whatever is wrong with the page must not hide why the test failed.
    with contextlib.suppress(Exception):
        lines += page.describe()
    with contextlib.suppress(Exception):
        if picture is not None:
            lines.append(f"picture: {page.screenshot(picture)}")
    log = re.sub(r"token=\w+", "token=…", page.server.log()[-2000:])
    return f"{page.name} page of {page.notebook}", "\n".join([*lines, "end of the log:", log])
