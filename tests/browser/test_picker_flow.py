"""The picker at work, by mouse and by keyboard: what it says, and where it is found again."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import nbconvert
import pytest

from tests.browser.fixtures import OpenPage
from tests.browser.front_end import FrontEndPage
from tests.browser.stage import LOAD, MakeStage, Stage, assert_calm
from tests.standin import StandIn

pytestmark = pytest.mark.browser

VERIFICATION = f"{LOAD}\n%torchenv verify"
PROCESS = "import os; print(os.getpid())"
INSTALL = "Install and restart kernel"
CANCELLED = "Cancelled; the environment is as it was"
SLOW = 400_000
"""Bytes per second: a made wheel's download can be watched, left and cancelled."""
BYTES = r"\d+(\.\d)? [kM]?B of "
LISTED = r"torch 2\.13\.0 — recommended"
"""What the index has: the list is drawn anew where that is another release than the catalog's."""


def open_picker(page: FrontEndPage, *cells: int) -> None:
    page.run_cell(0)
    for index in cells:
        page.run_cell(index)
        page.wait_for_output(index, LISTED)


def tab_to(page: FrontEndPage, name: str) -> None:
    """Press Tab until that control has the keyboard."""
    for _ in range(20):
        page.press("Tab")
        focus = page.focused()
        assert focus is not None
        assert focus.in_output, f"{name} was not reached before the picker was left"
        assert focus.ring, f"{focus.name} shows no focus"
        if focus.name == name:
            return
    raise AssertionError(f"{name} was not reached")


def focus_choice(page: FrontEndPage, index: int) -> None:
    page.perform(lambda _: page.output(index).locator("input[type=radio]").first.focus())


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_one_install_is_found_by_every_picker_and_by_a_page_that_is_opened_again(
    stage: MakeStage, fresh_standin: StandIn, open_page: OpenPage
) -> None:
    here = stage()
    notebook = here.notebook("twice.ipynb", LOAD, "%torchenv", "%torchenv", VERIFICATION)
    page = open_page(here.server, notebook)
    open_picker(page, 1, 2)
    before = here.environment.snapshot()
    fresh_standin.rate = SLOW // 20  # it lasts until it is cancelled

    page.click(1, INSTALL)
    page.wait_for_output(1, BYTES)
    # The other picker is at the same work, and has no button that would begin another.
    page.wait_for_output(2, "Installing…")
    until(lambda: page.control(2, INSTALL) is None, "two can be begun")
    assert len(here.uv_processes()) == 1

    page.save()
    saved = here.server.root_directory / notebook
    assert_a_saved_picker_reads_well(saved)
    page.close()
    again = open_page(here.server, notebook)
    again.wait_for_output(1, BYTES)
    again.run_cell(1)
    again.wait_for_output(1, BYTES)
    again.click(1, "Cancel")
    again.wait_for_output(1, CANCELLED)
    again.wait_for_output(2, CANCELLED)
    assert here.environment.snapshot() == before
    again.run_cell(1)
    again.wait_for_output(1, CANCELLED)
    assert_calm(again)

    fresh_standin.rate = None
    again.click(2, INSTALL)
    again.wait_for_output(3, "PyTorch works", timeout=120)
    assert "Installed torch 2.13.0+cpu" in again.cell_output_text(1)
    assert "stands where the picker was opened last" in again.cell_output_text(2)
    assert_calm(again)


def assert_a_saved_picker_reads_well(notebook: Path) -> None:
    """Convert what was saved with a live picker as people do: its summary is there, no widget."""
    for form in ("html", "markdown"):
        text, _ = nbconvert.get_exporter(form)().from_filename(str(notebook))  # type: ignore[no-untyped-call]
        for words in ("Environment", "PyTorch is not installed", "Recommended"):
            assert words in text, f"{words} in {form}"
        assert "widget-view" not in text
        assert "Error displaying widget" not in text
    outputs = json.loads(notebook.read_text(encoding="utf-8"))["cells"][1]["outputs"]
    (data,) = [output["data"] for output in outputs]
    assert data["application/vnd.torchenv-magic.output+json"]["id"].startswith("torchenv-")
    assert "recommended" in "".join(data["text/plain"])


