"""`%torchenv install` in a real kernel that no server owns: progress, Interrupt, restarts."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.manager import KernelManager

from tests.kernels import Kernel, Message
from tests.standin import Fault
from tests.workplace import Workplace
from torchenv_magic.environment import read_environment
from torchenv_magic.installation.locking import locked, read_holder

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="a kernel without a server can't replace itself on Windows"
)

LOAD = "%load_ext torchenv_magic"
INSTALL = "%torchenv install cpu"
OLDER = "%torchenv install cpu torch==2.12.0 --restart=never"
CELL = "cell"

Started = tuple[Kernel, KernelManager]


@pytest.fixture
def started(workplace: Workplace) -> Iterator[Started]:
    """Start a kernel with the extension loaded, as a notebook's cells meet it."""
    with workplace.kernel() as (kernel, manager):
        run(kernel, f"{LOAD}\nkept = 1")
        yield kernel, manager


def run(kernel: Kernel, code: str) -> Message:
    """Run a cell as a notebook does; raises where it fails."""
    return kernel.run(code, cell_id=CELL)


def shown(kernel: Kernel, message_id: str) -> list[str]:
    """Return the text of every output of a request as it is at its end, an error's too."""
    kernel.printed(message_id)  # waits for all of it
    outputs: dict[str, str] = {}
    for number, message in enumerate(kernel.iopub):
        if message["parent_header"].get("msg_id") != message_id:
            continue
        content = message["content"]
        if message["msg_type"] in ("display_data", "update_display_data", "execute_result"):
            place = content.get("transient", {}).get("display_id", str(number))
            outputs[place] = content["data"]["text/plain"]
        elif message["msg_type"] == "error":
            outputs[str(number)] = "\n".join(content["traceback"])
        elif message["msg_type"] == "stream":
            outputs[str(number)] = content["text"]
    return [text for text in outputs.values() if text]


def verified(kernel: Kernel, message_id: str) -> str:
    """Wait until the output of a request holds a verification, and return its text."""
    first = kernel.wait_for(
        lambda message: (
            message["msg_type"] == "display_data"
            and message["parent_header"].get("msg_id") == message_id
        )
    )
    display_id = first["content"]["transient"]["display_id"]

    def proves(message: Message) -> bool:
        content = message["content"]
        return bool(
            message["msg_type"] == "update_display_data"
            and content["transient"]["display_id"] == display_id
            and re.search("^PyTorch ", content["data"]["text/plain"], re.MULTILINE)
        )

    return str(kernel.wait_for(proves)["content"]["data"]["text/plain"])


def uv_processes(manager: KernelManager) -> list[psutil.Process]:
    process: Any = manager.provisioner
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if child.name().startswith("uv"):
                found.append(child)
    return found


# --------------------------------------------------------------------------------------- interrupt


def test_interrupt_stops_uv_and_leaves_all_as_it_was(
    workplace: Workplace, started: Started
) -> None:
    kernel, manager = started
    workplace.standin.rate = 60_000
    run(
        kernel,
        "import threading, time\nticks = []\ndef tick():\n"
        "    while len(ticks) < 10_000:\n        ticks.append(time.monotonic())\n"
        "        time.sleep(0.01)\n"
        "threading.Thread(target=tick, daemon=True).start()",
    )
    before = workplace.environment.snapshot()
    run(kernel, "import os; os.environ['UV_CACHE_DIR'] = os.path.abspath('a-cache-of-its-own')")
    request = kernel.send(f"{INSTALL}\nprint('the rest of the cell')", cell_id=CELL)
    queued = kernel.send("print('queued')", cell_id="next")
    kernel.wait_for(
        lambda message: (
            message["parent_header"].get("msg_id") == request
            and message["msg_type"] == "update_display_data"
            and " of 1." in message["content"]["data"]["text/plain"]
        )
    )
    assert uv_processes(manager)
    pressed = time.monotonic()
    manager.interrupt_kernel()
    reply = kernel.reply(request)
    took = time.monotonic() - pressed
    assert reply["status"] == "error"
    assert (reply["ename"], reply["traceback"]) == (
        "InstallCancelled",
        ["Cancelled; the environment is as it was"],
    )
    assert shown(kernel, request) == ["Cancelled; the environment is as it was"]
    assert not uv_processes(manager)
    assert took < 10
    assert kernel.reply(queued)["status"] == "aborted"
    # What was linked for the switch is swept away in the background.
    kernel.run("[each.join() for each in threading.enumerate() if each.name == 'torchenv-sweep']")
    assert workplace.environment.snapshot() == before
    # Other threads went on all the time, and so does the session.
    assert kernel.value("max(b - a for a, b in zip(ticks, ticks[1:])) < 1")
    assert kernel.value("kept") == 1


