"""The Python environment to install into: records only so far; see the functions below."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EnvironmentKind = Literal["venv", "uv venv", "conda", "system"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledPackage:
    name: str
    """Normalized name."""
    version: str
    requires: tuple[str, ...] = ()
    """Its `Requires-Dist`, only those without an extra."""
    installer: str | None = None
    """`uv`, `pip`, `conda`, or None where no INSTALLER file says."""
    complete: bool = True
    """Whether METADATA and RECORD are both there: a half-linked package lacks one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    interpreter: Interpreter
    kind: EnvironmentKind
    prefix: Path
    site_packages: Path
    """`purelib`, where uv installs."""
    has_pip: bool
    writable: bool
    externally_managed: str | None
    """What the EXTERNALLY-MANAGED file says, where it forbids installing (PEP 668)."""
    free_bytes: int
    """Free space on the file system of `site_packages`."""
    packages: tuple[InstalledPackage, ...] = ()

    def installed(self, name: str) -> InstalledPackage | None:
        """Return the installed package of that (normalized) name."""
        return next((package for package in self.packages if package.name == name), None)
