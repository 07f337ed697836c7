"""The words of `%torchenv` in a notebook: each returns a record, or raises one plain error."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from IPython.display import display
from IPython.utils._process_common import arg_split

from torchenv_magic.environment import read_environment
from torchenv_magic.errors import RestartError, TorchEnvError
from torchenv_magic.expectation import read_expectation
from torchenv_magic.installation.install import Result
from torchenv_magic.installation.plan import Plan
from torchenv_magic.notebook.after_restart import fresh_kernel_code, verify_here
from torchenv_magic.notebook.cells import place_verification_cell
from torchenv_magic.notebook.front_end import FrontEnd, read_front_end
from torchenv_magic.notebook.job import Job
from torchenv_magic.notebook.rendering import (
    message_html,
    progress_html,
    progress_words,
    register_formatters,
    verification_html,
)
from torchenv_magic.notebook.restart import Restart, RungChoice
from torchenv_magic.notebook.session import SessionEffects, describe_session
from torchenv_magic.selection import Selection
from torchenv_magic.status import Status, read_status
from torchenv_magic.verification import Verification, verify
from torchenv_magic.words import HelpRequested, Words, parse_words

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["run"]

# Often enough to look alive, seldom enough not to flood a slow connection.
_REDRAW_SECONDS = 0.15


def run(shell: InteractiveShell, line: str) -> Any:  # noqa: ANN401  (the word's record)
    """Do what the line says.

    Raises
    ------
    TorchEnvError
        Shown as its message and hint; Run All stops.
    """
    register_formatters(shell)
    try:
        words = parse_words(arg_split(line, posix=True), notebook=True)
    except HelpRequested as request:
        print(request.text)  # noqa: T201  (help is text, wherever it is asked for)
        return None
    return _WORDS[words.word](shell, words)


def _picker(shell: InteractiveShell, words: Words) -> Status | None:
    front_end = read_front_end(shell)
    if front_end.can_display_widgets is False:
        status = read_status(words.request)
        reason = "This front end shows no widgets"
        if front_end.kind == "jupyter":
            reason = "ipywidgets is not installed, so the picker can't be shown"
        print(f"{reason}: `%torchenv install` does the same in words.")  # noqa: T201
        return status
    # ipywidgets takes a tenth of a second to import: only the picker pays for it.
    from torchenv_magic.notebook.picker import Picker

    picker = Picker(shell, front_end)
    picker.show()
    place_verification_cell(shell, front_end)
    return None


def _status(shell: InteractiveShell, words: Words) -> Status:  # noqa: ARG001
    return read_status(words.request)


def _list(shell: InteractiveShell, words: Words) -> Selection:  # noqa: ARG001
    return read_status(words.request).selection


def _plan(shell: InteractiveShell, words: Words) -> Plan | None:  # noqa: ARG001
    status = read_status(words.request)
    view = _View(words)
    job = Job(status, words.request, consent=words.yes, only_plan=True).start()
    if not _wait(job, view):
        return None
    if job.state.error is not None:
        view.fail(job.state.error)
        raise job.state.error
    view.clear()
    return job.state.plan


def _verify(shell: InteractiveShell, words: Words) -> Verification:  # noqa: ARG001
    front_end = read_front_end(shell)
    verification = verify_here() if front_end.interactive else _verify_in_child()
    if not verification.passed:
        # The table first: an error shows its message only.
        display(verification)  # type: ignore[no-untyped-call]
        verification.raise_for_failure()
    return verification


def _install(shell: InteractiveShell, words: Words) -> Verification | None:
    front_end = read_front_end(shell)
    restart = Restart(shell, front_end)
    status = read_status(words.request)
    view = _View(words)
    job = Job(status, words.request, consent=words.yes).start()
    if not _wait(job, view):
        restart.abort_queue()
        return None
    if job.state.error is not None:
        view.fail(job.state.error)
        raise job.state.error
    result = job.state.result
    if result is None or not result.changed:
        view.clear()
        return _verify(shell, words)
    return _Ending(shell, front_end, restart, view, result).go(words)


@dataclass(frozen=True, slots=True)
class _Ending:
    """What follows an install that changed something."""

    shell: InteractiveShell
    front_end: FrontEnd
    restart: Restart
    view: _View
    result: Result

    def go(self, words: Words) -> Verification | None:
        effects = describe_session(self.shell, self.result.changed)
        if not wants_restart(words, self.front_end, effects):
            return self._stay(effects)
        choice = self.restart.prepare()
        place_verification_cell(self.shell, self.front_end)
        if choice.restarts:
            self._restart_kernel(choice)
            return None
        verification = _verify_in_child()
        self.view.show(verification, lead=f"{self.result}. {choice.tell}.")
        self.restart.abort_queue()
        verification.raise_for_failure()
        return None

    def _stay(self, effects: SessionEffects) -> Verification:
        importlib.invalidate_caches()
        if not effects.must_restart:
            self.view.say(
                f"{self.result}. Nothing of it was loaded here, so the session goes on.",
                tone="good",
            )
            verification = verify_here() if self.front_end.interactive else _verify_in_child()
            verification.raise_for_failure()
            return verification
        self.view.say(f"{self.result}.", tone="good")
        self.restart.abort_queue()
        names = ", ".join(item.name for item in effects.loaded)
        hint = "put `%torchenv install` before the first import, and run it again"
        if self.front_end.interactive:
            hint = f"{self.restart.prepare().tell}. {effects}"
        raise RestartError(
            f"{names} was imported before it was replaced: the environment is the new one, this "
            "process still holds the old.",
            hint=hint,
        )

    def _restart_kernel(self, choice: RungChoice) -> None:
        self.view.say(f"{self.result}. Restarting the kernel…", tone="good")
        lead = f"{self.result}; the kernel was restarted."
        self.restart.run(
            choice,
            display_id=self.view.display_id,
            fresh_kernel_code=fresh_kernel_code(self.view.display_id, lead),
            on_failure=self.view.fail,
        )
        # Cells that wait (Run All) would run in the old process.
        self.restart.abort_queue()


def wants_restart(words: Words, front_end: FrontEnd, effects: SessionEffects) -> bool:
    """Return whether the kernel is to be restarted after a change.

    By default it is, but never in a run that nobody watches, and not without being asked where the
    session holds what took work and nothing forces it.
    """
    if not front_end.interactive or words.restart == "never":
        return False
    if words.restart == "auto":
        return effects.must_restart
    if words.restart == "always":
        return True
    return not effects.holds_work


def _verify_in_child() -> Verification:
    environment = read_environment()
    return verify(environment, read_expectation(environment.prefix), in_process=False)


def _wait(job: Job, view: _View) -> bool:
    """Wait in the cell with live progress; return False where the person interrupted it."""
    try:
        while not job.ended.wait(_REDRAW_SECONDS):
            view.progress(job)
    except KeyboardInterrupt:
        # Shown as one sentence: the traceback would only be ours.
        job.cancel()
        view.say("Stopping…")
        job.ended.wait()
    if job.state.cancelled:
        view.say("Cancelled. The environment is as it was.")
        return False
    return True


class _View:
    """The one output of a word that takes a while: progress, then what became of it."""

    def __init__(self, words: Words) -> None:
        self.display_id = f"torchenv-{uuid4().hex}"
        self._shown = False
        self._last: object = None
        self._word = words.word

    def progress(self, job: Job) -> None:
        state = job.state
        if state is self._last:
            return
        self._last = state
        text = state.message
        if state.bytes is not None:
            text += f"\n{progress_words(state.bytes)}"
        self._put(progress_html(state.message, state.bytes, state.log), text)

    def say(self, text: str, *, tone: str = "") -> None:
        self._put(message_html(text, tone=tone), text)

    def fail(self, error: TorchEnvError) -> None:
        """Leave what uv said, folded: the message itself is the cell's error."""
        text = "Not installed." if self._word == "install" else "No plan."
        if isinstance(error, RestartError):
            text = str(error)
        self._put(message_html(text, detail=error.detail), text)

    def show(self, verification: Verification, *, lead: str) -> None:
        self._put(verification_html(verification, lead=lead), f"{lead}\n{verification}")

    def clear(self) -> None:
        if self._shown:
            self._put("", "")

    def _put(self, html: str, text: str) -> None:
        bundle = {"text/html": html, "text/plain": text}
        display(  # type: ignore[no-untyped-call]
            bundle, raw=True, display_id=self.display_id, update=self._shown
        )
        self._shown = True


_WORDS = {
    "": _picker,
    "status": _status,
    "list": _list,
    "plan": _plan,
    "install": _install,
    "verify": _verify,
}
