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
    HELLO_SECONDS,
    OUTPUT_MIME,
    TARGET,
    Client,
    choose_client,
    restart_order,
    store_order,
    switch_order,
)
from torchenv_magic.project.lock import METADATA_KEY

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
# The same for an order that the kernel outlives.
ASK_TO_STORE = """\
import pathlib
from torchenv_magic.notebook.front_end import read_front_end
from torchenv_magic.notebook.restart import Restart
outcome = pathlib.Path({outcome!r})
Restart(get_ipython(), read_front_end(get_ipython())).store(
    "torchenv", {{"schema": 1}}, display_id="out-1",
    on_done=lambda: outcome.write_text("stored"), on_failure=outcome.write_text,
)
"""
SESSION = "read_front_end(get_ipython()).session"


SWITCH = switch_order("k", output=None, cell=None, after={})


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


def test_a_plugin_that_names_no_orders_knows_those_of_the_first() -> None:
    hello = {"event": "hello", "protocol": 1, "client": "a", "writable": True}
    first = Client.from_hello(hello)
    assert first is not None
    assert first.orders == {"restart", "switch"}
    newer = Client.from_hello({**hello, "orders": ["restart", "store", "sing", 5]})
    assert newer is not None
    assert newer.orders == {"restart", "store", "sing"}
    assert choose_client("a", [first], event="store") is None
    assert choose_client("a", [newer], event="store") == newer
    assert choose_client("a", [newer], event="switch") is None


def test_both_halves_use_the_same_words() -> None:
    """The plugin is JavaScript: its constants are compared as they stand in the file."""
    text = PLUGIN.read_text(encoding="utf-8")
    assert f"const TARGET = '{TARGET}';" in text
    assert f"const OUTPUT_MIME = '{OUTPUT_MIME}';" in text
    assert "const PROTOCOL = 1;" in text
    order = restart_order(output="o", cell=None, after={})
    for name in (*order, *SWITCH):
        assert f"order.{name}" in text
    store = store_order("torchenv", {}, output=None)
    for name in store:
        assert name == "output" or f"order.{name}" in text
    assert f"const METADATA_KEY = '{METADATA_KEY}';" in text
    events = [str(each["event"]) for each in (order, SWITCH, store)]
    assert f"const ORDERS = [{', '.join(map(repr, events))}];" in text
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


# ------------------------------------------------------------------- an order that is outlived


def ask_to_store(kernel: Kernel, outcome: Path) -> None:
    """Ask as a notebook does: its cells have ids."""
    kernel.send(ASK_TO_STORE.format(outcome=str(outcome)), cell_id="cell-1")


def test_a_page_stores_what_it_is_given_and_the_kernel_goes_on(
    kernel: Kernel, tmp_path: Path
) -> None:
    page = Page(kernel)
    ask_to_store(kernel, tmp_path / "outcome")
    offer = page.offer()
    page.hello(offer["comm_id"], orders=["restart", "switch", "store"])
    order = page.order()
    assert order["event"] == "store"
    assert (order["key"], order["value"]) == ("torchenv", {"schema": 1})
    page.send(offer["comm_id"], event="accepted")
    page.send(offer["comm_id"], event="done")
    assert outcome_of(tmp_path / "outcome") == "stored"
    kernel.wait_for(lambda each: each["msg_type"] == "comm_close")


def test_an_older_plugin_is_not_asked_for_what_it_does_not_know(
    kernel: Kernel, tmp_path: Path
) -> None:
    page = Page(kernel)
    ask_to_store(kernel, tmp_path / "outcome")
    page.hello(page.offer()["comm_id"])
    reason = "the server has an older plugin, which can't do that yet"
    assert outcome_of(tmp_path / "outcome") == reason
    assert page.orders() == []


def test_cells_that_run_before_the_page_is_heard_are_no_silence_of_the_page(
    kernel: Kernel, tmp_path: Path
) -> None:
    """In Run All, what a page says waits behind the cells: longer than silence is taken for."""
    page = Page(kernel)
    ask_to_store(kernel, tmp_path / "outcome")
    kernel.send(f"import time; time.sleep({HELLO_SECONDS} + 0.2)")
    offer = page.offer()
    page.hello(offer["comm_id"], orders=["store"])
    assert page.order()["event"] == "store"
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
