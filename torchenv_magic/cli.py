"""The `torchenv` command: the words of `%torchenv` for a terminal and for scripts."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TextIO

from torchenv_magic.errors import (
    BusyError,
    ConsentError,
    InstallCancelled,
    RequestError,
    SelectionError,
    TorchEnvError,
)
from torchenv_magic.serialization import to_json
from torchenv_magic.words import HelpRequested, Words, overview, parse_words

# What a word needs is imported in it: `torchenv select` answers in a fraction of the time that the
# modules of an install take to import.
if TYPE_CHECKING:
    from pathlib import Path

    from torchenv_magic.builds.backend import Backend
    from torchenv_magic.builds.current import Refresh
    from torchenv_magic.doctor import Diagnosis
    from torchenv_magic.environment import Environment
    from torchenv_magic.installation.install import Result
    from torchenv_magic.installation.plan import Plan
    from torchenv_magic.installation.progress import OnEvent
    from torchenv_magic.installation.settings import Sites
    from torchenv_magic.installation.uv import Cancellation
    from torchenv_magic.selection import Selection
    from torchenv_magic.status import Status
    from torchenv_magic.verification import Verification

__all__ = ["main"]

_FAILED, _MISSPELT = 1, 2
_DETAIL_LINES = 40
_MOST_ROUNDS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one word; return 0 where it was done, 1 where it failed, 2 where it was misspelt."""
    texts = sys.argv[1:] if arguments is None else list(arguments)
    if texts[:1] == ["preinstall"]:
        # It becomes another program, also where it is misspelt.
        from torchenv_magic.preinstall.wrapper import main as preinstall

        return preinstall(texts[1:])
    for stream in (sys.stdout, sys.stderr):
        # A terminal or a pipe of another encoding than UTF-8 gets a question mark, not an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        status = _run(texts)
        # Here and not at exit, where Python would complain of a reader that has gone.
        sys.stdout.flush()
    except BrokenPipeError:  # `torchenv list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    return status


def _run(texts: Sequence[str]) -> int:
    if not texts:
        _talk(overview(notebook=False))
        return _MISSPELT
    if list(texts) in (["--version"], ["-V"]):
        from torchenv_magic import __version__

        print(f"torchenv {__version__}")
        return 0
    words = None
    if _speaks_json(texts):
        # Python writes a warning that nobody handles to stderr, in words.
        logging.getLogger("torchenv_magic").addHandler(logging.NullHandler())
    try:
        words = parse_words(texts, notebook=False)
        return _WORDS[words.word](words)
    except HelpRequested as request:
        print(request.text)
        return 0
    except TorchEnvError as error:
        if words is not None:
            if words.word in ("install", "undo"):
                _say_what_stands(error, words)
            _aim_error(error, words)
        if "--json" in texts:
            _print_json({"error": error.to_json()})
        _tell(error, as_json=_speaks_json(texts))
        return error.exit_status
    except KeyboardInterrupt:
        return _stopped(
            "Stopped; nothing was changed",
            data={} if "--json" in texts else None,
            as_json=_speaks_json(texts),
        )


def _say_what_stands(error: TorchEnvError, words: Words) -> None:
    from torchenv_magic.environment import read_environment
    from torchenv_magic.status import say_what_stands

    # Where there is no such environment, the error itself says so.
    with contextlib.suppress(TorchEnvError):
        say_what_stands(error, read_environment(words.python))


# Their stderr is read by programs too: a JSON object a line, events and at most one error.
_EVENTFUL = frozenset({"plan", "install", "undo", "new-kernel", "download", "layer", "prefetch"})


def _speaks_json(texts: Sequence[str]) -> bool:
    return "--json" in texts and not _EVENTFUL.isdisjoint(texts[:1])


def _stopped(message: str, *, data: dict[str, Any] | None, as_json: bool) -> int:
    """Say so; `data` is what was done before, None where nobody reads JSON."""
    error = InstallCancelled(message)
    if data is not None:
        _print_json({**data, "error": error.to_json()})
    if as_json:
        _tell(error, as_json=True)
    else:
        _talk(f"{message[0].lower()}{message[1:]}")
    return _FAILED


# ------------------------------------------------------------------------------------- the words


def _refresh(words: Words) -> Refresh:
    return "always" if words.refresh else "never"


