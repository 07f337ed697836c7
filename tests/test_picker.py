"""The picker's own decisions, in a real IPython shell; what is seen of it is tests/browser's."""

# IPython has few annotations.
# mypy: allow-untyped-calls
from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.fleet import machines
from torchenv_magic.accelerators import detect
from torchenv_magic.notebook.front_end import FrontEnd
from torchenv_magic.notebook.picker import Picker

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
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(ipython_dir=str(tmp_path / "ipython"))
    picker = Picker(shell, FrontEnd(kind="jupyter", reason="a test"))
    until(lambda: picker.status is not None and picker._filled != ())
    yield picker
    InteractiveShell.clear_instance()


def plan(picker: Picker) -> None:
    picker._show_plan.click()
    until(lambda: picker.job is None)


def test_build_follows_the_packages_where_nobody_has_chosen_one(picker: Picker) -> None:
    assert str(picker._choice.value) == "cu132"

    picker._audio.value = True  # which the index of cu132 does not have
    plan(picker)

    assert str(picker._choice.value) == "cu130"
    assert picker._audio.value


def test_build_follows_the_version_where_nobody_has_chosen_one(picker: Picker) -> None:
    picker._version.value = "2.9.1"
    plan(picker)

    assert str(picker._choice.value) == "cu130"
    assert picker._version.value == "2.9.1"


def test_build_that_was_chosen_by_hand_stays(picker: Picker) -> None:
    picker._choice.value = next(value for _, value in picker._choice.options if str(value) == "cpu")
    picker._version.value = "2.9.1"
    plan(picker)

    assert str(picker._choice.value) == "cpu"
