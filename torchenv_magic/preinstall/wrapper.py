"""`torchenv preinstall … -- COMMAND`: begin the install, wait a little, and become the server.

Whatever happens here the server is started: a hub shows a person nothing but a time-out where its
command ends early, and an install that failed is told by the record instead. A process that
becomes the server keeps its number, so the hub's signals reach it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torchenv_magic.preinstall.launch import Begun, NotBegunError, begin
from torchenv_magic.preinstall.record import LOG_NAME, Record, is_running, own_user, read_record
from torchenv_magic.preinstall.wish import (
    Wish,
    absolute,
    checked_backend,
    checked_requirements,
    checked_seconds,
    is_backend,
    is_off,
    wish_of,
)

__all__ = ["OPTIONS", "main"]

OPTIONS = ("--backend", "--wait", "--env")
_MISSPELT = 2
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127
_POLL_SECONDS = 0.1


def main(arguments: Sequence[str]) -> int:
    """Begin the install and become the COMMAND; return only where there is none, or no such one."""
    before, command = _parted(arguments)
    environment = dict(os.environ)
    ending = _Ending()
    status = 0
    try:
        status = _preinstall(before, environment, ending, is_server=bool(command))
    except Exception as error:  # noqa: BLE001  (the server starts, whatever is wrong with us)
        _say(f"PyTorch is not being installed: {type(error).__name__}: {error}")
    ending.end_if_asked()
    return _become(command, environment) if command else status


def _parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what stands before the first `--`, and after it."""
    texts = list(arguments)
    place = texts.index("--") if "--" in texts else len(texts)
    return texts[:place], texts[place + 1 :]


def _preinstall(
    before: Sequence[str], environment: dict[str, str], ending: _Ending, *, is_server: bool
) -> int:
    """Begin, and wait; add to the environment what the server has to know."""
    if {"-h", "--help"} & set(before):
        return _help()
    if is_off(environment):
        return 0
    try:
        wish = _read(before, wish_of(environment))
        if not is_server:
            _check_no_program(wish.requirements, environment.get("PATH", os.defpath))
    except _Misspelt as error:
        _say(f"{error}; PyTorch is not being installed (`torchenv preinstall -h` shows how)")
        return _MISSPELT
    try:
        begun = begin(wish, environ=environment, offers_kernel=not is_server)
    except NotBegunError as error:
        environment.update(error.variables)
        place = f"`{error.filename}`: " if error.filename else ""
        _say(
            f"PyTorch is not being installed: {place}{error.strerror} (hint: free some space "
            "there, or see who may write)"
        )
        return 0
    environment.update(begun.variables)
    record = read_record(begun.directory, owner=own_user())
    if record is not None and begun.running:
        _say(f"installing PyTorch into {record.target}; its log is {begun.directory / LOG_NAME}")
        if wish.wait_seconds > 0:
            record = _wait(begun, wish.wait_seconds, environment, ending)
            _say(_outcome(record, wish.wait_seconds))
    elif record is not None:
        _say(_outcome(record, 0))
    return 0


def _wait(
    begun: Begun, seconds: float, environment: dict[str, str], ending: _Ending
) -> Record | None:
    """Wait until the install has ended, or long enough; return how it stands then."""
    from torchenv_magic.preinstall.posting import Poster

    poster = Poster(environment)
    end = time.monotonic() + seconds
    while True:
        record = read_record(begun.directory, owner=own_user())
        is_over = record is None or not is_running(record) or time.monotonic() >= end
        if record is None or is_over or ending.is_asked:
            break
        poster.tell(record)
        time.sleep(min(_POLL_SECONDS, max(end - time.monotonic(), 0)))
    if not ending.is_asked:
        poster.finish(record)
    return record


def _outcome(record: Record | None, waited: float) -> str:
    if record is None:
        return "how the install stands can't be read; the server starts"
    if record.status == "running":
        if is_running(record):
            return f"the server starts after {waited:.0f} s; the install goes on beside it"
        return "the install was ended from outside; the next start repairs what it left"
    hint = f" (hint: {record.hint})" if record.hint else ""
    return f"{record.message}{hint}"


