"""A kernel of one's own, made where the environment is not to be changed, in a real front end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.browser.fixtures import OpenPage
from tests.browser.server import FrontEndName
from tests.browser.stage import LOAD, MakeStage, Stage, assert_calm
from tests.browser.test_picker_flow import focus_choice, tab_to
from torchenv_magic.notebook.cells import VERIFICATION_SOURCE, VERIFICATION_TAG

pytest_plugins = ["tests.kernel_wheels"]
pytestmark = pytest.mark.browser

MAKE = "Make a kernel of your own"
WHERE = "import sys, torch\nprint(sys.prefix)\nprint(torch.__version__)"


@pytest.fixture
def frozen(stage: MakeStage, tmp_path: Path, kernel_wheels: Path) -> Stage:
    """Return a stage whose kernel's environment is nobody's to change, as a hub's shared one."""
    here = stage(
        extra={"XDG_DATA_HOME": str(tmp_path / "data"), "UV_FIND_LINKS": str(kernel_wheels)}
    )
    (here.environment.directory / "conda-meta").mkdir()
    (here.environment.directory / "conda-meta" / "frozen").touch()
    return here


@pytest.mark.parametrize("front_end", ["lab", pytest.param("notebook", marks=pytest.mark.thorough)])
def test_one_click_makes_it_and_gives_it_to_the_notebook(
    frozen: Stage, open_page: OpenPage, tmp_path: Path, front_end: FrontEndName
) -> None:
    notebook = frozen.notebook("own.ipynb", LOAD, "%torchenv", WHERE)
    before = frozen.environment.snapshot()
    page = open_page(frozen.server, notebook, front_end=front_end)
    page.run_cell(0)
    page.run_cell(1)
    page.wait_for_output(1, "is frozen, which forbids installing into it")
    assert page.control(1, "Install and restart kernel") is None
    kernel = page.kernel_id()
    if front_end == "lab":
        page.click(1, MAKE)
    else:
        focus_choice(page, 1)
        tab_to(page, "kernel's name")
        tab_to(page, MAKE)
        page.press("Enter")

    # The cell came with the picker; it is run in the new kernel.
    page.wait_for_output(2, "PyTorch works", timeout=180)
    page.wait_for_output(1, "Made the kernel “torch-cpu .torch 2.13.0, CPU only.”")
    page.wait_for_output(1, "this notebook has it now")
    assert page.cells()[2].source == VERIFICATION_SOURCE
    assert VERIFICATION_TAG in page.cells()[2].tags
    assert page.kernel_id() != kernel
    assert page.run_cell(3) == "ok"
    folder = tmp_path / "data" / "torchenv" / "kernels" / "torch-cpu"
    assert page.cell_output_text(3).split() == [str(folder), "2.13.0+cpu"]
    page.save()
    saved = json.loads((frozen.server.root_directory / notebook).read_text(encoding="utf-8"))
    assert saved["metadata"]["kernelspec"]["name"] == "torch-cpu"
    assert saved["metadata"]["kernelspec"]["display_name"] == ("torch-cpu (torch 2.13.0, CPU only)")
    assert frozen.environment.snapshot() == before
    assert_calm(page)


def test_the_word_keeps_a_session_that_holds_work_and_removes_what_it_made(
    frozen: Stage, open_page: OpenPage, tmp_path: Path
) -> None:
    cells = (
        f"{LOAD}\ndata = bytearray(5_000_000)",
        "%torchenv install cpu",
        "%torchenv new-kernel mine cpu",
        "%torchenv new-kernel mine --remove",
    )
    page = open_page(frozen.server, frozen.notebook("words.ipynb", *cells))
    page.run_cell(0)
    page.run_cell(1)
    page.wait_for_output(1, "new-kernel NAME")
    kernel = page.kernel_id()
    page.run_cell(2)
    page.wait_for_output(2, "`?data`?, 5.0 MB. is lost with a switch", timeout=180)
    page.wait_for_output(2, "Press Kernel ▸ Change Kernel… and choose “mine .torch 2.13.0, CPU")
    assert page.kernel_id() == kernel
    page.run_cell(3)
    page.wait_for_output(3, "Removed the kernel mine and its environment")
    assert list((tmp_path / "data" / "torchenv" / "kernels").iterdir()) == []
    assert_calm(page)
