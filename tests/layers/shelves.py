"""What the tests of layers share, apart from the fixtures."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from uv import find_uv_bin

from tests.standin import StandIn
from torchenv_magic.builds.backend import Backend
from torchenv_magic.installation.layers import Layer
from torchenv_magic.installation.settings import Sites

CPU = Backend.parse("cpu")


@dataclass(frozen=True, slots=True)
class Shelf:
    """A folder of layers, in which each user can look around."""

    folder: Path
    layer: Layer
    sites: Sites

    def state(self) -> dict[str, tuple[int, int, int, int]]:
        """Return what every file and folder of the layer is: nothing of it may ever change."""
        found = {}
        for path in sorted(self.layer.directory.rglob("*")):
            status = path.lstat()
            found[str(path)] = (
                status.st_mode,
                status.st_ino,
                status.st_size,
                status.st_mtime_ns,
            )
        return found


def lead(monkeypatch: pytest.MonkeyPatch, standin: StandIn, cache: Path) -> None:
    """Let this process meet the stand-in, and no server beside it."""
    settings = standin.environment(cache, hermetic=True)
    for name in settings.unset:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.set.items():
        if name != "TORCHENV_CACHE_DIR":
            monkeypatch.setenv(name, value)


def uv(*arguments: str) -> str:
    """Run uv as a person does; return all that it said."""
    done = subprocess.run(
        [find_uv_bin(), "pip", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def run(python: Path, *arguments: str) -> str:
    done = subprocess.run(
        [python, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()
