"""One install, run in a thread, so that the kernel stays free: its state, its cancel, its end."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from torchenv_magic.errors import BusyError, InstallCancelled, TorchEnvError
from torchenv_magic.installation.install import Result, install_plan
from torchenv_magic.installation.new_kernel import Made
from torchenv_magic.installation.plan import Plan
from torchenv_magic.installation.planning import make_plan
from torchenv_magic.installation.progress import Bytes, Event, Phase
from torchenv_magic.installation.settings import Sites
from torchenv_magic.installation.undo import undo_install
from torchenv_magic.installation.uv import Cancellation
from torchenv_magic.installation.waiting import wait_for_others
from torchenv_magic.selection import Request
from torchenv_magic.status import Status

if TYPE_CHECKING:
    from torchenv_magic.project.lock_making import Made as Locked

__all__ = ["Job", "JobStage", "JobState", "UndoJob", "expected"]

JobStage = Literal["joining", "planning", "installing"]
"""`joining` is waiting for another process's install of the same environment."""

_LOG_LINES = 500
_MOST_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """How far a job is: one record, replaced as a whole, so that any thread may read it."""

    stage: JobStage = "planning"
    phase: Phase = "resolve"
    message: str = "Starting"
    said: tuple[str, ...] = ()
    """Every message so far, for a view that leaves them standing one below the other."""
    bytes: Bytes | None = None
    count: tuple[int, int] | None = None
    """(done, all) of the packages that are ready, or linked."""
    fraction: float | None = None
    """How far it is, from 0 to 1, where nothing is told in bytes or packages."""
    log: tuple[str, ...] = ()
    plan: Plan | None = None
    result: Result | None = None
    made: Made | None = None
    """The kernel that came of it, where one was to be made."""
    locked: Locked | None = None
    """The lock that came of it, where one was to be made."""
    error: TorchEnvError | None = None
    """What ended it; an unexpected exception is here as one too, with its traceback as detail."""

    @property
    def cancelled(self) -> bool:
        """Whether the person stopped it."""
        return isinstance(self.error, InstallCancelled)


