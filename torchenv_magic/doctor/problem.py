"""One thing that is wrong: found, meaning, cure; and how a cure is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Problem", "Severity", "install_cure", "quoted", "uv_cure"]

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What was found, what it means, and one action that cures it."""

    name: str
    """A stable word for scripts: `driver-too-old`."""
    severity: Severity
    """`error`: does not work, or will fail. `warning`: works worse than it could, or may fail."""
    found: str
    meaning: str
    cure: str

    def __str__(self) -> str:
        return f"{self.found}: {self.meaning}"


def install_cure(*words: str) -> str:
    """Return the install of those words (a backend, requirements) as it is typed.

    >>> install_cure("cpu", "torch<2.7")
    '`%torchenv install cpu "torch<2.7"`'
    """
    return f"`{' '.join(['%torchenv install', *map(quoted, words)])}`"


def uv_cure(
    action: Iterable[str], packages: Iterable[str], *, python: object, uv: str = "uv"
) -> str:
    """Return a run of uv on the environment of `python`, as a notebook's cell has it.

    `uv` is what starts it.

    >>> uv_cure(["uninstall"], ["nvidia-cudnn-cu12"], python="/env/bin/python")
    '`!uv pip uninstall --python /env/bin/python nvidia-cudnn-cu12`'
    """
    words = [*action, "--python", str(python), *packages]
    return f"`!{uv} pip {' '.join(map(quoted, words))}`"


def quoted(text: str) -> str:
    """Return `text` as one word of a command line, whichever shell reads it."""
    # `"` works in POSIX shells, in cmd, in PowerShell and for the magic; `<` alone redirects.
    return f'"{text}"' if any(character in text for character in " <>!~;,*[]()&|") else text
