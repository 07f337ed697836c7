"""The picker and Run All in each front end besides the newest JupyterLab, which the others try."""

from __future__ import annotations

import pytest

from tests.browser.fixtures import OpenPage
from tests.browser.stage import LOAD, MakeStage, Stage, assert_calm
from tests.browser.visit import UNSAVED
from tests.standin import StandIn
from torchenv_magic.notebook.cells import VERIFICATION_SOURCE, VERIFICATION_TAG

pytestmark = pytest.mark.browser

INSTALL = "Install and restart kernel"
RATE = 60_000
"""Bytes per second: slow enough that a download can be watched and cancelled."""


@pytest.fixture(
    params=[
        ("oldest", "lab"),
        pytest.param(("oldest", "notebook"), marks=pytest.mark.thorough),
        ("newest", "notebook"),
    ],
    ids=" ".join,
)
def here(request: pytest.FixtureRequest, stage: MakeStage) -> Stage:
    age, front_end = request.param
    python = request.getfixturevalue("oldest_server_python") if age == "oldest" else None
    return stage(front_end=front_end, server_python=python)


VERSIONS = {"oldest lab": "4.0.2", "oldest notebook": "7.0.0"}


def test_picker_and_run_all(
    request: pytest.FixtureRequest, here: Stage, fresh_standin: StandIn, open_page: OpenPage
) -> None:
    """Progress, Cancel, Interrupt, an install by button; Run All stops once and comes through."""
    fresh_standin.rate = RATE
    page = open_page(here.server, here.notebook("picker.ipynb", LOAD, "%torchenv", "1"))
    version = page.perform(lambda raw: raw.evaluate("window.jupyterapp.version"))
    assert version == VERSIONS.get(request.node.callspec.id, version)
    kernel = page.kernel_id()
    page.run_cell(0)
    page.run_cell(1)
    page.wait_for_output(1, "recommended")
    page.save()
    page.edit_cell(3, UNSAVED)
    before = here.environment.snapshot()
    for stop in ("Cancel", "Interrupt"):
        page.click(1, INSTALL)
        page.wait_for_output(1, r"\d+(\.\d)? [kM]?B of ")
        if stop == "Cancel":
            page.click(1, "Cancel")
        else:
            page.interrupt()
        page.wait_for_output(1, "Cancelled; the environment is as it was")
        assert here.environment.snapshot() == before
    fresh_standin.rate = None
    page.click(1, INSTALL)
    page.wait_for_output(2, "PyTorch works", timeout=120)
    page.wait_for_output(1, r"the kernel was restarted")
    page.wait_for_kernel("idle")
    # The plugin has restarted the kernel that was there, in a notebook that keeps what was typed.
    assert page.kernel_id() == kernel
    assert [cell.source for cell in page.cells()][1:] == ["%torchenv", VERIFICATION_SOURCE, UNSAVED]
    assert page.cells()[2].tags == (VERIFICATION_TAG,)
    assert page.is_dirty()
    assert_calm(page)

    install = f"{LOAD}\n%torchenv install cpu torch==2.12.0"
    use = "import torch\nprint('used', torch.__version__)"
    page = open_page(here.server, here.notebook("all.ipynb", install, use))
    page.restart_and_run_all(timeout=120)
    page.wait_for_output(1, "PyTorch works", timeout=120)
    page.wait_for_kernel("idle")
    page.wait_for_prompt(2, r"\[ \]:")
    page.restart_and_run_all(timeout=120)
    page.wait_for_output(2, r"used 2\.12\.0\+cpu", timeout=120)
    assert_calm(page)
