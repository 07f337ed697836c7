"""The main job, as a person does it: the magic, clicks, and PyTorch that is proven to work.

Real front ends in Chromium, real kernels in environments of their own, the real uv with its real
`--torch-backend`, answered by the stand-in of the PyTorch index.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.browser.fixtures import OpenPage
from tests.browser.front_end import FrontEndPage
from tests.browser.server import Authentication
from tests.browser.stage import LOAD, MakeStage, Stage, assert_calm
from tests.browser.test_picker_flow import until
from tests.standin import INDEX_HOST, StandIn

pytestmark = pytest.mark.browser

INSTALL = "Install and restart kernel"
VERIFICATION_CELL = "%load_ext torchenv_magic\n%torchenv verify"
MADE_RATE = 60_000
"""Bytes per second: slow enough that a made wheel's download can be watched and cancelled."""


def watch_bar(page: FrontEndPage, index: int, *, until: str, timeout: float = 120) -> list[float]:
    """Return the positions that the progress bar was seen at, until the output says `until`."""
    seen: list[float] = []
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        html = page.cell_output_html(index)
        if re.search(until, page.cell_output_text(index)):
            return seen
        if match := re.search(r'<progress [^>]*aria-label="Download"[^>]*value="([\d.]+)"', html):
            position = float(match[1])
            if not seen or position != seen[-1]:
                seen.append(position)
    raise AssertionError(f"`{until}` did not come: {page.cell_output_text(index)}")


def assert_verified(page: FrontEndPage, index: int, version: str) -> None:
    text = page.cell_output_text(index)
    assert "PyTorch works" in text
    assert re.search(rf"torch {re.escape(version)}(, \S+ \S+)*, as asked for", text)
    assert "a matrix product on cpu agrees with the CPU's" in text


def assert_uv_ends(here: Stage) -> None:
    deadline = time.monotonic() + 20
    while here.uv_processes():
        assert time.monotonic() < deadline, "uv did not end"


@pytest.mark.real_wheel
def test_the_real_wheel_by_clicking_in_jupyterlab(
    stage: MakeStage,
    fresh_standin: StandIn,
    real_wheel: Path,
    open_page: OpenPage,
) -> None:
    """Picker, install, progress, restart, verification: 183 MiB of real PyTorch, all by clicks."""
    fresh_standin.add_wheel("cpu", real_wheel)
    fresh_standin.rate = 30_000_000
    here = stage(python="3.11", hermetic=False)
    notebook = here.notebook("click.ipynb", LOAD, "%torchenv", "other = 6 * 7\nprint(other)")
    page = open_page(here.server, notebook)
    page.run_cell(0)
    page.run_cell(1)
    page.wait_for_output(1, r"CPU only · torch .* — recommended\s+no accelerator was found")
    assert "PyTorch is not installed" in page.cell_output_text(1)
    kernel_before = page.kernel_id()

    page.click(1, INSTALL)
    page.wait_for_output(1, r"of 2\d\d\.\d MB")
    # The kernel is free: another cell runs while gigabytes come in.
    page.run_cell(3)
    assert page.cell_output_text(3).strip() == "42"
    bar = watch_bar(page, 1, until=r"the kernel was restarted|Restarting")
    assert len(bar) >= 3
    assert bar == sorted(bar)

    page.wait_for_output(2, "PyTorch works", timeout=120)
    assert_verified(page, 2, "2.13.0+cpu")
    assert "the kernel was restarted" in page.cell_output_text(1)
    assert_calm(page)
    page.wait_for_kernel("idle")
    assert page.kernel_id() == kernel_before
    sources = [cell.source for cell in page.cells()]
    assert sources.count(VERIFICATION_CELL) == 1
    # A fresh process: what the old one held is gone, and torch is loaded from the environment.
    page.edit_cell(3, "import sys\nprint('other' in globals(), sys.modules['torch'].__version__)")
    page.run_cell(3)
    assert page.cell_output_text(3).strip() == "False 2.13.0+cpu"

    page.run_cell(2)
    assert_verified(page, 2, "2.13.0+cpu")
    page.save()
    saved = str(here.server.read_notebook(notebook))
    assert "PyTorch works" in saved
    assert "widget-view" not in saved, "a dead widget was saved with the notebook"

    # All is here: nothing is asked for any more, and a notebook that asks for it computes.
    fresh_standin.down = True
    page.edit_cell(1, "%torchenv install cpu")
    page.edit_cell(3, "import torch\nprint((torch.ones(3, 3) @ torch.ones(3, 3)).sum().item())")
    page.run_all(timeout=120)
    assert page.cell_output_text(3).strip() == "27.0"
    for index in (1, 2):
        assert_verified(page, index, "2.13.0+cpu")
    assert "restarted" not in page.cell_output_text(1)
    assert [cell.source for cell in page.cells()].count(VERIFICATION_CELL) == 1
    assert_calm(page)

    wheels = [r for r in fresh_standin.requests if r.method == "GET" and r.path.endswith(".whl")]
    torch_wheels = [r for r in wheels if "/whl/cpu/torch-" in r.path]
    assert len(torch_wheels) == 1, "the wheel was fetched once, by way of --torch-backend"
    assert any(r.host == INDEX_HOST and r.path == "/whl/cpu/torch/" for r in fresh_standin.requests)