def test_interrupt_ends_the_verification_after_an_install_without_a_traceback(
    started: Started, tmp_path: Path
) -> None:
    kernel, manager = started
    reached = tmp_path / "reached"
    run(
        kernel,
        "import sys, time, pathlib\nclass Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        f"            pathlib.Path({str(reached)!r}).touch()\n"
        "            time.sleep(60)\n"
        "sys.meta_path.insert(0, Slow())",
    )
    request = kernel.send(f"{INSTALL} --restart=auto", cell_id=CELL)
    while not reached.exists():
        assert request not in kernel._replies
        time.sleep(0.01)
    manager.interrupt_kernel()
    reply = kernel.reply(request)
    assert (reply["ename"], reply["evalue"]) == (
        "VerificationError",
        (
            "The verification was interrupted; what is installed stays\n\n"
            "hint: run `%torchenv verify` to know whether it works"
        ),
    )
    assert "Traceback" not in "".join(reply["traceback"])


def test_interrupt_while_nobody_answers(workplace: Workplace, started: Started) -> None:
    """An index that takes the question and says nothing."""
    kernel, manager = started
    workplace.standin.faults = [Fault(pattern=r"/torch/$", kind="silent")]
    request = kernel.send("%torchenv plan cpu", cell_id=CELL)
    while not any(entry.path.endswith("/torch/") for entry in workplace.standin.requests):
        assert request not in kernel._replies
    pressed = time.monotonic()
    manager.interrupt_kernel()
    assert kernel.reply(request)["ename"] == "InstallCancelled"
    assert time.monotonic() - pressed < 10
    assert kernel.value("kept") == 1


# ---------------------------------------------------------------------------------------- restarts


def test_a_change_restarts_verifies_and_drops_what_is_queued(
    workplace: Workplace, started: Started
) -> None:
    kernel, manager = started
    process = kernel.value("__import__('os').getpid()")
    request = kernel.send(INSTALL, cell_id=CELL)
    queued = kernel.send("print('queued')", cell_id="next")
    reply = kernel.reply(request)
    assert reply["status"] == "ok"
    [payload] = reply["payload"]
    assert payload["text"] == "%load_ext torchenv_magic\n%torchenv verify"
    assert kernel.reply(queued)["status"] == "aborted"
    text = verified(kernel, request)
    assert re.match(
        r"Installed torch 2\.13\.0\+cpu and 1 other package in [\d.]+ s; the kernel was "
        r"restarted\. Run your other cells again\.\nPyTorch works\n",
        text,
    )
    # The same process with a fresh Python in it, which knows the magic.
    assert kernel.value("__import__('os').getpid()") == process
    assert not kernel.value("'kept' in globals()")
    assert kernel.value("__import__('torch').__version__") == "2.13.0+cpu"
    assert manager.is_alive()
    # Nothing to do any more: proved at once, and nothing restarts.
    run(kernel, "kept = 2")
    workplace.standin.clear_log()
    took = []
    for _ in range(3):
        begun = time.monotonic()
        again = kernel.send(INSTALL, cell_id=CELL)
        assert kernel.reply(again)["status"] == "ok"
        took.append(time.monotonic() - begun)
        [proof] = shown(kernel, again)
        assert proof.startswith("PyTorch works\n")
    assert min(took) < 5
    assert workplace.standin.downloads() == ()
    assert kernel.value("kept") == 2


