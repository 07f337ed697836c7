"""Give the notebook a fresh kernel without a "kernel died" dialog, and have code run in it.

A ladder of ways, best first; each is chosen because something answered, never because of a
time-out. `do_shutdown`, `os._exit` and signals are none of them: front ends take these for a crash,
and some end the session for good.

```python
restart = Restart(shell, read_front_end(shell))   # in the magic, while its cell runs
choice = restart.prepare()                        # any thread: finds and asks the server
restart.run(choice, display_id=…, fresh_kernel_code=…, after=…, on_failure=…)   # any thread
restart.abort_queue()                             # last thing in the magic: Run All stops here
```
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from torchenv_magic.errors import RestartError
from torchenv_magic.notebook.front_end import FrontEnd, FrontEndKind
from torchenv_magic.notebook.own_server import Server, find_owner, server_candidates
from torchenv_magic.notebook.plugin import Conversation, restart_order, store_order, switch_order
from torchenv_magic.notebook.re_exec import (
    end_child_processes,
    launch_environment,
    re_exec_obstacle,
    replace_process,
)
from torchenv_magic.notebook.restart_helper import Job

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = [
    "Restart",
    "RestartFacts",
    "Rung",
    "RungChoice",
    "RungName",
    "colab_restart_button",
    "helper_command",
    "helper_environment",
    "how_to_choose",
    "how_to_restart",
    "ladder",
    "launch_environment",
]

RungName = Literal["plugin", "server", "re-exec", "tell"]
"""Best first."""

_log = logging.getLogger(__name__)

_LOG_TAIL_BYTES = 4000

# The helper has no use for secrets, and others can read an environment.
_KEPT_FROM_HELPER = ("JUPYTERHUB_", "JPY_", "IPY_")
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "API_KEY")


# --- decide ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One way to a fresh kernel, and why it is open or closed."""

    name: RungName
    available: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartFacts:
    """What was found out about the ways."""

    plugin_obstacle: str | None
    """Why no plugin can be asked; None where one can, which is not yet that one is there."""
    server_answered: bool
    server_reason: str
    re_exec_obstacle: str | None
    """Why the process can't replace itself; None where it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RungChoice:
    """All the ways, best first, and what they need."""

    rungs: tuple[Rung, ...]
    """Also those that are closed; the last one is `tell` and always open."""
    tell: str
    """What a person presses here: one sentence without its full stop."""
    server: Server | None = field(default=None, repr=False)

    @property
    def first(self) -> Rung:
        return next(rung for rung in self.rungs if rung.available)

    @property
    def restarts(self) -> bool:
        """Whether the kernel can be restarted without the person."""
        return self.first.name != "tell"


def ladder(front_end: FrontEnd, facts: RestartFacts) -> tuple[Rung, ...]:
    """Return every rung, best first, with the reason why it is open or closed."""
    closed = _NEVER_RESTARTED.get(front_end.kind)
    if closed is not None:
        reason = f"{closed} ({front_end.reason})"
        return (
            Rung(name="plugin", available=False, reason=reason),
            Rung(name="server", available=False, reason=reason),
            Rung(name="re-exec", available=False, reason=reason),
            Rung(name="tell", available=True, reason=reason),
        )
    obstacle = facts.re_exec_obstacle
    return (
        Rung(
            name="plugin",
            available=facts.plugin_obstacle is None,
            # Its answer can be heard when the cell is over, and not before.
            reason=facts.plugin_obstacle or "the front end is asked when the cell is over",
        ),
        Rung(name="server", available=facts.server_answered, reason=facts.server_reason),
        Rung(
            name="re-exec",
            available=obstacle is None,
            reason=obstacle or "the kernel's command line leads to the same ports again",
        ),
        Rung(name="tell", available=True, reason="a person can always restart the kernel"),
    )


_NEVER_RESTARTED: dict[FrontEndKind, str] = {
    "terminal": "there is no kernel to restart",
    "vscode": "VS Code takes a kernel that ends for a crash",
    "colab": "Colab takes a kernel that ends for a crash",
    "kaggle": "Kaggle offers a cell no way to restart",
    "headless": "a restart would end a run that nobody watches",
    "pyodide": "Python in the browser has no kernel process",
    "unknown": "how this front end takes a restart is not known",
}

_PRESS: dict[FrontEndKind, str] = {
    "jupyter": "Press Kernel ▸ Restart Kernel, then run `%torchenv verify`",
    "console": "Leave the console and start it again, then run `%torchenv verify`",
    "terminal": "Leave IPython and start it again, then run `%torchenv verify`",
    "vscode": "Press Restart in the notebook's toolbar, then run `%torchenv verify`",
    "colab": "Press Runtime ▸ Restart session, then run `%torchenv verify`",
    "kaggle": "Restart the session from the Run menu, then run `%torchenv verify`",
    "headless": "Run the notebook again: a new kernel uses what is installed now",
    "pyodide": "Open the notebook in a Jupyter that runs Python outside the browser",
    "unknown": "Restart the kernel, then run `%torchenv verify`",
}


def how_to_restart(kind: FrontEndKind) -> str:
    """Return what a person presses in that front end: one sentence without its full stop."""
    return _PRESS[kind]


_CHOOSE: dict[FrontEndKind, str] = {
    "jupyter": "Press Kernel ▸ Change Kernel… and choose “{display_name}”",
    "console": "Leave the console and run `jupyter console --kernel={name}`",
    "terminal": "Leave IPython and run `jupyter console --kernel={name}`",
    "vscode": "Press Select Kernel at the notebook's top right, then Jupyter Kernel…, and choose "
    "“{display_name}”",
    "headless": "Run the notebook with the kernel `{name}`",
    "unknown": "Choose the kernel “{display_name}” for this notebook",
}


def how_to_choose(kind: FrontEndKind, *, name: str, display_name: str) -> str:
    """Return how a person gives the notebook that kernel: one sentence without its full stop."""
    words = _CHOOSE.get(kind, _CHOOSE["unknown"]).format(name=name, display_name=display_name)
    return words if kind in ("console", "terminal") else f"{words}, then run `%torchenv verify`"


def colab_restart_button(modules: Sequence[str]) -> dict[str, object]:
    """Return the MIME bundle that Colab shows as a warning with its own restart button.

    `modules` are the imported top-level modules that changed. The form is the one that Colab's
    own pip hook displays (googlecolab/colabtools, google/colab/_pip.py).
    """
    warning = {"pip_warning": {"packages": list(modules)}, "id": uuid.uuid4().hex}
    return {"application/vnd.colab-display-data+json": warning}


# --- act ------------------------------------------------------------------------------------------


class Restart:
    """A restart of this shell's kernel; made by the magic, in the main thread.

    `environment` is the one of the fresh process where this one replaces itself: pass what
    `launch_environment` returned as the extension was loaded.
    """

    def __init__(
        self,
        shell: InteractiveShell,
        front_end: FrontEnd,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.front_end = front_end
        self._process = _KernelProcess(
            shell, launch_environment() if environment is None else environment
        )
        self._attempt: _Attempt | None = None

    def prepare(self) -> RungChoice:
        """Find out which rungs are open: reads files and asks each server, for 2 s at most.

        Never raises; every rung's reason is logged and kept.
        """
        server, facts = self._find_out()
        rungs = ladder(self.front_end, facts)
        for rung in rungs:
            state = "open" if rung.available else "closed"
            _log.info("restart: %s is %s: %s", rung.name, state, rung.reason)
        return RungChoice(rungs=rungs, tell=how_to_restart(self.front_end.kind), server=server)

    def run(
        self,
        choice: RungChoice,
        *,
        display_id: str | None,
        fresh_kernel_code: str,
        after: Mapping[str, str],
        on_failure: Callable[[RestartError], None],
        session: str | None = None,
    ) -> None:
        """Restart the kernel as soon as no cell runs, then run the code in the fresh one.

        Returns at once, from whatever thread. The code runs silently and outside the history but
        in the user's names: let it be one expression. Where it raises, the output `display_id`
        says so. The front end's plugin runs the verification cell instead, and puts the MIME
        bundle `after` into that output, which has to carry `OUTPUT_MIME` for it. Where no rung
        works, the kernel lives on and `on_failure` is called, in the kernel's main thread between
        two cells.

        `session` is the id of the client that asks; None is the one that ran the magic.

        Raises
        ------
        RuntimeError
            A restart is under way already.
        """
        if self._attempt is not None and not self._attempt.over:
            raise RuntimeError("the kernel is being restarted already")
        self._attempt = _Attempt(
            process=self._process,
            front_end=self.front_end,
            choice=choice,
            display_id=display_id,
            code=fresh_kernel_code,
            after=after,
            session=session or self.front_end.session,
            on_failure=on_failure,
        )
        # Before anything else is done: a cell that waits would begin in the very next moment.
        self._process.at_once(self._process.hold_queue)
        self._attempt.start()

    def switch(
        self,
        kernel: str,
        *,
        display_id: str | None,
        after: Mapping[str, str],
        on_failure: Callable[[str], None],
        session: str | None = None,
    ) -> None:
        """Give the notebook another kernel as soon as no cell runs, and verify there.

        Only the front end can, where it has the plugin. Where not, this kernel lives on and
        `on_failure` is called with the reason, in the main thread between two cells. `session` and
        `after` are as in `run`.
        """
        if self.front_end.kind != "jupyter" or not self._process.has_loop:
            on_failure("only JupyterLab and Notebook have the plugin")
            return

        def failed(reason: str) -> None:
            self._process.release_queue()
            on_failure(reason)

        conversation = Conversation(
            switch_order(kernel, output=display_id, cell=self.front_end.cell_id, after=after),
            asked=session or self.front_end.session,
            loop=self._process,
            on_failure=failed,
        )

        def begin() -> None:
            # What waits here, and what is run until the notebook leaves, is for the new kernel.
            self._process.hold_queue()
            conversation.begin()

        self._process.between_cells(begin)

    def store(
        self,
        key: str,
        value: object,
        *,
        display_id: str,
        on_done: Callable[[], None],
        on_failure: Callable[[str], None],
    ) -> None:
        """Set `key` of the notebook's metadata in its page, as soon as no cell runs.

        Nothing is saved, and this kernel lives on. One of `on_done` and `on_failure`, which gets
        the reason, is called in the main thread between two cells.
        """
        if self.front_end.kind != "jupyter" or not self._process.has_loop:
            on_failure("only JupyterLab and Notebook have the plugin")
            return
        conversation = Conversation(
            store_order(key, value, output=display_id),
            asked=self.front_end.session,
            loop=self._process,
            on_failure=on_failure,
            on_done=on_done,
        )
        self._process.between_cells(conversation.begin)

    def between_cells(self, function: Callable[[], object]) -> None:
        """Call `function` in the kernel's main thread while no cell runs; from any thread."""
        self._process.between_cells(function)

    def abort_queue(self) -> bool:
        """Have the kernel drop the cells that wait; return whether it could.

        For the magic's own end, in the main thread: a queued cell (Run All) would run in the old
        process, or be cut off in the middle. They go back to not having run.
        """
        return self._process.abort_queue()

    def _find_out(self) -> tuple[Server | None, RestartFacts]:
        front_end = self.front_end
        if front_end.kind in _NEVER_RESTARTED or not self._process.has_loop:
            reason = "the kernel has no loop to wait in"
            return None, RestartFacts(
                plugin_obstacle=reason,
                server_answered=False,
                server_reason=reason,
                re_exec_obstacle=reason,
            )
        server, server_reason = None, "the kernel's connection file names no kernel"
        connection_file, kernel_id = front_end.connection_file, front_end.kernel_id
        if connection_file is not None and kernel_id is not None:
            candidates = server_candidates(
                platform=sys.platform,
                environment=self._process.environment,
                # The server keeps both files in its own runtime directory, which needs not be the
                # one that this process would take.
                directories=(connection_file.parent, *_runtime_directories()),
                parent=os.getppid(),
            )
            server, server_reason = find_owner(candidates, kernel_id)
        return server, RestartFacts(
            plugin_obstacle=None
            if front_end.kind == "jupyter"
            else "only JupyterLab and Notebook have the plugin",
            server_answered=server is not None,
            server_reason=server_reason,
            re_exec_obstacle=re_exec_obstacle(
                platform=sys.platform,
                arguments=sys.orig_argv,
                executable=sys.executable,
                connection_file=connection_file,
            ),
        )


