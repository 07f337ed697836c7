"""Run All and queued cells: what stands behind an install never runs in the old process."""

from __future__ import annotations

import pytest

from tests.browser.fixtures import OpenPage
from tests.browser.stage import LOAD, MakeStage, assert_calm
from torchenv_magic.notebook.cells import VERIFICATION_SOURCE

pytestmark = pytest.mark.browser

INSTALL = f"{LOAD}\n%torchenv install cpu"
USE = "import torch\nprint('used', torch.__version__)"
SENTENCE = "the kernel was restarted. Run your other cells again."


@pytest.mark.parametrize("plugin", [True, False], ids=["plugin", "no plugin"])
def test_restart_and_run_all_stops_once_and_then_comes_through(
    stage: MakeStage, open_page: OpenPage, *, plugin: bool
) -> None:
    here = stage(plugin=plugin)
    page = open_page(here.server, here.notebook("all.ipynb", INSTALL, USE, "print('last')"))
    proof = 1 if plugin else 0
    page.restart_and_run_all(timeout=120)
    page.wait_for_output(proof, "PyTorch works", timeout=120)
    page.wait_for_output(0, SENTENCE.replace(".", r"\."))
    assert [cell.source for cell in page.cells()] == [
        INSTALL,
        VERIFICATION_SOURCE,
        USE,
        "print('last')",
    ]
    # Not run, and nothing says that they failed.
    for index in (2, 3):
        page.wait_for_prompt(index, r"\[ \]:")
        assert page.cell_output_text(index) == ""
    assert_calm(page)
    page.wait_for_kernel("idle")

    # Nothing has to change now: one go.
    page.restart_and_run_all(timeout=120)
    page.wait_for_output(3, "last")
    assert page.cell_output_text(2).strip() == "used 2.13.0+cpu"
    assert "restarted" not in page.cell_output_text(0)
    assert len(page.cells()) == 4
    assert_calm(page)


@pytest.mark.parametrize("plugin", [True, False], ids=["plugin", "no plugin"])
def test_the_rest_of_the_cell_does_not_run_in_the_old_process(
    stage: MakeStage, open_page: OpenPage, *, plugin: bool
) -> None:
    here = stage(plugin=plugin)
    below = "import torch, os\nprint('below', torch.__version__)"
    notebook = here.notebook("below.ipynb", f"{INSTALL}\n{below}", "print('queued')")
    page = open_page(here.server, notebook)
    page.run_all(timeout=120)
    page.wait_for_output(1 if plugin else 0, "PyTorch works", timeout=120)
    text = page.cell_output_text(0)
    assert "below" not in text
    assert "Dropped" not in text, "an error was shown where nothing went wrong"
    assert SENTENCE in text
    assert page.cell_output_text(len(page.cells()) - 1) == ""
    assert_calm(page)
    page.wait_for_kernel("idle")

    # The second time nothing changes, and the cell runs to its end.
    page.run_all(timeout=120)
    page.wait_for_output(0, r"below 2\.13\.0\+cpu")
    page.wait_for_output(len(page.cells()) - 1, "queued")
    assert_calm(page)


def test_cells_that_are_run_while_a_picker_installs_are_not_lost(
    stage: MakeStage, open_page: OpenPage
) -> None:
    """A cell that blocks as the install ends is waited for; the one behind it goes back."""
    here = stage()
    behind = "print('behind')"
    # To its end: what follows an install waits for the cell by then, however slow the machine is.
    slow = (
        "import threading, time, importlib.metadata as metadata\n"
        "def installed():\n"
        "    try: return bool(metadata.version('torch'))\n"
        "    except metadata.PackageNotFoundError: return False\n"
        "while not installed(): time.sleep(0.05)\n"
        "while 'torchenv-install' in {thread.name for thread in threading.enumerate()}:\n"
        "    time.sleep(0.05)\n"
        "print('came to its end')"
    )
    page = open_page(here.server, here.notebook("queue.ipynb", f"{LOAD}\n%torchenv", slow, behind))
    page.run_cell(0)
    page.wait_for_output(0, "recommended")
    page.click(0, "Install and restart kernel")
    slow_cell = next(i for i, cell in enumerate(page.cells()) if cell.source == slow)
    page.run_cell(slow_cell, wait=False)
    page.run_cell(slow_cell + 1, wait=False)
    page.wait_for_output(1, "PyTorch works", timeout=120)
    assert page.cell_output_text(slow_cell).strip() == "came to its end"
    page.wait_for_prompt(slow_cell + 1, r"\[ \]")
    assert page.cell_output_text(slow_cell + 1) == ""
    assert_calm(page)
