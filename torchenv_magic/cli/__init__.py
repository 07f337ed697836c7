"""The `torchenv` command: the words of `%torchenv` for a terminal and for scripts."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torchenv_magic.cli.ending import aim_error, aimed, carry_out, judge, prove, stopped
from torchenv_magic.cli.talk import (
    FAILED,
    colored,
    listening,
    mention,
    print_data,
    print_json,
    print_text,
    speaks_json,
    stoppable,
    talk,
    tell_error,
)
from torchenv_magic.errors import (
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
    from torchenv_magic.installation.plan import Plan
    from torchenv_magic.installation.settings import Sites
    from torchenv_magic.installation.uv import Cancellation
    from torchenv_magic.selection import Selection
    from torchenv_magic.status import Status

__all__ = ["main"]

_MISSPELT = 2


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
        return FAILED
    return status


def _run(texts: Sequence[str]) -> int:
    if not texts:
        talk(overview(notebook=False))
        return _MISSPELT
    if list(texts) in (["--version"], ["-V"]):
        from torchenv_magic import __version__

        print(f"torchenv {__version__}")
        return 0
    words = None
    if speaks_json(texts):
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
            if words.word in ("install", "restore", "undo"):
                _say_what_stands(error, words)
            aim_error(error, words)
        if "--json" in texts:
            print_json({"error": error.to_json()})
        tell_error(error, as_json=speaks_json(texts))
        return error.exit_status
    except KeyboardInterrupt:
        return stopped(
            "Stopped; nothing was changed",
            data={} if "--json" in texts else None,
            as_json=speaks_json(texts),
        )


def _say_what_stands(error: TorchEnvError, words: Words) -> None:
    from torchenv_magic.environment import read_environment
    from torchenv_magic.status import say_what_stands

    # Where there is no such environment, the error itself says so.
    with contextlib.suppress(TorchEnvError):
        say_what_stands(error, read_environment(words.python))


# ------------------------------------------------------------------------------------- the words


def _refresh(words: Words) -> Refresh:
    return "always" if words.refresh else "never"


def _selection(words: Words) -> Selection:
    from torchenv_magic.status import read_selection

    return read_selection(words.request, python=words.python, refresh=_refresh(words))


def _status(words: Words) -> int:
    from torchenv_magic.status import read_status

    status = read_status(words.request, python=words.python, refresh=_refresh(words))
    return print_data(words, str(status), to_json(status))


def _list(words: Words) -> int:
    selection = _selection(words)
    return print_data(words, str(selection), to_json(selection.alternatives))


def _detect(words: Words) -> int:
    from torchenv_magic.accelerators import detect

    host = detect()
    return print_data(words, str(host), to_json(host))


def _select(words: Words) -> int:
    from torchenv_magic.selection import selection_to_json

    selection = _selection(words)
    return print_data(words, str(selection), selection_to_json(selection))


def _plan(words: Words) -> int:
    with stoppable() as cancellation:
        plan = _make_plan(words, cancellation)
    data = to_json(plan)
    data.update(
        download_bytes=plan.download_bytes,
        nothing_to_do=plan.nothing_to_do,
        summary=plan.summary,
    )
    return print_data(words, str(plan), data)


def _install(words: Words) -> int:
    return carry_out(words, lambda cancellation: _make_plan(words, cancellation, waits=True))


def _undo(words: Words) -> int:
    from torchenv_magic.installation.undo import undo_install
    from torchenv_magic.status import read_repaired

    environment, recovered, _ = read_repaired(words.python)
    mention(words, recovered)
    try:
        with stoppable() as cancellation, listening(words) as progress:
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
    return prove(words, result)


def _history(words: Words) -> int:
    from torchenv_magic.installation.undo import read_history
    from torchenv_magic.status import read_repaired

    environment, recovered, _ = read_repaired(words.python)
    mention(words, recovered)
    history = read_history(environment)
    if words.python is not None:
        history = replace(history, undo=aimed(history.undo, words.python))
    return print_data(words, str(history), to_json(history))


def _new_kernel(words: Words) -> int:
    from torchenv_magic.environment import read_environment
    from torchenv_magic.installation.new_kernel import make_kernel, remove_kernel
    from torchenv_magic.installation.planning import IndexUnreachableError
    from torchenv_magic.installation.progress import Event
    from torchenv_magic.status import read_status
    from torchenv_magic.verification import verify

    if words.remove:
        removed = remove_kernel(words.name)
        return print_data(words, f"{removed}.", to_json(removed))
    status, sites = _look(words)
    mention(words, status.recovered)

    def choose(python: Path) -> tuple[Selection, Environment]:
        # Of the mirror that the plan asks too, whatever is set for the new environment.
        made = read_status(words.request, python=python, index_base=sites.index_base)
        return made.selection, made.environment

    try:
        with stoppable() as cancellation, listening(words) as progress:
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
        print_text(colored(f"{made}.", "32", sys.stdout))
        print_text(f"Choose it in Jupyter, or run `jupyter console --kernel={made.kernel.name}`.")
    try:
        environment = read_environment(made.kernel.python)
        with listening(words) as progress:
            progress(Event(phase="verify", message="Verifying that PyTorch works"))
            verification = verify(environment, made.result.expectation, in_process=False)
    except KeyboardInterrupt:
        message = "Stopped before the end of the verification; what was made stays"
        done = {"kernel": to_json(made.kernel)} if words.json else None
        return stopped(message, data=done, as_json=words.json)
    data = {"kernel": to_json(made.kernel), "verification": to_json(verification)}
    print_data(words, str(verification), data)
    return judge(words, verification)


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
            talk(f"{backend} is the best for this machine: name another backend for another one")
    try:
        with stoppable() as cancellation, listening(words) as progress:
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
    return print_data(words, str(wheelhouse), to_json(wheelhouse))


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
        return print_data(words, text, [one.summary() for one in found])
    if words.action == "check":
        checked = check_layer(directory)
        print_data(words, str(checked), checked.summary())
        return 0 if checked.ok else FAILED
    if not words.yes:
        raise ConsentError(
            f"Nobody can know who has links to `{place}`: their PyTorch would be gone with it",
            hint=f"{words.with_consent} removes it",
        )
    freed = remove_layer(directory)
    text = f"Removed the layer {place}: {format_bytes(freed)} are free again."
    return print_data(words, text, {"freed_bytes": freed})


def _build_layer(words: Words, directory: Path) -> int:
    from torchenv_magic.installation.layers_build import build_layer

    sites = _own_sites(words)
    backend, exclusion = _backend_for(words, words.request.backend)
    try:
        with stoppable() as cancellation, listening(words) as progress:
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
    return print_data(words, f"Built {layer.line}.", layer.summary())


def _switch_layer(words: Words, directory: Path) -> int:
    from torchenv_magic.environment import read_environment
    from torchenv_magic.installation.layers import attach, detach, read_layer

    environment = read_environment(words.python)
    with stoppable() as cancellation, listening(words) as progress:
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
    return print_data(words, f"{str(result).rstrip('.')}.", to_json(result))


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
        talk(
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
        with stoppable() as cancellation, listening(words) as progress:
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
    return print_data(words, str(done), data)


def _verify(words: Words) -> int:
    from torchenv_magic.expectation import read_expectation
    from torchenv_magic.status import read_repaired
    from torchenv_magic.verification import verify

    environment, recovered, _ = read_repaired(words.python)
    mention(words, recovered)
    expectation = read_expectation(environment.prefix)
    verification = verify(environment, expectation, in_process=False)
    print_data(words, str(verification), to_json(verification))
    return judge(words, verification)


def _doctor(words: Words) -> int:
    from torchenv_magic.doctor import diagnosis_to_json, examine_and_judge

    diagnosis = examine_and_judge(python=words.python)
    if words.python is not None:
        diagnosis = _aimed_diagnosis(diagnosis, words.python)
    print_data(words, str(diagnosis), diagnosis_to_json(diagnosis))
    return FAILED if diagnosis.errors else 0


def _aimed_diagnosis(diagnosis: Diagnosis, python: Path) -> Diagnosis:
    problems = tuple(replace(each, cure=aimed(each.cure, python)) for each in diagnosis.problems)
    return replace(diagnosis, problems=problems)


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
        with listening(words) as progress:
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
        talk(f"{colored('warning', '33', sys.stderr)}: {warning}")
    try:
        with listening(words) as progress:
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


def _lock(words: Words) -> int:
    from torchenv_magic.cli.locks import lock

    return lock(words)


def _restore(words: Words) -> int:
    from torchenv_magic.cli.locks import restore

    return restore(words)


def _export(words: Words) -> int:
    from torchenv_magic.cli.exports import export

    return export(words)


def _notebook(words: Words) -> int:
    from torchenv_magic.cli.notebooks import notebook

    return notebook(words)


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
    "lock": _lock,
    "restore": _restore,
    "export": _export,
    "notebook": _notebook,
    "detect": _detect,
    "select": _select,
}
