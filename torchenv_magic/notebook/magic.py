"""The words of `%torchenv` in a notebook: each returns a record, or raises one plain error."""

from __future__ import annotations

import contextlib
import importlib
import shlex
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from IPython.display import display

from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import Environment, read_environment
from torchenv_magic.errors import (
    ConsentError,
    InstallCancelled,
    LockError,
    RequestError,
    RestartError,
    SelectionError,
    TargetError,
    TorchEnvError,
    VerificationError,
)
from torchenv_magic.installation.history import History
from torchenv_magic.installation.install import Result
from torchenv_magic.installation.new_kernel import remove_kernel
from torchenv_magic.installation.plan import Plan
from torchenv_magic.installation.planning import IndexUnreachableError
from torchenv_magic.installation.settings import Sites, read_sites
from torchenv_magic.installation.undo import read_history
from torchenv_magic.notebook.after_restart import fresh_kernel_code, verify_here, verify_in_child
from torchenv_magic.notebook.cells import (
    has_code_below,
    is_verification_source,
    place_verification_cell,
    remember_placed,
)
from torchenv_magic.notebook.front_end import FrontEnd, read_front_end
from torchenv_magic.notebook.job import Job, JobState, UndoJob
from torchenv_magic.notebook.kernel_job import KernelJob, check_front_end
from torchenv_magic.notebook.plugin import OUTPUT_MIME
from torchenv_magic.notebook.rendering import (
    message_html,
    progress_html,
    progress_words,
)
from torchenv_magic.notebook.restart import (
    Restart,
    RungChoice,
    colab_restart_button,
    how_to_choose,
)
from torchenv_magic.notebook.server_preinstall import read_preinstall
from torchenv_magic.notebook.session import SessionEffects, describe_session
from torchenv_magic.notebook.verification_table import verification_bundle
from torchenv_magic.selection import Selection
from torchenv_magic.status import (
    Status,
    read_repaired,
    read_selection,
    read_status,
    say_what_stands,
)
from torchenv_magic.verification import Verification
from torchenv_magic.words import HelpRequested, Words, parse_words

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from torchenv_magic.doctor import Diagnosis
    from torchenv_magic.project.lock import NotebookLock
    from torchenv_magic.project.lock_making import Made

__all__ = ["run", "wants_restart"]

# There Run All keeps nothing in the kernel's queue that could be dropped: only a cell that fails
# stops it (seen in VS Code; not known of the others).
_SENDS_CELLS_ONE_BY_ONE = ("vscode", "colab", "kaggle", "unknown")

# Often enough to look alive, seldom enough not to flood a slow connection.
_REDRAW_SECONDS = 0.15


def run(shell: InteractiveShell, line: str) -> Any:  # noqa: ANN401  (the word's record)
    """Do what the line says.

    Raises
    ------
    TorchEnvError
        Shown as its message and hint; Run All stops.
    """
    try:
        words = parse_words(_split(line), notebook=True)
    except HelpRequested as request:
        print(request.text)  # noqa: T201  (help is text, wherever it is asked for)
        return None
    return _WORDS[words.word](shell, words)


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise RequestError(
            f"`%torchenv {line.strip()}` can't be read: {str(error).lower()}",
            hint='write quotation marks in pairs: `%torchenv install "torch==2.13.*"`',
        ) from None


def _picker(shell: InteractiveShell, words: Words) -> Status | None:
    front_end = read_front_end(shell)
    reason = "This front end shows no widgets"
    if front_end.can_display_widgets is not False:
        try:
            # ipywidgets takes a tenth of a second to import: only the picker pays for it.
            from torchenv_magic.notebook.picker import open_picker
        except ImportError as error:
            reason = f"ipywidgets can't be imported ({error})"
        else:
            open_picker(shell, front_end)
            _place_verification_cell(shell, front_end)
            return None
    elif front_end.kind == "jupyter":
        reason = "ipywidgets is not installed, so the picker can't be shown"
    status = _status(shell, words)
    print(f"{reason}: `%torchenv install` does the same in words.")  # noqa: T201
    return status


