"""The `torchenv` command: the words of `%torchenv` for a terminal and for scripts."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torchenv_magic.accelerators import detect
from torchenv_magic.environment import Environment, read_environment
from torchenv_magic.errors import TorchEnvError
from torchenv_magic.expectation import read_expectation
from torchenv_magic.installation.install import Result, install_plan
from torchenv_magic.installation.plan import Plan
from torchenv_magic.installation.planning import make_plan
from torchenv_magic.installation.progress import Event
from torchenv_magic.selection import selection_to_json
from torchenv_magic.serialization import to_json
from torchenv_magic.status import read_status
from torchenv_magic.verification import Verification, verify
from torchenv_magic.words import HelpRequested, Words, parse_words

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one word; return 0 where it was done, 1 where it failed, 2 where it was misspelt."""
    texts = sys.argv[1:] if arguments is None else list(arguments)
    as_json = "--json" in texts
    try:
        words = parse_words(texts, notebook=False)
        return _WORDS[words.word](words)
    except HelpRequested as request:
        print(request.text)
        return 0
    except TorchEnvError as error:
        if as_json:
            print(json.dumps({"error": error.to_json()}))
        _talk(_colored("error", "31") + f": {_terminal(error)}")
        return error.exit_status
    except KeyboardInterrupt:
        _talk("cancelled; the environment is as it was")
        return 1
    except BrokenPipeError:
        # `torchenv list | head`: Python would complain once more while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _terminal(error: TorchEnvError) -> str:
    # Hints are written for the notebook; in a terminal the same words have no percent sign.
    return str(error).replace("`%torchenv ", "`torchenv ").replace("`%pip ", "`pip ")


def _status(words: Words) -> int:
    status = read_status(words.request, python=words.python)
    return _print(words, str(status), to_json(status))


def _list(words: Words) -> int:
    selection = read_status(words.request, python=words.python).selection
    return _print(words, str(selection), to_json(selection.alternatives))


def _detect(words: Words) -> int:
    host = detect()
    return _print(words, str(host), to_json(host))


def _select(words: Words) -> int:
    selection = read_status(words.request, python=words.python).selection
    return _print(words, str(selection), selection_to_json(selection))


def _plan(words: Words) -> int:
    plan, _ = _make_plan(words)
    data = to_json(plan)
    data.update(download_bytes=plan.download_bytes, summary=plan.summary)
    return _print(words, str(plan), data)


def _install(words: Words) -> int:
    plan, environment = _make_plan(words)
    if not words.json:
        print(plan)
    result = install_plan(plan, on_event=_Progress())
    verification = verify(environment, result.expectation, in_process=False)
    if words.json:
        print(json.dumps({"result": to_json(result), "verification": to_json(verification)}))
    else:
        _print_done(result, verification)
    verification.raise_for_failure()
    return 0


def _print_done(result: Result, verification: Verification) -> None:
    if result.recovered:
        print(result.recovered)
    print(_colored(str(result), "32"))
    print(verification)


def _verify(words: Words) -> int:
    environment = read_environment(words.python)
    expectation = read_expectation(environment.prefix)
    verification = verify(environment, expectation, in_process=False)
    _print(words, str(verification), to_json(verification))
    verification.raise_for_failure()
    return 0


def _make_plan(words: Words) -> tuple[Plan, Environment]:
    status = read_status(words.request, python=words.python)
    for warning in status.selection.warnings:
        _talk(_colored("warning", "33") + f": {warning}")
    progress = _Progress()
    plan = make_plan(
        status.selection, status.environment, words.request, consent=words.yes, on_event=progress
    )
    if status.recovered:
        plan = replace(plan, notes=(*plan.notes, status.recovered))
    return plan, status.environment


def _print(words: Words, text: str, data: Any) -> int:  # noqa: ANN401
    print(json.dumps(data, ensure_ascii=False, indent=2) if words.json else text)
    return 0


class _Progress:
    """Tells events on stderr: one line that changes on a terminal, one line a phase elsewhere."""

    def __init__(self) -> None:
        self._moving = sys.stderr.isatty()
        self._open = False

    def __call__(self, event: Event) -> None:
        if event.bytes is not None and self._moving and not event.message:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{str(event.bytes)[:width]}", end="", file=sys.stderr, flush=True)
            self._open = True
        elif event.message:
            if self._open:
                print("\r\x1b[K", end="", file=sys.stderr)
                self._open = False
            _talk(event.message)


def _talk(text: str) -> None:
    print(text, file=sys.stderr)


def _colored(text: str, code: str) -> str:
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


_WORDS = {
    "status": _status,
    "list": _list,
    "plan": _plan,
    "install": _install,
    "verify": _verify,
    "detect": _detect,
    "select": _select,
}
