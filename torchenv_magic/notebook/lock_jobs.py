"""Lock and restore in a thread, as jobs that the same views can show and cancel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torchenv_magic.builds.backend import Backend
from torchenv_magic.installation.plan import Plan
from torchenv_magic.installation.settings import Sites
from torchenv_magic.notebook.job import Job
from torchenv_magic.project.lock import NotebookLock
from torchenv_magic.project.lock_making import make_lock
from torchenv_magic.project.restoring import choose_locked, make_restore_plan, restore_request
from torchenv_magic.selection import Request
from torchenv_magic.status import Status, read_status

__all__ = ["LockJob", "RestoreJob"]


class RestoreJob(Job):
    """Install what a lock says, in this machine's build or in the one that is named.

    `looked` says that `status` is a look of just now, for `restore_request(lock, backend)`.
    """

    def __init__(
        self,
        status: Status,
        lock: NotebookLock,
        *,
        backend: Backend | None = None,
        sites: Sites | None = None,
        consent: bool = False,
        plan: Plan | None = None,
        looked: bool = False,
        command: str = "",
        on_change: Callable[[Job], None] | None = None,
        on_end: Callable[[Job], None] | None = None,
    ) -> None:
        request = restore_request(lock, backend)

        def look() -> tuple[Status, Request]:
            index_base = sites.index_base if sites is not None else None
            return read_status(request, index_base=index_base), request

        super().__init__(
            status,
            request,
            sites=sites,
            consent=consent,
            plan=plan,
            look=look,
            looked=looked,
            command=command,
            on_change=on_change,
            on_end=on_end,
        )
        self._lock = lock
        self._backend = backend

    def _make_plan(self, status: Status, request: Request, *, consent: bool) -> Plan:  # noqa: ARG002
        # What can't be had here needs no server to say so.
        choose_locked(self._lock, status, backend=self._backend)
        return make_restore_plan(
            self._lock,
            status,
            backend=self._backend,
            sites=self._sites,
            consent=consent,
            on_event=self._tell,
            cancellation=self._cancellation,
        )


class LockJob(Job):
    """Make a lock of what is installed; `state.locked` is what came of it."""

    def __init__(
        self,
        status: Status,
        request: Request,
        *,
        backends: Sequence[Backend | None] = (),
        sites: Sites | None = None,
    ) -> None:
        super().__init__(status, request, sites=sites)
        self._backends = backends

    def _work(self) -> None:
        self._set(message="Asking what each build of this torch takes")
        made = make_lock(
            self._status.environment,
            requirements=self._request.requirements,
            backends=self._backends,
            sites=self._sites,
            on_event=self._tell,
            cancellation=self._cancellation,
        )
        self._set(locked=made)
