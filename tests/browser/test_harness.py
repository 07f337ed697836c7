"""The harness sees what a person sees: shown on JupyterLab and Notebook 7 as they are."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import psutil
import pytest

from tests.browser.fixtures import MakeKernelEnvironment, MakeServer, OpenPage
from tests.browser.front_end import FrontEndPage, FrontEndTimeoutError, Theme
from tests.browser.kernel_environment import find_python
from tests.browser.server import Authentication, FrontEndName, JupyterServer, ServerError

WIDGET = """
import threading, time
import ipywidgets

label = ipywidgets.Label("not pressed")
field = ipywidgets.Text(description="Version", continuous_update=False)
button = ipywidgets.Button(description="Press me")


def work():
    for step in range(3):
        time.sleep(0.05)
        label.value = f"step {step} of {field.value}"


button.on_click(lambda _: threading.Thread(target=work).start())
ipywidgets.VBox([field, button, label])
"""

FACTS = """
import json, os, sys
from pathlib import Path
from ipykernel.connect import get_connection_file

shell = get_ipython()
parent = shell.kernel.get_parent("shell")
print("facts:", json.dumps({
    "session_name": os.environ.get("JPY_SESSION_NAME"),
    "working_directory": os.getcwd(),
    "allow_stdin": shell.kernel._allow_stdin,
    "metadata": parent["metadata"],
    "content": parent["content"],
    "connection_file": Path(get_connection_file()).name,
    "executable": sys.executable,
    "told": os.environ.get("TOLD_BY_THE_TEST"),
}))
"""


@pytest.fixture(
    scope="session", params=["lab", pytest.param("notebook", marks=pytest.mark.thorough)]
)
def server(request: pytest.FixtureRequest) -> JupyterServer:
    """Give each of the two servers in turn."""
    started: JupyterServer = request.getfixturevalue(f"{request.param}_server")
    return started


def facts_of(page: FrontEndPage, index: int) -> dict[str, object]:
    """Run the cell that prints what a kernel knows of its surroundings, and read it."""
    assert page.run_cell(index) == "ok"
    (text,) = [str(output["text"]) for output in page.cells()[index].outputs]
    facts: dict[str, object] = json.loads(text.removeprefix("facts:"))
    return facts


def pictures_differ(page: FrontEndPage, directory: Path) -> bool:
    """Take pictures of the window and of the widget in both themes; say if all are different."""
    pictures = set()
    themes: tuple[Theme, ...] = ("light", "dark")
    for theme in themes:
        page.set_theme(theme)
        for part, output in (("window", None), ("widget", 1)):
            picture = page.screenshot(directory / f"{part}-{theme}.png", output=output).read_bytes()
            assert picture.startswith(b"\x89PNG")
            pictures.add(picture)
    page.set_theme("light")
    return len(pictures) == 4


def the_document_survives(page: FrontEndPage) -> None:
    """Follow an unsaved edit through a restart, on to the disk, and through a reload."""
    added = page.add_cell("answer", index=1)
    page.edit_cell(added, "print(globals().get('answer', 'gone'))")
    assert page.is_dirty()
    assert page.run_cell(added) == "ok"
    assert page.cell_output_text(added).strip() == "42"
    page.server.restart_kernel(page.kernel_id())
    page.wait_until_heard()
    assert page.run_cell(added) == "ok"
    assert page.cell_output_text(added).strip() == "gone"
    assert page.dialogs() == []
    page.save()
    assert not page.is_dirty()
    assert page.server.read_notebook(page.notebook).cells[added].outputs[0].text == "gone\n"

    assert page.restart_and_run_all() == "ok"
    page.wait_for_prompt(0, r"\[1\]:")
    page.wait_for_prompt(added, r"\[2\]:")
    assert page.cell_output_text(added).strip() == "42"
    page.reload()
    assert page.run_cell(added) == "ok"
    assert page.cell_output_text(added).strip() == "42"
    assert page.dialogs() == []


def the_widget_answers(page: FrontEndPage, index: int) -> None:
    """Fill in a field and press a button, by mouse and by keyboard, and see the thread's words."""
    assert page.run_cell(index) == "ok"
    page.fill(index, "Version", "2.13.0")
    page.click(index, "Press me")
    assert page.wait_for_output(index, r"step (\d) of 2\.13\.0$").group(1) in "012"
    page.wait_for_output(index, "step 2")
    field = page.control(index, "Version", role="textbox")
    assert field is not None
    assert (field.value, field.enabled, field.visible) == ("2.13.0", True, True)
    assert page.control(index, "Press something else") is None
    assert 'button "Press me"' in page.aria_snapshot(index)

    # The same by keyboard alone: to the field, on to the button, press it.
    page.fill(index, "Version", "by keyboard")
    focus = page.focused()
    assert focus is not None
    assert (focus.tag, focus.name, focus.cell, focus.in_output) == (
        "button",
        "Press me",
        index,
        True,
    )
    assert focus.ring
    page.press("Space")
    page.wait_for_output(index, "step 2 of by keyboard")