def test_another_python_by_clicking_in_notebook_7(
    stage: MakeStage,
    open_page: OpenPage,
    fresh_standin: StandIn,
) -> None:
    fresh_standin.rate = 20 * MADE_RATE
    here = stage(front_end="notebook", python="3.13")
    page = open_page(here.server, here.notebook("click.ipynb", LOAD, "%torchenv"))
    page.run_cell(0)
    page.run_cell(1)
    page.wait_for_output(1, "recommended")
    page.check(1, "torchvision")
    page.click(1, "Show plan")
    page.wait_for_output(1, r"installs torch 2\.13\.0\+cpu, torchvision 0\.28\.0\+cpu")
    page.click(1, INSTALL)
    page.wait_for_output(2, "PyTorch works", timeout=120)
    assert_verified(page, 2, "2.13.0+cpu")
    assert here.environment.packages()["torchvision"] == "0.28.0+cpu"
    assert_calm(page)
    assert [cell.source for cell in page.cells()].count(VERIFICATION_CELL) == 1
    page.run_cell(2)
    assert_verified(page, 2, "2.13.0+cpu")


def test_cancel_and_interrupt_leave_the_environment_as_it_was(
    stage: MakeStage, fresh_standin: StandIn, open_page: OpenPage
) -> None:
    fresh_standin.rate = MADE_RATE
    here = stage(python="3.12")
    cells = (f"{LOAD}\nkept = 1", "%torchenv", "print(kept)")
    page = open_page(here.server, here.notebook("cancel.ipynb", *cells))
    page.run_cell(0)
    page.run_cell(1)
    page.wait_for_output(1, "recommended")
    before = here.environment.snapshot()
    stops: tuple[Callable[[], None], ...] = (lambda: page.click(1, "Cancel"), page.interrupt)
    for stop in stops:
        page.click(1, INSTALL)
        page.wait_for_output(1, r"\d+(\.\d)? [kM]?B of ")
        assert here.uv_processes()
        stop()
        assert_uv_ends(here)
        page.wait_for_output(1, "Cancelled; the environment is as it was")
        assert here.environment.snapshot() == before
        assert_calm(page)

    # The picker is alive, and so is the session.
    page.run_cell(3)
    assert page.cell_output_text(3).strip() == "1"
    fresh_standin.rate = None
    page.click(1, INSTALL)
    page.wait_for_output(2, "PyTorch works", timeout=120)
    assert_calm(page)


def test_interrupt_stops_the_word_and_the_kernel_goes_on(
    stage: MakeStage, fresh_standin: StandIn, open_page: OpenPage
) -> None:
    fresh_standin.rate = MADE_RATE
    here = stage()
    notebook = here.notebook(
        "stop.ipynb", f"{LOAD}\nkept = 1", "%torchenv install cpu", "print(kept)"
    )
    page = open_page(here.server, notebook)
    page.run_cell(0)
    before = here.environment.snapshot()
    page.run_cell(1, wait=False)
    page.wait_for_output(1, r"\d+(\.\d)? [kM]?B of ")
    page.interrupt()
    assert_uv_ends(here)
    page.wait_for_output(1, "Cancelled; the environment is as it was")
    page.wait_for_kernel("idle")
    assert "Traceback" not in page.cell_output_text(1)
    assert here.environment.snapshot() == before
    page.run_cell(2)
    assert page.cell_output_text(2).strip() == "1"
    assert_calm(page)


def test_a_session_that_holds_work_is_asked_first(stage: MakeStage, open_page: OpenPage) -> None:
    here = stage()
    page = open_page(
        here.server,
        here.notebook("work.ipynb", f"{LOAD}\ndata = bytearray(5_000_000)", "%torchenv"),
    )
    page.run_cell(0)
    page.run_cell(1)
    page.wait_for_output(1, "recommended")
    page.click(1, INSTALL)
    page.wait_for_output(1, "`?data`?, 5.0 MB", timeout=60)
    page.click(1, "Keep the session")
    page.wait_for_output(1, "PyTorch works", timeout=60)
    assert "the session goes on" in page.cell_output_text(1)
    page.edit_cell(2, "import torch\nprint(len(data), torch.__version__)")
    page.run_cell(2)
    assert page.cell_output_text(2).strip() == "5000000 2.13.0+cpu"
    assert_calm(page)


