"""What a person sees of a server's own install, in a real JupyterLab."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.fixtures import MakeServer, OpenPage
from tests.browser.stage import LOAD, assert_calm
from tests.server.test_extension import SECONDS, home_variables
from tests.standin import StandIn
from torchenv_magic.notebook.cells import VERIFICATION_SOURCE

pytest_plugins = ["tests.kernel_wheels"]
pytestmark = pytest.mark.browser

USE = "Use that kernel in this notebook"


def test_picker_waits_for_the_kernel_that_the_server_makes_and_gives_it_to_the_notebook(
    make_server: MakeServer,
    open_page: OpenPage,
    fresh_standin: StandIn,
    kernel_wheels: Path,
    tmp_path: Path,
) -> None:
    fresh_standin.rate = 20_000
    server = make_server(
        environment={
            **home_variables(tmp_path / "home", fresh_standin, kernel_wheels),
            "TORCHENV_PREINSTALL": "1",
            "TORCHENV_BACKEND": "cpu",
        }
    )
    notebook = server.create_notebook("first.ipynb", [LOAD, "%torchenv", "import torch"])
    page = open_page(server, notebook)
    page.run_cell(0)
    page.run_cell(1)
    page.wait_for_output(1, "installed for the kernel “PyTorch .torchenv.”", timeout=SECONDS)
    page.wait_for_output(1, r"[kM]?B of ", timeout=SECONDS)
    assert page.control(1, "Install and restart kernel") is None
    assert page.control(1, "Choose for yourself") is not None
    before = page.kernel_id()

    fresh_standin.rate = None
    page.wait_for_output(1, USE, timeout=SECONDS)
    page.perform(lambda _: page.output(1).get_by_role("button", name="Choose for").focus())
    page.press("Shift+Tab")
    focus = page.focused()
    assert focus is not None
    assert (focus.name, focus.ring) == (USE, True)
    page.press("Enter")

    page.wait_for_output(2, "PyTorch works", timeout=SECONDS)
    assert page.cells()[2].source == VERIFICATION_SOURCE
    page.wait_for_output(1, "this notebook has it now")
    assert page.kernel_id() != before
    assert page.run_cell(3) == "ok"
    assert_calm(page)
