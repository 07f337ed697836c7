"""The command that a spawner starts, with the preinstall in front of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

__all__ = ["SINGLE_USER", "spawner_command", "spawner_command_line"]

SINGLE_USER = ("jupyterhub-singleuser",)
"""What a hub starts where nothing else is set. A container's image may start something else, which
a hub can't know: so it is said."""


def spawner_command(
    command: str | Sequence[str] | None = None, *, torchenv: Sequence[str] | None = None
) -> list[str]:
    """Return the command for `Spawner.cmd`: it begins the install, then becomes `command`.

    No word of it holds what a shell, or the braces of a template, would read as something else.

    Parameters
    ----------
    command
        What is started now; None is JupyterHub's own server.
    torchenv
        How `torchenv` is started where the server runs. None is the one beside `command` where that
        is a path on this machine, else the one on the server's `PATH`.
    """
    words = [command] if isinstance(command, str) else list(command or SINGLE_USER)
    # Once is enough: a configuration is read in pieces, and some pieces twice.
    if "--" in words and "preinstall" in words[: words.index("--")]:
        return words
    return [*(torchenv or _beside(words[0])), "preinstall", "--", *words]


def spawner_command_line(command: str, *, torchenv: Sequence[str] | None = None) -> str:
    """Return the same for a line that a batch script has."""
    wrapper = shlex.join([*(torchenv or ("torchenv",)), "preinstall", "--"])
    return command if " preinstall -- " in command else f"{wrapper} {command}"


def _beside(program: str) -> tuple[str, ...]:
    path = Path(program)
    neighbour = path.with_name("torchenv")
    return (str(neighbour),) if path.is_absolute() and neighbour.is_file() else ("torchenv",)