def _selection(words: Words) -> Selection:
    from torchenv_magic.status import read_selection

    return read_selection(words.request, python=words.python, refresh=_refresh(words))


def _status(words: Words) -> int:
    from torchenv_magic.status import read_status

    status = read_status(words.request, python=words.python, refresh=_refresh(words))
    return _print(words, str(status), to_json(status))


def _list(words: Words) -> int:
    selection = _selection(words)
    return _print(words, str(selection), to_json(selection.alternatives))


def _detect(words: Words) -> int:
    from torchenv_magic.accelerators import detect

    host = detect()
    return _print(words, str(host), to_json(host))


def _select(words: Words) -> int:
    from torchenv_magic.selection import selection_to_json

    selection = _selection(words)
    return _print(words, str(selection), selection_to_json(selection))


def _plan(words: Words) -> int:
    with _stoppable() as cancellation:
        plan = _make_plan(words, cancellation)
    data = to_json(plan)
    data.update(
        download_bytes=plan.download_bytes,
        nothing_to_do=plan.nothing_to_do,
        summary=plan.summary,
    )
    return _print(words, str(plan), data)


def _install(words: Words) -> int:
    from torchenv_magic.installation.install import install_plan

    rounds = 0
    while True:
        rounds += 1
        with _stoppable() as cancellation:
            plan = _make_plan(words, cancellation, waits=True)
            if words.json or plan.nothing_to_do:
                _mention(words, *plan.notes)
            else:
                _print_text(str(plan))
        _check_consent(words, plan)
        try:
            with _stoppable() as cancellation, _progress(words) as progress:
                result = install_plan(
                    plan, command=words.line, on_event=progress, cancellation=cancellation
                )
        except BusyError:
            # Where another install began or ended while this one planned, this one plans anew, but
            # not for ever: what is in the way may be there to stay.
            if rounds == _MOST_ROUNDS:
                raise
        else:
            return _prove(words, result)


def _prove(words: Words, result: Result) -> int:
    """Say what was done, and prove that what is there now works."""
    from torchenv_magic.installation.progress import Event
    from torchenv_magic.status import read_repaired
    from torchenv_magic.verification import verify

    if not words.json:
        for text in filter(None, (result.recovered, str(result))):
            _print_text(_colored(text, "32", sys.stdout))
    try:
        # Read anew: it is another environment now.
        environment, _, _ = read_repaired(words.python)
        if result.undone and environment.installed("torch") is None:
            return _print(words, "PyTorch is not installed.", {"result": to_json(result)})
        with _progress(words) as progress:
            progress(Event(phase="verify", message="Verifying that PyTorch works"))
            verification = verify(environment, result.expectation, in_process=False)
    except KeyboardInterrupt:
        message = "Stopped before the end of the verification; what was installed stays"
        done = {"result": to_json(result)} if words.json else None
        return _stopped(message, data=done, as_json=words.json)
    data = {"result": to_json(result), "verification": to_json(verification)}
    _print(words, str(verification), data)
    return _judge(words, verification)


def _undo(words: Words) -> int:
    from torchenv_magic.installation.undo import undo_install
    from torchenv_magic.status import read_repaired

    environment, recovered, _ = read_repaired(words.python)
    _mention(words, recovered)
    try:
        with _stoppable() as cancellation, _progress(words) as progress:
            result = undo_install(
                environment,
                consent=words.yes,
                command=words.line,
                on_event=progress,
                cancellation=cancellation,
                wait=True,
            )
    except ConsentError as error:
        error.hint = f"{words.with_consent} goes back all the same"
        raise
    return _prove(words, result)


def _history(words: Words) -> int:
    from torchenv_magic.installation.undo import read_history
    from torchenv_magic.status import read_repaired

    environment, recovered, _ = read_repaired(words.python)
    _mention(words, recovered)
    history = read_history(environment)
    if words.python is not None:
        history = replace(history, undo=_aimed(history.undo, words.python))
    return _print(words, str(history), to_json(history))