class _KernelProcess:
    """What of this kernel has to be taken hold of while a cell runs, for use from any thread."""

    def __init__(self, shell: InteractiveShell, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._shell = shell
        self._kernel: Any = getattr(shell, "kernel", None)
        io_loop = getattr(self._kernel, "io_loop", None)
        # Widgets' callbacks run on threads without this loop (ipykernel 7).
        self._loop: asyncio.AbstractEventLoop | None = getattr(io_loop, "asyncio_loop", None)

    @property
    def has_loop(self) -> bool:
        return self._loop is not None

    def between_cells(self, function: Callable[[], object]) -> None:
        """Call `function` in the main thread while no cell's code runs."""
        if self._loop is None:
            function()
        else:
            self._loop.call_soon_threadsafe(function)

    def at_once(self, function: Callable[[], object]) -> None:
        """Call `function` now where this is the kernel's loop, else as soon as that is free."""
        try:
            is_here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            is_here = False
        if is_here:
            function()
        else:
            self.between_cells(function)

    def after(self, seconds: float, function: Callable[[], object]) -> None:
        """Call `function` in the main thread later; for that thread."""
        if self._loop is not None:
            self._loop.call_later(seconds, function)

    def cells_run(self) -> int:
        """Return how many cells the kernel has run."""
        return self._shell.execution_count

    def is_busy(self) -> bool:
        """Return whether a cell ended whose reply is still to be sent: the loop runs meanwhile."""
        lock = getattr(self._kernel, "_main_asyncio_lock", None)
        return isinstance(lock, asyncio.Lock) and lock.locked()

    def abort_queue(self) -> bool:
        abort = getattr(self._kernel, "_abort_queues", None)
        if abort is None:
            return False
        try:
            abort()
        except Exception:  # noqa: BLE001  (private, though the same call since ipykernel 6)
            _log.warning("restart: the queue can't be aborted", exc_info=True)
            return False
        return True

    def hold_queue(self) -> None:
        """Abort every cell that still comes, until `release_queue`."""
        self.abort_queue()
        # The kernel takes its flag back once the cells that waited then are through; ipykernel 6
        # and 7 keep it in a trait. Their other messages (widgets, completion) are still answered.
        with contextlib.suppress(Exception):
            self._kernel.observe(self._abort_still, "_aborting")
            self._kernel._aborting = True  # noqa: SLF001

    def release_queue(self) -> None:
        """Let cells run again."""
        with contextlib.suppress(Exception):
            self._kernel.unobserve(self._abort_still, "_aborting")
            self._kernel._aborting = False  # noqa: SLF001

    def _abort_still(self, change: Mapping[str, Any]) -> None:
        if not change["new"]:
            self._kernel._aborting = True  # noqa: SLF001

    def replace(self) -> NoReturn:
        """Start this process's program over, with its first environment and directory.

        Raises
        ------
        OSError
            The system refused; the kernel is as it was, without its child processes.
        """
        end_child_processes()
        with contextlib.suppress(Exception):
            # exec runs no exit handlers, and one of them writes IPython's history.
            self._shell.history_manager.writeout_cache()  # type: ignore[union-attr]
        directory = getattr(self._shell, "starting_dir", None)
        replace_process(
            executable=sys.executable,
            arguments=[sys.executable, *sys.orig_argv[1:]],
            environment=self.environment,
            directory=Path(directory) if directory else None,
        )


class _Attempt:
    """One way down the ladder: where a rung fails, the next one is tried."""

    def __init__(
        self,
        *,
        process: _KernelProcess,
        front_end: FrontEnd,
        choice: RungChoice,
        display_id: str | None,
        code: str,
        after: Mapping[str, str],
        session: str | None,
        on_failure: Callable[[RestartError], None],
    ) -> None:
        self.over = False
        self._process = process
        self._choice = choice
        self._session = session
        self._order = restart_order(output=display_id, cell=front_end.cell_id, after=after)
        self._job = Job(
            kernel_id=front_end.kernel_id or "",
            connection_file=str(front_end.connection_file),
            code=code,
            display_id=display_id,
        )
        self._on_failure = on_failure
        self._rungs = deque(rung for rung in choice.rungs if rung.available)
        self._spare: _Helper | None = None
        self._failures: list[str] = []
        self._details: list[str] = []

    def start(self) -> None:
        """Start the next rung; any thread."""
        rung = self._rungs.popleft() if self._rungs else None
        if rung is None or rung.name == "tell":
            self._give_up()
            return
        _log.info("restart: trying %s: %s", rung.name, rung.reason)
        if rung.name == "plugin":
            # Nobody knows yet whether there is one. The next rung's helper takes some tenths of a
            # second to load, which is the time until that is known, and ends with this process.
            if self._rungs and self._rungs[0].name != "tell":
                with contextlib.suppress(OSError):
                    self._spare = self._start_helper(self._rungs[0])
            self._process.between_cells(self._ask_plugin)
            return
        try:
            helper, self._spare = self._spare or self._start_helper(rung), None
        except OSError as error:
            self._next(f"the restart's helper can't be started: {error}")
            return
        # The helper loads what it needs while the cell that asked comes to its end.
        self._process.between_cells(lambda: self._after_cell(helper))

    def _start_helper(self, rung: Rung) -> _Helper:
        server = self._choice.server if rung.name == "server" else None
        return _Helper(
            dataclasses.replace(self._job, server=server),
            environment=self._process.environment,
            listener=self._hear,
        )

    def _ask_plugin(self) -> None:
        # As below; the plugin itself waits for the reply of the cell that asked.
        self._process.hold_queue()
        Conversation(
            self._order, asked=self._session, loop=self._process, on_failure=self._next
        ).begin()

    def _after_cell(self, helper: _Helper) -> None:
        # Cells that wait behind the one that ran as the picker was clicked, and those that are
        # run while the helper gets ready, go back to not having run.
        self._process.hold_queue()
        # The loop comes here before the cell's reply is sent, so the helper asks for that itself.
        helper.order("go")

    def _hear(self, helper: _Helper, report: Mapping[str, Any]) -> None:
        """Take what the helper reports; in a thread of its own."""
        if helper is self._spare:
            self._spare = None  # it has ended before its turn, when another one is started
        elif report["event"] == "failed":
            if detail := str(report.get("detail") or ""):
                self._details.append(detail)
            if report.get("ambiguous"):
                # The restart may still come: a second one on top of it would look like a crash.
                self._rungs.clear()
            reason = str(report.get("reason"))
            self._process.between_cells(lambda: self._next(reason))
        elif report["event"] == "idle" and helper.job.server is None:
            self._process.between_cells(lambda: self._re_exec(helper))

    def _re_exec(self, helper: _Helper) -> None:
        if self._process.is_busy():  # the person was quicker
            self._after_cell(helper)
            return
        helper.order("exec")
        try:
            self._process.replace()
        except OSError as error:
            helper.order("stop")
            self._next(f"the kernel can't replace itself: {error}")

    def _next(self, failure: str) -> None:
        _log.warning("restart: %s", failure)
        self._failures.append(failure)
        self.start()

    def _give_up(self) -> None:
        self.over = True
        self._process.between_cells(self._process.release_queue)
        why = "; ".join(self._failures) or self._choice.first.reason
        error = RestartError(
            f"The kernel was not restarted: {why}",
            hint=self._choice.tell,
            detail="\n".join(self._details),
        )
        self._process.between_cells(lambda: self._on_failure(error))


# --- the helper, seen from the kernel -------------------------------------------------------------


class _Helper:
    """The detached process: orders go in, reports come out."""

    def __init__(
        self,
        job: Job,
        *,
        environment: Mapping[str, str],
        listener: Callable[[_Helper, Mapping[str, Any]], None],
    ) -> None:
        self._listener = listener
        self._over = False
        # Private (0600) from the start, and removed by the helper once all went well.
        descriptor, log_file = tempfile.mkstemp(prefix="torchenv-restart-", suffix=".log")
        self._log_file = Path(log_file)
        self.job = dataclasses.replace(job, log_file=log_file)
        try:
            self._process = subprocess.Popen(
                helper_command(sys.executable),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=descriptor,
                # Not the notebook's directory: a `random.py` there would be imported.
                cwd=Path(__file__).resolve().parents[2],
                env=helper_environment(environment),
                encoding="utf-8",
                **_detached(),
            )
        except OSError:
            self._log_file.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        self._send(self.job.to_line())
        threading.Thread(target=self._listen, name="torchenv-restart", daemon=True).start()

    def order(self, word: Literal["go", "exec", "stop"]) -> None:
        self._over = self._over or word == "stop"
        self._send(word)

    def _send(self, line: str) -> None:
        # That a helper has ended is heard from its other pipe.
        with contextlib.suppress(OSError, ValueError):
            if self._process.stdin is not None:
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            try:
                report = json.loads(line)
                self._over = self._over or report["event"] == "failed"
            except (ValueError, LookupError, TypeError):
                continue
            self._listener(self, report)
        self._process.wait()
        with contextlib.suppress(OSError, ValueError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        if not self._over:
            # After a restart this thread is no more: the helper has ended before one.
            reason = "the restart's helper ended unexpectedly"
            report = {"event": "failed", "reason": reason, "detail": self._log_tail()}
            self._listener(self, report)

    def _log_tail(self) -> str:
        try:
            return self._log_file.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
        except OSError:
            return ""


def helper_command(executable: str) -> list[str]:
    """Return the helper's command line: it says nothing about the job."""
    return [executable, "-m", "torchenv_magic.notebook.restart_helper"]


def helper_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the helper's environment: the kernel's without what is secret."""
    return {
        name: value
        for name, value in environment.items()
        if not name.upper().startswith(_KEPT_FROM_HELPER)
        and not any(word in name.upper() for word in _SECRET_WORDS)
    }


def _detached() -> dict[str, Any]:
    if sys.platform == "win32":
        # Not measured; see `_detach` in the helper for the rest.
        flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
        return {"creationflags": flags}
    # A kernel that ends signals its own process group, and so does the server's interrupt.
    return {"start_new_session": True}


def _runtime_directories() -> Iterator[Path]:
    with contextlib.suppress(Exception):
        from jupyter_core.paths import jupyter_runtime_dir

        yield Path(jupyter_runtime_dir())
