"""What was asked of an environment last, kept in it, so that verification can compare later."""

from __future__ import annotations

from dataclasses import dataclass

from torchenv_magic.builds.backend import Backend


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What an install left behind on purpose: the requirements asked for and what they became."""

    requirements: tuple[str, ...]
    """As asked: `torch`, `torchvision`, `lightning>=2`."""
    backend: Backend
    versions: tuple[tuple[str, str], ...]
    """(normalized name, version with its local part) of each package that was asked for."""
