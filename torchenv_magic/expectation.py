"""What was asked of an environment last, kept in it, so that verification can compare later."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from torchenv_magic.builds.backend import Backend
from torchenv_magic.errors import TargetError
from torchenv_magic.serialization import from_json, to_json
from torchenv_magic.state import make_state_directory, read_state, state_directory, write_state

__all__ = [
    "Expectation",
    "expectation_path",
    "read_expectation",
    "remove_expectation",
    "write_expectation",
]

logger = logging.getLogger(__name__)

_SCHEMA = 1
_LARGEST = 1_000_000
"""Bytes. A real file has a few hundred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What an install left behind on purpose: the requirements asked for and what they became."""

    requirements: tuple[str, ...]
    """As asked: `torch`, `torchvision`, `lightning>=2`."""
    backend: Backend
    versions: tuple[tuple[str, str], ...]
    """(normalized name, version with its local part) of each package that was asked for."""


def expectation_path(prefix: Path) -> Path:
    """Return where the environment at `prefix` keeps its expectation."""
    return state_directory(prefix) / "expectation.json"


def write_expectation(prefix: Path, expectation: Expectation, *, lasting: bool = True) -> None:
    """Keep `expectation` in the environment at `prefix`; a reader sees the old or the new, whole.

    Parameters
    ----------
    lasting
        Whether it is on the disk before this returns; an environment that is only being made can
        be made anew.

    Raises
    ------
    TargetError
        The environment can't be written to.
    """
    path = expectation_path(prefix)
    text = json.dumps({"schema": _SCHEMA, **to_json(expectation)}, indent=1) + "\n"
    try:
        make_state_directory(prefix)
        # A shared environment has more readers than its owner.
        write_state(path, text.encode("ascii"), for_readers=True, lasting=lasting)
    except OSError as error:
        raise _not_kept(path, error) from None


def remove_expectation(prefix: Path) -> None:
    """Forget what was asked of the environment at `prefix`.

    Raises
    ------
    TargetError
        The environment can't be written to.
    """
    path = expectation_path(prefix)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    except OSError as error:
        raise _not_kept(path, error) from None


def _not_kept(path: Path, error: OSError) -> TargetError:
    return TargetError(
        f"What was asked for could not be kept in `{path}`: {error.strerror}",
        hint="make the environment writable, or work in one of your own",
    )


def read_expectation(prefix: Path) -> Expectation | None:
    """Return what was asked of the environment at `prefix`, None where nothing readable says so.

    A file that is broken, or from a newer version of this package, is logged and otherwise treated
    as absent: verification then checks that PyTorch works, and compares nothing.
    """
    path = expectation_path(prefix)
    try:
        content = read_state(path, largest=_LARGEST)
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s can't be read: %s", path, error.strerror)
        return None
    try:
        return _parse(content)
    except (ValueError, TypeError, RecursionError) as error:
        logger.warning("%s is not what this version writes: %r", path, error)
        return None


def _parse(content: bytes) -> Expectation:
    if len(content) > _LARGEST:
        message = f"longer than {_LARGEST} bytes"
        raise ValueError(message)
    data = json.loads(content)
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != _SCHEMA:
        message = f"schema {schema!r} where {_SCHEMA} is known"
        raise ValueError(message)
    expectation = from_json(Expectation, data)
    texts = [*expectation.requirements, *(text for row in expectation.versions for text in row)]
    # They are shown in a terminal, where a control character acts.
    if not all(text.isprintable() for text in texts):
        message = "a text with control characters"
        raise ValueError(message)
    for _, version in expectation.versions:
        try:
            Version(version)
        except InvalidVersion as error:
            raise ValueError(str(error)) from None
    return expectation