def test_another_install_is_waited_for_and_then_nothing_is_left_to_do(
    stage: MakeStage, fresh_standin: StandIn, open_page: OpenPage
) -> None:
    here = stage()
    notebook = here.notebook("join.ipynb", LOAD, "%torchenv", PROCESS, VERIFICATION)
    page = open_page(here.server, notebook)
    open_picker(page, 1)
    page.run_cell(2)
    process = page.cell_output_text(2)
    fresh_standin.rate = SLOW // 8
    other = subprocess.Popen(
        [str(here.environment.python), "-m", "torchenv_magic", "install", "cpu"],
        env=fresh_standin.environment(here.cache, hermetic=True).apply(os.environ),
        cwd=here.environment.directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        holder = here.environment.directory / ".torchenv" / "holder.json"

        def holds() -> bool:
            with contextlib.suppress(OSError, ValueError):
                record = json.loads(holder.read_bytes())
                return (record["pid"], record["command"]) == (other.pid, "torchenv install cpu")
            return False

        until(holds, "the other install did not begin")
        page.click(1, INSTALL)
        page.wait_for_output(1, f"torchenv install cpu.* \\(process {other.pid}, since")
        page.wait_for_output(1, "works on this environment: Downloading from the PyTorch index")
        page.click(1, "Cancel")
        page.wait_for_output(1, CANCELLED)
        assert other.poll() is None, "another's install was cancelled too"

        page.click(1, INSTALL)
        page.wait_for_output(1, "This one goes on when it has ended")
        fresh_standin.rate = None
        page.wait_for_output(1, "PyTorch works", timeout=120)
    finally:
        other.kill()
        other.wait()
    assert "Nothing to do" in page.cell_output_text(1)
    page.run_cell(2)
    assert page.cell_output_text(2) == process, "nothing was to do, and the kernel was restarted"
    assert_calm(page)


def test_the_keyboard_keeps_its_place_through_plan_install_cancel_and_verify(
    stage: MakeStage, fresh_standin: StandIn, open_page: OpenPage
) -> None:
    here = stage()
    page = open_page(here.server, here.notebook("keys.ipynb", LOAD, "%torchenv", VERIFICATION))
    open_picker(page, 1)

    focus_choice(page, 1)
    tab_to(page, "Show plan")
    page.press("Enter")
    page.wait_for_output(1, r"installs torch 2\.13\.0\+cpu")
    assert_has_keyboard(page, "Show plan")

    fresh_standin.rate = SLOW // 8
    page.press("Shift+Tab")
    assert_has_keyboard(page, INSTALL)
    page.press("Space")
    page.wait_for_output(1, BYTES)
    assert_has_keyboard(page, "Installing…")
    tab_to(page, "Cancel")
    page.press("Space")
    page.wait_for_output(1, CANCELLED)
    assert_has_keyboard(page, "Show plan")

    fresh_standin.rate = None
    page.press("Shift+Tab")
    page.press("Enter")
    page.wait_for_output(2, "PyTorch works", timeout=120)
    assert_calm(page)

    until(lambda: page.focused() is not None, "the keyboard went away with the picker")

    # What was asked for is here now: the picker says so, and its button promises no restart.
    page.run_cell(0)
    page.run_cell(1)
    page.wait_for_output(1, r"Nothing to do: torch 2\.13\.0\+cpu is here")
    until(lambda: page.control(1, "Verify PyTorch") is not None, "nothing can be verified")
    assert page.control(1, INSTALL) is None
    focus_choice(page, 1)
    tab_to(page, "Verify PyTorch")
    page.press("Space")
    page.wait_for_output(1, "PyTorch works", timeout=60)
    assert "restarted" not in page.cell_output_text(1)
    assert_calm(page)


def assert_has_keyboard(page: FrontEndPage, name: str) -> None:
    def has() -> bool:
        focus = page.focused()
        return focus is not None and focus.in_output and focus.name == name

    until(has, f"the keyboard is not at {name} but at {page.focused()}")


def test_a_driver_that_hangs_is_waited_for_in_words(
    stage: MakeStage, open_page: OpenPage, tmp_path: Path
) -> None:
    """The picker is there at once, and is filled in, in the saved notebook too, when it can be."""
    programs = tmp_path / "programs"
    programs.mkdir()
    release = tmp_path / "release"
    program = programs / "nvidia-smi"
    program.write_text(
        f"#!/bin/sh\nwhile [ ! -e '{release}' ]; do sleep 0.1; done\nexit 1\n", encoding="ascii"
    )
    program.chmod(0o755)
    here: Stage = stage(extra={"PATH": os.pathsep.join((str(programs), os.environ["PATH"]))})
    page = open_page(here.server, here.notebook("slow.ipynb", LOAD, "%torchenv"))
    page.run_cell(0)
    page.run_cell(1)
    page.wait_for_output(1, "Looking at this machine…")
    assert page.control(1, INSTALL) is None

    release.touch()
    page.wait_for_output(1, LISTED)
    (output,) = page.cells()[1].outputs
    assert "recommended" in "".join(output["data"]["text/plain"])
    assert_calm(page)


def test_the_last_install_is_undone_by_one_button(
    stage: MakeStage, fresh_standin: StandIn, open_page: OpenPage
) -> None:
    here = stage()
    child = fresh_standin.environment(here.cache, hermetic=True)
    for torch in ("2.12.0", "2.13.0"):
        words = ("-m", "torchenv_magic", "install", "cpu", f"torch=={torch}")
        done = here.environment.run(*words, environment=child.set)
        assert done.returncode == 0, done.stderr
    notebook = here.notebook("back.ipynb", LOAD, "%torchenv", VERIFICATION)
    page = open_page(here.server, notebook)
    page.run_cell(0)
    page.run_cell(1)
    page.wait_for_output(1, r"Nothing to do: torch 2\.13\.0\+cpu is here")
    page.click(1, "Undo: back to torch 2.12.0+cpu")
    page.wait_for_output(2, r"torch 2\.12\.0\+cpu, as asked for", timeout=120)
    page.wait_for_output(1, "torch 2.12.0.cpu back; the kernel was restarted")
    assert here.environment.packages()["torch"] == "2.12.0+cpu"
    assert_calm(page)


def test_a_session_that_has_the_old_torch_loaded_is_asked_and_then_restarted_once(
    stage: MakeStage, open_page: OpenPage
) -> None:
    """By keyboard, without the plugin: the button that had the keyboard is the one without harm."""
    here = stage(plugin=False)
    install, work = (
        "%torchenv install cpu torch==2.12.0",
        "import torch; data = bytearray(5_000_000)",
    )
    cells = (LOAD, install, work, "%torchenv", "%torchenv", VERIFICATION)
    page = open_page(here.server, here.notebook("work.ipynb", *cells))
    page.run_cell(0)
    page.run_cell(1)
    page.wait_for_output(1, "PyTorch works", timeout=120)
    page.wait_for_kernel("idle")
    page.run_cell(2)
    for index in (3, 4):
        page.run_cell(index)
        page.wait_for_output(index, r"Nothing to do: torch 2\.12\.0\+cpu is here")
    page.fill(3, "torch version", "2.13.0")
    page.click(3, INSTALL)
    page.wait_for_output(3, "`?torch`? is loaded in this session", timeout=60)
    page.wait_for_output(3, r"`?data`?, 5\.0 MB")
    assert_has_keyboard(page, "Restart later")
    # It is made as it is needed, and comes a moment after the words.
    until(lambda: page.control(3, "Restart now") is not None, "nothing can be restarted")
    tab_to(page, "Restart now")
    page.press("Space")
    # The proof stands where the picker was opened last, and the other says so.
    page.wait_for_output(4, "PyTorch works", timeout=120)
    assert "the kernel was restarted" in page.cell_output_text(4)
    assert "stands where the picker was opened last" in page.cell_output_text(3)
    assert here.environment.packages()["torch"] == "2.13.0+cpu"
    assert_calm(page)