def _check_consent(words: Words, plan: Plan) -> None:
    """Ask whoever sits at the terminal before anything of theirs is lost; a script says `--yes`.

    Raises
    ------
    ConsentError, InstallCancelled
    """
    if words.yes:
        return
    try:
        plan.check_consent()
    except ConsentError as error:
        if words.json or not (sys.stdin.isatty() and sys.stderr.isatty()):
            error.hint = f"{words.with_consent} does it, `torchenv undo` takes it back"
            raise
        _talk(f"{error.message}.")
        print("Go on? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise InstallCancelled("Not installed; the environment is as it was") from None


def _new_kernel(words: Words) -> int:
    from torchenv_magic.environment import read_environment
    from torchenv_magic.installation.new_kernel import make_kernel, remove_kernel
    from torchenv_magic.installation.planning import IndexUnreachableError
    from torchenv_magic.installation.progress import Event
    from torchenv_magic.status import read_status
    from torchenv_magic.verification import verify

    if words.remove:
        removed = remove_kernel(words.name)
        return _print(words, f"{removed}.", to_json(removed))
    status, sites = _look(words)
    _mention(words, status.recovered)

    def choose(python: Path) -> tuple[Selection, Environment]:
        # Of the mirror that the plan asks too, whatever is set for the new environment.
        made = read_status(words.request, python=python, index_base=sites.index_base)
        return made.selection, made.environment

    try:
        with _stoppable() as cancellation, _progress(words) as progress:
            made = make_kernel(
                words.name,
                words.request,
                base=status.environment.interpreter.executable,
                choose=choose,
                sites=sites,
                consent=words.yes,
                command=words.line,
                on_event=progress,
                cancellation=cancellation,
            )
    except IndexUnreachableError as error:
        if error.offers:
            error.hint = f"{words.with_consent} uses it"
        raise
    except InstallCancelled as error:
        raise InstallCancelled("Cancelled; nothing of the kernel was kept") from error
    if not words.json:
        _print_text(_colored(f"{made}.", "32", sys.stdout))
        _print_text(f"Choose it in Jupyter, or run `jupyter console --kernel={made.kernel.name}`.")
    try:
        environment = read_environment(made.kernel.python)
        with _progress(words) as progress:
            progress(Event(phase="verify", message="Verifying that PyTorch works"))
            verification = verify(environment, made.result.expectation, in_process=False)
    except KeyboardInterrupt:
        message = "Stopped before the end of the verification; what was made stays"
        done = {"kernel": to_json(made.kernel)} if words.json else None
        return _stopped(message, data=done, as_json=words.json)
    data = {"kernel": to_json(made.kernel), "verification": to_json(verification)}
    _print(words, str(verification), data)
    return _judge(words, verification)


def _download(words: Words) -> int:
    from pathlib import Path

    from torchenv_magic.installation.settings import read_sites
    from torchenv_magic.installation.wheelhouse import fetch_wheels
    from torchenv_magic.status import read_selection

    sites = read_sites(
        index_base=words.index_base,
        find_links=words.find_links,
        allow_sdist=words.allow_sdist,
        prefix=Path(sys.prefix),
    )
    backend, exclusion = words.request.backend, None
    if backend is None:
        if words.platform is not None:
            raise RequestError(
                "Which build fits another machine can't be seen from here",
                hint="name its backend; `torchenv select` says it there",
            )
        selection = read_selection(words.request, refresh="never")
        backend, exclusion = selection.backend, selection.exclusion
        if backend is None:
            raise SelectionError(
                f"No build of PyTorch fits: {selection.reason}", hint="name a backend"
            )
        if not words.json:
            _talk(f"{backend} is the best for this machine: name another backend for another one")
    try:
        with _stoppable() as cancellation, _progress(words) as progress:
            wheelhouse = fetch_wheels(
                words.directory or Path(),
                words.request,
                backend,
                sites=sites,
                python_version=words.python_version,
                platform=words.platform,
                exclusion=exclusion,
                on_event=progress,
                cancellation=cancellation,
            )
    except InstallCancelled:
        message = "Cancelled; wheels that are whole stay, and the same line goes on from there"
        raise InstallCancelled(message) from None
    return _print(words, str(wheelhouse), to_json(wheelhouse))


def _layer(words: Words) -> int:
    from pathlib import Path

    from torchenv_magic.environment import shown_path
    from torchenv_magic.installation.layers import find_layers
    from torchenv_magic.installation.layers_build import check_layer, remove_layer
    from torchenv_magic.installation.progress import format_bytes

    directory = words.directory or Path()
    if words.action == "build":
        return _build_layer(words, directory)
    if words.action in ("attach", "detach"):
        return _switch_layer(words, directory)
    place = shown_path(directory.absolute())
    if words.action == "list":
        found = find_layers([directory])
        text = "\n".join(one.line for one in found) or f"There is no layer in {place}."
        return _print(words, text, [one.summary() for one in found])
    if words.action == "check":
        checked = check_layer(directory)
        _print(words, str(checked), checked.summary())
        return 0 if checked.ok else _FAILED
    if not words.yes:
        raise ConsentError(
            f"Nobody can know who has links to `{place}`: their PyTorch would be gone with it",
            hint=f"{words.with_consent} removes it",
        )
    freed = remove_layer(directory)
    text = f"Removed the layer {place}: {format_bytes(freed)} are free again."
    return _print(words, text, {"freed_bytes": freed})


def _build_layer(words: Words, directory: Path) -> int:
    from torchenv_magic.installation.layers_build import build_layer

    sites = _own_sites(words)
    backend, exclusion = _backend_for(words, words.request.backend)
    try:
        with _stoppable() as cancellation, _progress(words) as progress:
            layer = build_layer(
                directory,
                words.request,
                backend,
                python=words.python,
                sites=sites,
                exclusion=exclusion,
                command=words.line,
                on_event=progress,
                cancellation=cancellation,
            )
    except InstallCancelled:
        raise InstallCancelled("Cancelled; nothing of the layer was kept") from None
    return _print(words, f"Built {layer.line}.", layer.summary())


def _switch_layer(words: Words, directory: Path) -> int:
    from torchenv_magic.environment import read_environment
    from torchenv_magic.installation.layers import attach, detach, read_layer

    environment = read_environment(words.python)
    with _stoppable() as cancellation, _progress(words) as progress:
        if words.action == "attach":
            result = attach(
                read_layer(directory),
                environment,
                command=words.line,
                on_event=progress,
                cancellation=cancellation,
            )
        else:
            result = detach(
                environment, command=words.line, on_event=progress, cancellation=cancellation
            )
    return _print(words, f"{str(result).rstrip('.')}.", to_json(result))


def _own_sites(words: Words) -> Sites:
    from pathlib import Path

    from torchenv_magic.installation.settings import read_sites

    return read_sites(
        index_base=words.index_base,
        find_links=words.find_links,
        allow_sdist=words.allow_sdist,
        prefix=Path(sys.prefix),
    )


def _backend_for(words: Words, backend: Backend | None) -> tuple[Backend, str | None]:
    """Return that backend, or the best for this machine, and which versions it can't have."""
    from torchenv_magic.status import read_selection

    if backend is not None:
        return backend, None
    selection = read_selection(words.request, python=words.python, refresh="never")
    if selection.backend is None:
        raise SelectionError(f"No build of PyTorch fits: {selection.reason}", hint="name a backend")
    if not words.json:
        _talk(
            f"{selection.backend} is the best for this machine: name another backend for users "
            "of another one"
        )
    return selection.backend, selection.exclusion


def _prefetch(words: Words) -> int:
    from pathlib import Path

    from torchenv_magic.installation.prefetch import prefetch

    sites = _own_sites(words)
    chosen = [_backend_for(words, backend) for backend in words.backends]
    # Of a build that was chosen for this machine alone: one that is named is what it is.
    exclusions = {backend: exclusion for backend, exclusion in chosen if exclusion}
    try:
        with _stoppable() as cancellation, _progress(words) as progress:
            done = prefetch(
                words.directory or Path(),
                words.request,
                tuple(dict.fromkeys(backend for backend, _ in chosen)),
                layers=words.layers,
                python=words.python,
                sites=sites,
                exclusions=exclusions,
                command=words.line,
                on_event=progress,
                cancellation=cancellation,
            )
    except InstallCancelled:
        message = "Cancelled; what is whole stays, and the same line goes on from there"
        raise InstallCancelled(message) from None
    data = {
        "directory": str(done.directory),
        "backends": to_json(done.backends),
        "wheels": to_json(done.wheels),
        "layers": [layer.summary() for layer in done.layers],
    }
    return _print(words, str(done), data)


def _verify(words: Words) -> int:
    from torchenv_magic.expectation import read_expectation
    from torchenv_magic.status import read_repaired
    from torchenv_magic.verification import verify

    environment, recovered, _ = read_repaired(words.python)
    _mention(words, recovered)
    expectation = read_expectation(environment.prefix)
    verification = verify(environment, expectation, in_process=False)
    _print(words, str(verification), to_json(verification))
    return _judge(words, verification)


def _doctor(words: Words) -> int:
    from torchenv_magic.doctor import diagnosis_to_json, examine_and_judge

    diagnosis = examine_and_judge(python=words.python)
    if words.python is not None:
        diagnosis = _aimed_diagnosis(diagnosis, words.python)
    _print(words, str(diagnosis), diagnosis_to_json(diagnosis))
    return _FAILED if diagnosis.errors else 0


def _aimed_diagnosis(diagnosis: Diagnosis, python: Path) -> Diagnosis:
    problems = tuple(replace(each, cure=_aimed(each.cure, python)) for each in diagnosis.problems)
    return replace(diagnosis, problems=problems)


def _aim_error(error: TorchEnvError, words: Words) -> None:
    if words.python is not None:
        error.hint = _aimed(error.hint, words.python)


# A line that names its Python is left as it is.
_AIMLESS = re.compile(
    r"`%?torchenv (?:undo|history|install|new-kernel|verify|status)\b(?![^`]*--python)"
)


def _aimed(text: str, python: Path) -> str:
    """Return it with lines that name `python`: else they would change the Python that runs this."""
    from torchenv_magic.doctor.problem import quoted

    option = f" --python {quoted(str(python))}"
    return _AIMLESS.sub(lambda match: match[0] + option, text)


def _judge(words: Words, verification: Verification) -> int:
    """Return the exit status; the table, which is data, was printed before."""
    try:
        verification.raise_for_failure()
    except TorchEnvError as error:
        if words.json:
            _aim_error(error, words)
            _tell(error, as_json=words.word in _EVENTFUL)
        else:
            # The table has its words.
            failed = f"{len(verification.failures)} of {len(verification.tried)} checks failed"
            _talk(f"{_colored('error', '31', sys.stderr)}: PyTorch does not work here: {failed}")
        return error.exit_status
    return 0


def _look(words: Words) -> tuple[Status, Sites]:
    """Return what is here and what would be chosen, and where wheels may come from."""
    from torchenv_magic.installation.settings import read_sites
    from torchenv_magic.status import read_status

    status = read_status(
        words.request,
        python=words.python,
        # Who names a folder of wheels may have no network.
        refresh="never" if words.find_links else "stale",
        index_base=words.index_base,
    )
    sites = read_sites(
        index_base=words.index_base,
        find_links=words.find_links,
        allow_sdist=words.allow_sdist,
        prefix=status.environment.prefix,
    )
    return status, sites


def _make_plan(words: Words, cancellation: Cancellation, *, waits: bool = False) -> Plan:
    from torchenv_magic.installation.planning import IndexUnreachableError, make_plan
    from torchenv_magic.installation.progress import Event
    from torchenv_magic.installation.waiting import wait_for_others

    status, sites = _look(words)
    recovered = status.recovered
    if waits:
        with _progress(words) as progress:
            waited = wait_for_others(
                status.environment, on_event=progress, cancellation=cancellation
            )
        if waited:  # it is another environment now
            status, sites = _look(words)
            recovered = status.recovered or recovered
    warnings: tuple[str, ...] = ()
    if status.selection.backend or words.request.backend:  # else they are the error's
        warnings = status.selection.warnings
    for warning in () if words.json else warnings:
        _talk(f"{_colored('warning', '33', sys.stderr)}: {warning}")
    try:
        with _progress(words) as progress:
            for warning in warnings if words.json else ():
                progress(Event(phase="resolve", message=f"Warning: {warning}"))
            plan = make_plan(
                status.selection,
                status.environment,
                words.request,
                sites=sites,
                consent=words.yes,
                on_event=progress,
                cancellation=cancellation,
            )
    except IndexUnreachableError as error:
        if error.offers:
            error.hint = f"{words.with_consent} uses it"
        raise
    if words.json and words.word == "plan":  # an install has told them, and prints no plan
        plan = replace(plan, notes=(*plan.notes, *warnings))
    if recovered:
        plan = replace(plan, notes=(*plan.notes, recovered))
    return plan


@contextlib.contextmanager
def _stoppable() -> Iterator[Cancellation]:
    """Turn Ctrl-C, and a polite end from outside, into a wish that puts everything back first."""
    from torchenv_magic.installation.uv import Cancellation

    cancellation = Cancellation()
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # Who started this may have had one ignored (`nohup`), and so it stays.
    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]

    def stop(_number: int, _frame: object) -> None:
        # In a thread of its own: the interrupted code may hold the very lock that this takes.
        threading.Thread(target=cancellation.cancel, name="torchenv-stop").start()

    if threading.current_thread() is not threading.main_thread():
        yield cancellation
        return
    previous = [(number, signal.signal(number, stop)) for number in numbers]
    try:
        yield cancellation
    except InstallCancelled as error:
        raise InstallCancelled("Cancelled; the environment is as it was") from error
    finally:
        for number, handler in previous:
            signal.signal(number, handler)


