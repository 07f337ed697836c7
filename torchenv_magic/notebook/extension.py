"""`%load_ext torchenv_magic`: registers, and returns. Nothing is looked at, nothing is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchenv_magic.notebook import completion

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["load", "unload"]


def load(shell: InteractiveShell) -> None:
    """Register the magic and its completion."""

    def torchenv(line: str) -> object:
        """Pick, install and prove the right PyTorch build: `%torchenv -h` tells all.

        Examples
        --------
        %torchenv                        the picker
        %torchenv status                 what is here, what would be chosen, and why
        %torchenv list                   every build, with the reason for each
        %torchenv plan cu126             what an install would change
        %torchenv install                the best build; restarts the kernel and verifies
        %torchenv install cpu torch==2.13.* torchvision
        %torchenv verify                 prove that the installed PyTorch works
        """
        # Half a second of imports that loading must not cost.
        from torchenv_magic.notebook.magic import run

        return run(shell, line)

    shell.register_magic_function(torchenv, "line", "torchenv")  # type: ignore[arg-type]
    completion.register(shell)


def unload(shell: InteractiveShell) -> None:
    """Take away the magic, its completion and its formatters."""
    import sys

    shell.magics_manager.magics["line"].pop("torchenv", None)
    completion.unregister(shell)
    if rendering := sys.modules.get("torchenv_magic.notebook.rendering"):
        rendering.unregister_formatters(shell)
