"""Fill uv's cache with everything that a lock names, while the environment is untouched.

uv has no command that only downloads: an install into a throw-away folder on the cache's own file
system does it, with hard links, so that nothing is stored twice.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from torchenv_magic.errors import DiskSpaceError
from torchenv_magic.installation.failures import explain
from torchenv_magic.installation.plan import Plan, source_arguments
from torchenv_magic.installation.progress import BarReader, Event, OnEvent, format_bytes
from torchenv_magic.installation.uv import Cancellation, Completed, Uv

__all__ = ["check_space", "is_local", "lock_arguments", "prefetch", "prefetch_offline", "written"]

_PREFIX = "torchenv-prefetch-"


def is_local(address: str | None) -> bool:
    """Whether a lock's address is a file of this machine."""
    return address is not None and urlsplit(address).scheme in ("", "file")


@contextlib.contextmanager
def written(lock: str, lock_format: str) -> Iterator[Path]:
    """Write the lock where uv can read it, for as long as the block runs."""
    name = "pylock.toml" if lock_format == "pylock" else "requirements.txt"
    with tempfile.TemporaryDirectory(prefix="torchenv-") as folder:
        file = Path(folder, name)
        file.write_text(lock, encoding="utf-8")
        yield file


def lock_arguments(plan: Plan, file: Path) -> list[str]:
    """Return uv's options that install exactly what the plan's lock names."""
    arguments = ["--no-deps", f"--requirements={file}"]
    if plan.lock_format == "pylock":
        return ["--preview-features=pylock", *arguments]
    return [*arguments, *source_arguments(plan.source, plan.backend)]


def prefetch_offline(
    uv: Uv,
    python: Path,
    lock: str,
    rows: Sequence[tuple[str, str, str | None, int | None]],
    cancellation: Cancellation,
) -> bool:
    """Return whether uv's cache has all of the lock, by trying it without a network.

    uv knows no question for that: the dry run of a lock calls every package uncached. Where one is
    missing it says so within 30 ms; where all are there, linking them costs what a switch costs.
    """
    if any(is_local(address) for _, _, address, _ in rows):
        # A wheel in a folder needs no network, and would be unpacked here and now.
        return False
    with _throw_away(uv) as target, written(lock, "pylock") as file:
        completed = uv.run(
            [
                "pip",
                "install",
                "--offline",
                "--quiet",
                f"--python={python}",
                f"--target={target}",
                "--no-deps",
                "--preview-features=pylock",
                f"--requirements={file}",
            ],
            cancellation=cancellation,
        )
    return completed.returncode == 0


def prefetch(plan: Plan, *, uv: Uv, on_event: OnEvent, cancellation: Cancellation) -> None:
    """Fetch what the plan's lock names into uv's cache, with bytes where the system has bars.

    Raises
    ------
    InstallCancelled
        What was fetched whole stays in the cache.
    SourceError, InstallError, DiskSpaceError
        The download failed; the environment is untouched.
    """
    bars = BarReader()
    on_event(Event(phase="download", message=f"Downloading from {plan.source}"))

    def read(text: str) -> None:
        if (progress := bars.feed(text)) is not None:
            on_event(Event(phase="download", bytes=progress))

    with _throw_away(uv) as target, written(plan.lock, plan.lock_format) as file:
        completed = uv.run(
            [
                "pip",
                "install",
                f"--python={plan.python}",
                f"--target={target}",
                *lock_arguments(plan, file),
            ],
            bars=True,
            on_text=read,
            cancellation=cancellation,
        )
    _log(completed, on_event)
    if completed.returncode != 0:
        raise explain(completed, subject=f"torch for {plan.backend}")
    on_event(Event(phase="download", message="Downloaded", bytes=bars.finish()))


def _log(completed: Completed, on_event: OnEvent) -> None:
    # On a terminal the lines come between frames: only the last words are lines of their own.
    for line in completed.stderr.splitlines():
        text = line.strip()
        if text.startswith(("error", "warning", "cause", "hint", "Prepared", "×", "╰")):
            on_event(Event(phase="download", log=text))


@contextlib.contextmanager
def _throw_away(uv: Uv) -> Iterator[Path]:
    cache = uv.cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    for left in cache.glob(f"{_PREFIX}*"):
        # Of a run that was killed: its process id is in the name.
        if not _alive(left.name.removeprefix(_PREFIX).partition("-")[0]):
            _remove(left)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=cache))
    try:
        yield folder
    finally:
        _remove(folder)


def _alive(text: str) -> bool:
    if not text.isdigit() or sys.platform == "win32":
        # os.kill(pid, 0) would end the process on Windows; what is left is for `uv cache clean`.
        return True
    try:
        os.kill(int(text), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(folder: Path) -> None:
    """Delete in the background: twelve thousand links take up to a second."""
    thread = threading.Thread(target=shutil.rmtree, args=(folder, True), daemon=True)
    thread.start()


def check_space(
    plan: Plan, *, uv: Uv, free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
) -> None:
    """Raise DiskSpaceError where the plan's packages, unpacked, don't fit.

    The cache needs all of it unpacked; the environment needs it once more only where it lies on
    another file system, since uv links otherwise.
    """
    need = plan.disk_bytes
    if not need:
        return
    cache = uv.cache_directory()
    while not cache.exists():
        cache = cache.parent
    places = {cache.stat().st_dev: cache}
    places.setdefault(plan.prefix.stat().st_dev, plan.prefix)
    for place in places.values():
        available = free(place)
        if available < need:
            message = (
                f"The plan needs about {format_bytes(need)} on the disk of {place}; "
                f"{format_bytes(available)} are free."
            )
            raise DiskSpaceError(
                message, hint="free some space, or set UV_CACHE_DIR to a larger disk"
            )
