"""The plugin in JupyterLab and Notebook 7: what it does to a notebook, and what it leaves alone."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route

from tests.browser.fixtures import MakeKernelEnvironment, MakeServer, OpenPage
from tests.browser.front_end import FrontEndPage
from tests.browser.server import FrontEndName, JupyterServer
from tests.browser.stage import assert_calm
from torchenv_magic.notebook.cells import VERIFICATION_SOURCE, VERIFICATION_TAG

pytestmark = pytest.mark.browser

PICKER = "%load_ext torchenv_magic\n%torchenv"
OPEN_PICKER = "torchenv-magic:open-picker"
ENTRY = "PyTorch Environment…"

# What follows an install that changed something, without the install.
RESTART = """\
import logging, sys, threading
from IPython.display import display
from torchenv_magic.notebook.after_restart import fresh_kernel_code
from torchenv_magic.notebook.front_end import read_front_end
from torchenv_magic.notebook.plugin import OUTPUT_MIME
from torchenv_magic.notebook.restart import Restart
logging.basicConfig(filename={log!r}, level="INFO")
display(
    {{"text/plain": "before", OUTPUT_MIME: {{"id": "asked"}}}}, raw=True, display_id="asked"
)
restart = Restart(get_ipython(), read_front_end(get_ipython()))
restart.run(
    restart.prepare(),
    display_id="asked",
    fresh_kernel_code=fresh_kernel_code("asked", "By the server."),
    after={{"text/plain": "after"}},
    on_failure=lambda error: logging.error("%s", error),
)
restart.abort_queue();
"""
SWITCH = """\
import logging
from IPython.display import display
from torchenv_magic.notebook.front_end import read_front_end
from torchenv_magic.notebook.plugin import OUTPUT_MIME
from torchenv_magic.notebook.restart import Restart
logging.basicConfig(filename={log!r}, level="INFO")
display(
    {{"text/plain": "before", OUTPUT_MIME: {{"id": "asked"}}}}, raw=True, display_id="asked"
)
restart = Restart(get_ipython(), read_front_end(get_ipython()))
restart.switch(
    {kernel!r},
    display_id="asked",
    after={{"text/plain": "after"}},
    on_failure=lambda reason: logging.error("%s", reason),
)
restart.abort_queue();
"""


@pytest.fixture(params=["lab", pytest.param("notebook", marks=pytest.mark.thorough)])
def server(request: pytest.FixtureRequest) -> JupyterServer:
    running: JupyterServer = request.getfixturevalue(f"{request.param}_server")
    return running


def verification_cells(page: FrontEndPage) -> list[int]:
    return [index for index, cell in enumerate(page.cells()) if VERIFICATION_TAG in cell.tags]


def wait_for_verification(page: FrontEndPage, index: int) -> None:
    # There is no PyTorch in the environment that runs the tests.
    page.wait_for_output(index, "PyTorch (works|is not installed)", timeout=60)


def shows_widgets(page: FrontEndPage, index: int) -> bool:
    return bool(page.perform(lambda _: page.output(index).locator(".jupyter-widgets").count()))


def test_the_verification_cell_is_placed_tagged_and_run(
    server: JupyterServer, open_page: OpenPage, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    cells = ["print('first')", RESTART.format(log=str(log)), "print('last')"]
    page = open_page(server, server.create_notebook("place.ipynb", cells))
    page.run_cell(0)
    kernel = page.kernel_id()
    page.run_cell(1)
    wait_for_verification(page, 2)
    page.wait_for_output(1, "after")
    assert page.cells()[2].source == VERIFICATION_SOURCE
    assert verification_cells(page) == [2]
    assert page.cell_output_text(0).strip() == "first"
    page.wait_for_prompt(1, r"\[2\]:")
    assert page.kernel_id() == kernel
    assert_calm(page)
    page.wait_for_kernel("idle")

    # The second time it is found again, also where it was moved and lost its tag.
    page.run_cell(1)
    page.wait_for_prompt(2, r"\[1\]")
    page.wait_for_output(1, "after")
    assert verification_cells(page) == [2]


def test_a_cell_with_the_same_source_is_taken_and_tagged(
    lab_server: JupyterServer, open_page: OpenPage, tmp_path: Path
) -> None:
    cells = [RESTART.format(log=str(tmp_path / "log")), "1", f"{VERIFICATION_SOURCE}\n"]
    page = open_page(lab_server, lab_server.create_notebook("found.ipynb", cells))
    page.run_cell(0)
    wait_for_verification(page, 2)
    assert verification_cells(page) == [2]
    assert len(page.cells()) == 3


def test_the_person_s_place_and_words_stay(
    server: JupyterServer, open_page: OpenPage, tmp_path: Path
) -> None:
    """Selection, mode, keyboard and scroll position: somebody types in another cell meanwhile."""
    cells = [RESTART.format(log=str(tmp_path / "log")), *["\n" * 12] * 12, "typed = "]
    page = open_page(server, server.create_notebook("typing.ipynb", cells))
    page.run_cell(0, wait=False)

    def begin_to_type(inner: Page) -> None:
        editor = page.cell(13).locator(".cm-content")
        editor.scroll_into_view_if_needed()
        editor.click()
        inner.keyboard.press("End")

    page.perform(begin_to_type)
    page.type_text("4")
    before = page.perform(lambda inner: inner.evaluate(SCROLL))
    wait_for_verification(page, 1)
    page.type_text("2")
    # Two cells more than before: the verification cell went in above.
    assert page.cells()[14].source == "typed = 42"
    after = page.perform(lambda inner: inner.evaluate(SCROLL))
    assert after["active"] == before["active"]
    assert after["mode"] == "edit"
    assert abs(after["top"] - before["top"]) < 4, "the cell that is typed in moved on the screen"
    assert_calm(page)


# Where on the screen the active cell is, and what it is.
SCROLL = """() => {
  const notebook = window.jupyterapp.shell.currentWidget.content;
  return {
    active: notebook.activeCell.model.id,
    mode: notebook.mode,
    top: notebook.activeCell.node.getBoundingClientRect().top,
  };
}"""


def test_a_page_that_can_t_restart_the_kernel_gives_way_to_the_next(
    lab_server: JupyterServer, open_page: OpenPage, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    cells = [RESTART.format(log=str(log)), "print('next')"]
    page = open_page(lab_server, lab_server.create_notebook("refused.ipynb", cells))

    def refuse(route: Route) -> None:
        route.fulfill(status=503, body="{}")

    page.perform(lambda inner: inner.route("**/api/kernels/*/restart*", refuse))
    page.run_cell(0)
    page.wait_for_output(0, "By the server", timeout=60)
    lines = [
        line for line in log.read_text().splitlines() if line.startswith("WARNING:torchenv_magic")
    ]
    (line,) = lines
    assert line.endswith("notebook.restart:restart: the front end could not restart the kernel")
    assert page.dialogs() == []
    page.wait_for_kernel("idle")
    assert page.run_cell(1) == "ok"


def test_the_notebook_is_switched_to_another_kernel_and_verified_there(
    server: JupyterServer, make_second_kernel: str, open_page: OpenPage, tmp_path: Path
) -> None:
    cells = [
        SWITCH.format(kernel=make_second_kernel, log=str(tmp_path / "log")),
        "import os\nprint(os.environ['SECOND'])",
    ]
    notebook = server.create_notebook("switch.ipynb", cells)
    page = open_page(server, notebook)
    before = page.kernel_id()
    page.run_cell(0)
    wait_for_verification(page, 1)
    page.wait_for_output(0, "after")
    assert page.kernel_id() != before
    assert verification_cells(page) == [1]
    assert page.run_cell(2) == "ok"
    assert page.cell_output_text(2).strip() == "yes"
    page.save()
    saved = json.loads((server.root_directory / notebook).read_text(encoding="utf-8"))
    assert saved["metadata"]["kernelspec"]["name"] == make_second_kernel
    assert_calm(page)


def test_a_kernel_that_the_server_does_not_find_is_no_dialog_and_the_old_one_lives_on(
    lab_server: JupyterServer, open_page: OpenPage, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    cells = [SWITCH.format(kernel="nowhere", log=str(log)), "print('here')"]
    page = open_page(lab_server, lab_server.create_notebook("nowhere.ipynb", cells))
    before = page.kernel_id()
    page.run_cell(0)
    deadline = time.monotonic() + 60
    while "ERROR:root:the server does not find the new kernel" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert page.kernel_id() == before
    assert page.run_cell(1) == "ok"
    assert_calm(page)


@pytest.fixture
def make_second_kernel(server: JupyterServer) -> str:
    """Offer this environment a second time, with a variable of its own; return its name."""
    folder = server.data_directory / "kernels" / "second"
    folder.mkdir(parents=True, exist_ok=True)
    specification = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Second",
        "language": "python",
        "env": {"SECOND": "yes"},
    }
    (folder / "kernel.json").write_text(json.dumps(specification), encoding="utf-8")
    return "second"


# ------------------------------------------------------------------------------------- the entries


def test_the_menu_the_toolbar_and_the_palette_open_the_picker(
    server: JupyterServer, open_page: OpenPage
) -> None:
    page = open_page(server, server.create_notebook("entries.ipynb", ["a = 1", "b = 2"]))
    page.select_cell(0)
    page.perform(choose_from_menu)
    page.wait_for_output(1, "PyTorch for this kernel")
    page.wait_for_cells(4)
    assert [cell.source for cell in page.cells()] == [
        "a = 1",
        PICKER,
        VERIFICATION_SOURCE,
        "b = 2",
    ]
    assert page.cells()[1].tags == ("torchenv-picker",)

    # From then on it is the same cell.
    ways = [press_toolbar_button, lambda inner: inner.evaluate(EXECUTE, OPEN_PICKER)]
    if page.name == "lab":
        ways.append(choose_from_palette)
    for number, way in enumerate(ways, start=2):
        page.perform(way)
        page.wait_for_prompt(1, rf"\[{number}\]")
        page.wait_for_output(1, "PyTorch for this kernel")
    assert len(page.cells()) == 4
    assert_calm(page)


EXECUTE = "async command => { await window.jupyterapp.commands.execute(command); }"


def choose_from_menu(inner: Page) -> None:
    inner.locator(".lm-MenuBar-itemLabel", has_text="Kernel").click()
    inner.locator(".lm-Menu-itemLabel", has_text=ENTRY).click()


def press_toolbar_button(inner: Page) -> None:
    """By keyboard, and by its words."""
    name = "Choose, install and verify PyTorch for this notebook's kernel"
    button = inner.locator(".jp-NotebookPanel:not(.lm-mod-hidden)").get_by_role("button", name=name)
    if button.count() == 0:  # Notebook has the toolbar outside the panel
        button = inner.get_by_role("button", name=name)
    button.first.focus()
    inner.keyboard.press("Enter")


def choose_from_palette(inner: Page) -> None:
    inner.keyboard.press("Control+Shift+c")
    field = inner.locator(".lm-CommandPalette-input")
    field.fill("pytorch")
    inner.locator(".lm-CommandPalette-itemLabel", has_text=ENTRY).wait_for()
    field.press("ArrowDown")
    field.press("Enter")


def test_a_kernel_without_the_package_is_told_how_to_get_it(
    make_server: MakeServer, make_kernel_environment: MakeKernelEnvironment, open_page: OpenPage
) -> None:
    server = make_server()
    environment = make_kernel_environment(project=False)
    kernel = environment.write_kernelspec(server.data_directory)
    notebook = server.create_notebook("absent.ipynb", ["a = 1"], kernel_name=kernel)
    page = open_page(server, notebook)
    page.execute_command(OPEN_PICKER)
    page.perform(lambda inner: inner.locator(".Toastify__toast").wait_for())
    (text,) = page.notifications()
    assert "torchenv_magic is not installed in the environment of this kernel" in text
    assert "%pip install torchenv-magic" in text


# ------------------------------------------------------------------------------------ dead pickers


@pytest.mark.parametrize("front_end", ["lab", pytest.param("notebook", marks=pytest.mark.thorough)])
def test_a_picker_whose_kernel_is_gone_becomes_its_summary(
    front_end: FrontEndName, request: pytest.FixtureRequest, open_page: OpenPage
) -> None:
    server: JupyterServer = request.getfixturevalue(f"{front_end}_server")
    notebook = server.create_notebook("dead.ipynb", [PICKER])
    page = open_page(server, notebook)
    page.run_cell(0)
    page.wait_for_output(0, "recommended|not fit")
    page.save()
    page.close()
    server.shut_down_kernels()

    again = open_page(server, notebook)
    again.wait_for_output(0, "Accelerator")
    assert not shows_widgets(again, 0)
    assert not again.is_dirty(), "nobody has edited anything"
    assert again.run_cell(0) == "ok"
    again.wait_for_output(0, "recommended|not fit")
    assert shows_widgets(again, 0)

    # The front end's own Restart leaves the widget without its kernel, too.
    again.restart()
    again.wait_for_output(0, "Accelerator")
    assert not shows_widgets(again, 0)
    assert again.dialogs() == []


def test_a_living_picker_is_left_alone_when_the_page_is_loaded_again(
    lab_server: JupyterServer, open_page: OpenPage
) -> None:
    page = open_page(lab_server, lab_server.create_notebook("alive.ipynb", [PICKER]))
    page.run_cell(0)
    page.wait_for_output(0, "recommended|not fit")
    page.save()
    page.reload()
    page.wait_for_output(0, "recommended|not fit")
    assert shows_widgets(page, 0)