def _look(words: Words) -> Status:
    return read_status(words.request, refresh="always" if words.refresh else "never")


def _status(shell: InteractiveShell, words: Words) -> Status:  # noqa: ARG001
    status = _look(words)
    preinstall = read_preinstall()
    return replace(status, preinstall=preinstall.sentence) if preinstall else status


def _list(shell: InteractiveShell, words: Words) -> Selection:  # noqa: ARG001
    return _look(words).selection


def _plan(shell: InteractiveShell, words: Words) -> Plan | None:
    view = _view(read_front_end(shell))
    status, state = _run_job(view, words)
    view.clear()
    if state.plan is None:
        return None
    return replace(state.plan, notes=(*state.plan.notes, *_warnings(status, words)))


def _verify(shell: InteractiveShell, words: Words) -> Verification:  # noqa: ARG001
    front_end = read_front_end(shell)
    if is_verification_source(front_end.cell_source or ""):
        remember_placed(shell)
    environment, recovered, _ = read_repaired()
    if recovered:
        _view(front_end).say(recovered)
    return _proven(_verification(front_end, environment))


def _doctor(shell: InteractiveShell, words: Words) -> Diagnosis:  # noqa: ARG001
    # Not at the top: the verification cell, which a person waits for, needs no doctor.
    from torchenv_magic.doctor import examine_and_judge

    return examine_and_judge(in_session=True)


def _install(shell: InteractiveShell, words: Words) -> Verification | None:
    front_end = read_front_end(shell)
    restart = Restart(shell, front_end)
    view = _view(front_end)
    try:
        _, state = _run_job(view, words)
    except TargetError as error:
        error.hint = _hint_at_other_kernel(front_end) or error.hint
        raise
    result = state.result
    if result is None or not result.changed:
        view.clear()
        return _verify(shell, words)
    return _Ending(shell, front_end, restart, view, result, words).go()


def _hint_at_other_kernel(front_end: FrontEnd) -> str:
    """Return how to get at the kernel that the server has made for PyTorch; empty without one."""
    preinstall = read_preinstall()
    if preinstall is None or not preinstall.has_kernel:
        return ""
    record = preinstall.record
    title = record.kernel_title or record.kernel
    how = how_to_choose(front_end.kind, name=record.kernel, display_name=title)
    return f"PyTorch is in another kernel: {how[0].lower()}{how[1:]}"


def _undo(shell: InteractiveShell, words: Words) -> Verification | None:
    front_end = read_front_end(shell)
    restart = Restart(shell, front_end)
    view = _view(front_end)
    _, state = _run_job(view, words)
    if state.result is None:
        return None
    if read_environment().installed("torch") is None:
        importlib.invalidate_caches()
        effects = describe_session(shell, state.result.changed)
        loaded = f" {effects.loaded_words}" if effects.must_restart else ""
        view.say(f"{state.result}. PyTorch is not installed now.{loaded}", tone="good")
        return None
    return _Ending(shell, front_end, restart, view, state.result, words).go()


def _history(shell: InteractiveShell, words: Words) -> History:  # noqa: ARG001
    environment, recovered, _ = read_repaired()
    if recovered:
        _view(read_front_end(shell)).say(recovered)
    return read_history(environment)


