"""Restarts under a real JupyterHub: a user's default server and a named one, in Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.browser.fixtures import OpenPage
from tests.browser.server import FrontEndName
from tests.browser.stage import LOAD, assert_calm
from tests.browser.visit import (
    KERNEL,
    PROOF,
    Visit,
    make_place,
    place_variables,
    restarts,
    start_visit,
)
from tests.hub.hub import Hub, HubMissingError, HubServer
from tests.standin import StandIn
from tests.workplace import Workplace

pytest_plugins = ["tests.hub.fixtures"]
pytestmark = [pytest.mark.hub, pytest.mark.browser]


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, standin: StandIn, uv_cache: Path, project_wheel: Path
) -> Workplace:
    directory = tmp_path_factory.mktemp("hub-kernel")
    return make_place(directory, standin=standin, cache=uv_cache, wheel=project_wheel)


@pytest.fixture(scope="module")
def hub(
    tmp_path_factory: pytest.TempPathFactory, place: Workplace, hub_proxy: Path
) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("hub"), proxy=hub_proxy, environment=place_variables(place))
    try:
        hub.start()
    except HubMissingError as error:
        pytest.skip(str(error))
    yield hub
    hub.stop()


@pytest.fixture
def spawn(hub: Hub, place: Workplace) -> Iterator[Callable[..., HubServer]]:
    servers: list[HubServer] = []

    def spawn_one(user: str, *, name: str = "", plugin: bool = True) -> HubServer:
        server = hub.spawn(user, name=name, plugin=plugin)
        servers.append(server)
        place.environment.write_kernelspec(server.data_directory, name=KERNEL)
        return server

    yield spawn_one
    for server in servers:
        server.stop()
    place.clear()


@pytest.mark.parametrize("name", ["", pytest.param("gpu", marks=pytest.mark.thorough)])
def test_without_the_plugin_the_user_s_own_server_restarts_the_kernel(
    name: str, spawn: Callable[..., HubServer], open_page: OpenPage, tmp_path: Path
) -> None:
    """The default server and a named one: each is found by what the hub told its kernels."""
    server = spawn("grace", name=name, plugin=False)
    assert server.url.endswith(f"/user/grace/{name}/" if name else "/user/grace/")
    here: Visit = start_visit(open_page, server, log=tmp_path / "kernel.log")
    here.install()
    assert here.rungs[-1] == "server"
    here.assert_kept()
    assert PROOF.search(here.page.cell_output_text(1))
    assert restarts(server, here.kernel_id) == 1


@pytest.mark.parametrize(("name", "front_end"), [("", "lab"), ("gpu", "notebook")])
def test_with_the_plugin_the_page_restarts_the_kernel_and_runs_the_verification_cell(
    name: str,
    front_end: FrontEndName,
    spawn: Callable[..., HubServer],
    open_page: OpenPage,
    tmp_path: Path,
) -> None:
    server = spawn("ada", name=name)
    here = start_visit(open_page, server, log=tmp_path / "kernel.log", front_end=front_end)
    here.install()
    assert (here.rungs, here.failures) == (["plugin"], [])
    here.assert_kept()
    assert PROOF.search(here.page.cell_output_text(2))
    assert restarts(server, here.kernel_id) == 1


def test_the_picker_installs_and_proves(
    spawn: Callable[..., HubServer], open_page: OpenPage
) -> None:
    server = spawn("linus")
    notebook = server.create_notebook("picker.ipynb", [f"{LOAD}\n%torchenv"], kernel_name=KERNEL)
    page = open_page(server, notebook)
    page.run_cell(0)
    page.wait_for_output(0, "recommended")
    page.click(0, "Install and restart kernel")
    page.wait_for_output(1, PROOF.pattern, timeout=60)
    assert "the kernel was restarted" in page.cell_output_text(0)
    assert_calm(page)