# --------------------------------------------------------------------------------------- the talk


def _print(words: Words, text: str, data: Any) -> int:  # noqa: ANN401
    if words.json:
        _print_json(data)
    else:
        _print_text(text)
    return 0


def _print_text(text: str) -> None:
    print(_terminal(text))


def _print_json(data: Any) -> None:  # noqa: ANN401
    # In ASCII, which every pipe of every system takes.
    print(_terminal(json.dumps(data, indent=2)))


def _tell(error: TorchEnvError, *, as_json: bool = False) -> None:
    if as_json:
        _talk(json.dumps({"error": error.to_json()}))
        return
    lines = [line.rstrip() for line in error.detail.splitlines() if line.strip()]
    if len(lines) > _DETAIL_LINES:
        lines = [f"… {len(lines) - _DETAIL_LINES} lines more", *lines[-_DETAIL_LINES:]]
    for line in lines:
        _talk(f"  {line}")
    _talk(f"{_colored('error', '31', sys.stderr)}: {error}")


def _mention(words: Words, *texts: str | None) -> None:
    """Say what was found on the way, as an event where programs read what is said."""
    for text in filter(None, texts):
        if words.json and words.word in _EVENTFUL:
            from torchenv_magic.installation.progress import Event

            with _progress(words) as progress:
                progress(Event(phase="resolve", message=text))
        else:
            _talk(text)