def _lock(shell: InteractiveShell, words: Words) -> None:
    from torchenv_magic.notebook.lock_offer import read_saved_metadata
    from torchenv_magic.notebook.lock_storing import choose_place
    from torchenv_magic.project.lock import METADATA_KEY, check_schema, lock_to_json
    from torchenv_magic.project.notebook_file import read_notebook_file, shown_notebook

    front_end = read_front_end(shell)
    named = words.notebooks[0] if words.notebooks else None
    place = choose_place(front_end, named, consent=words.yes)
    # What can't be kept is not made: that takes a while.
    if place.kind == "file" and place.path is not None:
        check_schema(read_notebook_file(place.path).metadata)
    else:
        check_schema(read_saved_metadata(place.path) or {})
    restart = Restart(shell, front_end)
    view = _view(front_end)
    _, state = _run_job(view, words)
    made = state.locked
    if made is None:
        return
    data = lock_to_json(made.lock)
    if place.kind == "file" and place.path is not None:
        is_new = _write_lock(place.path, data)
        done = "It stands in" if is_new else "That is what stands already in"
        anew = f" {_LOAD_ANEW}" if place.path == front_end.notebook_path and is_new else ""
        view.tell(made, f"{done} `{shown_notebook(place.path)}`.{anew}")
        return
    view.tell(made, "The notebook's page takes it…")
    restart.store(
        METADATA_KEY,
        data,
        display_id=view.display_id,
        on_done=lambda: view.tell(made, "It is in this notebook: save the notebook to keep it."),
        on_failure=lambda reason: _keep_without_page(view, words, made, place.path, reason),
    )


_LOAD_ANEW = "Load the notebook anew before you save it again."


def _write_lock(path: Path, data: dict[str, Any]) -> bool:
    """Write a lock into a notebook's file; return whether it had another one, or none."""
    from torchenv_magic.project.lock import METADATA_KEY
    from torchenv_magic.project.notebook_file import read_notebook_file, write_notebook_file

    file = read_notebook_file(path).with_metadata(METADATA_KEY, data)
    write_notebook_file(file)
    return file.is_changed


def _keep_without_page(
    view: _View, words: Words, made: Made, path: Path | None, reason: str
) -> None:
    """Say how a lock is kept that the page has not taken; with consent, keep it in the file."""
    from torchenv_magic.notebook.lock_storing import no_page
    from torchenv_magic.project.lock import lock_to_json
    from torchenv_magic.project.notebook_file import shown_notebook

    error: TorchEnvError
    if words.yes and path is not None:
        try:
            _write_lock(path, lock_to_json(made.lock))
        except TorchEnvError as failure:
            error = failure
        else:
            view.tell(made, f"It stands in `{shown_notebook(path)}`. {_LOAD_ANEW}")
            return
    else:
        error = no_page(
            f"The lock is not in the notebook: {reason}", path, with_consent=words.with_consent
        )
    # The cell is over: what would be its error can only be said.
    view.tell(made, f"{error.message}.", hint=error.hint, tone="warn")


def _restore(shell: InteractiveShell, words: Words) -> Verification | None:
    from torchenv_magic.notebook.lock_storing import notebook_to_read
    from torchenv_magic.project.notebook_file import shown_notebook

    front_end = read_front_end(shell)
    named = words.notebooks[0] if words.notebooks else None
    folder = Path(getattr(shell, "starting_dir", None) or Path.cwd())
    history = shell.history_manager
    ran = [text for text in history.input_hist_raw if text.strip()] if history else []
    notebook = notebook_to_read(front_end, named, folder=folder, ran=ran)
    lock = _read_lock(notebook, words, is_own=named is None)
    if notebook not in (named, front_end.notebook_path):
        print(f"This is taken for `{shown_notebook(notebook)}`, whose lock is restored.")  # noqa: T201
    restart = Restart(shell, front_end)
    view = _view(front_end)
    try:
        _, state = _run_job(view, words, lock)
    except TargetError as error:
        error.hint = _hint_at_other_kernel(front_end) or error.hint
        raise
    result = state.result
    if result is None or not result.changed:
        view.clear()
        return _verify(shell, words)
    return _Ending(shell, front_end, restart, view, result, words).go()


def _read_lock(notebook: Path, words: Words, *, is_own: bool) -> NotebookLock:
    from torchenv_magic.project.hosts import own_hosts
    from torchenv_magic.project.lock import read_lock
    from torchenv_magic.project.notebook_file import read_notebook_file, shown_notebook

    # A mirror that the line names is one that a lock may have been made from.
    sites = read_sites(index_base=words.index_base, prefix=Path(sys.prefix))
    metadata = read_notebook_file(notebook).metadata
    lock = read_lock(metadata, plain_hosts=own_hosts(sites))
    if lock is None:
        hint = "`%torchenv lock` makes one, where its PyTorch is installed"
        if is_own:
            hint += "; one that was made a moment ago is there when the notebook is saved"
        raise LockError(f"There is no lock in `{shown_notebook(notebook)}`", hint=hint)
    return lock


