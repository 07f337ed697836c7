"""Fetch what a lock names and unpack it beside the environment, which stays untouched meanwhile.

One run of uv downloads, checks the hashes, fills the cache and links into the stage: the same work
as a plain `uv pip install`, and no more.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from torchenv_magic.errors import InstallCancelled, InstallError, TargetError
from torchenv_magic.installation.failures import explain, lacks_in_cache
from torchenv_magic.installation.narrator import Narrator, Silence, http_timeout
from torchenv_magic.installation.plan import (
    LockedPackage,
    Plan,
    lock_of,
    source_arguments,
)
from torchenv_magic.installation.progress import BarReader, OnEvent, format_bytes
from torchenv_magic.installation.sources import source_environment
from torchenv_magic.installation.uv import Cancellation, Uv

__all__ = ["cached_packages", "is_local", "stage"]

_PREFIX = "torchenv-question-"


def is_local(address: str | None) -> bool:
    """Whether a lock's address is a file of this machine."""
    return address is not None and urlsplit(address).scheme in ("", "file")


def stage(
    plan: Plan,
    folder: Path,
    *,
    uv: Uv,
    on_event: OnEvent,
    cancellation: Cancellation,
    silence: Silence | None = None,
) -> None:
    """Install what the plan's lock names into `folder`, with bytes where the system has bars.

    `silence` notices that no byte comes for long: by default as long as uv's own patience says.

    Raises
    ------
    InstallCancelled
        What was fetched whole stays in uv's cache.
    SourceError, InstallError, DiskSpaceError, UvError
    """
    with _written(plan.lock, plan.lock_format) as file:
        arguments = _arguments(plan.python, file, plan.lock_format, f"--prefix={folder}")
        if plan.lock_format == "requirements":
            arguments += source_arguments(plan.source, plan.backend)
        completed = None
        if plan.downloads and all(download.cached for download in plan.downloads):
            narrator = _narrator(plan, on_event, silence)
            narrator.begin("link", _linking(plan))
            completed = uv.run(
                [*arguments, "--offline"],
                environ=source_environment(plan.source, os.environ),
                bars=True,
                on_text=narrator.feed,
                cancellation=cancellation,
            )
        # Else, or where the cache was emptied since the plan was made. uv has all before it links
        # the first: a stage that is half full failed for another reason, and stays as it is.
        if completed is None or (lacks_in_cache(completed) and not plan.offline):
            narrator = _narrator(plan, on_event, silence)
            if plan.download_bytes or plan.unknown_sizes or completed is not None:
                narrator.begin("download", f"Downloading from {plan.source}")
            else:
                narrator.begin("unpack", f"Unpacking from {plan.source}")
            completed = uv.run(
                arguments,
                environ=source_environment(plan.source, os.environ),
                bars=True,
                on_text=narrator.feed,
                cancellation=cancellation,
            )
    if completed.returncode != 0:
        raise explain(completed, subject=f"torch for {plan.backend}")


def _narrator(plan: Plan, on_event: OnEvent, silence: Silence | None) -> Narrator:
    fetched = [item for item in plan.downloads if not item.cached and not item.local]
    bars = BarReader(
        expected={item.name: item.size_bytes for item in fetched if item.size_bytes},
        unknown=frozenset(item.name for item in fetched if item.size_bytes is None),
    )
    silence = silence or Silence(retry_seconds=http_timeout(os.environ))
    return Narrator(bars, on_event, linking=_linking(plan), silence=silence)


def _linking(plan: Plan) -> str:
    count = len(plan.versions)
    packages = f"{count} package{'' if count == 1 else 's'}"
    copied = sum(need.copied_bytes for need in plan.space)
    if copied:
        return f"Copying {packages} from uv's cache, about {format_bytes(copied)}"
    return f"Linking {packages} from uv's cache"


def _is_cached(uv: Uv, python: Path, lock: str, cancellation: Cancellation) -> bool:
    """Return whether uv's cache has all of a pylock, by trying it without a network.

    uv knows no question for that: the dry run of a lock calls every package uncached. Where one is
    missing it says so within 30 ms; where all are there it begins to link, and is stopped.
    """
    attempt = Cancellation()

    def hear(text: str) -> None:
        if "Installing wheels" in text:
            attempt.cancel()

    with _throw_away(uv) as target, _written(lock, "pylock") as file:
        arguments = _arguments(python, file, "pylock", f"--target={target}")
        with cancellation.stops(attempt.cancel):
            try:
                completed = uv.run(
                    [
                        *arguments,
                        "--offline",
                        "--no-compile-bytecode",
                        # Whatever the person chose for environments: nobody will use this one.
                        "--link-mode=hardlink",
                    ],
                    bars=True,
                    on_text=hear,
                    cancellation=attempt,
                )
            except InstallCancelled:
                cancellation.raise_if_requested()
                return True
    return completed.returncode == 0


def cached_packages(
    uv: Uv,
    python: Path,
    lock: str,
    packages: Sequence[LockedPackage],
    cancellation: Cancellation,
) -> frozenset[str]:
    """Return the names of those packages of a pylock that uv's cache has."""
    # A wheel in a folder needs no network, and would be unpacked here and now.
    remote = [package.name for package in packages if not is_local(package.address)]

    def has(names: Sequence[str]) -> bool:
        return not names or _is_cached(uv, python, lock_of(lock, names), cancellation)

    # Mostly nothing is there, and torch alone tells that; where it is, the rest counts too.
    others = [name for name in remote if name != "torch"]
    if "torch" in remote and not has(["torch"]):
        return frozenset()
    if has(others):
        return frozenset(remote)
    if "torch" not in remote:
        return frozenset()
    return frozenset(["torch", *(name for name in others if has([name]))])


def _arguments(python: Path, file: Path, lock_format: str, destination: str) -> list[str]:
    return [
        "pip",
        "install",
        f"--python={python}",
        destination,
        "--no-deps",
        f"--requirements={file}",
        *(["--preview-features=pylock"] if lock_format == "pylock" else []),
    ]


@contextlib.contextmanager
def _written(lock: str, lock_format: str) -> Iterator[Path]:
    """Write the lock where uv can read it, for as long as the block runs."""
    name = "pylock.toml" if lock_format == "pylock" else "requirements.txt"
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="torchenv-"))
            file = Path(folder, name)
            file.write_text(lock, encoding="utf-8")
        except OSError as error:
            # Not the environment's disk, nor that of uv's cache: a person would look at both.
            raise InstallError(
                f"The folder for temporary files, `{tempfile.gettempdir()}`, can't be written: "
                f"{error.strerror}",
                hint="free some space there, or set TMPDIR to a folder that can be written",
            ) from error
        yield file


@contextlib.contextmanager
def _throw_away(uv: Uv) -> Iterator[Path]:
    """Lend a folder on the cache's own file system, where links cost no space."""
    cache = uv.cache_directory()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for left in cache.glob(f"{_PREFIX}*"):
            # Of a run that was killed: its process id is in the name.
            if not _alive(left.name.removeprefix(_PREFIX).partition("-")[0]):
                _remove(left)
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=cache))
    except OSError as error:
        message = f"uv's cache at `{cache}` can't be written: {error.strerror}"
        raise TargetError(message, hint="set UV_CACHE_DIR to a folder of your own") from error
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
    threading.Thread(
        target=shutil.rmtree, args=(folder, True), name="torchenv-sweep", daemon=False
    ).start()
