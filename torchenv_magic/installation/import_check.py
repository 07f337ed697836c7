"""Whether what was switched to can be imported, tried in a process of its own."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from torchenv_magic.environment import FAMILY_MEMBERS, Environment, InterpreterRun, run_interpreter
from torchenv_magic.errors import InstallError
from torchenv_magic.installation import import_probe
from torchenv_magic.installation.uv import Cancellation

__all__ = ["check_imports"]

logger = logging.getLogger(__name__)

_SECONDS = 120.0
"""A network drive that is read for the first time takes a minute. Whoever takes longer is not
judged here: the verification does."""
_KILLED = -9


def check_imports(
    python: Path,
    environment: Environment,
    names: Sequence[str],
    cancellation: Cancellation,
    *,
    keeps_bytecode: bool = True,
) -> None:
    """Check that the named members of the PyTorch family can be imported.

    Parameters
    ----------
    keeps_bytecode
        Lets Python write what it compiles, for the next import.

    Raises
    ------
    InstallCancelled
    InstallError
        One can't be; the interpreter's last line says why.
    """
    members = [name for name in FAMILY_MEMBERS if name in names]
    if not members:
        return
    options = ["-I"] if keeps_bytecode else ["-I", "-B"]
    # What goes with torch registers its operators with it as it is imported, in Python: only the
    # whole import tells whether the two fit.
    if members == ["torch"] and not _lacks_requirement(environment, members):
        ended = _run(python, [*options, import_probe.__file__], cancellation)
        if ended is not None and ended.status == 0:
            return
    ended = _run(python, [*options, "-c", f"import {', '.join(members)}"], cancellation)
    if ended is None or ended.timed_out or ended.status in (0, _KILLED):
        # One that was killed, for want of memory mostly, says nothing of what was installed.
        return
    lines = [line for line in ended.errors.splitlines() if line.strip()] or ["it said nothing"]
    last = lines[-1].strip() if ended.status > 0 else f"it crashed with signal {-ended.status}"
    raise InstallError(
        f"What was installed can't be imported: {last}",
        hint="choose another build (`%torchenv list`); what was there before is back",
        detail=ended.errors,
    )


def _run(
    python: Path, arguments: Sequence[str], cancellation: Cancellation
) -> InterpreterRun | None:
    cancellation.raise_if_requested()
    try:
        ended = run_interpreter(
            python, arguments, timeout_seconds=_SECONDS, stopped_by=cancellation.stops
        )
    except OSError as error:
        logger.warning("%s can't be started: %s", python, error)
        return None
    cancellation.raise_if_requested()
    logger.debug("%s ended with %s: %s", arguments, ended.status, ended.errors)
    return ended


def _lacks_requirement(environment: Environment, members: Sequence[str]) -> bool:
    """Whether something that a member requires may be missing."""
    there = {package.name for package in environment.packages}
    texts = [text for p in environment.packages if p.name in members for text in p.requires]
    for text in texts:
        name = re.match(r"[A-Za-z0-9._-]+", text)
        if name is not None and canonicalize_name(name[0]) in there:
            continue
        try:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate(
                {"python_version": ".".join(environment.interpreter.version.split(".")[:2])}
            ):
                return True
        except (InvalidRequirement, ValueError):
            return True
    return False
