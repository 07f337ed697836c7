"""Where a user's own environments lie. Apart from what makes them: a server's start asks it too."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["data_folder", "python_in"]


def data_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder for what this user keeps, as their system has it.

    It begins with a `~` where the user has no home.
    """
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  (Path.home() fails where there is none)
    if sys.platform == "win32":
        base = environ.get("LOCALAPPDATA") or str(home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(home / "Library" / "Application Support")
    else:
        base = environ.get("XDG_DATA_HOME") or ""
        # The standard: a relative path is to be ignored.
        base = base if Path(base).is_absolute() else str(home / ".local" / "share")
    return Path(base) / "torchenv"


def python_in(folder: Path) -> Path:
    """Return the interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
