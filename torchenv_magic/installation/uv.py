"""The only door to uv: where it is, what it is told, how it is run and stopped.

Measured traps that this module takes care of (uv 0.13.9):

- `JPY_SESSION_NAME`, which Jupyter sets in kernels, silences uv's download lines and bars.
- On a pipe uv tells no bytes; on a pseudo-terminal it draws bars. But a pseudo-terminal that goes
  away (the kernel dies) kills uv half-way, so it is used for downloads only, never for a switch.
- A kernel's interrupt goes to its whole process group: uv gets a session of its own.
- Without `UV_LOCK_TIMEOUT` uv goes on *without its lock* after 300 s.
- uv brings its own certificates and reads no variable that pip and requests read: where a site
  inspects TLS, it fails while everything else works.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from packaging.version import Version

from torchenv_magic.errors import InstallCancelled, UvError
from torchenv_magic.web import trusted_certificates, without_login

__all__ = [
    "Cancellation",
    "Completed",
    "Lines",
    "Uv",
    "child_environment",
    "find_uv",
    "words",
]

logger = logging.getLogger(__name__)

# The first release whose `pip install` knows `--output-format json`, which plans are read from.
OLDEST_UV = Version("0.12.18")

_UPGRADE_HINT = "run `%pip install --upgrade uv`, then try again"
# SIGTERM ends uv at once (measured); what does not end then is stuck, and is killed.
_KILL_AFTER_SECONDS = 1.0


class Cancellation:
    """A person's wish to stop, which any thread may utter and running work acts on at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requested = False
        self._actions: list[Callable[[], None]] = []

    @property
    def requested(self) -> bool:
        """Whether `cancel` was called."""
        return self._requested

    def cancel(self) -> None:
        """Stop what runs now, and let nothing start any more."""
        with self._lock:
            self._requested = True
            actions = list(self._actions)
        for action in actions:
            action()

    @contextlib.contextmanager
    def stops(self, action: Callable[[], None]) -> Iterator[None]:
        """Call `action` if the wish is uttered while the block runs (at once, if it was before)."""
        with self._lock:
            self._actions.append(action)
            requested = self._requested
        try:
            if requested:
                action()
            yield
        finally:
            with self._lock:
                self._actions.remove(action)

    def raise_if_requested(self) -> None:
        """Raise InstallCancelled where the person wants to stop."""
        if self._requested:
            message = "Cancelled; the environment is as it was"
            raise InstallCancelled(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """How a run of uv ended."""

    arguments: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    """Human lines, without escape sequences."""


@lru_cache(maxsize=4)
def _version(binary: str, _changed: float) -> Version:
    try:
        completed = subprocess.run(
            [binary, "--version"],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            cwd=_working_directory(),
            timeout=20,
            check=True,
        )
        # `uv 0.13.9 (x86_64-unknown-linux-gnu)`
        return Version(completed.stdout.split()[1])
    except (OSError, subprocess.SubprocessError, IndexError, ValueError) as error:
        message = f"uv at `{binary}` does not run, so nothing can be installed"
        raise UvError(message, hint=_UPGRADE_HINT, detail=str(error)) from error


def find_uv() -> Uv:
    """Return uv from its PyPI package, checked for its version.

    Raises
    ------
    UvError
        uv is missing, does not run, or is older than what plans need.
    """
    try:
        import uv

        binary = uv.find_uv_bin()
    except (ImportError, FileNotFoundError) as error:
        message = "uv is not installed beside torchenv_magic, so nothing can be installed"
        raise UvError(message, hint="run `%pip install uv`, then try again") from error
    version = _version(binary, Path(binary).stat().st_mtime)
    if version < OLDEST_UV:
        message = f"uv {version} is too old: plans need uv {OLDEST_UV} or newer"
        raise UvError(message, hint=_UPGRADE_HINT)
    return Uv(binary=Path(binary), version=version)


# Who has set one of these has decided whom uv is to trust.
_CERTIFICATES = frozenset({"SSL_CERT_FILE", "SSL_CERT_DIR", "UV_SYSTEM_CERTS", "UV_NATIVE_TLS"})
# Set once that was needed in this process: the next run needs no second try.
_system_certificates = threading.Event()

_DROPPED = frozenset(
    {
        # Each would send uv to another environment than the one that is named.
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "UV_PYTHON",
        "UV_SYSTEM_PYTHON",
        "UV_BREAK_SYSTEM_PACKAGES",
        "UV_PROJECT",
        "UV_PROJECT_ENVIRONMENT",
        "UV_TORCH_BACKEND",
        "UV_WORKING_DIR",
        "PYTHONHOME",
        "PYTHONPATH",
        # What is resolved first has no hashes yet; what is installed is locked with them.
        "UV_REQUIRE_HASHES",
        # Each changes what is printed.
        "UV_NO_PROGRESS",
        "RUST_LOG",
        "FORCE_COLOR",
        "CLICOLOR_FORCE",
    }
)
# The server's and the hub's variables hold tokens, and JPY_SESSION_NAME silences the bars.
_DROPPED_PREFIXES = ("JPY_", "JUPYTERHUB_")


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what uv may know of `environ`: network, cache and credentials, no foreign target."""
    child = {
        name: value
        for name, value in environ.items()
        if name not in _DROPPED and not name.startswith(_DROPPED_PREFIXES)
    }
    # uv does not read pip's settings; a site's mirror is usually told to pip only.
    if "PIP_INDEX_URL" in environ and not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & environ.keys():
        child["UV_DEFAULT_INDEX"] = environ["PIP_INDEX_URL"]
    file, directory = trusted_certificates(environ)
    for name, value in (("SSL_CERT_FILE", file), ("SSL_CERT_DIR", directory)):
        if value and name not in environ:
            logger.info("uv is given %s=%s, which is set for pip or requests here", name, value)
            child[name] = value
    child.update(
        NO_COLOR="1",
        UV_LOCK_TIMEOUT="86400",
        UV_PYTHON_DOWNLOADS="never",
        PYTHONIOENCODING="utf-8",
    )
    return child


# What indicatif draws: spinners, bars, counters. None of it is words.
_DRAWN = re.compile(
    r"[\u2800-\u28ff]|-{30}|[░█]|^Preparing packages\.\.\.|^Resolving dependencies\.\.\."
)
_ERASE_LINE = "\x1b[2K"
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def words(text: str) -> str:
    r"""Return the lines of uv's stderr that are meant to be read, without what it drew and erased.

    >>> words("\x1b[2K⠙ Resolving...\r\x1b[2KResolved 2 packages in 3ms\r\n")
    'Resolved 2 packages in 3ms'
    """
    lines = [line.rstrip("\r").rpartition(_ERASE_LINE)[2] for line in text.split("\n")]
    kept = [_ESCAPE.sub("", line).rstrip().rpartition("\r")[2] for line in lines]
    return "\n".join(line for line in kept if not _DRAWN.search(line)).strip("\n")


@dataclass(slots=True)
class Lines:
    """Passes on each line that is meant to be read, once it is whole."""

    on_line: Callable[[str], None]
    _open: str = ""

    def feed(self, text: str) -> None:
        """Take what came; of what was drawn and erased in between nothing is kept."""
        *whole, self._open = (self._open + text).split("\n")
        self._open = self._open[-_LONGEST_LINE:]
        for line in words("\n".join(whole)).splitlines():
            if line.strip():
                self.on_line(without_login(line.strip()))


_LONGEST_LINE = 100_000
"""Characters. While it draws bars uv ends no line."""

_LONGEST_KEPT = 400_000
"""Characters. A download of an hour draws 50 MB of bars; the words stand at the end."""


@dataclass(slots=True)
class _Reader:
    """Collects what a pipe or pseudo-terminal says, and passes it on as it comes."""

    descriptor: int
    on_text: Callable[[str], None] | None = None
    longest: int | None = None
    parts: deque[str] = field(default_factory=deque)
    _length: int = 0

    def read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while True:
            try:
                chunk = os.read(self.descriptor, 65536)
            except OSError:
                # Linux says EIO at the end of a pseudo-terminal.
                break
            if not chunk:
                break
            self._take(decoder.decode(chunk))

    def _take(self, text: str) -> None:
        self.parts.append(text)
        self._length += len(text)
        while self.longest is not None and self._length > self.longest and len(self.parts) > 1:
            self._length -= len(self.parts.popleft())
        if self.on_text is None:
            return
        try:
            self.on_text(text)
        except Exception:
            # Nobody would empty the pipe any more, and uv would wait for that for ever.
            logger.exception("a listener failed")
            self.on_text = None

    @property
    def text(self) -> str:
        return "".join(self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uv:
    """A uv that was found and is new enough."""

    binary: Path
    version: Version

    def run(
        self,
        arguments: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        stdin: str | None = None,
        bars: bool = False,
        on_text: Callable[[str], None] | None = None,
        cancellation: Cancellation | None = None,
    ) -> Completed:
        """Run uv to its end and return what it said; a failure is the caller's to word.

        `bars` gives stderr a pseudo-terminal where the system has one; `on_text` then gets the
        frames, else the lines, as they come.

        Raises
        ------
        InstallCancelled
            `cancellation` was uttered before or while it ran. uv has ended.
        UvError
            uv can't be started.
        """
        cancellation = cancellation or Cancellation()
        environment = child_environment(os.environ if environ is None else environ)
        own = _CERTIFICATES.isdisjoint(environment)
        if own and _system_certificates.is_set():
            environment["UV_SYSTEM_CERTS"] = "1"
        completed = self._run(arguments, environment, stdin, bars, on_text, cancellation)
        if (
            completed.returncode != 0
            and own
            and not _system_certificates.is_set()
            and "UnknownIssuer" in completed.stderr
        ):
            # Who inspects TLS has put the authority where the system keeps its own.
            said = "uv's own certificates don't fit: asking with those of this system"
            logger.info(said)
            if on_text is not None:
                on_text(f"{said}\n")
            environment["UV_SYSTEM_CERTS"] = "1"
            again = self._run(arguments, environment, stdin, bars, on_text, cancellation)
            if "UnknownIssuer" in again.stderr:
                return completed
            _system_certificates.set()
            return again
        return completed

    def _run(  # noqa: PLR0917  (what `run` was told)
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        stdin: str | None,
        bars: bool,  # noqa: FBT001
        on_text: Callable[[str], None] | None,
        cancellation: Cancellation,
    ) -> Completed:
        cancellation.raise_if_requested()
        logger.debug("running uv %s", arguments)
        terminal = _open_terminal() if bars else None
        if terminal is not None:
            environment["TERM"] = "xterm-256color"
        try:
            process = self._start(arguments, environment, stdin is not None, terminal)
            readers = _readers(process, terminal, on_text)
            threads = [threading.Thread(target=reader.read, daemon=True) for reader in readers]
            for thread in threads:
                thread.start()
            try:
                with cancellation.stops(lambda: _stop(process)):
                    _feed(process, stdin)
                    process.wait()
                    for thread in threads:
                        thread.join()
            finally:
                # After an exception of the caller's thread: uv must not outlive it, and its pipes
                # must not be closed under those who read them.
                _stop(process)
                process.wait()
                for thread in threads:
                    thread.join(_KILL_AFTER_SECONDS)
                for pipe in (process.stdout, process.stderr):
                    if pipe is not None:
                        pipe.close()
        finally:
            if terminal is not None:
                os.close(terminal[0])
        if process.returncode != 0:
            cancellation.raise_if_requested()
        out, err = readers
        return Completed(
            arguments=tuple(arguments),
            returncode=process.returncode,
            stdout=out.text,
            stderr=without_login(words(err.text)),
        )

    def _start(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        talks: bool,  # noqa: FBT001
        terminal: tuple[int, int] | None,
    ) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [str(self.binary), *arguments],
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=terminal[1] if terminal else subprocess.PIPE,
                env=environment,
                cwd=_working_directory(),
                start_new_session=True,
                creationflags=_APART_ON_WINDOWS,
            )
        except OSError as error:
            message = f"uv at `{self.binary}` can't be started: {error.strerror}"
            raise UvError(message, hint=_UPGRADE_HINT) from error
        finally:
            if terminal is not None:
                os.close(terminal[1])

    def cache_directory(self, environ: Mapping[str, str] | None = None) -> Path:
        """Return uv's cache directory, as uv itself names it.

        Raises
        ------
        UvError
            uv's configuration can't be read.
        """
        environment = os.environ if environ is None else environ
        return _cache_directory(self, frozenset(environment.items()), _working_directory())


@lru_cache(maxsize=4)
def _cache_directory(
    uv: Uv, environ: frozenset[tuple[str, str]], _working_directory: str | None
) -> Path:
    completed = uv.run(["cache", "dir"], environ=dict(environ))
    path = completed.stdout.strip()
    if completed.returncode != 0 or not path:
        message = f"uv can't name its cache: {completed.stderr.strip() or 'it said nothing'}"
        raise UvError(message, hint="mend what it names in uv's configuration, then try again")
    return Path(path)


def _working_directory() -> str | None:
    """Return where uv runs: where we are, for the sake of the project's own configuration.

    uv does nothing in a folder that was deleted.
    """
    try:
        Path.cwd()
    except OSError:
        return os.path.abspath(os.sep)  # noqa: PTH100
    return None


def _feed(process: subprocess.Popen[bytes], stdin: str | None) -> None:
    if stdin is not None and process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(stdin.encode())
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _readers(
    process: subprocess.Popen[bytes],
    terminal: tuple[int, int] | None,
    on_text: Callable[[str], None] | None,
) -> tuple[_Reader, _Reader]:
    """Return the readers of stdout and of stderr."""
    out = process.stdout.fileno() if process.stdout else -1
    if terminal is not None:
        return _Reader(out), _Reader(terminal[0], on_text, _LONGEST_KEPT)
    return _Reader(out), _Reader(process.stderr.fileno() if process.stderr else -1, on_text)


_APART_ON_WINDOWS = 0
if sys.platform == "win32":
    _APART_ON_WINDOWS = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW


def _open_terminal() -> tuple[int, int] | None:
    """Return a pseudo-terminal's two ends, wide enough for every bar; None where there is none."""
    if sys.platform == "win32":
        return None
    import fcntl
    import pty
    import struct
    import termios

    try:
        master, slave = pty.openpty()
    except OSError:
        return None
    # A terminal of few rows hides the smaller bars.
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 200, 200, 0, 0))
    return master, slave


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End uv and its children: asked first, killed when it does not listen."""
    if process.poll() is not None:
        return
    if sys.platform == "win32":
        process.terminate()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)

    def kill() -> None:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(_KILL_AFTER_SECONDS, kill)
    timer.daemon = True
    timer.start()