def _export(shell: InteractiveShell, words: Words) -> None:
    from torchenv_magic.notebook.lock_storing import is_same_notebook
    from torchenv_magic.project.export_writing import prepare_export

    front_end = read_front_end(shell)
    notebook = words.notebooks[0] if words.notebooks else None
    made = prepare_export(
        words.form,
        environment=read_environment() if notebook is None else None,
        notebook=notebook,
        backends=_backends(words),
        requirements=words.request.requirements,
        output=words.output,
    )
    view = _view(front_end)
    if made.path is None:
        print(made.text, end="")  # noqa: T201  (it is to be copied, or caught by `%%capture`)
    elif not made.changed:
        view.say(f"`{made.name}` says so already: {made.used.label}.")
    else:
        print(made.diff, end="")  # noqa: T201
        written = words.yes and made.write()
        said = [f"Wrote {made.summary}."] if written else []
        said += [f"{note.rstrip('.')}." for note in made.notes]
        if not written:
            said.append(f"Nothing was written: {words.with_consent} writes it.")
        elif is_same_notebook(made.path, front_end.notebook_path):
            said.append(_LOAD_ANEW)
        view.say(" ".join(said), tone="good" if written else "")


def _backends(words: Words) -> tuple[Backend, ...]:
    """Return the backends that the line names; the best for this machine in the place of `auto`."""
    found = []
    for backend in words.backends:
        chosen = backend or read_selection(words.request).backend
        if chosen is None:
            raise SelectionError(
                "No build of PyTorch fits here",
                hint="`%torchenv list` tells the reason of each; name one",
            )
        found.append(chosen)
    return tuple(dict.fromkeys(found))


def _new_kernel(shell: InteractiveShell, words: Words) -> None:
    front_end = read_front_end(shell)
    view = _view(front_end)
    if words.remove:
        view.say(f"{remove_kernel(words.name)}.", tone="good")
        return
    check_front_end(front_end.kind)
    restart = Restart(shell, front_end)
    _, state = _run_job(view, words)
    if state.made is None:
        return
    kernel = state.made.kernel
    how = how_to_choose(front_end.kind, name=kernel.name, display_name=kernel.display_name)
    effects = describe_session(shell, ())
    if front_end.kind != "jupyter" or effects.holds_work:
        lost = f" {effects.lost_by('a switch')}" if effects.holds_work else ""
        view.say(f"{state.made}.{lost} {how}.", tone="good")
        return
    view.say(f"{state.made}. Switching this notebook to it…", tone="good")
    restart.switch(
        kernel.name,
        display_id=view.display_id,
        after=view.bundle(
            f"{state.made}; this notebook has it now. The verification cell shows whether PyTorch "
            "works.",
            tone="good",
        ),
        on_failure=lambda reason: view.say(
            f"{state.made}. The notebook was not switched to it: {reason}. {how}."
        ),
    )
    restart.abort_queue()
    if has_code_below(shell, front_end.cell_source or ""):
        _stop_cell(shell)


# ------------------------------------------------------------------------------------- the waiting