def _help() -> int:
    from torchenv_magic.words import HelpRequested, parse_words

    try:
        parse_words(["preinstall", "-h"], notebook=False)
    except HelpRequested as request:
        sys.stdout.write(f"{request.text}\n")
        sys.stdout.flush()
    return 0


# ------------------------------------------------------------------------------------ what is asked


class _Misspelt(Exception):  # noqa: N818  (it says what is wrong)
    pass


@dataclass(slots=True)
class _Options:
    backend: str | None = None
    wait: str | None = None
    env: str | None = None


def _read(texts: Sequence[str], wish: Wish) -> Wish:
    """Return the wish with what the line says of it."""
    options = _Options()
    requirements = []
    rest = list(texts)
    while rest:
        text = rest.pop(0)
        if not text.startswith("-"):
            if options.backend is None and is_backend(text):
                options.backend = text
            else:
                requirements.append(text)
            continue
        name, has_value, value = text.partition("=")
        if name not in OPTIONS:
            raise _Misspelt(f"`{name}` is not an option of `torchenv preinstall`")
        if not has_value:
            if not rest:
                raise _Misspelt(f"`{name}` needs a value")
            value = rest.pop(0)
        setattr(options, name[2:], value)
    try:
        if options.backend is not None:
            wish = replace(wish, backend=checked_backend(options.backend))
        if requirements:
            wish = replace(wish, requirements=checked_requirements(requirements))
    except ValueError as error:
        raise _Misspelt(f"`{error}` is neither a backend nor a package with a version") from None
    try:
        if options.wait is not None:
            wish = replace(wish, wait_seconds=checked_seconds(options.wait))
    except ValueError:
        raise _Misspelt("`--wait` takes a number of seconds") from None
    if options.env is not None:
        if not options.env:
            raise _Misspelt("`--env` needs a folder")
        wish = replace(wish, environment=absolute(options.env))
    return wish


def _check_no_program(requirements: Sequence[str], path: str) -> None:
    """Refuse a server's name where its `--` was forgotten: anybody may give a package that name."""
    asked = [text for text in requirements if text != "torch"]
    for place, text in enumerate(asked):
        is_program = place == 0 and any(
            os.access(f"{folder}{os.sep}{text}", os.X_OK)
            for folder in path.split(os.pathsep)
            if folder
        )
        if is_program or text.startswith(("jupyter", "batchspawner")):
            raise _Misspelt(f"`{text}` is a program: write `--` before the command of the server")


# --------------------------------------------------------------------------------- signals, the end


class _Ending:
    """Takes the signals that end a server, for as long as this is none yet.

    Nothing is done in the handler: what it interrupts may hold any lock.
    """

    def __init__(self) -> None:
        self._number = 0
        self._taken: list[int] = []
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # Who started this may have had one ignored (`nohup`), and so it stays.
            with contextlib.suppress(ValueError, OSError):  # not the main thread
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, self._note)
                    self._taken.append(number)

    @property
    def is_asked(self) -> bool:
        return bool(self._number)

    def _note(self, number: int, _frame: object) -> None:
        self._number = number

    def end_if_asked(self) -> None:
        """End as a program that knows nothing of signals; else let them through from now on."""
        for number in self._taken:
            signal.signal(number, signal.SIG_DFL)
        if self._number:
            os.kill(os.getpid(), self._number)
            # The first process of a container ends by no signal that it has not asked for.
            os._exit(128 + self._number)


def _become(command: list[str], environment: dict[str, str]) -> int:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
    try:
        if sys.platform == "win32":
            import subprocess

            # There a program that replaces another one has another number.
            return subprocess.run(command, env=environment, check=False).returncode
        for name in ("SIGPIPE", "SIGXFSZ"):
            # Python ignores these, and whoever it becomes would too.
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
        os.execvpe(command[0], command, environment)  # noqa: S606
    except FileNotFoundError:
        _say(f"there is no program `{command[0]}`")
        return _NOT_FOUND
    except OSError as error:
        _say(f"`{command[0]}` can't be started: {error.strerror}")
        return _NOT_EXECUTABLE


def _say(text: str) -> None:
    """Say one line where the server's own log begins."""
    line = "".join(sign if sign.isprintable() else "?" for sign in text)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"torchenv: {line}\n")
        sys.stderr.flush()
