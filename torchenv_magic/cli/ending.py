"""How a word of the `torchenv` command ends: consent, the proof, and whom a hint is for."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchenv_magic.cli.talk import (
    EVENTFUL,
    FAILED,
    colored,
    listening,
    mention,
    print_data,
    print_json,
    print_text,
    stoppable,
    talk,
    tell_error,
)
from torchenv_magic.errors import BusyError, ConsentError, InstallCancelled, TorchEnvError
from torchenv_magic.serialization import to_json
from torchenv_magic.words import Words

if TYPE_CHECKING:
    from torchenv_magic.installation.install import Result
    from torchenv_magic.installation.plan import Plan
    from torchenv_magic.installation.uv import Cancellation
    from torchenv_magic.verification import Verification

__all__ = ["aim_error", "aimed", "carry_out", "judge", "prove", "stopped"]


_MOST_ROUNDS = 3


def carry_out(words: Words, make_plan: Callable[[Cancellation], Plan]) -> int:
    """Plan, show the plan, ask where something is lost by it, install, and prove that it works.

    Raises
    ------
    TorchEnvError
    """
    from torchenv_magic.installation.install import install_plan

    rounds = 0
    while True:
        rounds += 1
        with stoppable() as cancellation:
            plan = make_plan(cancellation)
            if words.json or plan.nothing_to_do:
                mention(words, *plan.notes)
            else:
                print_text(str(plan))
        _check_consent(words, plan)
        try:
            with stoppable() as cancellation, listening(words) as progress:
                result = install_plan(
                    plan, command=words.line, on_event=progress, cancellation=cancellation
                )
        except BusyError:
            # Where another install began or ended while this one planned, this one plans anew, but
            # not for ever: what is in the way may be there to stay.
            if rounds == _MOST_ROUNDS:
                raise
        else:
            return prove(words, result)


def prove(words: Words, result: Result) -> int:
    """Say what was done, and prove that what is there now works."""
    from torchenv_magic.installation.progress import Event
    from torchenv_magic.status import read_repaired
    from torchenv_magic.verification import verify

    if not words.json:
        for text in filter(None, (result.recovered, str(result))):
            print_text(colored(text, "32", sys.stdout))
    try:
        # Read anew: it is another environment now.
        environment, _, _ = read_repaired(words.python)
        if result.undone and environment.installed("torch") is None:
            return print_data(words, "PyTorch is not installed.", {"result": to_json(result)})
        with listening(words) as progress:
            progress(Event(phase="verify", message="Verifying that PyTorch works"))
            verification = verify(environment, result.expectation, in_process=False)
    except KeyboardInterrupt:
        message = "Stopped before the end of the verification; what was installed stays"
        done = {"result": to_json(result)} if words.json else None
        return stopped(message, data=done, as_json=words.json)
    data = {"result": to_json(result), "verification": to_json(verification)}
    print_data(words, str(verification), data)
    return judge(words, verification)


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
        talk(f"{error.message}.")
        print("Go on? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise InstallCancelled("Not installed; the environment is as it was") from None


def judge(words: Words, verification: Verification) -> int:
    """Return the exit status; the table, which is data, was printed before."""
    try:
        verification.raise_for_failure()
    except TorchEnvError as error:
        if words.json:
            aim_error(error, words)
            tell_error(error, as_json=words.word in EVENTFUL)
        else:
            # The table has its words.
            failed = f"{len(verification.failures)} of {len(verification.tried)} checks failed"
            talk(f"{colored('error', '31', sys.stderr)}: PyTorch does not work here: {failed}")
        return error.exit_status
    return 0


def stopped(message: str, *, data: dict[str, Any] | None, as_json: bool) -> int:
    """Say so; `data` is what was done before, None where nobody reads JSON."""
    error = InstallCancelled(message)
    if data is not None:
        print_json({**data, "error": error.to_json()})
    if as_json:
        tell_error(error, as_json=True)
    else:
        talk(f"{message[0].lower()}{message[1:]}")
    return FAILED


def aim_error(error: TorchEnvError, words: Words) -> None:
    if words.python is not None:
        error.hint = aimed(error.hint, words.python)


# A line that names its Python is left as it is.
_AIMLESS = re.compile(
    r"`%?torchenv (?:undo|history|install|lock|restore|export|new-kernel|verify|status)\b"
    r"(?![^`]*--python)"
)


def aimed(text: str, python: Path) -> str:
    """Return it with lines that name `python`: else they would change the Python that runs this."""
    from torchenv_magic.doctor.problem import quoted

    option = f" --python {quoted(str(python))}"
    return _AIMLESS.sub(lambda match: match[0] + option, text)