def the_facts_hold(page: FrontEndPage, index: int) -> None:
    """Compare what the kernel knows of its surroundings with what the server and the page know."""
    facts = facts_of(page, index)
    assert facts["session_name"] == str(page.server.root_directory / page.notebook)
    assert facts["working_directory"] == str(page.server.root_directory / "folder")
    assert facts["allow_stdin"] is True
    metadata = facts["metadata"]
    assert isinstance(metadata, dict)
    assert metadata["cellId"] == page.cells()[index].identity
    assert facts["connection_file"] == f"kernel-{page.kernel_id()}.json"


def test_cells_widgets_keyboard_pictures_and_restarts(
    server: JupyterServer, open_page: OpenPage, tmp_path: Path
) -> None:
    """One page does all that the tests of the product will ask of it, and no dialog is seen."""
    heading = nbformat.v4.new_markdown_cell("# A heading")
    name = server.create_notebook(
        "folder/first notebook.ipynb",
        ["answer = 6 * 7\nprint('the answer is', answer)", WIDGET, FACTS, heading],
    )
    page = open_page(server, name, kernel_first=False)
    assert page.name == server.front_end
    assert page.execution_prompt(0) == "[ ]:"
    page.wait_for_kernel("idle")
    assert page.cell_output_text(0) == ""

    assert page.run_cell(0) == "ok"
    assert page.cell_output_text(0).strip() == "the answer is 42"
    assert "<pre>" in page.cell_output_html(0)
    page.wait_for_prompt(0, r"\[1\]:")
    assert "42" not in page.cell_source(0)
    assert [cell.kind for cell in page.cells()] == ["code", "code", "code", "markdown"]

    the_widget_answers(page, 1)
    the_facts_hold(page, 2)
    assert pictures_differ(page, tmp_path)
    page.resize(700, 600)
    assert page.perform(lambda raw: raw.evaluate("innerWidth")) == 700
    the_document_survives(page)
    assert page.dialogs() == []
    assert page.console_errors() == []


def a_second_tab_has_the_same_kernel(first: FrontEndPage, open_page: OpenPage) -> None:
    """Open the notebook in the other front end too, and let both work in one kernel."""
    other: FrontEndName = "notebook" if first.name == "lab" else "lab"
    second = open_page(first.server, first.notebook, front_end=other)
    assert second.name == other
    assert second.kernel_id() == first.kernel_id()

    async def run() -> str:
        return await asyncio.to_thread(first.run_cell, 0)

    assert asyncio.run(run()) == "ok"
    added = second.add_cell("print(os.sep)")
    assert second.run_cell(added) == "ok"
    assert second.cell_output_text(added).strip() in {"/", "\\"}
    second.close()


def test_tabs_failures_and_a_dying_kernel(server: JupyterServer, open_page: OpenPage) -> None:
    """An error, an interrupt, a time-out and the death of a kernel all look different.

    A second tab has the same kernel, and `asyncio.run` works beside open pages, in this test and
    so in every later one.
    """
    name = server.create_notebook(
        "failures.ipynb",
        [
            "import os, time",
            "1 / 0",
            "print('never')",
            "print('sleeping', flush=True)\ntime.sleep(60)",
            "os._exit(0)",
        ],
    )
    page = open_page(server, name)
    a_second_tab_has_the_same_kernel(page, open_page)
    page.run_all(wait=False)
    page.wait_for_output(1, "ZeroDivisionError")
    page.wait_for_kernel("idle")
    # The front end takes the mark of a cell that waited away later than it says so of the kernel.
    page.wait_for_prompt(2, r"\[ \]:")
    assert page.run_cell(1) == "error"

    page.run_cell(3, wait=False)
    page.wait_for_output(3, "sleeping")
    page.wait_for_prompt(3, r"\[\*\]:")
    page.wait_for_kernel("busy")
    with pytest.raises(FrontEndTimeoutError, match=r"(?s)did not come within 0\.2 s.*sleeping"):
        page.wait_for_output(3, "awake", timeout=0.2)
    page.interrupt()
    page.wait_for_output(3, "KeyboardInterrupt")
    page.wait_for_kernel("idle")

    assert page.dialogs() == []
    page.run_cell(4, wait=False)
    assert "died" in page.wait_for_dialog("Kernel Restarting")
    assert page.dialogs() != []
    page.answer_dialog("Ok")
    assert page.dialogs() == []


