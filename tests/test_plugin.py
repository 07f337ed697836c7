"""How the kernel speaks with the plugin: real kernels, and clients that answer as pages do."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernels import PROJECT_ROOT, SECONDS, Kernel
from torchenv_magic.notebook.cells import VERIFICATION_SOURCE, VERIFICATION_TAG
from torchenv_magic.notebook.plugin import (
    OUTPUT_MIME,
    TARGET,
    Client,
    choose_client,
    restart_order,
    switch_order,
)

PLUGIN = PROJECT_ROOT / "labextension" / "static" / "plugin.js"

# What a restart does with it: the outcome is printed into a file, as no cell runs by then.
ASK = """\
import json, pathlib
from torchenv_magic.notebook.front_end import read_front_end
from torchenv_magic.notebook.plugin import Conversation, restart_order
from torchenv_magic.notebook.re_exec import launch_environment
from torchenv_magic.notebook.restart import _KernelProcess
process = _KernelProcess(get_ipython(), launch_environment())
conversation = Conversation(
    restart_order(output="out-1", cell="cell-1", after={{"text/plain": "after"}}),
    asked={asked},
    loop=process,
    on_failure=lambda reason: pathlib.Path({outcome!r}).write_text(reason),
)
process.between_cells(conversation.begin);
"""
SESSION = "read_front_end(get_ipython()).session"


def client(name: str, *, holds: bool = False, writable: bool = True) -> Client:
    return Client(id=name, holds=holds, writable=writable)


def test_the_client_that_asked_is_chosen_and_else_one_that_shows_the_output() -> None:
    other, twin = client("other"), client("twin", holds=True)
    assert choose_client("asked", [other, twin, client("asked")]) == client("asked")
    assert choose_client("asked", [other, twin]) == twin
    assert choose_client(None, [other, twin]) == twin
    assert choose_client("asked", [other]) is None
    assert choose_client("asked", []) is None
    # A notebook that can't be written to gets no verification cell.
    assert choose_client("asked", [client("asked", writable=False)]) is None


@pytest.mark.parametrize(
    "data",
    [
        None,
        "hello",
        {"event": "hello"},
        {"event": "hello", "protocol": 2, "client": "a"},
        {"event": "hello", "protocol": 1, "client": 5},
        {"event": "accepted", "protocol": 1, "client": "a"},
    ],
)
def test_what_is_no_hello_of_this_protocol_is_nobody(data: object) -> None:
    assert Client.from_hello(data) is None


def test_both_halves_use_the_same_words() -> None:
    """The plugin is JavaScript: its constants are compared as they stand in the file."""
    text = PLUGIN.read_text(encoding="utf-8")
    assert f"const TARGET = '{TARGET}';" in text
    assert f"const OUTPUT_MIME = '{OUTPUT_MIME}';" in text
    assert "const PROTOCOL = 1;" in text
    order = restart_order(output="o", cell=None, after={})
    for name in (*order, *switch_order("k", output=None, cell=None, after={})):
        assert f"order.{name}" in text
    assert order["verification"] == {"source": VERIFICATION_SOURCE, "tag": VERIFICATION_TAG}


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    with Kernel.start(tmp_path) as started:
        yield started


class Page:
    """A client of the kernel that answers as a page of the front end."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.name = kernel.client.session.session

    def offer(self) -> dict[str, Any]:
        """Return what the kernel opened the comm with."""
        message = self.kernel.wait_for(
            lambda each: (
                each["msg_type"] == "comm_open" and each["content"]["target_name"] == TARGET
            )
        )
        return dict(message["content"])

    def orders(self) -> list[dict[str, Any]]:
        return [
            message["content"]["data"]
            for message in self.kernel.iopub
            if message["msg_type"] == "comm_msg"
        ]

    def order(self) -> dict[str, Any]:
        self.kernel.wait_for(lambda each: each["msg_type"] == "comm_msg")
        return self.orders()[0]

    def send(self, comm_id: str, **data: object) -> None:
        self._send("comm_msg", {"comm_id": comm_id, "data": data})

    def hello(self, comm_id: str, **data: object) -> None:
        said = {"protocol": 1, "client": self.name, "holds": True, "writable": True, **data}
        self.send(comm_id, event="hello", **said)

    def close(self, comm_id: str) -> None:
        self._send("comm_close", {"comm_id": comm_id, "data": {}})

    def open(self, **data: object) -> None:
        self._send("comm_open", {"comm_id": "mine", "target_name": TARGET, "data": data})

    def _send(self, kind: str, content: dict[str, Any]) -> None:
        session = self.kernel.client.session
        self.kernel.client.shell_channel.send(session.msg(kind, content))


