"""A server that installs PyTorch once it is up: a real one, with the real uv and the stand-in."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.browser.server import JupyterServer
from tests.kernels import Kernel
from tests.standin import StandIn
from torchenv_magic.preinstall.place import HUB_VARIABLE, identity_of
from torchenv_magic.preinstall.record import STATE_VARIABLE, Record, write_record

pytest_plugins = ["tests.kernel_wheels"]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the folders are those of POSIX")

STATUS = "torchenv/status"
SECONDS = 120
AUTHORIZER = """
import os
from jupyter_server.auth import Authorizer

class OnDemand(Authorizer):
    def is_authorized(self, handler, user, action, resource):
        return not os.path.exists(os.environ["TEST_DENIED"]) or resource != "torchenv"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A server, and what stands around it."""

    server: JupyterServer
    standin: StandIn
    temporary: Path
    data: Path
    denied: Path
    """While it is there, nobody may ask about PyTorch."""

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.server.request("GET", STATUS)
        return answer


def home_variables(folder: Path, standin: StandIn, wheels: Path) -> dict[str, str | None]:
    """Return what leads the server's install to the stand-in, and into a home of its own."""
    child = standin.environment(folder / "cache", hermetic=True)
    (folder / "tmp").mkdir(parents=True)
    return {
        **dict.fromkeys(child.unset),
        **child.set,
        "PIP_FIND_LINKS": None,
        "UV_FIND_LINKS": str(wheels),
        "TMPDIR": str(folder / "tmp"),
        "XDG_DATA_HOME": str(folder / "data"),
        # As at a hub whose servers run in its own environment: nothing is installed into that.
        HUB_VARIABLE: identity_of(Path(sys.prefix)),
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, kernel_wheels: Path) -> Iterator[Place]:
    """Return a server that has opted in, and whose install comes to torch but not beyond."""
    folder = tmp_path_factory.mktemp("opted-in")
    (folder / "modules").mkdir()
    (folder / "modules" / "on_demand.py").write_text(AUTHORIZER, encoding="utf-8")
    with StandIn() as standin:
        standin.rate = 20_000
        server = JupyterServer(
            folder / "server",
            environment={
                **home_variables(folder, standin, kernel_wheels),
                "PYTHONPATH": str(folder / "modules"),
                "TEST_DENIED": str(folder / "denied"),
            },
            configuration={
                "TorchenvPreinstall": {"enabled": True, "backend": "cpu"},
                "ServerApp": {"authorizer_class": "on_demand.OnDemand"},
            },
        )
        with server:
            yield Place(
                server=server,
                standin=standin,
                temporary=folder / "tmp",
                data=folder / "data",
                denied=folder / "denied",
            )


def until(find: Callable[[], Any], what: str) -> Any:
    """Return what `find` finds, as soon as it finds something."""
    deadline = time.monotonic() + SECONDS
    while not (found := find()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


def asked(server: JupyterServer, *, token: str) -> tuple[int, Message]:
    address = urllib.parse.urljoin(server.url, STATUS)
    request = urllib.request.Request(address)
    if token:
        request.add_header("Authorization", f"token {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as response:
            return response.status, response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers


def test_status_is_for_those_who_are_known_and_allowed(place: Place) -> None:
    known = place.server.token

    status, headers = asked(place.server, token=known)
    assert status == 200
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Type"] == "application/json"
    assert asked(place.server, token="")[0] == 403
    assert asked(place.server, token="wrong")[0] == 403
    place.denied.touch()
    assert asked(place.server, token=known)[0] == 403
    place.denied.unlink()
    assert asked(place.server, token=known)[0] == 200


def test_install_runs_beside_the_server_and_what_comes_after_knows_of_it(place: Place) -> None:
    server = place.server
    # Of a kernel for which there is an environment first, and torch afterwards.
    until(lambda: "torchenv" in server.request("GET", "api/kernelspecs")["kernelspecs"], "a kernel")
    place.standin.wait_for(r"/torch-[^/]*\.whl$", timeout=SECONDS)
    record = place.status()
    assert (record["status"], record["running"]) == ("running", True)
    assert Path(record["target"]).is_relative_to(place.data)

    (directory,) = place.temporary.glob("torchenv-preinstall-*")
    kernel = server.request("POST", "api/kernels", {"name": "python3"})
    environment = environment_of_kernel(server, kernel["id"])
    assert environment[STATE_VARIABLE] == str(directory)
    # All of that was answered while the install ran.
    assert place.status()["status"] == "running"

    place.standin.rate = None
    record = until(
        lambda: (found := place.status())["status"] != "running" and found, "the install's end"
    )
    assert record["status"] == "done", record
    assert (record["torch"], record["kernel"]) == ("2.13.0+cpu", "torchenv")
    # Nobody is left of it.
    until(lambda: not psutil.pid_exists(record["pid"]), "the end of the installer's process")
    kernel = server.request("POST", "api/kernels", {"name": "torchenv"})
    with Kernel.attach(server.runtime_directory / f"kernel-{kernel['id']}.json") as client:
        assert client.value("__import__('torch').__version__") == "2.13.0+cpu"


def environment_of_kernel(server: JupyterServer, kernel: str) -> dict[str, str]:
    def find() -> dict[str, str] | None:
        for process in server.processes():
            try:
                if any(f"kernel-{kernel}.json" in word for word in process.cmdline()):
                    return dict(process.environ())
            except psutil.Error:
                continue
        return None

    found: dict[str, str] = until(find, "the kernel's process")
    return found


def test_server_whose_admin_has_not_opted_in_has_no_route_and_begins_nothing(
    tmp_path: Path, standin: StandIn
) -> None:
    environment = home_variables(tmp_path, standin, tmp_path)
    with JupyterServer(tmp_path / "server", environment=environment) as server:
        assert asked(server, token=server.token)[0] == 404
        assert server.processes() == []
        assert "torchenv_magic.server | extension was successfully loaded" in server.log()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_server_that_the_wrapper_has_started_joins_what_that_began(
    tmp_path: Path, standin: StandIn
) -> None:
    environment = home_variables(tmp_path, standin, tmp_path)
    begun = tmp_path / "tmp" / "begun"
    begun.mkdir()
    write_record(begun, Record(status="failed", message="The disk is full", hint="free some"))
    environment |= {STATE_VARIABLE: str(begun), "TORCHENV_PREINSTALL": "1"}
    with JupyterServer(tmp_path / "server", environment=environment) as server:
        record = until(
            lambda: (found := server.request("GET", STATUS))["status"] == "failed" and found,
            "the wrapper's record",
        )
        assert (record["message"], record["hint"]) == ("The disk is full", "free some")
        assert server.processes() == []
    assert json.loads((begun / "state.json").read_text("ascii"))["message"] == "The disk is full"
    assert list((tmp_path / "tmp").iterdir()) == [begun]
