"""Where the package keeps what it may lose: a folder of the user's."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["cache_folder", "listing_file"]


def listing_file(environ: Mapping[str, str], *, mirror: str | None = None) -> Path | None:
    """Return the file that holds what the PyTorch index, or a mirror of it, said last."""
    folder = cache_folder(environ)
    if folder is None:
        return None
    if mirror is None:
        return folder / "index.json"
    from hashlib import sha256

    return folder / f"index-{sha256(mirror.encode()).hexdigest()[:16]}.json"


def cache_folder(
    environ: Mapping[str, str], *, system: str = sys.platform, home: Path | None = None
) -> Path | None:
    """Return the folder; None where there is no home to keep it in. `system` is `sys.platform`."""
    if named := environ.get("TORCHENV_CACHE_DIR"):
        return Path(named)
    if home is None:
        try:
            home = Path.home()
        except RuntimeError:
            # A user id without a name and HOME, as containers have it.
            return None
    if system == "win32":
        base = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif system == "darwin":
        base = home / "Library" / "Caches"
    else:
        named = environ.get("XDG_CACHE_HOME", "")
        # A relative one is to be ignored, its specification says.
        base = Path(named) if named.startswith("/") else home / ".cache"
    return base / "torchenv_magic"
