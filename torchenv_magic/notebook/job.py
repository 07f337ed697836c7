"""One install, run in a thread, so that the kernel stays free: its state, its cancel, its end."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from torchenv_magic.errors import InstallCancelled, TorchEnvError
from torchenv_magic.installation.install import Result, install_plan
from torchenv_magic.installation.plan import Plan
from torchenv_magic.installation.planning import make_plan
from torchenv_magic.installation.progress import Bytes, Event
from torchenv_magic.installation.uv import Cancellation
from torchenv_magic.selection import Request
from torchenv_magic.status import Status

__all__ = ["Job", "JobState", "expected"]

_LOG_LINES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """How far a job is: one record, replaced as a whole, so that any thread may read it."""

    message: str = "Starting"
    bytes: Bytes | None = None
    log: tuple[str, ...] = ()
    plan: Plan | None = None
    result: Result | None = None
    error: TorchEnvError | None = None
    """What ended it; an unexpected exception is here as one too, with its traceback as detail."""

    @property
    def cancelled(self) -> bool:
        """Whether the person stopped it."""
        return isinstance(self.error, InstallCancelled)


class Job:
    """Plan, or plan and install, in a thread of its own.

    `on_change` is called in that thread after each change of `state`; `on_end` once, at its end.
    """

    def __init__(
        self,
        status: Status,
        request: Request,
        *,
        consent: bool = False,
        plan: Plan | None = None,
        only_plan: bool = False,
        on_change: Callable[[Job], None] | None = None,
        on_end: Callable[[Job], None] | None = None,
    ) -> None:
        self.state = JobState(plan=plan)
        self.ended = threading.Event()
        self._status = status
        self._request = request
        self._consent = consent
        self._only_plan = only_plan
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
            plan = self.state.plan or make_plan(
                self._status.selection,
                self._status.environment,
                self._request,
                consent=self._consent,
                on_event=self._tell,
                cancellation=self._cancellation,
            )
            self._set(plan=plan)
            if not self._only_plan:
                result = install_plan(plan, on_event=self._tell, cancellation=self._cancellation)
                self._set(result=result)
        except Exception as error:  # noqa: BLE001  (a thread's exception would reach nobody)
            self._set(error=expected(error))
        finally:
            self.ended.set()
            if self._on_end is not None:
                self._on_end(self)

    def _tell(self, event: Event) -> None:
        changes: dict[str, object] = {}
        if event.message:
            changes["message"] = event.message
            if event.bytes is None:
                changes["bytes"] = None
        if event.bytes is not None:
            changes["bytes"] = event.bytes
        if event.log:
            self._log.append(event.log)
            changes["log"] = tuple(self._log)
        self._set(**changes)

    def _set(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]
        if self._on_change is not None:
            # A view that fails must not stop an install half-way.
            with contextlib.suppress(Exception):
                self._on_change(self)


def expected(error: Exception) -> TorchEnvError:
    """Return the error as one that can be shown: itself, or with its traceback as detail."""
    import traceback

    if isinstance(error, TorchEnvError):
        return error
    return TorchEnvError(
        f"Something unexpected happened: {type(error).__name__}: {error}",
        hint="please report it with the folded text; the environment was put back",
        detail="".join(traceback.format_exception(error)),
    )
