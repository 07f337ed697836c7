"""The picker's own decisions, in a real IPython shell; what is seen of it is tests/browser's."""

# IPython has few annotations.
# mypy: allow-untyped-calls
from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from tests.browser.picker_gallery import MODELS
from tests.fleet import machines
from torchenv_magic.accelerators import detect
from torchenv_magic.builds.backend import Backend
from torchenv_magic.installation.new_kernel import Made, OwnKernel
from torchenv_magic.installation.plan import Change, Plan, Source
from torchenv_magic.installation.planning import IndexUnreachableError
from torchenv_magic.notebook.front_end import FrontEnd
from torchenv_magic.notebook.job import Job, JobStage
from torchenv_magic.notebook.picker import Picker, open_picker
from torchenv_magic.notebook.picker_look import (
    BUSY,
    EDITABLE,
    PickerModel,
    PickerState,
    look,
    obstacle,
)
from torchenv_magic.notebook.session import LoadedDistribution, SessionEffects
from torchenv_magic.project.lock import lock_to_json
from torchenv_magic.project.lock_making import lock_target
from torchenv_magic.selection import Request

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the stand-in for nvidia-smi is a script"
)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def picker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Picker]:
    """Return a picker on a machine with an RTX 4090 and a driver of CUDA 13, without a network."""
    if detect().accelerators:
        pytest.skip("this machine has an accelerator of its own")
    machine = next(item for item in machines() if item.name == "rtx-4090-torch-2.9")
    machine.lay_out(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    # What else runs in the process of the tests is no work of this session.
    monkeypatch.setattr("torchenv_magic.notebook.session.child_processes", tuple)
    monkeypatch.setattr("torchenv_magic.notebook.session._threads", tuple)
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(ipython_dir=str(tmp_path / "ipython"))
    picker = open_picker(shell, FrontEnd(kind="jupyter", reason="a test"))
    until(lambda: picker.state == "ready")
    with picker._drawing:  # until it is drawn, too
        pass
    yield picker
    InteractiveShell.clear_instance()


def plan(picker: Picker) -> None:
    picker.view.secondary.click()
    until(lambda: picker.job is None)


def test_build_follows_the_packages_where_nobody_has_chosen_one(picker: Picker) -> None:
    assert str(picker.view.choice.value) == "cu132"

    picker.view.audio.value = True  # which the index of cu132 does not have
    plan(picker)

    assert str(picker.view.choice.value) == "cu130"
    assert picker.view.audio.value


def test_build_follows_the_version_where_nobody_has_chosen_one(picker: Picker) -> None:
    picker.view.version.value = "2.9.1"
    plan(picker)

    assert str(picker.view.choice.value) == "cu130"
    assert picker.view.version.value == "2.9.1"


def test_build_that_was_chosen_by_hand_stays(picker: Picker) -> None:
    options = picker.view.choice.options
    picker.view.choice.value = next(value for _, value in options if str(value) == "cpu")
    picker.view.version.value = "2.9.1"
    plan(picker)

    assert str(picker.view.choice.value) == "cpu"


def test_every_build_in_the_list_has_its_reason_and_the_recommended_is_the_first(
    picker: Picker,
) -> None:
    assert picker.status is not None
    reasons = {item.backend: item.reason for item in picker.status.selection.alternatives}
    listed = [(label.splitlines(), value) for label, value in picker.view.choice.options]

    assert listed[0][1] == picker.status.selection.backend
    assert listed[0][0][0].endswith("— recommended")
    assert [lines[1] for lines, _ in listed] == [reasons[value] for _, value in listed]


def test_a_second_picker_of_a_kernel_is_the_first_one(picker: Picker) -> None:
    again = open_picker(picker._shell, FrontEnd(kind="jupyter", reason="a test"))

    assert again is picker


def test_a_front_end_that_restarts_nothing_is_promised_no_restart(picker: Picker) -> None:
    assert picker.view.primary.description == "Install and restart kernel"

    open_picker(picker._shell, FrontEnd(kind="vscode", reason="a test"))

    assert picker.view.primary.description == "Install"


def test_a_session_whose_packages_another_install_replaced_is_not_called_up_to_date(
    picker: Picker,
) -> None:
    picker._before = {"ipython": "1.0"}  # as if it had been that when the button was pressed
    picker._found("Nothing to do")

    assert picker._model.lead.startswith("Another install did what you asked for")
    until(lambda: picker.is_over)


def test_the_second_half_of_a_double_click_cancels_nothing(picker: Picker) -> None:
    picker.view.secondary.click()
    picker.view.secondary.click()
    until(lambda: picker.job is None)

    assert picker.state == "failed"  # it can't be planned offline


def test_restart_later_leaves_the_session_and_says_what_to_press(picker: Picker) -> None:
    picker._effects = SessionEffects(loaded=(LoadedDistribution(name="torch", modules=("torch",)),))
    picker._set(state="asking", lead="Installed torch 2.13.0+cpu in 3.0 s")
    assert picker.view.primary.description == "Restart later"
    with capture_output() as captured:
        picker.view.primary.click()

    (output,) = captured.outputs
    assert output.data["text/plain"] == (
        "Installed torch 2.13.0+cpu in 3.0 s. `torch` is loaded in this session and can only "
        "change with a restart. Press Kernel ▸ Restart Kernel, then run `%torchenv verify`."
    )
    assert picker.is_over


def test_colab_is_given_its_own_restart_button(picker: Picker) -> None:
    open_picker(picker._shell, FrontEnd(kind="colab", reason="a test"))
    picker._effects = SessionEffects(loaded=(LoadedDistribution(name="torch", modules=("torch",)),))
    with capture_output() as captured:
        picker._offer_native_restart()

    (output,) = captured.outputs
    button = output.data["application/vnd.colab-display-data+json"]
    assert button["pip_warning"] == {"packages": ["torch"]}


def test_an_environment_that_cannot_be_changed_is_told_before_a_click(picker: Picker) -> None:
    assert picker.status is not None
    environment = replace(picker.status.environment, writable=False)
    error = obstacle(replace(picker.status, environment=environment))

    assert error is not None
    assert "is not writable" in error.message
    assert error.hint.startswith("`%torchenv new-kernel NAME` makes")
    model = PickerModel(
        state="not possible", status=replace(picker.status, environment=environment), error=error
    )
    assert (look(model).fields, look(model).secondary) == ("closed", "")
    assert look(model).primary == "", "there is no torch that could be verified"


def test_where_no_build_fits_the_choice_is_closed_before_a_click(picker: Picker) -> None:
    assert picker.status is not None
    selection = picker.status.selection
    none = replace(
        selection,
        backend=None,
        alternatives=tuple(replace(item, fits=False) for item in selection.alternatives),
    )
    error = obstacle(replace(picker.status, selection=none))

    assert error is not None
    assert error.message.startswith("No build of PyTorch fits here")


def test_no_button_works_before_the_machine_is_known() -> None:
    for state in get_args(PickerState):
        assert not look(PickerModel(state=state)).works, state


def test_every_stage_of_a_job_has_a_cancel_and_a_choice_that_is_closed() -> None:
    assert {*get_args(JobStage), "making", "undoing", "stopping"} == BUSY
    assert EDITABLE.isdisjoint(BUSY)


@pytest.fixture
def not_ours(picker: Picker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Picker:
    """Return a picker in an environment that is not to be changed."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    assert picker.status is not None
    environment = replace(picker.status.environment, writable=False)
    picker._set(status=replace(picker.status, environment=environment))
    picker._rest()
    return picker


def test_where_nothing_can_be_installed_a_kernel_of_one_s_own_is_the_button(
    not_ours: Picker, tmp_path: Path
) -> None:
    view = not_ours.view
    assert not_ours.state == "not yours"
    assert (view.primary.description, view.name.value) == (
        "Make a kernel of your own",
        "torch-cu132",
    )
    assert "is not writable" in view.said.value

    # The name goes with the choice, until somebody writes one.
    by_name = {str(value): value for _, value in view.choice.options}
    (tmp_path / "jupyter" / "kernels" / "torch-cpu").mkdir(parents=True)
    view.choice.value = by_name["cpu"]
    assert view.name.value == "torch-cpu-2"
    view.name.value = "mine"
    view.choice.value = by_name["cu130"]
    assert view.name.value == "mine"

    view.name.value = "../mine"
    view.primary.click()
    until(lambda: not_ours.job is None)
    assert not_ours.state == "not yours"
    assert "can&#x27;t be the name of a kernel" in view.said.value
    assert not (tmp_path / "data" / "torchenv").exists()


def test_wheels_offered_for_a_kernel_of_one_s_own_are_named_on_its_button_and_agreed_to_by_it(
    not_ours: Picker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not_ours.status is not None
    environment = not_ours.status.environment
    offer = Plan(
        request=not_ours.request(),
        backend=Backend.parse("cpu"),
        reason="a test",
        python=environment.interpreter.executable,
        prefix=environment.prefix,
        source=Source(kind="folder", location="/media/usb"),
        changes=(Change(name="torch", action="install", before=None, after="2.13.0+cpu"),),
    )
    away = IndexUnreachableError("The PyTorch index can't be reached", offers=(offer,))
    agreed: list[bool] = []

    def make(*_: object, consent: bool, **__: object) -> Made:
        agreed.append(consent)
        raise away

    monkeypatch.setattr("torchenv_magic.notebook.kernel_job.make_kernel", make)
    for _ in range(2):
        not_ours.view.primary.click()
        until(lambda: not_ours.job is None)
    assert agreed == [False, True]
    assert not_ours.view.primary.description == (
        "Make a kernel of your own with torch 2.13.0+cpu from there"
    )
    # It was for that name: under another one, there may be a kernel that would be replaced.
    not_ours.view.name.value = "another"
    assert not_ours.view.primary.description == "Make a kernel of your own"


def test_whatever_ends_a_look_is_said_and_keeps_nobody_waiting(
    picker: Picker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr("torchenv_magic.notebook.picker.read_undo", fail)
    picker._start_to_look()
    until(picker._looked.is_set)
    assert "the disk is gone" in picker.view.said.value


def test_what_was_typed_just_before_the_click_counts_though_it_comes_after_it(
    picker: Picker,
) -> None:
    assert picker.status is not None
    status = picker.status
    first, late = Request(requirements=("torch",)), Request(requirements=("torch==",))
    # At each round's beginning, and at its end.
    said = iter((first, late, late, late))
    wishes = iter((first, late))

    job = Job(
        status,
        first,
        only_plan=True,
        look=lambda: (status, next(wishes)),
        asked=lambda: next(said),
    ).start()
    assert job.ended.wait(30)
    assert "`torch==` is not a requirement" in str(job.state.error)


def test_a_front_end_that_knows_no_other_kernel_is_offered_none(not_ours: Picker) -> None:
    not_ours._front_end = FrontEnd(kind="colab", reason="a test")
    not_ours._rest()

    assert not_ours.state == "not possible"


def test_a_kernel_that_was_made_is_switched_to_at_once_unless_the_session_holds_work(
    not_ours: Picker, tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    kernel = OwnKernel(
        name="mine",
        display_name="mine (torch 2.13.0, CPU only)",
        environment=environment,
        specification=tmp_path,
    )
    not_ours._kernel = kernel
    not_ours._set(lead="Made the kernel “mine” in 3.0 s")
    not_ours._shell.user_ns["work"] = bytearray(2_000_000)
    not_ours._weigh_switch()

    assert not_ours.state == "made"
    assert "1 variable (<code>work</code>, 2.0 MB) is lost with a switch." in (
        not_ours.view.said.value
    )
    assert not_ours.view.primary.description == "Switch later"
    with capture_output() as captured:
        not_ours.view.primary.click()
    (output,) = captured.outputs
    assert output.data["text/plain"] == (
        "Made the kernel “mine” in 3.0 s. Press Kernel ▸ Change Kernel… and choose “mine (torch "
        "2.13.0, CPU only)”, then run `%torchenv verify`."
    )
    assert not_ours.is_over


def test_what_a_plan_takes_from_others_is_named_on_the_button_and_cancel_takes_nothing(
    picker: Picker,
) -> None:
    assert picker.status is not None
    environment = picker.status.environment
    plan = Plan(
        request=picker.request(),
        backend=Backend.parse("cpu"),
        reason="a test",
        python=environment.interpreter.executable,
        prefix=environment.prefix,
        source=Source(kind="index", location="https://nowhere"),
        changes=(Change(name="numpy", action="replace", before="2.1.0", after="1.26.4"),),
    )
    picker._ask_consent(plan)

    view = picker.view
    assert look(picker._model).asks == view.restart.description
    assert view.restart.description == "Replace numpy 2.1.0 by 1.26.4 and install"
    assert "replace numpy 2.1.0 by 1.26.4" in view.said.value
    # The button that had the keyboard does no harm.
    assert view.primary.description == "Cancel"
    view.primary.click()
    assert picker.state == "cancelled"
    assert view.primary.description == "Install and restart kernel"

    # Whoever has seen the plan first reads it on the button that installs.
    picker._planned(plan, "plan")
    assert view.primary.description == "Replace numpy 2.1.0 by 1.26.4 and install"


def test_what_a_restart_costs_is_said_before_the_click(picker: Picker) -> None:
    assert "After the install the kernel is restarted" in picker.view.said.value
    picker._shell.user_ns.update(
        small=1, first=bytearray(4_000_000), second=bytearray(3_000_000), third=bytearray(2_000_000)
    )
    picker._rest()

    assert (
        "(largest: <code>first</code>, 4.0 MB; <code>second</code>, 3.0 MB; <code>third</code>, "
        "2.0 MB) are lost with a restart. You are asked before the kernel is restarted."
    ) in picker.view.said.value


def state_of(picker: Picker) -> str:
    return picker.state


def open_with_lock(picker: Picker, folder: Path, *, python: str | None = None) -> None:
    """Open the picker in a notebook whose lock has the builds of the gallery, for this Python."""
    offer, status = MODELS["locked"].lock, picker.status
    assert offer is not None
    assert offer.lock is not None
    assert status is not None
    target = lock_target(status.environment.interpreter, status.host.platform)
    lock = replace(offer.lock, target=replace(target, python=python or target.python))
    notebook = {"cells": [], "metadata": {"torchenv": lock_to_json(lock)}, "nbformat": 4}
    path = folder / "locked.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    front_end = FrontEnd(kind="jupyter", reason="a test", notebook_path=path)
    open_picker(picker._shell, front_end)
    until(picker._looked.is_set)


def test_a_lock_is_offered_first_and_whoever_chooses_is_left_alone_until_it_is_opened_again(
    picker: Picker, tmp_path: Path
) -> None:
    open_with_lock(picker, tmp_path)
    assert state_of(picker) == "locked"
    assert picker.view.primary.description == "Restore it"
    picker.view.secondary.click()

    assert state_of(picker) == "ready"
    assert "Open the picker again to restore it" in picker.view.facts.value
    picker.view.audio.value = True  # what follows it is the fields' business
    assert state_of(picker) == "ready"

    picker.view.audio.value = False
    open_with_lock(picker, tmp_path)
    assert state_of(picker) == "locked"


def test_a_lock_that_can_t_be_had_now_stays_on_offer_with_the_reason(
    picker: Picker, tmp_path: Path
) -> None:
    open_with_lock(picker, tmp_path)
    picker.view.primary.click()
    until(lambda: picker.job is None)

    assert state_of(picker) == "locked"  # there is no network
    assert picker._model.error is not None
    assert "role='alert'" in picker.view.said.value
    assert picker.view.primary.description == "Restore it"
    # Opened again, it still says how that ended.
    open_with_lock(picker, tmp_path)
    assert picker._model.error is not None
    picker.view.secondary.click()
    assert state_of(picker) == "ready"
    assert look(picker._model).said.count("alert") == 0


def test_a_lock_for_another_python_leaves_the_picker_as_it_is(
    picker: Picker, tmp_path: Path
) -> None:
    open_with_lock(picker, tmp_path, python="3.9")
    assert state_of(picker) == "ready"
    assert "restored here: the notebook" in picker.view.facts.value


def test_a_lock_that_cannot_be_read_does_not_keep_the_picker_from_being_there(
    picker: Picker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("torchenv_magic.notebook.picker.read_lock_offer", fail)
    open_with_lock(picker, tmp_path)
    assert state_of(picker) == "ready"


def test_what_was_agreed_to_for_a_lock_is_restored_and_nothing_else(
    picker: Picker, tmp_path: Path
) -> None:
    open_with_lock(picker, tmp_path)
    losing = MODELS["consenting"].plan
    assert losing is not None
    picker._set(restores=True)
    picker._ask_consent(losing)
    picker.view.restart.click()
    until(lambda: picker.job is None)
    assert picker._model.restores

    picker._ask_consent(losing)
    picker.view.primary.click()
    assert (state_of(picker), picker.view.primary.description) == ("locked", "Restore it")
