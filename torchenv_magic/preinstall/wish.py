"""What an admin, or a person on the page of their hub, wants to be there with the server.

It comes by the environment: from a configuration, and from a form by way of that. So it is looked
at before it is believed, and nonsense falls back to what is always right. Only the standard
library.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = [
    "SWITCH",
    "Wish",
    "absolute",
    "checked_backend",
    "checked_requirements",
    "checked_seconds",
    "is_backend",
    "is_off",
    "wish_of",
]

SWITCH = "TORCHENV_PREINSTALL"
"""`0` switches the preinstall off everywhere; `1` switches the server extension on."""

# uv's words. Which of them there are, the catalog knows: it is too slow to be asked here.
_BACKEND = re.compile(r"auto|cpu|xpu|cu\d{2,4}|rocm\d{1,2}(?:\.\d{1,3}){1,2}")
# A name and versions, in the characters that these have: no address, no option, no marker.
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[\w.,-]+\])?\s*[\w.,*+!<>=~\s-]*")
# What people write for a backend: taken for a package, a stranger's would be installed.
_LIKE_A_BACKEND = re.compile(
    r"auto|cpu|gpu|xpu|mps|hip|amd|(cu|cuda|rocm)[-_ ]?[\d.]*", re.IGNORECASE
)
_LONGEST = 200
_MOST = 50
_DAY = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be there."""

    backend: str = "auto"
    """In uv's words."""
    requirements: tuple[str, ...] = ("torch",)
    environment: Path | None = None
    """The environment to install into; None for the one that fits."""
    wait_seconds: float = 0.0
    """How long the server may be kept waiting for it."""
    notices: tuple[str, ...] = ()
    """What could not be followed, in words for whoever asked."""


def wish_of(environ: Mapping[str, str]) -> Wish:
    """Return what the variables say. Nonsense among them becomes a notice."""
    notices = []
    wish = Wish()
    # The hub's words for what it could not give a person.
    if told := _printable(environ.get("TORCHENV_PREINSTALL_NOTICE", "")):
        notices.append(told)
    if text := environ.get("TORCHENV_BACKEND", "").strip():
        try:
            wish = replace(wish, backend=checked_backend(text))
        except ValueError:
            notices.append(
                f"`{_shown(text)}` (TORCHENV_BACKEND) is no build of PyTorch: the best one for "
                "this machine is taken"
            )
    if text := environ.get("TORCHENV_REQUIREMENTS", "").strip():
        import shlex

        try:
            wish = replace(wish, requirements=checked_requirements(shlex.split(text)))
        except ValueError:
            notices.append(
                "TORCHENV_REQUIREMENTS is not a list of packages and versions: torch alone is taken"
            )
    if text := environ.get("TORCHENV_PREINSTALL_WAIT", "").strip():
        try:
            wish = replace(wish, wait_seconds=checked_seconds(text))
        except ValueError:
            notices.append(
                f"`{_shown(text)}` (TORCHENV_PREINSTALL_WAIT) is no number of seconds: the server "
                "does not wait"
            )
    return replace(wish, notices=tuple(notices))


def checked_backend(text: str) -> str:
    """Return the backend as uv writes it.

    Raises
    ------
    ValueError
        It can't be one.
    """
    name = text.strip().lower()
    if not _BACKEND.fullmatch(name):
        raise ValueError(_shown(text))
    return name


def is_backend(text: str) -> bool:
    """Whether a word of a line names a build, and no package."""
    return _BACKEND.fullmatch(text.lower()) is not None


def checked_requirements(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the requirements; torch is always among them.

    Raises
    ------
    ValueError
        One of them is not a package with an optional version.
    """
    found = tuple(text.strip() for text in texts)
    for text in found:
        if _LIKE_A_BACKEND.fullmatch(text):
            raise ValueError(_shown(text))
        if len(text) > _LONGEST or not _REQUIREMENT.fullmatch(text) or not text.isprintable():
            raise ValueError(_shown(text))
    if len(found) > _MOST:
        raise ValueError(_shown(found[_MOST]))
    names = {re.split(r"[^A-Za-z0-9._-]", text)[0].lower() for text in found}
    return found if "torch" in names else ("torch", *found)


def checked_seconds(text: str) -> float:
    """Return a number of seconds, a day at most.

    Raises
    ------
    ValueError
    """
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(_shown(text))
    return min(seconds, _DAY)


def is_off(environ: Mapping[str, str]) -> bool:
    """Whether an admin has switched the preinstall off."""
    return environ.get(SWITCH, "").strip() == "0"


def _shown(text: str) -> str:
    # What follows may be an address with a login.
    return ascii(re.split(r"@|://", _printable(text))[0].strip())[1:-1]


def _printable(text: str) -> str:
    return "".join(filter(str.isprintable, text))[:_LONGEST].strip()


def absolute(text: str) -> Path:
    """Return a folder as the wish names it, from where this process is."""
    return Path(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111  (never fails)
