"""Make a kernel of one's own in a thread, as a job that the same views can show and cancel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from torchenv_magic.environment import Environment
from torchenv_magic.errors import TargetError
from torchenv_magic.installation.new_kernel import base_interpreter, make_kernel
from torchenv_magic.installation.settings import Sites, read_sites
from torchenv_magic.notebook.front_end import FrontEndKind
from torchenv_magic.notebook.job import Job
from torchenv_magic.selection import Request, Selection
from torchenv_magic.status import Status, read_status

__all__ = ["KernelJob", "check_front_end"]

_NO_CHOICE: dict[FrontEndKind, str] = {
    "colab": "Colab",
    "kaggle": "Kaggle",
    "pyodide": "Python in the browser",
}


def check_front_end(kind: FrontEndKind) -> None:
    """Check that a notebook can have another kernel there.

    Raises
    ------
    TargetError
    """
    if kind in _NO_CHOICE:
        raise TargetError(
            f"{_NO_CHOICE[kind]} gives a notebook the kernel that it has, and no other",
            hint="`%torchenv install` installs into that one",
        )


class KernelJob(Job):
    """Make a kernel; `state.made` is what came of it."""

    def __init__(
        self,
        status: Status,
        request: Request,
        *,
        name: str,
        sites: Sites | None = None,
        consent: bool = False,
        command: str = "",
        on_change: Callable[[Job], None] | None = None,
        on_end: Callable[[Job], None] | None = None,
    ) -> None:
        super().__init__(
            status,
            request,
            sites=sites,
            consent=consent,
            command=command,
            on_change=on_change,
            on_end=on_end,
        )
        self._name = name

    def _work(self) -> None:
        # The new environment has no settings of its own: those of this one hold for its selection
        # and its plan alike.
        sites = read_sites(prefix=Path(sys.prefix)) if self._sites is None else self._sites

        def choose(python: Path) -> tuple[Selection, Environment]:
            status = read_status(self._request, python=python, index_base=sites.index_base)
            return status.selection, status.environment

        self._set(stage="installing")
        made = make_kernel(
            self._name,
            self._request,
            base=base_interpreter(None),
            choose=choose,
            sites=sites,
            consent=self._consent,
            command=self._command,
            on_event=self._tell,
            cancellation=self._cancellation,
        )
        self._set(made=made, result=made.result)
