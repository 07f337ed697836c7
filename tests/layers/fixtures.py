"""Lend a layer that real uv has built, of the wheels of the stand-in."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.layers.shelves import CPU, Shelf, lead
from tests.standin import StandIn, make_wheel
from torchenv_magic.installation.layers_build import build_layer
from torchenv_magic.installation.settings import Sites
from torchenv_magic.selection import Request


@pytest.fixture(scope="session")
def shelf(standin: StandIn, kernel_wheels: Path) -> Iterator[Shelf]:
    """Return one layer for all, with two packages that have a folder between them."""
    # Not where pytest keeps its own: that is closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="torchenv-layers-")).resolve()
    folder.chmod(0o755)
    for side in ("left", "right"):
        files = {f"nvidia/{side}/__init__.py": ""}
        make_wheel(folder / "wheels", f"nvidia-{side}", "1.0", files=files)
    sites = Sites(
        find_links=(str(kernel_wheels), str(folder / "wheels")), find_links_origin="a test"
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        lead(monkeypatch, standin, folder / "cache")
        layer = build_layer(
            folder / "shelf",
            Request(requirements=("torch", "nvidia-left", "nvidia-right")),
            CPU,
            sites=sites,
            command="torchenv layer build",
        )
    yield Shelf(folder=folder / "shelf", layer=layer, sites=sites)
    shutil.rmtree(folder, ignore_errors=True)
