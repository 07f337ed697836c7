"""A notebook whose server has begun an install: real kernels, the real wrapper, the real uv."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernels import Kernel
from tests.test_words_in_kernel import CELL, shown
from tests.workplace import Workplace
from torchenv_magic.preinstall.record import (
    STATE_VARIABLE,
    Record,
    is_running,
    read_record,
    write_record,
)

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="nothing tells there whether an installer lives"
)

SECONDS = 90
SLOW = 20_000
"""Bytes per second: a download that lasts until the test lets it end."""
TORCH = r"/torch-[^/]*\.whl$"
LOAD = (
    "%load_ext torchenv_magic\n"
    "def picker():\n"
    "    from torchenv_magic.notebook import picker\n"
    "    return list(picker._pickers.values())[-1]\n"
)
STATE = "picker().state"
FACTS = "picker().view.facts.value"


@pytest.fixture
def kernel(workplace: Workplace) -> Iterator[Kernel]:
    """Start a kernel of the environment that the preinstalls of these tests are for."""
    with workplace.kernel() as (kernel, _):
        kernel.run(LOAD, cell_id=CELL)
        yield kernel


def begin(workplace: Workplace, kernel: Kernel, *requirements: str, wait: str = "0") -> Path:
    """Begin an install as a server's command does; tell the kernel of it, as its server would."""
    temporary = workplace.directory / "tmp"
    temporary.mkdir()
    answer = workplace.run(
        workplace.torchenv,
        *("preinstall", "--backend", "cpu", "--wait", wait, *requirements, "--"),
        *(sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"),
        variables={
            "TMPDIR": str(temporary),
            "UV_CACHE_DIR": str(workplace.directory / "cold-cache"),
        },
    )
    directory = Path(json.loads(answer.stdout)[STATE_VARIABLE])
    kernel.run(f"import os; os.environ[{STATE_VARIABLE!r}] = {str(directory)!r}")
    return directory


def until(true: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def until_picker(kernel: Kernel, state: str) -> None:
    until(lambda: kernel.value(STATE) == state, f"{state}, not {kernel.value(STATE)}")


def is_at_work(directory: Path) -> bool:
    record = read_record(directory)
    return record is not None and is_running(record)


def test_picker_waits_for_what_its_server_has_begun_and_the_session_has_torch_then(
    workplace: Workplace, kernel: Kernel
) -> None:
    workplace.standin.rate = SLOW
    directory = begin(workplace, kernel)
    workplace.standin.wait_for(TORCH, sent=1000)
    kernel.run("%torchenv", cell_id=CELL)
    until_picker(kernel, "preinstalling")

    assert "installed for this kernel" in kernel.value("picker().view.said.value")
    assert kernel.value("picker().view.secondary.description") == "Stop waiting"
    until(lambda: " of 1." in kernel.value("picker().view.progress.value"), "bytes")
    workplace.standin.rate = None
    until_picker(kernel, "nothing to do")

    assert not is_at_work(directory)
    assert "torch 2.13.0+cpu" in kernel.value(FACTS)
    assert kernel.value("__import__('torch').__version__") == "2.13.0+cpu"
    assert len(workplace.standin.downloads(TORCH)) == 1


def test_session_whose_torch_was_replaced_meanwhile_is_asked_before_it_ends(
    workplace: Workplace, kernel: Kernel
) -> None:
    kernel.run("%torchenv install cpu torch==2.12.0 --restart=auto", cell_id=CELL)
    kernel.run("import torch; data = bytearray(5_000_000)")
    workplace.standin.rate = SLOW
    begin(workplace, kernel, "torch==2.13.0")
    kernel.run("%torchenv", cell_id=CELL)
    until_picker(kernel, "preinstalling")
    workplace.standin.rate = None
    until_picker(kernel, "asking")

    said = kernel.value("picker().view.said.value")
    assert "PyTorch was installed as the server started" in said
    assert "<code>torch</code> is loaded in this session" in said
    assert "<code>data</code>, 5.0 MB" in said
    assert kernel.value("torch.__version__") == "2.12.0+cpu"


def test_who_leaves_the_wait_chooses_and_installs_behind_it(
    workplace: Workplace, kernel: Kernel
) -> None:
    workplace.standin.rate = SLOW
    directory = begin(workplace, kernel)
    workplace.standin.wait_for(TORCH, sent=1000)
    kernel.run("%torchenv", cell_id=CELL)
    until_picker(kernel, "preinstalling")
    kernel.run("picker().view.secondary.click()")
    until_picker(kernel, "ready")

    assert is_at_work(directory)
    assert "What you install from here waits for that" in kernel.value(FACTS)
    # The word joins by the lock.
    request = kernel.send("%torchenv install cpu", cell_id=CELL)
    kernel.wait_for(
        lambda message: (
            message["parent_header"].get("msg_id") == request
            and "works on this environment"
            in message["content"].get("data", {}).get("text/plain", "")
        )
    )
    workplace.standin.rate = None
    assert kernel.reply(request)["status"] == "ok"
    assert shown(kernel, request)[-1].startswith("PyTorch works\n")
    assert len(workplace.standin.downloads(TORCH)) == 1
    until(lambda: not is_at_work(directory), "the installer's end")


def test_install_that_was_killed_is_told_and_the_next_one_sets_it_right(
    workplace: Workplace, kernel: Kernel
) -> None:
    workplace.standin.rate = SLOW
    directory = begin(workplace, kernel)
    workplace.standin.wait_for(TORCH, sent=1000)
    record = read_record(directory)
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    until(lambda: not is_at_work(directory), "the end")
    workplace.standin.rate = None
    kernel.run("%torchenv", cell_id=CELL)
    until_picker(kernel, "ready")

    assert "was ended from outside before it was done" in kernel.value(FACTS)
    kernel.run("%torchenv install cpu --restart=auto", cell_id=CELL)
    assert workplace.versions()["torch"] == "2.13.0+cpu"
    # What was done since has the last word.
    kernel.run("%torchenv", cell_id=CELL)
    until_picker(kernel, "nothing to do")
    assert "from outside" not in kernel.value(FACTS)


def test_word_in_an_environment_that_is_not_ours_points_to_the_kernel_that_is_there(
    workplace: Workplace, kernel: Kernel
) -> None:
    (workplace.environment.directory / "conda-meta").mkdir()
    (workplace.environment.directory / "conda-meta" / "frozen").touch()
    directory = workplace.directory / "begun"
    directory.mkdir()
    write_record(
        directory,
        Record(
            status="done",
            message="PyTorch 2.13.0+cpu is there",
            target=str(directory),
            kernel="torchenv",
            kernel_title="PyTorch (torchenv)",
            torch="2.13.0+cpu",
        ),
    )
    kernel.run(f"import os; os.environ[{STATE_VARIABLE!r}] = {str(directory)!r}")
    try:
        request = kernel.send("%torchenv install cpu", cell_id=CELL)
        assert kernel.reply(request)["status"] == "error"
        kernel.run("%torchenv", cell_id=CELL)
        until_picker(kernel, "elsewhere")
        said = kernel.value("picker().view.said.value")
        kernel.run("picker().view.secondary.click()")
        until_picker(kernel, "not yours")
    finally:
        shutil.rmtree(workplace.environment.directory / "conda-meta")

    assert "choose “PyTorch (torchenv)”, then run `%torchenv verify`" in shown(kernel, request)[-1]
    assert "torch 2.13.0+cpu is installed for the kernel “PyTorch (torchenv)”" in said


def test_install_that_failed_is_told_with_its_hint_and_its_log(
    workplace: Workplace, kernel: Kernel
) -> None:
    workplace.standin.down = True
    directory = begin(workplace, kernel, wait="60")
    record = read_record(directory)
    assert record is not None
    assert record.status == "failed"
    kernel.run("%torchenv", cell_id=CELL)
    until_picker(kernel, "ready")

    facts = kernel.value(FACTS)
    assert "PyTorch could not be installed for this kernel as the server started" in facts
    assert "hint: " in facts
    assert "what was said about it" in facts
    assert kernel.value("picker().view.primary.description").startswith("Install")
    request = kernel.send("%torchenv status", cell_id=CELL)
    kernel.reply(request)
    lines = shown(kernel, request)[-1].splitlines()
    (line,) = [line for line in lines if line.startswith("preinstall")]
    assert record.message in line
    assert record.hint in line
