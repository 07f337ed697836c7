"""A lock by clicking: the page keeps it, another environment gets the same by one click."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.browser.fixtures import OpenPage
from tests.browser.front_end import _PANEL as PANEL
from tests.browser.front_end import FrontEndPage
from tests.browser.stage import LOAD, MakeStage, Stage, assert_calm
from tests.browser.test_picker_flow import assert_has_keyboard
from tests.standin import StandIn

pytestmark = pytest.mark.browser

VERIFICATION = f"{LOAD}\n%torchenv verify"
EDIT = "edited = 'and not saved'"
NEWER = f"() => {PANEL}.content.model.sharedModel.setMetadata('torchenv', {{schema: 99}})"
KEPT = "It is in this notebook: save the notebook to keep it"


def installed(stage: MakeStage, standin: StandIn, **options: Any) -> Stage:
    """Make a stage whose environment has an older torch than the index has by now."""
    here = stage(**options)
    child = standin.environment(here.cache, hermetic=True)
    words = ("-m", "torchenv_magic", "install", "cpu", "torch==2.12.0")
    done = here.environment.run(*words, environment=child.set)
    assert done.returncode == 0, done.stderr
    return here


def metadata_of(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8"))["metadata"])


def lock_in(here: Stage, open_page: OpenPage) -> tuple[FrontEndPage, Path]:
    """Lock a notebook in which something else is edited and not saved; return its page and file."""
    name = here.notebook("locked.ipynb", LOAD, "%torchenv lock cpu", "edited = 'no'")
    page = open_page(here.server, name)
    page.run_cell(0)
    page.save()
    page.edit_cell(2, EDIT)
    page.run_cell(1)
    return page, here.server.root_directory / name


def test_a_lock_is_kept_by_the_page_and_restored_elsewhere_by_one_click(
    stage: MakeStage, fresh_standin: StandIn, open_page: OpenPage
) -> None:
    page, file = lock_in(installed(stage, fresh_standin), open_page)
    page.wait_for_output(1, KEPT)
    assert "Locked torch 2.12.0" in page.cell_output_text(1)
    # Nobody but the person saves: the file is as it was, and so is the edit in the page.
    assert "torchenv" not in metadata_of(file)
    assert page.cell_source(2) == EDIT
    assert page.is_dirty()
    page.save()
    # "File changed" would be a dialog.
    assert_calm(page)
    lock = metadata_of(file)["torchenv"]
    assert (lock["torch"], lock["ran"], list(lock["backends"])) == ("2.12.0", "cpu", ["cpu"])
    assert EDIT in file.read_text(encoding="utf-8")
    page.close()

    elsewhere = stage()
    name = elsewhere.notebook("opened.ipynb", LOAD, "%torchenv", VERIFICATION)
    other = elsewhere.server.root_directory / name
    data = json.loads(other.read_text(encoding="utf-8"))
    data["metadata"]["torchenv"] = lock
    other.write_text(json.dumps(data), encoding="utf-8")
    page = open_page(elsewhere.server, name)
    page.run_cell(0)
    page.run_cell(1)
    page.wait_for_output(1, r"This notebook has a lock: torch 2\.12\.0, for cpu\.")
    page.perform(lambda _: page.output(1).get_by_role("button", name="Choose for yourself").focus())
    page.press("Shift+Tab")
    assert_has_keyboard(page, "Restore it")
    page.press("Enter")
    page.wait_for_output(2, "PyTorch works", timeout=120)
    assert "torch 2.12.0+cpu" in page.cell_output_text(2)
    assert_calm(page)

    page.run_cell(0)
    page.run_cell(1)
    page.wait_for_output(1, "It is met: what it has for cpu is here")
    assert page.control(1, "Restore it") is None
    assert_calm(page)


def test_the_oldest_front_end_keeps_a_lock_too(
    stage: MakeStage, fresh_standin: StandIn, open_page: OpenPage, oldest_server_python: Path
) -> None:
    here = installed(stage, fresh_standin, front_end="notebook", server_python=oldest_server_python)
    page, file = lock_in(here, open_page)
    page.wait_for_output(1, KEPT)
    assert page.is_dirty()
    page.save()
    assert metadata_of(file)["torchenv"]["torch"] == "2.12.0"
    assert EDIT in file.read_text(encoding="utf-8")

    # What a newer release has locked, and nobody saved yet, is not for this one to replace.
    page.perform(lambda inner: inner.evaluate(NEWER))
    page.run_cell(1)
    page.wait_for_output(1, "the notebook has a lock that a newer torchenv_magic wrote")
    page.save()
    assert metadata_of(file)["torchenv"] == {"schema": 99}
    assert_calm(page)


@pytest.mark.thorough
def test_without_the_plugin_the_page_says_how_the_file_can_have_the_lock(
    stage: MakeStage, fresh_standin: StandIn, open_page: OpenPage
) -> None:
    here = installed(stage, fresh_standin, plugin=False)
    page, file = lock_in(here, open_page)
    page.wait_for_output(1, "The lock is not in the notebook: the front end has no plugin")
    page.wait_for_output(1, "save the notebook, then run %torchenv lock cpu --yes")
    assert "torchenv" not in metadata_of(file)
    assert page.cell_source(2) == EDIT
    assert_calm(page)