def test_auto_keeps_a_session_that_has_loaded_nothing_of_it(started: Started) -> None:
    kernel, _ = started
    request = kernel.send(f"{INSTALL} --restart=auto", cell_id=CELL)
    assert kernel.reply(request)["status"] == "ok"
    said, proof = shown(kernel, request)
    assert re.fullmatch(
        r"Installed torch 2\.13\.0\+cpu and 1 other package in [\d.]+ s\. Nothing of it was loaded "
        r"here, so the session goes on\.",
        said,
    )
    assert proof.startswith("PyTorch works\n")
    assert kernel.value("kept") == 1


def test_auto_restarts_a_session_that_has(started: Started) -> None:
    kernel, _ = started
    run(kernel, OLDER)
    run(kernel, "import torch")
    request = kernel.send("%torchenv install cpu torch==2.13.0 --restart=auto", cell_id=CELL)
    assert kernel.reply(request)["status"] == "ok"
    words = "the kernel was restarted. Run your other cells again.\nPyTorch works\n"
    assert words in verified(kernel, request)
    assert not kernel.value("'kept' in globals()")


def test_never_leaves_the_restart_to_the_person(started: Started) -> None:
    kernel, _ = started
    run(kernel, OLDER)
    run(kernel, "import torch")
    request = kernel.send("%torchenv install cpu torch==2.13.0 --restart=never", cell_id=CELL)
    queued = kernel.send("print('queued')", cell_id="next")
    assert kernel.reply(request)["status"] == "ok"
    assert kernel.reply(queued)["status"] == "aborted"
    [text] = shown(kernel, request)
    assert re.match(
        r"Installed torch 2\.13\.0\+cpu in [\d.]+ s\. `torch` is loaded in this session and can "
        r"only change with a restart\. Press Kernel ▸ Restart Kernel, then run `%torchenv verify`\."
        r"\nPyTorch works\n",
        text,
    )
    assert kernel.value("(kept, torch.__version__)") == [1, "2.12.0+cpu"]
    # What runs here is not what is installed, and verification says so.
    failed = kernel.reply(kernel.send("%torchenv verify", cell_id=CELL))
    assert failed["ename"] == "VerificationError"
    assert (
        "This process still has torch 2.12.0+cpu, and 2.13.0+cpu is installed now"
        in (failed["evalue"])
    )


def test_where_a_kernel_that_ends_is_a_crash_the_person_is_told(started: Started) -> None:
    """VS Code, by the id that it gives its cells."""
    kernel, manager = started
    cell = "vscode-notebook-cell:/notebook.ipynb#W0sZmlsZQ"
    free = kernel.send(f"{INSTALL} torch==2.12.0", cell_id=cell)
    assert kernel.reply(free)["status"] == "ok"
    assert "Nothing of it was loaded here, so the session goes on." in shown(kernel, free)[0]
    bound = kernel.send(f"{INSTALL} torch==2.13.0", cell_id=cell)
    # Its Run All sends one cell after the other, and only one that fails stops it.
    reply = kernel.reply(bound)
    assert (reply["ename"], reply["evalue"]) == (
        "RestartError",
        (
            "`torch` is loaded in this session and can only change with a restart\n\n"
            "hint: press Restart in the notebook's toolbar, then run `%torchenv verify`"
        ),
    )
    text, error = shown(kernel, bound)
    assert re.match(r"Installed torch 2\.13\.0\+cpu in [\d.]+ s\.\nPyTorch works\n", text)
    assert "press Restart" in error
    assert manager.is_alive()
    assert kernel.value("kept") == 1


def test_colab_gets_its_own_restart_button(started: Started) -> None:
    """By the variable that Colab sets; the button is the one that its own pip hook shows."""
    kernel, _ = started
    run(kernel, "import os\nos.environ['COLAB_RELEASE_TAG'] = 'release-colab-20261101'")
    run(kernel, f"{INSTALL} torch==2.12.0\nimport torch")
    request = kernel.send(f"{INSTALL} torch==2.13.0", cell_id=CELL)
    assert kernel.reply(request)["ename"] == "RestartError"
    kernel.printed(request)  # waits for all of it
    kind = "application/vnd.colab-display-data+json"
    buttons = [
        message["content"]["data"][kind]
        for message in kernel.iopub
        if kind in message["content"].get("data", {})
    ]
    assert [button["pip_warning"] for button in buttons] == [{"packages": ["torch"]}]


