"""Lend a folder with all that a kernel needs, so that one can be made without a network."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.once import make_once
from tests.standin import make_wheel
from torchenv_magic.installation.own_wheel import wheel_of


@pytest.fixture(scope="session")
def kernel_wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of all that a kernel needs, packed from what is installed here."""
    return make_once(tmp_path_factory, "kernel-wheels", pack_kernel_wheels)


def pack_kernel_wheels(folder: Path) -> Path:
    """Fill the folder with them; return it."""
    folder.mkdir(exist_ok=True)
    for name in _closure("ipykernel", "torchenv-magic") - {"torchenv-magic"}:
        wheel_of(importlib.metadata.distribution(name), folder)
    make_wheel(folder, "pip", "99", files={"pip/__init__.py": ""})
    return folder


def _closure(*names: str) -> set[str]:
    """Return the names of installed distributions, with all that they need here."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found
