"""The picker: what is here, what is chosen and why, what else there is, what it costs, one button.

Plain ipywidgets, so that it works wherever these do. What can be done is in `Job`, what is known in
`PickerModel`, what is on the screen in `picker_look` and `picker_view`; here they meet. Nothing is
fetched or changed before a click.

A kernel has one picker. Where it is opened again, in another cell or by a page that was loaded
again, the same one is shown: it finds the install that runs, and there are never two.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from IPython.display import display

from torchenv_magic.builds.current import is_offline, is_stale
from torchenv_magic.environment import FAMILY_MEMBERS, Environment
from torchenv_magic.errors import ConsentError, InstallCancelled, TargetError, TorchEnvError
from torchenv_magic.installation.install import install_plan
from torchenv_magic.installation.new_kernel import Made, OwnKernel, free_name, read_places
from torchenv_magic.installation.plan import Plan, ask, looks_satisfied
from torchenv_magic.installation.planning import IndexUnreachableError
from torchenv_magic.installation.settings import mirror_base
from torchenv_magic.installation.undo import read_undo
from torchenv_magic.installation.uv import find_uv
from torchenv_magic.notebook.after_restart import fresh_kernel_code, verify_in_child
from torchenv_magic.notebook.front_end import FrontEnd, read_session
from torchenv_magic.notebook.interrupt import Interruptible
from torchenv_magic.notebook.job import Job, UndoJob, expected
from torchenv_magic.notebook.kernel_job import KernelJob, check_front_end
from torchenv_magic.notebook.lock_offer import LockOffer, read_lock_offer
from torchenv_magic.notebook.picker_look import (
    BUSY,
    EDITABLE,
    TITLE,
    PickerModel,
    PickerState,
    choices,
    look,
    obstacle,
    offer_of,
    state_of_error,
    state_of_job,
)
from torchenv_magic.notebook.picker_view import PickerView
from torchenv_magic.notebook.plugin import OUTPUT_MIME
from torchenv_magic.notebook.rendering import message_html, status_html
from torchenv_magic.notebook.restart import (
    Restart,
    RungChoice,
    colab_restart_button,
    how_to_choose,
    how_to_restart,
)
from torchenv_magic.notebook.server_preinstall import JoinJob, Preinstall, read_preinstall
from torchenv_magic.notebook.session import SessionEffects, describe_session
from torchenv_magic.notebook.verification_table import verification_bundle
from torchenv_magic.preinstall.place import jupyter_folder
from torchenv_magic.selection import Request
from torchenv_magic.status import Status, read_status
from torchenv_magic.words import parse_request

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["Picker", "open_picker"]

logger = logging.getLogger(__name__)

Purpose = Literal["plan", "verify", "install", "make", "restore", "undo", "join"]
"""What a job is for: a click, but for `join`, which waits for what began with the server. `verify`
is a plan that is expected to have nothing to do; `make` makes a kernel of one's own, `restore`
installs what the notebook's lock says, `undo` undoes the last install."""

# A probe of a sick driver may take its whole bound: the picker does not wait for it that long.
_WAIT_FOR_STATUS_SECONDS = 0.12
_REDRAW_SECONDS = 0.15
# What the history of an environment calls it.
_COMMAND = "the picker"
# From here on no look at the machine changes what is shown.
_LATE = ("consenting", "asking", "made", "restarting", "verifying", "over")
# The second half of a double click on the button for a plan, which by then is the one that cancels.
_DOUBLE_CLICK_SECONDS = 0.4

# One for each shell, of which a process has one; a picker holds its shell, so both stay.
_pickers: dict[InteractiveShell, Picker] = {}


def open_picker(shell: InteractiveShell, front_end: FrontEnd) -> Picker:
    """Show the picker of this kernel in the running cell; for the magic, in the main thread."""
    picker = _pickers.get(shell)
    if picker is None or picker.is_over:
        picker = _pickers[shell] = Picker(shell, front_end)
    picker.show(front_end)
    return picker