def _run_job(
    view: _View, words: Words, lock: NotebookLock | None = None
) -> tuple[Status, JobState]:
    """Plan, or plan and install, in the cell; return what there was before, and the end.

    `lock` is what `restore` restores.

    Raises
    ------
    TorchEnvError
        Whatever ended it; InstallCancelled, without a traceback, where the person interrupted it.
    """
    job: Job | None = None
    try:
        status = _look_for(words, lock)
        sites = None
        if words.word != "undo":  # what it goes back to lies here, wherever wheels come from
            sites = read_sites(
                index_base=words.index_base,
                find_links=words.find_links,
                allow_sdist=words.allow_sdist,
                prefix=status.environment.prefix,
            )
        if words.word in ("install", "restore"):
            view.warn(_warnings(status, words))
        elif words.word != "plan":  # whose notes have it
            view.warn(filter(None, (status.recovered,)))
        job = _job(status, words, sites, lock)
        job.start()
        while not job.ended.wait(_REDRAW_SECONDS):
            view.progress(job.state)
    except KeyboardInterrupt:
        if job is None:
            raise _cancelled(words) from None
        _stop(job, view)
    view.finish(job.state)
    error = job.state.error
    if job.state.cancelled:
        view.clear()
        # An error and not a sentence: the rest of the cell, and the cells after it, count on what
        # was not installed.
        raise _cancelled(words)
    if error is not None:
        _say_how_to_consent(error, words)
        if words.word in ("install", "restore", "undo"):
            say_what_stands(error, status.environment)
        view.fail(error, _NOT_DONE[words.word])
        raise error
    return status, job.state


_NOT_DONE = {
    "install": "Not installed.",
    "lock": "Not locked.",
    "new-kernel": "No kernel was made.",
    "plan": "No plan.",
    "restore": "Not restored.",
    "undo": "Not undone.",
}


def _job(status: Status, words: Words, sites: Sites | None, lock: NotebookLock | None) -> Job:
    if words.word == "new-kernel":
        return KernelJob(
            status,
            words.request,
            name=words.name,
            sites=sites,
            consent=words.yes,
            command=words.line,
        )
    if words.word == "undo":
        return UndoJob(status, words.request, consent=words.yes, command=words.line)
    if words.word in ("lock", "restore"):
        # What locks and restores has imports of its own: only these two words pay for them.
        from torchenv_magic.notebook.lock_jobs import LockJob, RestoreJob

        if lock is None:
            return LockJob(status, words.request, backends=words.backends, sites=sites)
        return RestoreJob(
            status,
            lock,
            backend=words.request.backend,
            sites=sites,
            consent=words.yes,
            looked=True,
            command=words.line,
        )
    return Job(
        status,
        words.request,
        sites=sites,
        consent=words.yes,
        only_plan=words.word == "plan",
        look=lambda: (_look_for(words), words.request),
        looked=True,
        command=words.line,
    )


def _say_how_to_consent(error: TorchEnvError, words: Words) -> None:
    if isinstance(error, IndexUnreachableError) and error.offers:
        error.hint = f"{words.with_consent} uses it"
    if isinstance(error, LockError) and error.code == "lock-server":
        error.hint = (
            f"{words.with_consent} takes the same file, by its hash, from this machine's own index"
        )
    if isinstance(error, ConsentError):
        does = (
            "goes back all the same"
            if words.word == "undo"
            else "does it, `%torchenv undo` takes it back"
        )
        error.hint = f"{words.with_consent} {does}"


def _look_for(words: Words, lock: NotebookLock | None = None) -> Status:
    if lock is not None:
        from torchenv_magic.project.restoring import restore_request

        # Of the release that is locked the catalog knows all, and uv's cache may be all there is.
        return read_status(
            restore_request(lock, words.request.backend), index_base=words.index_base
        )
    if words.word == "lock":  # what is chosen here plays no part in it
        return read_status()
    # Who names a folder of wheels may have no network, and an undo needs none.
    offline = words.find_links or words.word == "undo"
    return read_status(
        words.request, refresh="never" if offline else "stale", index_base=words.index_base
    )


def _cancelled(words: Words) -> InstallCancelled:
    if words.word == "new-kernel":
        return InstallCancelled("Cancelled; nothing of the kernel was kept")
    if words.word == "lock":
        return InstallCancelled("Cancelled; the notebook is as it was")
    return InstallCancelled("Cancelled; the environment is as it was")