def outcome_of(path: Path) -> str:
    """Wait for the reason of the failure."""
    deadline = time.monotonic() + SECONDS
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, "the conversation did not end"
        time.sleep(0.01)
    return path.read_text()


def ask(kernel: Kernel, outcome: Path, *, asked: str = SESSION) -> None:
    kernel.run(ASK.format(asked=asked, outcome=str(outcome)))


def test_the_page_that_asked_gets_the_order(kernel: Kernel, tmp_path: Path) -> None:
    page = Page(kernel)
    ask(kernel, tmp_path / "outcome")
    offer = page.offer()
    assert offer["data"]["output"] == "out-1"
    page.hello(offer["comm_id"])
    order = page.order()
    assert order["event"] == "restart"
    assert order["client"] == page.name
    assert order["request"] == offer["data"]["request"]
    assert order["after"] == {"text/plain": "after"}
    page.send(offer["comm_id"], event="accepted")
    # A page that fails says so through a comm of its own: its first one was closed on the way.
    page.open(event="failed", request=order["request"], reason="the server refused")
    assert outcome_of(tmp_path / "outcome") == "the server refused"


def test_a_front_end_without_the_plugin_is_known_by_its_answer(
    kernel: Kernel, tmp_path: Path
) -> None:
    page = Page(kernel)
    ask(kernel, tmp_path / "outcome")
    page.close(page.offer()["comm_id"])
    assert outcome_of(tmp_path / "outcome") == "the front end has no plugin"
    assert page.orders() == []


def test_nobody_s_answer_is_not_waited_for(kernel: Kernel, tmp_path: Path) -> None:
    ask(kernel, tmp_path / "outcome")
    assert outcome_of(tmp_path / "outcome") == "the front end has no plugin"


def test_another_client_without_the_plugin_does_not_silence_the_one_that_asked(
    kernel: Kernel, tmp_path: Path
) -> None:
    page = Page(kernel)
    with Kernel.attach(kernel.connection_file) as console:
        # The same request asks both, as one comm reaches every client.
        ask(kernel, tmp_path / "outcome")
        offer = page.offer()
        Page(console).close(offer["comm_id"])
        console.client.kernel_info()
        console.client.get_shell_msg(timeout=SECONDS)
        page.hello(offer["comm_id"])
        assert page.order()["client"] == page.name


def test_where_the_page_was_loaded_again_the_one_that_shows_the_output_acts(
    kernel: Kernel, tmp_path: Path
) -> None:
    page = Page(kernel)
    ask(kernel, tmp_path / "outcome", asked="'a page that is gone'")
    page.hello(page.offer()["comm_id"])
    assert page.order()["client"] == page.name


def test_a_notebook_that_can_t_be_written_to_is_left_to_the_next_way(
    kernel: Kernel, tmp_path: Path
) -> None:
    page = Page(kernel)
    ask(kernel, tmp_path / "outcome")
    page.hello(page.offer()["comm_id"], writable=False)
    assert outcome_of(tmp_path / "outcome") == "the notebook can't be written to"


def test_a_page_that_goes_before_it_accepts_is_given_up(kernel: Kernel, tmp_path: Path) -> None:
    page = Page(kernel)
    ask(kernel, tmp_path / "outcome")
    page.hello(page.offer()["comm_id"])
    page.order()
    assert outcome_of(tmp_path / "outcome") == "the page that asked is gone"


def test_what_strangers_open_on_the_target_fails_nothing(kernel: Kernel, tmp_path: Path) -> None:
    page = Page(kernel)
    ask(kernel, tmp_path / "outcome")
    offer = page.offer()
    page.open(event="failed", request="another", reason="no")
    page.hello(offer["comm_id"])
    assert page.order()["client"] == page.name
    assert not (tmp_path / "outcome").exists()


def test_the_versions_of_package_and_plugin_agree() -> None:
    package = json.loads((PLUGIN.parents[1] / "package.json").read_text(encoding="utf-8"))
    project = (PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{package["version"]}"\n' in project
    lock = json.loads((PLUGIN.parents[1] / "package-lock.json").read_text(encoding="utf-8"))
    assert lock["version"] == package["version"]


def test_the_wheel_carries_the_plugin_and_nothing_of_its_tools(project_wheel: Path) -> None:
    with zipfile.ZipFile(project_wheel) as wheel:
        files = {
            name.partition("/share/jupyter/labextensions/torchenv-magic/")[2]
            for name in wheel.namelist()
            if "labextensions" in name
        }
    assert files == {
        "install.json",
        "package.json",
        "schemas/torchenv-magic/plugin.json",
        "static/plugin.js",
        "static/remoteEntry.js",
    }