class Picker:
    """One picker, in as many outputs as it was opened in."""

    def __init__(self, shell: InteractiveShell, front_end: FrontEnd) -> None:
        self.job: Job | None = None
        self._shell = shell
        self._front_end = front_end
        self._restart = Restart(shell, front_end)
        self._interrupt = Interruptible(shell)
        self._session: str | None = None
        self._displays: list[str] = []
        self._model = PickerModel(offline=is_offline(os.environ))
        self._effects = SessionEffects()
        self._before: dict[str, str] = {}
        self._stopping = False
        self._planned_at = 0.0
        self._redrawn = 0.0
        self._filled: tuple[object, ...] = ()
        self._filling = False
        self._by_hand = False
        self._named = False
        self._by_themselves = False
        """Whether the person goes their own way, and waits for nothing that began before."""
        self._chooses = False
        """Whether the person chooses, and does not want what the notebook's lock says."""
        self._kernel: OwnKernel | None = None
        self._looked_back_at: Environment | None = None
        self._built = threading.Event()
        self._looked = threading.Event()
        self._drawing = threading.RLock()
        # First of all: it looks while the widgets are made.
        self._start_to_look()
        self.view = PickerView(
            on_primary=self._guarded(self._on_primary),
            on_secondary=self._guarded(self._on_secondary),
            on_restart=self._guarded(self._on_restart),
            on_choice=self._guarded(self._on_choice),
            on_fields=self._guarded(self._on_fields),
            on_name=self._guarded(self._on_name),
            on_undo=self._guarded(self._on_undo),
        )
        self.view.draw(look(self._model))
        self._built.set()

    @property
    def status(self) -> Status | None:
        """What the last look found."""
        return self._model.status

    @property
    def state(self) -> PickerState:
        """How things stand."""
        return self._model.state

    @property
    def is_over(self) -> bool:
        """Whether what came of it stands in its place."""
        return self._model.state == "over"

    # ------------------------------------------------------------------------------------ showing

    def show(self, front_end: FrontEnd) -> None:
        """Display the picker; it fills itself in where the machine is slow to look at."""
        self._front_end = front_end
        self._restart = Restart(self._shell, front_end)
        self._set(restarts=front_end.kind == "jupyter")
        if self._displays and self._is_idle:
            self._chooses = False
            self._start_to_look()
        self._looked.wait(_WAIT_FOR_STATUS_SECONDS)
        with self._drawing:
            self._displays.append(f"torchenv-{uuid4().hex}")
            self._display(self._displays[-1], self._summary())

    def _summary(self) -> dict[str, Any]:
        """Return the widget with what stands in its place in a saved notebook."""
        status = self.status
        # What is shown in a saved notebook is not what is there when it is read.
        title = f"{TITLE}, when the picker was opened"
        return {
            **self.view.root._repr_mimebundle_(),
            "text/plain": f"{title}\n{status}" if status else title,
            "text/html": status_html(status, title=title) if status else message_html(title),
        }

    def _display(self, display_id: str, bundle: dict[str, Any], *, update: bool = False) -> None:
        marked = {**bundle, OUTPUT_MIME: {"id": display_id}}
        display(  # type: ignore[no-untyped-call]
            marked, raw=True, display_id=display_id, update=update
        )

    def _set(self, **changes: Any) -> None:  # noqa: ANN401  (as `replace` takes them)
        # The widgets are made in the magic's thread while the first look runs in its own.
        self._built.wait()
        with self._drawing:
            self._model = replace(self._model, **changes)
            self.view.draw(look(self._model))

    def _guarded(self, step: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                step()
            except Exception as error:  # noqa: BLE001  (JupyterLab shows a callback's nowhere)
                self._fail(expected(error))

        return run

    def _in_thread(self, step: Callable[[], None]) -> None:
        threading.Thread(target=self._guarded(step), name="torchenv-picker", daemon=True).start()

    # ------------------------------------------------------------------------------------ looking

    def _start_to_look(self) -> None:
        # An event of its own for each look: an earlier one that ends meanwhile says nothing of it.
        self._looked = threading.Event()
        threading.Thread(
            target=self._look, args=(self._looked,), name="torchenv-detect", daemon=True
        ).start()

    def _look(self, looked: threading.Event) -> None:
        try:
            self._look_here(looked)
        except Exception as error:  # noqa: BLE001  (a thread's exception would reach nobody)
            if self._is_idle:  # else it is the job that speaks
                self._fail(expected(error))
        finally:
            looked.set()

    def _look_here(self, looked: threading.Event) -> None:
        try:
            status = read_status()
        except Exception as exception:  # noqa: BLE001  (a thread's exception would reach nobody)
            self._set(error=expected(exception))
            return
        preinstall = read_preinstall()
        lock = self._read_lock(status)
        with self._drawing:
            self._model = replace(self._model, preinstall=preinstall, lock=lock)
            shown_without = bool(self._displays) and self.status is None
            has_ended = self.state == "locked" and self._model.error is not None
            if has_ended or self.state in ("cancelled", "failed", "offered"):
                # It was opened again to see how the install ended.
                self._refresh(status)
            elif self._is_idle:
                # The first look may be over before there are widgets to ask.
                is_new = self.status is None or self.state in (
                    "not possible",
                    "not yours",
                    "locked",
                )
                if is_new or self.view.values() == self._filled:
                    self._fill(status)
                else:
                    # Never under the hand of somebody who has begun to choose.
                    self._refresh(status)
                    self._rest()
        looked.set()
        if shown_without:
            with self._drawing:
                # What was shown before there was a status is what a saved notebook would keep.
                self._display(self._displays[-1], self._summary(), update=True)
        if self._has_uv():
            self._ask_index(status)

    def _read_lock(self, status: Status) -> LockOffer | None:
        try:
            return read_lock_offer(self._front_end.notebook_path, status)
        except Exception as error:  # noqa: BLE001  (the picker does all the rest without)
            logger.info("no look at the lock: %s", expected(error).message)
            return None

    def _has_uv(self) -> bool:
        try:
            find_uv()
        except TorchEnvError as error:
            if self._is_idle and self.state != "elsewhere":
                self._set(state="not possible", error=error)
            return False
        return True

    def _ask_index(self, before: Status) -> None:
        """Look again with what the index says by now, and redraw where the choice is another."""
        mirror = mirror_base(prefix=before.environment.prefix)
        if not is_stale(before.host.platform.wheel_platform, os.environ, mirror=mirror):
            return
        try:
            status = read_status(refresh="stale")
        except Exception as exception:  # noqa: BLE001  (what was shown before it stays right)
            logger.info("no second look: %s", expected(exception).message)
            return
        selection, shown = status.selection, before.selection
        differs = (selection.backend, selection.torch, selection.alternatives) != (
            shown.backend,
            shown.torch,
            shown.alternatives,
        )
        with self._drawing:
            # Never under the hand of somebody who has begun to choose.
            if differs and self._is_idle and self.view.values() == self._filled:
                self._fill(status)

    @property
    def _is_idle(self) -> bool:
        return self.job is None and self.state not in _LATE

    def _fill(self, status: Status) -> None:
        self._built.wait()
        with self._drawing:
            self._fill_choice(status)
            # A package that is there stays in step with torch, so it is part of what is asked.
            self._filling = True
            self.view.vision.value = status.environment.installed("torchvision") is not None
            self.view.audio.value = status.environment.installed("torchaudio") is not None
            self._filling = False
            self._filled = self.view.values()
            self._set(plan=None, error=None, job=None)
            self._rest()

    def _fill_choice(self, status: Status) -> None:
        self._filling = True
        self.view.offer(choices(status))
        self._filling = False
        self._by_hand = False
        self._set(status=status)

    def _rest(self) -> None:
        """Wait for the next click, in the state that the fields and the environment are in."""
        if self._looks_at_preinstall():
            return
        error = obstacle(self.status) if self.status is not None else None
        if error is not None:
            self._set(state=self._blocked(error), error=error)
            self._suggest_name()
        elif self._offers_lock:
            self._set(state="locked", error=None, restores=False, **self._costs())
        else:
            self._look_back()
            self._set(
                state="nothing to do" if self._is_satisfied() else "ready",
                error=None,
                restores=False,
                **self._costs(),
            )

    @property
    def _offers_lock(self) -> bool:
        lock = self._model.lock
        return not self._chooses and lock is not None and lock.stage == "open"

    def _looks_at_preinstall(self) -> bool:
        """Go on with what began with the server, where there is nothing better to do."""
        preinstall, status = self._model.preinstall, self.status
        if self._by_themselves or preinstall is None or status is None:
            return False
        if not preinstall.concerns(status):
            return False
        self._set(how_to_choose=self._how_to_choose(preinstall), error=None)
        if preinstall.stage != "running":
            self._set(state="elsewhere")
            return True
        self._stopping = False
        self._remember_packages(status)
        self.job = JoinJob(
            status,
            preinstall,
            on_change=self._on_progress,
            on_end=lambda job: self._on_end(job, "join"),
        )
        self._set(state=_state_of(self.job), job=self.job.state)
        self.job.start()
        return True

    def _how_to_choose(self, preinstall: Preinstall) -> str:
        """Return how a person takes that kernel where the notebook can't be given it from here."""
        kind = self._front_end.kind
        record = preinstall.record
        if kind == "jupyter" or not record.kernel:
            return ""
        title = record.kernel_title or record.kernel
        return how_to_choose(kind, name=record.kernel, display_name=title)

    def _remember_packages(self, status: Status) -> None:
        packages = status.environment.packages
        self._before = {package.name: package.version for package in packages}

    def _look_back(self) -> None:
        """Find out what the last install can be undone to, once for each look at what is there."""
        environment = self.status.environment if self.status is not None else None
        if environment is None or environment is self._looked_back_at:
            return
        self._looked_back_at = environment
        undo = read_undo(environment)
        # Where no PyTorch would be left there is nothing to verify: that is for the word.
        gone = undo is not None and any(
            change.name == "torch" and change.after is None for change in undo.changes
        )
        words = ""
        if undo is not None and not undo.problem and not gone:
            words = f"take {undo.title} away" if undo.only_removes else f"back to {undo.title}"
        self._set(undo=words)

    def _costs(self) -> dict[str, Any]:
        """Return what a restart after the install would take, for the model."""
        plan, status = self._model.plan, self.status
        packages = status.environment.packages if status is not None else ()
        # What is not planned yet is guessed to be what it mostly is: the family, as far as it is
        # there.
        changed = (
            [each.name for each in plan.changes]
            if plan is not None
            else [each.name for each in packages if each.name in FAMILY_MEMBERS]
        )
        effects = describe_session(self._shell, changed)
        return {"session": str(effects), "asks_first": effects.holds_work}

    def _blocked(self, obstacle: TorchEnvError) -> PickerState:
        """Return the state of a picker that can't install: a kernel of one's own may be a way."""
        status = self.status
        if not isinstance(obstacle, TargetError) or status is None:
            return "not possible"
        try:
            check_front_end(self._front_end.kind)
        except TargetError:
            return "not possible"
        fits = any(item.fits for item in status.selection.alternatives)
        return "not yours" if fits else "not possible"

    def _suggest_name(self) -> None:
        if self.state == "not yours" and not self._named and self.view.choice.value is not None:
            self._filling = True
            self.view.name.value = free_name(f"torch-{self.view.choice.value}", read_places())
            self._filling = False

    def _on_name(self) -> None:
        self._named = self._named or not self._filling
        if not self._filling and self.state == "not yours" and offer_of(self._model) is not None:
            # It was offered for the other name: with this one, a kernel could be replaced.
            self._rest()

    def _is_satisfied(self) -> bool:
        """Whether what is asked for seems to be here: cheap, since uv has the last word anyway."""
        plan, status = self._model.plan, self.status
        if plan is not None or status is None:
            return plan is not None and plan.nothing_to_do
        try:
            request = self.request()
        except TorchEnvError:
            return False
        if request.backend is None or status.torch is None:
            return False
        chosen = request.backend == status.selection.backend
        exclusion = status.selection.exclusion if chosen else None
        environment = status.environment
        question = ask(request, environment, request.backend, exclusion=exclusion)
        return looks_satisfied(question, environment)

    # ------------------------------------------------------------------------------------- asking

    def request(self) -> Request:
        """Return what the fields ask for.

        Raises
        ------
        RequestError
            A field is malformed.
        """
        view = self.view
        version = view.version.value.strip()
        torch = "torch"
        if version:
            torch += version if version[0] in "<>=!~" else f"=={version}"
        texts = [torch]
        texts += [box.description for box in (view.vision, view.audio) if box.value]
        texts += view.more.value.replace(",", " , ").split() if view.more.value else []
        texts = _rejoined(texts)
        names = parse_request(texts, backend=str(view.choice.value or "auto"))
        return Request(backend=names.backend, requirements=tuple(texts))

    def _asked(self) -> Request:
        """Return what is asked for by hand: a build that was chosen here is no wish."""
        request = self.request()
        return request if self._by_hand else replace(request, backend=None)

    def _choose_for(self, request: Request) -> tuple[Status, Request]:
        """Look at what is here now; return it, and the request with the build for it.

        Where nobody has chosen one by hand, the one that was chosen at first may not go with the
        packages and versions that were asked for since. Where none does, it stays, and its index
        has the last word.
        """
        if not self._by_hand:
            status = read_status(replace(request, backend=None))
            chosen = status.selection.backend
            if chosen is not None:
                if chosen != self.view.choice.value:
                    with self._drawing:
                        self._fill_choice(status)
                self._refresh(status)
                return status, replace(request, backend=chosen)
        status = read_status(request)
        self._refresh(status)
        return status, request

    def _refresh(self, status: Status) -> None:
        """Show what is installed now, and keep the choice as it was."""
        known = self.status
        if known is None:
            return
        shown = replace(
            known,
            environment=status.environment,
            installed_backend=status.installed_backend,
            recovered=status.recovered,
            unrepaired=status.unrepaired,
        )
        if shown != known:
            self._set(status=shown)

    def _on_choice(self) -> None:
        self._by_hand = self._by_hand or not self._filling
        self._on_fields()

    def _on_fields(self) -> None:
        if self._filling or self.state not in EDITABLE or self.status is None:
            return
        with self._drawing:
            self._set(plan=None)
            self._rest()

    def _on_primary(self) -> None:
        if self.state == "elsewhere":
            self._use_elsewhere()
        elif self.state == "locked":
            self._restore_lock()
        elif self.state == "nothing to do":
            self._begin("verify")
        elif self.state == "offered" and isinstance(self._model.error, IndexUnreachableError):
            offer = self._model.error.offers[0]
            if offer.losses:
                self._ask_consent(offer)
            else:
                self._begin("install", plan=offer)
        elif self.state == "not yours":
            # Where wheels from elsewhere were offered, the button names them.
            self._begin("make", consent=offer_of(self._model) is not None)
        elif self.state in EDITABLE:
            plan = self._model.plan
            # What is lost by it was shown, and is named on the button.
            self._begin("install", plan=plan if plan is not None and plan.losses else None)
        elif self.state == "not possible":
            self._verify("")
        elif self.state == "consenting":
            self._fail(InstallCancelled("Not installed; the environment is as it was"))
        elif self.state == "asking":
            self._keep() if self._model.may_keep else self._leave()
        elif self.state == "made":
            self._say_how_to_choose()

    def _on_secondary(self) -> None:
        if self.state == "preinstalling" and self.job is not None:
            self.job.cancel()
        elif self.state == "elsewhere":
            self._go_their_way()
        elif self.state == "locked":
            with self._drawing:
                self._chooses = True
                self._rest()
        elif self.state == "not yours":
            self._verify("")
        elif self.state in EDITABLE:
            self._begin("plan")
        elif self.state in BUSY and time.monotonic() - self._planned_at > _DOUBLE_CLICK_SECONDS:
            self._cancel()

    def _restore_lock(self) -> None:
        offer = offer_of(self._model)
        if offer is not None and offer.losses:
            self._ask_consent(offer)
        else:
            self._begin("restore", plan=offer)

    def _on_undo(self) -> None:
        if self.state in EDITABLE:
            self._begin("undo")

    def _cancel(self) -> None:
        with self._drawing:
            job = self.job
            if job is None:
                return
            self._stopping = True
            self._set(state="stopping")
        job.cancel()

    def _begin(self, purpose: Purpose, *, plan: Plan | None = None, consent: bool = False) -> None:
        with self._drawing:
            status = self.status
            if self.job is not None or status is None:
                return
            self._filled = ()  # a second look that ends from here on redraws nothing
            self._by_themselves = True
            lock = self._model.lock.lock if self._model.lock is not None else None
            if purpose == "restore" and lock is None:
                return
            if plan is not None:
                request = plan.request
            else:
                request = Request() if purpose in ("restore", "undo") else self.request()
            self._chooses = self._chooses or purpose != "restore"
            self._session = read_session(self._shell)
            self._remember_packages(status)
            self._stopping = False
            self._planned_at = time.monotonic() if purpose == "plan" else 0.0
            if purpose == "undo":
                self.job = UndoJob(
                    status,
                    request,
                    command=_COMMAND,
                    on_change=self._on_progress,
                    on_end=lambda job: self._on_end(job, purpose),
                )
            elif purpose == "restore" and lock is not None:
                # What restores has imports of its own, and most notebooks have no lock.
                from torchenv_magic.notebook.lock_jobs import RestoreJob

                self.job = RestoreJob(
                    status,
                    lock,
                    plan=plan,
                    command=_COMMAND,
                    on_change=self._on_progress,
                    on_end=lambda job: self._on_end(job, purpose),
                )
            elif purpose == "make":
                self.job = KernelJob(
                    status,
                    request,
                    name=self.view.name.value.strip(),
                    consent=consent,
                    command=_COMMAND,
                    on_change=self._on_progress,
                    on_end=lambda job: self._on_end(job, purpose),
                )
            else:
                self.job = Job(
                    status,
                    request,
                    plan=plan,
                    only_plan=purpose != "install",
                    command=_COMMAND,
                    look=lambda: self._choose_for(plan.request if plan else self.request()),
                    asked=self._asked,
                    on_change=self._on_progress,
                    on_end=lambda job: self._on_end(job, purpose),
                )
            self._set(
                state=_state_of(self.job),
                job=self.job.state,
                error=None,
                restores=purpose == "restore",
            )
        self._interrupt.begin(self._cancel)
        self.job.start()

    def _on_progress(self, job: Job) -> None:
        now = time.monotonic()
        state = job.state
        many = state.bytes is not None or state.count is not None
        if many and now - self._redrawn < _REDRAW_SECONDS:
            return
        self._redrawn = now
        with self._drawing:
            if self.job is job:
                if isinstance(job, JoinJob):
                    self._model = replace(self._model, preinstall=job.preinstall)
                stage = _state_of(job)
                self._set(state="stopping" if self._stopping else stage, job=job.state)

    # ------------------------------------------------------------------------------------- ending

    def _on_end(self, job: Job, purpose: Purpose) -> None:
        self._guarded(lambda: self._finish(job, purpose))()

    def _finish(self, job: Job, purpose: Purpose) -> None:
        state = job.state
        self._interrupt.end()
        if isinstance(job, JoinJob):
            self._joined(job)
        elif isinstance(state.error, ConsentError) and state.plan is not None:
            self._ask_consent(state.plan)
        elif state.cancelled and purpose == "make":
            self._fail(InstallCancelled("Cancelled; nothing of the kernel was kept"))
        elif state.error is not None:
            self._fail(state.error)
        elif state.made is not None:
            self._made(state.made)
        elif state.result is None and state.plan is not None:
            self._planned(state.plan, purpose)
        elif state.result is not None and not state.result.changed:
            self._found(str(state.result).removesuffix("."))
        elif state.result is not None:
            self._installed(str(state.result), state.result.changed)

    def _planned(self, plan: Plan, purpose: Purpose) -> None:
        if purpose == "verify" and plan.nothing_to_do:
            # Nothing is changed, but that it was asked for: verification compares with that.
            install_plan(plan)
            self._verify("Nothing to do: what you asked for is installed already")
            return
        with self._drawing:
            self.job = None
            self._set(plan=plan, job=None)
            self._rest()

    def _ask_consent(self, plan: Plan) -> None:
        """Show what would be lost, and go on with this very plan or not at all."""
        with self._drawing:
            self.job = None
            self._set(state="consenting", plan=plan, job=None, error=None)
            self._set(**self._costs())

    # ------------------------------------------------------------- what began with the server

    def _go_their_way(self) -> None:
        """Offer what there is to choose, whatever began with the server."""
        with self._drawing:
            self.job = None
            self._by_themselves = True
            self._model = replace(self._model, job=None)
            self._rest()

    def _joined(self, job: JoinJob) -> None:
        """Go on where the wait has ended: look anew at what is here now."""
        self._model = replace(self._model, preinstall=job.preinstall)
        if job.state.cancelled:
            self._go_their_way()
            return
        if job.state.error is not None:
            self._fail(job.state.error)
            return
        status = read_status()
        lock = self._read_lock(status)
        with self._drawing:
            self._model = replace(self._model, job=None, lock=lock)
            # What the import system knows of the folders is from before.
            importlib.invalidate_caches()
            changed = self._changed_packages(status)
            self.job = None
            if not describe_session(self._shell, changed).must_restart:
                self._fill(status)
                return
        # What this session has loaded was replaced under it.
        self._installed("PyTorch was installed as the server started", changed)

    def _use_elsewhere(self) -> None:
        preinstall = self._model.preinstall
        if preinstall is None or not preinstall.has_kernel:
            return
        record = preinstall.record
        target = Path(record.target)
        self._kernel = OwnKernel(
            name=record.kernel,
            display_name=record.kernel_title or record.kernel,
            environment=target,
            specification=jupyter_folder(target) / "kernels" / record.kernel,
        )
        self._session = read_session(self._shell)
        self._set(state="restarting", lead=str(preinstall), switches=True)
        # A cell that runs now may hold more when it ends.
        self._restart.between_cells(self._guarded(self._weigh_switch))

    # -------------------------------------------------------------------- a kernel of one's own

    def _made(self, made: Made) -> None:
        self._kernel = made.kernel
        with self._drawing:
            self.job = None
            self._set(state="restarting", job=None, lead=str(made), switches=True)
        if self._front_end.kind == "jupyter":
            # A cell that runs now may hold more when it ends.
            self._restart.between_cells(self._guarded(self._weigh_switch))
        else:
            self._say_how_to_choose()

    def _weigh_switch(self) -> None:
        effects = describe_session(self._shell, ())
        if effects.holds_work:
            self._set(state="made", session=effects.lost_by("a switch"))
        else:
            self._switch()

    def _say_how_to_choose(self, why: str = "") -> None:
        kernel = self._kernel
        if kernel is None:
            return
        how = how_to_choose(
            self._front_end.kind, name=kernel.name, display_name=kernel.display_name
        )
        text = f"{self._model.lead}.{why} {how}."
        self._replace({"text/html": message_html(text, tone="good"), "text/plain": text})

    def _switch(self) -> None:
        kernel, lead = self._kernel, self._model.lead
        if kernel is None:
            return
        text = f"{lead}. Switching this notebook to it…"
        self._replace({"text/html": message_html(text, tone="good"), "text/plain": text})
        after = (
            f"{lead}; this notebook has it now. The verification cell shows whether PyTorch works."
        )
        self._restart.switch(
            kernel.name,
            display_id=self._displays[-1],
            after={"text/html": message_html(after, tone="good"), "text/plain": after},
            on_failure=lambda reason: self._say_how_to_choose(
                f" The notebook was not switched to it: {reason}."
            ),
            session=self._session,
        )

    def _found(self, words: str) -> None:
        """Go on where nothing was to do: mostly because another process's install had done it."""
        names = self._changed_packages(self.status) if self.status is not None else []
        if describe_session(self._shell, names).must_restart:
            # What this session has loaded was replaced under it.
            self._installed("Another install did what you asked for", names)
        else:
            self._verify(words)

    def _changed_packages(self, status: Status) -> list[str]:
        """Return the names of what is of another version now than before the wait."""
        now = {package.name: package.version for package in status.environment.packages}
        return sorted(
            name for name in {*now, *self._before} if now.get(name) != self._before.get(name)
        )

    def _installed(self, lead: str, changed: Sequence[str]) -> None:
        with self._drawing:
            # There is nothing left to cancel.
            self.job = None
            self._set(state="restarting", job=None, lead=lead)
        choice = self._restart.prepare()
        if choice.restarts:
            # A cell that runs now may hold more when it ends.
            weigh = self._guarded(lambda: self._weigh(choice, changed))
            self._restart.between_cells(weigh)
            return
        self._effects = describe_session(self._shell, changed)
        if self._effects.must_restart:
            self._verify(f"{lead}. {choice.tell}")
            self._offer_native_restart()
        else:
            self._keep()

    def _weigh(self, choice: RungChoice, changed: Sequence[str]) -> None:
        self._effects = describe_session(self._shell, changed)
        self._set(session=str(self._effects))
        if self._effects.holds_work:
            self._set(state="asking", may_keep=not self._effects.must_restart)
        else:
            self._restart_kernel(choice)

    def _keep(self) -> None:
        self._verify(f"{self._model.lead}. Nothing of it was loaded here, so the session goes on")

    def _leave(self) -> None:
        tell = how_to_restart(self._front_end.kind)
        text = f"{self._model.lead}. {self._effects.loaded_words} {tell}."
        self._replace({"text/html": message_html(text), "text/plain": text})

    def _on_restart(self) -> None:
        if self.state == "consenting":
            purpose: Purpose = "restore" if self._model.restores else "install"
            self._begin(purpose, plan=self._model.plan)
            return
        if self.state == "made":
            self._session = read_session(self._shell)
            self._switch()
            return
        if self.state != "asking":
            return
        self._session = read_session(self._shell)
        self._set(state="restarting")
        # It asks servers, for seconds.
        self._in_thread(lambda: self._restart_kernel(self._restart.prepare()))

    def _restart_kernel(self, choice: RungChoice) -> None:
        # Before the restart: a widget whose kernel is gone looks alive, and does nothing.
        text = f"{self._model.lead}. Restarting the kernel…"
        elsewhere = (
            f"{self._model.lead}. The kernel is restarted; what came of it stands where the picker "
            "was opened last."
        )
        self._replace(
            {"text/html": message_html(text, tone="good"), "text/plain": self._model.lead},
            older={"text/html": message_html(elsewhere), "text/plain": elsewhere},
        )
        lead = f"{self._model.lead}; the kernel was restarted."
        display_id = self._displays[-1]

        def failed(error: TorchEnvError) -> None:
            text = f"{self._model.lead}. {error.message}"
            self._replace({"text/html": message_html(text, hint=error.hint), "text/plain": text})
            self._in_thread(lambda: self._prove(f"{text}. {error.hint}"))

        after = f"{lead} The verification cell shows whether PyTorch works."
        self._restart.run(
            choice,
            display_id=display_id,
            fresh_kernel_code=fresh_kernel_code(display_id, lead),
            after={"text/html": message_html(after), "text/plain": after},
            on_failure=failed,
            session=self._session,
        )

    def _verify(self, lead: str) -> None:
        """Prove in a process of its own what is installed, and put the proof in the picker's place.

        `lead` is what happened, in a sentence without its full stop.
        """
        with self._drawing:
            self.job = None
            self._set(state="verifying", lead=lead)
        self._in_thread(lambda: self._prove(lead))

    def _prove(self, lead: str) -> None:
        verification = verify_in_child()
        self._replace(verification_bundle(verification, lead=f"{lead}." if lead else ""))

    def _offer_native_restart(self) -> None:
        if self._front_end.kind == "colab":
            modules = [module for item in self._effects.loaded for module in item.modules]
            display(colab_restart_button(modules), raw=True)  # type: ignore[no-untyped-call]

    def _replace(self, bundle: dict[str, Any], *, older: dict[str, Any] | None = None) -> None:
        """Put something static into the picker's place; `older` where it was opened before."""
        with self._drawing:
            *before, last = self._displays
            for display_id in before:
                self._display(display_id, older or bundle, update=True)
            self._display(last, bundle, update=True)
            self.job = None
            self._model = replace(self._model, state="over")
            self.view.end(str(bundle["text/html"]))

    def _fail(self, error: TorchEnvError) -> None:
        if self._model.lead:
            # All is installed, and what failed came after: there is no install to go back to.
            text = f"{self._model.lead}. {error.message}"
            html = message_html(text, hint=error.hint, detail=error.detail)
            self._replace({"text/html": html, "text/plain": text})
            return
        with self._drawing:
            self.job = None
            state = state_of_error(error)
            reason = obstacle(self.status) if self.status is not None else None
            if reason is not None:
                state = self._blocked(reason)
            elif self._model.restores:
                state = "locked"
            self._set(state=state, job=None, plan=None, error=error)


def _state_of(job: Job) -> PickerState:
    if isinstance(job, JoinJob):
        return "preinstalling"
    if isinstance(job, KernelJob):
        return "making"
    return "undoing" if isinstance(job, UndoJob) else state_of_job(job.state)


def _rejoined(texts: list[str]) -> list[str]:
    """Return requirements from a field's words: `numpy >= 2` and `a>=1,<2` are one each."""
    joined: list[str] = []
    for text in texts:
        glued = joined and (text[0] in "<>=!~,;[@" or joined[-1][-1] in "<>=!~,;@")
        if glued:
            joined[-1] += text
        else:
            joined.append(text)
    return [text.strip(",") for text in joined]