def test_the_wheel_folder_is_offered_where_the_index_is_away(
    stage: MakeStage, fresh_standin: StandIn, open_page: OpenPage, tmp_path: Path
) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    for wheel in fresh_standin.wheels("cpu"):
        (folder / wheel.path.name).symlink_to(wheel.path)
    fresh_standin.down = True
    here = stage(extra={"UV_FIND_LINKS": str(folder)})
    page = open_page(here.server, here.notebook("away.ipynb", LOAD, "%torchenv"))
    page.run_cell(0)
    page.run_cell(1)
    page.wait_for_output(1, "recommended")
    before = here.environment.snapshot()
    page.click(1, INSTALL)
    page.wait_for_output(1, "The PyTorch index .* can't be reached .* fits", timeout=60)
    assert here.environment.snapshot() == before
    page.click(1, "Install torch 2.13.0+cpu from there and restart kernel")
    page.wait_for_output(2, "PyTorch works", timeout=120)
    assert_verified(page, 2, "2.13.0+cpu")
    assert_calm(page)


def test_a_password_server_restarts_by_re_exec(stage: MakeStage, open_page: OpenPage) -> None:
    here = stage(authentication=Authentication.password("correct horse"), plugin=False)
    page = open_page(here.server, here.notebook("password.ipynb", f"{LOAD}\n%torchenv install cpu"))
    page.run_cell(0, timeout=120)
    page.wait_for_output(0, "PyTorch works", timeout=120)
    assert "the kernel was restarted" in page.cell_output_text(0)
    assert_calm(page)
    page.wait_for_kernel("idle")


def keyboard_stays(page: FrontEndPage) -> bool:
    page.perform(lambda _: page.output(1).locator("input[type=radio]").first.focus())
    page.perform(lambda inner: inner.wait_for_timeout(200))
    focus = page.focused()
    return focus is not None and focus.in_output


def test_keyboard_only(stage: MakeStage, open_page: OpenPage) -> None:
    """Tab reaches every control in the order in which it is read; Space presses the button."""
    here = stage()
    page = open_page(here.server, here.notebook("keys.ipynb", LOAD, "%torchenv"))
    page.run_cell(0)
    page.run_cell(1)
    # The index's own release: the list is drawn anew where it knows another than the catalog.
    page.wait_for_output(1, r"torch 2\.13\.0 — recommended")
    # After a cell has run the front end gives the keyboard to the next one, in its own time.
    page.wait_for_kernel("idle")
    until(lambda: keyboard_stays(page), "the keyboard does not stay in the picker")
    # A browser shows the focus to whoever uses the keyboard, which a script that sets it does not.
    page.press("Tab")
    page.press("Shift+Tab")
    names = []
    for _ in range(12):
        focus = page.focused()
        if focus is None or not focus.in_output:
            break
        names.append(focus.name)
        assert focus.ring, f"{focus.name} shows no focus"
        if focus.name == INSTALL:
            break
        page.press("Tab")
    assert names[-1] == INSTALL, names
    wanted = ["torchvision", "torchaudio", "torch version", "more packages", INSTALL]
    assert [name for name in names if name in wanted] == wanted
    assert any("do not fit here" in name for name in names)
    page.press("Space")
    page.wait_for_output(2, "PyTorch works", timeout=120)
    assert_calm(page)


def test_a_wrong_word_is_one_message_and_the_picker_goes_on(
    stage: MakeStage, open_page: OpenPage
) -> None:
    here = stage()
    page = open_page(here.server, here.notebook("wrong.ipynb", LOAD, "%torchenv"))
    page.run_cell(0)
    page.run_cell(1)
    page.wait_for_output(1, "recommended")
    for field, text, says in (
        ("more packages", "torch==", "torch== is not a requirement"),
        ("more packages", "--index-url x", "--index-url is an option, not a requirement"),
        ("more packages", "no-such-package-at-all", "is on none of the indexes"),
        ("torch version", "99.0", r"torch==99\.0"),
    ):
        page.fill(1, field, text)
        page.click(1, INSTALL)
        page.wait_for_output(1, says, timeout=60)
        assert "hint:" in page.cell_output_text(1)
        page.fill(1, field, "")
    page.click(1, INSTALL)
    page.wait_for_output(2, "PyTorch works", timeout=120)
    assert_calm(page)