# ------------------------------------------------------------------------- a session that has work

WORK = "data = bytearray(10_000_000)"


def test_work_is_kept_where_nothing_of_it_was_loaded(started: Started) -> None:
    kernel, _ = started
    run(kernel, WORK)
    request = kernel.send(INSTALL, cell_id=CELL)
    assert kernel.reply(request)["status"] == "ok"
    said, proof = shown(kernel, request)
    assert re.fullmatch(
        r"Installed torch 2\.13\.0\+cpu and 1 other package in [\d.]+ s\. The kernel was not "
        r"restarted: 2 variables \(largest: `data`, 10\.0 MB\) are lost with a restart\. Nothing "
        r"of it was loaded here, so the session goes on\.",
        said,
    )
    assert proof.startswith("PyTorch works\n")
    assert kernel.value("len(data)") == 10_000_000


def test_work_is_kept_and_the_person_told_where_it_was_loaded(started: Started) -> None:
    kernel, _ = started
    run(kernel, OLDER)
    run(kernel, f"import torch\n{WORK}")
    request = kernel.send("%torchenv install cpu torch==2.13.0", cell_id=CELL)
    queued = kernel.send("print('queued')", cell_id="next")
    reply = kernel.reply(request)
    assert reply["ename"] == "RestartError"
    assert reply["evalue"] == (
        "`torch` is loaded in this session and can only change with a restart. The kernel was not "
        "restarted: 2 variables (largest: `data`, 10.0 MB) are lost with a restart.\n\n"
        "hint: save what you need; press Kernel ▸ Restart Kernel, then run `%torchenv verify`"
    )
    assert kernel.reply(queued)["status"] == "aborted"
    assert kernel.value("(len(data), torch.__version__)") == [10_000_000, "2.12.0+cpu"]


def test_work_goes_where_a_restart_is_asked_for(started: Started) -> None:
    kernel, _ = started
    run(kernel, WORK)
    request = kernel.send(f"{INSTALL} --restart=always", cell_id=CELL)
    assert kernel.reply(request)["status"] == "ok"
    assert "PyTorch works\n" in verified(kernel, request)
    assert not kernel.value("'data' in globals()")


def test_another_install_is_waited_for_and_interrupt_ends_the_wait_alone(
    workplace: Workplace, started: Started
) -> None:
    kernel, manager = started
    here = read_environment(workplace.environment.directory)
    with locked(here, command="torchenv install cu126"):
        request = kernel.send(INSTALL, cell_id=CELL)
        kernel.wait_for(
            lambda message: (
                message["parent_header"].get("msg_id") == request
                and message["msg_type"] in ("display_data", "update_display_data")
                and "`torchenv install cu126`" in message["content"]["data"]["text/plain"]
            )
        )
        manager.interrupt_kernel()
        assert kernel.reply(request)["ename"] == "InstallCancelled"
        holder = read_holder(here)
        assert holder is not None
        assert holder.command == "torchenv install cu126"
        request = kernel.send(f"{INSTALL} --restart=never", cell_id=CELL)
        kernel.wait_for(
            lambda message: (
                message["parent_header"].get("msg_id") == request
                and "This one goes on" in message["content"].get("data", {}).get("text/plain", "")
            )
        )
    assert kernel.reply(request)["status"] == "ok"
    assert "PyTorch works" in "".join(shown(kernel, request))


# ------------------------------------------------------------------------------------ undo, history


