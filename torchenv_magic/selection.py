"""Which build: host + request + catalog -> a choice, with the reason for every other backend."""

from __future__ import annotations

from dataclasses import dataclass

from torchenv_magic.accelerators.records import Accelerator
from torchenv_magic.builds.backend import Backend


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked for: nothing in it was found or decided."""

    backend: Backend | None = None
    """None is `auto`."""
    requirements: tuple[str, ...] = ("torch",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One backend of the catalog, on this host, for this request."""

    backend: Backend
    torch: str | None
    """The newest torch release of the catalog that this request and Python admit there."""
    fits: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogOrigin:
    as_of: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What was chosen, and why."""

    backend: Backend | None
    torch: str | None
    accelerators: tuple[Accelerator, ...]
    unsupported_accelerators: tuple[str, ...]
    warnings: tuple[str, ...]
    reason: str
    alternatives: tuple[Alternative, ...]
    catalog: CatalogOrigin