def _stop(job: Job, view: _View) -> None:
    """Wait for the end of a job that is to stop, however often the person presses Interrupt."""
    said = False
    while not job.ended.is_set():
        with contextlib.suppress(KeyboardInterrupt):
            job.cancel()
            if not said:
                said = True
                view.say("Stopping…")
            job.ended.wait()


# -------------------------------------------------------------------------------------- the ending


@dataclass(frozen=True, slots=True)
class _Ending:
    """What follows an install that changed something."""

    shell: InteractiveShell
    front_end: FrontEnd
    restart: Restart
    view: _View
    result: Result
    words: Words

    def go(self) -> Verification | None:
        importlib.invalidate_caches()
        effects = describe_session(self.shell, self.result.changed)
        if not wants_restart(self.words, self.front_end, effects):
            return self._stay(effects)
        choice = self.restart.prepare()
        if choice.restarts:
            stops = has_code_below(self.shell, self.front_end.cell_source or "")
            if not stops:  # a cell that ends early can place none
                _place_verification_cell(self.shell, self.front_end)
            self._restart_kernel(choice)
            if stops:
                _stop_cell(self.shell)
            return None
        if effects.must_restart or self.words.restart == "always":
            self._tell(choice, effects)
            return None
        return self._stay(effects)

    def _stay(self, effects: SessionEffects) -> Verification | None:
        if not effects.must_restart:
            self.view.say(
                f"{self.result}.{self._kept(effects)} Nothing of it was loaded here, so the "
                "session goes on.",
                tone="good",
            )
            return _proven(_verification(self.front_end, read_environment()))
        if not self.front_end.interactive:
            self.view.say(f"{self.result}.", tone="good")
            names = " and ".join(item.name for item in effects.loaded)
            verb = "was" if len(effects.loaded) == 1 else "were"
            word = "`%torchenv restore`" if self.words.word == "restore" else "`%torchenv install`"
            raise RestartError(
                f"{names} {verb} imported before the install replaced it: the environment is the "
                "new one, this process still holds the old",
                hint=f"put {word} before the first import, and run the notebook again",
            )
        choice = self.restart.prepare()
        if self.words.restart == "never":
            self._tell(choice, effects)
            return None
        self.view.say(f"{self.result}.", tone="good")
        self.restart.abort_queue()
        raise RestartError(
            f"{effects.loaded_words}{self._kept(effects)}",
            hint=f"save what you need; {choice.tell[0].lower()}{choice.tell[1:]}",
        )

    def _kept(self, effects: SessionEffects) -> str:
        """Return why the kernel was not restarted, where nobody said that it should not be."""
        if self.words.restart is not None or not effects.holds_work:
            return ""
        return f" The kernel was not restarted: {effects.lost_words}"

    def _tell(self, choice: RungChoice, effects: SessionEffects) -> None:
        """Prove the new environment in another process, and say what to press for this one."""
        if self.front_end.kind != "terminal":  # there it would be typed into the old process
            _place_verification_cell(self.shell, self.front_end)
        verification = verify_in_child()
        stops = effects.must_restart and self.front_end.kind in _SENDS_CELLS_ONE_BY_ONE
        loaded = f" {effects.loaded_words}" if effects.must_restart else ""
        lead = f"{self.result}." if stops else f"{self.result}.{loaded} {choice.tell}."
        self.view.show(verification, lead=lead)
        if self.front_end.kind == "colab":
            modules = [module for item in effects.loaded for module in item.modules]
            display(colab_restart_button(modules), raw=True)  # type: ignore[no-untyped-call]
        self.restart.abort_queue()
        verification.raise_for_failure()
        if stops:
            raise RestartError(
                effects.loaded_words.removesuffix("."),
                hint=f"{choice.tell[0].lower()}{choice.tell[1:]}",
            )

    def _restart_kernel(self, choice: RungChoice) -> None:
        self.view.say(f"{self.result}. Restarting the kernel…", tone="good")
        lead = f"{self.result}; the kernel was restarted. Run your other cells again."
        self.restart.run(
            choice,
            display_id=self.view.display_id,
            fresh_kernel_code=fresh_kernel_code(self.view.display_id, lead),
            after=self.view.bundle(f"{lead} The verification cell shows whether PyTorch works."),
            on_failure=self._not_restarted,
        )
        # Cells that wait (Run All) would run in the old process, and so would the rest of this one.
        self.restart.abort_queue()

    def _not_restarted(self, error: RestartError) -> None:
        """Say what to press, and meanwhile prove the new environment in another process."""
        self.view.fail(error, f"{self.result}. {error}")
        lead = f"{self.result}. {error.message}. {error.hint}."
        threading.Thread(
            target=lambda: self.view.show(verify_in_child(), lead=lead),
            name="torchenv-verify",
            daemon=True,
        ).start()


