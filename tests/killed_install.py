"""Carry out a pickled plan, or undo, and die by SIGKILL at the Nth step of the switch.

A step is whatever changes the disk there: a rename, a write of the journal, an unlink. What is
pickled is a plan, or an environment whose last install is to be undone.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchenv_magic.environment import Environment
from torchenv_magic.installation import transaction
from torchenv_magic.installation.install import install_plan
from torchenv_magic.installation.undo import undo_install


def main(file: str, last_step: int) -> None:
    """Install or undo; where there are fewer steps than `last_step`, live."""
    left = last_step

    def dying(action: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return action(*arguments, **options)

        return step

    what = pickle.loads(Path(file).read_bytes())  # noqa: S301  (the test's own file)
    for place, name in (
        (transaction, "_rename"),
        (transaction.Transaction, "_write"),
        (transaction, "_forward"),
        (transaction, "write_expectation"),
        (transaction, "write_kept"),
        (transaction, "add_entry"),
        (transaction, "_drop_others"),
    ):
        setattr(place, name, dying(getattr(place, name)))
    if isinstance(what, Environment):
        undo_install(what)
    else:
        install_plan(what)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
