"""What the fresh kernel does first: verify, and show the result where the install was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from IPython.core.getipython import get_ipython
from IPython.display import display

from torchenv_magic.environment import Environment, read_environment
from torchenv_magic.expectation import read_expectation
from torchenv_magic.notebook.cells import remember_placed
from torchenv_magic.notebook.extension import load
from torchenv_magic.notebook.plugin import OUTPUT_MIME
from torchenv_magic.notebook.verification_table import verification_bundle
from torchenv_magic.verification import Verification, verify

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["fresh_kernel_code", "show", "verify_here", "verify_in_child"]


def fresh_kernel_code(display_id: str, lead: str) -> str:
    """Return the one expression that the fresh kernel runs, silently, before any cell."""
    return f"__import__({__name__!r}, fromlist=['show']).show({display_id!r}, {lead!r})"


def show(display_id: str, lead: str) -> None:
    """Verify in this process, and put the result into the output `display_id` of the notebook.

    The magic was there before the restart, so it is again. Not through the extension manager:
    `%load_ext` in the verification cell would then say that it is loaded already.
    """
    shell: InteractiveShell | None = get_ipython()
    if shell is not None:
        load(shell)
        # The old kernel placed it; the file may not know yet.
        remember_placed(shell)
    verification = verify_here()
    bundle = {**verification_bundle(verification, lead=lead), OUTPUT_MIME: {"id": display_id}}
    display(bundle, raw=True, display_id=display_id, update=True)  # type: ignore[no-untyped-call]


def verify_here(environment: Environment | None = None) -> Verification:
    """Return the verification of this very process and its environment, read anew for None."""
    environment = environment or read_environment()
    return verify(environment, read_expectation(environment.prefix), in_process=True)


def verify_in_child(environment: Environment | None = None) -> Verification:
    """Return the same of a process of its own, which may crash and leaves this session alone."""
    environment = environment or read_environment()
    return verify(environment, read_expectation(environment.prefix), in_process=False)