class _RestOfCellDropped(Exception):  # noqa: N818  (nothing went wrong)
    """Ends a cell whose other lines would run in a process that is about to end."""


def _stop_cell(shell: InteractiveShell) -> None:
    before: tuple[Any, Any] = (shell.custom_exceptions, shell.CustomTB)

    def handle(*_: object, **__: object) -> None:
        # The person's own handler, which has to be there where the restart fails.
        shell.custom_exceptions, shell.CustomTB = before

    # A handler of its own, as any error that is shown would look like a failure of the install.
    shell.set_custom_exc((_RestOfCellDropped,), handle)  # type: ignore[no-untyped-call]
    raise _RestOfCellDropped


def wants_restart(words: Words, front_end: FrontEnd, effects: SessionEffects) -> bool:
    """Return whether the kernel is to be restarted after a change.

    By default it is, but never in a run that nobody watches, and not without being asked where the
    session holds what took work.
    """
    if not front_end.interactive or words.restart == "never":
        return False
    if words.restart == "auto":
        return effects.must_restart
    if words.restart == "always":
        return True
    return not effects.holds_work


def _place_verification_cell(shell: InteractiveShell, front_end: FrontEnd) -> None:
    # A cell can run elsewhere (ipykernel 7's subshells), and only the main one's reply carries it.
    if threading.current_thread() is threading.main_thread():
        place_verification_cell(shell, front_end)


def _proven(verification: Verification) -> Verification:
    if not verification.passed:
        # The table first: an error shows its message only.
        display(verification)  # type: ignore[no-untyped-call]
        verification.raise_for_failure()
    return verification


def _verification(front_end: FrontEnd, environment: Environment) -> Verification:
    """Prove this session where a person sees it crash; else a child process, which may."""
    try:
        return verify_here(environment) if front_end.interactive else verify_in_child(environment)
    except KeyboardInterrupt:
        raise VerificationError(
            "The verification was interrupted; what is installed stays",
            hint="run `%torchenv verify` to know whether it works",
        ) from None


# ---------------------------------------------------------------------------------------- the view


def _view(front_end: FrontEnd) -> _View:
    if front_end.kind in ("terminal", "console"):
        # In a kernel the standard output is never a terminal, but the console prints it on one.
        return _TextView(moving=front_end.kind == "console" or sys.stdout.isatty())
    return _View()