def test_undo_restarts_and_proves_what_is_back_and_the_history_tells_it(started: Started) -> None:
    kernel, _ = started
    request = kernel.send("%torchenv undo", cell_id=CELL)
    assert kernel.reply(request)["evalue"].startswith("There is nothing to undo")
    run(kernel, OLDER)
    run(kernel, "%torchenv install cpu torch==2.13.0 --restart=never")
    run(kernel, "import torch")
    request = kernel.send("%torchenv undo", cell_id=CELL)
    assert kernel.reply(request)["status"] == "ok"
    text = verified(kernel, request)
    assert re.match(
        r"Undone in [\d.]+ s: torch 2\.12\.0\+cpu.* back; the kernel was restarted", text
    )
    assert "PyTorch works\n" in text
    assert kernel.value("'kept' in globals()") is False
    run(kernel, LOAD)
    request = kernel.send("%torchenv history", cell_id=CELL)
    [table] = shown(kernel, request)
    lines = table.splitlines()
    assert "undone: torch 2.12.0+cpu is back" in lines[1]
    assert "%torchenv undo (" in lines[1]
    assert "%torchenv install cpu torch==2.13.0 --restart=never (" in lines[2]
    assert lines[-1] == "`%torchenv undo` goes back to torch 2.13.0+cpu."


def test_undoing_the_first_install_says_what_the_session_still_has(started: Started) -> None:
    kernel, _ = started
    run(kernel, OLDER)
    request = kernel.send("%torchenv undo", cell_id=CELL)
    assert kernel.reply(request)["status"] == "ok"
    [text] = shown(kernel, request)
    assert re.fullmatch(
        r"Undone in .* gone again\. PyTorch is not installed now\. `torch` is loaded in this "
        r"session and can only change with a restart\.",
        text,
    )
    assert kernel.value("kept") == 1


# ---------------------------------------------------------------------------------------- failures


def test_a_failure_can_be_caught_and_the_session_goes_on(
    workplace: Workplace, started: Started
) -> None:
    kernel, _ = started
    before = workplace.environment.snapshot()
    request = kernel.send(
        "from torchenv_magic import TorchEnvError\n"
        "try:\n"
        "    %torchenv install cpu no-such-package-anywhere\n"
        "except TorchEnvError as error:\n"
        "    print(error.code)",
        cell_id=CELL,
    )
    assert kernel.reply(request)["status"] == "ok"
    assert shown(kernel, request)[-1] == "plan\n"
    failed = kernel.send("%torchenv install cpu no-such-package-anywhere", cell_id=CELL)
    reply = kernel.reply(failed)
    assert reply["status"] == "error"
    assert re.search("^hint: ", "\n".join(reply["traceback"]), re.MULTILINE)
    assert not any("Traceback" in text for text in shown(kernel, failed))
    assert workplace.environment.snapshot() == before
    assert kernel.value("kept") == 1


def test_the_words_work_in_another_thread(started: Started) -> None:
    """As a cell in one of ipykernel's subshells does: no signal and no payload reach it there."""
    kernel, _ = started
    run(
        kernel,
        "import threading\nanswers, shell = [], get_ipython()\ndef work():\n"
        "    answers.append(shell.run_line_magic('torchenv', 'install cpu --restart=auto'))\n"
        "thread = threading.Thread(target=work)\nthread.start()\nthread.join()",
    )
    assert kernel.value("[answer.passed for answer in answers]") == [True]


# ------------------------------------------------------------------------------------- the picker


def test_picker_shows_what_the_index_has_as_soon_as_that_has_answered(started: Started) -> None:
    kernel, _ = started

    def offers(message: Message) -> list[str]:
        """Return the lines to choose among, where the message fills them in."""
        state = message["content"].get("data", {}).get("state", {})
        return [str(label) for label in state.get("_options_labels") or ()]

    message_id = kernel.send("%torchenv", cell_id=CELL)
    catalog = offers(kernel.wait_for(lambda message: bool(offers(message))))
    index = offers(
        kernel.wait_for(lambda message: bool(offers(message)) and offers(message) != catalog)
    )

    assert kernel.printed(message_id) is not None
    # The stand-in has no other release for the CPU, and the catalog a newer one.
    assert ["2.13.0" in line for line in catalog if "CPU" in line] == [False]
    assert ["2.13.0" in line for line in index if "CPU" in line] == [True]
