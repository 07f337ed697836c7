"""The Python interpreter whose tags a wheel has to fit.

Apart from `environment`, which reads what is installed: `torchenv select` needs no more than this.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchenv_magic import _environment_probe
from torchenv_magic.errors import TargetError

__all__ = ["Interpreter", "interpreter_of", "running_interpreter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    executable: Path
    version: str
    """Full version: `3.11.7`."""
    implementation: str
    """`cpython`, `pypy`: `sys.implementation.name`."""
    free_threaded: bool = False

    @property
    def tag(self) -> str:
        """The wheel tag of the interpreter and its ABI in one word: `cp311`, `cp314t`."""
        major, minor = self.version.split(".")[:2]
        prefix = {"cpython": "cp", "pypy": "pp"}.get(self.implementation, self.implementation)
        return f"{prefix}{major}{minor}{'t' if self.free_threaded else ''}"

    def __str__(self) -> str:
        name = {"cpython": "Python", "pypy": "PyPy"}.get(self.implementation, self.implementation)
        return f"{name} {self.version}{' free-threaded' if self.free_threaded else ''}"


def running_interpreter() -> Interpreter:
    """Return the interpreter that runs this; nothing is read from the disk.

    Raises
    ------
    TargetError
        It has no executable, and so nothing to install for.
    """
    if not sys.executable:
        raise TargetError(
            "This Python is embedded in another program and has no executable of its own",
            hint="name the interpreter in a terminal: `torchenv install --python PATH`",
        )
    return interpreter_of(_environment_probe.describe_interpreter())


def interpreter_of(description: dict[str, Any]) -> Interpreter:
    """Return the interpreter in what the probe says of one."""
    return Interpreter(
        executable=Path(description["executable"]),
        version=description["version"],
        implementation=description["implementation"],
        free_threaded=description["free_threaded"],
    )