class Job:
    """Plan, or plan and install, in a thread of its own.

    `look` says anew what is here and what is asked for, before the plan is made. A job that can
    look waits for another install of this environment and then goes on from a new look; for one
    that can't it is an error. `looked` says that `status` is a look of just now.

    `asked` says what the person asks for now. A page sends a click at once, and what was typed just
    before it when the kernel has taken what was typed before that, which can be later: so a plan
    for anything else than what is asked for at its end is made anew.

    `command` is the line that asked, for the history.

    `on_change` is called in the job's thread after each change of `state`; `on_end` once, at its
    end.
    """

    def __init__(
        self,
        status: Status,
        request: Request,
        *,
        sites: Sites | None = None,
        consent: bool = False,
        plan: Plan | None = None,
        only_plan: bool = False,
        look: Callable[[], tuple[Status, Request]] | None = None,
        looked: bool = False,
        asked: Callable[[], Request] | None = None,
        command: str = "",
        on_change: Callable[[Job], None] | None = None,
        on_end: Callable[[Job], None] | None = None,
    ) -> None:
        self.state = JobState(plan=plan)
        self.ended = threading.Event()
        self._status = status
        self._request = request
        self._sites = sites
        self._consent = consent
        self._only_plan = only_plan
        self._look = look
        self._looked = looked
        self._asked = asked
        self._command = command
        self._on_change = on_change
        self._on_end = on_end
        self._cancellation = Cancellation()
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._thread = threading.Thread(target=self._run, name="torchenv-install", daemon=True)

    def start(self) -> Job:
        """Start the thread; return this job."""
        self._thread.start()
        return self

    def cancel(self) -> None:
        """Stop uv now; what was begun is put back before `ended` is set."""
        self._cancellation.cancel()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001  (a thread's exception would reach nobody)
            self._set(error=expected(error))
        finally:
            self.ended.set()
            if self._on_end is not None:
                self._on_end(self)

    def _work(self) -> None:
        status, request, plan = self._status, self._request, self.state.plan
        # A plan that was handed in is one that a person agreed to, wherever its wheels lie.
        consent = self._consent or plan is not None
        agreed = set(plan.losses) if plan is not None else set()
        asked: Request | None = None
        rounds = 0
        while True:
            if self._look is not None:
                if not self._only_plan and self._has_waited(status):
                    plan, self._looked = None, False
                if plan is None and not self._looked:
                    self._set(stage="planning", message="Looking at what is here", plan=None)
                    asked = self._asked() if self._asked is not None else None
                    status, request = self._look()
            if plan is None:
                try:
                    plan = self._make_plan(status, request, consent=consent)
                except TorchEnvError:
                    if not self._is_outdated(asked):
                        raise
                if plan is None or self._is_outdated(asked):
                    plan, self._looked = None, False
                    continue
            self._set(plan=plan)
            if self._only_plan:
                return
            # Of one that was made anew the person has agreed to nothing more.
            if not self._consent and not agreed.issuperset(plan.losses):
                plan.check_consent()
            self._set(stage="installing")
            try:
                result = install_plan(
                    plan,
                    command=self._command,
                    on_event=self._tell,
                    cancellation=self._cancellation,
                )
            except BusyError:
                # Another install began, or ended, while this one planned; what is in the way again
                # and again may be there to stay.
                rounds += 1
                if self._look is None or rounds == _MOST_ROUNDS:
                    raise
                plan, self._looked = None, False
            else:
                self._set(result=result)
                return

    def _make_plan(self, status: Status, request: Request, *, consent: bool) -> Plan:
        return make_plan(
            status.selection,
            status.environment,
            request,
            sites=self._sites,
            consent=consent,
            on_event=self._tell,
            cancellation=self._cancellation,
        )

    def _is_outdated(self, asked: Request | None) -> bool:
        return self._asked is not None and self._asked() != asked

    def _has_waited(self, status: Status) -> bool:
        """Wait until no other install works on the environment; return whether one did."""

        def tell(event: Event) -> None:
            self._set(
                stage="joining",
                phase=event.phase,
                message=event.message,
                bytes=event.bytes,
                count=event.count,
            )

        return wait_for_others(status.environment, on_event=tell, cancellation=self._cancellation)

    def _tell(self, event: Event) -> None:
        changes: dict[str, object] = {"phase": event.phase}
        if event.message:
            changes["message"] = event.message
            if event.bytes is None:
                changes["bytes"] = changes["count"] = None
        if event.bytes is not None:
            changes["bytes"] = event.bytes
        if event.count is not None:
            changes["count"] = event.count
        if event.log:
            self._log.append(event.log)
            changes["log"] = tuple(self._log)
        self._set(**changes)

    def _set(self, **changes: object) -> None:
        state = replace(self.state, **changes)  # type: ignore[arg-type]
        if state.message != self.state.message:
            state = replace(state, said=(*state.said, state.message))
        self.state = state
        if self._on_change is not None:
            # A view that fails must not stop an install half-way.
            with contextlib.suppress(Exception):
                self._on_change(self)


class UndoJob(Job):
    """Go back to what was there before the last install."""

    def _work(self) -> None:
        self._set(stage="installing", phase="switch", message="Going back")
        result = undo_install(
            self._status.environment,
            consent=self._consent,
            command=self._command,
            on_event=self._tell,
            cancellation=self._cancellation,
            wait=True,
        )
        self._set(result=result)


def expected(error: Exception) -> TorchEnvError:
    """Return the error as one that can be shown: itself, or with its traceback as detail."""
    import traceback

    if isinstance(error, TorchEnvError):
        return error
    return TorchEnvError(
        f"An unexpected {type(error).__name__} stopped this: {error}",
        hint="report it, with the folded text",
        detail="".join(traceback.format_exception(error)),
    )