class _View:
    """The one output of a word that takes a while: progress, then what became of it."""

    def __init__(self) -> None:
        self.display_id = f"torchenv-{uuid4().hex}"
        self._shown = False
        self._last: JobState | None = None

    def progress(self, state: JobState) -> None:
        if state is self._last:
            return
        self._last = state
        text = state.message
        if state.bytes is not None:
            text += f"\n{progress_words(state.bytes)}"
        html = progress_html(
            state.message,
            state.bytes,
            state.log,
            count=state.count,
            phase=state.phase,
            plan=state.plan,
        )
        self._put({"text/html": html, "text/plain": text})

    def finish(self, state: JobState) -> None:
        """Show what was not looked at before the end; what follows takes the place of the rest."""

    def warn(self, texts: Iterable[str]) -> None:
        """Say what selection warns of, in outputs of their own that stay."""
        for text in texts:
            html = message_html(f"Warning: {text}", tone="warn")
            bundle = {"text/html": html, "text/plain": f"warning: {text}"}
            display(bundle, raw=True)  # type: ignore[no-untyped-call]

    def bundle(self, text: str, *, tone: str = "") -> dict[str, str]:
        """Return what `say` shows, by MIME type."""
        return {"text/html": message_html(text, tone=tone), "text/plain": text}

    def say(self, text: str, *, tone: str = "") -> None:
        self._put(self.bundle(text, tone=tone))

    def tell(self, made: Made, text: str, *, hint: str = "", tone: str = "good") -> None:
        """Say what was locked, and where it is; what a lock has not is folded."""
        first, *left_out = str(made).splitlines()
        html = message_html(
            f"{first} {text}",
            tone=tone,
            hint=hint,
            detail="\n".join(left_out),
            detail_title="what it does not have, and why",
        )
        lines = [f"{first} {text}", *([f"hint: {hint}"] if hint else []), *left_out]
        self._put({"text/html": html, "text/plain": "\n".join(lines)})

    def fail(self, error: TorchEnvError, text: str) -> None:
        """Leave what uv said, folded: the message itself is the cell's error."""
        html = message_html(text, detail=error.detail)
        self._put({"text/html": html, "text/plain": text})

    def show(self, verification: Verification, *, lead: str) -> None:
        self._put(verification_bundle(verification, lead=lead))

    def clear(self) -> None:
        if self._shown:
            self._put({"text/html": "", "text/plain": ""})

    def _put(self, bundle: Mapping[str, object]) -> None:
        marked = {**bundle, OUTPUT_MIME: {"id": self.display_id}}
        display(  # type: ignore[no-untyped-call]
            marked, raw=True, display_id=self.display_id, update=self._shown
        )
        self._shown = True


class _TextView(_View):
    """The same for a terminal, where an output can't be replaced: each new thing is a new line."""

    def __init__(self, *, moving: bool) -> None:
        super().__init__()
        self._moving = moving
        self._told = 0
        self._columns = 0
        """How many are taken on the line that is written over and over."""

    def progress(self, state: JobState) -> None:
        self.finish(state)
        if state.bytes is not None and self._moving and state is not self._last:
            text = progress_words(state.bytes)[:79]
            print(f"\r{text:<{self._columns}}", end="", flush=True)  # noqa: T201
            self._columns = len(text)
        self._last = state

    def finish(self, state: JobState) -> None:
        for message in state.said[self._told :]:
            self.say(message)
        self._told = len(state.said)

    def warn(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.say(f"warning: {text}")

    def say(self, text: str, *, tone: str = "") -> None:  # noqa: ARG002
        self.clear()
        print(text, flush=True)  # noqa: T201

    def tell(self, made: Made, text: str, *, hint: str = "", tone: str = "good") -> None:  # noqa: ARG002
        self.say("\n".join([f"{made}", text, *([f"hint: {hint}"] if hint else [])]))

    def fail(self, error: TorchEnvError, text: str) -> None:
        self.clear()
        for line in error.detail.strip().splitlines():
            self.say(f"  {line}")
        self.say(text)

    def show(self, verification: Verification, *, lead: str) -> None:
        self.say(f"{lead}\n{verification}")

    def clear(self) -> None:
        if self._columns:
            print(f"\r{'':<{self._columns}}\r", end="", flush=True)  # noqa: T201
            self._columns = 0


def _warnings(status: Status, words: Words) -> list[str]:
    selection = status.selection
    # Where there is no backend they are the words of the error that follows.
    warnings = selection.warnings if selection.backend or words.request.backend else ()
    return [*warnings, *filter(None, (status.recovered,))]


_WORDS = {
    "": _picker,
    "status": _status,
    "list": _list,
    "plan": _plan,
    "install": _install,
    "verify": _verify,
    "doctor": _doctor,
    "undo": _undo,
    "history": _history,
    "lock": _lock,
    "restore": _restore,
    "export": _export,
    "new-kernel": _new_kernel,
}
