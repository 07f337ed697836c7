"""How a notebook reads and tells what began with its server."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.browser.picker_gallery import MODELS
from torchenv_magic.notebook.picker_look import PickerModel, look
from torchenv_magic.notebook.server_preinstall import Preinstall, Stage, read_preinstall
from torchenv_magic.preinstall.record import (
    LOG_NAME,
    STATE_NAME,
    STATE_VARIABLE,
    Record,
    boot_of_host,
    write_record,
)
from torchenv_magic.status import Status

posix = pytest.mark.skipif(sys.platform == "win32", reason="as POSIX has it")


def status(name: str) -> Status:
    found = MODELS[name].status
    assert found is not None
    return found


WITH_TORCH, WITHOUT = status("ready"), status("preinstalling")
# What is higher than any number that a system gives out.
NOBODY = 2**31 - 2


def read(directory: Path, prefix: Path) -> Preinstall | None:
    return read_preinstall({STATE_VARIABLE: str(directory)}, prefix=prefix)


def made(stage: Stage, *, here: bool, **fields: Any) -> Preinstall:
    kind = "running" if stage == "killed" else stage
    record = Record(status=kind, message="What was said", **fields)
    return Preinstall(record=record, stage=stage, here=here)


@posix
def test_record_of_a_process_that_is_gone_is_of_an_install_that_was_killed(tmp_path: Path) -> None:
    running = Record(
        status="running", message="At it", target=str(tmp_path), pid=NOBODY, boot=boot_of_host()
    )
    write_record(tmp_path, running)
    found = read(tmp_path, tmp_path)
    assert found is not None
    assert (found.stage, found.here) == ("killed", True)

    write_record(tmp_path, replace(running, pid=os.getpid()))
    found = read(tmp_path, tmp_path / "another")
    assert found is not None
    assert (found.stage, found.here) == ("running", False)


@posix
def test_whatever_lies_there_stops_nobody_and_acts_on_no_screen(tmp_path: Path) -> None:
    assert read_preinstall({}, prefix=tmp_path) is None
    assert read(tmp_path / "nowhere", tmp_path) is None
    os.mkfifo(tmp_path / STATE_NAME)
    assert read(tmp_path, tmp_path) is None
    (tmp_path / STATE_NAME).unlink()
    write_record(tmp_path, Record(status="failed", message="It failed"))
    os.mkfifo(tmp_path / LOG_NAME)
    found = read(tmp_path, tmp_path)
    assert found is not None
    assert found.log == ()
    (tmp_path / LOG_NAME).unlink()
    (tmp_path / LOG_NAME).write_bytes(b"\x1b[2Jfirst\n\n<img src=x>\xff\n")
    found = read(tmp_path, tmp_path)
    assert found is not None
    assert found.log == ("[2Jfirst", "<img src=x>\ufffd")
    shown = look(PickerModel(state="ready", status=WITHOUT, preinstall=found))
    assert "&lt;img src=x&gt;" in shown.facts


@pytest.mark.parametrize(
    ("stage", "here", "status", "concerns"),
    [
        ("running", True, WITHOUT, True),
        ("running", True, WITH_TORCH, True),
        ("running", False, WITHOUT, True),
        ("running", False, WITH_TORCH, False),
        ("done", True, WITHOUT, False),
        ("done", False, WITHOUT, True),
        ("done", False, WITH_TORCH, False),
        ("failed", False, WITHOUT, False),
        ("killed", True, WITHOUT, False),
    ],
)
def test_picker_waits_only_for_what_helps_this_kernel(
    stage: Stage, status: Status, *, here: bool, concerns: bool
) -> None:
    found = made(stage, here=here, kernel="" if here else "torchenv")
    assert found.concerns(status) is concerns


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (made("running", here=True), "PyTorch is being installed for this kernel: What was said"),
        (
            made("running", here=False, target="/home/a/environments/x"),
            "PyTorch is being installed: What was said",
        ),
        (
            made("done", here=False, kernel="torchenv", torch="2.13.0+cpu"),
            "torch 2.13.0+cpu is installed for the kernel “torchenv”",
        ),
        (
            made("failed", here=True),
            "PyTorch could not be installed for this kernel as the server started: What was said",
        ),
        (
            made("killed", here=True),
            (
                "The install of PyTorch for this kernel that began with the server was ended from "
                "outside before it was done. Its last step: What was said"
            ),
        ),
    ],
)
def test_each_stage_is_one_sentence(found: Preinstall, words: str) -> None:
    assert str(found) == words


def test_status_line_tells_the_hint_and_the_notice() -> None:
    found = made("failed", here=True, hint="free some", notice="cu999 is not offered any more")
    assert found.sentence.endswith(
        ": What was said. hint: free some. cu999 is not offered any more."
    )
    shown = str(replace(WITHOUT, preinstall=found.sentence)).splitlines()[-1]
    assert shown == f"preinstall   {found.sentence}"


def test_failure_that_an_install_by_hand_came_after_is_history() -> None:
    found = made("failed", here=True)
    assert found.has_failed(WITH_TORCH)
    assert not replace(found, overtaken=True).has_failed(WITH_TORCH)
    # Of another kernel's failure nobody needs to hear who has PyTorch.
    assert not replace(found, here=False).has_failed(WITH_TORCH)
    assert replace(found, here=False).has_failed(WITHOUT)


def test_where_the_notebook_can_be_given_no_kernel_no_button_promises_it() -> None:
    shown = look(MODELS["elsewhere-told"])
    assert (shown.primary, shown.secondary) == ("", "Choose for yourself")
    assert "Select Kernel" in shown.said
    assert look(MODELS["elsewhere"]).primary == "Use that kernel in this notebook"