def test_a_kernel_in_an_environment_of_its_own(
    make_server: MakeServer,
    make_kernel_environment: MakeKernelEnvironment,
    open_page: OpenPage,
) -> None:
    """The kernel runs in a fresh environment without pip, with the variables of the test."""
    environment = make_kernel_environment(project=False)
    assert "ipykernel" in environment.packages()
    assert "pip" not in environment.packages()
    before = environment.snapshot()
    authentication = Authentication.token("a-token-of-the-test")
    server = make_server(
        authentication=authentication,
        base_url="/user/someone/",
        environment={"TOLD_BY_THE_TEST": "yes"},
    )
    assert server.url.endswith("/user/someone/")
    nobody_else_gets_in(server)
    kernel_name = environment.write_kernelspec(
        server.data_directory, display_name="A kernel of the test"
    )
    name = server.create_notebook("own.ipynb", [FACTS, WIDGET], kernel_name=kernel_name)
    page = open_page(server, name)
    facts = facts_of(page, 0)
    assert facts["executable"] == str(environment.python)
    assert facts["told"] == "yes"
    # The page has the widgets' JavaScript from the server, the kernel their Python from here.
    assert page.run_cell(1) == "ok"
    page.click(1, "Press me")
    page.wait_for_output(1, "step 2")
    shown = page.perform(lambda raw: raw.locator(".jp-Toolbar-kernelName").first.inner_text())
    assert shown == "A kernel of the test"

    assert environment.snapshot() == before
    changed = environment.site_packages / "left_behind.py"
    changed.write_text("one = 1\n", encoding="utf-8")
    assert set(environment.snapshot().items()) - set(before.items()) == {
        ("left_behind.py", environment.snapshot()["left_behind.py"])
    }

    # A process that left the kernel's session and outlives the kernel still ends with the server.
    add = page.add_cell(
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],\n"
        "                         start_new_session=True)\n"
        "print(child.pid)"
    )
    assert page.run_cell(add) == "ok"
    assert authentication.secret not in server.log()
    child = psutil.Process(int(page.cell_output_text(add)))
    assert child in server.processes()
    server.stop()
    assert not child.is_running()
    assert server.processes() == []


def test_a_password_lets_in(make_server: MakeServer, open_page: OpenPage) -> None:
    """A page and the REST interface log in with the password; nobody else gets in."""
    authentication = Authentication.password("a password of the test")
    server = make_server(front_end="notebook", authentication=authentication)
    page = open_page(server, server.create_notebook("way in.ipynb", ["print('in')"]))
    assert page.run_cell(0) == "ok"
    assert server.token == ""
    assert [kernel["id"] for kernel in server.kernels()] == [page.kernel_id()]
    assert authentication.secret not in server.log()
    nobody_else_gets_in(server)


def test_no_authentication_still_takes_the_cookie(make_server: MakeServer) -> None:
    """The REST interface works where nobody has to log in."""
    server = make_server(authentication=Authentication.none())
    assert server.token == ""
    server.start_kernel_for(server.create_notebook("open.ipynb", []))
    (kernel,) = server.kernels()
    server.restart_kernel(kernel["id"])
    server.shut_down_kernels()
    assert server.kernels() == []


def nobody_else_gets_in(server: JupyterServer) -> None:
    """Ask without token and cookie."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError, match="403"):
        direct.open(f"{server.url}api/kernels", timeout=10)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The error of a server that ends at once holds its own words."""
    absent = str(tmp_path / "absent")
    server = JupyterServer(tmp_path, configuration={"ServerApp": {"root_dir": absent}})
    with pytest.raises(ServerError, match=r"(?s)the server ended with 1.*No such dir.*absent"):
        server.start()
    assert server.processes() == []


def test_find_python_runs_what_it_finds() -> None:
    """What is found is of that version; what no machine has is not found."""
    for version in ("3.10", "3.12", "3.13"):
        found = find_python(version)
        if found is not None:
            completed = subprocess.run(
                [str(found), "-V"], capture_output=True, text=True, check=True
            )
            assert re.match(rf"Python {version}\.", completed.stdout)
    assert find_python(".".join(map(str, sys.version_info[:2]))) is not None
    assert find_python("3.99") is None