def _talk(text: str) -> None:
    print(_terminal(text), file=sys.stderr, flush=True)


# What is written for a notebook, in the words of a terminal.
_IN_A_TERMINAL = (
    (re.compile(r"`%torchenv`"), "`torchenv install`"),
    (re.compile(r"`[%!](?=torchenv |pip |uv |[^`]* -m uv pip )"), "`"),
    (
        re.compile(r"choose another one as this notebook's kernel"),
        r"name another one with `--python`",
    ),
    (re.compile(r"\brestart the kernel(?: and|, then) (?=run )"), ""),
    (re.compile(r", (?:and|then) restart the kernel\b"), ""),
    (re.compile(r"read the folded log: it has all that uv said"), "read above all that uv said"),
    (re.compile(r"with the folded text\b"), "with the text above"),
)  # fmt: skip


def _terminal(text: str) -> str:
    for pattern, replacement in _IN_A_TERMINAL:
        text = pattern.sub(replacement, text)
    return text


def _colored(text: str, code: str, stream: TextIO) -> str:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


@contextlib.contextmanager
def _progress(words: Words) -> Iterator[OnEvent]:
    """Lend a listener that tells on stderr what goes on: drawn, in lines, or as JSON."""
    from torchenv_magic.terminal import told

    with told(as_json=words.json, say=_terminal) as on_event:
        yield on_event


_WORDS = {
    "status": _status,
    "list": _list,
    "plan": _plan,
    "install": _install,
    "verify": _verify,
    "doctor": _doctor,
    "undo": _undo,
    "history": _history,
    "new-kernel": _new_kernel,
    "download": _download,
    "layer": _layer,
    "prefetch": _prefetch,
    "detect": _detect,
    "select": _select,
}
