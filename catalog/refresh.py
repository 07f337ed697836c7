"""Reads anew what can be read: PyPI's list, uv's backends, the PyTorch index."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from packaging.version import Version

from catalog.errors import CatalogError
from catalog.facts import PLATFORMS, ReadFacts
from catalog.pypi import OLDEST, package_index, read_pypi
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import Catalog
from torchenv_magic.builds.index import INDEX_ADDRESS, Listing
from torchenv_magic.builds.index_client import refresh
from torchenv_magic.errors import TorchEnvError
from torchenv_magic.installation.uv import find_uv

__all__ = ["Refreshed", "compare_index", "index_backends", "parse_backends", "read_anew"]

_INDEX_SECONDS = 60.0
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    read: ReadFacts
    """The facts as they are now; as they were where they could not be read."""
    index: tuple[str, ...]
    """In what the PyTorch index differs from the catalog: `+ …` and `- …`."""
    failures: tuple[CatalogError, ...]


def read_anew(
    before: ReadFacts, catalog: Catalog, *, today: str, address: str = INDEX_ADDRESS
) -> Refreshed:
    """Read everything; what can't be read stays as it was, and is among the failures."""
    failures: list[CatalogError] = []

    def attempt(read: Callable[[], _Found], otherwise: _Found) -> _Found:
        try:
            return read()
        except CatalogError as error:
            failures.append(error)
            return otherwise

    version, backends = attempt(_read_uv, (before.uv_version, before.uv_backends))
    pypi = attempt(lambda: read_pypi(package_index()), before.pypi)
    after = replace(before, uv_version=version, uv_backends=backends, pypi=pypi)
    asked = index_backends(catalog, backends)
    listings, unread = refresh(asked, timeout_seconds=_INDEX_SECONDS, address=address)
    if unread:
        names = ", ".join(str(failure.backend) for failure in unread)
        reasons = ", ".join(sorted({failure.reason for failure in unread}))
        failures.append(
            CatalogError(
                f"the PyTorch index could not be read for {names}: {reasons}",
                hint="run it where download.pytorch.org can be reached",
            )
        )
    return Refreshed(
        read=after if after == before else replace(after, as_of=today),
        index=tuple(compare_index(catalog, listings)),
        failures=tuple(failures),
    )


def _read_uv() -> tuple[str, tuple[str, ...]]:
    try:
        uv = find_uv()
    except TorchEnvError as error:
        raise CatalogError(error.message, hint=error.hint) from error
    text = subprocess.run(
        [str(uv.binary), "pip", "install", "--help"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    ).stdout
    return str(uv.version), parse_backends(text)


def parse_backends(text: str) -> tuple[str, ...]:
    """Return the backends that the help of `uv pip install` names, in its order, without `auto`.

    Raises
    ------
    CatalogError
        It names none.
    """
    option = re.search(
        r"--torch-backend <TORCH_BACKEND>.*?\[possible\s+values:\s+([^\]]+)\]", text, re.DOTALL
    )
    names = re.split(r",\s+", option[1].strip()) if option else []
    if "cpu" not in names:
        raise CatalogError(
            "uv's help does not list the values of `--torch-backend`",
            hint="look at `uv pip install --help`, and mend `parse_backends`",
        )
    return tuple(name for name in names if name != "auto")


def index_backends(catalog: Catalog, uv_backends: Iterable[str]) -> tuple[Backend, ...]:
    """Return the backends to ask the index for: the catalog's, and newer ones that uv knows."""
    known = catalog.backends()
    newest = {
        kind: max(backend.version for backend in known if backend.kind == kind)
        for kind in {backend.kind for backend in known}
    }
    newer = []
    for name in uv_backends:
        try:
            backend = Backend.parse(name)
        except ValueError:
            continue  # cu92 and older have one digit less
        if backend not in known and backend.version > newest.get(backend.kind, ()):
            newer.append(backend)
    return (*newer, *known)


def compare_index(catalog: Catalog, listings: Sequence[Listing]) -> list[str]:
    """Return what the index has and the catalog has not (`+`), and the other way round (`-`)."""
    lines = []
    for listing in listings:
        here = {
            (build.torch, platform, tag)
            for platform in PLATFORMS
            for build in catalog.builds_for(listing.backend, platform)
            for tag in build.python_tags
        }
        there = {
            (build.torch, build.wheel_platform, tag)
            for build in listing.builds
            if build.torch >= OLDEST and build.wheel_platform in PLATFORMS
            for tag in build.python_tags
        }
        lines += _grouped("+", listing.backend, there - here)
        lines += _grouped("-", listing.backend, here - there)
    return lines


def _grouped(sign: str, backend: Backend, wheels: Iterable[tuple[Version, str, str]]) -> list[str]:
    groups: dict[tuple[Version, str], list[str]] = {}
    for torch, platform, tag in sorted(wheels):
        groups.setdefault((torch, platform), []).append(tag)
    return [
        f"{sign} torch {torch} {backend} {platform} {' '.join(tags)}"
        for (torch, platform), tags in groups.items()
    ]
