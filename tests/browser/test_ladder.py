"""Every rung of the ladder, under every kind of server, as a person sees it in Chromium.

Real front ends, real kernels, the real uv and its real `--torch-backend`, answered by the stand-in
of the PyTorch index. The servers live as long as this module, each started when it is first needed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme

from tests.browser.fixtures import OpenPage
from tests.browser.front_end import FrontEndPage
from tests.browser.server import Authentication, FrontEndName, JupyterServer
from tests.browser.stage import OWN, assert_calm
from tests.browser.visit import (
    KEPT,
    KERNEL,
    OTHERS_COMM,
    PROOF,
    UNSAVED,
    Visit,
    make_place,
    place_variables,
    restarts,
    start_visit,
)
from tests.standin import StandIn
from tests.workplace import Workplace
from torchenv_magic.notebook.cells import VERIFICATION_SOURCE

pytestmark = pytest.mark.browser

NO_RESTARTS = """\
from jupyter_server.auth import Authorizer

class NoRestarts(Authorizer):
    def is_authorized(self, handler, user, action, resource):
        return (action, resource) != ("write", "kernels")
"""


@dataclass(kw_only=True)
class Servers:
    """The servers of this module by name, and the environment of all their kernels."""

    directory: Path
    place: Workplace
    oldest_python: Callable[[], Path]
    _running: dict[str, JupyterServer] = field(default_factory=dict)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __getitem__(self, name: str) -> JupyterServer:
        if name not in self._running:
            self._running[name] = self._start(name, **self._options(name))
        return self._running[name]

    def stop(self) -> None:
        self._stack.close()

    def _options(self, name: str) -> dict[str, Any]:
        user = self.directory / "runtime-of-one-user"
        if name == "token":
            return {
                "authentication": Authentication.token("a-token-of-the-test"),
                "base_url": "/user/someone/",
                "runtime_directory": user,
                "plugin": False,
            }
        if name == "none":
            return {
                "authentication": Authentication.none(),
                "front_end": "notebook",
                "runtime_directory": user,
                "plugin": False,
            }
        if name == "password":
            return {"authentication": Authentication.password("correct horse"), "plugin": False}
        if name == "TLS":
            # On an address of this machine's that is not loopback, where there is one.
            return {
                "configuration": {"ServerApp": {"ip": own_address(), **self._certificate()}},
                "front_end": "notebook",
                "plugin": False,
            }
        if name == "all addresses":
            return {"configuration": {"ServerApp": {"ip": "0.0.0.0"}}, "plugin": False}  # noqa: S104
        if name == "socket":
            # The path of a socket has 107 characters at most.
            folder = self._stack.enter_context(tempfile.TemporaryDirectory())
            return {"configuration": {"ServerApp": {"sock": f"{folder}/s"}}, "plugin": False}
        if name == "gateway":
            return {"authentication": Authentication.token("a-token-of-the-gateway")}
        if name.startswith("by gateway"):
            gateway = self["gateway"]
            client = {"url": gateway.url.rstrip("/"), "auth_token": gateway.token}
            return {
                "configuration": {"GatewayClient": client},
                "plugin": name == "by gateway",
            }
        if name.startswith("oldest"):
            return {
                "python": self.oldest_python(),
                "front_end": name.split()[1],
                "plugin": "without" not in name,
            }
        if name == "no restarts":
            module = self.directory / "authorizer" / "no_restarts.py"
            module.parent.mkdir()
            module.write_text(NO_RESTARTS, encoding="utf-8")
            return {
                "configuration": {"ServerApp": {"authorizer_class": "no_restarts.NoRestarts"}},
                "environment": {"PYTHONPATH": str(module.parent)},
            }
        assert name == "plugin"
        return {}

    def _start(self, name: str, **options: Any) -> JupyterServer:
        environment = place_variables(self.place)
        environment |= options.pop("environment", {})
        server = JupyterServer(
            self.directory / name.replace(" ", "-"), environment=environment, **options
        )
        self.place.environment.write_kernelspec(
            server.data_directory, name=KERNEL, display_name="of the test"
        )
        self._stack.enter_context(server)
        server.is_shared = name == "plugin"
        return server

    def _certificate(self) -> dict[str, str]:
        files = {"certfile": self.directory / "cert.pem", "keyfile": self.directory / "key.pem"}
        issued = trustme.CA().issue_cert("jupyter.example")
        issued.cert_chain_pems[0].write_to_path(files["certfile"])
        issued.private_key_pem.write_to_path(files["keyfile"])
        return {name: str(path) for name, path in files.items()}


def own_address() -> str:
    """Return an address of this machine that others reach it by; loopback where it has none."""
    addresses = [
        address.address
        for name, found in psutil.net_if_addrs().items()
        for address in found
        if address.family.name == "AF_INET"
        and not address.address.startswith("127.")
        and psutil.net_if_stats()[name].isup
    ]
    return next(iter(addresses), "127.0.0.1")


@pytest.fixture(scope="module")
def servers(
    tmp_path_factory: pytest.TempPathFactory,
    standin: StandIn,
    uv_cache: Path,
    project_wheel: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Servers]:
    directory = tmp_path_factory.mktemp("ladder")
    place = make_place(directory, standin=standin, cache=uv_cache, wheel=project_wheel)
    servers = Servers(
        directory=directory,
        place=place,
        oldest_python=lambda: request.getfixturevalue("oldest_server_python"),
    )
    yield servers
    servers.stop()


@pytest.fixture
def visit(servers: Servers, open_page: OpenPage, tmp_path: Path) -> Iterator[Callable[..., Visit]]:
    """Open a notebook on a server by its name; type something into it; and leave it unsaved."""

    def open_one(
        name: str, *, front_end: FrontEndName | None = None, logging: bool = True
    ) -> Visit:
        return start_visit(
            open_page,
            servers[name],
            log=tmp_path / "kernel.log" if logging else None,
            front_end=front_end,
        )

    yield open_one
    servers.place.clear()


# --- without the plugin ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "none",
        "TLS",
        pytest.param("all addresses", marks=pytest.mark.thorough),
        "socket",
        "oldest lab without",
        pytest.param("oldest notebook without", marks=pytest.mark.thorough),
    ],
)
def test_a_server_that_answers_restarts_its_kernel(name: str, visit: Callable[..., Visit]) -> None:
    """No authentication, TLS, every way to listen, and the oldest front ends."""
    here = visit(name)
    here.install()
    assert here.rungs[-1] == "server"
    here.assert_kept()
    assert PROOF.search(here.page.cell_output_text(1))
    here.page.wait_for_prompt(2, r"\[ \]:")


def test_under_a_password_the_process_replaces_itself(visit: Callable[..., Visit]) -> None:
    here = visit("password")
    here.install()
    assert here.rungs[-1] == "re-exec"
    here.assert_kept(process="the same")
    assert PROOF.search(here.page.cell_output_text(1))


def test_of_two_servers_of_one_user_the_kernel_s_own_is_asked(
    visit: Callable[..., Visit], servers: Servers
) -> None:
    """Their files lie in one directory; the other one's kernel is left alone.

    This one has a token and a base URL.
    """
    other = servers["none"]
    beside = other.create_notebook("beside.ipynb", [], kernel_name=KERNEL)
    other.start_kernel_for(beside)
    (kernel,) = other.kernels()
    # Without a log of its own, as everywhere else: nothing of it comes into the notebook.
    here = visit("token", logging=False)
    assert servers["token"].runtime_directory == other.runtime_directory
    here.install()
    here.assert_kept()
    assert PROOF.search(here.page.cell_output_text(1))
    assert restarts(here.page.server, here.kernel_id) == 1
    assert restarts(other, kernel["id"]) == 0
    other.shut_down_kernels()


def test_a_gateway_s_kernel_is_restarted_by_the_gateway(
    visit: Callable[..., Visit], servers: Servers
) -> None:
    """The server that owns the kernel is not the one that the page speaks to."""
    here = visit("by gateway without")
    here.install()
    assert here.rungs[-1] == "server"
    here.assert_kept()
    assert PROOF.search(here.page.cell_output_text(1))
    assert restarts(servers["gateway"], here.kernel_id) == 1


def test_where_every_way_is_closed_the_kernel_lives_on_and_one_sentence_says_what_to_press(
    visit: Callable[..., Visit], servers: Servers
) -> None:
    """A password, and a kernel that was started in a way of its own."""
    server = servers["password"]
    file = server.data_directory / "kernels" / KERNEL / "kernel.json"
    specification = file.read_text(encoding="utf-8")
    words = json.loads(specification)
    start = "from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"
    words["argv"][1:3] = ["-c", start]
    file.write_text(json.dumps(words), encoding="utf-8")
    here = visit("password")
    file.write_text(specification, encoding="utf-8")
    here.install()
    assert here.rungs == ["plugin"]
    text = here.page.cell_output_text(1)
    assert "The kernel was not restarted" in text
    assert "Press Kernel ▸ Restart Kernel, then run %torchenv verify." in text
    assert here.page.dialogs() == []
    asking = here.page.add_cell("import os\nprint(os.getpid(), held)")
    assert here.page.run_cell(asking) == "ok"
    assert here.page.cell_output_text(asking).split() == [here.process, "1"]

    here.page.restart()
    assert here.page.run_cell(2) == "ok"
    assert PROOF.search(here.page.cell_output_text(2))


# --- with it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "front_end"),
    [
        ("plugin", "lab"),
        ("by gateway", "lab"),
    ],
)
def test_the_plugin_restarts_and_runs_the_verification_cell(
    name: str, front_end: FrontEndName, visit: Callable[..., Visit]
) -> None:
    """In the other front ends `test_every_front_end` looks at it."""
    here = visit(name, front_end=front_end)
    here.install()
    assert (here.rungs, here.failures) == (["plugin"], [])
    here.assert_kept()
    assert PROOF.search(here.page.cell_output_text(2))
    assert here.page.cells()[2].tags == ("torchenv-verify",)


def test_where_nobody_may_restart_the_kernel_every_rung_is_tried_in_turn(
    visit: Callable[..., Visit],
) -> None:
    here = visit("no restarts")
    here.install()
    assert here.rungs == ["plugin", "server", "re-exec"]
    assert here.failures == [
        "the front end could not restart the kernel",
        "the Jupyter server answered 403",
    ]
    here.assert_kept(process="the same", console=("403", "not authorized", OTHERS_COMM))
    assert PROOF.search(here.page.cell_output_text(1))


# --- more than one page, and pages that come and go -----------------------------------------------


@pytest.mark.parametrize("front_end", ["lab", pytest.param("notebook", marks=pytest.mark.thorough)])
def test_of_two_pages_on_one_kernel_only_the_one_that_asked_acts(
    front_end: FrontEndName, visit: Callable[..., Visit], open_page: OpenPage
) -> None:
    """Two tabs of JupyterLab, or JupyterLab and Notebook 7, on one notebook."""
    here = visit("plugin", front_end="lab")
    here.page.save()
    other = open_page(here.page.server, here.page.notebook, front_end=front_end)
    assert other.kernel_id() == here.kernel_id
    before = [cell.source for cell in other.cells()]
    here.page.edit_cell(KEPT, UNSAVED)
    here.install()
    assert (here.rungs, here.failures) == (["plugin"], [])
    here.assert_kept(console=(OTHERS_COMM,))
    assert restarts(here.page.server, here.kernel_id) == 1
    assert [cell.source for cell in other.cells()] == before
    other.wait_for_kernel("idle")
    assert other.dialogs() == []
    known = (OTHERS_COMM, *OWN)
    assert [e for e in other.console_errors() if not any(part in e for part in known)] == []


def hold_install(servers: Servers, standin: StandIn) -> None:
    """Have the next install take so long that a person can do something meanwhile."""
    shutil.rmtree(servers.place.cache, ignore_errors=True)
    standin.rate = 30_000


def wait_for_download(page: FrontEndPage) -> None:
    page.wait_for_output(1, r"\d+(\.\d)? [kM]?B of ")


def test_a_notebook_that_is_renamed_meanwhile_is_the_one_that_shows_the_proof(
    visit: Callable[..., Visit], servers: Servers, fresh_standin: StandIn
) -> None:
    here = visit("plugin")
    hold_install(servers, fresh_standin)
    here.page.run_cell(1, wait=False)
    wait_for_download(here.page)
    here.page.rename("another name.ipynb")
    fresh_standin.rate = None
    here.wait_until_verified()
    assert (here.rungs, here.failures) == (["plugin"], [])
    here.assert_kept()
    here.page.save()
    saved = here.page.server.read_notebook("another name.ipynb")
    assert [cell.source for cell in saved.cells].count(VERIFICATION_SOURCE) == 1
    assert not (here.page.server.root_directory / "ladder.ipynb").exists()


def test_a_page_that_is_loaded_again_meanwhile_or_opened_later_shows_the_proof(
    visit: Callable[..., Visit], servers: Servers, fresh_standin: StandIn, open_page: OpenPage
) -> None:
    """The page is another client then; it is known by the output that it holds."""
    here = visit("plugin")
    hold_install(servers, fresh_standin)
    here.page.run_cell(1, wait=False)
    wait_for_download(here.page)
    here.page.save()
    before = here.page.cell_output_text(1)
    here.page.reload(idle=False)
    here.page.edit_cell(2, UNSAVED)
    while here.page.cell_output_text(1) == before:  # the progress goes on
        here.page.perform(lambda raw: raw.wait_for_timeout(40))
    fresh_standin.rate = None
    here.wait_until_verified()
    assert (here.rungs, here.failures) == (["plugin"], [])
    here.assert_kept(console=(OTHERS_COMM,))

    here.page.save()
    here.page.close()
    again = open_page(here.page.server, here.page.notebook, kernel_first=False)
    assert again.kernel_id() == here.kernel_id
    assert "the kernel was restarted" in again.cell_output_text(1)
    assert PROOF.search(again.cell_output_text(2))
    assert_calm(again)


def test_a_notebook_that_is_closed_meanwhile_finds_a_fresh_kernel_when_it_is_opened_again(
    visit: Callable[..., Visit], servers: Servers, fresh_standin: StandIn, open_page: OpenPage
) -> None:
    """Nobody is there to ask, so the server restarts the kernel."""
    here = visit("plugin")
    hold_install(servers, fresh_standin)
    here.page.run_cell(1, wait=False)
    wait_for_download(here.page)
    server, notebook = here.page.server, here.page.notebook
    here.page.close()
    fresh_standin.rate = None
    deadline = time.monotonic() + 120
    while not restarts(server, here.kernel_id):
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.1)
    assert here.rungs == ["plugin", "server"]
    again = open_page(server, notebook, kernel_first=False)
    assert again.kernel_id() == here.kernel_id
    assert again.dialogs() == []
    again.edit_cell(1, VERIFICATION_SOURCE)
    assert again.run_cell(1) == "ok"
    assert PROOF.search(again.cell_output_text(1))
    assert_calm(again)
