"""`%torchenv install` typed into a real `jupyter console` and a real `ipython`, on a terminal."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernels import SECONDS
from tests.workplace import Workplace

if sys.platform == "win32":
    pytest.skip("there is no pseudo-terminal to type on", allow_module_level=True)

import pexpect  # type: ignore[import-untyped]

ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07]*\x07|[=>])")


class Session:
    """A prompt that is typed at."""

    def __init__(self, child: Any) -> None:
        self.child = child
        self.prompts = 0

    def type(self, line: str) -> None:
        self.child.send(f"{line}\r")

    def wait_for_prompt(self) -> str:
        """Wait for the next prompt; return what was shown before it, without escape sequences."""
        self.child.expect(r"In \[[^\]]*\d[^\]]*\]: ")
        return ESCAPES.sub("", self.child.before)

    def ask(self, line: str) -> str:
        """Type a line and return all that is shown until the answer to it is complete.

        What was typed is drawn again and again, so a mark is asked for behind it.
        """
        self.prompts += 1
        self.type(line)
        self.type(f"print('mark', {self.prompts} * 1000)")
        self.child.expect(f"mark {self.prompts * 1000}\r?\n")
        return ESCAPES.sub("", self.child.before)

    def expect(self, pattern: str) -> None:
        self.child.expect(pattern)


@contextlib.contextmanager
def terminal(workplace: Workplace, program: Path, *arguments: str) -> Iterator[Session]:
    child = pexpect.spawn(
        str(program),
        [*arguments],
        env={
            **workplace.variables,
            "TERM": "xterm",
            # The real terminal would say where its cursor is.
            "PROMPT_TOOLKIT_NO_CPR": "1",
        },
        cwd=str(workplace.directory),
        # Who runs the tests in the background of a script ignores it, and all below inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        encoding="utf-8",
        dimensions=(50, 200),
        timeout=SECONDS,
    )
    try:
        session = Session(child)
        session.wait_for_prompt()
        yield session
    finally:
        child.close(force=True)


def console(workplace: Workplace) -> contextlib.AbstractContextManager[Session]:
    program = Path(sys.executable).with_name("jupyter-console")
    # Else the console takes a line for unfinished where a busy machine needs more than a second.
    patience = f"--ZMQTerminalInteractiveShell.kernel_is_complete_timeout={SECONDS}"
    return terminal(workplace, program, f"--kernel={workplace.kernel_name}", patience)


def ipython(workplace: Workplace) -> contextlib.AbstractContextManager[Session]:
    return terminal(workplace, workplace.environment.python, "-m", "IPython", "--no-banner")


def test_the_console_gets_a_fresh_kernel_and_goes_on(workplace: Workplace) -> None:
    workplace.standin.rate = 1_000_000
    workplace.cache = workplace.directory / "cache"
    starts = workplace.directory / "starts"
    startup = workplace.directory / "ipython" / "profile_default" / "startup" / "tell.py"
    startup.parent.mkdir(parents=True)
    startup.write_text(f"with open({str(starts)!r}, 'a') as file:\n    file.write('x')\n", "utf-8")
    with console(workplace) as session:
        process = re.findall(
            r"process (\d+)", session.ask("import os; print('process', os.getpid()); kept = 1")
        )[-1]
        session.ask("%load_ext torchenv_magic")
        session.type("%torchenv install cpu")
        session.expect(r"Asking the PyTorch index .* what would change\r\n")
        session.expect(r"[\d.]+ [kM]?B of 1\.\d MB")
        session.expect(
            r"Installed torch 2\.13\.0\+cpu and 1 other package in [\d.]+ s\. "
            r"Restarting the kernel…\r\n"
        )
        # The next prompt has the verification in it: Enter runs it, once the kernel is there. Who
        # is quicker reads "Aborted".
        session.expect("verify")
        while len(starts.read_text("utf-8")) < 2:
            session.child.expect(pexpect.TIMEOUT, timeout=0.05)
        session.type("")
        session.expect("PyTorch works\r\n")
        session.expect("9 of 9 passed")
        answer = session.ask(
            "import os, torch; print('now', os.getpid(), torch.__version__, 'kept' in globals())"
        )
        assert f"now {process} 2.13.0+cpu False" in answer


def test_an_interrupt_in_the_console_cancels(workplace: Workplace) -> None:
    workplace.standin.rate = 60_000
    workplace.cache = workplace.directory / "cache"
    with console(workplace) as session:
        session.ask("%load_ext torchenv_magic")
        session.type("%torchenv install cpu")
        session.expect(r"[\d.]+ [kM]?B of 1\.\d MB")
        session.child.sendintr()
        session.expect(r"Cancelled; the environment is as it was")
        assert "42" in session.ask("print(6 * 7)")
    assert workplace.versions() == {}


def test_ipython_goes_on_with_what_it_had_not_imported(workplace: Workplace) -> None:
    workplace.cache = workplace.directory / "cache"  # what another test has fetched is not there
    with ipython(workplace) as session:
        session.ask("%load_ext torchenv_magic")
        answer = session.ask("%torchenv install cpu torch==2.12.0")
        assert "Nothing of it was loaded here, so the session goes on." in answer
        assert "PyTorch works" in answer
        # Each phase is a line, said once and in its order, however soon it was over.
        phases = (
            "Asking the PyTorch index",
            "Downloading from",
            "Linking",
            "Switching",
            "Checking",
        )
        assert [answer.count(phase) for phase in phases] == [1] * len(phases)
        assert sorted(phases, key=answer.index) == [*phases]
        assert "2.12.0+cpu" in session.ask("import torch; print(torch.__version__)")

        # What is loaded can't be replaced in place: the person is told what to do.
        answer = session.ask("%torchenv install cpu torch==2.13.0")
        assert (
            "`torch` is loaded in this session and can only change with a restart. Leave IPython "
            "and start it again, then run `%torchenv verify`."
        ) in " ".join(answer.split())
        assert "PyTorch works" in answer
        # And the prompt is empty: what was prefilled would run in the old process.
        assert "2.12.0+cpu" in session.ask("print(torch.__version__)")


def test_an_interrupt_in_ipython_cancels_and_shows_no_traceback(workplace: Workplace) -> None:
    workplace.standin.rate = 60_000
    workplace.cache = workplace.directory / "cache"
    with ipython(workplace) as session:
        session.ask("%load_ext torchenv_magic")
        session.type("%torchenv install cpu")
        session.expect(r"[\d.]+ [kM]?B of 1\.\d MB")
        session.child.sendintr()
        session.expect(r"Cancelled; the environment is as it was")
        answer = session.ask("print(6 * 7)")
        assert "42" in answer
        assert "Traceback" not in answer
        picker = session.ask("%torchenv")
        assert "This front end shows no widgets: `%torchenv install` does the same in words." in (
            picker
        )
        assert "recommended" in picker
    assert workplace.versions() == {}
